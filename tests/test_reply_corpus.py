"""Replies as judges write them: none is ever read as something else, and the plain ones are read.

`corpus/judge_replies/` holds one file for each kind of reply. Every entry says what the judge meant. The mutations
below start from replies that are plain, and keep to changes after which the truth can still be told.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlaif.judges.replies import Reading, read_choice, read_ranking, read_reply, read_score

FOLDER = Path(__file__).parent / "corpus" / "judge_replies"
ENTRIES = [
    (f"{path.stem} {i}: {entry['about']}", path.stem, entry)
    for path in sorted(FOLDER.glob("*.yaml"))
    for i, entry in enumerate(yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader), start=1)
]


def ratings(text: str, n: int, answers: str, *, scale: tuple[int, int] = (1, 5), **options: Any) -> list[Reading]:
    return read_reply(text, n, *scale, answers, **options)


def read(kind: str, entry: dict[str, Any]) -> list[Any]:
    """What the reader makes of an entry, item by item: None where it is unparsed."""
    text, cut = entry["text"], entry.get("cut", False)
    if kind == "score":
        return [read_score(text, *entry.get("scale", (1, 10)), cut=cut).value]
    if kind == "choice":
        return [read_choice(text, entry.get("offered", ("1", "2", "tie")), cut=cut)[0]]
    if kind == "ranking":
        found = read_ranking(text, entry["n"], cut=cut)[0]
        return [None if found is None else [list(group) for group in found]]
    options = {"cut": cut, "na": entry.get("na", False), "types": tuple(entry.get("types", ()))}
    readings = ratings(text, len(entry["truth"]), kind, scale=tuple(entry.get("scale", (1, 5))), **options)
    if "codes" in entry:
        assert [list(reading.types) for reading in readings] == entry["codes"]
    return ["na" if reading.na else reading.value for reading in readings]


@pytest.mark.parametrize(("kind", "entry"), [case[1:] for case in ENTRIES], ids=[case[0] for case in ENTRIES])
def test_a_reply_is_read_as_meant_or_not_at_all(kind: str, entry: dict[str, Any]) -> None:
    truth = entry["truth"] if kind in ("json", "lines") else [entry["truth"]]
    found = read(kind, entry)
    wrong = [value for value, meant in zip(found, truth, strict=True) if value is not None and value != meant]
    assert not wrong
    if entry.get("expect", "read") == "read":
        assert found == truth
    elif entry["expect"] == "unparsed":
        assert found == [None] * len(truth)
    else:
        assert entry["expect"] == "open"


def test_the_corpus_is_swept_and_says_what_it_expects() -> None:
    counts = Counter(kind for _, kind, _ in ENTRIES)
    assert sum(counts.values()) >= 500 and min(counts.values()) >= 70 and len(counts) == 5
    keys = {"about", "truth", "text", "expect", "n", "scale", "offered", "cut", "na", "types", "codes"}
    assert all(set(entry) <= keys for _, _, entry in ENTRIES)
    assert len({(kind, entry["text"], str(entry)) for _, kind, entry in ENTRIES}) == len(ENTRIES)
    expected = Counter(entry.get("expect", "read") for _, _, entry in ENTRIES)
    assert min(expected.values()) >= 100 and len(expected) == 3
