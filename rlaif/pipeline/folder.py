"""The run folder: its layout, written so that a killed run never leaves half a file.

    pipeline.yaml        the resolved pipeline, with every default
    events.jsonl         events with their time, a JSON object a line
    libraries.log        what libraries printed, if they did
    manifest.json        digests, versions, counts in / out / dropped by reason, calls, cost, seconds
    stages/NN-NAME.jsonl one file for each row or pair stage, a row a line
    dataset/             preferences, SFT data and UltraFeedback-shaped data, each a `datasets` folder with a card
    models/NAME/         trained models
    report/summary.json  the measure
    inputs/STAGE.KEY.*   the constitutions, rubrics and templates as they were read
    batch/               requests for a provider's batches, and what became of them (see `batched`)

The call store is in `runs/` of the current folder, as is what trainings share.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import ValidationError

from rlaif.engines.identity import refuse_inside
from rlaif.errors import InputError, WorkError
from rlaif.files import MOST_RECORDED, json_of, lock, opened, read_whole, text_of, why, write_json
from rlaif.formats.write.dataset import PARQUET
from rlaif.pipeline.recorded import is_manifest
from rlaif.records import Record

Kind = TypeVar("Kind", bound=Record)

STORE = Path("runs/calls.sqlite")
REFERENCES, TOKENS = Path("runs/.references"), Path("runs/.tokens")  # what trainings share: log-probabilities, ids
MANIFEST_FORMAT = 1
LINE = 2**26  # bytes of a stage's first line at most, where it has to be read to know whose it is
# Files of a run whose manifest is lost, or was not written yet when the run was killed.
_OWN = {
    ".lock",
    "events.jsonl",
    "libraries.log",
    ".manifest.json.tmp",
    ".pipeline.yaml.tmp",
    "pipeline.yaml",
    "stages",
    "dataset",
    "models",
    "report",
    "batch",
    "inputs",
}
_FOLDERS = ("stages", "dataset", "models", "report", "batch", "inputs")
_FILES = (".lock", "events.jsonl", "libraries.log", "manifest.json", "pipeline.yaml")


def hold(path: Path, where: Path) -> IO[bytes]:
    """The lock file `path`, held until it is closed: one process at a time works in `where`.

    Raises InputError where it cannot be written, WorkError while another process holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock(path)
    except OSError as error:
        fix = "give another folder with --out"
        raise InputError(f"{short(where)} cannot be written: {why(error)}", fix=fix) from None
    if file is None:
        problem = f"another process is running in {short(where)}"
        raise WorkError(problem, fix="wait for it, or give another --out")
    return file


class RunFolder:
    """One run's folder. Open it with `create` to run, with `existing` to read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None

    @classmethod
    def create(cls, path: Path, pipeline_name: str, origin: str | None = None) -> RunFolder:
        """The folder, created if missing, and locked. `origin` says where the pipeline was read, as its `origin` does.

        Raises InputError for a folder of another run or with other content, WorkError while another process runs in it.
        """
        if os.path.exists(path) and not path.is_dir():  # unlike `path.exists`, no error for a name that is too long
            raise InputError(f"{short(path)} is a file", fix="give another folder with --out")
        folder = cls(path)
        manifest = folder.manifest()
        if path.name.startswith(STORE.name):
            raise InputError(f"{path.name!r} is the name of the call store", fix="give the pipeline another name")
        _refuse_place(path)
        children = {child.name for child in path.iterdir()} if os.path.isdir(path) else set()
        if manifest is None and children and not (".lock" in children and children <= _OWN):
            raise InputError(f"{str(path)!r} holds files, but no run", fix="give an empty or new folder with --out")
        if manifest is not None and manifest["name"] != pipeline_name:
            raise InputError(
                f"{str(path)!r} is the folder of another run, {manifest['name']!r}",
                fix=f"give another folder with --out, or name this pipeline {manifest['name']!r}",
            )
        if manifest is not None and origin is not None:
            folder._refuse_another(origin, manifest)
        folder._refuse_strangers()
        folder._lock = hold(path / ".lock", path)
        return folder

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        folder = cls(path)
        if folder.manifest() is None:
            near = sorted(p.parent.name for p in path.parent.glob("*/manifest.json")) if path.parent.is_dir() else []
            fix = (
                f"runs here: {', '.join(near)}"
                if near
                else "give a folder that `rlaif run` made, such as runs/quickstart"
            )
            raise InputError(f"there is no run in {str(path)!r}", fix=fix)
        return folder

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def in_use(self) -> bool:
        """Whether a process is running in this folder."""
        try:
            with opened(self.path / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError:
            return True

    @staticmethod
    def origin_of(origin: str, before: Mapping[str, Any]) -> str:
        """The origin that a manifest keeps: that of the run, also where its own copy of the pipeline is run again."""
        return str(before.get("origin", origin)) if origin == _ITS_COPY else origin

    def _refuse_another(self, origin: str, manifest: Mapping[str, Any]) -> None:
        """Raise InputError for a pipeline that is not the run's own, though it has the same name.

        One whose file is gone was moved here; one with the same text is a copy.
        """
        before = manifest.get("origin")
        if before is None or self.origin_of(origin, manifest) == before:
            return
        kind, _, name = before.partition(" ")
        if kind == "asked" or origin.startswith("asked "):
            problem = f"{short(self.path)} holds what another judge, or other data, gave"
            raise InputError(problem, fix="name another folder with --out, or remove that one")
        text, own = text_of(self.path / name), text_of(self.path / origin.partition(" ")[2])
        if text not in (None, own):
            other = short(Path(os.path.normpath(self.path / name)))
            problem = f"{short(self.path)} is the run of another pipeline of this name, {other}"
            raise InputError(problem, fix="give this pipeline another `name`, or another folder with --out")

    def _refuse_strangers(self) -> None:
        """Raise InputError for a link, or for a folder or a file in the other's place, where the run would write."""
        for name, is_right, right in (
            *((name, stat.S_ISDIR, "folder") for name in _FOLDERS),
            *((name, stat.S_ISREG, "file") for name in _FILES),
        ):
            path = self.path / name
            if os.path.lexists(path) and not is_right(path.lstat().st_mode):
                what = "it is a link" if path.is_symlink() else f"it is no {right}"
                fix = "move it; to write a run elsewhere, name the whole folder with --out"
                raise InputError(f"the run would write here, and {what}", file=str(path), fix=fix)

    def refuse_stage(self, file: Path, made: set[str]) -> None:
        """Raise InputError for a file that a stage would replace, and no run made.

        Without a manifest, which may be lost, a run's file is known by its content.
        """
        known, lost = f"stages/{file.name}" in made, self.manifest() is None
        for path in (file, file.with_suffix(".partial.jsonl")):
            ours = path.is_file() and not path.is_symlink() and (known or (lost and _is_rows(path)))
            if os.path.lexists(path) and not ours:
                raise InputError("the file is there, and no run made it", file=str(path), fix="move it")

    def refuse_report(self, name: str, key: str) -> None:
        """Raise InputError for a report that a stage would replace, and no run made: it lacks the report's key."""
        path = self.path / "report" / name
        if os.path.lexists(path) and (path.is_symlink() or key not in (json_of(path) or {})):
            raise InputError("the file is there, and no run made it", file=str(path), fix="move it")

    def remove_made(self, manifest: Mapping[str, Any], but: set[str]) -> set[str]:
        """Remove what earlier runs made, by their manifest, except `but`. Returns what they made and is kept.

        Other files are left alone.
        """
        made = made_before(manifest)
        for name in sorted(made - but):
            if name.startswith("dataset/"):
                remove_dataset(self.path / name)
            else:
                for path in (self.path / name, (self.path / name).with_suffix(".partial.jsonl")):
                    path.unlink(missing_ok=True)
        return made & but

    def model(self, name: str) -> Path:
        return self.path / "models" / name

    @property
    def libraries(self) -> Path:
        return self.path / "libraries.log"

    def stage(self, number: int, name: str) -> Path:
        return self.path / "stages" / f"{number:02d}-{name}.jsonl"

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None when there is none. Raises WorkError when it cannot be read."""
        path = self.path / "manifest.json"
        try:
            value = json.loads(read_whole(path, MOST_RECORDED))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                return None
            problem = why(error) if isinstance(error, OSError) else "it is no JSON"
            raise WorkError(f"the manifest cannot be read: {problem}", file=str(path), fix=_ANEW) from None
        if not isinstance(value, dict) or value.get("format") != MANIFEST_FORMAT:
            raise WorkError(
                "the manifest is of another format", file=str(path), fix="use the version of rlaif that wrote it"
            )
        if not is_manifest(value):
            raise WorkError("the manifest is damaged", file=str(path), fix=_ANEW)
        return value

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_json(self.path / "manifest.json", {"format": MANIFEST_FORMAT} | manifest)


def is_foreign(folder: Path, *, lost: bool) -> bool:
    """Whether a data set written there, which is not in the manifest, would replace what no run wrote.

    Without a manifest, which may be `lost`, a run's data set is known by its card.
    """
    if folder.is_symlink() or not folder.is_dir():
        return os.path.lexists(folder)
    card = folder / "README.md"
    ours = lost and "\n- rlaif\n- synthetic\n" in (text_of(card) or "")
    return not ours and (os.path.lexists(card) or os.path.lexists(folder / PARQUET))


def leads_away(folder: Path) -> bool:
    """Whether a data set written there would be written through a link, or over a folder."""
    places = (folder, (folder / PARQUET).parent)
    files = (folder / PARQUET, folder / "README.md")
    return any(place.is_symlink() or (place.exists() and not place.is_dir()) for place in places) or any(
        file.is_symlink() or file.is_dir() for file in files
    )


def remove_dataset(folder: Path) -> None:
    """Remove a data set that a run wrote: its two files, and its folders if they are empty then."""
    if not folder.is_dir() or leads_away(folder):
        return
    for file in (folder / PARQUET, folder / "README.md"):
        file.unlink(missing_ok=True)
    for emptied in ((folder / PARQUET).parent, folder):
        with suppress(OSError):  # it holds other files
            emptied.rmdir()


def made_before(manifest: Mapping[str, Any]) -> set[str]:
    """The files and data sets that a run made, by its manifest."""
    made = manifest.get("made")
    if made is None:  # from a version without the list
        made = [stage["file"] for stage in manifest.get("stages", ()) if stage["file"]]
        made += [name.replace("dataset ", "dataset/", 1) for name in manifest.get("digests", ())]
    return {name for name in made if isinstance(name, str) and _MADE.fullmatch(name)}


def short(path: Path) -> str:
    """A path as an error names it."""
    text = str(path)
    return repr(text if len(text) <= 200 else f"{text[:100]}...{text[-97:]}")


def _refuse_place(path: Path) -> None:
    """Raise InputError for a run folder inside another run's or a model's folder, or around the call store."""
    whole = path.absolute()
    if whole == STORE.parent.absolute():
        fix = f"give another folder with --out, such as {STORE.parent / 'mine'}"
        raise InputError(f"{short(path)} is the folder of the call store", fix=fix)
    refuse_inside(path)
    for parent in whole.parents:
        if json_of(parent / "manifest.json") is not None and (parent / ".lock").exists():
            problem = f"{short(path)} lies in the folder of another run, {short(parent)}"
            raise InputError(problem, fix="give another folder with --out")


def _is_rows(path: Path) -> bool:
    """Whether a file holds rows or preferences, or nothing."""
    with opened(path) as file:
        line = file.readline(LINE + 1)
    if not line:
        return True
    try:
        return len(line) <= LINE and "prompt" in dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return False


_ITS_COPY = "file pipeline.yaml"
_ANEW = "delete it and run the pipeline again: all calls are cached"
_MADE = re.compile(
    r"stages/\d+-[A-Za-z0-9][\w.-]*\.jsonl|dataset/[A-Za-z0-9][\w.-]*", re.ASCII
)  # a manifest may be edited: nothing else is removed


def read_lines(path: Path) -> Iterator[bytes]:
    """The complete lines of a stage file, or of its partial file while the stage is unfinished."""
    if not path.exists():
        path = path.with_suffix(".partial.jsonl")
    if not path.exists():
        return
    try:
        with opened(path) as file:
            for line in iter(lambda: file.readline(MOST_OF_ROW), b""):
                if line.endswith(b"\n"):
                    yield line
                elif len(line) == MOST_OF_ROW:
                    raise OSError(errno.EOVERFLOW, f"a line has more than {MOST_OF_ROW // 1_000_000} MB")
    except OSError as error:
        fix = "run the pipeline again: its calls are cached"
        raise WorkError(f"the file cannot be read: {why(error)}", file=str(path), fix=fix) from None


MOST_OF_ROW = 256_000_000  # bytes of a line; a row of 10,000 candidates has a tenth


def read_records(kind: type[Kind], path: Path) -> Iterator[Kind]:
    """The records in a stage file's complete lines. Raises WorkError where one is damaged."""
    for line in read_lines(path):
        try:
            yield kind.model_validate_json(line)
        except ValidationError:
            fix = "run the pipeline again: its calls are cached"
            raise WorkError("the file is damaged", file=str(path), fix=fix) from None
