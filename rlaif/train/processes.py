"""One training in several processes of this machine: started, watched and ended together.

Each runs `python -m rlaif.train JOB`, one for each GPU, or sharing the CPU. The first reports its steps here. When one
fails or is killed the others are ended, and its sentence is the error: nobody waits for a process that is gone. They
end with this process too, however it ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rlaif.config.document import read_yaml
from rlaif.errors import INTERRUPTED, InputError, WorkError, first_line
from rlaif.files import json_of
from rlaif.train.examples import OnStep
from rlaif.version import install

LEASH = "RLAIF_LEASH"  # set in a process that ends when its standard input does
GRACE = 20  # seconds that a process has to end after a signal


def train(folder: Path, out: Path, processes: int, on_step: OnStep, launch: Path | None = None) -> dict[str, Any]:
    """Train the job in `folder` in so many processes, and return the record of the model in `out`.

    `launch` is a configuration of accelerate, which then starts them. An exception in `on_step` ends the training after
    its step: KeyboardInterrupt. Raises InputError or WorkError with the sentence of the first process that failed.
    """
    started = _launched(folder, processes, launch) if launch is not None else _started(folder, processes)
    errors: list[list[str]] = [[] for _ in started]
    readers = [_reader(process.stderr, lines.append) for process, lines in zip(started, errors, strict=True)]
    raised: list[BaseException] = []

    def step(line: str) -> None:
        if (figures := _figures(line)) is not None and not raised:
            try:
                on_step(figures)
            except BaseException as error:
                raised.append(error)
                _signal(started, signal.SIGINT)

    for number, process in enumerate(started):  # all are read: a full pipe would hold its process up
        readers.append(_reader(process.stdout, step if number == 0 else lambda _: None))
    try:
        failed = _watched(started)
    finally:
        _end(started)
        for reader in readers:
            reader.join(GRACE)
    if raised:
        raise raised[0]
    if failed is not None and started[failed].returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if failed is not None:
        raise _error(
            started[failed].returncode, failed, [line for lines in [errors[failed], *errors] for line in lines]
        )
    record = json_of(out / "training.json")
    if record is None:
        raise WorkError("the processes ended without a model", file=str(folder), fix="run the same command again")
    return record


def check_launch(file: Path) -> None:
    """Raise InputError for a file that is no configuration of accelerate. By its own reader, which loads torch."""
    read_yaml(file)  # it names the line, where theirs has a traceback
    try:
        from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    except ImportError as error:
        raise InputError(f"`launch` needs accelerate: {first_line(error)}", fix=install("train")) from None
    fix = "write it with `accelerate config`, or copy pipelines/accelerate/ddp.yaml"
    try:
        read = load_config_from_file(str(file))
    except Exception as error:  # its reader checks little itself
        problem = f"accelerate cannot read the configuration: {first_line(error)}".replace(str(file), file.name)
        raise InputError(problem, file=str(file), key="launch", fix=fix) from None
    if not isinstance(read, ClusterConfig):
        problem = "the configuration starts no process on this machine"
        raise InputError(problem, file=str(file), key="compute_environment", fix=fix)


def _started(folder: Path, processes: int) -> list[subprocess.Popen[str]]:
    """One process a rank, which find each other at a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "rlaif.train", str(folder), "--json"]
    return [_process(command, shared | {"RANK": rank, "LOCAL_RANK": rank}) for rank in range(processes)]


def _launched(folder: Path, processes: int, launch: Path) -> list[subprocess.Popen[str]]:
    """`accelerate launch`, whose processes are its own."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch)]
    command += ["--num_processes", str(processes), "-m", "rlaif.train", str(folder), "--json"]
    return [_process(command, {})]


def _process(command: Sequence[str], variables: dict[str, Any]) -> subprocess.Popen[str]:
    """A process in a session of its own: a key of the terminal reaches it through this one alone."""
    environment = os.environ | {name: str(value) for name, value in variables.items()} | {LEASH: "1"}
    return subprocess.Popen(  # noqa: S603 - our own command
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _reader(stream: IO[str] | None, take: Callable[[str], None]) -> threading.Thread:
    assert stream is not None

    def read() -> None:
        with stream:
            for line in stream:
                take(line.rstrip("\n"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _figures(line: str) -> dict[str, float] | None:
    """The figures of a step; None of any other line."""
    with suppress(ValueError):
        read = json.loads(line)
        if isinstance(read, dict) and "step" in read and "model" not in read:
            return read
    return None


def _watched(started: Sequence[subprocess.Popen[str]]) -> int | None:
    """Wait until all are done, or one has failed: its number."""
    while True:
        codes = [process.poll() for process in started]
        if any(codes):  # one that was killed is the cause of what the others say
            return codes.index(-signal.SIGKILL) if -signal.SIGKILL in codes else codes.index(next(filter(None, codes)))
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.05)


def _end(started: Sequence[subprocess.Popen[str]]) -> None:
    """End those that still run: asked first, which one that waits for another cannot hear, then killed."""
    failed = any(process.poll() not in (None, 0, INTERRUPTED) for process in started)
    until = time.monotonic() + (1 if failed else GRACE)
    _signal(started, signal.SIGTERM)
    while any(process.poll() is None for process in started) and time.monotonic() < until:
        time.sleep(0.05)
    _signal(started, signal.SIGKILL)
    for process in started:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _signal(started: Sequence[subprocess.Popen[str]], kind: signal.Signals) -> None:
    for process in started:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, kind)


def _error(code: int, rank: int, lines: Sequence[str]) -> InputError | WorkError:
    """The failure of a process: the sentence that it said, or how it ended."""
    said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), None)
    if code == -signal.SIGKILL or (said is None and code < 0):
        name = signal.Signals(-code).name
        said = f"process {rank} of the training was killed ({name}), which the system does when memory runs out"
    if said is None:
        last = next((line for line in reversed(lines) if line.strip()), f"it ended with code {code}")
        said = f"process {rank} of the training failed: {last[:300]}"
    return InputError(said) if code == InputError("").exit_code else WorkError(said)


def leashed() -> None:
    """End this process when the one that started it is gone: its end of the standard input is then closed."""
    if os.environ.get(LEASH) != "1":
        return

    def wait() -> None:
        while os.read(0, 1):  # not by `sys.stdin`, whose lock would abort the interpreter at its end
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
