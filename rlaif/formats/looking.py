"""What a data set is: the shape of its rows, one of them as it will be used, and what is dropped or not used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from rlaif.formats.files import Table
from rlaif.formats.judged import records_of, shapes_of
from rlaif.formats.messages import UnknownShape, Unusable
from rlaif.formats.published import completed_of, judged_alone, known_as, normal, without_nan
from rlaif.formats.reading import each_row, stated_preferences
from rlaif.records import Row, writable

MOST_SETS = 1_000  # sets of columns that are looked at; rows of more have columns of their own


@dataclass
class Look:
    """The counts of a data set, and its first row as judges and `pair` would read it."""

    name: str
    rows: int = 0  # in the file
    prompts: int = 0  # after those that are alike were put together, or dropped
    completions: int = 0
    judgements: Counter[str] = field(default_factory=Counter)  # by kind
    preferences: int = 0  # as `rm` and `dpo` would read them
    no_preference: Counter[str] = field(default_factory=Counter)  # prompts, by reason: ties and others
    shapes: Counter[str] = field(default_factory=Counter)  # rows of the file, by shape
    dropped: Counter[str] = field(default_factory=Counter)  # rows, by reason
    told: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)  # columns: rows that have one
    example: Row | None = None

    def as_dict(self) -> dict[str, Any]:
        counts = {name: dict(value) for name, value in vars(self).items() if isinstance(value, Counter)}
        example = None if self.example is None else self.example.model_dump(mode="json", exclude_defaults=True)
        return vars(self) | counts | {"example": example}


def look(table: Table) -> Look:
    """Read a whole data set. Raises InputError as `each_row`."""
    found = Look(table.name)
    watched = table._replace(rows=_watched(table, found))
    for row in each_row(watched, found.dropped, told=found.told):
        found.example = found.example or row
        found.prompts += 1
        found.completions += len(row.candidates)
        for kind in ("comparisons", "ratings", "rankings", "scores"):
            found.judgements[kind] += len(getattr(row, kind))
        if len(row.candidates) < 2:
            continue
        try:
            found.preferences += len(stated_preferences(row))
        except Unusable as reason:
            found.no_preference[str(reason)] += 1
        except UnknownShape:
            found.no_preference["too many pairs"] += 1
    found.judgements = +found.judgements
    return found


def _watched(table: Table, found: Look) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows as they are; their shapes and the columns that are not used are counted."""
    unused: dict[tuple[str, ...], list[str]] = {}
    for number, row in table.rows:
        found.rows += 1
        clean = without_nan(row)
        found.shapes[shape_of(clean)] += 1
        columns = tuple(name for name, value in clean.items() if value is not None)
        if columns not in unused and len(unused) < MOST_SETS:
            unused[columns] = [name for name in columns if _is_unused(name, clean)]
        found.unused.update(unused.get(columns, ()))
        yield number, row


def shape_of(row: dict[str, Any]) -> str:
    """The shape of a row, in words."""
    if {"text", "role"} <= row.keys() and {"parent_id", "parent_message_id"} & row.keys():
        return "messages of a tree"
    if isinstance(row.get("instances"), list) and "instruction" in row:
        return "an instruction with instances"
    try:
        own, known = normal(row), known_as(row)
    except UnknownShape as problem:
        return f"none: {problem}"
    if judging := shapes_of(own):
        what = " and ".join(judging)
    elif judged_alone(own):
        what = "one completion with a judgement"
    else:
        turns = own.get("messages", own.get("conversations"))
        last = turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else {}
        answered = last.get("role", last.get("from")) in ("assistant", "gpt", "model")
        what = "a conversation" if answered or completed_of(own) else "a prompt alone"
    return f"{what} ({', '.join(known)})" if known else what


def _is_unused(name: str, row: dict[str, Any]) -> bool:
    """Whether the same is made of a row without the column."""
    if {"text", "role"} <= row.keys() or name in ("id", "source", "subset"):
        return False
    return bool(_made({key: value for key, value in row.items() if key != name}) == _made(row))


def _made(row: dict[str, Any]) -> Any:
    try:
        own = normal(row)
        return records_of(own, "", turns="last"), judged_alone(own), sorted(own.get("instances") or (), key=str)
    except (UnknownShape, Unusable, ValidationError, RecursionError, TypeError) as error:
        return writable(str(error))
