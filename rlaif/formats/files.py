"""Rows from the files people have: JSON Lines, JSON, CSV, TSV, Parquet, folders of `datasets`, the hub.

Knows file types and nothing of column names. Every row keeps its line or row number, so that an error can name it.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from rlaif.errors import InputError, WorkError


class Table(NamedTuple):
    """The raw rows of one file or data set, each with the number of its line, or else of the row, for errors."""

    name: str
    source: str
    unit: Literal["line", "row"]
    rows: Iterable[tuple[int, dict[str, Any]]]

    def error(self, number: int, message: str, fix: str | None = None, *, key: str | None = None) -> InputError:
        if self.unit == "line":
            return InputError(message, file=self.name, line=number, key=key, fix=fix)
        return InputError(f"row {number}: {message}", file=self.name, key=key, fix=fix)


def names(row: Iterable[Any]) -> str:
    names = [f"`{str(name)[:40]}`" for name in row]
    return ", ".join(names[:12] + (["..."] if len(names) > 12 else [])) or "nothing"


def rows_of(path: Path) -> Table:
    """The rows of a file or folder, read lazily. Raises InputError for an unknown type of file."""
    if path.is_dir():
        return _folder(path)
    ending = path.name.lower().removesuffix(".gz")
    name, source = str(path), path.name
    if ending.endswith(".jsonl"):
        return Table(name, source, "line", _json_lines(path))
    if ending.endswith(".json"):
        return Table(name, source, "row", _json_list(path))
    if ending.endswith(".csv"):
        return Table(name, source, "line", _separated(path, ",", csv.QUOTE_MINIMAL))
    if ending.endswith(".tsv"):
        # Tab-separated text has no quoting: a quotation mark is part of the text, as FLAN's files need.
        return Table(name, source, "line", _separated(path, "\t", csv.QUOTE_NONE))
    if path.suffix == ".parquet":
        return Table(name, source, "row", _parquet([path]))
    raise InputError(
        "unknown type of file", file=name, fix="use .jsonl, .json, .csv or .tsv (each also .gz), .parquet, or a folder"
    )


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The file as text. Bytes that cannot be read raise InputError."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                yield file
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield file
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", file=str(path), fix="save the file as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError("not a whole gzip file", file=str(path), fix="copy or download it again") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from None


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                problem = f"not valid JSON: {_json_problem(error)}"
                raise InputError(problem, file=str(path), line=number, fix="put one object on each line") from None
            if not isinstance(row, dict):
                raise InputError(f"expected an object, found {type(row).__name__}", file=str(path), line=number)
            yield number, row


def _json_list(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with _opened(path) as file:
        text = file.read()
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"not valid JSON: {_json_problem(error)}",
            file=str(path),
            line=error.lineno if isinstance(error, json.JSONDecodeError) else None,
            fix="give a list of objects; a file with one object per line is called .jsonl",
        ) from None
    if not isinstance(rows, list):
        kind = f"an object with {names(rows)}" if isinstance(rows, dict) else type(rows).__name__
        raise InputError(f"expected a list of objects, found {kind}", file=str(path))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"row {number}: expected an object, found {type(row).__name__}", file=str(path))
        yield number, row


def _json_problem(error: Exception) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _separated(path: Path, delimiter: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, dict[str, Any]]]:
    with _opened(path) as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        header: list[str] | None = None
        line = 1
        try:
            for cells in reader:
                if header is None:
                    header = _header(cells, delimiter, str(path))
                    is_data = header is FLAN
                else:
                    is_data = bool(cells)  # the reader gives an empty line as no cells
                if is_data and len(cells) != len(header):
                    raise InputError(
                        f"the row has {len(cells)} cells, the first row has {len(header)}",
                        file=str(path),
                        line=line,
                        fix="separators and line breaks inside a cell need quotes (.csv); .tsv cells cannot hold them",
                    )
                if is_data:
                    text = [cell.replace("\\n", "\n") for cell in cells] if header is FLAN else cells
                    yield line, dict(zip(header, text, strict=True))
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"not readable: {error}", file=str(path), line=line, fix="save it as .jsonl") from None


FLAN = ["question", "answer", "rationale"]  # FLAN's chain-of-thought files, which write line breaks as \n


def _header(cells: list[str], delimiter: str, name: str) -> list[str]:
    """The column names: those of the first row, or FLAN's, whose files have no header but a question with spaces."""
    if delimiter == "\t" and len(cells) == len(FLAN) and re.search(r"\s", cells[0].strip()):
        return FLAN
    if twice := next((cell for cell in cells if cells.count(cell) > 1), None):
        raise InputError(f"two columns are called {twice!r}", file=name, line=1, fix="give each its own name")
    return cells


def _parquet(paths: list[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    for path in paths:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1000):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
        except pyarrow.ArrowException as error:
            raise InputError(f"not readable as Parquet: {str(error).splitlines()[0]}", file=str(path)) from None


def _folder(path: Path) -> Table:
    """A folder that `datasets` wrote, or one with Parquet files: the one split that it holds. Two are never mixed."""
    name, source = str(path), path.name
    if (path / "dataset_dict.json").is_file():
        parts = sorted(child.name for child in path.iterdir() if (child / "state.json").is_file())
        path = path / _only(parts, path, "a folder")
    if (path / "state.json").is_file():
        return Table(name, source, "row", _saved(path))
    by_split: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*.parquet")):
        stem = file.relative_to(path).with_suffix("").as_posix()
        by_split.setdefault(re.sub(r"(-\d+-of-\d+|/\d+)$", "", stem), []).append(file)
    if not by_split:
        held = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
        raise InputError(f"the folder holds no data set (it holds {held})", file=name, fix="name the file to read")
    return Table(name, source, "row", _parquet(by_split[_only(sorted(by_split), path, "a file")]))


def _only(splits: list[str], path: Path, kind: str) -> str:
    if len(splits) != 1:
        problem = f"the folder holds {len(splits)} splits: {', '.join(splits)}"
        raise InputError(problem, file=str(path), fix=f"name {kind} inside it")
    return splits[0]


def _saved(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import datasets

    try:
        yield from enumerate(datasets.load_from_disk(str(path)), start=1)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"the folder cannot be loaded: {str(error).splitlines()[0]}", file=str(path)) from None


def read_hub(identifier: str, split: str = "train", revision: str | None = None) -> Table:
    """One split of a data set on the Hugging Face hub, as rows for `read_prompts` and `read_conversations`.

    Raises InputError where `identifier` is a path or the hub has no such data, and WorkError without a network.
    """
    if Path(identifier).exists():
        raise InputError(f"{identifier!r} is a file or folder here, not a hub id", key="hub", fix="name it with `path`")
    import datasets

    try:
        data = datasets.load_dataset(identifier, split=split, revision=revision)
    except ConnectionError:
        raise WorkError(
            f"the hub could not be reached for the data set {identifier!r}",
            key="hub",
            fix="check the network and HF_HUB_OFFLINE, or download the data set and name it with `path`",
        ) from None
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"the data set {identifier!r} (split {split!r}, {revision or 'newest'}) cannot be loaded: {problem}",
            key="hub",
            fix="check the id, the split and the revision on its page; a gated one needs `hf auth login`",
        ) from None
    return Table(identifier, identifier, "row", enumerate(data, start=1))
