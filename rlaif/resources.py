"""Where files are found: beside the pipeline that names them, then in the current folder, then in the package.

A path that does not exist is an error that names the nearest files; it is never taken for text or a hub id. In a
checkout the content folders lie beside the package; in a wheel they are packed inside it, under `bundled/`.
"""

from __future__ import annotations

import difflib
import itertools
import os
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.errors import InputError, first_line, shortened
from rlaif.files import MOST_WRITTEN, read_whole, why

PACKAGE = Path(__file__).parent
SHIPPED = {"tiny": "", "gold": "audits"}  # folders that users do not edit, and where they lie in the package
CONTENT = ("constitutions", "prompts", "pipelines")
MOST_NAMES = 10_000  # of a folder's files, compared with a mistyped one: a second's work


def bundled(first: str) -> Path | None:
    """The folder that holds the bundled folder `first` (`prompts`, `tiny`, ...), or None when there is none."""
    if first in SHIPPED:
        return PACKAGE / SHIPPED[first]
    if first in CONTENT:
        return next((root for root in (PACKAGE / "bundled", PACKAGE.parent) if (root / first).is_dir()), None)
    return None


def copy_out(target: Path) -> list[Path]:
    """Copy the bundled pipelines, prompts and constitutions into a new or empty folder, for editing.

    A pipeline in it finds them before the bundled ones. Raises InputError when `target` holds anything.
    """
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            there = "exists and is not empty" if target.is_dir() else "is a file"
            raise InputError(f"{str(target)!r} {there}", fix="name a new folder")
        copied = []
        for name in CONTENT:
            if (root := bundled(name)) is not None:
                shutil.copytree(root / name, target / name)
                copied += sorted(path for path in (target / name).rglob("*") if path.is_file())
    except (OSError, shutil.Error) as error:
        raise InputError(f"{_short(target)} cannot be written: {_reason(error)}", fix="name another folder") from None
    return copied


def given_path(path: str | Path) -> Path:
    """The path of a folder or file that the command line or a caller names; `~` means home, as it does in `find`.

    Raises InputError for a path that a shell, a screen or a record of ours could not hold.
    """
    text = str(path)
    try:
        text.encode("utf-8")
        if not text or any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text):
            raise ValueError("it holds control characters" if text else "it is empty")
        return Path(text).expanduser()
    except UnicodeEncodeError:
        problem = "it is not UTF-8"
    except (ValueError, RuntimeError) as error:  # `~` of an unknown user
        problem = _reason(error)
    raise InputError(f"the path {_short(text)} cannot be used: {problem}", fix="name another file or folder")


class Found(NamedTuple):
    path: Path
    shipped: bool  # only the package has it


def find(path: str, *, file: str | None = None, line: int | None = None, key: str | None = None) -> Path:
    """The file or folder that `path` names, in the current folder or else in the package.

    `file`, `line` and `key` say where it was written, for the error. Raises InputError when neither has it.
    """
    return find_in((Path(),), path, file=file, line=line, key=key).path


def find_in(
    folders: Sequence[Path], path: str, *, file: str | None = None, line: int | None = None, key: str | None = None
) -> Found:
    """As `find`, in the first of these folders that has it, or else in the package."""
    try:
        named = Path(path).expanduser()
        here = (folder / named for folder in folders)
        if path and (there := next((place for place in here if place.exists()), None)) is not None:
            return Found(there, shipped=False)
        root = None if named.is_absolute() else bundled(named.parts[0] if named.parts else "")
        if root is not None and (root / named).exists():
            return Found(root / named, shipped=True)
        problem = f"there is no file or folder {_short(path)}"
        fix = _suggestion(named, [*folders, *filter(None, [root])])
    except (OSError, RuntimeError, ValueError) as error:  # too long, not allowed, `~` of an unknown user, or with a NUL
        problem, fix = f"the path {_short(path)} cannot be used: {_reason(error)}", "name another file or folder"
    raise InputError(problem, file=file, line=line, key=key, fix=fix)


def places_of(pipeline: Path) -> tuple[Path, ...]:
    """The folders beside a pipeline file: its own, and the one above where its own is called `pipelines`.

    So the files of a project are found whatever the current folder is, in the layout that `rlaif init` makes.
    """
    own = pipeline.parent
    return (own, own / os.pardir) if own.resolve().name == "pipelines" else (own,)


def seen_from(folder: Path, path: Path) -> str:
    """`path` relative to `folder`. A link in the path's last part stays one."""
    return os.path.relpath(os.path.join(os.path.realpath(path.parent), path.name), os.path.realpath(folder))


def read_text(path: Path) -> str:
    """The text of a file that a person wrote. Raises InputError when it cannot be read, is too large or not UTF-8."""
    try:
        # As Python's text files: every kind of line end is a line feed.
        return read_whole(path, MOST_WRITTEN).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", file=str(path), fix="save the file as UTF-8") from None
    except OSError as error:
        fix = "name a file inside it" if path.is_dir() else None
        raise InputError(f"cannot be read: {_reason(error)}", file=str(path), fix=fix) from None


def _short(path: str | Path) -> str:
    return repr(shortened(str(path), 120))


def _reason(error: Exception) -> str:
    return why(error) if isinstance(error, OSError) else first_line(error)


def _suggestion(path: Path, roots: Sequence[Path]) -> str:
    folders = [folder for root in roots if (folder := root / path.parent).is_dir()]
    children = (child.name for folder in folders for child in itertools.islice(folder.iterdir(), MOST_NAMES))
    names = sorted({name for name in children if not name.startswith(".")})
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(str(path.parent / name)) for name in close)}?"
    if names:
        return f"{str(path.parent)!r} holds {', '.join(names[:8])}"
    return "give a path relative to the current folder, or one that ships with rlaif such as 'tiny/base'"
