"""Every case of `cases.py` has a test that is there, and every case at hand has its line in that table.

The cases themselves lie beside the published data: their numbers, and what is right for each reply and each row of a
data set, are read there.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import CASES, COUNTS, REPLY, ROW
from hub_rows import HUB
from test_formats import jsonl
from test_published import read as rows_of
from test_reply_corpus import ENTRIES
from test_reply_corpus import read as reading

from rlaif.formats import read_preferences

TESTS = Path(__file__).parent
HELD = Path(os.environ.get("RLAIF_REALDATA", TESTS.parents[1] / "shared" / "data")).parent / "cases"
Tables = Mapping[str, Mapping[str, tuple[str, ...]]]


@cache
def defined(file: str) -> dict[str, bool]:
    """The tests of a file by name, and whether `make test` leaves the test out."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {test.name: "pytest.mark.lab" in map(ast.unparse, test.decorator_list) for test in tests}


def has_row(test: str, row: str) -> bool:
    """Whether a test's table has a row of that name."""
    if test == ROW:
        return row in HUB
    if test == REPLY:
        return row in {f"{kind}: {entry['about']}" for _, kind, entry in ENTRIES}
    return f'"{row}"' in (TESTS / test.partition("::")[0]).read_text(encoding="utf-8")


def untested(tables: Tables) -> Iterator[str]:
    """The cases without a test that `make test` runs, and the tests that are nowhere."""
    for table, cases in tables.items():
        for case, tests in cases.items():
            everyday = False
            for node in tests:
                test, _, row = node.removesuffix("]").partition("[")
                file, _, name = test.partition("::")
                if name not in defined(file) or (row and not has_row(test, row)):
                    yield f"{table}: {case}: there is no {node}"
                else:
                    everyday = everyday or not defined(file)[name]
            if not everyday:
                yield f"{table}: {case}: no test shows it"


def test_every_case_has_a_test_that_is_there() -> None:
    assert list(untested(CASES)) == []
    assert {table: len(cases) for table, cases in CASES.items()} == COUNTS


@pytest.mark.parametrize(
    "tests",
    [
        (),
        ("test_cases.py::test_nothing",),
        (f"{REPLY}[choice: nothing]",),
        ("test_keeping.py::test_what_is_kept_and_why_the_others_are_not[nothing]",),
        ("hostile/test_hostile_files.py::test_the_worst_stay_under_a_gigabyte",),
    ],
)
def test_a_case_without_a_test_would_be_seen(tests: tuple[str, ...]) -> None:
    assert len(list(untested({"files": {"a case": tests}}))) >= 1


# ---------------------------------------------------------------- the cases at hand

held = pytest.mark.skipif(not HELD.is_dir(), reason="no cases here: set RLAIF_REALDATA to a folder beside theirs")


def rows_in(text: str) -> int:
    """The rows of the Markdown table in a text."""
    return sum(line.startswith("|") for line in text.splitlines()) - 2


def text_of(name: str) -> str:
    return (HELD / name).read_text(encoding="utf-8")


def replies() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = yaml.load(text_of("replies.yaml"), yaml.CSafeLoader)
    return made


def shapes() -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of("hub_shapes.jsonl").splitlines()]


@pytest.mark.realdata
@held
def test_every_case_at_hand_has_its_line() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text_of("README.md"), re.MULTILINE | re.DOTALL))
    assert {name.lower(): rows_in(section) for name, section in sections.items()} | {
        "replies": len(replies()),
        "shapes": len(shapes()),
        "hostile": rows_in(text_of("hostile.md")),
        "training": rows_in(text_of("training.md")),
    } == {table: len(cases) for table, cases in CASES.items()}
    listed = {int(case.partition(":")[0]) for case in CASES["training"]}
    numbers = set(map(int, re.findall(r"^\| (\d+) \|", text_of("training.md"), re.MULTILINE)))
    assert listed == numbers


def right_readings(reply: Mapping[str, Any]) -> list[list[Any]]:
    """What may be read of a reply: the alternatives of its column `right`."""
    made: list[list[Any]] = []
    for part in str(reply["right"]).split(" | "):
        if part == "unparsed":
            made.append([None] * (reply["n"] if reply["kind"] in ("lines", "json") else 1))
        elif ">" in part:
            made.append([[[int(number)] for number in part.split(">")]])
        elif part.startswith("["):
            made.append(yaml.safe_load(part.replace("unparsed", "null")))
        else:
            made.append(["AB"[int(part) - 1] if reply["kind"] == "choice" else int(part)])
    return made


@pytest.mark.realdata
@held
def test_the_replies_at_hand_are_read_right_and_are_in_the_corpus() -> None:
    texts = {(kind, entry["text"]) for _, kind, entry in ENTRIES}
    for reply in replies():
        assert (reply["kind"], reply["text"]) in texts, reply
        found = reading(reply["kind"], reply | {"truth": [None] * reply.get("n", 1)})
        assert found in right_readings(reply), reply


@pytest.mark.realdata
@held
def test_the_rows_at_hand_are_read_right(tmp_path: Path) -> None:
    """Where what is right names a preference: its texts, its prompt, its scores and its margin."""
    checked = 0
    for data in shapes():
        right = data["right"]
        chosen, *wanted = (re.search(rf"\b{what} '([^']+)'", right) for what in ("chosen", "rejected", "prompt"))
        if chosen is None:
            continue
        path = jsonl(tmp_path / "rows.jsonl", data["rows"])
        (row,), dropped, _ = rows_of(path)
        preference = read_preferences(path).items[0]
        found = (preference.rejected, preference.prompt.messages[-1].content)
        assert preference.chosen == chosen[1] and not dropped, data["name"]
        assert all(match is None or match[1] == text for match, text in zip(wanted, found, strict=True)), data["name"]
        if scores := re.search(r"scores ([\d.]+) and ([\d.]+)", right):
            assert [score.value for score in row.scores] == [float(scores[1]), float(scores[2])], data["name"]
        if margin := re.search(r"(?:margin|strength) (\d)", right):
            assert preference.margin == float(margin[1]), data["name"]
        checked += 1
    assert checked >= 25
