"""Which rows of a file are trained on, which validate, and what is said of the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from rlaif.config import TRAINERS, read_pipeline
from rlaif.errors import InputError
from rlaif.formats import read_conversations
from rlaif.pipeline.alone import one_trainer
from rlaif.pipeline.stages import open_stages
from rlaif.pipeline.stages.data import Data
from rlaif.pipeline.stages.stage import Opening
from rlaif.pipeline.stages.train import Train
from rlaif.records import Message
from rlaif.train import job
from rlaif.train.examples import Demonstration, Example, Survey

HELD_OUT, VALIDATION = (3, 9, 11, 12), (25, 44)  # of `what is N?`, by its hash


def rows(path: Path, numbers: Iterable[int], method: str = "sft") -> Path:
    """A row for each number."""

    def row(i: int) -> dict[str, Any]:
        said = {"completion": f"{i}"} if method == "sft" else {"chosen": f"{i}", "rejected": "no"}
        return {"prompt": f"what is {i}?", **said}

    path.write_text("".join(json.dumps(row(i)) + "\n" for i in numbers), encoding="utf-8")
    return path


def opened(method: str, data: Path, **read: str) -> tuple[Opening, list[Example]]:
    """The two stages of `rlaif train`, and the examples of the second."""
    opening = open_stages(one_trainer(method, "tiny/base", str(data), "out", [], None, read))
    stage = next(stage for stage in opening.stages.values() if isinstance(stage, Train))
    return opening, list(stage.examples(opening.made))


def dropped(opening: Opening) -> dict[str, int]:
    return next(dict(stage.read.dropped) for stage in opening.stages.values() if isinstance(stage, Data))


@pytest.mark.parametrize("method", ["sft", "dpo", "rm"])
def test_every_row_is_trained_on_where_that_is_said(tmp_path: Path, method: str) -> None:
    """Case 14 of training."""
    data = rows(tmp_path / "data.jsonl", range(60), method)
    opening, by_hash = opened(method, data)
    assert Counter(example.split for example in by_hash) == {"train": 44, "validation": 4}
    assert dropped(opening) == {"held-out": 12}
    opening, every = opened(method, data, split="all")
    assert [example.split for example in every] == ["train"] * 60 and dropped(opening) == {}


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_file_of_ones_own_validates_and_shares_no_prompt_with_training(tmp_path: Path, method: str) -> None:
    data = rows(tmp_path / "data.jsonl", range(60), method)
    other = rows(tmp_path / "other.jsonl", [*range(55, 65), *HELD_OUT], method)
    opening, by_hash = opened(method, data, validation=str(other))
    prompts = {split: [_asked(e) for e in by_hash if e.split == split] for split in ("train", "validation")}
    assert {f"what is {i}?" for i in VALIDATION} <= set(prompts["train"])  # the hash validates nothing here
    assert not set(prompts["train"]) & set(prompts["validation"])
    assert prompts["validation"] == [f"what is {i}?" for i in range(55, 65)]
    assert dropped(opening) == {"held-out": 12, "prompt in the validation file": 9}
    opening, every = opened(method, data, validation=str(other), split="all")
    assert Counter(example.split for example in every) == {"train": 51, "validation": 14}
    assert dropped(opening) == {"prompt in the validation file": 9}


def _asked(example: Any) -> str:
    messages: tuple[Message, ...] = example.messages if isinstance(example, Demonstration) else example.prompt
    return messages[0].content


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        (HELD_OUT, "none of the 4 rows is for training: 4 held out, by the hash of their prompts"),
        (VALIDATION, "none of the 2 rows is for training: 2 for validation, by the hash"),
        ([*HELD_OUT, *VALIDATION], "6 rows is for training: 4 held out and 2 for validation, by the hash"),
    ],
)
def test_rows_that_are_all_withheld_are_told_with_the_way_to_use_them(
    tmp_path: Path, numbers: Iterable[int], told: str
) -> None:
    """Case 13 of training."""
    data = rows(tmp_path / "data.jsonl", numbers)
    with pytest.raises(InputError, match=told) as refused:
        opened("sft", data)
    assert "`split: all`" in str(refused.value) and "--data" in str(refused.value)
    assert len(opened("sft", data, split="all")[1]) == len(list(numbers))


@pytest.mark.parametrize("split", ["hash", "all"])
def test_data_that_validate_themselves_are_refused(tmp_path: Path, split: str) -> None:
    data, held_out = rows(tmp_path / "data.jsonl", [0, 1, 2]), rows(tmp_path / "more.jsonl", [0, 1, 2, *HELD_OUT])
    for other in (data, held_out):
        with pytest.raises(
            InputError, match="`--validation`: the prompts of all 3 rows are in the validation file too"
        ):
            opened("sft", data, validation=str(other), split=split)
    assert len(opened("sft", held_out, validation=str(data), split="all")[1]) == 3 + len(HELD_OUT)
    with pytest.raises(InputError, match="of the 7 rows .*: 4 held out, by the hash .*, and 3 with prompts of the val"):
        opened("sft", held_out, validation=str(data))


PIPELINE = """\
name: p
models:
  mine: {engine: transformers, path: tiny/base}
stages:
  - data: {path: data.jsonl, %s}
  - train: {sft: {base: mine, name: one}}
  - prompts: {path: data.jsonl, split: all}
  - sample: {models: [one]}
  - train: {sft: {base: one, name: two, data: sample}}
  - measure: {models: [mine, two], from: prompts}
"""


def test_what_was_trained_on_every_row_is_not_measured_on_held_out_prompts(tmp_path: Path) -> None:
    rows(tmp_path / "data.jsonl", range(20))
    file = tmp_path / "p.yaml"
    file.write_text(PIPELINE % "split: hash", encoding="utf-8")
    read_pipeline(str(file))
    file.write_text(PIPELINE % "split: all", encoding="utf-8")
    with pytest.raises(InputError, match=r"p.yaml:10: .*'two' was trained on every row of a file \(`split: all`\)"):
        read_pipeline(str(file))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("split: all, held_out: keep", "`split: all` trains on every row, and `held_out: keep` forbids training"),
        ("validation: nowhere.jsonl", "no file or folder 'nowhere.jsonl'"),
        ("split: train", "expected 'hash' or 'all', found 'train'"),
    ],
)
def test_settings_of_the_split_that_make_no_sense_are_refused(tmp_path: Path, setting: str, told: str) -> None:
    rows(tmp_path / "data.jsonl", range(20))
    (tmp_path / "p.yaml").write_text(PIPELINE % setting, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_pipeline(str(tmp_path / "p.yaml"))


def test_margins_that_a_trainer_does_not_use_are_told(tmp_path: Path) -> None:
    """Case 8 of training."""
    rows = [{"prompt": f"what is {i}?", "chosen": "a", "rejected": "b", "margin": i + 1} for i in range(3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    opening, _ = opened("dpo", tmp_path / "data.jsonl")
    assert opening.notes == ["data: the margins of 3 preferences are not used by out"]
    rows = [row | {"margin": None} for row in rows]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert opened("dpo", tmp_path / "data.jsonl")[0].notes == []


def test_ppo_trains_on_every_prompt_where_that_is_said(tmp_path: Path) -> None:
    """Case 14 of training."""
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"what is {i}?"}) + "\n" for i in range(60)))
    for split, trained in ((None, 44), ("all", 60)):
        checks = ["checks=[{length: {max_words: 2}}]"]
        opening = open_stages(one_trainer("ppo", "tiny/base", str(data), "out", checks, None, {"split": split}))
        stage = next(stage for stage in opening.stages.values() if isinstance(stage, Train))
        assert Counter(e.split for e in stage.examples(opening.made)) == {"train": trained}


def test_judged_rows_and_prompts_have_no_split_of_their_own(tmp_path: Path) -> None:
    rows(tmp_path / "data.jsonl", range(20), "dpo")
    start = PIPELINE[: PIPELINE.index("  - train")]
    (tmp_path / "p.yaml").write_text(start % "split: all" + "  - pair: {}\n", encoding="utf-8")
    with pytest.raises(InputError, match="is judged by pair, and `split` is for rows to train on"):
        open_stages(read_pipeline(str(tmp_path / "p.yaml")))
    with pytest.raises(InputError, match="ppo trains on prompts, without --validation"):
        one_trainer("ppo", "tiny/base", "data.jsonl", "out", ["checks=[{length: {max_words: 2}}]"], None,
                    {"validation": "x.jsonl"})  # fmt: skip


# ---------------------------------------------------------------- what a row says of its turns

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2


def turns(*changed: dict[str, Any], **row: Any) -> dict[str, Any]:
    """Two turns of each side, the assistant's with what is `changed`; and more of the row."""
    messages = [dict(turn) for turn in TURNS]
    for message, more in zip(messages[1::2], changed, strict=False):
        message |= more
    return {"messages": messages, **row}


@pytest.mark.parametrize(
    ("row", "masked", "told"),
    [
        (turns({"weight": 0}, {"weight": 1}), (1,), {}),
        (turns({"train": False}), (1,), {}),
        (turns({}, {"weight": 0.0}), (3,), {}),
        (turns({"weight": 0}, system="s"), (2,), {}),
        (turns({"weight": None}, {"train": None}), (), {}),
        (turns({"weight": 0.5}), (), {"a `weight` other than 0 and 1 is read as 1": 1}),
        (turns({"reasoning_content": "hm"}), (), {"the thinking of a turn (`reasoning_content`) is not trained on": 1}),
        (turns(margin=2), (), {"the column `margin` states a judgement and is not used": 1}),
    ],
)
def test_what_a_file_says_of_its_turns_is_honoured_or_counted(
    tmp_path: Path, row: dict[str, Any], masked: tuple[int, ...], told: dict[str, int]
) -> None:
    """Case 8 of training."""
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row) + "\n")
    read = read_conversations(data)
    assert [item.masked for item in read.items] == [masked] and read.told == told


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (turns({"weight": 0}, {"weight": 0}), "not to be trained on"),
        (turns(weight=0), "not to be trained on"),
        (turns(train=False), "not to be trained on"),
        ({"prompt": "a", "completion": "b", "weight": 0}, "not to be trained on"),
        (turns({"tool_calls": [{"id": "1"}]}), "a turn with tool calls"),
        (turns({"content": None, "function_call": {"name": "f"}}), "a turn with tool calls"),
        ({"prompt": "a", "completion": "b", "label": False}, "labelled as bad"),
    ],
)
def test_what_a_file_does_not_want_trained_on_is_dropped_by_that_reason(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in (row, {"prompt": "x", "completion": "y"})))
    read = read_conversations(data)
    assert (len(read.items), read.dropped) == (1, {reason: 1})


def test_a_last_turn_that_is_not_to_be_learnt_is_no_row_of_last_turns(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(turns(*t)) + "\n" for t in ([{}, {"weight": 0}], [{"weight": 0}, {}])))
    read = read_conversations(data, turns="last")
    assert [item.masked for item in read.items] == [()] and read.dropped == {"not to be trained on": 1}


def test_masked_turns_reach_the_trainer_and_its_key(tmp_path: Path) -> None:
    messages = tuple(Message.model_validate(turn) for turn in TURNS)
    example = Demonstration(messages, masked=(1,))
    settings = TRAINERS["sft"].model_validate({"base": "b", "name": "n"})
    (tmp_path / "out.partial").mkdir()
    training = job.Job(settings, tmp_path, tmp_path / "out", "key")
    job._write_data(training, [example])
    assert list(training.examples("train")) == [example]
    digests = set()
    others = [Demonstration(messages, part="a"), Demonstration(messages, "text")]
    for each in (example, Demonstration(messages), Demonstration(messages, masked=(3,)), *others):
        survey = Survey(())
        survey.add([each])
        digests.add(survey.digest)
    assert len(digests) == 5
