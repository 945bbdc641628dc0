"""The trainers on tiny random models: losses by plain torch, ln 2, resuming, repeating, saving, silence.

Every training is a job's folder and `job.train`, as in a run. One of each method, undisturbed, is shared.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

pytest.importorskip("trl")

import torch
from conftest import MARKED, SPECIAL, make_random_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, RewardConfig, SFTConfig

from rlaif.config import TRAINERS, SFTSettings, Training
from rlaif.engines.transformers import TransformersEngine
from rlaif.errors import InputError, WorkError
from rlaif.records import Message
from rlaif.resources import find
from rlaif.train import chats, job, memory, models, preference_losses, rm, trl
from rlaif.train.examples import Demonstration, Example, OnStep, PreferencePair
from rlaif.train.job import Job
from rlaif.train.pairs import IDS
from rlaif.train.pairs import tokenize as tokenize_pairs
from rlaif.train.steps import RECORDED
from rlaif.train.tokens import Counts, completions, conversations, trainable_chat

Steps = list[dict[str, float]]


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


DEMONSTRATIONS = [Demonstration((user(f"what is {i}?"), assistant(f"it is {i + 1}"))) for i in range(24)]
PAIRS = [PreferencePair((user(f"what is {i}?"),), f"it is {i}", f"no idea, not {i}") for i in range(24)]
RATES = {"sft": 3e-3, "dpo": 1e-3, "rm": 1e-3}
METHODS = pytest.mark.parametrize("method", RATES)


def validation(examples: Iterable[Any]) -> list[Any]:
    return [replace(example, split="validation") for example in examples]


def settings_of(method: str, **changed: Any) -> Training:
    values = {"base": "base", "name": "trained", "batch_size": 4, "learning_rate": RATES[method], "checkpoint_steps": 2}
    return TRAINERS[method].model_validate(values | changed)


def sft_settings(**changed: Any) -> SFTSettings:
    settings = settings_of("sft", **changed)
    assert isinstance(settings, SFTSettings)
    return settings


def train(
    method: str,
    base: Path,
    out: Path,
    on_step: OnStep = lambda _: None,
    examples: Iterable[Example] | None = None,
    template: str | None = None,
    **changed: Any,
) -> Any:
    """The record of a training of 6 steps and 4 validation rows, or as `changed` and `examples` say."""
    if examples is None:
        learnt: list[Any] = DEMONSTRATIONS if method == "sft" else PAIRS
        examples = [*learnt, *validation(learnt[:4])]
    training = Job(settings_of(method, **changed), base, out, "the inputs' digest", template)
    job.write_job(training, examples)
    return SimpleNamespace(**job.train(training.folder, on_step))


class Whole(NamedTuple):
    """A training that nothing disturbed."""

    out: Path
    steps: Steps
    result: Any


@pytest.fixture(scope="module")
def whole(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    @cache
    def trained(method: str) -> Whole:
        steps: Steps = []
        out = tmp_path_factory.mktemp(method) / "whole"
        return Whole(out, steps, train(method, random_model, out, steps.append))

    return trained


def weights(model: Path) -> str:
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


def logprobs(model: Path, ids: list[int]) -> torch.Tensor:
    """Log-probability of each token after the first, by nothing but a forward pass."""
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


# ---------------------------------------------------------------- what is learnt


def test_the_sft_loss_is_the_mean_over_the_assistants_tokens(random_model: Path, tmp_path: Path) -> None:
    steps: Steps = []
    example = Demonstration((user("hi"), assistant("ok")))
    result = train("sft", random_model, tmp_path / "out", steps.append, [example, *validation([example])])
    ids = AutoTokenizer.from_pretrained(random_model)("<|user|> hi<|end|><|assistant|> ok<|end|>")["input_ids"]
    expected = -logprobs(random_model, ids)[-4:].mean().item()  # " ", "o", "k" and the end token
    assert steps[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert result.metrics["first_loss"] == steps[0]["loss"]


def test_the_first_dpo_loss_is_ln_2_and_its_logprobs_are_those_of_the_base_model(
    random_model: Path, tmp_path: Path
) -> None:
    steps: Steps = []
    result = train("dpo", random_model, tmp_path / "out", steps.append, batch_size=24)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert (steps[0]["rewards/margins"], result.metrics["first_loss"]) == (pytest.approx(0, abs=1e-4), steps[0]["loss"])
    columns, _ = tokenize_pairs(trainable_chat(AutoTokenizer.from_pretrained(random_model)), PAIRS, 100)
    for side in ("chosen", "rejected"):
        rows = zip(columns["prompt_ids"], columns[f"{side}_ids"], strict=True)
        sums = [logprobs(random_model, prompt + ids)[-len(ids) :].sum().item() for prompt, ids in rows]
        assert steps[0][f"logps/{side}"] == pytest.approx(sum(sums) / len(sums), abs=1e-3)


def score(model: Path, ids: list[int]) -> float:
    """The score head on the last hidden state of one unpadded sequence."""
    net = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        return float(net.score(net.model(torch.tensor([ids])).last_hidden_state[0, -1])[0])


def test_the_reward_loss_of_a_pair_that_reads_the_same_is_ln_2(random_model: Path, tmp_path: Path) -> None:
    """By a head of zeros every completion scores the same, so that nothing but the loss is seen."""
    flat = tmp_path / "flat"
    net = AutoModelForSequenceClassification.from_pretrained(random_model, num_labels=1, dtype=torch.float32)
    torch.nn.init.zeros_(net.score.weight)
    net.save_pretrained(flat)
    AutoTokenizer.from_pretrained(random_model).save_pretrained(flat)
    steps: Steps = []
    train("rm", flat, tmp_path / "out", steps.append, batch_size=24)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and steps[0]["margin"] == 0


@pytest.mark.parametrize("fills_up_with_its_end_token", [False, True])
def test_a_reward_model_is_trained_and_read_at_the_end_token(
    random_model: Path, tmp_path: Path, fills_up_with_its_end_token: bool
) -> None:
    """The first loss by hand, from the scores of single sequences that end with the end token; then the engine's."""
    base = random_model
    if fills_up_with_its_end_token:
        base = tmp_path / "base"
        tokenizer = AutoTokenizer.from_pretrained(random_model)
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(base)
        AutoModelForCausalLM.from_pretrained(random_model).save_pretrained(base)
    steps: Steps = []
    changed = {"learning_rate": 1e-12, "center": 0.5, "batch_size": 24, "normalize": False}
    train("rm", base, tmp_path / "rm", steps.append, PAIRS, **changed)
    columns, _ = tokenize_pairs(trainable_chat(AutoTokenizer.from_pretrained(random_model)), PAIRS, 100)
    rows = zip(*(columns[name] for name in IDS), strict=True)
    sequences = [(prompt + chosen, prompt + rejected) for prompt, chosen, rejected in rows]
    assert all(ids[-1] == 1 for pair in sequences for ids in pair)
    scores = torch.tensor([[score(tmp_path / "rm", ids) for ids in pair] for pair in sequences])
    pairwise = -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]).mean()
    expected = pairwise + 0.5 * (scores.sum(-1) ** 2).mean()
    assert steps[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert scores.std() > 0.05  # a head that read nothing would pass too

    engine = TransformersEngine("rm", str(tmp_path / "rm"), device="cpu")
    read = asyncio.run(engine.score([(pair.prompt, pair.chosen) for pair in PAIRS]))
    assert read == pytest.approx(scores[:, 0].tolist(), abs=1e-4)
    asyncio.run(engine.close())


@pytest.mark.parametrize("end_pads", [False, True], ids=["no padding token", "padding is the end token"])
def test_a_reward_model_orders_a_padded_batch_as_single_texts(tmp_path: Path, end_pads: bool) -> None:
    """Case 4 of training, in plain transformers: the base's one special token is its end token.

    What pads must not be a token of texts: as a special token it would split the words that hold it.
    """
    base = make_random_model(tmp_path / "base", special=["<|end|>"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.all_special_tokens == ["<|end|>"]
    tokenizer.pad_token = "<|end|>" if end_pads else None
    tokenizer.add_tokens("a pad")  # a token of texts
    wider: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wider.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    wider.save_pretrained(base)
    tokenizer.save_pretrained(base)
    train("rm", base, tmp_path / "rm", examples=PAIRS, batch_size=24)
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32).eval()
    after, before = AutoTokenizer.from_pretrained(tmp_path / "rm"), AutoTokenizer.from_pretrained(base)
    assert after.pad_token not in (after.eos_token, "a pad") and net.config.pad_token_id == after.pad_token_id
    for text in ("a<pad>b !", *(pair.chosen for pair in PAIRS)):
        assert after(text)["input_ids"] == before(text)["input_ids"]
    texts = [f"{words * times}<|end|>" for words, times in (("so ", 1), ("and so on ", 3), ("no! ", 7))]
    with torch.no_grad():
        alone = torch.stack([net(**after(text, return_tensors="pt")).logits[0, 0] for text in texts])
        for side in ("right", "left"):
            after.padding_side = side
            together = net(**after(texts, return_tensors="pt", padding=True)).logits[:, 0]
            assert together.tolist() == pytest.approx(alone.tolist(), abs=1e-4)
    assert alone.std() > 0.05  # a head that read nothing would pass too


@pytest.mark.parametrize(
    ("padding", "dtype"), [("<|user|>", "float32"), ("<|end|>", "float32"), ("<|user|>", "bfloat16")]
)
def test_a_reward_model_that_scores_a_padded_batch_otherwise_is_not_saved(
    random_model: Path, tmp_path: Path, padding: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 4 of training: the model's settings name another padding token than the tokenizer, or the end token."""
    finish = rm.finish

    def broken(settings: Any, tokenizer: Any, *rest: Any) -> Any:
        rest[-1].config.pad_token_id = tokenizer.convert_tokens_to_ids(padding)
        return finish(settings, tokenizer, *rest)

    monkeypatch.setattr(rm, "finish", broken)
    said = r"scores a completion \S+ at its end token, \S+ in the classifier .*, and \S+ there in a padded batch"
    with pytest.raises(WorkError, match=said):
        train("rm", random_model, tmp_path / "rm", examples=PAIRS, batch_size=24, weights=dtype, dtype=dtype)
    assert not (tmp_path / "rm").exists()


@METHODS
def test_a_training_of_one_step_moves_the_weights_prints_nothing_and_leaves_the_libraries_as_they_were(
    random_model: Path, tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    environment = dict(os.environ)
    steps: Steps = []
    capfd.readouterr()
    train(method, random_model, tmp_path / "out", steps.append, batch_size=24)
    assert capfd.readouterr() == ("", "")
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled())
    assert os.environ.get("TQDM_DISABLE") == environment.get("TQDM_DISABLE")
    assert len(steps) == 1 and steps[0]["learning_rate"] > 0
    base, trained = (load_file(folder / "model.safetensors") for folder in (random_model, tmp_path / "out"))
    assert not torch.equal(base["model.norm.weight"], trained["model.norm.weight"])


@METHODS
def test_the_loss_falls_and_every_step_is_reported(whole: Callable[[str], Whole], method: str) -> None:
    _, steps, result = whole(method)
    assert [step["step"] for step in steps] == list(range(1, 7))
    assert result.steps == 6 and result.seconds > 0
    assert result.metrics["last_loss"] < 0.9 * result.metrics["first_loss"]
    assert result.metrics["validation_loss"] < 0.9 * result.metrics["first_loss"]
    own = {
        "sft": {"entropy", "mean_token_accuracy"},
        "rm": {"accuracy", "margin", "mean_reward"},
        "dpo": {*preference_losses.REPORTED, "padding"},
    }[method]
    assert set(steps[0]) == {"step", "steps", "loss", "learning_rate", "grad_norm", "epoch", "tokens"} | own
    by_length = {"longer_preferred", "longer_chosen"} if method != "sft" else set()
    validated = by_length | {
        name.replace("rewards/accuracies", "accuracy").replace("rewards/margins", "margin") for name in own
    }
    for number, step in enumerate(steps, 1):  # each second one, and the last: a quarter of 6
        found = {name.removeprefix("validation_") for name in step if name.startswith("validation_")}
        assert found == (validated | {"loss"} if number % 2 == 0 else set())
    assert all(result.metrics[name] == steps[-1][name] for name in RECORDED if name in steps[-1])
    if method != "sft":
        assert result.metrics["validation_accuracy"] == 1.0 and result.metrics["validation_margin"] > 0
    assert (result.kept, result.cut, result.dropped) == (28, 0, {})  # of both splits


def test_what_was_cut_and_dropped_is_in_the_result(random_model: Path, tmp_path: Path) -> None:
    answer = DEMONSTRATIONS[0].messages[1]
    rows = [*DEMONSTRATIONS, *(Demonstration((user("a " * n), answer)) for n in (20, 200))]
    result = train("sft", random_model, tmp_path / "sft", examples=rows, max_length=50, batch_size=24)
    assert (result.kept, result.cut, result.dropped) == (25, 1, {"too-long": 1})
    assert "validation_loss" not in result.metrics
    pairs = [*PAIRS, replace(PAIRS[0], prompt=(user("a " * 20),)), replace(PAIRS[0], rejected="a " * 50)]
    done = train("dpo", random_model, tmp_path / "dpo", examples=pairs, max_length=50, batch_size=24)
    assert (done.kept, done.cut, done.dropped) == (25, 1, {"too-long": 1})


@METHODS
def test_bfloat16_trains(random_model: Path, tmp_path: Path, method: str) -> None:
    result = train(method, random_model, tmp_path / "out", dtype="bfloat16", batch_size=8)
    assert result.metrics["last_loss"] < result.metrics["first_loss"]


@METHODS
def test_recomputed_activations_change_nothing(
    random_model: Path,
    tmp_path: Path,
    whole: Callable[[str], Whole],
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = whole(method).steps
    monkeypatch.setattr(memory, "RECOMPUTED_FROM", 0)
    recomputed: Steps = []
    train(method, random_model, tmp_path / "recomputed", recomputed.append)
    assert [s["loss"] for s in recomputed] == pytest.approx([s["loss"] for s in plain], rel=1e-5)


def test_accumulated_batches_are_one_batch(random_model: Path, tmp_path: Path) -> None:
    together: Steps = []
    train("sft", random_model, tmp_path / "together", together.append, batch_size=8)
    parts: Steps = []
    train("sft", random_model, tmp_path / "parts", parts.append, batch_size=2, accumulate=4)
    assert [s["loss"] for s in parts] == pytest.approx([s["loss"] for s in together], rel=1e-4)


UNEVEN = [Demonstration((user(f"what is {i}?"), assistant("it is " + "so " * i + f"{i}"))) for i in range(8)]
UNEVEN_PAIRS = [replace(pair, chosen=pair.chosen + " and so" * i) for i, pair in enumerate(PAIRS[:8])]


@METHODS
def test_eight_batches_of_one_row_train_the_weights_that_one_batch_of_eight_trains(
    random_model: Path, tmp_path: Path, method: str
) -> None:
    """SFT weighs the batches by their tokens, of which the last row has five times as many as the first.

    The weights are compared by how far they have moved: Adam makes a whole step of a gradient that is next to nothing.
    """
    rows: list[Any] = UNEVEN if method == "sft" else UNEVEN_PAIRS
    losses, moved = [], []
    for size, accumulate in ((8, 1), (1, 8)):
        out, steps = tmp_path / str(size), Steps()
        train(method, random_model, out, steps.append, rows, batch_size=size, accumulate=accumulate, max_steps=2)
        losses.append([step["loss"] for step in steps])
        base, made = (load_file(folder / "model.safetensors") for folder in (random_model, out))
        moved.append(torch.cat([(made[name] - tensor).flatten() for name, tensor in base.items()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert (moved[1] - moved[0]).norm() < 0.01 * moved[0].norm()


# ---------------------------------------------------------------- repeated and resumed


@pytest.mark.parametrize("method", RATES)
def test_a_step_of_uneven_batches_weighs_every_row_alike(random_model: Path, tmp_path: Path, method: str) -> None:
    """Case 17 of training: 5 rows in batches of 2, 2 and 1 are one step, as in one batch."""
    learnt: list[Any] = (DEMONSTRATIONS if method == "sft" else PAIRS)[:5]
    steps: dict[int, Steps] = {2: [], 5: []}
    for size, reported in steps.items():
        train(method, random_model, tmp_path / str(size), reported.append, learnt, batch_size=size, accumulate=4)
    assert len(steps[2]) == len(steps[5]) == 1
    assert steps[2][0] == pytest.approx(steps[5][0], rel=1e-4)


@METHODS
def test_validation_does_not_depend_on_its_batch_size(random_model: Path, tmp_path: Path, method: str) -> None:
    """Case 5 of training: 9 rows are counted as rows, or as their tokens, where a last batch is smaller."""
    uneven = [replace(pair, chosen=pair.chosen + " and so on" * (i % 4)) for i, pair in enumerate(PAIRS[:9])]
    held: list[Any] = uneven if method != "sft" else [
        Demonstration(pair.prompt + (assistant(pair.chosen),)) for pair in uneven
    ]  # fmt: skip
    found = [
        train(method, random_model, tmp_path / str(size), examples=[*held, *validation(held)], batch_size=size,
              learning_rate=1e-12, **({"loss": "simpo"} if method == "dpo" else {})).metrics  # whose margins are not 0
        for size in (8, 2, 9)
    ]  # fmt: skip
    validated = [{name: value for name, value in one.items() if name.startswith("validation")} for one in found]
    assert validated[0] == pytest.approx(validated[2], rel=1e-4) and validated[1] == pytest.approx(
        validated[2], rel=1e-4
    )
    if method == "rm":
        assert (validated[2]["validation_accuracy"] * 9) == pytest.approx(
            round(validated[2]["validation_accuracy"] * 9)
        )


@METHODS
def test_the_same_settings_give_the_same_weights(
    random_model: Path, tmp_path: Path, whole: Callable[[str], Whole], method: str
) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        train(method, random_model, tmp_path / name, seed=seed)
    assert weights(whole(method).out) == weights(tmp_path / "same") != weights(tmp_path / "other")


class Stopped(KeyboardInterrupt):
    pass


def stopped(_: Any) -> None:
    raise Stopped


@METHODS
def test_a_resumed_training_equals_an_undisturbed_one(
    random_model: Path, tmp_path: Path, whole: Callable[[str], Whole], method: str
) -> None:
    steps: Steps = []

    def stop(step: dict[str, float]) -> None:
        steps.append(step)
        if step["step"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(method, random_model, tmp_path / "out", stop)
    assert not (tmp_path / "out").exists()
    again: Steps = []
    result = train(method, random_model, tmp_path / "out", again.append)
    assert [s["step"] for s in again] == [5, 6]
    assert steps[:4] + again == whole(method).steps
    assert result.metrics == whole(method).result.metrics
    assert weights(tmp_path / "out") == weights(whole(method).out)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@METHODS
def test_a_training_that_ended_but_was_not_saved_takes_no_further_step(
    random_model: Path, tmp_path: Path, whole: Callable[[str], Whole], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(trl, "evaluate", stopped)
        train(method, random_model, tmp_path / "out")
    again: Steps = []
    result = train(method, random_model, tmp_path / "out", again.append)
    assert again == []
    assert (result.steps, result.metrics) == (6, whole(method).result.metrics)
    assert result.evaluation == whole(method).result.evaluation and bool(result.evaluation) == (method != "sft")
    assert weights(tmp_path / "out") == weights(whole(method).out)


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path: Path) -> None:
    for name in ("checkpoint-8", "checkpoint-10", "checkpoint-100"):
        (tmp_path / name).mkdir()
    assert models.newest_checkpoint(tmp_path) is None
    for name in ("checkpoint-8", "checkpoint-10"):
        (tmp_path / name / "optimizer.pt").write_bytes(bytes(range(256)) * 10_000)
        models.mark_complete(tmp_path / name)
    assert models.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("damage", ["cut", "zeroed at the end", "gone", "of another training", "an empty mark"])
def test_a_checkpoint_that_is_damaged_or_of_another_training_is_passed_over(tmp_path: Path, damage: str) -> None:
    (tmp_path / "key").write_text("one")
    for name in ("checkpoint-8", "checkpoint-10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "optimizer.pt").write_bytes(b"x" * 2_500_000)
        models.mark_complete(tmp_path / name)
    newest, file = tmp_path / "checkpoint-10", tmp_path / "checkpoint-10" / "optimizer.pt"
    assert models.newest_checkpoint(tmp_path) == newest
    if damage == "of another training":
        (tmp_path / "key").write_text("another")
        assert models.newest_checkpoint(tmp_path) is None
        return
    if damage == "cut":
        os.truncate(file, 2_000_000)
    elif damage == "zeroed at the end":
        file.write_bytes(b"x" * 2_400_000 + bytes(100_000))
    elif damage == "gone":
        file.unlink()
    else:
        (newest / models.MARK).write_text("")
    assert models.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-8"


# ---------------------------------------------------------------- saved


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_trained_model_loads_with_its_template_and_stops_at_its_end_token(
    random_model: Path, whole: Callable[[str], Whole], method: str
) -> None:
    out = whole(method).out
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(random_model).chat_template
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)
    assert model.dtype == torch.float32 and model.config.use_cache
    assert weights(out) != weights(random_model)
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "key",
        "metrics.jsonl",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
        "training.png",
    }


def test_a_given_template_is_saved_with_the_model_and_a_base_without_one_needs_it(
    random_model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    tokenizer = AutoTokenizer.from_pretrained(random_model)
    tokenizer.chat_template, tokenizer.pad_token = None, None
    tokenizer.save_pretrained(bare)
    AutoModelForCausalLM.from_pretrained(random_model).save_pretrained(bare)
    with pytest.raises(InputError, match="no chat template.*prompts/chat/chatml.jinja"):
        train("sft", bare, tmp_path / "out")
    text = find("prompts/chat/zephyr.jinja").read_text(encoding="utf-8")
    train("sft", bare, tmp_path / "out", template=text, batch_size=24)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == text
    again = train("sft", tmp_path / "out", tmp_path / "again", examples=DEMONSTRATIONS, batch_size=24)
    assert again.kept == 24
    unmarked = text.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    asks_otherwise = unmarked.replace(r"+ '<|assistant|>\n' -}}", r"+ '<|assistant|>:\n' -}}")
    with pytest.raises(InputError, match="^mine.jinja: the chat template marks no assistant turn"):
        made = Job(sft_settings(template="mine.jinja"), bare, tmp_path / "unmarked", "k", asks_otherwise)
        job.write_job(made, DEMONSTRATIONS)
        job.train(made.folder, print)


# ---------------------------------------------------------------- guards


@METHODS
def test_no_examples_are_an_error(random_model: Path, tmp_path: Path, method: str) -> None:
    examples = validation(DEMONSTRATIONS if method == "sft" else PAIRS)
    with pytest.raises(InputError, match="nothing to train on"):
        train(method, random_model, tmp_path / "out", examples=examples)


def test_a_base_that_is_no_model_is_an_error(random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="this is no model"):
        train("sft", tmp_path / "empty", tmp_path / "out")
    broken = shutil.copytree(random_model, tmp_path / "broken")
    (broken / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="the configuration names no architecture"):
        train("sft", broken, tmp_path / "out")


def _compiled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}


def _without_a_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}


@METHODS
@pytest.mark.parametrize(
    ("change", "told"),
    [(_compiled, r"lack \d+ of .*'_orig_mod\.model"), (_without_a_layer, r"lack 9 of .*'model\.layers\.1\.")],
)
def test_a_base_without_all_its_tensors_is_refused(
    random_model: Path, tmp_path: Path, method: str, change: Any, told: str
) -> None:
    base = shutil.copytree(random_model, tmp_path / "base")
    save_file(change(load_file(base / "model.safetensors")), base / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=told):
        train(method, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=told):
        models.flat_value_model(base)


@pytest.mark.parametrize(("config", "fields"), [(SFTConfig, "sft"), (DPOConfig, "dpo"), (RewardConfig, "rm")])
def test_every_setting_of_trl_that_is_relied_on_exists(config: type, fields: str, tmp_path: Path) -> None:
    wanted = trl.common_fields(sft_settings(), tmp_path, 0)
    own = {
        "sft": trl.sft_fields(sft_settings()),
        "dpo": trl.dpo_fields(settings_of("dpo")),
        "rm": trl.rm_fields(settings_of("rm")),
    }
    wanted |= own[fields]
    missing = set(wanted) - {field.name for field in dataclasses.fields(config)}
    assert not missing, f"TRL's {config.__name__} no longer has {sorted(missing)}"
    with pytest.raises(WorkError, match=f"the installed TRL has no setting max_size in its {config.__name__}"):
        trl.configured(config, wanted | {"max_size": 1})


def test_several_gpus_in_one_process_are_refused(tmp_path: Path) -> None:
    config = trl.configured(SFTConfig, trl.common_fields(sft_settings(), tmp_path, 0))
    config._n_gpu = 2
    with pytest.raises(InputError, match="several GPUs.*CUDA_VISIBLE_DEVICES"):
        trl._trainer(trl.SFT, config, sft_settings(), None, None, trl.TokenizedData({}, {}, Counts()))


def test_the_methods_of_trl_that_are_replaced_exist() -> None:
    from trl import DPOTrainer, RewardTrainer, SFTTrainer

    for trainer in (DPOTrainer, RewardTrainer, SFTTrainer):
        assert {"_send_telemetry", "create_model_card", "_prepare_dataset", "_run_epoch"} <= set(dir(trainer))


def test_a_loss_that_is_no_number_ends_the_training(random_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    AutoTokenizer.from_pretrained(random_model).save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(random_model)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    model.save_pretrained(base)
    with pytest.raises(WorkError, match="the loss is (nan|inf) at step 1.*learning_rate"):
        train("sft", base, tmp_path / "out")


# ---------------------------------------------------------------- what a base's tokenizer and window ask for


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base without a chat template, whose tokenizer begins every text with a BOS."""
    special = [*SPECIAL, "<|begin|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"]
    base = make_random_model(tmp_path_factory.mktemp("bos") / "base", special=special, template=None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(base)
    assert AutoTokenizer.from_pretrained(base)("a")["input_ids"][0] == tokenizer.bos_token_id
    return base


@pytest.mark.parametrize("name", [path.stem for path in chats.shipped()])
def test_every_shipped_template_begins_as_the_tokenizer_begins_its_texts(begun: Path, name: str) -> None:
    """Case 6 of training: one BOS, first, in what is learnt and in what is asked, of every format."""
    settings = settings_of("sft")
    model, tokenizer = models.load(begun, find(f"prompts/chat/{name}.jinja").read_text(encoding="utf-8"), settings)
    chat = models.trained_chat(settings, model, tokenizer)
    asked, answer = (user("hi"), assistant("ok"), user("yo")), assistant("y")
    (segments,) = conversations(chat, [[*asked, answer]])
    ((prompt, _),) = completions(chat, [(asked, "y")])
    for ids in ([token for segment in segments for token in segment.ids], prompt):
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", ["zephyr", "own", "decides"])
def test_a_given_template_begins_as_the_tokenizer_begins_its_texts(begun: Path, tmp_path: Path, name: str) -> None:
    """Case 6 of training: Mistral, Llama and Gemma saw no text without their BOS."""
    given = {"own": MARKED, "decides": "{#- bos_token: none -#}" + MARKED}.get(name)
    text = find(f"prompts/chat/{name}.jinja").read_text(encoding="utf-8") if given is None else given
    record = train("sft", begun, tmp_path / "out", template=text)
    trained = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": "what is 1?"}]
    ids = trained.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    wanted = 0 if name == "decides" else 1
    assert ids.count(trained.bos_token_id) == wanted and (ids[0] == trained.bos_token_id) == bool(wanted)
    assert len(record.notes) == wanted and all("begins with <|begin|>" in note for note in record.notes)


def test_a_template_stays_as_it_is_where_the_tokenizer_adds_no_bos(random_model: Path, tmp_path: Path) -> None:
    base = make_random_model(tmp_path / "base", special=[*SPECIAL, "<|begin|>"])
    record = train("sft", base, tmp_path / "out", template=MARKED)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == MARKED and record.notes == []


@METHODS
def test_rows_are_no_longer_than_the_models_context(random_model: Path, tmp_path: Path, method: str) -> None:
    """Case 9 of training: 512 positions, whatever `max_length` says."""
    long = "what is this? " * 45
    learnt: list[Any] = [Demonstration((user(long), assistant(f"it is {i}"))) for i in range(4)]
    if method != "sft":
        learnt = [PreferencePair((user(long),), f"it is {i}", "no idea") for i in range(4)]
    record = train(method, random_model, tmp_path / "out", examples=learnt, max_length=2000)
    assert (record.kept, record.cut) == (4, 4)
    assert record.notes == ["the model's context has 512 tokens, and `max_length` 2000: rows were too long"]
