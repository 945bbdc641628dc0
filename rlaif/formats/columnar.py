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
from typing import TYPE_CHECKING, Any, NamedTuple

from rlaif.errors import InputError, first_line
from rlaif.files import MOST_RECORDED, opened, read_whole
from rlaif.formats.footer import Chunk, Group, row_groups

if TYPE_CHECKING:
    import pyarrow

Numbered = tuple[int, dict[str, Any]]

BATCH = 1000  # rows decoded at a time; fewer where they are large, or a value that is stored once may be
MOST_OF_BATCH = 128_000_000  # bytes of them
MOST_OF_ROW = 512_000_000  # bytes of one row, as Python's objects
MOST_BYTES = 16_000_000  # of one text, as in files of lines
MOST_OF_VALUE = 256_000_000  # bytes of one value with all that is in it, as Python's objects
MOST_VALUES = 2_000_000  # in the lists of one row, on the average of a row group
LEVELS = 16  # bytes of a value in a list with its place in it, before it becomes Python's object
# A page is unpacked as a whole, and one of each column is in memory at once.
MOST_OF_PAGES, MOST_PAGES_RATIO = 400_000_000, 10
# Lists that together unpack to more than this, and so many times their size, could all be in one row.
MUCH_UNPACKED, MOST_UNPACKED_RATIO = 256_000_000, 100
# The rest is read a little at a time, and takes time but no memory. A file that holds more rows than that, and more
# than its bytes can tell apart, repeats a few; so does one whose rows together are so large, so many times its size.
MANY_ROWS, ROWS_PER_BYTE = 5_000_000, 64
MUCH_DECODED, MOST_DECODED_RATIO = 2_000_000_000, 1000
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
                read = columns.worth(group)
                rows = columns.rows_at_a_time(group, read.chunks)
                for batch in columns.batches(table, number_of_group, read, rows):
                    for row in columns.python(batch, number, read.instead):
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
                    for row in columns.python(batch.slice(start, BATCH), number, {}):
                        number += 1
                        yield number, columns.with_json(row, decoders, number) if decoders else row


class _Read(NamedTuple):
    """The columns of a row group that are read, and what stands in a row instead of each other one."""

    indices: list[int]
    chunks: list[Chunk]
    instead: dict[str, bytes]


def _left_out(reason: str) -> bytes:
    """What stands instead of a value that is not read. An error over a value that is no text says what its type is
    called: here, the reason."""
    stands: type[bytes] = type(reason, (bytes,), {})
    return stands()


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
        if isinstance(
            error,
            pyarrow.ArrowException | OSError | ValueError | LookupError | TypeError | OverflowError | RecursionError,
        ):
            raise self.error(f"not readable as {self.kind}: {first_line(error)}", "copy or download it again") from None
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

    def worth(self, group: Group) -> _Read:
        """What to read of a row group. Bytes are no part of any shape, and a column may be too large to be used."""
        large: dict[str, bytes] = {}
        held = 0
        for chunk in sorted(group.chunks, key=_held):
            held += 0 if chunk.is_bytes else _held(chunk)
            if not chunk.is_bytes and (reason := self._too_large(chunk, group.rows, held)):
                large[chunk.path[0]] = _left_out(reason)
                held -= _held(chunk)
        read = [(i, chunk) for i, chunk in enumerate(group.chunks) if not chunk.is_bytes and chunk.path[0] not in large]
        there = {chunk.path[0] for _, chunk in read}
        nothing = {chunk.path[0]: b"" for chunk in group.chunks if chunk.path[0] not in there}
        return _Read([i for i, _ in read], [chunk for _, chunk in read], nothing | large)

    def _too_large(self, chunk: Chunk, rows: int, held: int) -> str | None:
        """Why a column is not read, where it is too large; `held` bytes are one page of each column up to it."""
        if chunk.values > max(1, rows) * MOST_VALUES:
            return f"more than {MOST_VALUES:,} values a row"
        if chunk.dictionary and chunk.repeated > MOST_BYTES:
            return f"a text of {chunk.repeated:,} bytes, more than {MOST_BYTES:,}"
        if held > (most := max(MOST_OF_PAGES, self.size * MOST_PAGES_RATIO)):
            return f"pages that unpack to {_held(chunk):,} bytes, with those beside it more than {most:,}"
        if len(chunk.path) > 1 and chunk.unpacked > max(MUCH_UNPACKED, chunk.packed * MOST_UNPACKED_RATIO):
            return f"lists that unpack to {chunk.unpacked:,} bytes, over {MOST_UNPACKED_RATIO} times their size"
        return None

    def rows_at_a_time(self, group: Group, chunks: Sequence[Chunk]) -> int:
        """How many rows of a row group to decode at a time, by their mean, the largest value that may repeat, and the
        largest pages that follow each other."""
        rows = max(1, group.rows)
        values = [-(-chunk.values // rows) for chunk in chunks]
        mean = sum(chunk.unpacked // rows + each * LEVELS for chunk, each in zip(chunks, values, strict=True))
        largest = sum(
            chunk.repeated * each for chunk, each in zip(chunks, values, strict=True) if not _repeats_in_lists(chunk)
        )
        at_a_time = min(BATCH, max(1, MOST_OF_BATCH // max(1, mean, largest)))
        while at_a_time > 1 and sum(_densest(chunk, at_a_time) for chunk in chunks) > MOST_OF_PAGES:
            at_a_time //= 2
        return at_a_time

    def batches(self, table: Any, group: int, read: _Read, rows: int) -> Iterator[pyarrow.RecordBatch]:
        """The batches of a row group. Values that could fill the memory in the lists of one row stay numbers of their
        dictionary, until it is known how many there are."""
        import pyarrow.parquet

        if names := [chunk.name for chunk in read.chunks if _repeats_in_lists(chunk)]:
            table = pyarrow.parquet.ParquetFile(self.file, metadata=table.metadata, read_dictionary=names)
        yield from table.reader.iter_batches(rows, [group], column_indices=read.indices)

    def python(self, batch: pyarrow.RecordBatch, before: int, instead: dict[str, bytes]) -> Iterator[dict[str, Any]]:
        """The rows of a batch, with what stands instead of columns; `before` rows of the data set came earlier."""
        import pyarrow.compute

        total, bytes_ = 0, (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_binary_view)
        left: dict[str, bytes] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if any(are(column.type) for are in bytes_):
                left[name] = b""
                continue
            size, longest = _decoded(column, pyarrow)
            if longest > MOST_BYTES:
                left[name] = _left_out(f"a text of {longest:,} bytes, more than {MOST_BYTES:,}")
            elif size > MOST_OF_VALUE:
                left[name] = _left_out(f"more than {MOST_OF_VALUE // 1_000_000} MB")
            else:
                total += size
        if batch.num_rows > 1 and (total > MOST_OF_BATCH or any(type(value) is not bytes for value in left.values())):
            half = batch.num_rows // 2
            yield from self.python(batch.slice(0, half), before, instead)
            yield from self.python(batch.slice(half), before + half, instead)
            return
        if total > MOST_OF_ROW:
            raise self.error(f"row {before + 1} has more than {MOST_OF_ROW // 1_000_000} MB")
        self.decoded += total
        if self.decoded > max(MUCH_DECODED, self.size * MOST_DECODED_RATIO):
            times = f"more than {MOST_DECODED_RATIO:,} times its {self.size:,} bytes, so they repeat a few"
            last = before + batch.num_rows
            raise self.error(f"its rows are {self.decoded:,} bytes up to row {last:,}, {times}", "keep each row once")
        if left:
            batch, instead = batch.drop_columns(list(left)), {**instead, **left}
        try:
            rows: list[dict[str, Any]] = batch.to_pylist()
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            row, name, reason = _unreadable(batch, error)
            problem = f"row {before + row}: the column {name[:40]!r} cannot be read: {reason}"
            raise self.error(problem, "correct the value, or leave the column out") from None
        yield from (row | instead for row in rows) if instead else rows

    def with_json(self, row: dict[str, Any], decoders: Mapping[str, Decode], number: int) -> dict[str, Any]:
        """The row with those columns decoded that hold JSON as text; bytes stand instead of what was left out."""
        there = {name: decode for name, decode in decoders.items() if not isinstance(row[name], bytes)}
        try:
            return row | {name: decode(row[name]) for name, decode in there.items()}
        except (ValueError, RecursionError) as error:
            raise self.error(f"row {number}: not valid JSON: {first_line(error)}") from None


def repeated(names: Iterable[str]) -> str | None:
    """The first name that is there twice."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _held(chunk: Chunk) -> int:
    """The most bytes of a column's pages that are in memory at once; those of a dictionary are there twice."""
    return max((size for _, size in chunk.pages), default=0) + 2 * chunk.dictionary


def _repeats_in_lists(chunk: Chunk) -> bool:
    return len(chunk.path) > 1 and chunk.coded * chunk.repeated > MUCH_UNPACKED and chunk.dictionary > 0


def _densest(chunk: Chunk, values: int) -> int:
    """The most bytes that so many values one after another are, by the pages that they are in."""
    if chunk.unpacked <= MOST_OF_BATCH:
        return chunk.unpacked
    most = size = count = first = 0
    for many, large in chunk.pages:
        size, count = size + large, count + many
        while count - chunk.pages[first][0] - many >= values:
            size, count, first = size - chunk.pages[first][1], count - chunk.pages[first][0], first + 1
        most = max(most, size)
    return most


def _unreadable(batch: pyarrow.RecordBatch, error: Exception) -> tuple[int, str, str]:
    """The first value that Python cannot hold, by its row in the batch from 1 and its column, and why."""
    for row in range(batch.num_rows):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column[row].as_py()
            except Exception as of_value:
                unicode = isinstance(of_value, UnicodeDecodeError)
                return row + 1, name, "not UTF-8 text" if unicode else first_line(of_value)
    return 1, batch.schema.names[0], first_line(error)


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
