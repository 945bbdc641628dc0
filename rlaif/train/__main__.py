"""`python -m rlaif.train JOB [--json]`: train the job in a folder into its model's folder.

It prints a line for each step, with `--json` an object, and a last one for the model. SIGINT and SIGTERM end it after
the current step with exit code 130; the same command resumes. A second signal ends it immediately.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rlaif.config import TrainerSettings
from rlaif.engines.adapters import Adapted
from rlaif.errors import INTERRUPTED, InputError, RlaifError
from rlaif.train import job as jobs
from rlaif.train import processes, ranks, rewards
from rlaif.train.examples import RewardFunction
from rlaif.train.job import Job, RewardModel
from rlaif.train.pace import Pace, about
from rlaif.version import install
from rlaif.visible import visible, visible_line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message, fix=f"see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 done, 1 the work failed, 2 the input is wrong, 130 interrupted."""
    parser = _Parser(prog="python -m rlaif.train", description="Train the job in a folder into its model's folder.")
    parser.add_argument("job", metavar="JOB", type=Path, help="a job's folder, NAME.partial; the model is NAME")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each step")
    folder: Path | None = None
    try:
        given = parser.parse_args(arguments)
        folder = given.job
        return _train(given.job, given.json)
    except RlaifError as error:
        return _failed(str(error), error.exit_code)
    except ImportError as error:
        return _failed(f"{error}. Fix: {install('train')}", 2)
    except BrokenPipeError:  # the reader of the pipe is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        return _failed(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    except Exception as error:  # unexpected, such as a device out of memory
        if folder is not None and folder.is_dir():
            return _failed(str(jobs.unforeseen(error, folder)), 1)
        return _failed(f"{type(error).__name__}: {error}", 1)


def _train(folder: Path, as_json: bool) -> int:
    interrupted = threading.Event()
    processes.leashed()
    job = jobs.read_job(folder)
    if ranks.count() > 1 and not isinstance(job.settings, TrainerSettings):
        raise InputError(f"{job.method} is trained by one process, and {ranks.count()} were started", fix="start one")
    ranks.refuse_alone()
    if isinstance(job.settings, TrainerSettings) and ranks.count() > job.settings.batch_size:
        problem = f"{ranks.count()} processes were started, and `batch_size` is {job.settings.batch_size}"
        raise InputError(problem, fix="start fewer, or write the job with a larger `batch_size`")
    pace = Pace()

    def on_step(figures: dict[str, float]) -> None:
        if ranks.is_first():
            left = pace.left(figures["step"], figures["steps"])
            _print(figures if as_json else _line(figures, left), as_json)
        if ranks.in_any(interrupted.is_set()):  # all end after the same step, or those that go on wait for ever
            raise KeyboardInterrupt

    with _signals_noted(interrupted), _reward(job) as reward:
        try:
            record = jobs.train(folder, on_step, reward)
        except KeyboardInterrupt:
            return _failed("interrupted; run the same command again to resume from the last checkpoint", INTERRUPTED)
    if ranks.is_first():
        done = f"{record['kept']:,} examples, {record['steps']:,} steps; the model is in {job.out}"
        _print({"model": str(job.out), **record} if as_json else done, as_json)
    return 0


@contextmanager
def _signals_noted(interrupted: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `interrupted`; the second kills the process."""
    signals = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        for each in signals:
            signal.signal(each, signal.SIG_DFL)

    before = [signal.signal(each, note) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


@contextmanager
def _reward(job: Job) -> Iterator[RewardFunction | None]:
    """The job's reward: checks in code, or a reward model, which is opened and closed here."""
    if job.checks is not None:
        yield rewards.by_checks(job.checks, job.examples("train"))
    elif job.reward is not None:
        engine = _engine(job.reward)
        with asyncio.Runner() as runner:
            try:
                yield rewards.by_model(engine, runner.run)
            finally:
                runner.run(engine.close())
    else:
        yield None


def _engine(model: RewardModel) -> Any:
    from rlaif.engines.transformers import TransformersEngine

    base, adapter = model.folder if isinstance(model.folder, Adapted) else (model.folder, None)
    return TransformersEngine(
        "reward", str(base), adapter=None if adapter is None else str(adapter),
        dtype=model.dtype, device=model.device, batch_size=model.batch_size,
    )  # fmt: skip


# Of the figures of a step, those of a line; all are in metrics.jsonl.
SHOWN = (
    *("loss", "score", "kl", "learning_rate", "grad_norm", "accuracy", "margin", "rewards/accuracies"),
    *("rewards/margins", "rewards/chosen", "rewards/rejected", "ended", "length", "entropy"),
    *("validation_loss", "validation_accuracy"),
)


def _line(figures: dict[str, float], left: float | None) -> str:
    shown = ", ".join(f"{name} {figures[name]:.4g}" for name in SHOWN if name in figures)
    rest = "" if left is None else f"; {about(left)}"
    return f"step {figures['step']:.0f} of {figures['steps']:.0f}: {shown}{rest}"


def _print(line: Any, as_json: bool) -> None:
    print(json.dumps(line) if as_json else visible(line), flush=True)


def _failed(message: str, code: int) -> int:
    print(f"error: {visible_line(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
