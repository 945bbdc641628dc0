"""Prompts, conversations and preferences from the files people have.

Knows file types (JSON Lines, JSON, CSV, TSV, Parquet, folders of `datasets`, the hub) and the column names in common
use; nothing of what the texts say. A row whose shape is unknown stops the reading with an error that names it; a row of
a known shape that cannot be used (empty, a duplicate, ...) is dropped and counted by reason.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TextIO, TypeVar

from pydantic import model_validator

from rlaif.errors import InputError, WorkError, nearest
from rlaif.records import Message, Prompt, Record, Role, Split, digest, prompt_id, split_of, writable

PROMPT_SHAPES = "`messages`, `conversations`, `prompt`, `instruction` (+ `input` or `instances`), `question`"
CONVERSATION_SHAPES = (
    "`messages`, `conversations`, `prompt` + `completion`, `instruction` (+ `input`) + `output`, "
    "`instruction` + `instances`, `question` + `answer`"
)
PREFERENCE_SHAPES = (
    "`chosen` and `rejected`, as text or messages beside a prompt, as messages with the prompt in them, or as "
    "transcripts of `Human:` and `Assistant:`"
)


class Conversation(Record):
    """Messages that end with an assistant turn: a demonstration."""

    messages: tuple[Message, ...]
    source: str | None = None

    @model_validator(mode="after")
    def _answers_a_prompt(self) -> Conversation:
        if not self.messages or self.messages[-1].role != "assistant":
            raise ValueError("a conversation must end with an assistant turn")
        if not self.messages[-1].content.strip():
            raise ValueError("the completion is empty")
        Prompt(messages=self.messages[:-1])
        return self

    @property
    def id(self) -> str:
        return digest([[m.role, m.content] for m in self.messages], length=16)

    @property
    def prompt(self) -> Prompt:
        """What the last turn answers."""
        return Prompt(messages=self.messages[:-1], source=self.source)

    @property
    def split(self) -> Split:
        """The most withheld of the splits of all the prompts that it answers.

        Training on a conversation teaches every assistant turn, so each is an answer to the turns before it; and a
        held-out prompt may be kept without the system message under which it is answered here.
        """
        splits = {split_of(prompt_id(messages)) for messages in self._prompts()}
        return next(split for split in _MOST_WITHHELD_FIRST if split in splits)

    def _prompts(self) -> Iterator[Sequence[Message]]:
        for turn, message in enumerate(self.messages):
            if message.role == "assistant":
                before = self.messages[:turn]
                for asked in (before, [m for m in before if m.role != "system"]):
                    if asked and asked[-1].role == "user":
                        yield asked


class StatedPreference(Record):
    """A prompt with a chosen and a rejected completion, as somebody else's file states it."""

    prompt: Prompt
    chosen: str
    rejected: str

    @property
    def id(self) -> str:
        return digest([self.prompt.id, self.chosen, self.rejected], length=16)

    @property
    def split(self) -> Split:
        return self.prompt.split


_MOST_WITHHELD_FIRST: tuple[Split, ...] = ("held-out", "validation", "train")
Item = TypeVar("Item", Prompt, Conversation, StatedPreference)


class ReadResult(NamedTuple, Generic[Item]):
    """What could be used, in file order, and how many rows could not, by reason: rows = items + dropped."""

    items: list[Item]
    dropped: dict[str, int]


class Rows(NamedTuple):
    """Rows of one file or data set, each with the place an error names: its line, or its number where it has none."""

    name: str
    source: str
    unit: Literal["line", "row"]
    rows: Iterable[tuple[int, dict[str, Any]]]

    def error(self, place: int, message: str, fix: str | None = None, *, key: str | None = None) -> InputError:
        if self.unit == "line":
            return InputError(message, file=self.name, line=place, key=key, fix=fix)
        return InputError(f"row {place}: {message}", file=self.name, key=key, fix=fix)


def read_prompts(source: Path | Rows, *, column: str | None = None) -> ReadResult[Prompt]:
    """The prompts of a file, or of one named column of it. A trailing assistant turn is cut off."""
    dropped: Counter[str] = Counter()
    return ReadResult(list(each_prompt(source, dropped, column=column)), dict(dropped))


def each_prompt(source: Path | Rows, dropped: Counter[str], *, column: str | None = None) -> Iterator[Prompt]:
    """As `read_prompts`, one after the other as they are read; `dropped` is complete when the last has come."""

    def make(row: dict[str, Any], origin: str) -> Prompt:
        messages = _column(row, column) if column is not None else _prompt_messages(row)
        while messages and messages[-1].role == "assistant":
            messages.pop()
        _check(messages)
        return Prompt(messages=tuple(messages), source=origin)

    return _each(source, make, dropped)


def read_conversations(source: Path | Rows) -> ReadResult[Conversation]:
    """The conversations of a file that end with an assistant turn."""

    def make(row: dict[str, Any], origin: str) -> Conversation:
        messages = _conversation_messages(row)
        if not messages or messages[-1].role != "assistant":
            raise _Unusable("no assistant turn at the end")
        if not messages[-1].content.strip():
            raise _Unusable("empty completion")
        _check(messages, completion=True)
        return Conversation(messages=tuple(messages), source=origin)

    return _read(source, make)


def read_preferences(source: Path | Rows) -> ReadResult[StatedPreference]:
    """The preferences of a file."""

    def make(row: dict[str, Any], origin: str) -> StatedPreference:
        if not {"chosen", "rejected"} <= row.keys():
            raise _unknown(row, PREFERENCE_SHAPES, "under these names")
        chosen, rejected = (_side(row, name) for name in ("chosen", "rejected"))
        for side in (chosen, rejected):
            if not side or side[-1].role != "assistant":
                raise _Unusable("no assistant turn at the end")
            if not side[-1].content.strip():
                raise _Unusable("empty completion")
            _check(side, completion=True)
        if chosen[:-1] != rejected[:-1]:
            raise _Unusable("chosen and rejected answer different prompts")
        if chosen[-1] == rejected[-1]:
            raise _Unusable("identical texts")
        better, worse = row.get("score_chosen"), row.get("score_rejected")
        if isinstance(better, int | float) and isinstance(worse, int | float) and better < worse:
            raise _Unusable("its scores say the opposite")
        prompt = Prompt(messages=tuple(chosen[:-1]), source=origin)
        return StatedPreference(prompt=prompt, chosen=chosen[-1].content, rejected=rejected[-1].content)

    return _read(source, make)


def _read(source: Path | Rows, make: Callable[[dict[str, Any], str], Item]) -> ReadResult[Item]:
    dropped: Counter[str] = Counter()
    return ReadResult(list(_each(source, make, dropped)), dict(dropped))


def _each(source: Path | Rows, make: Callable[[dict[str, Any], str], Item], dropped: Counter[str]) -> Iterator[Item]:
    table = source if isinstance(source, Rows) else rows_of(source)
    found = 0
    with _Seen() as seen:
        for place, row in _expanded(table):
            origin = row.get("source")
            try:
                item = make(row, writable(origin) if isinstance(origin, str) and origin else table.source)
            except _Unusable as reason:
                dropped[str(reason)] += 1
            except _UnknownShape as problem:
                raise table.error(place, str(problem), problem.fix) from None
            else:
                if seen.before(item.id):
                    dropped["duplicate"] += 1
                else:
                    found += 1
                    yield item
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(f"no row could be used ({reasons})" if reasons else "there are no rows", file=table.name)


class _Seen:
    """The ids that were met, in a temporary file of SQLite's: a set in memory would grow with the data set."""

    def __enter__(self) -> _Seen:
        self._db = sqlite3.connect("", isolation_level=None)  # a file of its own that goes when it is closed
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def before(self, identifier: str) -> bool:
        """Whether the id was met before; from now on it was."""
        inserted = self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", [bytes.fromhex(identifier)])
        return inserted.rowcount == 0


# ---------------------------------------------------------------- rows into messages


class _Unusable(Exception):
    """A row of a known shape that is dropped; the message is the reason it is counted under."""


class _UnknownShape(Exception):
    """A row nobody can read; the reading stops."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",  # ShareGPT
    "prompter": "user",  # Open Assistant
    "assistant": "assistant",
    "gpt": "assistant",
}


def _prompt_messages(row: dict[str, Any]) -> list[Message]:
    for name in ("messages", "conversations", "prompt"):
        if name in row:
            return _messages(row[name], name)
    if "instruction" in row:
        return [Message(role="user", content=_instruction(row))]
    if "question" in row:
        return _messages(row["question"], "question")
    raise _unknown(row, PROMPT_SHAPES, "or name the column that holds the prompts with `column`")


def _conversation_messages(row: dict[str, Any]) -> list[Message]:
    for name in ("messages", "conversations"):
        if name in row:
            return _messages(row[name], name)
    if {"prompt", "completion"} <= row.keys():
        return [*_messages(row["prompt"], "prompt"), *_messages(row["completion"], "completion", role="assistant")]
    if {"instruction", "output"} <= row.keys():
        output = _messages(row["output"], "output", role="assistant")
        return [Message(role="user", content=_instruction(row)), *output]
    if {"question", "answer"} <= row.keys():
        return [*_messages(row["question"], "question"), *_messages(row["answer"], "answer", role="assistant")]
    raise _unknown(row, CONVERSATION_SHAPES, "under one of these sets of names")


_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _side(row: dict[str, Any], name: str) -> list[Message]:
    """One side of a preference with its prompt: a side that is a whole conversation holds the prompt already."""
    value = row[name]
    if isinstance(value, str) and _TURN.match(value):  # Anthropic's HH transcripts
        parts = _TURN.split(value)[1:]
        roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
        turns = zip(parts[::2], parts[1::2], strict=True)
        return [Message(role=roles[who], content=said.strip()) for who, said in turns]
    said = [_message(value, name)] if isinstance(value, dict) else _messages(value, name, role="assistant")
    if said and said[0].role != "assistant":
        return _with_prompt(row, said)
    try:
        prompt = _prompt_messages(row)
    except _UnknownShape:
        raise _unknown(row, PREFERENCE_SHAPES, "under these names") from None
    if prompt and prompt[-1].role == "assistant":
        raise _Unusable("the prompt ends with an assistant turn")
    return [*prompt, *said]


def _with_prompt(row: dict[str, Any], side: list[Message]) -> list[Message]:
    """A side that holds its own prompt, which a `prompt` beside it may repeat, or open with a system message."""
    stated = _messages(row["prompt"], "prompt") if row.get("prompt") is not None else []
    opening = [message for message in stated if message.role == "system"]
    rest = stated[len(opening) :]
    if not stated or side[: len(stated)] == stated or side[: len(rest)] == rest:
        return side if side[: len(stated)] == stated else [*opening, *side]
    raise _Unusable("the prompt is not how the two begin")


def _column(row: dict[str, Any], column: str) -> list[Message]:
    if column not in row:
        raise _UnknownShape(f"there is no column {column!r}, only {_names(row)}", nearest(column, map(str, row)))
    return _messages(row[column], column)


def _instruction(row: dict[str, Any]) -> str:
    """Alpaca's two fields as one text."""
    parts = [_text(row[name], name) for name in ("instruction", "input") if row.get(name) is not None]
    return "\n\n".join(part for part in parts if part.strip())


def _messages(value: Any, name: str, role: Role = "user") -> list[Message]:
    """Text as one message of `role`, or messages written either as role and content or as from and value."""
    if value is None:
        return []
    if not isinstance(value, list):
        text = _text(value, name)
        # Older fine-tuning files spell the end token out; as text it would be taught letter by letter.
        return [Message(role=role, content=text.removesuffix("<|endoftext|>") if role == "assistant" else text)]
    return [_message(item, name) for item in value]


def _message(item: Any, name: str) -> Message:
    fields = ("role", "content") if isinstance(item, dict) and "role" in item else ("from", "value")
    if not isinstance(item, dict) or not set(fields) <= item.keys():
        found = _names(item) if isinstance(item, dict) else repr(item)[:40]
        raise _UnknownShape(
            f"`{name}` holds a message with {found}", "a message has `role` and `content`, or `from` and `value`"
        )
    role, content = item[fields[0]], item[fields[1]]
    if not isinstance(role, str) or role not in _ROLES:
        raise _Unusable(f"a turn by {str(role)[:40]!r}")
    if not isinstance(content, str):
        raise _Unusable("a turn that is not text")
    return Message(role=_ROLES[role], content=content)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _UnknownShape(f"`{name}` holds {type(value).__name__}", "it must be text, or a list of messages")
    return value


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _check(messages: list[Message], *, completion: bool = False) -> None:
    prompt = messages[:-1] if completion else messages
    if not prompt:
        raise _Unusable("empty prompt")
    if prompt[-1].role != "user":
        raise _Unusable("no user turn to answer")
    if not prompt[-1].content.strip():
        raise _Unusable("empty prompt")
    if any(_LONE_SURROGATE.search(message.content) for message in messages):
        raise _Unusable("not valid Unicode")  # half a surrogate pair, which JSON can spell and no tokenizer takes


def _unknown(row: dict[str, Any], known: str, otherwise: str) -> _UnknownShape:
    return _UnknownShape(f"no known shape has the columns {_names(row)}", f"give {known}, {otherwise}")


def _names(row: Iterable[Any]) -> str:
    names = [f"`{str(name)[:40]}`" for name in row]
    return ", ".join(names[:12] + (["..."] if len(names) > 12 else [])) or "nothing"


def _expanded(table: Rows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as they are, but for two shapes: a self-instruct row gives one row per instance, and a flat list of Open
    Assistant messages one row per thread, from its root to each leaf."""
    flat: list[tuple[int, dict[str, Any]]] = []
    for place, row in table.rows:
        if {"text", "role"} <= row.keys() and _parent_key(row):
            flat.append((place, row))
        elif isinstance(row.get("instances"), list) and "instruction" in row:
            if not row["instances"]:
                yield place, {**row, "input": None, "output": None}  # counted like any other row without a completion
            for instance in row["instances"]:
                if not isinstance(instance, dict):
                    raise table.error(place, "`instances` holds something other than objects")
                yield place, {**row, "input": instance.get("input"), "output": instance.get("output")}
        else:
            yield place, row
    if flat:
        yield from _threads(flat, table)


def _parent_key(row: dict[str, Any]) -> str | None:
    return next((key for key in ("parent_id", "parent_message_id") if key in row), None)


def _threads(flat: list[tuple[int, dict[str, Any]]], table: Rows) -> Iterator[tuple[int, dict[str, Any]]]:
    by_id = {str(row.get("message_id", row.get("user_message_id"))): row for _, row in flat}
    parents = [row[_parent_key(row) or ""] for _, row in flat]
    inner = {str(parent) for parent in parents if parent is not None}
    for place, row in flat:
        if str(row.get("message_id", row.get("user_message_id"))) in inner:
            continue
        thread = [row]
        while (parent := thread[-1][_parent_key(thread[-1]) or ""]) is not None:
            if str(parent) not in by_id or len(thread) > len(flat):
                raise table.error(place, f"its thread does not lead to a root: look at the parent {parent!r}")
            thread.append(by_id[str(parent)])
        yield place, {"messages": [{"role": turn["role"], "content": turn["text"]} for turn in reversed(thread)]}


# ---------------------------------------------------------------- files into rows


def rows_of(path: Path) -> Rows:
    """The rows of a file or folder, read as they are asked for. Raises InputError for a type that is not known."""
    if path.is_dir():
        return _folder(path)
    ending = path.name.lower().removesuffix(".gz")
    name, source = str(path), path.name
    if ending.endswith(".jsonl"):
        return Rows(name, source, "line", _json_lines(path))
    if ending.endswith(".json"):
        return Rows(name, source, "row", _json_list(path))
    if ending.endswith(".csv"):
        return Rows(name, source, "line", _separated(path, ",", csv.QUOTE_MINIMAL))
    if ending.endswith(".tsv"):
        # Tab-separated text has no quoting: a quotation mark is part of the text, as FLAN's files need.
        return Rows(name, source, "line", _separated(path, "\t", csv.QUOTE_NONE))
    if path.suffix == ".parquet":
        return Rows(name, source, "row", _parquet([path]))
    raise InputError(
        "unknown type of file", file=name, fix="use .jsonl, .json, .csv or .tsv (each also .gz), .parquet, or a folder"
    )


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The file as text; whatever is wrong with its bytes is an InputError."""
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
        found = f"an object with {_names(rows)}" if isinstance(rows, dict) else type(rows).__name__
        raise InputError(f"expected a list of objects, found {found}", file=str(path))
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


def _folder(path: Path) -> Rows:
    """A folder that `datasets` wrote, or one with Parquet files: one split of it, for two are never mixed unasked."""
    name, source = str(path), path.name
    if (path / "dataset_dict.json").is_file():
        parts = sorted(child.name for child in path.iterdir() if (child / "state.json").is_file())
        path = path / _only(parts, path, "a folder")
    if (path / "state.json").is_file():
        return Rows(name, source, "row", _saved(path))
    by_split: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*.parquet")):
        stem = file.relative_to(path).with_suffix("").as_posix()
        by_split.setdefault(re.sub(r"(-\d+-of-\d+|/\d+)$", "", stem), []).append(file)
    if not by_split:
        found = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
        raise InputError(f"the folder holds no data set (it holds {found})", file=name, fix="name the file to read")
    return Rows(name, source, "row", _parquet(by_split[_only(sorted(by_split), path, "a file")]))


def _only(splits: list[str], path: Path, kind: str) -> str:
    if len(splits) != 1:
        found = f"the folder holds {len(splits)} splits: {', '.join(splits)}"
        raise InputError(found, file=str(path), fix=f"name {kind} inside it")
    return splits[0]


def _saved(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import datasets

    try:
        yield from enumerate(datasets.load_from_disk(str(path)), start=1)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"the folder cannot be loaded: {str(error).splitlines()[0]}", file=str(path)) from None


def read_hub(identifier: str, split: str = "train", revision: str | None = None) -> Rows:
    """One split of a data set on the Hugging Face hub, as rows for `read_prompts` and `read_conversations`."""
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
    return Rows(identifier, identifier, "row", enumerate(data, start=1))
