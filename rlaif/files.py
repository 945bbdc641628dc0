"""Files that are written whole or not at all, read where they exist, and locked against another process."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from rlaif.visible import visible_json


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON like `write_text`. Raises ValueError for NaN and infinity."""
    write_text(path, visible_json(value) + "\n")


def text_of(path: Path) -> str | None:
    """The text of a file; None when it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def json_of(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when it is missing, unreadable or no object."""
    text = text_of(path)
    try:
        value = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def lock(path: Path) -> IO[str] | None:
    """The file `path`, locked until it is closed; None while another process holds it. Raises OSError."""
    file = open(path, "w")  # noqa: SIM115 - the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
