"""A training in two processes: the same losses as one, one folder, and one sentence for whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.data_loader import SeedableRandomSampler
from safetensors.torch import load_file
from test_train import DEMONSTRATIONS, PAIRS, Steps, settings_of, validation

from rlaif.errors import INTERRUPTED, InputError, WorkError
from rlaif.resources import find
from rlaif.train import job, processes
from rlaif.train.job import Job
from rlaif.train.trl.sharing import Shares, Shuffled, Weighed

MIXED = {"mix": {"a": 1, "b": 3}, "mix_decay": {"a": 1, "b": 0}, "decay": 0.4}


def job_of(method: str, base: Path, out: Path, rows: int = 9, **changed: Any) -> Job:
    """Of 9 rows in batches of 4, the last of one row: a process has none of its own there."""
    learnt: list[Any] = DEMONSTRATIONS if method == "sft" else PAIRS
    if "mix" in changed:
        learnt = [replace(example, part="ab"[i % 3 == 0]) for i, example in enumerate(learnt)]
    training = Job(settings_of(method, **changed), base, out, "key")
    job.write_job(training, [*learnt[:rows], *validation(learnt[:3])])
    return training


def both(method: str, base: Path, folder: Path, **changed: Any) -> tuple[Steps, Any, Steps, Any]:
    """The steps and the record of a training in one process, and in two."""
    one: Steps = []
    two: Steps = []
    alone = job.train(job_of(method, base, folder / "one", **changed).folder, one.append)
    shared = job_of(method, base, folder / "two", **changed)
    return one, alone, two, processes.train(shared.folder, shared.out, 2, two.append)


def close(one: Any, two: Any) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, float):
            assert two[name] == pytest.approx(value, abs=2e-4, rel=2e-4), name


def test_two_processes_have_the_losses_gradients_and_weights_of_one(random_model: Path, tmp_path: Path) -> None:
    one, alone, two, shared = both("sft", random_model, tmp_path, accumulate=2)
    assert [step["step"] for step in two] == [1, 2]
    for before, after in zip(one, two, strict=True):
        close(before, after)
    close(alone["metrics"], shared["metrics"])
    assert alone["kept"] == shared["kept"] == 12 and not (tmp_path / "two.partial").exists()
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=2e-4), name


TOKENIZING = """
import sys
from pathlib import Path
from test_tokenizing import PAIRS, STRICT, encodings_counted, talk
from test_train_tokens import chat
from rlaif.errors import InputError
from rlaif.train import demonstrations, pairs, ranks
from rlaif.train.examples import Demonstration

with encodings_counted() as encoded:
    columns, _ = pairs.tokenize(chat(Path(sys.argv[1]), "tiny"), PAIRS, 1024)
assert bool(encoded) == ranks.is_first() and columns == pairs.tokenize(chat(Path(sys.argv[1]), "tiny"), PAIRS, 1024)[0]
try:
    demonstrations.tokenize(chat(Path(sys.argv[1]), STRICT), [Demonstration(talk(1, role="system").messages)], 9)
except InputError as error:
    print(ranks.rank(), len(columns["chosen_ids"]), str(error).partition(" (")[2])
"""


@pytest.mark.lab
def test_the_first_process_tokenizes_for_all(random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "both.py").write_text(TOKENIZING)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "both.py")]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [*command, str(random_model)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )
    said = "24 row 1, which begins 'what is 1?'): none"
    assert [line.partition(". Fix")[0] for line in sorted(done.stdout.splitlines())] == [f"0 {said}", f"1 {said}"]


@pytest.mark.lab
@pytest.mark.parametrize(
    ("method", "changed"),
    [("rm", {}), ("dpo", {}), ("dpo", {"lora": {"r": 4}}), ("sft", {"weights": "bfloat16"}), ("sft", MIXED)],
)
def test_every_method_has_the_losses_of_one(
    method: str, changed: dict[str, Any], random_model: Path, tmp_path: Path
) -> None:
    one, alone, two, shared = both(method, random_model, tmp_path, **changed)
    for before, after in zip(one, two, strict=True):
        if changed.get("weights") == "bfloat16":  # whose gradients are summed in bfloat16
            assert after["loss"] == pytest.approx(before["loss"], rel=0.05)
        else:
            close(before, after)
    assert alone["metrics"].keys() == shared["metrics"].keys()


# ---------------------------------------------------------------- each one's share


@pytest.mark.parametrize("rows", [12, 9, 10, 3])
@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_a_batch_are_the_batch_of_one_process(
    rows: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(count))
    torch.manual_seed(7)
    for epoch in (0, 3):
        sampler = SeedableRandomSampler(range(rows))
        sampler.set_epoch(epoch)
        order = list(sampler)
        shares = []
        for rank in range(count):
            monkeypatch.setenv("RANK", str(rank))
            order_of = Shuffled(rows, torch.initial_seed())
            shares.append(list(Shares(rows, 4, order_of, lambda: epoch)))  # noqa: B023 - read here
        assert len({len(share) for share in shares}) == 1
        for number, of_ranks in enumerate(zip(*shares, strict=True)):
            batch = order[4 * number : 4 * number + 4]
            own = [row for rank, share in enumerate(of_ranks) for row in share if rank < len(batch)]
            assert sorted(own) == sorted(batch) and all(share for share in of_ranks)


def test_the_rows_of_a_mixture_are_shared_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        trainer = SimpleNamespace(
            train_dataset=range(9),
            args=SimpleNamespace(train_sampling_strategy="sequential"),
            _order=lambda _: None,
            _batch_size=4,
        )
        shares.append(list(Weighed._get_train_sampler(trainer)))  # type: ignore[arg-type]
    assert shares == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [8]]]


def test_more_processes_than_rows_at_once_and_a_launcher_for_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`batch_size` \(4\) is less than `processes` \(8\)"):
        settings_of("sft", processes=8)
    with pytest.raises(ValueError, match="give `processes` too"):
        settings_of("sft", launch="x.yaml")


# ---------------------------------------------------------------- what goes wrong


def test_the_sentence_of_a_process_that_fails_is_the_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder. Fix: give a job's folder"):
        processes.train(tmp_path / "none.partial", tmp_path / "none", 2, lambda _: None)


def test_ppo_is_trained_by_one_process(random_model: Path, tmp_path: Path) -> None:
    from test_ppo import settings_of as of_ppo

    training = Job(of_ppo(), random_model, tmp_path / "out", "key", checks=())
    job.write_job(training, [])
    with pytest.raises(InputError, match="ppo is trained by one process, and 2 were started"):
        processes.train(training.folder, training.out, 2, lambda _: None)


def rank_of(training: Job, rank: int) -> int:
    """The process of a rank, by the variable that it was started with. Waits for it."""
    for _ in range(600):
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                variables = path.read_bytes().split(b"\0")
                command = (path.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if f"RANK={rank}".encode() in variables and str(training.folder).encode() in command:
                return int(path.parent.name)
        time.sleep(0.1)
    raise AssertionError("the process was not started")


@pytest.mark.lab
def test_a_process_that_is_killed_ends_the_others_and_the_next_run_resumes_to_the_byte(
    random_model: Path, tmp_path: Path
) -> None:
    whole = job_of("sft", random_model, tmp_path / "whole", 24)
    processes.train(whole.folder, whole.out, 2, lambda _: None)
    training = job_of("sft", random_model, tmp_path / "out", 24)

    def kill(figures: dict[str, float]) -> None:
        if figures["step"] == 3:
            os.kill(rank_of(training, 1), signal.SIGKILL)

    began = time.monotonic()
    with pytest.raises(WorkError, match=r"process 1 of the training was killed \(SIGKILL\)"):
        processes.train(training.folder, training.out, 2, kill)
    assert time.monotonic() - began < 300
    assert (training.folder / "checkpoint-2/complete").exists() and not training.out.exists()
    steps: Steps = []
    processes.train(training.folder, training.out, 2, steps.append)
    assert [step["step"] for step in steps] == [3, 4, 5, 6]
    resumed, undisturbed = ((folder / "model.safetensors").read_bytes() for folder in (training.out, whole.out))
    assert resumed == undisturbed


@pytest.mark.lab
@pytest.mark.parametrize("order", [(2, 1), (1, 2)])
def test_another_number_of_processes_resumes(order: tuple[int, int], random_model: Path, tmp_path: Path) -> None:
    whole: Steps = []
    job.train(job_of("dpo", random_model, tmp_path / "whole", 24).folder, whole.append)
    training = job_of("dpo", random_model, tmp_path / "out", 24)

    def train(count: int, on_step: Callable[[dict[str, float]], None]) -> None:
        if count == 1:
            job.train(training.folder, on_step)
        else:
            processes.train(training.folder, training.out, count, on_step)

    def stop(figures: dict[str, float]) -> None:
        if figures["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(order[0], stop)
    steps: Steps = []
    train(order[1], steps.append)
    assert [step["step"] for step in steps] == [3, 4, 5, 6]
    for before, after in zip(whole[2:], steps, strict=True):
        close(before, after)


@pytest.mark.lab
def test_an_interrupt_ends_every_process_after_the_same_step(random_model: Path, tmp_path: Path) -> None:
    """Ctrl-C at `rlaif train`: exit code 130, nothing of it left, and the same command resumes."""
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}"}]}
        for i in range(80)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "rlaif.cli", "train", "sft", "--base", str(random_model), "--data", "rows.jsonl"]
    command += ["--out", str(tmp_path / "out"), "--processes", "2", "batch_size=4", "epochs=30", "checkpoint_steps=1"]
    running = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    for _ in range(3000):
        if [*tmp_path.glob("out.partial/checkpoint-*/complete")]:
            break
        time.sleep(0.1)
    training = Job(settings_of("sft"), random_model, tmp_path / "out", "key")
    ranks = [rank_of(training, rank) for rank in (0, 1)]
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(120) == INTERRUPTED
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """As after SIGKILL, which lets it end nothing: its end of their standard input is closed."""
    waiting = "from rlaif.train.processes import leashed\nimport time\nleashed()\nprint(1, flush=True)\ntime.sleep(60)"
    leash = {processes.LEASH: "1"}
    held = subprocess.Popen(
        [sys.executable, "-c", waiting], env=os.environ | leash, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert held.stdout is not None and held.stdin is not None
    assert held.stdout.readline() == b"1\n" and held.poll() is None
    held.stdin.close()
    assert held.wait(20) == 1
    held.stdout.close()


# ---------------------------------------------------------------- launchers


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("deepspeed-zero3", "DEEPSPEED")])
def test_the_shipped_configurations_are_accelerates(name: str, kind: str) -> None:
    file = find(f"pipelines/accelerate/{name}.yaml")
    read = load_config_from_file(str(file))
    assert (read.distributed_type.value, read.num_machines) == (kind, 1)
    assert name != "fsdp2" or read.fsdp_config["fsdp_version"] == 2
    assert f"launch=pipelines/accelerate/{name}.yaml" in file.read_text()
