"""The Python interface: the same path as the command line, in scripts and where an event loop runs already."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from echo import Echo, write_project
from serving import serve

import rlaif
from rlaif.errors import InputError
from rlaif.formats import read_preferences


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
