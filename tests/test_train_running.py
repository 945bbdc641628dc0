"""What is left of a training, and what happens while it runs: figures, validation, the best step, failures."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from rlaif.config import TRAINERS, LoRASettings, Training
from rlaif.errors import InputError, WorkError
from rlaif.records import Message
from rlaif.train import alarms, job, log, models, reporting, steps, trl
from rlaif.train.alarms import Rise
from rlaif.train.examples import Demonstration, Example, OnStep, PreferencePair, PromptOnly
from rlaif.train.job import Job, RewardModel
from rlaif.train.pairs import IDS
from rlaif.train.pairs import tokenize as tokenize_pairs
from rlaif.train.tokens import trainable_chat

HALF_A_GUESS = 0.5 * math.log(1000)  # 3.45
Lines = list[dict[str, Any]]
RATES = {"sft": 3e-3, "dpo": 1e-3, "rm": 1e-3}


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


DEMONSTRATIONS = [Demonstration((user(f"what is {i}?"), assistant(f"it is {i + 1}"))) for i in range(24)]
PAIRS = [PreferencePair((user(f"what is {i}?"),), f"it is {i}", f"no idea, not {i}") for i in range(24)]
PROMPTS = [PromptOnly((user(f"what is {i}?"),)) for i in range(6)]
PPO = {"reward": "rm", "iterations": 6, "minibatch_size": 4, "epochs": 1, "max_tokens": 3, "max_length": 64}


def validation(examples: Iterable[Any]) -> list[Any]:
    return [replace(example, split="validation") for example in examples]


def settings_of(method: str, **changed: Any) -> Training:
    values: dict[str, Any] = {"base": "base", "name": "trained", "batch_size": 4, "checkpoint_steps": 2}
    values |= {"learning_rate": RATES.get(method, 1e-3)} | (PPO if method == "ppo" else {})
    return TRAINERS[method].model_validate(values | changed)


def digits(prompts: Any, texts: Any) -> list[float | None]:
    return [sum(c.isdigit() for c in text) - 0.1 * len(text) for text in texts]


@pytest.fixture(scope="session")
def reward_model(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(1)
    LlamaForSequenceClassification(LlamaConfig.from_pretrained(random_model, num_labels=1)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(random_model).save_pretrained(folder)
    return folder


Train = Callable[..., Any]


@pytest.fixture
def train(random_model: Path, reward_model: Path, tmp_path: Path) -> Train:
    """Train a job of 6 steps with 4 rows of validation into `out`; the record of its training."""

    def run(
        method: str,
        out: str,
        on_step: OnStep = lambda _: None,
        examples: Iterable[Example] | None = None,
        base: Path = random_model,
        **changed: Any,
    ) -> Any:
        if examples is None:
            learnt: list[Any] = {"sft": DEMONSTRATIONS, "ppo": PROMPTS}.get(method, PAIRS)
            examples = learnt if method == "ppo" else [*learnt, *validation(learnt[:4])]
        settings = settings_of(method, **changed)
        reward = RewardModel(reward_model) if method == "ppo" else None
        key = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
        training = Job(settings, base, tmp_path / out, key, reward=reward)
        job.write_job(training, examples)
        return SimpleNamespace(**job.train(training.folder, on_step, digits if method == "ppo" else None))

    return run


def lines_of(folder: Path) -> Lines:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def without_time(lines: Lines) -> Lines:
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


LAB = pytest.mark.lab  # what a test shows on one trainer already


class Stopped(KeyboardInterrupt):
    pass


def stop_at(number: int) -> OnStep:
    def stop(step: dict[str, float]) -> None:
        if step["step"] == number:
            raise Stopped

    return stop


# ---------------------------------------------------------------- metrics.jsonl


@pytest.mark.parametrize(
    ("method", "at"),
    [("sft", 5), ("ppo", 4), pytest.param("dpo", 4, marks=LAB), pytest.param("ppo", 5, marks=LAB)],
)
def test_every_step_is_a_line_beside_the_model_once_also_of_a_training_that_was_interrupted(
    train: Train, tmp_path: Path, method: str, at: int
) -> None:
    """Interrupted at a step with a checkpoint and at one without."""
    told: Lines = []
    began = time.time()

    def tell(step: dict[str, float]) -> None:
        told.append(step)
        last = models.newest_checkpoint(tmp_path / "whole.partial")  # else a kill between the two would lose the line
        assert last is None or models.step_of(last) < step["step"]

    train(method, "whole", tell)
    whole = lines_of(tmp_path / "whole")
    assert without_time(whole) == told and [line["step"] for line in whole] == list(range(1, 7))
    assert began < whole[0]["time"] <= whole[-1]["time"] < time.time()
    with pytest.raises(Stopped):
        train(method, "out", stop_at(at))
    assert [line["step"] for line in lines_of(tmp_path / "out.partial")] == list(range(1, at + 1))
    with (tmp_path / "out.partial/metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # as a kill leaves it
    train(method, "out")
    assert without_time(lines_of(tmp_path / "out")) == told


def test_tokens_are_those_of_all_sequences_so_far(train: Train, random_model: Path, tmp_path: Path) -> None:
    columns, _ = tokenize_pairs(trainable_chat(AutoTokenizer.from_pretrained(random_model)), PAIRS, 100)
    rows = zip(*(columns[name] for name in IDS), strict=True)
    total = sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in rows)
    with pytest.raises(Stopped):
        train("rm", "out", stop_at(4))
    train("rm", "out")
    assert lines_of(tmp_path / "out")[-1]["tokens"] == total


def test_a_log_cuts_what_is_repeated_and_writes_null_for_what_is_not_finite(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for start in (1, 3):
        with log.StepLog(file) as written:
            for step in range(start, start + 4):
                written.add({"step": step, "steps": 9, "loss": math.inf if step == 3 else start})
    found = list(log.steps_of(file))
    assert [(line["step"], line["loss"]) for line in found] == [(1, 1), (2, 1), (3, None), (4, 3), (5, 3), (6, 3)]
    assert list(log.steps_of(tmp_path / "none")) == []


# ---------------------------------------------------------------- validation and the best step


@pytest.mark.parametrize(
    ("every", "total", "validated"),
    [(0.25, 100, [25, 50, 75, 100]), (0.25, 6, [2, 4, 6]), (3, 7, [3, 6, 7]), (0.9, 10, [9, 10]), (50, 3, [3])],
)
def test_when_a_training_is_validated(every: float, total: int, validated: list[int]) -> None:
    assert [step for step in range(1, total + 1) if steps.is_validated(step, total, every)] == validated


def test_validation_changes_no_weight_also_of_a_model_with_dropout(
    train: Train, random_model: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(random_model, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    for every in (1, 6):
        train("sft", str(every), evaluate_every=every, base=base)
    assert weights(tmp_path / "1") == weights(tmp_path / "6")
    assert sum("validation_loss" in line for line in lines_of(tmp_path / "1")) == 6
    train("sft", "plain", evaluate_every=1)
    assert weights(tmp_path / "plain") != weights(tmp_path / "1")  # there was dropout


@pytest.mark.parametrize(("method", "changed"), [("dpo", {}), ("rm", {}), ("rm", {"grouping": "prompt"})])
def test_a_validation_tells_of_each_source_and_of_the_longer_ones_as_the_evaluation_does(
    train: Train, tmp_path: Path, method: str, changed: dict[str, Any]
) -> None:
    """Every third pair is of a source that says the opposite of what is learnt; one pair has sides of equal length."""
    held = [
        replace(pair, source="b", chosen=pair.rejected, rejected=pair.chosen)
        if number % 3 == 0
        else replace(pair, source="a/1")
        for number, pair in enumerate(PAIRS[:9])
    ]
    held.append(PreferencePair((user("and?"),), "yes", "no!", source=None))
    changed = changed | {"learning_rate": 3e-3, "evaluate_every": 2, "batch_size": 3}
    record = train(method, "out", examples=[*PAIRS, *validation(held)], **changed)
    told, last = record.evaluation["validation"], lines_of(tmp_path / "out")[-1]
    for source in ("a/1", "b", "unknown"):
        assert last[f"validation_accuracy/{source}"] == pytest.approx(told["by_source"][source]["mean"], abs=1e-5)
    assert last["validation_accuracy/a/1"] > 0.5 > last["validation_accuracy/b"]
    for name in ("longer_preferred", "longer_chosen"):
        assert last[f"validation_{name}"] == pytest.approx(told["length"][name]["mean"], abs=1e-5)
    assert last["validation_longer_chosen"] == pytest.approx(3 / 9)
    validated = [line["step"] for line in lines_of(tmp_path / "out") if "validation_accuracy/b" in line]
    assert validated == [line["step"] for line in lines_of(tmp_path / "out") if "validation_loss" in line]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# The validation says the opposite of the training, so that it worsens from the first step on.
OPPOSED = [replace(pair, chosen=pair.rejected, rejected=pair.chosen, split="validation") for pair in PAIRS[:4]]
FOREIGN = validation([Demonstration((user("hi"), assistant("ZZZZ"))) for _ in range(4)])


@pytest.mark.parametrize("method", [pytest.param("sft", marks=LAB), "dpo", pytest.param("rm", marks=LAB)])
def test_the_best_step_by_validation_is_kept_also_when_a_training_resumes(
    train: Train, tmp_path: Path, method: str
) -> None:
    given: list[Any] = [*DEMONSTRATIONS, *FOREIGN] if method == "sft" else [*PAIRS, *OPPOSED]
    best: dict[str, Any] = {"examples": given, "keep": "best", "evaluate_every": 1, "checkpoint_steps": 2}
    record = train(method, "best", **best)
    lines = lines_of(tmp_path / "best")
    kept = int(record.metrics["kept_step"])
    if method == "sft":
        ranked = [(line["validation_loss"], line["step"]) for line in lines]
    else:
        ranked = [(-line["validation_accuracy"], line["validation_loss"], line["step"]) for line in lines]
    assert kept == min(ranked)[-1] < 6 and record.steps == 6
    assert record.metrics["validation_loss"] == lines[kept - 1]["validation_loss"]

    with pytest.raises(Stopped):  # with a checkpoint of the kept step
        train(method, "stopped", stop_at(kept + 1), **best | {"checkpoint_steps": 1})
    at = tmp_path / f"stopped.partial/checkpoint-{kept}"
    found, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "best", at))
    assert all(torch.equal(found[name], wanted[name]) for name in found)

    with pytest.raises(Stopped):
        train(method, "resumed", stop_at(5), **best)
    assert [path.name for path in (tmp_path / "resumed.partial").glob("best-*")] == [f"best-{kept}"]
    again = train(method, "resumed", **best)
    assert weights(tmp_path / "resumed") == weights(tmp_path / "best") and again.metrics == record.metrics


def test_of_equal_validations_the_earliest_is_best_and_accuracy_counts_before_loss() -> None:
    settings: Any = settings_of("dpo")
    found = {
        1: {"validation_accuracy": math.nan, "validation_loss": math.nan},
        2: {"validation_accuracy": 0.5, "validation_loss": 0.1},
        4: {"validation_accuracy": 0.75, "validation_loss": 0.6},
        6: {"validation_accuracy": 0.75, "validation_loss": 0.5},
        8: {"validation_accuracy": 0.75, "validation_loss": 0.5},
    }
    assert steps.best_step(found, settings) == 6
    assert steps.best_step(found, settings_of("sft")) == 2  # type: ignore[arg-type]


def test_the_best_step_needs_validation_rows(train: Train) -> None:
    with pytest.raises(InputError, match="`keep`: there are no validation rows.*keep: last"):
        train("sft", "out", examples=DEMONSTRATIONS, keep="best")


def test_when_there_is_a_validation_is_in_the_key_only_where_it_decides() -> None:
    def key(**given: Any) -> str:
        return job.training_key(settings_of("sft", **given), "b", "e", None, None)

    assert key(evaluate_every=2) == key(evaluate_every=3) == key(report_to="wandb")
    assert key(evaluate_every=2, keep="best") != key(evaluate_every=3, keep="best") != key(evaluate_every=3)


# ---------------------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize("where", [pytest.param("loss", marks=LAB), "gradient", "weights"])
def test_what_is_not_finite_ends_the_training_with_the_last_good_checkpoint_and_a_lower_rate_goes_through(
    train: Train, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step breaks, as a rate that is too high breaks it."""

    def breaks(self: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        loss = computed(self, model, *arguments, **named)
        if self.state.global_step == 2 and self.model.training:
            if where == "loss":
                return loss * math.nan
            if where == "gradient":
                return loss + (model.model.norm.weight.sum() * 0).sqrt()  # 0, and its gradient is not a number
        if self.state.global_step == 3 and where == "weights":
            raise AssertionError("a step after weights that are not finite")
        return loss

    computed = trl.SFT.compute_loss
    end: Any = steps.Steps.on_step_end

    def ruins(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        end(self, args, state, control, **given)
        if where == "weights" and state.global_step == 4:
            with torch.no_grad():
                self.trainer.model.model.norm.weight[0] = math.nan

    with monkeypatch.context() as patched:
        if where == "weights":
            patched.setattr(steps.Steps, "on_step_end", ruins)
        else:
            patched.setattr(trl.SFT, "compute_loss", breaks)
        with pytest.raises(WorkError) as failed:
            train("sft", "out", evaluate_every=6)
    folder = tmp_path / "out.partial"
    told = {
        "loss": "the loss is nan at step 3",
        "gradient": "the norm of the gradient is nan at step 3",
        "weights": "the weights are not finite after step 4",
    }[where]
    assert str(failed.value) == (
        f"{told}; the checkpoint after step 2 is kept in {folder}/checkpoint-2. Fix: lower `learning_rate`"
    )
    kept = load_file(folder / "checkpoint-2/model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert models.newest_checkpoint(folder) == folder / "checkpoint-2"
    record = train("sft", "out", learning_rate=1e-3)
    assert record.steps == 6 and [line["step"] for line in lines_of(tmp_path / "out")] == list(range(1, 7))


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("recompute", ["auto", True])
def test_a_training_without_memory_says_what_takes_less_and_keeps_its_checkpoint(
    train: Train, tmp_path: Path, recompute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step asks for more than there is; with `recompute` the training goes on from the checkpoint."""

    def grows(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == 2 and self.model.training:
            torch.empty(2**55)
        return computed(self, *arguments, **named)

    computed = trl.SFT.compute_loss
    with monkeypatch.context() as patched, pytest.raises(WorkError) as failed:
        patched.setattr(trl.SFT, "compute_loss", grows)
        train("sft", "out", recompute=recompute)
    fix = "run the same command with `--plan`, which shows the settings that take less"
    if recompute == "auto":
        fix += "; of these `recompute=true` goes on from the last checkpoint, others begin anew"
    folder = tmp_path / "out.partial"
    told = f"the training ran out of memory; the checkpoint after step 2 is kept in {folder}/checkpoint-2. Fix: {fix}"
    assert str(failed.value) == told and not (folder / "error.txt").exists()


# ---------------------------------------------------------------- usual settings


def test_a_training_ends_after_max_steps_with_its_schedule(train: Train, tmp_path: Path) -> None:
    """The data have 6 batches: 8 steps begin them again."""
    for number in (3, 8):
        assert train("sft", str(number), max_steps=number, schedule="linear", warmup=0).steps == number
        rates = [line["learning_rate"] for line in lines_of(tmp_path / str(number))]
        assert rates == pytest.approx([RATES["sft"] * (number - i) / number for i in range(number)])


def test_weight_decay_pulls_weights_and_neither_biases_nor_norms(train: Train, tmp_path: Path) -> None:
    """At a rate so low that nothing else moves: a step multiplies a weight by 1 - rate * decay."""
    from transformers import AutoModelForCausalLM

    rate = {"learning_rate": 1e-3, "max_steps": 1, "schedule": "constant", "warmup": 0}
    for name, decay in (("plain", 0.0), ("decayed", 0.5)):
        train("sft", name, weight_decay=decay, **rate)
    plain, decayed = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "decayed"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").state_dict()
    for name, tensor in plain.items():
        moved = not torch.equal(tensor, decayed[name])
        assert moved == ("norm" not in name) and name in base, name


def test_the_settings_of_others_are_named_by_ours() -> None:
    for cls in TRAINERS.values():
        for theirs, ours in cls.elsewhere.items():
            assert theirs not in {"batch_size", "epochs", "beta", "keep"}
            assert any(ours.key in trainer.model_fields for trainer in TRAINERS.values()), ours
            assert not ours.inner or (ours.key == "lora" and ours.inner in LoRASettings.model_fields), ours
        assert not set(cls.nowhere) & (set(cls.model_fields) | set(cls.elsewhere))


# ---------------------------------------------------------------- trackers


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_trained(train: Train) -> None:
    assert reporting.usable(()) == []
    for tracker in reporting.PACKAGES:
        with pytest.raises(InputError, match=f"`report_to`: {tracker} is not installed.*pip install {tracker}"):
            train("sft", "out", report_to=tracker)


WRITER = """
import json, pathlib

class SummaryWriter:
    def __init__(self, log_dir):
        self.file = pathlib.Path(log_dir) / "events.out.tfevents.1"
        self.file.parent.mkdir(parents=True)

    def add_scalar(self, name, value, step):
        with self.file.open("a") as file:
            file.write(json.dumps([name, value, step]) + "\\n")

    def add_text(self, name, text): ...
    def flush(self): ...
    def close(self): ...
"""


@pytest.mark.parametrize(("method", "figure"), [("dpo", "rewards/chosen"), ("ppo", "score")])
def test_a_tracker_gets_every_figure_and_its_files_lie_beside_the_model(
    method: str, figure: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard is not installed here: in its place is a package with the writer's four methods."""
    (tmp_path / "site/tensorboardX").mkdir(parents=True)
    (tmp_path / "site/tensorboardX/__init__.py").write_text(WRITER)
    monkeypatch.syspath_prepend(tmp_path / "site")
    train(method, "out", report_to="tensorboard")
    (events,) = (tmp_path / "out/runs").rglob("events*")
    told = {(name, step): value for name, value, step in map(json.loads, events.read_text().splitlines())}
    lines = lines_of(tmp_path / "out")
    assert len(lines) == 6
    for line in lines:
        assert told[f"train/{figure}", line["step"]] == line[figure]
    assert method == "ppo" or told["eval/loss", 6] == lines[-1]["validation_loss"]
    assert not (tmp_path / "out.partial").exists()


def test_nothing_is_sent_anywhere(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody has said that the hub is not there, as the other tests do."""
    import socket

    import huggingface_hub.constants
    from huggingface_hub.utils import _telemetry

    asked: list[Any] = []

    def refuse(*arguments: Any, **named: Any) -> Any:
        asked.append(arguments)
        raise OSError("no network")

    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setattr(huggingface_hub.constants, name, False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    train("sft", "out", max_steps=1)
    if _telemetry._TELEMETRY_THREAD is not None:
        _telemetry._TELEMETRY_QUEUE.join()
    assert asked == []
    assert not os.environ.get("CI")


# ---------------------------------------------------------------- a loss that ends above its start


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([1.0, *[30.0] * 9], "began at 1 and ended at 30, the mean of the last 5 steps"),
        ([1.0, *[9.0] * 30, *[4.0] * 10], "began at 1 and ended at 4, the mean of the last 10 steps"),
        ([1.0, 8.0], "began at 1 and ended at 8"),
        ([1.0, *[2.6] * 9], None),  # told as a note
    ],
)
def test_a_loss_that_ends_far_above_its_start_diverged(losses: list[float], told: str | None) -> None:
    found = alarms.rise(losses, HALF_A_GUESS)
    assert found is not None and found.diverged == (told is not None)
    assert told is None or str(found) == f"the loss {told}"


@pytest.mark.parametrize(
    "losses",
    [
        [1.0],  # no step followed it
        [1.0, *[30.0] * 20, *[0.9] * 10],  # it came back
        [1.0, 0.5, 0.5, 0.5, 30.0, 0.1, 0.1, 0.1, 0.1],  # a spike before the end
        [11.0, *[13.0] * 10],  # hardly higher
        [0.1, *[0.5] * 10],  # an easy first batch
    ],
)
def test_a_loss_that_came_back_or_hardly_rose_is_not_told(losses: list[float]) -> None:
    assert alarms.rise(losses, HALF_A_GUESS) is None


@pytest.mark.parametrize("method", ["sft", "rm", "dpo"])
def test_a_training_that_diverged_leaves_no_model_however_often_it_is_run(
    method: str, train: Train, tmp_path: Path
) -> None:
    run: Lines = []
    swapped = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS[::2]]
    examples = DEMONSTRATIONS if method == "sft" else [*PAIRS[1::2], *swapped]  # which no rate learns at once
    changed = {"learning_rate": 1, "schedule": "constant", "max_steps": 8}
    for _ in range(2):
        with pytest.raises(
            WorkError, match="^the training diverged: the loss began at .*, the mean of the last 4 steps"
        ):
            train(method, "out", run.append, examples, **changed)
    assert [step["step"] for step in run] == [*range(1, 9)] and not (
        tmp_path / "out"
    ).exists()  # the second takes no step, also within an epoch


def test_a_loss_whose_chance_depends_on_margins_is_told_and_ends_no_training(train: Train, tmp_path: Path) -> None:
    """A coin loses as much as the margins say, so that a high end is not worse than no model."""
    swapped = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS[::2]]
    examples = [replace(pair, margin=0.1) for pair in (*PAIRS[1::2], *swapped)]
    run: Lines = []
    result = train("rm", "out", run.append, examples, learning_rate=1, schedule="constant", max_steps=8, margin_scale=1)
    assert any(note.startswith("the loss began at") for note in result.notes) and (tmp_path / "out").is_dir()


def test_the_step_that_is_kept_decides() -> None:
    """The loss of the next step is that of its weights."""
    losses = [1.0, 0.9, 0.8, *[30.0] * 10]
    assert alarms.rise(losses, HALF_A_GUESS, 3) == Rise(1.0, 15.4, 2, diverged=True)
    assert alarms.rise(losses, HALF_A_GUESS, 2) is None


def test_a_smaller_rise_is_a_note_of_the_training_and_of_its_card(train: Train, tmp_path: Path) -> None:
    train("sft", "base", max_steps=20)
    told = train("sft", "out", base=tmp_path / "base", learning_rate=0.01, max_steps=4)
    (note,) = told.notes
    assert re.fullmatch(r"the loss began at 0\.\d+ and ended at .*: lower `learning_rate`, or look at .*", note)
    assert "the loss began at" in (tmp_path / "out/README.md").read_text()
