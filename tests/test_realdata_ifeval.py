"""IFEval's instructions on GPT-4's published completions, against what the paper's own checkers found on each.

Expected numbers are those of data/SOURCES.md. The outcomes that differ are listed with their reason, and the list has
to be exactly what is seen.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlaif.judges.verifiers import checks_of_ifeval, verify
from rlaif.judges.verifiers.languages import language_of

DATA = Path(os.environ.get("RLAIF_REALDATA", Path(__file__).parents[2] / "shared" / "data")) / "ifeval"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA.is_dir(), reason="no published data here: set RLAIF_REALDATA to its folder"),
]

# By key and place in the prompt's list of instructions: where we do not say what the paper's checkers say, and why.
# Flagged as counted with another sentence splitter, or with a random letter: none differs.
FLAGGED: dict[tuple[int, int], str] = {}
# Not flagged.
OTHERS = {
    (3617, 0): "three names of two words each, in capital letters and without a common word: we do not tell a language",
    (3456, 1): "a hundred English names in capital letters: we tell English, the paper's checkers do not",
}

# Type, how many, and how many of them were followed strictly and loosely by the paper's checkers.
TABLE = """
change_case:capital_word_frequency 16 10 11
change_case:english_capital 18 12 12
change_case:english_lowercase 23 20 21
combination:repeat_prompt 29 18 18
combination:two_responses 17 15 17
detectable_content:number_placeholders 20 18 18
detectable_content:postscript 19 19 19
detectable_format:constrained_response 8 6 6
detectable_format:json_format 11 11 11
detectable_format:multiple_sections 9 8 8
detectable_format:number_bullet_lists 18 16 16
detectable_format:number_highlighted_sections 38 37 37
detectable_format:title 27 27 27
keywords:existence 30 29 29
keywords:forbidden_words 30 24 26
keywords:frequency 31 27 28
keywords:letter_frequency 24 16 16
language:response_language 19 19 19
length_constraints:nth_paragraph_first_word 10 7 9
length_constraints:number_paragraphs 21 18 18
length_constraints:number_sentences 35 23 23
length_constraints:number_words 36 26 26
punctuation:no_comma 49 32 35
startend:end_checker 20 17 17
startend:quotation 30 30 30
"""


class Judged(NamedTuple):
    """One instruction on one completion: what we found, strictly and loosely, and what the paper's checkers did."""

    key: int
    place: int
    identifier: str
    ours: tuple[bool | None, bool | None]
    theirs: tuple[bool, bool]
    flagged: bool


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


@pytest.fixture(scope="module")
def judged() -> list[Judged]:
    prompts = {row["key"]: row for row in rows("input_data.jsonl")}
    completions = rows("input_response_data_gpt4_20231107_145030.jsonl.gz")
    found = []
    for completion, published in zip(completions, rows("gpt4_reference_outcomes.jsonl"), strict=True):
        prompt = prompts[published["key"]]
        # The completion of key 2785 was made for a slightly different prompt: joined by its place in the file.
        assert prompt["prompt"].strip() == completion["prompt"].strip() or published["key"] == 2785
        both = []
        for loose in (False, True):
            checks = checks_of_ifeval(prompt["instruction_id_list"], prompt["kwargs"], loose=loose)
            both.append([o.passed for o in verify(checks, prompt["prompt"], completion["response"], None)])
        for place, identifier in enumerate(published["instruction_id_list"]):
            found.append(
                Judged(
                    published["key"],
                    place,
                    identifier,
                    (both[0][place], both[1][place]),
                    (published["strict"][place], published["loose"][place]),
                    published["approx"][place] or published["unstable"][place],
                )
            )
    return found


def test_every_prompt_of_ifeval_has_its_checks() -> None:
    prompts = rows("input_data.jsonl")
    checks = [checks_of_ifeval(row["instruction_id_list"], row["kwargs"]) for row in prompts]
    assert (len(prompts), sum(map(len, checks))) == (541, 834)
    assert len({check.ifeval.id for one in checks for check in one if check.ifeval}) == 25


def differing(judged: list[Judged]) -> set[tuple[int, int]]:
    """Where we do not agree; what we could not judge did not pass."""
    return {(j.key, j.place) for j in judged if tuple(map(bool, j.ours)) != j.theirs}


def test_every_outcome_is_the_papers_but_for_those_listed(judged: list[Judged]) -> None:
    flagged, others = [j for j in judged if j.flagged], [j for j in judged if not j.flagged]
    assert (len(flagged), len(others)) == (52, 536)
    assert [sum(j.theirs[loose] for j in others) for loose in (0, 1)] == [451, 462]
    assert differing(flagged) == set(FLAGGED)
    assert differing(others) == set(OTHERS)
    # None of what differs is claimed to have failed.
    found = {(j.key, j.place): j.ours for j in others if (j.key, j.place) in OTHERS}
    assert found == {(3617, 0): (None, None), (3456, 1): (True, True)}
    assert [sum(j.ours[loose] is True for j in others) for loose in (0, 1)] == [451, 462]


def test_all_languages_agree(judged: list[Judged]) -> None:
    told = [j for j in judged if j.identifier == "language:response_language"]
    assert [j.ours for j in told] == [(True, True)] * 19


def test_prompts_whose_instructions_are_all_followed(judged: list[Judged]) -> None:
    by_key: dict[int, list[Judged]] = {}
    for one in judged:
        by_key.setdefault(one.key, []).append(one)
    plain = {key: ones for key, ones in by_key.items() if not any(j.flagged for j in ones)}
    assert (len(by_key), len(plain)) == (371, 329)
    for loose, among_all, among_plain in ((0, 277, 257), (1, 287, 265)):
        assert sum(all(j.theirs[loose] for j in ones) for ones in by_key.values()) == among_all
        ours = {key for key, ones in plain.items() if all(j.ours[loose] for j in ones)}
        theirs = {key for key, ones in plain.items() if all(j.theirs[loose] for j in ones)}
        assert len(theirs) == among_plain
        assert theirs ^ ours == {key for key, _ in OTHERS}


def test_totals_by_type(judged: list[Judged]) -> None:
    table = {name: tuple(map(int, counts)) for name, *counts in map(str.split, TABLE.strip().splitlines())}
    found = {}
    for name in table:
        ones = [j for j in judged if j.identifier == name]
        as_listed = [j.theirs if (j.key, j.place) in OTHERS else j.ours for j in ones]
        found[name] = (len(ones), *(sum(pair[loose] is True for pair in as_listed) for loose in (0, 1)))
    assert found == table
    assert sum(n for n, _, _ in table.values()) == len(judged) == 588


@pytest.mark.lab
def test_english_is_told_on_other_models_completions() -> None:
    """Of 7,228 completions of at least 15 words to English prompts 98.2 % are told as English, 1.6 % not told; the 16
    left are in other languages or words of several. Of 818 shorter ones, more than half are told."""
    found: Counter[str | None] = Counter()
    short: Counter[str | None] = Counter()
    for path in sorted((DATA.parent / "alpaca_eval" / "outputs").glob("*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).decode().split("\n"):
            if line and (text := json.loads(line)["output"]):
                (found if len(text.split()) >= 15 else short)[language_of(text)] += 1
    assert found.total() == 7228 and short.total() == 818
    assert found["en"] / found.total() > 0.98 and short["en"] / short.total() > 0.5
    assert found.total() - found["en"] - found[None] < 20
    assert short.total() - short["en"] - short[None] < 10
