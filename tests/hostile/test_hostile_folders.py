"""People's files: what a run, a training or an export did not make stays as it is, or stops it with a sentence."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from echo import Echo, write_project
from inside import Done, rlaif
from serving import serve

import rlaif as interface
from rlaif.errors import InputError
from rlaif.files import MOST_RECORDED
from rlaif.formats.write.dataset import PARQUET

MINE = "mine, of many years"


class Place(NamedTuple):
    """A finished project with a run, and a folder of somebody's elsewhere."""

    project: Path
    run: Path
    elsewhere: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("made")
    with serve({name: Echo(name) for name in ("one", "two", "judge")}) as url:
        write_project(folder, url, prompts=3)
        assert rlaif(folder, "run", "echo.yaml").code == 0
        yield folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shutil.copytree(made, tmp_path / "p")
    (tmp_path / "elsewhere/data").mkdir(parents=True)
    for name in ("thesis.txt", "README.md", PARQUET, "manifest.json", "key", "02-sample.jsonl", "events.jsonl"):
        (tmp_path / "elsewhere" / name).write_text(MINE)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Place(tmp_path / "p", tmp_path / "p/runs/echo", tmp_path / "elsewhere")


def content(folder: Path) -> dict[str, str | bytes | None]:
    """All that is in a folder: links by where they lead, files by their bytes."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def one_sentence(done: Done) -> bool:
    return done.err.count("\n") == 1 and done.err.startswith("error: ") and "Traceback" not in done.out + done.err


def refused(done: Done, *words: str) -> bool:
    return (
        done.code in (1, 2) and one_sentence(done) and "Fix: " in done.err and all(word in done.err for word in words)
    )


# ---------------------------------------------------------------- what lies in a run folder


def file(name: str, text: str = MINE) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        path = place.run / name.format(pid=os.getpid())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return plant


def link(name: str, to: str = "") -> Callable[[Place], None]:
    """A link in the place of what the run made, to a folder or a file of somebody's."""

    def plant(place: Place) -> None:
        path = place.run / name.format(pid=os.getpid())
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(place.elsewhere / to)

    return plant


def hard(name: str) -> Callable[[Place], None]:
    """Another name, elsewhere, of a file that the run made: a backup's, say."""

    def plant(place: Place) -> None:
        os.link(place.run / name, place.elsewhere / "backup")

    return plant


def instead(name: str, make: Callable[[Path], Any]) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        path = place.run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(path)

    return plant


def export(shape: str, name: str) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        done = rlaif(place.project, "export", "runs/echo", "--format", shape, "--to", f"runs/echo/{name}")
        assert done.code == 0, done

    return plant


def folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text(MINE)


KEPT: dict[str, Callable[[Place], None]] = {
    "a folder in dataset": file("dataset/mine/thesis.txt"),
    "a file in dataset": file("dataset/thesis.txt"),
    "a file in a data set": file("dataset/sft/thesis.txt"),
    "another Parquet file in a data set": file("dataset/sft/data/mine.parquet"),
    "a hidden file in a data set": file("dataset/sft/.mine.tmp"),
    "a hidden file in a data set's data": file("dataset/sft/data/.mine.tmp"),
    "a file in stages": file("stages/notes.jsonl"),
    "a file in stages, named as a stage's": file("stages/99-mine.jsonl"),
    "a partial file in stages": file("stages/99-mine.partial.jsonl"),
    "a folder in stages": file("stages/mine/thesis.txt"),
    "a file in report": file("report/notes.md"),
    "a report of another tool": file("report/summary.json"),
    "models/d.old": file("models/d.old/thesis.txt"),
    "a log of somebody's": file("libraries.log"),
    "a model of somebody's": file("models/d/model.safetensors"),
    "a file in the run": file("thesis.txt"),
    "a folder in the run": file("mine/thesis.txt"),
    "a link in dataset": link("dataset/linked"),
    "a link in the run": link("linked"),
    "an export in dataset/hh": export("hh", "dataset/hh"),
    "an export in the run": export("sft", "o1"),
    "an export in models": export("preference", "models/o1"),
    "an export in stages": export("rewardbench", "stages/o1.jsonl"),
    "a link where the manifest is prepared": link(".manifest.json.tmp", "thesis.txt"),
    "a link where the pipeline is prepared": link(".pipeline.yaml.tmp", "thesis.txt"),
    "a link where a card is prepared": link("dataset/sft/.README.md.{pid}.tmp", "thesis.txt"),
    "a link where data is prepared": link("dataset/sft/data/.train-00000-of-00001.parquet.{pid}.tmp", "thesis.txt"),
    "a link where rows are sorted": link("stages/.02-sample.jsonl.tmp", "thesis.txt"),
    "a backup of the events": hard("events.jsonl"),
    "a backup of the manifest": hard("manifest.json"),
    "a backup of the rows": hard("stages/02-sample.jsonl"),
    "a backup of a card": hard("dataset/sft/README.md"),
    "a backup of data": hard(f"dataset/sft/{PARQUET}"),
    "a backup of the lock": hard(".lock"),
}  # fmt: skip
STOPS: dict[str, tuple[Callable[[Place], None], str]] = {
    "dataset is a link": (link("dataset"), "it is a link"),
    "stages is a link": (link("stages"), "it is a link"),
    "models is a link": (link("models"), "it is a link"),
    "report is a link": (link("report"), "it is a link"),
    "a data set is a link": (link("dataset/sft"), "no run made it"),
    "a data set's data is a link": (link("dataset/sft/data", "data"), "no run made it"),
    "a data set's file is a link": (link(f"dataset/sft/{PARQUET}", "thesis.txt"), "no run made it"),
    "a card is a link": (link("dataset/sft/README.md", "README.md"), "no run made it"),
    "a stage's file is a link": (link("stages/02-sample.jsonl", "02-sample.jsonl"), "no run made it"),
    "a partial file is a link": (link("stages/02-sample.partial.jsonl", "thesis.txt"), "no run made it"),
    "the manifest is a link": (link("manifest.json", "manifest.json"), "manifest.json"),
    "the pipeline is a link": (link("pipeline.yaml", "thesis.txt"), "it is a link"),
    "the events are a link": (link("events.jsonl", "events.jsonl"), "it is a link"),
    "the log is a link": (link("libraries.log", "thesis.txt"), "it is a link"),
    "the log is a pipe": (instead("libraries.log", os.mkfifo), "it is no file"),
    "the lock is a link": (link(".lock", "thesis.txt"), "it is a link"),
    "the lock has content": (file(".lock"), "not a lock"),
    "the lock is a pipe": (instead(".lock", os.mkfifo), "it is no file"),
    "the lock is a folder": (instead(".lock", folder), "it is no file"),
    "the events are a pipe": (instead("events.jsonl", os.mkfifo), "it is no file"),
    "the events are a folder": (instead("events.jsonl", folder), "it is no file"),
    "the manifest is a pipe": (instead("manifest.json", os.mkfifo), "it is a pipe"),
    "the manifest is a folder": (instead("manifest.json", folder), "manifest.json"),
    "the pipeline is a folder": (instead("pipeline.yaml", folder), "it is no file"),
    "stages is a file": (instead("stages", lambda path: path.write_text(MINE)), "it is no folder"),
    "dataset is a file": (instead("dataset", lambda path: path.write_text(MINE)), "it is no folder"),
    "report is a pipe": (instead("report", os.mkfifo), "it is no folder"),
    "a data set is a file": (instead("dataset/sft", lambda path: path.write_text(MINE)), "no run made it"),
    "a data set's data is a file": (instead("dataset/sft/data", lambda path: path.write_text(MINE)), "no run made it"),
    "a card is a folder": (instead("dataset/sft/README.md", folder), "no run made it"),
    "a stage's file is a folder": (instead("stages/02-sample.jsonl", folder), "no run made it"),
    "a stage's file is a pipe": (instead("stages/02-sample.jsonl", os.mkfifo), "no run made it"),
    "a partial file is a folder": (instead("stages/03-rate.partial.jsonl", folder), "no run made it"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_a_person_put_into_a_run_folder_stays(name: str, place: Place) -> None:
    before = set(content(place.run))
    KEPT[name](place)
    mine = {name: value for name, value in content(place.run).items() if name not in before and ".tmp" not in name}
    elsewhere = content(place.elsewhere)
    done = rlaif(place.project, "run", "echo.yaml")
    assert done.code == 0, done
    assert mine.items() <= content(place.run).items() and content(place.elsewhere) == elsewhere


@pytest.mark.parametrize("name", STOPS)
def test_a_stranger_in_the_place_of_what_a_run_writes_stops_it(name: str, place: Place) -> None:
    plant, words = STOPS[name]
    plant(place)
    before = content(place.run), content(place.elsewhere)
    assert refused(done := rlaif(place.project, "run", "echo.yaml"), words, "runs/echo"), done
    assert (content(place.run), content(place.elsewhere)) == before


NEW_STAGE: dict[str, Callable[[Place], None]] = {
    "its rows, by somebody": file("stages/05-mine.jsonl"),
    "its rows, half written": file("stages/05-mine.partial.jsonl"),
    "its data set, by somebody": file("dataset/mine-sft/README.md"),
    "its data set's file": file(f"dataset/mine-preference/{PARQUET}"),
    "its data set, exported": export("sft", "dataset/mine-sft"),
    "its data set, a link": link("dataset/mine-ultrafeedback"),
}


@pytest.mark.parametrize("name", NEW_STAGE)
def test_a_stage_that_is_new_replaces_nothing(name: str, place: Place) -> None:
    pipeline = place.project / "echo.yaml"
    pipeline.write_text(pipeline.read_text() + "  - pair: {name: mine, rule: best-worst, from: rate}\n")
    NEW_STAGE[name](place)
    before = content(place.run), content(place.elsewhere)
    assert refused(done := rlaif(place.project, "run", "echo.yaml"), "no run made it", "mine", "move it"), done
    assert (content(place.run), content(place.elsewhere)) == before


def test_a_report_of_somebodys_is_not_replaced(place: Place) -> None:
    pipeline = place.project / "echo.yaml"
    pipeline.write_text(pipeline.read_text() + "  - elo: {}\n")
    file("report/elo.json")(place)
    done = rlaif(place.project, "run", "echo.yaml")
    assert done.code == 2 and (place.run / "report/elo.json").read_text() == MINE, done


@pytest.mark.parametrize("lost", [True, False])
def test_rows_without_a_manifest_are_known_by_their_content(lost: bool, place: Place) -> None:
    (place.run / "manifest.json").unlink()
    if not lost:
        file("stages/02-sample.jsonl")(place)
    done = rlaif(place.project, "run", "echo.yaml")
    assert done.code == 0 if lost else refused(done, "02-sample.jsonl", "no run made it"), done
    assert lost or (place.run / "stages/02-sample.jsonl").read_text() == MINE


# ---------------------------------------------------------------- manifests of somebody's

AWAY = ["../../echo.yaml", "stages/../../../echo.yaml", "dataset/../../..", "dataset/sft/../../../../../elsewhere",
        "/etc/passwd", "~/thesis.txt", "stages/01-x.jsonl/../../pipeline.yaml", "dataset/\0", "dataset/sft\n", "",
        ".", "models/d", "report/summary.json", "dataset/.hidden", "stages/-.jsonl", "manifest.json", 7, None, [], {},
        "dataset/" + "x" * 9000, "dataset/ｓｆｔ"]  # fmt: skip


def edited(place: Place, **changes: Any) -> None:
    manifest = place.run / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


@pytest.mark.parametrize("what", AWAY, ids=lambda what: repr(what)[:40])
def test_a_manifest_that_names_other_files_removes_none(what: Any, place: Place) -> None:
    """The pipeline loses its last stages, so that the run removes what earlier ones made."""
    made = json.loads((place.run / "manifest.json").read_text())["made"]
    edited(place, made=[*made, what])
    pipeline = place.project / "echo.yaml"
    pipeline.write_text(pipeline.read_text().partition("  - rate:")[0])
    for name in ("models/d/thesis.txt", "report/summary.json"):
        file(name)(place)
    done = rlaif(place.project, "run", "echo.yaml")
    assert done.code == 0 or one_sentence(done), done
    assert pipeline.exists() and set(content(place.elsewhere).values()) == {MINE.encode()}
    assert (place.run / "models/d/thesis.txt").exists() and (place.run / "report/summary.json").exists()


def test_made_through_a_link_is_not_removed(place: Place) -> None:
    link("dataset/sft/data", "data")(place)
    pipeline = place.project / "echo.yaml"
    pipeline.write_text(pipeline.read_text().partition("  - pair:")[0])
    rlaif(place.project, "run", "echo.yaml")
    assert (place.elsewhere / PARQUET).read_text() == MINE


STRANGE: dict[str, bytes | Callable[[dict[str, Any]], Any]] = {
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "no JSON": b"name: echo",
    "half": b'{"format": 1, "name": "ec',
    "empty": b"",
    "no UTF-8": b"\xff\xfe\x00",
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "huge": b'{"format": 1, "name": "' + b"x" * MOST_RECORDED + b'"}',
    "a number of a million digits": b'{"format": ' + b"1" * 1_000_000 + b"}",
    "of a newer version": lambda m: m | {"format": 2},
    "without a name": lambda m: {key: value for key, value in m.items() if key != "name"},
    "a list for a name": lambda m: m | {"name": ["echo"]},
    "a number for a state": lambda m: m | {"state": 5},
    "words for seconds": lambda m: m | {"seconds": "long"},
    "an object for stages": lambda m: m | {"stages": {}},
    "words for stages": lambda m: m | {"stages": ["sample"]},
    "a stage without a kind": lambda m: m | {"stages": [{"name": "x"}]},
    "words for a count": lambda m: m | {"stages": [m["stages"][0] | {"in": "many"}]},
    "a stage's file outside": lambda m: m | {"stages": [s | {"file": "../../echo.yaml"} for s in m["stages"]]},
    "a stage's file at the root": lambda m: m | {"stages": [s | {"file": "/etc/passwd"} for s in m["stages"]]},
    "a number for dropped": lambda m: m | {"stages": [s | {"dropped": 3} for s in m["stages"]]},
    "a list for calls": lambda m: m | {"calls": []},
    "words for a model's calls": lambda m: m | {"calls": {"one": "many"}},
    "numbers for digests": lambda m: m | {"digests": {"model one": 5}},
    "a model without its counts": lambda m: m | {"calls": {"one": {}}},
    "a list for a stage's seconds": lambda m: m | {"stages": [s | {"seconds": [1]} for s in m["stages"]]},
    "a number of 400 digits for a stage's seconds": lambda m: m
    | {"stages": [s | {"seconds": 10**400} for s in m["stages"]]},
    "a number of 400 digits for seconds": lambda m: m | {"seconds": 10**400},
    "null for a count of dropped": lambda m: m | {"stages": [s | {"dropped": {"x": None}} for s in m["stages"]]},
    "words for preferences": lambda m: m | {"stages": [s | {"preferences": "\x1b[2J"} for s in m["stages"]]},
    "words for failures": lambda m: m | {"failures": {"x": "y"}},
    "a failure without its count": lambda m: m | {"failures": {"x": {"row": "a", "example": "b"}}},
    "a list for prices": lambda m: m | {"prices": []},
    "words for a price": lambda m: m | {"prices": {"m": {"prompt": "x", "completion": "y"}}},
    "a list for capabilities": lambda m: m | {"capabilities": []},
    "an object for notes": lambda m: m | {"notes": {}},
    "an object for made": lambda m: m | {"made": {}},
    "an object for reasons": lambda m: m | {"reasons": {}},
    "a number for an origin": lambda m: m | {"origin": 7},
    "an origin that is a device": lambda m: m | {"origin": "file ../../../../../../../../dev/zero"},
    "an origin that no path can be": lambda m: m | {"origin": "file \0"},
    "an origin without a file": lambda m: m | {"origin": "file"},
    "a list for a rule": lambda m: m | {"stages": [s | {"rule": []} for s in m["stages"]]},
    "a number of 400 digits for a margin": lambda m: m | {"stages": [s | {"min_margin": 10**400} for s in m["stages"]]},
    "a number of 400 digits for what was paid": lambda m: m
    | {"paid": {"x": [10**400, 1]}, "prices": {"x": {"prompt": 0.5, "completion": 1}}},
    "a number of 400 digits for a price": lambda m: m
    | {"paid": {"x": [1, 1]}, "prices": {"x": {"prompt": 10**400, "completion": 0.5}}},
    "null everywhere": lambda m: dict.fromkeys(m) | {"format": 1},
}  # fmt: skip


def test_a_manifest_that_is_too_large_is_no_full_disk(place: Place) -> None:
    (place.run / "manifest.json").write_bytes(STRANGE["huge"])
    done = rlaif(place.project, "status", "runs/echo")
    assert done.code == 1 and "cannot be read: it is larger than 16 MB. Fix: " in done.err, done


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_manifest_is_a_sentence(name: str, place: Place) -> None:
    manifest, strange = place.run / "manifest.json", STRANGE[name]
    manifest.write_bytes(
        strange if isinstance(strange, bytes) else json.dumps(strange(json.loads(manifest.read_text()))).encode()
    )
    before = content(place.run)
    for command in (["status", "runs/echo"], ["show", "runs/echo", "--dropped"], ["run", "echo.yaml"]):
        done = rlaif(place.project, *command)
        assert done.code == 0 or refused(done), done
    assert {name for name in before if not name.startswith("stages/.")} <= set(content(place.run))


def test_stages_without_their_files_are_a_sentence(place: Place) -> None:
    stages = json.loads((place.run / "manifest.json").read_text())["stages"]
    edited(place, stages=[stage | {"file": None} if stage["kind"] == "pair" else stage for stage in stages])
    assert rlaif(place.project, "show", "runs/echo", "1").code == 0
    done = rlaif(place.project, "export", "runs/echo", "--format", "binarized", "--to", "new.jsonl")
    assert refused(done, "no data set 'binarized'"), done


# ---------------------------------------------------------------- where a run is told to be


def a_home(place: Place) -> str:
    (place.project.parent / "home/thesis.txt").write_text(MINE)
    return str(place.project.parent / "home")


def a_loop(place: Place) -> str:
    (place.project / "loop").symlink_to("loop")
    return "loop"


def a_link(place: Place) -> str:
    (place.project / "link").symlink_to(place.elsewhere)
    return "link"


def beside_nothing(place: Place) -> str:
    (place.project / "dangling").symlink_to(place.elsewhere / "no/such")
    return "dangling"


OUTS: dict[str, str | Callable[[Place], str]] = {
    "the root": "/",
    "the current folder": ".",
    "the folder above": "..",
    "home": a_home,
    "home as ~": lambda place: a_home(place) and "~",
    "home of nobody": "~nobody-of-that-name/x",
    "a folder with files": lambda place: str(place.elsewhere),
    "a link to a folder with files": a_link,
    "a link to itself": a_loop,
    "a file": "echo.yaml",
    "below a file": "echo.yaml/x",
    "the store's folder": "runs",
    "the store": "runs/calls.sqlite",
    "the store's log": "runs/calls.sqlite-wal",
    "inside another run": "runs/echo/dataset/x",
    "inside another run, deep": "runs/echo/models/a/b/c",
    "inside another run, by dots": "runs/echo/../echo/y",
    "another run": "runs/other",
    "NUL": "runs/a\0b",
    "a newline": "runs/a\nb",
    "an escape": "runs/\x1b[31m",
    "a C1 control": "runs/\x9b31m",
    "a line separator": "runs/a\u2028b",
    "4,096 characters": "runs/" + "x" * 4096,
    "a deep path": "d/" * 2500,
    "a name of 300": "x" * 300,
    "no UTF-8": "runs/\udcff\udcfe",
    "empty": "",
    "a device": "/dev/null",
    "below a device": "/dev/null/x",
    "a full device": "/dev/full",
    "below /proc": "/proc/x",
}


@pytest.mark.parametrize("name", OUTS)
def test_a_place_that_is_no_runs_is_refused(name: str, place: Place) -> None:
    if name == "another run":
        shutil.copytree(place.run, place.run.with_name("other"))
        other = place.run.with_name("other") / "manifest.json"
        other.write_text(other.read_text().replace('"name": "echo"', '"name": "other"', 1))
    where = OUTS[name]
    where = where if isinstance(where, str) else where(place)
    before = content(place.project.parent)
    done = rlaif(place.project, "run", "echo.yaml", "--out", where)
    assert refused(done) and len(done.err) < 1000, done
    assert content(place.project.parent) == before


@pytest.mark.parametrize("where", ["runs/new/", "runs/new/.", "./runs/./new", "runs//new", "-odd", "ü/日本　語"])
def test_a_place_that_is_new_is_a_run(where: str, place: Place) -> None:
    done = rlaif(place.project, "run", "echo.yaml", f"--out={where}")
    assert done.code == 0 and (place.project / where / "manifest.json").exists(), done


def test_a_link_to_an_empty_folder_is_a_run(place: Place) -> None:
    """A run on a larger disk, say."""
    (place.project.parent / "big").mkdir()
    (place.project / "runs/linked").symlink_to(place.project.parent / "big")
    for _ in range(2):
        assert rlaif(place.project, "run", "echo.yaml", "--out", "runs/linked").code == 0
    assert (place.project.parent / "big/manifest.json").exists()


def test_two_runs_in_one_folder(place: Place) -> None:
    with open(place.run / ".lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = rlaif(place.project, "run", "echo.yaml")
    assert refused(done, "another process is running in 'runs/echo'"), done


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o555])
def test_a_folder_without_permission_is_a_sentence(mode: int, place: Place) -> None:
    (place.project / "locked").mkdir(mode=mode)
    for where in ("locked", "locked/x"):
        done = rlaif(place.project, "run", "echo.yaml", "--out", where)
        assert done.code in (1, 2) and one_sentence(done), done


# ---------------------------------------------------------------- exports

TARGETS: dict[str, tuple[str, Callable[[Place], Any]]] = {
    "a file": ("o1", lambda place: (place.project / "o1").write_text(MINE)),
    "a file in .jsonl": ("o1.jsonl", lambda place: (place.project / "o1.jsonl").write_text(MINE)),
    "a folder with files": ("o1", lambda place: folder(place.project / "o1")),
    "a folder in .jsonl": ("o1.jsonl", lambda place: folder(place.project / "o1.jsonl")),
    "a link to a folder": ("link", a_link),
    "a link to nothing": ("dangling", beside_nothing),
    "a link to nothing in .jsonl": ("d.jsonl", lambda place: (place.project / "d.jsonl").symlink_to("no/such")),
    "the run": ("runs/echo", lambda _: None),
    "the run's data set": ("runs/echo/dataset/sft", lambda _: None),
    "the store": ("runs/calls.sqlite", lambda _: None),
    "the root": ("/", lambda _: None),
    "the current folder": (".", lambda _: None),
    "below a file": ("echo.yaml/x", lambda _: None),
    "NUL": ("a\0.jsonl", lambda _: None),
    "a newline": ("a\nb", lambda _: None),
    "a name of 300": ("x" * 300 + ".jsonl", lambda _: None),
    "no UTF-8": ("\udcff.jsonl", lambda _: None),
}  # fmt: skip


@pytest.mark.parametrize("shape", ["sft", "hh"])
@pytest.mark.parametrize("name", TARGETS)
def test_an_export_replaces_nothing(name: str, shape: str, place: Place) -> None:
    target, plant = TARGETS[name]
    plant(place)
    before = content(place.project.parent)
    done = rlaif(place.project, "export", "runs/echo", "--format", shape, "--to", target)
    assert refused(done), done
    assert content(place.project.parent) == before


@pytest.mark.parametrize("shape", ["sft", "hh"])
@pytest.mark.parametrize("target", ["o1", "o1.jsonl"])
def test_what_lies_beside_an_export_stays(target: str, shape: str, place: Place) -> None:
    folder(place.project / f".{target}.tmp")
    (place.project / f".{target}.{os.getpid()}.tmp").symlink_to(place.elsewhere / "thesis.txt")
    assert rlaif(place.project, "export", "runs/echo", "--format", shape, "--to", target).code == 0
    assert (place.project / f".{target}.tmp/thesis.txt").read_text() == MINE
    assert (place.elsewhere / "thesis.txt").read_text() == MINE
    assert (place.project / target).stat().st_mode & 0o044  # as any other file of this person


def test_an_export_takes_the_data_set_and_nothing_else(place: Place) -> None:
    file("dataset/sft/thesis.txt")(place)
    (place.run / "dataset/sft/data/secret").symlink_to(place.elsewhere / "thesis.txt")
    assert rlaif(place.project, "export", "runs/echo", "--format", "sft", "--to", "o1").code == 0
    assert sorted(content(place.project / "o1")) == ["README.md", PARQUET]
    assert content(place.project / "o1").items() <= content(place.run / "dataset/sft").items()


# ---------------------------------------------------------------- home

HOMES: dict[str, list[str]] = {
    "run --out": ["run", "echo.yaml", "--out", "~/made"],
    "run --out=": ["run", "echo.yaml", "--out=~/made"],
    "export --to": ["export", "runs/echo", "--format", "sft", "--to", "~/made"],
    "export --to in .jsonl": ["export", "runs/echo", "--format", "sft", "--to=~/made.jsonl"],
    "init": ["init", "~/made"],
    "audit --out": ["audit", "runs/echo", "--out", "~/made"],
}


@pytest.mark.parametrize("name", HOMES)
def test_what_is_written_to_home_is_there(name: str, place: Place) -> None:
    done = rlaif(place.project, *HOMES[name])
    assert done.code == 0, done
    assert [path.name.split(".")[0] for path in (place.project.parent / "home").iterdir()] == ["made"]
    assert not list(place.project.glob("*~*"))


@pytest.mark.parametrize(
    "command",
    [
        ["status", "~/p/runs/echo"],
        ["show", "~/p/runs/echo", "1"],
        ["export", "~/p/runs/echo", "--format", "hh", "--to", "o1"],
        ["audit", "~/p/runs/echo", "--out", "a1"],
        ["plan", "~/p/echo.yaml"],
        ["run", "~/p/echo.yaml", "stages.2.rate.rubric=~/p/rubric.yaml", "stages.0.prompts.path=~/p/prompts.jsonl"],
    ],
    ids=lambda command: " ".join(command)[:40],
)
def test_what_lies_in_home_is_found(command: list[str], place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place.project.parent))
    done = rlaif(place.project, *command)
    assert done.code == 0, done


def test_home_in_python(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.project)
    assert interface.run("echo.yaml", out="~/made", quiet=True).state == "done"
    assert interface.load("~/made").path == place.project.parent / "home/made"
    with pytest.raises(InputError, match="control characters"):
        interface.load("a\nb")


# ---------------------------------------------------------------- audits


@pytest.mark.parametrize("name", ["audit.md", "audit.json"])
def test_an_audit_replaces_none_but_an_audits_files(name: str, place: Place) -> None:
    (place.project / "audit").mkdir()
    (place.project / "audit" / name).write_text(MINE)
    assert refused(done := rlaif(place.project, "audit", "runs/echo"), "no audit made it"), done
    assert (place.project / "audit" / name).read_text() == MINE
    for _ in range(2):
        assert rlaif(place.project, "audit", "runs/echo", "--out", "another").code == 0


# ---------------------------------------------------------------- models


def trained(place: Place, name: str = "d") -> str:
    """A pipeline that trains; its first stage only reads prompts, so what is refused is refused at once."""
    stages = [
        {"data": {"path": "tiny/demonstrations.jsonl", "take": 50, "name": "demos"}},
        {"train": {"sft": {"base": "base", "data": "demos", "name": name}}},
    ]
    models = {"base": {"engine": "transformers", "path": "tiny/base"}}
    pipeline = {"name": "trained", "models": models, "stages": stages}
    (place.project / "trained.yaml").write_text(yaml.safe_dump(pipeline))
    return "trained.yaml"


MODELS: dict[str, Callable[[Path, Path], Any]] = {
    "d is a file": lambda models, _: (models / "d").write_text(MINE),
    "d is somebody's": lambda models, _: folder(models / "d"),
    "d is a link to a folder with files": lambda models, away: (models / "d").symlink_to(away / "data"),
    "d is a link to nothing": lambda models, _: (models / "d").symlink_to("no/such"),
    "d.partial is a file": lambda models, _: (models / "d.partial").write_text(MINE),
    "d.partial is somebody's": lambda models, _: folder(models / "d.partial"),
    "d.partial is a link": lambda models, away: (models / "d.partial").symlink_to(away),
    "d.partial has a key and a thesis": lambda models, _: (
        folder(models / "d.partial"), (models / "d.partial/key").write_text("0" * 64)),
    "d.partial is a finished model": lambda models, _: (
        (models / "d.partial").mkdir(), (models / "d.partial/key").write_text("0" * 64),
        (models / "d.partial/training.json").write_text("{}")),
    "d.partial holds a link for its model": lambda models, away: (
        (models / "d.partial").mkdir(), (models / "d.partial/key").write_text("0" * 64),
        (models / "d.partial/final").symlink_to(away)),
    "d.partial holds a checkpoint of somebody's": lambda models, _: (
        (models / "d.partial").mkdir(), (models / "d.partial/key").write_text("0" * 64),
        folder(models / "d.partial/checkpoint-mine")),
    "d.partial holds a link for a checkpoint": lambda models, away: (
        (models / "d.partial").mkdir(), (models / "d.partial/key").write_text("0" * 64),
        (models / "d.partial/checkpoint-3").symlink_to(away)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_somebodys_is_not_trained_over(name: str, place: Place) -> None:
    models = place.project / "runs/trained/models"
    models.mkdir(parents=True)
    (models.parent / ".lock").touch()  # a run that was killed as it began
    MODELS[name](models, place.elsewhere)
    before = content(models), content(place.elsewhere)
    done = rlaif(place.project, "run", trained(place))
    assert refused(done, "models/d", "move it"), done
    assert (content(models), content(place.elsewhere)) == before


@pytest.mark.parametrize("name", ["d.partial", "x.partial", ".x.lock", "../d", "d/e", "", "d.partial.partial", "a\nb"])
def test_a_models_name_is_no_place_of_the_tools(name: str, place: Place) -> None:
    done = rlaif(place.project, "plan", trained(place, name))
    assert done.code == 2 and one_sentence(done) and "trained.yaml:" in done.err and "name" in done.err, done


def test_two_models_side_by_side_are_two_models(place: Place) -> None:
    """`d.old` is a name as any other: nothing of `d` is ever moved there."""
    pipeline = yaml.safe_load((place.project / trained(place)).read_text())
    pipeline["stages"].append({"train": {"sft": {"base": "base", "data": "demos", "name": "d.old"}}})
    (place.project / "trained.yaml").write_text(yaml.safe_dump(pipeline))
    assert rlaif(place.project, "plan", "trained.yaml").code == 0
