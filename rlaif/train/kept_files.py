"""Parquet files that trainings share as a cache, and a job keeps for itself: FOLDER/DIGEST/NAME.parquet.

A file is written whole or not at all, under a name by its content or by what decides it, and never changed, so that
processes share a folder without a lock. A folder that trainings share may be deleted at any time; the files that were
not read for longest go when it is too large. Imports no torch.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rlaif.files import new_file

FORGOTTEN = 86400.0  # seconds after which a temporary file is one that a kill left
_NAME = re.compile(r"[0-9a-f]{32}\.parquet")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.parquet\.\d+\.tmp")


class Place(NamedTuple):
    """Where a training is: the folder of its job, and those in which trainings share what they keep."""

    folder: Path
    tokens: Path | None = None  # of token ids
    references: Path | None = None  # of a reference's log-probabilities


class Held(NamedTuple):
    """A file that is kept."""

    read: float  # when it was last of use, in seconds since 1970
    size: int
    path: Path


def files(folder: Path) -> Iterator[Path]:
    """The files under one digest, in the order of their names."""
    with suppress(OSError):
        yield from sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def used(path: Path) -> None:
    """Note that a file was of use."""
    with suppress(OSError):
        os.utime(path)


def write(folder: Path, name: str, data: bytes) -> None:
    """Write NAME.parquet of 32 hex digits into `folder`. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.parquet.{os.getpid()}.tmp"
    with open(new_file(temporary), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / f"{name}.parquet")


def held(folder: Path) -> list[Held]:
    """What a shared folder keeps, that which was not read for longest first. What a kill left in it is removed.

    Raises OSError.
    """
    kept = []
    for path in folder.glob("*/*"):
        with suppress(FileNotFoundError):  # another process removed it
            state = path.lstat()
            if _TEMPORARY.fullmatch(path.name) and time.time() - state.st_mtime > FORGOTTEN:
                path.unlink()
            elif _NAME.fullmatch(path.name):
                kept.append(Held(state.st_mtime, state.st_size, path))
    return sorted(kept)


def prune(folder: Path, most: int) -> None:
    """Remove what a kill left in a shared folder and, above `most` bytes, the files that were not read for longest.

    Raises OSError.
    """
    kept = held(folder)
    total = sum(file.size for file in kept)
    for file in kept:
        if total <= most:
            break
        file.path.unlink(missing_ok=True)
        total -= file.size
