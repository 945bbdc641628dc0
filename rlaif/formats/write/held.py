"""Which preferences a shape can hold: a prompt is written with all its preferences, or dropped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from rlaif.formats.judged import records_of
from rlaif.formats.messages import UnknownShape, Unusable
from rlaif.formats.write.shape import Fields
from rlaif.formats.write.turns import kept
from rlaif.records import Preference

UNHELD = "text that the shape cannot hold"  # such as a system message in a transcript, or a turn's mark inside a turn


def by_prompt(
    preferences: Iterable[Preference],
    dropped: Counter[str],
    reason: str,
    make: Callable[[Preference, int], Fields | None],
) -> Iterator[Fields]:
    """The rows that `make` gives for each preference and its number from 1.

    Where `make` gives None for one preference, all of its prompt are dropped and `dropped` counts the prompt.
    """
    number = 0
    for _, group in groupby(preferences, key=lambda preference: preference.prompt.id):
        rows = []
        for preference in group:
            number += 1
            row = make(preference, number)
            rows.append(None if row is None else kept(preference.prompt, row))
        whole = [row for row in rows if row is not None]
        if len(whole) == len(rows):
            yield from whole
        else:
            dropped[reason] += 1


def held(preference: Preference, row: Fields) -> Fields | None:
    """The row, or None where reading it back would not give the same preference."""
    try:
        (read,) = records_of(row, "", turns="last")
    except (Unusable, UnknownShape):
        return None
    completions = [candidate.completion.text for candidate in read.candidates]
    wanted = [preference.chosen.completion.text, preference.rejected.completion.text]
    return row if completions == wanted and read.prompt.messages == preference.prompt.messages else None
