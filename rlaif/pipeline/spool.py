"""Records on disk instead of in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from rlaif.errors import WorkError
from rlaif.files import new_file, why
from rlaif.records import Record

Kind = TypeVar("Kind", bound=Record)


class Stored(Generic[Kind]):
    """The records of a finished file, read again on each iteration."""

    def __init__(self, kind: type[Kind], path: Path, count: int) -> None:
        self.kind, self.path, self._count = kind, path, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Kind]:
        with open(self.path, "rb") as file:
            for line in file:
                yield self.kind.model_validate_json(line)


class Spool(Stored[Kind]):
    """Records appended to a temporary file, which is removed with the spool."""

    def __init__(self, kind: type[Kind], records: Iterable[Kind] = ()) -> None:
        try:
            descriptor, name = tempfile.mkstemp(prefix="rlaif-", suffix=".jsonl")
        except OSError as error:
            raise _no_room(error) from None
        self._file = open(descriptor, "wb")  # noqa: SIM115 - closed with the spool
        weakref.finalize(self, _remove, self._file, name)
        super().__init__(kind, Path(name), 0)
        for record in records:
            self.append(record)

    def append(self, record: Kind) -> None:
        line = _line(record)
        try:
            self._file.write(line)
        except OSError as error:
            raise _no_room(error) from None
        self._count += 1

    def __iter__(self) -> Iterator[Kind]:
        try:
            self._file.flush()
        except OSError as error:
            raise _no_room(error) from None
        return super().__iter__()


def discard(file: BinaryIO) -> None:
    """Close a file whose last bytes may find no room."""
    with suppress(OSError):
        file.close()


def _remove(file: BinaryIO, name: str) -> None:
    discard(file)
    with suppress(OSError):
        os.unlink(name)


def _no_room(error: OSError) -> WorkError:
    """The error of a temporary file; these lie on a disk that few know to be in use."""
    where = tempfile.gettempdir()
    fix = "free some space there, or set TMPDIR to another folder, then run the same command again"
    return WorkError(f"temporary files cannot be written: {why(error)}; finished work is kept", file=where, fix=fix)


class RowWriter(Generic[Kind]):
    """Rows of a stage: appended as they finish, and sorted into the order of the prompts at the end.

    Until then they are in `NAME.partial.jsonl`, readable at any moment (only its last line can be torn).
    """

    def __init__(self, kind: type[Kind], path: Path) -> None:
        self.kind, self.path, self._partial = kind, path, path.with_suffix(".partial.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(new_file(self._partial), "wb")  # noqa: SIM115 - closed by `finish` or `close`
        # Each row's number and its offset in the partial file.
        self._numbers, self._starts, self._end = array("q"), array("q"), 0

    def append(self, row: Kind, number: int | None = None) -> None:
        """Append a row; `number` is its final position, by default the order of writing."""
        line = _line(row)
        self._file.write(line)
        self._file.flush()
        self._numbers.append(len(self._numbers) if number is None else number)
        self._starts.append(self._end)
        self._end += len(line)

    def finish(self) -> Stored[Kind]:
        """Sort the rows into their final file."""
        os.fsync(self._file.fileno())
        self._file.close()
        count = len(self._numbers)
        if all(number == written for written, number in enumerate(self._numbers)):
            os.replace(self._partial, self.path)
        else:
            self._sort()
        return Stored(self.kind, self.path, count)

    def _sort(self) -> None:
        count, temporary = len(self._numbers), self.path.with_name(f".{self.path.name}.tmp")
        order = array("q", [-1]) * (max(self._numbers) + 1)  # by number, the row's index in the order of writing
        for index, number in enumerate(self._numbers):
            order[number] = index
        with open(self._partial, "rb") as source, open(new_file(temporary), "wb") as target:
            for index in order:
                if index < 0:  # a stopped run leaves gaps
                    continue
                source.seek(self._starts[index])
                end = self._starts[index + 1] if index + 1 < count else self._end
                target.write(source.read(end - self._starts[index]))
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, self.path)
        self._partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the partial file, which is kept."""
        discard(self._file)


def _line(record: Record) -> bytes:
    return record.model_dump_json(exclude_defaults=True).encode() + b"\n"


def room(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
