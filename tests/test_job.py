"""A training as a folder: written, read, resumed, guarded; and the command that trains it in a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from rlaif.config import TRAINERS, Training
from rlaif.errors import InputError, RlaifError, WorkError
from rlaif.judges.verifiers import Check
from rlaif.records import Message
from rlaif.train import job
from rlaif.train.__main__ import main
from rlaif.train.examples import Demonstration, Example, PreferencePair, PromptOnly
from rlaif.train.job import Job, RewardModel, read_job, write_job


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def talk(number: int) -> tuple[Message, ...]:
    return (*user(f"what is {number}?\n\U0001d11e"), Message(role="assistant", content=f"it is {number + 1}"))


EXAMPLES: dict[str, list[Example]] = {
    "sft": [Demonstration(talk(1)), Demonstration(talk(2), "last"), Demonstration(talk(3), "all", "validation")],
    "rm": [PreferencePair(user("a"), "b", "c"), PreferencePair(user("d"), "e", "", "validation")],
    "dpo": [PreferencePair(talk(1) + user("a"), "b", "c"), PreferencePair(user("d"), "e", "f", "validation")],
    "ppo": [PromptOnly(user("a")), PromptOnly(user("b"), "train", ("4", "four"), ({"length": {"max_words": 3}},))],
}
HELD_OUT: dict[str, Example] = {
    "sft": Demonstration((*user("q"), Message(role="assistant", content="kept secret")), "all", "held-out"),
    "rm": PreferencePair(user("q"), "kept secret", "no", "held-out"),
    "dpo": PreferencePair(user("q"), "kept secret", "no", "held-out"),
    "ppo": PromptOnly(user("kept secret"), "held-out"),
}


def settings_of(method: str, **changed: Any) -> Training:
    given = {"base": "base", "name": "trained"} | ({"checks": []} if method == "ppo" else {})
    return TRAINERS[method].model_validate(given | changed)


@pytest.fixture
def sft(random_model: Path, tmp_path: Path) -> Job:
    return Job(settings_of("sft", batch_size=2), random_model, tmp_path / "models/d", "key")


# ---------------------------------------------------------------- written and read


def test_every_trainer_can_be_trained() -> None:
    assert job._METHODS.keys() == TRAINERS.keys()
    assert all(settings.method == name for name, settings in TRAINERS.items())


@pytest.mark.parametrize("method", TRAINERS)
def test_a_job_is_read_as_it_was_written_without_what_is_held_out(
    method: str, random_model: Path, tmp_path: Path
) -> None:
    reward = {"reward": RewardModel(random_model, "bfloat16", "cpu", 4)} if method == "ppo" else {}
    checks = {"checks": (Check.model_validate({"length": {"max_words": 2}}),)} if method == "ppo" else {}
    given = Job(settings_of(method, seed=3), random_model, tmp_path / "m", "key", "a template", **reward, **checks)
    write_job(given, iter([*EXAMPLES[method], HELD_OUT[method]]))
    read = read_job(tmp_path / "m.partial")
    assert read == given
    for split in ("train", "validation", "held-out"):
        assert list(read.examples(split)) == [e for e in EXAMPLES[method] if e.split == split]
    files = [path for path in (tmp_path / "m.partial").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        *("key", "job.json", "lock", "train.parquet"),
        *(["validation.parquet"] if method != "ppo" else []),
    }
    assert not any(b"kept secret" in path.read_bytes() for path in files)


def test_examples_are_written_one_batch_at_a_time_whole_or_not_at_all(
    sft: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "BATCH", 2)

    def five(breaks: bool) -> Iterator[Example]:
        for number in range(5):
            if breaks and number == 4:
                raise OSError("the disk is full")
            yield Demonstration(talk(number))

    with pytest.raises(OSError, match="disk is full"):
        write_job(sft, five(True))
    assert not (sft.folder / "data").exists() and not (sft.folder / "job.json").exists()
    with pytest.raises(InputError, match="holds no training"):
        read_job(sft.folder)
    write_job(sft, five(False))
    assert list(read_job(sft.folder).examples("train")) == list(five(False))


def test_the_same_job_goes_on_and_another_throws_an_unfinished_one_away(sft: Job) -> None:
    write_job(sft, EXAMPLES["sft"])
    mark = sft.folder / "checkpoint-2/complete"
    mark.parent.mkdir()
    mark.touch()
    data = (sft.folder / "data/train.parquet").stat().st_mtime_ns
    write_job(sft, iter([]))  # the key says that the examples are the same: they are not written again
    assert mark.exists() and (sft.folder / "data/train.parquet").stat().st_mtime_ns == data
    (sft.folder / "data/train.parquet").write_bytes(b"half")  # which nobody but a failing disk does
    write_job(sft, EXAMPLES["sft"])
    assert len(list(read_job(sft.folder).examples("train"))) == 2
    (sft.folder / "job.json").unlink()  # as a version without jobs left it
    write_job(sft, EXAMPLES["sft"])
    assert mark.exists() and read_job(sft.folder) == sft
    other = Job(sft.settings, sft.base, sft.out, "another key")
    write_job(other, EXAMPLES["sft"][:1])
    assert not mark.exists() and len(list(other.examples("train"))) == 1 and read_job(sft.folder).key == "another key"


def test_a_folder_that_is_no_job_is_not_touched(sft: Job) -> None:
    sft.folder.mkdir(parents=True)
    write_job(sft, EXAMPLES["sft"])  # an empty one is a beginning
    shutil.rmtree(sft.folder)
    sft.folder.mkdir()
    (sft.folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an unfinished training"):
        write_job(sft, EXAMPLES["sft"])
    assert [path.name for path in sft.folder.iterdir()] == ["notes.txt"]


def test_a_persons_model_folder_is_refused_and_left_alone(sft: Job) -> None:
    sft.out.mkdir(parents=True)
    write_job(sft, EXAMPLES["sft"])  # an empty one holds nothing to lose
    sft.out.mkdir(exist_ok=True)
    (sft.out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no training made it"):
        write_job(sft, EXAMPLES["sft"])
    assert (sft.out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("removing", ["a finished job", "another job"])
def test_a_kill_while_a_job_is_removed_leaves_what_the_next_one_removes(
    removing: str, sft: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_job(sft, EXAMPLES["sft"])
    (sft.folder / "checkpoint-2").mkdir()

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    other = Job(sft.settings, sft.base, sft.out, "another key")
    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(job, "_remove", killed)
        job.clear(sft.out, sft.key) if removing == "a finished job" else write_job(other, EXAMPLES["sft"])
    assert (sft.folder / "checkpoint-2").is_dir()
    job.refuse_foreign(sft.out)
    if removing == "a finished job":
        job.clear(sft.out, sft.key)
        assert not sft.folder.exists()
    else:
        write_job(sft, EXAMPLES["sft"])
        assert not (sft.folder / "checkpoint-2").exists() and read_job(sft.folder) == sft


def test_a_changed_reward_model_is_refused(random_model: Path, tmp_path: Path) -> None:
    reward = RewardModel(shutil.copytree(random_model, tmp_path / "reward"))
    ppo = Job(settings_of("ppo", checks=None, reward="rm"), random_model, tmp_path / "m", "key", reward=reward)
    write_job(ppo, EXAMPLES["ppo"])
    assert read_job(ppo.folder) == ppo
    (reward.folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="the reward model has changed"):
        read_job(ppo.folder)


def test_a_job_that_is_reached_by_a_link_is_refused(sft: Job, tmp_path: Path) -> None:
    write_job(sft, EXAMPLES["sft"])
    (tmp_path / "link.partial").symlink_to(sft.folder)
    with pytest.raises(InputError, match="the job's folder is a link"):
        job.train(tmp_path / "link.partial", print)
    assert sft.folder.is_dir()


def test_what_a_kill_left_of_a_finished_job_is_removed_and_another_job_is_not(sft: Job) -> None:
    write_job(sft, EXAMPLES["sft"])
    job.clear(sft.out, "another key")
    assert sft.folder.is_dir()
    job.clear(sft.out, sft.key)
    assert not sft.folder.exists()
    job.clear(sft.out, sft.key)


def trained(training: Job, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The record of a job whose trainer copies the base model."""

    def copy(given: Job, on_step: Any, reward: Any) -> None:
        final = shutil.copytree(given.base, given.folder / "final")
        record = {"steps": 1, "weights": job.weights_digest(final)}
        (final / "training.json").write_text(json.dumps(record), encoding="utf-8")

    monkeypatch.setitem(job._METHODS, "sft", copy)
    write_job(training, EXAMPLES["sft"])
    return job.train(training.folder, lambda _: None)


def test_an_old_model_is_replaced_and_a_persons_folder_beside_it_survives(
    sft: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = sft.out.with_name("d.old")
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("mine")
    trained(sft, monkeypatch)
    (sft.out / "of the first").touch()
    record = trained(Job(sft.settings, sft.base, sft.out, "another key"), monkeypatch)
    assert not (sft.out / "of the first").exists() and (sft.out / "key").read_text() == "another key"
    assert job.finished(sft.out, "another key") == record and job.finished(sft.out, "key") is None
    assert (mine / "thesis.txt").read_text() == "mine"
    assert {path.name for path in sft.out.parent.iterdir()} == {"d", "d.old"}


def test_a_model_that_was_changed_is_not_finished(sft: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(sft, monkeypatch)
    with (sft.out / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert job.finished(sft.out, "key") is None
    (sft.out / "model.safetensors").unlink()
    assert job.finished(sft.out, "key") is None


# ---------------------------------------------------------------- refused


def break_text(sft: Job) -> None:
    (sft.folder / "job.json").write_text("{", encoding="utf-8")


def break_value(key: str, value: Any, *, seal: bool = True) -> Callable[[Job], None]:
    def change(sft: Job) -> None:
        file = sft.folder / "job.json"
        changed = json.loads(file.read_text(encoding="utf-8")) | {key: value}
        file.write_text(json.dumps(job.sealed(changed) if seal else changed), encoding="utf-8")

    return change


def break_base(sft: Job) -> None:
    (sft.base / "config.json").write_text("{}", encoding="utf-8")


def occupy(sft: Job) -> None:
    sft.out.mkdir()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (break_text, "the folder holds no training"),
        (lambda sft: (sft.folder / "key").unlink(), "the folder holds no training"),
        (break_value("format", 2), "of another format"),
        (break_value("method", "grpo"), "the job cannot be read: 'grpo'"),
        (break_value("settings", {"base": "b"}), "the job cannot be read"),
        (break_value("versions", None), "the job cannot be read"),
        (break_value("base", {"folder": "x"}), "x: config.json is missing, so this is no model"),
        (break_value("versions", {"torch": "1"}), r"written under other versions \(.*torch 1, here 2"),
        (break_value("template", "{{ messages }}", seal=False), "the job was edited"),
        (break_value("key", "another"), "the job was edited"),
        (break_base, "the base model has changed"),
        (lambda sft: (sft.folder / "data/validation.parquet").unlink(), "the examples have changed"),
        (occupy, "the trained model's folder exists already"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    change: Callable[[Job], Any], told: str, sft: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Job(sft.settings, shutil.copytree(sft.base, tmp_path / "base"), sft.out, sft.key)
    write_job(copy, EXAMPLES["sft"])
    change(copy)
    with pytest.raises(InputError, match=told) as error:
        job.train(copy.folder, print)
    assert main([str(copy.folder)]) == 2
    assert capsys.readouterr() == ("", f"error: {' '.join(str(error.value).split())}\n")


def test_wrong_command_lines_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nowhere"], [str(tmp_path)], ["a", "b"], ["a", "--yaml"]):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err


def test_several_processes_that_cannot_find_each_other_are_refused_before_they_wait(
    sft: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(sft, EXAMPLES["sft"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([str(sft.folder)]) == 2
    assert "names 2 processes, and RANK is not set" in capsys.readouterr().err
    assert sft.folder.is_dir() and not sft.out.exists()


def test_what_nobody_foresaw_is_one_sentence_and_its_traceback_a_file(
    sft: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no memory\nat all")

    monkeypatch.setitem(job._METHODS, "sft", fail)
    write_job(sft, EXAMPLES["sft"])
    assert main([str(sft.folder)]) == 1
    assert capsys.readouterr().err.startswith("error: the training failed: RuntimeError: no memory at all (traceback")
    assert "Traceback" in (sft.folder / "error.txt").read_text()


def test_one_process_at_a_time_trains_in_a_folder(sft: Job) -> None:
    write_job(sft, EXAMPLES["sft"])
    with (sft.folder / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for work in (lambda: job.train(sft.folder, print), lambda: write_job(sft, [])):
            with pytest.raises(WorkError, match="another process trains"):
                work()


def test_a_rlaif_error_keeps_its_exit_code(sft: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setitem(job._METHODS, "sft", fail)
    error: RlaifError
    for error in (InputError("wrong"), WorkError("failed")):
        write_job(sft, EXAMPLES["sft"])
        assert main([str(sft.folder)]) == error.exit_code


# ---------------------------------------------------------------- a process of its own


def test_a_job_is_written_and_read_without_torch() -> None:
    code = "import sys, rlaif.train.__main__; print({'torch', 'transformers', 'trl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class Child:
    """The command in a process that is at most ten steps ahead of who reads them: its pipe holds a page."""

    def __init__(self, folder: Path) -> None:
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        command = [sys.executable, "-m", "rlaif.train", str(folder), "--json"]
        self.process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        self.lines = os.fdopen(reading, "rb", buffering=0)

    def until(self, step: int) -> list[dict[str, float]]:
        """The steps it reports up to `step`."""
        steps = [json.loads(self.lines.readline())]
        while steps[-1]["step"] < step:
            steps.append(json.loads(self.lines.readline()))
        return steps

    def stop(self, number: signal.Signals) -> tuple[int, list[dict[str, float]], str]:
        """Send a signal: the exit code, the steps that were reported still, and what it said."""
        self.process.send_signal(number)
        steps = [json.loads(line) for line in self.lines]
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.stderr.close()
        self.lines.close()
        return self.process.wait(), steps, said


def test_the_command_is_stopped_killed_and_goes_on_to_the_model_that_this_process_makes(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rewarded by a reward model, which the command opens itself and this process asks by a plain function."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rlaif.engines.identity import weights_digest

    reward = tmp_path / "reward"
    AutoModelForSequenceClassification.from_pretrained(random_model, num_labels=1).save_pretrained(reward)
    AutoTokenizer.from_pretrained(random_model).save_pretrained(reward)
    numbers = {"iterations": 30, "batch_size": 4, "minibatch_size": 4, "epochs": 1, "max_tokens": 3, "max_length": 64}
    settings = settings_of("ppo", checks=None, reward="rm", learning_rate=1e-3, checkpoint_steps=2, **numbers)
    prompts = [PromptOnly(user(f"what is {i}?")) for i in range(6)]

    def job_in(folder: Path) -> Job:
        return Job(settings, random_model, folder, "key", reward=RewardModel(reward, device="cpu"))

    here = job_in(tmp_path / "here")
    write_job(here, prompts)
    steps: list[dict[str, float]] = []
    assert main([str(here.folder)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 31 and told[0].startswith("step 1 of 30: score ") and str(here.out) in told[-1]

    there = job_in(tmp_path / "there")
    write_job(there, prompts)
    child = Child(there.folder)
    steps += child.until(5)
    code, more, said = child.stop(signal.SIGINT)
    assert (code, said) == (130, "error: interrupted; run the same command again to resume from the last checkpoint\n")
    steps += more
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1)) and len(steps) < 30
    last = steps[-1]["step"] - steps[-1]["step"] % 2

    child = Child(there.folder)
    again = child.until(int(last) + 3)
    assert again[0]["step"] == last + 1 and again[: len(steps) - int(last)] == steps[int(last) :]
    code, _, _ = child.stop(signal.SIGKILL)
    assert code == -signal.SIGKILL and not there.out.exists()

    assert main([str(there.folder), "--json"]) == 0
    *rest, made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rest[-1]["step"] == 30 and rest[0]["step"] > last
    assert (made["model"], made["steps"], made["weights"]) == (str(there.out), 30, weights_digest(here.out))
    assert (here.out / "model.safetensors").read_bytes() == (there.out / "model.safetensors").read_bytes()
    assert not there.folder.exists()


def test_a_job_rewarded_by_checks_needs_nothing_but_its_folder(random_model: Path, tmp_path: Path) -> None:
    """Each prompt's own checks are in the folder: what this prompt asks for no other does."""
    numbers = {"iterations": 1, "batch_size": 4, "minibatch_size": 4, "epochs": 1, "max_tokens": 6, "max_length": 64}
    checks = (Check.model_validate({"length": {"min_words": 1000}}),)
    given = Job(settings_of("ppo", **numbers), random_model, tmp_path / "m", "key", checks=checks)
    write_job(given, [PromptOnly(user("a"), checks=({"length": {"max_words": 1000}},))])
    assert main([str(given.folder)]) == 0
    record = json.loads((tmp_path / "m/training.json").read_text())
    assert record["metrics"]["first_score"] == 0.5  # of the job's check and the prompt's one each
