"""Files that appear whole or not at all, and data sets in one file."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rlaif.errors import InputError
from rlaif.files import new_file

FORMS = (".jsonl.gz", ".jsonl", ".csv", ".parquet")
OTHER_FILES = (
    ".json",
    ".ndjson",
    ".tsv",
    ".txt",
    ".yaml",
    ".xlsx",
    ".xls",
    ".arrow",
    ".gz",
    ".zip",
    ".zst",
    ".bz2",
    ".xz",
)
BATCH = 500  # rows in memory


def file_form(path: Path) -> str | None:
    """How the file `path` is written, by the end of its name; None for a folder.

    Raises InputError for a file of a kind that is not written.
    """
    name = path.name.lower()
    form = next((form for form in FORMS if name.endswith(form)), None)
    if form is None and name.endswith(OTHER_FILES):
        fix = f"end its name in {', '.join(sorted(FORMS))}; another name is that of a folder with its card"
        raise InputError(f"no data set is written as a file like {path.name!r}", fix=fix)
    return form


def write_file(parquet: Path, path: Path, form: str) -> None:
    """Write the rows of a Parquet file as one of the `FORMS`. In CSV, a list or what has keys is JSON in its cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        if form == ".parquet":
            shutil.copyfile(parquet, temporary)
        elif form == ".jsonl.gz":
            with gzip.GzipFile(temporary, "wb", mtime=0) as file:
                file.writelines(_json(row) for row in _rows(parquet))
        elif form == ".jsonl":
            with temporary.open("wb") as file:
                file.writelines(_json(row) for row in _rows(parquet))
        else:
            with temporary.open("w", encoding="utf-8", newline="") as table:
                _write_csv(_rows(parquet), table)


def _rows(parquet: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(parquet) as file:
        for batch in file.iter_batches(BATCH):
            yield from batch.to_pylist()


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_csv(rows: Iterable[dict[str, Any]], file: TextIO) -> None:
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | dict) else value


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
