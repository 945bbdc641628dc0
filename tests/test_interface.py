"""The Python interface: the same path as the command line, in scripts and where an event loop runs already."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import make_random_model
from echo import Echo, write_project
from serving import serve
from test_faults import slowly

import rlaif
from rlaif.errors import InputError, WorkError
from rlaif.formats import read_preferences
from rlaif.pipeline.interface import FinishedRun


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve({name: Echo(name) for name in ("one", "two", "judge")}) as url:
        yield url


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> Path:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, url)
    return tmp_path


def test_a_run_is_planned_run_and_read(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = rlaif.plan("echo.yaml")
    assert planned["calls"]["judge"] == planned["calls"]["judge"] | {"calls": 40, "paid": 0}
    assert not (project / "runs").exists()
    run = rlaif.run("echo.yaml")
    assert "pair: done" in capsys.readouterr().err
    assert (run.state, len(run.rows), run.path) == ("done", 20, Path("runs/echo"))
    assert run.rows[0].ratings and run.rows[-1].prompt == list(run.rows)[-1].prompt
    assert [row.prompt.id for row in run.rows[:3]] == [row.prompt.id for row in run.rows][:3]
    assert run.rows_of("sample")[0].ratings == ()
    written = read_preferences(next(Path("runs/echo/dataset/preference/data").glob("*.parquet"))).items
    assert [p.chosen.completion.text for p in run.preferences] == [p.chosen for p in written]
    assert (run.summary, run.models) == (None, {})
    with pytest.raises(IndexError, match="index 20 of 20 records"):
        run.rows[20]
    assert rlaif.plan("echo.yaml")["calls"]["judge"] == planned["calls"]["judge"] | {
        "paid": 40, "prompt_tokens": 0, "max_completion_tokens": 0, "max_cost": 0.0,
    }  # fmt: skip


def test_overrides_are_those_of_the_command_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = rlaif.run("echo.yaml", out="mine", quiet=True, seed=7, stages__prompts__prompts__take=3)
    assert capsys.readouterr() == ("", "")
    assert len(run.rows) == 3 and "seed: 7" in Path("mine/pipeline.yaml").read_text()
    command = [sys.executable, "-m", "rlaif.cli", "run", "echo.yaml", "--out", "theirs", "--json", "seed=7"]
    done = subprocess.run([*command, "stages.prompts.prompts.take=3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digests"] == run.manifest["digests"]
    with pytest.raises(InputError, match="`stages.prompts.prompts.taek`"):
        rlaif.plan("echo.yaml", stages__prompts__prompts__taek=3)


def test_it_works_where_an_event_loop_runs_already(project: Path) -> None:
    async def notebook() -> tuple[int, int]:
        planned = rlaif.plan("echo.yaml")
        run = rlaif.run("echo.yaml", quiet=True)
        with pytest.raises(InputError, match="no file or folder 'nothing.yaml'"):
            rlaif.run("nothing.yaml")
        return planned["calls"]["judge"]["calls"], len(run.preferences)

    calls, preferences = asyncio.run(notebook())
    assert calls == 40 and preferences > 10


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run in"):
        rlaif.load(tmp_path)


def test_the_documents_examples_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = Path(__file__).parent.parent / "docs/python.md"
    examples = re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    Path("echo.yaml").rename("pipeline.yaml")
    for example in examples:
        exec(compile(example, str(document), "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("done\n") and printed.count("  + ") == 3
    assert "judge: 20 calls to send" in printed  # another seed than the run's
    assert printed.endswith("0 ratings could not be read; no row failed\n")


@pytest.mark.parametrize("loop_of", ["a notebook", "asyncio.run"])
def test_an_interruption_beside_a_running_loop_ends_with_what_is_finished(loop_of: str, project: Path) -> None:
    """The first Ctrl-C: calls in flight are waited for, and the run folder is returned."""
    slow = {name: Echo(name) for name in ("one", "two", "judge")}
    for model in slow.values():
        slowly(model, 0.05)
    with serve(slow) as url:
        write_project(project, url, prompts=60)
        main = threading.get_ident()

        def interrupt() -> None:
            while sum(len(model.asked) for model in slow.values()) < 40:
                time.sleep(0.01)
            signal.pthread_kill(main, signal.SIGINT)

        async def called() -> FinishedRun:
            return rlaif.run("echo.yaml", quiet=True, **{f"models__{name}__concurrency": 4 for name in slow})

        threading.Thread(target=interrupt).start()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with asyncio.Runner() as runner:
                run = (
                    runner.run(called()) if loop_of == "asyncio.run" else runner.get_loop().run_until_complete(called())
                )
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGINT, before)
    assert run.state == "stopped" and 0 < len(run.rows_of("sample")) < 60


def test_two_runs_at_once_leave_the_garbage_collector_as_it_was(project: Path) -> None:
    before, runs = gc.get_threshold(), []
    threads = [
        threading.Thread(target=lambda out=out: runs.append(rlaif.run("echo.yaml", out=out, quiet=True)))
        for out in ("a", "b", "c")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.state for run in runs] == ["done"] * 3 and gc.get_threshold() == before


def test_a_manifest_that_is_gone_is_an_error(project: Path) -> None:
    run = rlaif.run("echo.yaml", quiet=True)
    (run.path / "manifest.json").unlink()
    with pytest.raises(WorkError, match=r"manifest\.json is gone"):
        run.state  # noqa: B018


def write_training(project: Path, epochs: int) -> None:
    make_random_model(project / "base")
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(40)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = f"{{base: base, name: trained, epochs: {epochs}, checkpoint_steps: 1}}"
    Path("train.yaml").write_text(
        "name: train\nmodels: {base: {engine: transformers, path: base}}\n"
        f"stages:\n  - data: {{path: data.jsonl}}\n  - train: {{sft: {sft}}}\n"
    )


def test_a_persons_model_folder_ends_a_run_before_its_first_stage(project: Path) -> None:
    write_training(project, 1)
    (model,) = rlaif.run("train.yaml", quiet=True).models.values()
    shutil.rmtree(model)
    model.mkdir()
    (model / "notes.txt").write_text("mine")
    state = Path("runs/train/manifest.json").read_bytes()
    with pytest.raises(InputError, match="models/trained: the folder is there, and no training made it"):
        rlaif.run("train.yaml", quiet=True, stages__trained__train__sft__epochs=2)
    assert (model / "notes.txt").read_text() == "mine" and Path("runs/train/manifest.json").read_bytes() == state


def test_an_interruption_of_a_training_in_a_notebook_ends_it_at_a_step(project: Path) -> None:
    write_training(project, 2000)
    main, job = threading.get_ident(), project / "runs/train/models/trained.partial"

    def interrupt() -> None:
        while not list(job.glob("checkpoint*")):
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    async def notebook() -> None:
        rlaif.run("train.yaml", quiet=True)

    threading.Thread(target=interrupt).start()
    before, loop = signal.signal(signal.SIGINT, signal.default_int_handler), asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(notebook())
    finally:
        signal.signal(signal.SIGINT, before)
        loop.close()
    assert rlaif.load("runs/train").state == "interrupted" and (job / "job.json").is_file()
    assert [thread.name for thread in threading.enumerate() if thread.name == "rlaif"] == []
