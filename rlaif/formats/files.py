"""Rows from the files people have: JSON Lines, JSON, CSV, TSV, text, Parquet, folders of `datasets`, the hub.

Knows file types and nothing of column names. Every row keeps its line or row number, so that an error can name it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from rlaif.errors import InputError, WorkError, first_line
from rlaif.files import opened, why
from rlaif.formats import columnar
from rlaif.records import writable


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
    names = [f"`{writable(str(name)[:40])}`" for name in row]
    return ", ".join(names[:12] + (["..."] if len(names) > 12 else [])) or "nothing"


def rows_of(path: Path) -> Table:
    """The rows of a file or folder, read lazily. Raises InputError for an unknown type of file."""
    if path.is_dir():
        try:
            return _folder(path)
        except OSError as error:
            problem = f"the folder cannot be read: {why(error)}"
            raise InputError(problem, file=str(path), fix="name the file to read") from None
    ending = path.name.lower().removesuffix(".gz")
    name, source = str(path), path.name
    if ending.endswith((".jsonl", ".ndjson", ".jsonlines")):
        if _begins_list(path):  # some tools write one list under this name, too
            return Table(name, source, "row", _json_list(path))
        return Table(name, source, "line", _json_lines(path))
    if ending.endswith(".txt"):
        return Table(name, source, "line", _text_lines(path))
    if ending.endswith(".json"):
        return Table(name, source, "row", _json_list(path))
    if ending.endswith(".csv"):
        return Table(name, source, "line", _separated(path, None, csv.QUOTE_MINIMAL))
    if ending.endswith(".tsv"):
        # Tab-separated text has no quoting: a quotation mark is part of the text, as FLAN's files need.
        return Table(name, source, "line", _separated(path, "\t", csv.QUOTE_NONE))
    if path.suffix == ".parquet":
        return Table(name, source, "row", columnar.parquet([path]))
    raise InputError(
        "unknown type of file",
        file=name,
        fix="use .jsonl, .json, .csv, .tsv or .txt (each also .gz), .parquet, or a folder",
    )


@contextmanager
def _opened(path: Path) -> Iterator[_Lines]:
    """The file as text, a line at a time. What cannot be read raises InputError."""
    try:
        with opened(path) as file:
            plain = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            with io.TextIOWrapper(plain, encoding="utf-8-sig", newline="") as text:
                yield _Lines(text, str(path))
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", file=str(path), fix="save the file as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError("not a whole gzip file", file=str(path), fix="copy or download it again") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=str(path)) from None


# Characters of one line of JSON, one value of a list of them, or one row of a table, which is read as a whole: a
# transcript of a million tokens has 5 million. As Python's objects they are some hundred MB at worst.
MOST_CHARACTERS = 16_000_000
MOST_EMPTY = 1_000_000  # lines in a row; a small .gz can hold billions


class _Lines:
    """The lines of a text. `left` bounds the characters of those that follow; who has read a value sets it anew."""

    def __init__(self, file: TextIO, name: str) -> None:
        self.file, self.name, self.number, self.left = file, name, 0, MOST_CHARACTERS

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline(self.left + 1)
        self.number += 1
        self.left -= len(line)
        if self.left < 0:
            raise self.too_long("the row")
        if not line:
            raise StopIteration
        return line

    def too_long(self, what: str) -> InputError:
        problem = f"{what} has more than {MOST_CHARACTERS:,} characters"
        return InputError(problem, file=self.name, line=self.number, fix="is it the right file? If so, split it")

    def too_empty(self) -> InputError:
        return InputError(f"more than {MOST_EMPTY:,} empty lines in a row", file=self.name, line=self.number)


class _Twice(Exception):
    """An object of JSON has a key twice, of which Python's reader would keep the last."""

    def __init__(self, key: str) -> None:
        self.key = key

    def error(self, name: str, line: int) -> InputError:
        return InputError(f"the key {names([self.key])} is written twice", file=name, line=line, fix="keep one of them")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise _Twice(str(columnar.repeated(key for key, _ in pairs)))
    return read


_decoder = json.JSONDecoder(object_pairs_hook=_once)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with _opened(path) as lines:
        read, most, empty = lines.file.readline, MOST_CHARACTERS + 1, 0
        for number, line in enumerate(iter(lambda: read(most), ""), start=1):
            if len(line) == most or not line.strip():
                lines.number, empty = number, empty + 1
                if len(line) == most:
                    raise lines.too_long("the line")
                if empty > MOST_EMPTY:
                    raise lines.too_empty()
                continue
            empty = 0
            try:
                row = _decoder.decode(line)
            except _Twice as twice:
                raise twice.error(str(path), number) from None
            except (ValueError, RecursionError) as error:
                problem, fix = f"not valid JSON: {error}", "put one object on each line"
                if isinstance(error, json.JSONDecodeError):
                    problem = f"not valid JSON: {_what(error)} at column {error.pos + 1}"
                    if _is_unfinished(line, error):
                        fix = "the last line is unfinished: finish it, or remove it"
                raise InputError(problem, file=str(path), line=number, fix=fix) from None
            if not isinstance(row, dict):
                problem = f"expected an object, found {type(row).__name__}"
                raise InputError(problem, file=str(path), line=number, fix=AN_OBJECT)
            yield number, row


def _what(error: json.JSONDecodeError) -> str:
    """What is wrong, to be followed by "at" and the place: some of Python's messages end with it already."""
    return error.msg.removesuffix(" at")


def _is_unfinished(line: str, error: json.JSONDecodeError) -> bool:
    """Whether a line ends too soon, without its end, as that of a file of which a part is missing."""
    return line[-1] not in "\r\n" and (error.pos >= len(line) or error.msg.startswith("Unterminated string"))


AN_OBJECT = 'write each row as an object, {"prompt": "..."}; a file of bare prompts, one on each line, is called .txt'


def _begins_list(path: Path) -> bool:
    """Whether the first character is that of a list. What cannot be read is an error later, when it is read."""
    try:
        with _opened(path) as lines:
            return lines.file.read(MOST_SPACE).lstrip()[:1] == "["
    except InputError:
        return False


MOST_SPACE = 1_000  # characters before it


def _text_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A prompt a line; empty lines are left out."""
    with _opened(path) as lines:
        empty = 0
        for line in lines:
            lines.left = MOST_CHARACTERS
            text = line.rstrip("\r\n")
            empty = 0 if text.strip() else empty + 1
            if empty > MOST_EMPTY:
                raise lines.too_empty()
            if not empty:
                yield lines.number, {"prompt": text}


def _json_list(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON list, one at a time: the file may be larger than memory."""
    with _opened(path) as lines:
        values = _Values(lines.file, str(path))
        if not values.begins("["):
            if not values.at_end():
                rows = values.next()
                if isinstance(rows, dict) and values.begins_line():  # one object a line, called .json
                    yield from _objects(values, rows, path)
                    return
                if not values.at_end():
                    raise values.error("Extra data")
                kind = f"an object with {names(rows)}" if isinstance(rows, dict) else type(rows).__name__
                fix = "keep only the list of rows, [{...}, {...}], or one object on each line of a .jsonl file"
                raise InputError(f"expected a list of objects, found {kind}", file=str(path), fix=fix)
            return
        number = 0
        while not values.begins("]"):
            if number and not values.begins(","):
                raise values.error("Expecting ',' delimiter")
            number += 1
            row = values.next()
            if not isinstance(row, dict):
                problem = f"row {number}: expected an object, found {type(row).__name__}"
                raise InputError(problem, file=str(path), fix=AN_OBJECT)
            yield number, row
        if not values.at_end():
            raise values.error("Extra data")


def _objects(values: _Values, first: dict[str, Any], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number, row = 1, first
    yield number, row
    while not values.at_end():
        number, row = number + 1, values.next()
        if not isinstance(row, dict):
            problem = f"row {number}: expected an object, found {type(row).__name__}"
            raise InputError(problem, file=str(path), fix=AN_OBJECT)
        yield number, row


_SPACE = re.compile(r"[ \t\n\r]*")


class _Values:
    """The JSON values of a text one after another, of which only a part is in memory."""

    PART = 1_000_000  # characters that are read at a time, or more within a long value

    def __init__(self, file: TextIO, name: str) -> None:
        self.file, self.name = file, name
        self.text, self.at, self.whole = "", 0, False  # a part, the place in it, and whether it is the last
        self.line, self.column = 1, 1  # of the part's first character

    def _more(self) -> bool:
        """Read another part behind what is left of this one. False where there is none."""
        if self.whole:
            return False
        done = self.text[: self.at]
        self.line += done.count("\n")
        self.column = len(done) - done.rfind("\n") if "\n" in done else self.column + len(done)
        rest = self.text[self.at :]
        part = self.file.read(max(self.PART, len(rest)))
        self.text, self.at, self.whole = rest + part, 0, not part
        return bool(part)

    def _skip(self) -> None:
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._more():
                return

    def at_end(self) -> bool:
        self._skip()
        return self.at == len(self.text)

    def begins_line(self) -> bool:
        """Whether another object follows, on a line of its own."""
        before = self.at
        self._skip()
        return self.text.startswith("{", self.at) and "\n" in self.text[before : self.at]

    def begins(self, mark: str) -> bool:
        """Whether `mark` is next. It is passed."""
        self._skip()
        found = self.text.startswith(mark, self.at)
        self.at += len(mark) * found
        return found

    def next(self) -> Any:
        """The next value. Raises InputError for one that is no JSON, or too long."""
        self._skip()
        while True:
            try:
                value, end = _decoder.raw_decode(self.text, self.at)
            except _Twice as twice:
                raise twice.error(self.name, self.line + self.text.count("\n", 0, self.at)) from None
            except (ValueError, RecursionError) as error:
                if len(self.text) - self.at > MOST_CHARACTERS:
                    raise self.error(f"the value has more than {MOST_CHARACTERS:,} characters") from None
                json_error = error if isinstance(error, json.JSONDecodeError) else None
                into = json_error.pos - self.at if json_error else 0  # of what is left, which `_more` moves
                if not self._more():
                    raise self.error(_what(json_error) if json_error else str(error), self.at + into) from None
            else:
                if end < len(self.text) or not self._more():  # a number may go on in the next part
                    self.at = end
                    return value

    def error(self, problem: str, position: int | None = None) -> InputError:
        """An error about the text at a place of this part, by default the present one."""
        before = self.text[: self.at if position is None else position]
        column = len(before) - before.rfind("\n") if "\n" in before else self.column + len(before)
        return InputError(
            f"not valid JSON: {problem} at column {column}",
            file=self.name,
            line=self.line + before.count("\n"),
            fix="give a list of objects; a file with one object per line is called .jsonl",
        )


def _separated(path: Path, delimiter: str | None, quoting: Literal[0, 3]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table; without a `delimiter` it is the one that its first line has."""
    csv.field_size_limit(MOST_CHARACTERS)  # by default a cell has at most 131,072; `lines` bounds the row
    with _opened(path) as lines:
        head = list(islice(lines, 1))
        delimiter = delimiter or _delimiter(head)
        reader = csv.reader(chain(head, lines), delimiter=delimiter, quoting=quoting, strict=True)
        header: list[str] | None = None
        line, empty = 1, 0
        try:
            for cells in reader:
                lines.left = MOST_CHARACTERS
                if header is None:
                    header = _header(cells, delimiter, str(path))
                    is_data = header is FLAN
                else:
                    is_data = bool(cells)  # the reader gives an empty line as no cells
                empty = 0 if cells else empty + 1
                if empty > MOST_EMPTY:
                    raise lines.too_empty()
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


def _delimiter(head: list[str]) -> str:
    """What separates the names in the first line: spreadsheets write `;` where the comma is the decimal point."""
    unquoted = re.sub(r'"[^"]*"', "", "".join(head))
    return max(",;\t|", key=unquoted.count)  # of equal ones the first


FLAN = ["question", "answer", "rationale"]  # FLAN's chain-of-thought files, which write line breaks as \n


def _header(cells: list[str], delimiter: str, name: str) -> list[str]:
    """The column names: those of the first row, or FLAN's, whose files have no header but a question with spaces."""
    if delimiter == "\t" and len(cells) == len(FLAN) and re.search(r"\s", cells[0].strip()):
        return FLAN
    if (twice := columnar.repeated(cells)) is not None:
        raise InputError(f"two columns are called {twice[:40]!r}", file=name, line=1, fix="give each its own name")
    return cells


def _folder(path: Path) -> Table:
    """A folder that `datasets` wrote, or one with Parquet files: the one split that it holds. Two are never mixed."""
    name, source = str(path), path.name
    if (path / "dataset_dict.json").is_file():
        parts = sorted(child.name for child in path.iterdir() if (child / "state.json").is_file())
        path = path / _only(parts, path, "a folder")
    if (path / "state.json").is_file():
        return Table(name, source, "row", columnar.saved(path))
    by_split: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*.parquet")):
        stem = file.relative_to(path).with_suffix("").as_posix()
        by_split.setdefault(re.sub(r"(-\d+-of-\d+|/\d+)$", "", stem), []).append(file)
    if not by_split:
        held = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
        raise InputError(f"the folder holds no data set (it holds {held})", file=name, fix="name the file to read")
    return Table(name, source, "row", columnar.parquet(by_split[_only(sorted(by_split), path, "a file")]))


def _only(splits: list[str], path: Path, kind: str) -> str:
    if len(splits) != 1:
        shown = [split[:80] for split in splits[:8]] + (["..."] if len(splits) > 8 else [])
        problem = f"the folder holds {len(splits):,} splits: {', '.join(shown)}"
        raise InputError(problem, file=str(path), fix=f"name {kind} inside it")
    return splits[0]


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
        problem = first_line(error)
        raise InputError(
            f"the data set {identifier!r} (split {split!r}, {revision or 'newest'}) cannot be loaded: {problem}",
            key="hub",
            fix="check the id, the split and the revision on its page; a gated one needs `hf auth login`",
        ) from None
    return Table(identifier, identifier, "row", enumerate(data, start=1))
