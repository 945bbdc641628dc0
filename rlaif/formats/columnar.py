"""Rows from Parquet files and from folders that `datasets` saved, a few at a time.

A small file of columns can hold very much: a value is stored once and repeated by a number. What a file says of itself
is checked before it is decoded, and what was decoded before it becomes Python's objects.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.errors import InputError
from rlaif.files import MOST_RECORDED, opened, read_whole
from rlaif.formats.footer import Group, row_groups

if TYPE_CHECKING:
    import pyarrow

Numbered = tuple[int, dict[str, Any]]

BATCH = 256  # rows decoded at a time; fewer where they are large, or a value that is stored once may be
MOST_OF_BATCH = 128_000_000  # bytes of them
MOST_OF_ROW = 512_000_000  # bytes of one row, as Python's objects
MOST_BYTES = 16_000_000  # of one text, as in files of lines
MOST_VALUES = 100_000  # in the lists of one row, on the average of a row group
# A file that holds more rows than that, and more rows than its bytes can tell apart, repeats a few without end.
MANY_ROWS, ROWS_PER_BYTE = 1_000_000, 8
# So does one whose rows together are so large, and so many times its size.
MUCH_DECODED, MOST_DECODED_RATIO = 1_000_000_000, 1000
# A column of a row group that unpacks to more than this, and so many times its size, was made to fill the memory.
MUCH_UNPACKED, MOST_UNPACKED_RATIO = 256_000_000, 100
Decode = Callable[[Any], Any]


def parquet(paths: Sequence[Path]) -> Iterator[Numbered]:
    """The rows of Parquet files, numbered from 1. Raises InputError with file, column and row."""
    import pyarrow.parquet

    number = 0
    for path in paths:
        with _Columns(path, "Parquet") as columns, pyarrow.parquet.ParquetFile(columns.file) as table:
            columns.check_names(table.schema_arrow.names)
            columns.check_rows(table.metadata.num_rows)
            for number_of_group, group in enumerate(row_groups(columns.file.fileno())):
                rows = columns.rows_at_a_time(group)
                for batch in table.iter_batches(batch_size=rows, row_groups=[number_of_group]):
                    for row in columns.python(batch, number):
                        number += 1
                        yield number, row


def saved(folder: Path) -> Iterator[Numbered]:
    """The rows of a folder that `datasets` saved. Nothing that its description names is decoded, opened or fetched."""
    import pyarrow.ipc

    number = 0
    for path in _data_files(folder):
        with _Columns(path, "Arrow") as columns, pyarrow.ipc.open_stream(columns.file) as table:
            columns.check_names(table.schema.names)
            decoders = {field.name: decode for field in table.schema if (decode := _json_in(field.type))}
            for batch in table:
                columns.check_rows(batch.num_rows)
                for start in range(0, batch.num_rows, BATCH):
                    for row in columns.python(batch.slice(start, BATCH), number):
                        number += 1
                        yield number, columns.with_json(row, decoders, number) if decoders else row


class _Columns:
    """A file of columns, opened: what the library cannot read of it, or what is too much, raises InputError."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self.decoded = 0  # bytes of its rows so far

    def __enter__(self) -> _Columns:
        try:
            self.file = opened(self.path)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=str(self.path)) from None
        self.size = os.fstat(self.file.fileno()).st_size
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        import pyarrow

        self.file.close()
        # Damaged bytes give errors of every kind.
        if isinstance(error, pyarrow.ArrowException | OSError | ValueError | LookupError | TypeError | OverflowError):
            raise self.error(f"not readable as {self.kind}: {_reason(error)}", "copy or download it again") from None
        if isinstance(error, MemoryError):
            raise self.error(f"not readable as {self.kind}: a part of it is larger than the memory") from None

    def error(self, problem: str, fix: str | None = None) -> InputError:
        return InputError(problem, file=str(self.path), fix=fix)

    def check_names(self, names: Iterable[str]) -> None:
        if (twice := repeated(names)) is not None:
            raise self.error(f"two columns are called {twice[:40]!r}", "give each its own name")

    def check_rows(self, count: int) -> None:
        if count > max(MANY_ROWS, self.size * ROWS_PER_BYTE):
            problem = f"{count:,} rows in {self.size:,} bytes: more than {ROWS_PER_BYTE} a byte, so they repeat a few"
            raise self.error(problem, "keep each row once")

    def rows_at_a_time(self, group: Group) -> int:
        """How many rows of a row group to decode at a time, by their mean and by the largest value that may repeat."""
        for chunk in group.chunks:
            if chunk.unpacked > max(MUCH_UNPACKED, chunk.packed * MOST_UNPACKED_RATIO):
                large = f"unpacks to {chunk.unpacked:,} bytes, over {MOST_UNPACKED_RATIO} times its size"
                raise self.error(f"the column {chunk.name[:80]!r} {large}", "write it again in smaller row groups")
            if chunk.values > max(1, group.rows) * MOST_VALUES:
                raise self.error(f"the column {chunk.name[:80]!r} has more than {MOST_VALUES:,} values a row")
        mean = sum(chunk.unpacked for chunk in group.chunks) // max(1, group.rows)
        largest = max((chunk.repeated for chunk in group.chunks), default=1)
        return min(BATCH, max(1, MOST_OF_BATCH // max(1, mean, largest)))

    def python(self, batch: pyarrow.RecordBatch, before: int) -> Iterator[dict[str, Any]]:
        """The rows of a batch; `before` rows of the data set came earlier."""
        import pyarrow.compute

        total = 0
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            size, longest = _decoded(column, pyarrow)
            total += size
            if longest > MOST_BYTES:
                raise self.error(f"the column {name[:40]!r} has a text of {longest:,} bytes, more than {MOST_BYTES:,}")
        if total > MOST_OF_BATCH and batch.num_rows > 1:
            half = batch.num_rows // 2
            yield from self.python(batch.slice(0, half), before)
            yield from self.python(batch.slice(half), before + half)
            return
        if total > MOST_OF_ROW:
            raise self.error(f"row {before + 1} has more than {MOST_OF_ROW // 1_000_000} MB")
        self.decoded += total
        if self.decoded > max(MUCH_DECODED, self.size * MOST_DECODED_RATIO):
            times = f"more than {MOST_DECODED_RATIO:,} times its {self.size:,} bytes, so they repeat a few"
            last = before + batch.num_rows
            raise self.error(f"its rows are {self.decoded:,} bytes up to row {last:,}, {times}", "keep each row once")
        try:
            rows: list[dict[str, Any]] = batch.to_pylist()
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            row, name, reason = _unreadable(batch, error)
            problem = f"row {before + row}: the column {name[:40]!r} cannot be read: {reason}"
            raise self.error(problem, "correct the value, or leave the column out") from None
        yield from rows

    def with_json(self, row: dict[str, Any], decoders: Mapping[str, Decode], number: int) -> dict[str, Any]:
        """The row with those columns decoded that hold JSON as text."""
        try:
            return row | {name: decode(row[name]) for name, decode in decoders.items()}
        except (ValueError, RecursionError) as error:
            raise self.error(f"row {number}: not valid JSON: {_reason(error)}") from None


def repeated(names: Iterable[str]) -> str | None:
    """The first name that is there twice."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


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


def _decoded(column: pyarrow.Array, arrow: Any) -> tuple[int, int]:
    """About how many bytes an array is as Python's objects, and those of its longest text."""
    kind, types, own = column.type, arrow.types, len(column) * VALUE_BYTES
    if isinstance(kind, arrow.BaseExtensionType):
        return _decoded(column.storage, arrow)
    if types.is_dictionary(kind):
        lengths = _lengths(column.dictionary, arrow)
        parts = [] if lengths is None else [_sum_and_most(lengths.take(column.indices), arrow)]
    elif (lengths := _lengths(column, arrow)) is not None:
        parts = [_sum_and_most(lengths, arrow)]
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        parts = [_decoded(column.flatten(), arrow)]
    elif types.is_struct(kind):
        parts = [_decoded(part, arrow) for part in column.flatten()]
    elif types.is_map(kind):
        parts = [_decoded(part, arrow) for part in (column.keys, column.items)]
    else:
        parts = [(int(column.nbytes), 0)]
    return own + sum(size for size, _ in parts), max((longest for _, longest in parts), default=0)


def _lengths(column: pyarrow.Array, arrow: Any) -> pyarrow.Array | None:
    """The length of each text or run of bytes; None of another type."""
    kinds = (arrow.string(), arrow.large_string(), arrow.binary(), arrow.large_binary())
    return arrow.compute.binary_length(column) if column.type in kinds else None


def _sum_and_most(lengths: pyarrow.Array, arrow: Any) -> tuple[int, int]:
    return int(arrow.compute.sum(lengths).as_py() or 0), int(arrow.compute.max(lengths).as_py() or 0)


# ---------------------------------------------------------------- what `datasets` saves


def _data_files(folder: Path) -> list[Path]:
    """The files that the folder's state names, which must be inside it."""
    state = folder / "state.json"
    try:
        files = json.loads(read_whole(state, MOST_RECORDED))["_data_files"]
        names = [file["filename"] for file in files]
        if not (folder / "dataset_info.json").is_file():
            raise ValueError("dataset_info.json is missing")
        if not all(isinstance(name, str) and _is_inside(name) for name in names):
            raise ValueError("a data file is named that is not in the folder")
        if repeated(names) is not None:
            raise ValueError("a data file is named twice")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(state)) from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        problem = f"the folder cannot be loaded: {_state_problem(error)}"
        raise InputError(problem, file=str(state), fix="save the data set again with `save_to_disk`") from None
    return [folder / name for name in names]


def _is_inside(name: str) -> bool:
    return Path(name).name == name and "\0" not in name and len(name) <= 255


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
