"""Signals, full disks and small limits: the process ends with a code that a shell knows, a sentence at most, and all
finished work kept.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import Echo, write_project, write_prompts
from inside import rlaif
from serving import serve

from rlaif.cli.ending import Ending, Handled, leave, too_little
from rlaif.config import read_pipeline
from rlaif.errors import WorkError
from rlaif.pipeline import interface, loop
from rlaif.pipeline.progress import Silent
from rlaif.pipeline.start import open_run

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from rlaif.cli import main; main()"]  # as the installed script has it
NAMES = ("one", "two", "judge")
PROMPTS = 12


class Server:
    """The models of a project, and how long each answer takes."""

    def __init__(self) -> None:
        self.models, self.pause, self.url = {name: Echo(name) for name in NAMES}, 0.0, ""
        for model in self.models.values():
            model.sample = self._slowly(model.sample)  # type: ignore[method-assign]

    def _slowly(self, sample: Callable[..., Any]) -> Callable[..., Any]:
        async def slow(requests: Any) -> Any:
            await asyncio.sleep(self.pause)
            return await sample(requests)

        return slow

    def asked(self) -> int:
        """Samples that were asked for, without probes."""
        every = (request for model in self.models.values() for request in model.asked)
        return sum(len(request.indices) for request in every if request.sampling.max_tokens > 16)


@pytest.fixture(scope="module")
def only_server() -> Iterator[Server]:
    server = Server()
    with serve(server.models) as server.url:
        yield server


@pytest.fixture
def server(only_server: Server) -> Server:
    only_server.pause = 0.0
    for model in only_server.models.values():
        model.asked.clear()
    return only_server


@pytest.fixture
def project(server: Server, tmp_path: Path) -> Path:
    write_project(tmp_path, server.url, prompts=PROMPTS)
    return tmp_path


@pytest.fixture(scope="module")
def finished_once(only_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_project(folder, only_server.url, prompts=PROMPTS)
    assert rlaif(folder, "run", "echo.yaml").code == 0
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A copy of a finished project."""
    return shutil.copytree(finished_once, tmp_path / "finished")


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def start(where: Path, *arguments: str, limits: dict[int, int] | None = None, **env: str) -> subprocess.Popen[str]:
        def limited() -> None:
            for limit, value in (limits or {}).items():
                resource.setrlimit(limit, (value, value))

        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "160"} | env
        process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=where, env=environment, preexec_fn=limited, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def slow(*values: Any) -> list[Any]:
    """More of the same, each a process: for the lab."""
    marks = pytest.mark.lab
    return [pytest.param(*value, marks=marks) if isinstance(value, tuple) else pytest.param(value, marks=marks)
            for value in values]  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in out + err and "Exception ignored" not in err and "KeyboardInterrupt" not in err, err
    return process.returncode, out, err


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def state(project: Path) -> str:
    return str(json.loads((project / "runs/echo/manifest.json").read_text())["state"])


# ---------------------------------------------------------------- signals

ENDINGS = {"SIGINT": (signal.SIGINT, 130), "SIGTERM": (signal.SIGTERM, 143), "SIGHUP": (signal.SIGHUP, 129)}
NARROW = [f"models.{name}.concurrency=4" for name in NAMES]


@pytest.mark.parametrize("name", ENDINGS)
def test_a_signal_ends_a_run_orderly(name: str, project: Path, server: Server, started: Any) -> None:
    number, code = ENDINGS[name]
    server.pause = 0.05
    process = started(project, "run", "echo.yaml", *NARROW)
    until(lambda: server.asked() > 20)
    process.send_signal(number)
    got, out, _ = ended(process)
    assert got == code and state(project) == "stopped" and "run the same command again to continue" in out
    server.pause = 0.0
    assert rlaif(project, "run", "echo.yaml").code == 0
    assert server.asked() == 6 * PROMPTS and state(project) == "done"


def test_many_ctrl_c_end_at_once_and_lose_nothing_that_arrived(project: Path, server: Server, started: Any) -> None:
    server.pause = 0.2
    process = started(project, "run", "echo.yaml", *NARROW)
    until(lambda: server.asked() > 10)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    code, _, _ = ended(process)
    assert code in (130, -2) and state(project) in ("interrupted", "running")
    server.pause = 0.0
    assert rlaif(project, "run", "echo.yaml").code == 0


@pytest.mark.parametrize("moment", [0.02, *slow(0.01, 0.03, 0.05, 0.1, 0.2)])
def test_ctrl_c_while_the_program_is_loaded_is_silent(moment: float, tmp_path: Path, started: Any) -> None:
    """The moment counts from the first lines of ours: what Python does before them is not."""
    began = tmp_path / "began"
    script = f"from rlaif.cli import main; open({str(began)!r}, 'w').close(); main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--help"],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until(began.exists)
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code in (0, 130) and err in ("", INTERRUPTED_LINE)


INTERRUPTED_LINE = "error: interrupted; finished work is kept, run the same command again to continue\n"


def test_nothing_is_imported_before_signals_are_attended_to() -> None:
    """Each module costs time in which Ctrl-C shows a traceback."""
    script = "import sys; before = set(sys.modules); import rlaif.cli; print(*(set(sys.modules) - before))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert sorted({*done.stdout.split()} - {"__future__", "_signal"}) == ["rlaif", "rlaif.cli", "rlaif.cli.ending"]


@pytest.mark.parametrize(
    ("name", "command"),
    [("SIGINT", "plan echo.yaml"), ("SIGTERM", "audit echo.yaml"), ("SIGHUP", "cache prune --older-than 0"),
     *slow(("SIGTERM", "plan echo.yaml"), ("SIGHUP", "plan echo.yaml"), ("SIGINT", "audit echo.yaml"),
           ("SIGINT", "cache prune --older-than 0"), ("SIGTERM", "cache verify"))],
)  # fmt: skip
def test_a_signal_ends_any_command(command: str, name: str, project: Path, started: Any) -> None:
    """At a moment in the middle of its imports, which are most of a short command."""
    number, code = ENDINGS[name]
    process = started(project, *command.split())
    time.sleep(0.3)
    process.send_signal(number)
    got, _, err = ended(process)
    assert got in (code, -number, 0, 1) and err.count("\n") <= 1  # or it had ended, or not begun


def test_nohup_stays_deaf(project: Path, server: Server, started: Any) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a child inherits what is ignored
    server.pause = 0.02
    process = started(project, "run", "echo.yaml", *NARROW)
    signal.signal(signal.SIGHUP, before)
    until(lambda: server.asked() > 20)
    process.send_signal(signal.SIGHUP)
    assert ended(process)[0] == 0 and state(project) == "done"


def test_ctrl_z_pauses_and_loses_nothing(project: Path, server: Server, started: Any) -> None:
    """Calls in flight are past their time when the process wakes: they are sent again."""
    server.pause = 0.1
    impatient = [f"models.{name}.timeout=0.5" for name in NAMES]
    process = started(project, "run", "echo.yaml", *NARROW, *impatient)
    until(lambda: server.asked() > 10)
    process.send_signal(signal.SIGSTOP)  # what a shell's Ctrl-Z comes to
    time.sleep(1.0)
    server.pause = 0.0
    process.send_signal(signal.SIGCONT)
    code, out, _ = ended(process)
    found = json.loads((project / "runs/echo/manifest.json").read_text())
    assert code == 0 and found["state"] == "done" and not found["failures"], out
    assert all(call["failed"] == 0 for call in found["calls"].values())


@pytest.mark.parametrize("command", ["show runs/echo --json", *slow("status runs/echo --json", "--help")])
def test_a_reader_that_has_ended_is_silent(command: str, finished: Path, started: Any) -> None:
    process = started(finished, *command.split())
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert err == "" and process.returncode in (0, 1)


def test_a_signal_while_the_one_before_is_attended_to() -> None:
    """SIGTERM interrupts where SIGINT does, once, and is told apart by the code."""
    with pytest.raises(SystemExit) as exit_, Ending():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert exit_.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(5)


class Finalised:
    def __del__(self) -> None:
        interrupt()


def printed(work: Callable[[], object]) -> None:
    """As C's PyErr_Print has it, which pydantic's patterns come to."""
    try:
        work()
    except KeyboardInterrupt as error:
        sys.excepthook(type(error), error, None)


LOSERS: dict[str, Callable[[], object]] = {
    "a finaliser": lambda: Finalised() and None,
    "a callback of compiled code": ctypes.CFUNCTYPE(None)(interrupt),
    "what prints an exception and goes on": lambda: printed(interrupt),
}


@pytest.mark.parametrize("loser", LOSERS)
@pytest.mark.parametrize("rest", [5.0, 0.0], ids=["with work to do", "at the end"])
def test_an_interruption_that_compiled_code_loses_comes_again(loser: str, rest: float, capfd: Any) -> None:
    before = sys.unraisablehook, sys.excepthook
    began = time.monotonic()
    with pytest.raises(SystemExit) as exit_, Ending():
        LOSERS[loser]()
        time.sleep(rest)
    assert exit_.value.code == 129 and time.monotonic() - began < 4
    assert (sys.unraisablehook, sys.excepthook) == before and capfd.readouterr() == ("", "")


@pytest.mark.lab
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ENDINGS)
def test_a_signal_at_any_moment_ends_a_plan(name: str, project: Path, started: Any) -> None:
    """By the process's own time: in its imports, in the checks of the file, in what it prints."""
    number, code = ENDINGS[name]
    interrupted = 0
    for moment in range(30):
        process = started(project, "plan", "echo.yaml")
        while process.poll() is None and cpu_of(process) < 0.08 + moment / 20:
            time.sleep(0.005)
        process.send_signal(number)
        got, out, err = ended(process)
        assert got in (code, 0, -number) and (got or "tokens" in out) and err in ("", INTERRUPTED_LINE)
        interrupted += got == code
    assert interrupted >= 10


def cpu_of(process: subprocess.Popen[str]) -> float:
    """Seconds of the processor that a process has used."""
    user, system = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_sigterm_ends_a_job_whose_ctrl_c_is_ignored() -> None:
    """A script's background job ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as exit_, Ending():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert exit_.value.code == 143


def test_handlers_are_given_back_and_other_threads_have_none() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job ignores it
    try:
        with Handled({signal.SIGINT: leave}):
            assert signal.getsignal(signal.SIGINT) is leave
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    said: list[Any] = []

    def elsewhere() -> None:
        with Handled({signal.SIGINT: leave}):
            said.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert said == [before]


# ---------------------------------------------------------------- interruptions in a notebook


def test_an_interruption_before_the_first_stage_is_acted_on(project: Path, monkeypatch: Any, server: Server) -> None:
    """The run's thread is interrupted as it begins; today's first stage is not watched yet."""
    monkeypatch.chdir(project)
    run = open_run(read_pipeline("echo.yaml"), None, Silent())
    begin = run._begin

    def interrupted() -> None:
        begin()
        run.interrupts.interrupt()

    monkeypatch.setattr(run, "_begin", interrupted)

    async def in_a_notebook() -> None:
        interface._to_end(run.execute(), run.interrupts.interrupt)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(in_a_notebook())
    assert state(project) == "interrupted" and server.asked() == 0


def test_a_signal_before_the_first_stage_is_acted_on(project: Path, monkeypatch: Any, server: Server) -> None:
    monkeypatch.chdir(project)
    run = open_run(read_pipeline("echo.yaml"), None, Silent())
    begin = run._begin
    monkeypatch.setattr(run, "_begin", lambda: (begin(), os.kill(os.getpid(), signal.SIGINT)))
    assert loop.run_to_end(run.execute()) == state(project) == "stopped"  # heard when the first stage begins
    assert server.asked() == 0


# ---------------------------------------------------------------- full disks


def data_of(project: Path) -> dict[str, bytes]:
    return {path.parent.name + path.name: path.read_bytes() for path in (project / "runs/echo/dataset").rglob("*.*")}


@pytest.mark.parametrize("kilobytes", [4, *slow(1, 8, 24, 48, 64)])
def test_a_disk_that_fills_is_a_sentence_and_loses_nothing(
    kilobytes: int, project: Path, server: Server, started: Any
) -> None:
    """No file may grow beyond so much: temporary files fail first, then the store, as on a disk that is full."""
    code, _, err = ended(started(project, "run", "echo.yaml", limits={resource.RLIMIT_FSIZE: kilobytes * 1024}))
    assert code == 1 and err.count("\n") == 1 and "kept" in err and "Fix: free some" in err, err
    lost = server.asked()
    for model in server.models.values():
        model.asked.clear()
    assert rlaif(project, "run", "echo.yaml").code == 0 and state(project) == "done"
    assert lost + server.asked() >= 6 * PROMPTS >= server.asked()


@pytest.mark.parametrize("kilobytes", [48, *slow(2, 10, 16, 24, 34, 40, 64)])
def test_a_disk_that_fills_while_files_are_written_repeats_no_call(
    kilobytes: int, project: Path, server: Server, started: Any
) -> None:
    """All calls are stored: rows, data sets, cards or the manifest find no room."""
    write_prompts(project, 80)
    assert rlaif(project, "run", "echo.yaml").code == 0
    whole = data_of(project)
    shutil.rmtree(project / "runs/echo")
    for model in server.models.values():
        model.asked.clear()
    code, _, err = ended(started(project, "run", "echo.yaml", limits={resource.RLIMIT_FSIZE: kilobytes * 1024}))
    assert code == 1 and err.count("\n") == 1 and "the disk " in err and "kept" in err and "Fix: free some" in err, err
    assert rlaif(project, "run", "echo.yaml").code == 0
    assert data_of(project) == whole and server.asked() == 0
    assert not list((project / "runs/echo").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("shape", "target"), [("hh", "o1.jsonl"), *slow(("sft", "o1"), ("sft", "o1.jsonl"), ("hh", "o1"))]
)
def test_an_export_onto_a_full_disk_leaves_nothing(shape: str, target: str, finished: Path, started: Any) -> None:
    before = sorted(finished.iterdir())
    command = ["export", "runs/echo", "--format", shape, "--to", target]
    code, _, err = ended(started(finished, *command, limits={resource.RLIMIT_FSIZE: 1024}))
    assert code == 1 and err.count("\n") == 1 and f"'{target}' cannot be written: the disk is full" in err
    assert sorted(finished.iterdir()) == before


def test_a_folder_for_temporary_files_that_is_none_is_named(project: Path, started: Any) -> None:
    (project / "tmp").mkdir()
    write_prompts(project, 300)
    process = started(project, "run", "echo.yaml", TMPDIR=str(project / "tmp"), limits={resource.RLIMIT_FSIZE: 1024})
    code, _, err = ended(process)
    assert (
        code == 1 and err.startswith(f"error: {project / 'tmp'}: temporary files cannot be written") and "TMPDIR" in err
    )


@pytest.mark.parametrize(
    "command", ["show runs/echo 1", *slow("status runs/echo", "cache", "plan echo.yaml", "--help")]
)
def test_what_finds_no_room_on_the_screen_fails(command: str, finished: Path) -> None:
    """`rlaif show RUN 1 > /dev/full`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *command.split()], cwd=finished, env=environment, stdout=full, stderr=subprocess.PIPE
        )
    said = done.stderr.decode()
    assert done.returncode == 1 and said.count("\n") == 1 and "No space left on device" in said


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("files", [20, *slow(10, 16, 40)])
def test_too_few_files_are_a_sentence(files: int, project: Path, server: Server, started: Any) -> None:
    code, _, err = ended(started(project, "run", "echo.yaml", limits={resource.RLIMIT_NOFILE: files}))
    assert code == 1 and err.count("\n") == 1 and " files " in err and "Fix: raise the limit" in err
    assert server.asked() == 0


@pytest.mark.parametrize("megabytes", [50, 300, *slow(40, 80, 150)], ids=lambda size: f"ulimit of {size} MB")
def test_too_little_memory_is_a_sentence(megabytes: int, project: Path, started: Any) -> None:
    """Where a library of compiled code takes the process down by itself, its words are its own."""
    process = started(project, "run", "echo.yaml", limits={resource.RLIMIT_AS: megabytes * 2**20})
    code, _, said = ended(process)
    err = "".join(line for line in said.splitlines(keepends=True) if not line.startswith("<jemalloc>"))
    assert code <= 1
    if code == 0:
        assert megabytes > 50 and (project / "runs/echo/dataset").is_dir(), "it says done without having worked"
    elif code == 1:
        assert err.startswith("error: ") and " Fix: " in err and err.count("\n") == 1
        assert megabytes > 50 or "there is not enough memory; finished work is kept. Fix: raise the limit" in err


def test_no_memory_for_a_thread_is_not_the_server_s_fault(project: Path, server: Server) -> None:
    """The limit is what is in use when the client is built, which starts threads."""
    script = (
        "import resource\n"
        "from rlaif.engines.wire import Wire\n"
        "built = Wire._opened\n"
        "def limited(*arguments):\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 2**20\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used, used))\n"
        "    return built(*arguments)\n"
        "Wire._opened = limited\n"
        "from rlaif.cli import main; main()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "import pyreqwest.client, pyreqwest.exceptions\n" + script, "run", "echo.yaml"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "cannot reach" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: there is not enough memory; finished work is kept. Fix: ")
    assert server.asked() == 0


LITTLE: dict[str, tuple[BaseException, str | None]] = {
    "no memory": (MemoryError(), "not enough memory"),
    "no thread": (RuntimeError("can't start new thread"), "not enough memory"),
    "a library that is not mapped": (ImportError("libx.so: failed to map segment"), "not enough memory"),
    "a library that is not allocated": (OSError(12, "Cannot allocate memory"), "not enough memory"),
    "no files": (OSError(24, "Too many open files"), "too many files are open"),
    "a library that is missing": (ImportError("No module\nnamed x"), "cannot be loaded: No module named x"),
    "another error": (RuntimeError("the sky fell"), None),
    "another error of the system": (OSError(28, "No space left on device"), None),
}


@pytest.mark.parametrize("name", LITTLE)
def test_what_the_system_lacks_is_named(name: str) -> None:
    error, words = LITTLE[name]
    said = too_little(error)
    assert said is None if words is None else (said is not None and words in said and "\n" not in said)


def test_a_loop_is_not_begun_with_too_few_files(monkeypatch: Any) -> None:
    monkeypatch.setattr(loop, "LEAST_FILES", 10**9)

    async def work() -> None: ...

    with pytest.raises(WorkError, match="too few to start"):
        loop.run_to_end(work())
