"""People as judges: their labels, read from a file, take the place of a model's verdicts.

A line labels one pair of candidates of a prompt, or rates one candidate under an aspect:

    {"prompt_id": "...", "a": "<call or text>", "b": "<call or text>", "verdict": "a" | "b" | "tie", "person": "kim"}
    {"prompt_id": "...", "candidate": "<call or text>", "aspect": "helpful", "rating": 4, "person": "kim"}

A candidate is named by its call, as in every data set written here, or by its whole text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from rlaif.errors import InputError, plainly
from rlaif.formats.files import rows_of
from rlaif.records import Choice, Comparison, Rating, Record, Row
from rlaif.statistics import unswap

PERSON = "person"  # who labelled, where the file does not say


class PairLabel(Record):
    """What a person prefers of two candidates."""

    prompt_id: str
    a: str
    b: str
    verdict: Literal["a", "b", "tie"]
    person: str = PERSON


class RatingLabel(Record):
    """How a person rates one candidate under an aspect."""

    prompt_id: str
    candidate: str
    aspect: str
    rating: Annotated[int, Field(strict=True, gt=-1_000_000, lt=1_000_000)]  # as of other files
    person: str = PERSON


class Labels(NamedTuple):
    """The labels of a file by prompt id, their number, and those whose candidates were in any row."""

    pairs: Mapping[str, Sequence[PairLabel]]
    ratings: Mapping[str, Sequence[RatingLabel]]
    total: int
    used: set[int]  # by `id`: a file may hold the same label twice

    def aspects(self) -> set[str]:
        """The aspects that people rated."""
        return {label.aspect for labels in self.ratings.values() for label in labels}

    def unused(self) -> int:
        """How many labels name an unknown prompt or candidate."""
        return self.total - len(self.used)


def read_labels(path: Path) -> Labels:
    """The labels in a file of any data set format. Raises InputError naming the line and the key."""
    pairs: dict[str, list[PairLabel]] = defaultdict(list)
    ratings: dict[str, list[RatingLabel]] = defaultdict(list)
    table, count = rows_of(path), 0
    for number, row in table.rows:
        shape: type[PairLabel] | type[RatingLabel] = PairLabel if "verdict" in row else RatingLabel
        try:
            label = shape.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            needs = ", ".join(f"`{name}`" for name, about in shape.model_fields.items() if about.is_required())
            raise table.error(number, f"`{key}`: {plainly(first)}", f"a label has {needs}") from None
        if isinstance(label, PairLabel):
            pairs[label.prompt_id].append(label)
        else:
            ratings[label.prompt_id].append(label)
        count += 1
    if not count:
        raise InputError("there are no labels", file=str(path), fix="write one on each line, or take the stage out")
    return Labels(pairs, ratings, count, set())


def judged_by_people(row: Row, labels: Labels) -> Row:
    """`row` with people's judgements: the majority verdict on each pair, the median of ratings."""
    indices: dict[str, int] = {}  # by text and by call
    for index, candidate in enumerate(row.candidates):
        indices.setdefault(candidate.completion.text, index)
    for index, candidate in enumerate(row.candidates):
        indices[candidate.completion.call] = index
    by_pair: dict[tuple[int, int], list[tuple[Choice | None, str]]] = defaultdict(list)
    for label in labels.pairs.get(row.prompt.id, ()):
        a, b = indices.get(label.a), indices.get(label.b)
        if a is None or b is None or a == b:
            continue
        labels.used.add(id(label))
        choice = _CHOICES[label.verdict]
        by_pair[min(a, b), max(a, b)].append((choice if a < b else unswap(choice), label.person))
    ratings = []
    for rated in labels.ratings.get(row.prompt.id, ()):
        rated_index = indices.get(rated.candidate)
        if rated_index is not None:
            labels.used.add(id(rated))
            ratings.append((rated_index, rated))
    return row.model_copy(
        update={
            "comparisons": tuple(_comparison(pair, choices) for pair, choices in sorted(by_pair.items())),
            "ratings": (*row.ratings, *_ratings(ratings)),
        }
    )


_CHOICES: dict[str, Choice] = {"a": "A", "b": "B", "tie": "tie"}


def _comparison(pair: tuple[int, int], choices: Sequence[tuple[Choice | None, str]]) -> Comparison:
    members = [
        Comparison(a=pair[0], b=pair[1], principle=PERSON, judge=who, verdict=verdict, probability=None, orders=())
        for verdict, who in choices
    ]
    return members[0] if len(members) == 1 else Comparison.of_jury(members, [1.0] * len(members), majority=True)


def _ratings(given: Iterable[tuple[int, RatingLabel]]) -> list[Rating]:
    """One rating per candidate and aspect: the lower median of several people's."""
    grouped: dict[tuple[str, int], list[RatingLabel]] = defaultdict(list)
    for index, label in given:
        grouped[label.aspect, index].append(label)
    ratings = []
    for (aspect, index), labels in sorted(grouped.items()):
        values = sorted(label.rating for label in labels)
        fields: dict[str, Any] = {"aspect": aspect, "candidate": index, "value": values[(len(values) - 1) // 2]}
        raw = ", ".join(f"{label.person} {label.rating}" for label in labels)
        ratings.append(Rating(**fields, raw=raw, judge=PERSON, call="", position=0))
    return ratings
