"""The rows of an SFT training in the order in which they are learnt: mixed, packed, or as they are."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlaif.config import SFTSettings
from rlaif.errors import WorkError
from rlaif.train import mixing, packing
from rlaif.train.demonstrations import PART
from rlaif.train.mixing import Mixture

Columns = Mapping[str, Sequence[Any]]
WINDOW = 1024  # rows of a mixture that are packed together: more fill sequences better, fewer keep the mixture's order


def arranged(settings: SFTSettings, columns: Columns, max_length: int, notes: list[str]) -> dict[str, list[Any]]:
    """The rows to train on, packed where the settings say so; of a mixture, those of the whole training in order.

    `notes` are told of either. Raises WorkError when a stage of the mixture has no row.
    """
    rows = {name: column for name, column in columns.items() if name != PART}
    if not settings.mixes:
        made = packing.packed(rows, max_length) if settings.packing else {name: list(c) for name, c in rows.items()}
    else:
        parts = _mixed(settings, columns, notes)
        if settings.packing:
            windows = [packing.packed(_taken(rows, window), max_length) for window in _windows(parts)]
            made = _joined([_shuffled(window, f"{settings.seed} {i}") for i, window in enumerate(windows)])
        else:
            made = _taken(rows, [row for part in parts for row in part])
    if settings.packing:
        notes.append(_how_full(made, max_length))
    return made


def validating(settings: SFTSettings, columns: Columns, max_length: int) -> dict[str, list[Any]]:
    """The rows to validate on, of which each is read once."""
    rows = {name: list(column) for name, column in columns.items() if name != PART}
    return packing.packed(rows, max_length) if settings.packing else rows


def _mixed(settings: SFTSettings, columns: Columns, notes: list[str]) -> list[list[int]]:
    """The rows of each phase, by their numbers."""
    assert settings.mix is not None
    sources: dict[str, list[int]] = {}
    for row, part in enumerate(columns[PART]):
        sources.setdefault(part, []).append(row)
    for name in {**settings.mix, **(settings.mix_decay or {})}:
        if name not in sources:
            raise WorkError(
                f"the mixture has a share of {name!r}, and none of its rows is for training",
                fix="remove it from `mix`, or see in `rlaif status` what was dropped and why",
            )
    lengths = [len(ids) for ids in columns["input_ids"]]
    sizes = lengths if settings.mix_by == "tokens" else None
    count = mixing.rows_of_epochs(sources, settings.mix, settings.epochs, sizes, settings.seed)
    per_step = settings.batch_size * settings.accumulate
    if settings.max_steps is not None:
        count = settings.max_steps * per_step
    mixture = Mixture(sources, settings.seed, sizes)
    drawn = []
    for phase in mixing.phases(count, per_step, settings.mix, settings.mix_decay, settings.decay):
        drawn.append(mixture.draw(phase))
        when = "" if len(drawn) == 1 else f"; for the last {phase.rows:,} rows"
        notes.append(f"mixed by {settings.mix_by}{when}: {_shares(drawn[-1], columns[PART], sizes)}")
    passes = ", ".join(f"{name} {times:.2f}" for name, times in mixture.passes().items())
    notes.append(f"passes over each stage of the mixture: {passes}")
    return drawn


def _shares(drawn: Sequence[int], parts: Sequence[str], sizes: Sequence[int] | None) -> str:
    """The share of each source in what was drawn, as it is and not as it was asked for."""
    had: dict[str, int] = {}
    for row in drawn:
        had[parts[row]] = had.get(parts[row], 0) + (1 if sizes is None else sizes[row])
    total = max(1, sum(had.values()))
    return ", ".join(f"{name} {count / total:.1%}" for name, count in sorted(had.items()))


def _windows(parts: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    for part in parts:
        for start in range(0, len(part), WINDOW):
            yield part[start : start + WINDOW]


def _taken(columns: Columns, rows: Sequence[int]) -> dict[str, list[Any]]:
    return {name: [column[row] for row in rows] for name, column in columns.items()}


def _shuffled(columns: Columns, seed: str) -> dict[str, list[Any]]:
    """The sequences in another order than by their length."""
    count = len(columns["input_ids"])
    return _taken(columns, random.Random(f"packed {seed}").sample(range(count), count))


def _joined(windows: Sequence[Columns]) -> dict[str, list[Any]]:
    return {name: [row for window in windows for row in window[name]] for name in windows[0]}


def _how_full(sequences: Columns, max_length: int) -> str:
    count, rows = len(sequences["input_ids"]), sum(map(len, sequences["seq_lengths"]))
    filled = sum(map(len, sequences["input_ids"])) / (max_length * count)
    return f"packed: {rows:,} rows in {count:,} sequences of up to {max_length:,} tokens, {filled:.0%} full"
