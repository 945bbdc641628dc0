"""Files that appear whole or not at all, and JSON Lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlaif.files import new_file


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write one JSON object a line; returns how many."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(storable(row), ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new file beside `path`: renamed to it when the block succeeds, removed when the block raises."""
    temporary = beside(path)
    os.close(new_file(temporary))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def storable(value: Any) -> Any:
    """The value with lone surrogates, which a model may write and no file can hold, replaced by U+FFFD."""
    if isinstance(value, str):
        if value.isascii():
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, Mapping):
        return {key: storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    return value
