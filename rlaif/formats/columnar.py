"""Rows from Parquet files and from folders that `datasets` saved, a few at a time.

A small file of columns can hold very much: a value is stored once and repeated by a number. What a file says of itself
is checked before it is decoded, and what was decoded before it becomes Python's objects.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rlaif.errors import InputError
from rlaif.files import MOST_RECORDED, opened, read_whole

if TYPE_CHECKING:
    import pyarrow

Numbered = tuple[int, dict[str, Any]]

BATCH = 64  # rows decoded at a time; fewer of columns with large values
MOST_DECODED = 512_000_000  # bytes of such rows
MOST_VALUES = 100_000  # in the lists of one row, on the average of a row group
# A file that holds more rows than that, and more rows than its bytes can tell apart, repeats a few without end.
MANY_ROWS, ROWS_PER_BYTE = 1_000_000, 8
# A column of a row group that unpacks to more than this, and so many times its size, was made to fill the memory.
MOST_UNPACKED, MOST_RATIO = 256_000_000, 500


def parquet(paths: Sequence[Path]) -> Iterator[Numbered]:
    """The rows of Parquet files, numbered from 1. Raises InputError with file, column and row."""
    import pyarrow.parquet

    number = 0
    for path in paths:
        with _reading(path, "Parquet") as file, pyarrow.parquet.ParquetFile(file) as table:
            _check_columns(table.schema_arrow.names, path)
            _check_rows(table.metadata.num_rows, file, path)
            for group in range(table.num_row_groups):
                rows = _check_group(table.metadata.row_group(group), path)
                for batch in table.iter_batches(batch_size=rows, row_groups=[group]):
                    for row in _python(batch, number, path):
                        number += 1
                        yield number, row


def saved(folder: Path) -> Iterator[Numbered]:
    """The rows of a folder that `datasets` saved. Nothing that its description names is decoded, opened or fetched."""
    import pyarrow.ipc

    number = 0
    for path in _data_files(folder):
        with _reading(path, "Arrow") as file, pyarrow.ipc.open_stream(file) as table:
            _check_columns(table.schema.names, path)
            decoders = {field.name: decode for field in table.schema if (decode := _json_in(field.type))}
            for batch in table:
                _check_rows(batch.num_rows, file, path)
                for start in range(0, batch.num_rows, BATCH):
                    for row in _python(batch.slice(start, BATCH), number, path):
                        number += 1
                        yield number, _with_json(row, decoders, number, path) if decoders else row


Decode = Callable[[Any], Any]


def _with_json(row: dict[str, Any], decoders: Mapping[str, Decode], number: int, path: Path) -> dict[str, Any]:
    """The row with those columns decoded that hold JSON as text."""
    try:
        return row | {name: decode(row[name]) for name, decode in decoders.items()}
    except (ValueError, RecursionError) as error:
        raise InputError(f"row {number}: not valid JSON: {_reason(error)}", file=str(path)) from None


class _reading:
    """A file of columns, opened. What the library cannot read raises InputError."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind = path, kind

    def __enter__(self) -> BinaryIO:
        try:
            self._file = opened(self._path)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=str(self._path)) from None
        return self._file

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        import pyarrow

        self._file.close()
        # Damaged bytes give errors of every kind.
        if isinstance(error, pyarrow.ArrowException | OSError | ValueError | LookupError | TypeError | OverflowError):
            problem = f"not readable as {self._kind}: {_reason(error)}"
            raise InputError(problem, file=str(self._path), fix="copy or download it again") from None
        if isinstance(error, MemoryError):
            problem = f"not readable as {self._kind}: a part of it is larger than the memory"
            raise InputError(problem, file=str(self._path)) from None


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _check_columns(names: Iterable[str], path: Path) -> None:
    if (twice := repeated(names)) is not None:
        raise InputError(f"two columns are called {twice[:40]!r}", file=str(path), fix="give each its own name")


def repeated(names: Iterable[str]) -> str | None:
    """The first name that is there twice."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _check_rows(count: int, file: BinaryIO, path: Path) -> None:
    here = file.tell()
    size = file.seek(0, 2)
    file.seek(here)
    if count > max(MANY_ROWS, size * ROWS_PER_BYTE):
        problem = f"{count:,} rows in {size:,} bytes: more than {ROWS_PER_BYTE} a byte, so they repeat a few"
        raise InputError(problem, file=str(path), fix="keep each row once")


def _check_group(group: Any, path: Path) -> int:
    """How many rows of a row group to decode at a time, by the largest value that it can hold."""
    largest = 1
    for chunk in map(group.column, range(group.num_columns)):
        unpacked, packed = chunk.total_uncompressed_size, max(1, chunk.total_compressed_size)
        largest = max(largest, unpacked)
        if unpacked > MOST_UNPACKED and unpacked > packed * MOST_RATIO:
            raise InputError(
                f"the column {chunk.path_in_schema[:80]!r} unpacks to {unpacked:,} bytes, more than {MOST_RATIO} times "
                f"its size",
                file=str(path),
                fix="write it again in smaller row groups",
            )
        if chunk.num_values > max(1, group.num_rows) * MOST_VALUES:
            problem = f"the column {chunk.path_in_schema[:80]!r} has more than {MOST_VALUES:,} values a row"
            raise InputError(problem, file=str(path))
    return min(BATCH, max(16, MOST_DECODED // largest))


def _python(batch: pyarrow.RecordBatch, before: int, path: Path) -> list[dict[str, Any]]:
    """The rows of a batch; `before` rows of the data set came earlier."""
    import pyarrow.compute

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if _decoded(column, pyarrow) > MOST_DECODED:
            size, last = f"more than {MOST_DECODED // 1_000_000} MB", before + batch.num_rows
            problem = f"the column {name[:40]!r} has {size} in {batch.num_rows} rows, up to row {last:,}"
            raise InputError(problem, file=str(path), fix="is it the right file?")
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        row, name, reason = _unreadable(batch, error)
        problem = f"row {before + row}: the column {name[:40]!r} cannot be read: {reason}"
        raise InputError(problem, file=str(path), fix="correct the value, or leave the column out") from None
    return rows


def _unreadable(batch: pyarrow.RecordBatch, error: Exception) -> tuple[int, str, str]:
    """The first value that Python cannot hold, by its row in the batch from 1 and its column, and why."""
    for row in range(batch.num_rows):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column[row].as_py()
            except Exception as of_value:
                unicode = isinstance(of_value, UnicodeDecodeError)
                return row + 1, name, "not UTF-8 text" if unicode else _reason(of_value)
    return 1, batch.schema.names[0], _reason(error)


VALUE_BYTES = 64  # of a small object and the place that holds it


def _decoded(column: pyarrow.Array, arrow: Any) -> int:
    """About how many bytes an array is as Python's objects."""
    kind, types, total = column.type, arrow.types, len(column) * VALUE_BYTES
    if isinstance(kind, arrow.BaseExtensionType):
        return _decoded(column.storage, arrow)
    if types.is_dictionary(kind):
        lengths = _lengths(column.dictionary, arrow)
        return total if lengths is None else total + _sum(lengths.take(column.indices), arrow)
    if (lengths := _lengths(column, arrow)) is not None:
        return total + _sum(lengths, arrow)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return total + _decoded(column.flatten(), arrow)
    if types.is_struct(kind):
        return total + sum(_decoded(part, arrow) for part in column.flatten())
    if types.is_map(kind):
        return total + _decoded(column.keys, arrow) + _decoded(column.items, arrow)
    return total + int(column.nbytes)


def _lengths(column: pyarrow.Array, arrow: Any) -> pyarrow.Array | None:
    """The length of each text or run of bytes; None of another type."""
    kinds = (arrow.string(), arrow.large_string(), arrow.binary(), arrow.large_binary())
    return arrow.compute.binary_length(column) if column.type in kinds else None


def _sum(lengths: pyarrow.Array, arrow: Any) -> int:
    return int(arrow.compute.sum(lengths).as_py() or 0)


# ---------------------------------------------------------------- what `datasets` saves


def _data_files(folder: Path) -> list[Path]:
    """The files that the folder's state names, which must be inside it."""
    state = folder / "state.json"
    try:
        files = json.loads(read_whole(state, MOST_RECORDED))["_data_files"]
        names = [file["filename"] for file in files]
        if not (folder / "dataset_info.json").is_file():
            raise ValueError("dataset_info.json is missing")
        if not all(isinstance(name, str) and Path(name).name == name and "\0" not in name for name in names):
            raise ValueError("a data file is named that is not in the folder")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(state)) from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        problem = f"the folder cannot be loaded: {_state_problem(error)}"
        raise InputError(problem, file=str(state), fix="save the data set again with `save_to_disk`") from None
    return [folder / name for name in names]


def _state_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "its state is not JSON"
    return str(error) if type(error) is ValueError else "its state names no data files"


def _json_in(kind: pyarrow.DataType) -> Decode | None:
    """What decodes the values of a type that holds JSON somewhere; None for any other."""
    import pyarrow

    types = pyarrow.types
    if isinstance(kind, pyarrow.JsonType):
        return lambda text: None if text is None else json.loads(text)
    if types.is_list(kind) or types.is_large_list(kind):
        each = _json_in(kind.value_type)
        return each and (lambda values: values and [each(value) for value in values])
    if types.is_struct(kind):
        parts = {field.name: decode for field in kind if (decode := _json_in(field.type))}
        if parts:
            return lambda value: value and value | {name: decode(value[name]) for name, decode in parts.items()}
    return None
