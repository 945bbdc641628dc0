"""The order of a training's rows, for batches of like lengths: short rows beside long ones are mostly padding.

Imports no torch: it is what the base trainer takes for a sampler.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

WINDOW = 50  # steps whose rows are sorted together; in a longer one the steps would be all of a length


class LikeLengths:
    """Row numbers in random order, those of each step sorted by length, longest first.

    A step's loss is a mean over its rows, so which of its batches holds a row changes nothing but the padding. With
    `grouped`, also the steps are of like lengths: the rows of WINDOW steps are sorted together, and the steps then
    drawn in random order. `lengths` are in tokens, `step` in rows.
    """

    def __init__(self, lengths: Sequence[int], step: int, seed: int, *, grouped: bool) -> None:
        self._lengths, self._step, self._seed = lengths, step, seed
        self._window = step * (WINDOW if grouped else 1)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Another epoch has another order; the same one, resumed, the same."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(f"{self._seed} {self._epoch}")
        rows = list(range(len(self._lengths)))
        draw.shuffle(rows)
        for start in range(0, len(rows), self._window):
            window = sorted(rows[start : start + self._window], key=lambda row: -self._lengths[row])
            steps = [window[first : first + self._step] for first in range(0, len(window), self._step)]
            partial = steps.pop() if len(steps[-1]) < self._step else []
            draw.shuffle(steps)
            for step in (*steps, partial):  # the one that is not full stays last: batches are cut from the front
                yield from step
