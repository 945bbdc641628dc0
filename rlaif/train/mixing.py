"""Which rows a training on a mixture of sources learns from, and in which order.

By rows, each source gets its share of the rows by largest remainder (Hamilton's method), and of the first rows, however
many, within one row of it: the next row is of the source whose next one is due first, among those that are not ahead
(the quota method of Balinski and Young 1975, with the deadlines of Steiner and Yeomans 1993). By tokens, the next row
is of the source that is furthest behind its share of the tokens so far.

A source is read in passes, each in an order of its own; a small one is repeated, a large one not finished.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from math import ceil
from typing import NamedTuple

Weights = Mapping[str, float]


class Phase(NamedTuple):
    """So many rows of a mixture."""

    rows: int
    weights: Weights


def shares(weights: Weights) -> dict[str, Fraction]:
    """The weights as shares of one, exactly as they are written in decimals; those of 0 are left out."""
    exact = {name: Fraction(str(weight)) for name, weight in weights.items() if weight > 0}
    return {name: weight / sum(exact.values()) for name, weight in exact.items()}


def apportioned(total: int, weights: Weights) -> dict[str, int]:
    """`total` rows by largest remainder: the whole parts of each share, then one more where the most is missing."""
    exact = {name: share * total for name, share in shares(weights).items()}
    counts = {name: int(quota) for name, quota in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])  # stable: ties to the earlier source
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def interleaved(counts: Mapping[str, int]) -> Iterator[str]:
    """The sources in turn, each as often as `counts` says, and after any number of turns within one of its share."""
    total, done = sum(counts.values()), Counter[str]()
    for turn in range(1, total + 1):
        behind = [name for name, count in counts.items() if done[name] * total < count * turn]
        name = min(behind, key=lambda name: Fraction(done[name] + 1, counts[name]))
        done[name] += 1
        yield name


class _Passes:
    """The rows of a source, without end: one pass after another, each in an order drawn from the seed."""

    def __init__(self, name: str, rows: Sequence[int], seed: int) -> None:
        self.name, self.rows, self.seed = name, rows, seed
        self.read = 0

    def next(self) -> int:
        number, place = divmod(self.read, len(self.rows))
        if place == 0:
            self._order = random.Random(f"mixture {self.seed} {self.name} {number}").sample(self.rows, len(self.rows))
        self.read += 1
        return self._order[place]


class Mixture:
    """The sources' rows by their numbers, and the sizes by which they are mixed.

    `sizes` are the tokens of all rows where the mixture is by tokens, else None.
    """

    def __init__(self, sources: Mapping[str, Sequence[int]], seed: int, sizes: Sequence[int] | None = None) -> None:
        self._passes = {name: _Passes(name, rows, seed) for name, rows in sources.items()}
        self._sizes = sizes

    def draw(self, phase: Phase) -> list[int]:
        """The rows of a phase, in order. The passes go on where the phase before left them."""
        if self._sizes is not None:
            return list(islice(self.by_tokens(phase.weights, self._sizes), phase.rows))
        return [self._passes[name].next() for name in interleaved(apportioned(phase.rows, phase.weights))]

    def by_tokens(self, weights: Weights, sizes: Sequence[int]) -> Iterator[int]:
        """Rows without end."""
        exact, had, total = shares(weights), Counter[str](), 0
        while True:
            name = max(exact, key=lambda name: (exact[name] * total - had[name], exact[name]))
            row = self._passes[name].next()
            had[name] += sizes[row]
            total += sizes[row]
            yield row

    def passes(self) -> dict[str, float]:
        """How often each source has been read, 1 for one whole pass."""
        return {name: source.read / len(source.rows) for name, source in self._passes.items()}


def rows_of_epochs(
    sources: Mapping[str, Sequence[int]], weights: Weights, epochs: float, sizes: Sequence[int] | None, seed: int
) -> int:
    """The rows of a training: `epochs` times as many rows, or tokens, as the sources have together."""
    rows = [row for name in shares(weights) for row in sources[name]]
    if sizes is None:
        return max(1, round(epochs * len(rows)))
    wanted, total = epochs * sum(sizes[row] for row in rows), 0
    for count, row in enumerate(Mixture(sources, seed, sizes).by_tokens(weights, sizes), 1):
        total += sizes[row]
        if total >= wanted:
            return count
    raise AssertionError("a mixture has no end")


def phases(rows: int, per_step: int, weights: Weights, later: Weights | None, decay: float) -> list[Phase]:
    """The phases of a training of so many rows: `later` holds in the share `decay` of its steps, at its end.

    These are the steps in which the learning rate of a WSD schedule falls (MiniCPM, arXiv 2404.06395, section 5).
    """
    if later is None:
        return [Phase(rows, weights)]
    steps = ceil(rows / per_step)
    before = min(rows, (steps - max(1, round(decay * steps))) * per_step)
    return [Phase(before, weights), Phase(rows - before, later)]
