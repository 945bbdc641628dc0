"""Files: the one door by which they are opened, written whole or not at all, and locked against another process.

A path may come from a stranger: nothing waits for the other end of a pipe or reads a device without an end, and nothing
is written through a link.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from rlaif.visible import visible_json

# Of a file that a person writes: a pipeline, a rubric, a template. The largest that ship hold 60 KB.
MOST_WRITTEN = 4_000_000
# Of a record of a run or a training. As Python's objects, JSON of this size is some hundred MB at worst.
MOST_RECORDED = 16_000_000
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no room for another byte: of the disk, the user, or the file


def opened(path: Path) -> BinaryIO:
    """A regular file, opened to read bytes; never waits. Raises OSError for anything else, with the reason in words."""
    return open(regular(path), "rb")


def regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file. Raises OSError, at once for a pipe, a device or a folder."""
    with suppress(FileNotFoundError):
        _refuse_irregular(os.stat(path).st_mode)  # before it is opened: a device may act on that
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode)  # another file may have taken its place
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


_IRREGULAR = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


def _refuse_irregular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is a {_IRREGULAR.get(stat.S_IFMT(mode), 'special file')}, and no regular file")


def read_whole(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most`. Raises OSError."""
    with opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EOVERFLOW, f"it is larger than {most // 1_000_000} MB")
    return data


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    # A path in it may hold bytes that are no UTF-8, which no file of ours can hold either.
    with open(new_file(temporary), "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON like `write_text`. Raises ValueError for NaN and infinity."""
    write_text(path, visible_json(value) + "\n")


def text_of(path: Path) -> str | None:
    """The text of a file; None when it is missing, unreadable or too large."""
    try:
        return read_whole(path, MOST_RECORDED).decode("utf-8")
    except (OSError, ValueError):  # a path with a NUL is a ValueError
        return None


def json_of(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when it is missing, unreadable or no object."""
    text = text_of(path)
    try:
        value = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def new_file(path: Path) -> int:
    """A descriptor of a file that is new: what a kill left under its name goes, and of a link only the link."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def lock(path: Path) -> IO[bytes] | None:
    """The file `path`, locked until it is closed; None while another process holds it.

    Raises OSError, also for a link and for a file with content: such a file is no lock.
    """
    file = open(regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW), "rb")  # noqa: SIM115 - the caller closes it
    if os.fstat(file.fileno()).st_size:
        file.close()
        raise OSError(errno.EEXIST, f"{path.name} is a file with content, not a lock", str(path))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def why(error: OSError) -> str:
    """An error of the system in a few words."""
    if error.errno in FULL:
        return "the disk is full"
    if error.errno == errno.ELOOP:
        return "it is a link"
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:]
