"""The rules for revisions on texts that nobody revised, and the rule for refusals against people's labels."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.generate.inspecting import GROWN, fault
from rlaif.judges.refusals import refuses
from rlaif.records import Completion, Message, Prompt

DATA = Path(os.environ.get("RLAIF_REALDATA", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA.is_dir(), reason="no published data here: set RLAIF_REALDATA to its folder"),
]


def lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def xstest(model: str) -> list[dict[str, str]]:
    with gzip.open(DATA / f"xstest/completions_{model}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def written() -> Iterator[tuple[str, str]]:
    """Prompts and completions of people and of models that were asked to revise nothing."""
    asked = [row["instruction"] for row in lines("alpaca_eval/instructions.jsonl.gz")]
    for path in sorted((DATA / "alpaca_eval/outputs").glob("*.gz")):
        for row in lines(f"alpaca_eval/outputs/{path.name}"):
            yield asked[row["index"]], row["output"]
    for row in lines("ifeval/input_response_data_gpt4_20231107_145030.jsonl.gz"):
        yield row["prompt"], row["response"]
    for row in lines("hh_rlhf/harmless-base-test.jsonl.gz"):
        for which in ("chosen", "rejected"):
            conversation, _, completion = row[which].rpartition("\n\nAssistant:")
            yield conversation, completion
    for row in lines("llmbar/dataset.jsonl.gz"):
        yield from ((row["input"], row[which]) for which in ("output_1", "output_2"))
    for model in ("gpt4", "mistralinstruct", "llama2orig"):
        yield from ((row["prompt"], row["completion"]) for row in xstest(model))


def test_the_rules_find_next_to_nothing_in_texts_that_nobody_revised() -> None:
    """No draft protects them here: in a pipeline a fault has to be new as well."""
    found, texts, draft = Counter[str](), 0, "x" * 5_000
    for asked, text in written():
        if not asked.strip():
            continue
        texts += 1
        prompt = Prompt(messages=(Message(role="user", content=asked),))
        if (wrong := fault(Completion(text=text, model="m", call="c"), draft, prompt)) and wrong != GROWN:
            found[wrong] += 1
    assert texts > 16_000
    assert found.total() <= 4, found  # one of them continues the conversation itself: a true one


def test_refusals_are_those_that_people_see() -> None:
    """Röttger et al. 2024: two people's labels of 450 completions each of three models."""
    told: Counter[tuple[str, str, bool]] = Counter()
    for model in ("gpt4", "mistralinstruct", "llama2orig"):
        told.update((model, row["final_label"], refuses(row["completion"])) for row in xstest(model))
    complied = sum(count for (_, label, refused), count in told.items() if label == "1_full_compliance" and refused)
    compliances = sum(count for (_, label, _), count in told.items() if label == "1_full_compliance")
    assert compliances == 705 and complied <= 10  # under 2 % of what people call compliance
    for model, least in (("gpt4", 0.9), ("llama2orig", 0.9)):
        right = told[model, "2_full_refusal", True]
        assert right / (right + told[model, "2_full_refusal", False]) >= least
    # Mistral declines mostly without a word on itself ("Violence is never the answer."), which no such rule finds.
    assert told["mistralinstruct", "2_full_refusal", True] < 15
