"""The readers on published files in the shapes people have. Counts are those of data/SOURCES.md, less duplicates."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from rlaif.errors import InputError
from rlaif.formats import each_row, read_conversations, read_preferences, read_prompts
from rlaif.records import Row

DATA = Path(os.environ.get("RLAIF_REALDATA", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA.is_dir(), reason="no published data here: set RLAIF_REALDATA to its folder"),
]

# File, rows, distinct prompts, distinct conversations.
INSTRUCTION_FORMATS = [
    ("self_instruct_seed_tasks.jsonl", 175, 175, 175),
    ("user_oriented_instructions.jsonl", 252, 252, 252),
    ("t0_ag_news_classify_with_choices.jsonl.gz", 200, 200, 200),
    ("t0_common_gen_Put_together.jsonl.gz", 200, 67, 200),
    ("t0_commonsense_qa_answer_to_question.jsonl.gz", 200, 200, 200),
    ("flan_cot_qasc_train.tsv.gz", 1084, 1084, 1084),
    ("flan_cot_strategyqa_train.tsv.gz", 2061, 2060, 2060),
    ("alpaca_cleaned_500.json.gz", 500, 500, 500),
    ("alpaca_en_demo_999.json.gz", 999, 985, 985),
    ("dpo_en_demo_300.json.gz", 300, 295, 0),
    ("oasst_realistic_seed.json.gz", 158, 77, 158),  # 444 messages in 158 threads
]


@pytest.mark.parametrize(("name", "rows", "prompts", "conversations"), INSTRUCTION_FORMATS)
def test_instruction_formats(name: str, rows: int, prompts: int, conversations: int) -> None:
    path = DATA / "instruction_formats" / name
    found = read_prompts(path)
    assert len(found.items) == prompts
    assert found.dropped == ({"duplicate": rows - prompts} if rows > prompts else {})
    if conversations == 0:
        with pytest.raises(InputError, match="no assistant turn at the end"):
            read_conversations(path)
        return
    demonstrations = read_conversations(path)
    assert len(demonstrations.items) == conversations
    assert sum(demonstrations.dropped.values()) == rows - conversations
    assert not [c.id for c in demonstrations.items if "<|endoftext|>" in c.messages[-1].content]


def test_preferences_as_hh_writes_them() -> None:
    """Harmless data reverse the length bias: chosen is longer in 44.25 % of the published pairs (data/SOURCES.md)."""
    found = read_preferences(DATA / "hh_rlhf" / "harmless-base-test.jsonl.gz")
    # Of 2,312 transcripts four end with an empty completion; in five the assistant speaks twice in a row, as one turn.
    assert (len(found.items), found.dropped) == (2308, {"empty completion": 4})
    longer = sum(len(p.chosen) > len(p.rejected) for p in found.items) / len(found.items)
    assert longer == pytest.approx(0.4425, abs=0.002)
    assert sum(len(p.chosen) for p in found.items) / len(found.items) == pytest.approx(166.7, abs=1)
    assert sum(len(p.rejected) for p in found.items) / len(found.items) == pytest.approx(209.8, abs=1)


def rows_of(path: Path) -> tuple[list[Row], Counter[str]]:
    dropped = Counter[str]()
    return list(each_row(path, dropped)), dropped


def test_every_pair_of_hh_is_a_row() -> None:
    rows, dropped = rows_of(DATA / "hh_rlhf" / "harmless-base-test.jsonl.gz")
    assert (len(rows), dropped) == (2312, {})
    completions = [[candidate.completion.text for candidate in row.candidates] for row in rows]
    assert not any(chosen == rejected for chosen, rejected in completions)
    # Published are 1,023 (44.25 %) of the last turns alone; in two pairs an earlier turn turns it round.
    assert sum(len(chosen) > len(rejected) for chosen, rejected in completions) == 1025
    assert {row.comparisons[0].verdict for row in rows} == {"A"}


def test_every_item_of_llmbar_is_a_row() -> None:
    rows, dropped = rows_of(DATA / "llmbar" / "dataset.jsonl.gz")
    assert (len(rows), dropped) == (1200, {})
    assert Counter(row.comparisons[0].verdict for row in rows) == {"A": 596, "B": 604}


def test_pandalm_has_three_annotators_and_ties() -> None:
    rows, dropped = rows_of(DATA / "pandalm" / "testset-v1.json.gz")
    assert (len(rows), dropped) == (999, {})
    majority: Counter[str | None] = Counter()
    for row in rows:
        assert [comparison.judge for comparison in row.comparisons] == ["annotator1", "annotator2", "annotator3"]
        verdict, votes = Counter(c.verdict for c in row.comparisons).most_common(1)[0]
        majority[verdict] += 1
        assert votes >= 2
    assert majority == {"tie": 105, "A": 422, "B": 472}  # published as tie, 1, 2
    assert len({candidate.sampler for row in rows for candidate in row.candidates}) == 5


def test_every_file_of_the_folder_can_be_read_as_rows() -> None:
    read = {name: rows_of(DATA / "instruction_formats" / name) for name, *_ in INSTRUCTION_FORMATS}
    for name, count, _, conversations in INSTRUCTION_FORMATS:
        rows, dropped = read[name]
        assert len(rows) == (conversations or 295), name
        assert len(rows) + dropped.total() == count, name
        assert all(len(row.candidates) == (1 if conversations else 2) for row in rows), name


def test_what_is_true_of_published_prompts() -> None:
    checked = read_prompts(DATA / "ifeval" / "input_data.jsonl").items
    assert (len(checked), sum(len(prompt.checks) for prompt in checked)) == (541, 834)
    assert len({check["ifeval"]["id"] for prompt in checked for check in prompt.checks}) == 25
    answered = read_prompts(DATA / "truthfulqa" / "TruthfulQA.csv.gz").items
    assert len(answered) == 817 and all(prompt.reference for prompt in answered)
    assert sum(len(prompt.reference) for prompt in answered) == 2588
    first = read_prompts(DATA / "mt_bench" / "mt_bench__question.jsonl").items
    assert len(first) == 80
    assert sum(bool(prompt.reference) for prompt in first) == 38  # one of the 39 has an answer to its second turn only


def test_preferences_as_sharegpt_writes_them() -> None:
    found = read_preferences(DATA / "instruction_formats" / "dpo_en_demo_300.json.gz")
    assert (len(found.items), found.dropped) == (295, {"duplicate": 5})


def test_no_file_of_the_folder_is_left_out() -> None:
    assert {path.name for path in (DATA / "instruction_formats").iterdir()} == {case[0] for case in INSTRUCTION_FORMATS}


@pytest.mark.parametrize(
    ("name", "column", "prompts"),
    [
        ("xstest/xstest_prompts.csv", None, 450),
        ("ifeval/input_data.jsonl", None, 541),
        ("alpaca_eval/instructions.jsonl.gz", None, 805),
        ("advbench/harmful_behaviors.csv", "goal", 520),
        ("truthfulqa/TruthfulQA.csv.gz", "Question", 817),
    ],
)
def test_prompts_of_published_benchmarks(name: str, column: str | None, prompts: int) -> None:
    found = read_prompts(DATA / name, column=column)
    assert len(found.items) == prompts
    assert not found.dropped
