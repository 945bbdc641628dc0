"""The run folder: its layout, written so that a killed run never leaves half a file.

    pipeline.yaml        the resolved pipeline, with every default
    events.jsonl         events with their time, a JSON object a line
    manifest.json        digests, versions, counts in / out / dropped by reason, calls, cost, seconds
    stages/NN-NAME.jsonl one file for each row or pair stage, a row a line
    dataset/             preferences, SFT data and UltraFeedback-shaped data, each a `datasets` folder with a card
    models/NAME/         trained models
    report/summary.json  the measure

The call store is in `runs/` of the current folder, shared by all runs of a project wherever their folders are.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import ValidationError

from rlaif.errors import InputError, WorkError
from rlaif.files import MOST_RECORDED, lock, opened, read_whole, text_of, write_json
from rlaif.formats.write.dataset import PARQUET
from rlaif.records import Record

Kind = TypeVar("Kind", bound=Record)

STORE = Path("runs/calls.sqlite")
MANIFEST_FORMAT = 1
# Files of a run whose manifest is lost, or was not written yet when the run was killed.
_OWN = {
    ".lock",
    "events.jsonl",
    ".manifest.json.tmp",
    ".pipeline.yaml.tmp",
    "pipeline.yaml",
    "stages",
    "dataset",
    "models",
    "report",
}
_REQUIRED = {
    "name",
    "state",
    "seconds",
    "stages",
    "calls",
    "digests",
    "failures",
}  # keys that readers of a manifest rely on


def hold(path: Path, where: Path) -> IO[str]:
    """The lock file `path`, held until it is closed: one process at a time works in `where`.

    Raises InputError where it cannot be written, WorkError while another process holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock(path)
    except OSError as error:
        fix = "give another folder with --out"
        raise InputError(f"{str(where)!r} cannot be written: {error.strerror}", fix=fix) from None
    if file is None:
        problem = f"another process is running in {str(where)!r}"
        raise WorkError(problem, fix="wait for it, or give another --out")
    return file


class RunFolder:
    """One run's folder. Open it with `create` to run, with `existing` to read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path, pipeline_name: str) -> RunFolder:
        """The folder, created if missing, and locked.

        Raises InputError for a folder of another run or with other content, WorkError while another process runs in it.
        """
        if os.path.exists(path) and not path.is_dir():  # unlike `path.exists`, no error for a name that is too long
            raise InputError(f"{str(path)!r} is a file", fix="give another folder with --out")
        folder = cls(path)
        manifest = folder.manifest()
        if path.name.startswith(STORE.name):
            raise InputError(f"{path.name!r} is the name of the call store", fix="give the pipeline another name")
        children = {child.name for child in path.iterdir()} if os.path.isdir(path) else set()
        if manifest is None and children and not (".lock" in children and children <= _OWN):
            raise InputError(f"{str(path)!r} holds files, but no run", fix="give an empty or new folder with --out")
        if manifest is not None and manifest["name"] != pipeline_name:
            raise InputError(
                f"{str(path)!r} is the folder of another run, {manifest['name']!r}",
                fix=f"give another folder with --out, or name this pipeline {manifest['name']!r}",
            )
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
            with open(self.path / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError:
            return True

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
            fix = "delete it and run the pipeline again: all calls are cached"
            reason = error.strerror if isinstance(error, OSError) else error
            raise WorkError(f"the manifest cannot be read: {reason}", file=str(path), fix=fix) from None
        if not isinstance(value, dict) or value.get("format") != MANIFEST_FORMAT or not value.keys() >= _REQUIRED:
            raise WorkError(
                "the manifest is of another format", file=str(path), fix="use the version of rlaif that wrote it"
            )
        return value

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_json(self.path / "manifest.json", {"format": MANIFEST_FORMAT} | manifest)


def is_foreign(folder: Path) -> bool:
    """Whether a data set written there would replace what no run wrote; one that a run wrote is known by its card."""
    if folder.is_symlink() or not folder.is_dir():
        return os.path.lexists(folder)
    card = folder / "README.md"
    ours = "\n- rlaif\n- synthetic\n" in (text_of(card) or "")
    return not ours and (card.exists() or (folder / PARQUET).exists())


def remove_dataset(folder: Path) -> None:
    """Remove a data set that a run wrote: its two files, and its folders if they are empty then."""
    if folder.is_symlink() or not folder.is_dir():
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
                    raise OSError(errno.EFBIG, f"a line has more than {MOST_OF_ROW // 1_000_000} MB")
    except OSError as error:
        fix = "run the pipeline again: its calls are cached"
        raise WorkError(f"the file cannot be read: {error.strerror}", file=str(path), fix=fix) from None


MOST_OF_ROW = 256_000_000  # bytes of a line; a row of 10,000 candidates has a tenth


def read_records(kind: type[Kind], path: Path) -> Iterator[Kind]:
    """The records in a stage file's complete lines. Raises WorkError where one is damaged."""
    for line in read_lines(path):
        try:
            yield kind.model_validate_json(line)
        except ValidationError:
            fix = "run the pipeline again: its calls are cached"
            raise WorkError("the file is damaged", file=str(path), fix=fix) from None
