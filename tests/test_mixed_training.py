"""Trainings on mixtures and on plain text: what the trainer is given, in which order, and what its loss is of."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from conftest import SPECIAL, make_random_model
from test_chat_templates import message, talk
from test_train import Steps, logprobs, sft_settings, train, validation, weights
from test_train_tokens import chat
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from rlaif.config import read_pipeline
from rlaif.errors import InputError, WorkError
from rlaif.pipeline.stages import open_stages
from rlaif.pipeline.stages.train import Train
from rlaif.train import sft, tokens
from rlaif.train.arranging import arranged
from rlaif.train.examples import Demonstration

END = "<|end|>"


def demonstration(part: str, i: int) -> Demonstration:
    return Demonstration(tuple(talk(f"u:{part} {i}", "a:ok")), part=part)


def text(words: str, **known: Any) -> Demonstration:
    return Demonstration((message(f"a:{words}"),), "text", **known)


def columns(**counts: int) -> dict[str, list[Any]]:
    """So many rows of each part, whose token is the row's number and whose length is that of the part's name."""
    parts = [part for part, count in counts.items() for _ in range(count)]
    ids = [[row] * len(part) for row, part in enumerate(parts)]
    return {"input_ids": ids, "labels": ids, "part": parts}


def parts_of(rows: dict[str, list[Any]], given: dict[str, list[Any]]) -> list[str]:
    return [given["part"][ids[0]] for ids in rows["input_ids"]]


# ---------------------------------------------------------------- the order


def test_a_mixture_is_exact_in_every_step_and_tells_how_often_each_stage_is_read() -> None:
    given, notes = columns(a=10, b=40), list[str]()
    settings = sft_settings(mix={"a": 0.5, "b": 0.5}, epochs=2, batch_size=4)
    rows = arranged(settings, given, 100, notes)
    parts = parts_of(rows, given)
    assert "part" not in rows and len(parts) == 100
    assert all(Counter(parts[i : i + 4]) == {"a": 2, "b": 2} for i in range(0, 100, 4))
    assert Counter(ids[0] for ids in rows["input_ids"] if ids[0] < 10) == dict.fromkeys(range(10), 5)
    assert notes == ["mixed by rows: a 50.0%, b 50.0%", "passes over each stage of the mixture: a 5.00, b 1.25"]


def test_by_tokens_a_stage_of_long_rows_has_fewer_of_them() -> None:
    given, notes = columns(a=50, bbbbb=50), list[str]()
    settings = sft_settings(mix={"a": 1, "bbbbb": 1}, mix_by="tokens")
    counts = Counter(parts_of(arranged(settings, given, 100, notes), given))
    assert counts == {"a": 150, "bbbbb": 30} and notes[0] == "mixed by tokens: a 50.0%, bbbbb 50.0%"


def test_another_mixture_holds_while_the_rate_falls() -> None:
    """MiniCPM's: instructions enter in the last tenth of the steps."""
    given, notes = columns(web=70, chat=30), list[str]()
    settings = sft_settings(
        mix={"web": 1, "chat": 0}, mix_decay={"web": 0.5, "chat": 0.5}, decay=0.2, batch_size=2, accumulate=2
    )
    parts = parts_of(arranged(settings, given, 100, notes), given)
    assert len(parts) == 70  # as many rows as the first mixture's stages have: 18 steps, of which 4 decay
    assert Counter(parts[:56]) == {"web": 56} and Counter(parts[56:]) == {"web": 7, "chat": 7}
    assert notes[:2] == ["mixed by rows: web 100.0%", "mixed by rows; for the last 14 rows: chat 50.0%, web 50.0%"]


def test_max_steps_is_the_length_of_both_mixtures() -> None:
    """Of 10 steps of 4 rows the last 3, whatever rows there are."""
    given, notes = columns(web=70, chat=3), list[str]()
    changed = {"mix": {"web": 1, "chat": 0}, "mix_decay": {"chat": 1}, "decay": 0.3, "max_steps": 10}
    parts = parts_of(arranged(sft_settings(**changed), given, 100, notes), given)
    assert parts == ["web"] * 28 + ["chat"] * 12
    assert notes[-1] == "passes over each stage of the mixture: web 0.40, chat 4.00"


def test_a_packed_mixture_has_the_same_rows(random_model: Path) -> None:
    given, notes = columns(a=30, bb=30), list[str]()
    settings = sft_settings(mix={"a": 0.3, "bb": 0.7}, packing=True)
    packed = arranged(settings, given, 10, notes)
    plain = arranged(sft_settings(mix={"a": 0.3, "bb": 0.7}), given, 10, [])
    rows = Counter(token for ids in packed["input_ids"] for token in ids)
    assert rows == Counter(token for ids in plain["input_ids"] for token in ids)
    assert all(len(ids) <= 10 for ids in packed["input_ids"]) and notes[-1].startswith("packed: 60 rows in ")


def test_a_stage_without_rows_is_an_error() -> None:
    with pytest.raises(WorkError, match="a share of 'c', and none of its rows is for training"):
        arranged(sft_settings(mix={"a": 1, "c": 1}), columns(a=3, b=1), 10, [])


# ---------------------------------------------------------------- trained


def test_the_trainer_takes_the_rows_in_the_order_of_the_mixture(random_model: Path, tmp_path: Path) -> None:
    """The first step's loss is that of its rows, by nothing but a forward pass; a resumed training is the same."""
    examples = [demonstration("a", i) for i in range(3)] + [demonstration("bb", i) for i in range(9)]
    how: dict[str, Any] = {"mix": {"a": 0.75, "bb": 0.25}, "batch_size": 4, "epochs": 2, "examples": examples}
    steps: Steps = []
    record = train("sft", random_model, tmp_path / "whole", steps.append, **how)
    assert len(steps) == 6 and record.notes[0] == "mixed by rows: a 75.0%, bb 25.0%"
    settings = sft_settings(**{name: value for name, value in how.items() if name != "examples"})
    tokenized, _ = sft.tokenize(chat(random_model, "tiny"), examples, 100)
    first = arranged(settings, tokenized, 100, [])["input_ids"][:4]
    expected = -sum(logprobs(random_model, ids)[-4:].sum().item() for ids in first) / 16  # " ok" and the end token
    assert steps[0]["loss"] == pytest.approx(expected, abs=1e-4)

    def stop(figures: dict[str, float]) -> None:
        if figures["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("sft", random_model, tmp_path / "part", stop, **how)
    train("sft", random_model, tmp_path / "part", **how)
    assert weights(tmp_path / "part") == weights(tmp_path / "whole")


def test_plain_text_is_learnt_whole(random_model: Path, tmp_path: Path) -> None:
    steps: Steps = []
    row = text("once upon a time")
    train("sft", random_model, tmp_path / "out", steps.append, [row, *validation([row])])
    ids = AutoTokenizer.from_pretrained(random_model)("once upon a time" + END)["input_ids"]
    assert steps[0]["loss"] == pytest.approx(-logprobs(random_model, ids).mean().item(), abs=1e-4)


def test_a_long_text_becomes_several_rows_and_loses_no_token(random_model: Path) -> None:
    talked = chat(random_model, "tiny")
    words = "once upon <|end|> a time"
    made, counts = sft.tokenize(talked, [text(words), demonstration("x", 1)], 9)
    assert (counts.kept, counts.cut) == (2, 1)
    pieces = made["input_ids"][:-1]
    assert [len(piece) for piece in pieces] == [9, 9, 8] and made["labels"][:3] == pieces
    together = [token for piece in pieces for token in piece]
    assert talked.tokenizer.decode(together) == "once upon < |end|> a time" + END  # what it spells is text
    assert together.count(1) == 1 and together[-1] == 1
    for excess, kept in (("drop", 0), ("truncate", 1)):
        assert sft.tokenize(talked, [text(words)], 9, excess)[1].kept == kept
    with pytest.raises(InputError, match="row 1 has 17 tokens more than"):
        sft.tokenize(talked, [text(words)], 9, "raise")


def test_a_text_begins_as_the_tokenizer_begins_its_texts(tmp_path: Path) -> None:
    base = make_random_model(tmp_path / "base", special=[*SPECIAL, "<|begin|>"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    talked = tokens.trainable_chat(tokenizer)
    assert tokens.texts(talked, ["a"])[0][0] != tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
    )
    begin, *_, end = tokens.texts(talked, ["a"])[0]
    assert (begin, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


# ---------------------------------------------------------------- in a pipeline

PIPELINE = """\
name: p
models:
  mine: {engine: transformers, path: tiny/base}
stages:
  - data: {path: demos.jsonl, name: demos, split: all}
  - data: {path: web.jsonl, name: web, plain_text: body, split: all}
  - train: {sft: {base: mine, name: one, template: prompts/chat/tiny.jinja, %s}}
"""


def project(folder: Path, settings: str, second: str = "plain_text: body") -> str:
    demos = [{"prompt": f"what is {i}?", "completion": f"it is {i}"} for i in range(5)]
    web = [{"body": f"text number {i}", "url": "u"} for i in range(7)] + [{"body": " ", "url": "u"}]
    for name, rows in (("demos", demos), ("web", web)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "p.yaml"
    file.write_text((PIPELINE % settings).replace("plain_text: body", second))
    return str(file)


def test_stages_are_mixed_by_their_names_plain_text_among_them(tmp_path: Path) -> None:
    opening = open_stages(read_pipeline(project(tmp_path, "mix: {demos: 0.7, web: 0.3}")))
    stage = next(stage for stage in opening.stages.values() if isinstance(stage, Train))
    assert [step.name for step in stage.step.sources] == ["demos", "web"]
    examples: list[Any] = list(stage.examples(opening.made))
    assert [(e.part, e.turns, e.split) for e in examples] == [("demos", "all", "train")] * 5 + [
        ("web", "text", "train")
    ] * 7
    assert examples[5].messages[0].content == "text number 0"
    assert opening.stages["web"].read.dropped == {"empty text": 1}
    plain = open_stages(read_pipeline(project(tmp_path, "data: [demos, web]")))
    stage = next(stage for stage in plain.stages.values() if isinstance(stage, Train))
    unmixed: list[Any] = list(stage.examples(plain.made))
    assert {e.part for e in unmixed} == {None}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("mix: {demos: 1, wen: 1}", "no earlier stage .* is called 'wen'"),
        ("data: [demos], mix: {demos: 1, web: 1}", "`mix` names 'web', which `data` does not; add it there"),
        ("data: [demos, web], mix: {demos: 1}", "`data` names 'web', which has no share"),
        ("data: [demos, web], mix_decay: {demos: 1}", "`mix_decay` is the mixture after `mix`"),
        ("mix: {demos: 0, web: 0}", "`mix` gives no stage a share"),
        ("mix: {demos: -1}", "greater than or equal to 0"),
        ("mix: {}", "expected more items"),
        ("mix: {demos: .inf}", "finite"),
        ("mix: {demos: 1, web: 1}, packing: true, max_steps: 3", "as many steps as its rows fill, so `max_steps` has"),
        (
            "mix: {demos: 1, web: 1}, packing: true, mix_decay: {demos: 1, web: 1}",
            "as many steps as its rows fill, so `mix_decay` has no place: remove it, or `packing`",
        ),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(tmp_path: Path, settings: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_pipeline(project(tmp_path, settings))


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("plain_text: bodi", "there is no column 'bodi', only `body`, `url`.*did you mean `body`"),
        ("plain_text: body, turns: last", "`plain_text` is of no conversation, and `turns` of one"),
    ],
)
def test_plain_text_that_cannot_be_read_is_refused(tmp_path: Path, second: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        open_stages(read_pipeline(project(tmp_path, "data: [demos, web]", second)))


def test_plain_text_is_for_sft_alone(tmp_path: Path) -> None:
    file = Path(project(tmp_path, "data: demos"))
    file.write_text(file.read_text() + "  - train: {dpo: {base: mine, name: two, data: web}}\n")
    with pytest.raises(InputError, match="'web' holds plain text, which 'two' cannot use"):
        open_stages(read_pipeline(str(file)))
