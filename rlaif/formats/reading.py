"""Prompts, conversations, preferences and rows of judged candidates from the files people have.

A row whose shape is unknown stops the reading with an error that names it; a row of a known shape that cannot be used
(empty, a duplicate, ...) is dropped and counted by reason.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import ValidationError, model_validator

from rlaif.errors import InputError, nearest, plainly
from rlaif.formats.files import Table, names, rows_of
from rlaif.formats.judged import is_pair, records_of
from rlaif.formats.messages import (
    PREFERENCE_SHAPES,
    UnknownShape,
    Unusable,
    check_turns,
    checks_of,
    column_messages,
    conversation_messages,
    prompt_messages,
    reference_of,
    unknown,
)
from rlaif.records import Message, Prompt, Record, Row, Split, digest, prompt_id, split_of, writable

Turns = Literal["all", "last"]


class Conversation(Record):
    """Messages that end with an assistant turn: a demonstration."""

    messages: tuple[Message, ...]
    source: str | None = None
    turns: Turns = "all"  # which of the assistant's turns are learnt

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

        Training on a conversation teaches every assistant turn, or the last alone, and each is an answer to the turns
        before it; and a held-out prompt may be kept without the system message under which it is answered here.
        """
        splits = {split_of(prompt_id(messages)) for messages in self._prompts()}
        return next(split for split in _MOST_WITHHELD_FIRST if split in splits)

    def _prompts(self) -> Iterator[Sequence[Message]]:
        for turn, message in enumerate(self.messages):
            if message.role == "assistant" and (self.turns == "all" or turn == len(self.messages) - 1):
                before = self.messages[:turn]
                for messages in (before, [m for m in before if m.role != "system"]):
                    if messages and messages[-1].role == "user":
                        yield messages


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
Item = TypeVar("Item", Prompt, Conversation, StatedPreference, Row)


class ReadResult(NamedTuple, Generic[Item]):
    """What could be used, in file order, and how many rows could not, by reason: rows = items + dropped."""

    items: list[Item]
    dropped: dict[str, int]


def named(table: Table, columns: Mapping[str, str], system: str | None = None) -> Table:
    """The rows under our names: with `columns` (ours to the file's) those alone; `system` where a row has none.

    Raises InputError, once it reads that far, for a row without one of the `columns`.
    """

    def renamed(number: int, row: dict[str, Any]) -> dict[str, Any]:
        if columns:
            if missing := next((theirs for theirs in columns.values() if theirs not in row), None):
                problem = f"there is no column {missing!r}, only {names(row)}"
                raise table.error(number, problem, nearest(missing, map(str, row)))
            row = {ours: row[theirs] for ours, theirs in columns.items()}
        return row if system is None or row.get("system") else row | {"system": system}

    if not columns and system is None:
        return table
    return table._replace(rows=((number, renamed(number, row)) for number, row in table.rows))


def read_prompts(source: Path | Table, *, column: str | None = None) -> ReadResult[Prompt]:
    """The prompts of a file, or of one named column of it. A trailing assistant turn is cut off.

    Raises InputError for a row of an unknown shape and for a file without a usable row.
    """
    dropped: Counter[str] = Counter()
    return ReadResult(list(each_prompt(source, dropped, column=column)), dict(dropped))


def each_prompt(source: Path | Table, dropped: Counter[str], *, column: str | None = None) -> Iterator[Prompt]:
    """As `read_prompts`, one at a time as they are read. `dropped` is complete after the last one."""

    def make(row: dict[str, Any], origin: str) -> list[Prompt]:
        messages = column_messages(row, column) if column is not None else prompt_messages(row)
        while messages and messages[-1].role == "assistant":
            messages.pop()
        check_turns(messages)
        reference = reference_of(row) or reference_of({"reference": row.get("answer")})
        return [Prompt(messages=tuple(messages), source=origin, reference=reference, checks=checks_of(row))]

    return _each(source, make, dropped)


def read_conversations(source: Path | Table, *, turns: Turns = "all") -> ReadResult[Conversation]:
    """The conversations of a file that end with an assistant turn; `turns` says which of those turns are learnt.

    Raises InputError as `read_prompts`.
    """

    def make(row: dict[str, Any], origin: str) -> list[Conversation]:
        messages = conversation_messages(row)
        if not messages or messages[-1].role != "assistant":
            raise Unusable("no assistant turn at the end")
        if not messages[-1].content.strip():
            raise Unusable("empty completion")
        check_turns(messages[:-1], [messages[-1].content])
        return [Conversation(messages=tuple(messages), source=origin, turns=turns)]

    return _read(source, make)


def read_preferences(source: Path | Table) -> ReadResult[StatedPreference]:
    """The preferences of a file: chosen and rejected, or two completions with a label.

    Raises InputError as `read_prompts`.
    """

    def make(row: dict[str, Any], origin: str) -> list[StatedPreference]:
        if not is_pair(row):
            raise unknown(row, PREFERENCE_SHAPES, "under these names")
        return [stated_preference(pair) for pair in records_of(row, origin, turns="last")]

    return _read(source, make)


def stated_preference(row: Row) -> StatedPreference:
    """What a row's comparisons agree on. Raises Unusable where they do not, and where there is nothing to learn."""
    texts = [candidate.completion.text for candidate in row.candidates]
    if any(not text.strip() for text in texts):
        raise Unusable("empty completion")
    if texts[0] == texts[1]:
        raise Unusable("identical texts")
    verdicts = {comparison.verdict for comparison in row.comparisons}
    if not verdicts or None in verdicts:
        raise Unusable("unparsed")
    if len(verdicts) > 1:
        raise Unusable("its labels disagree")
    if verdicts == {"tie"}:
        raise Unusable("tie")
    chosen, rejected = texts if verdicts == {"A"} else texts[::-1]
    return StatedPreference(prompt=row.prompt, chosen=chosen, rejected=rejected)


def each_row(source: Path | Table, dropped: Counter[str], *, turns: Turns = "last") -> Iterator[Row]:
    """Rows with the candidates of a file and the judgements that it states, one at a time as they are read.

    `sampler` is the model that a file names, else the name of the completion in the file. `call` is a digest of the
    text and its position, so that it is the same in every run. A completion may be empty and two may be alike: what
    nothing can be learnt from is dropped where pairs are made. A conversation gives its last turn, or one row for each
    with `turns="all"`. `dropped` is complete after the last one. Raises InputError as `read_prompts`.
    """
    return _each(source, lambda row, origin: records_of(row, origin, turns=turns), dropped)


def _read(source: Path | Table, make: Callable[[dict[str, Any], str], list[Item]]) -> ReadResult[Item]:
    dropped: Counter[str] = Counter()
    return ReadResult(list(_each(source, make, dropped)), dict(dropped))


def _each(
    source: Path | Table, make: Callable[[dict[str, Any], str], list[Item]], dropped: Counter[str]
) -> Iterator[Item]:
    table = source if isinstance(source, Table) else rows_of(source)
    usable = 0
    with _Seen() as seen:
        for number, row in _expanded(table):
            origin = row.get("source")
            try:
                items = make(row, writable(origin) if isinstance(origin, str) and origin else table.source)
            except Unusable as reason:
                dropped[str(reason)] += 1
            except UnknownShape as problem:
                raise table.error(number, str(problem), problem.fix) from None
            except RecursionError:
                raise table.error(number, "the values are nested too deeply") from None
            except ValidationError as error:
                raise table.error(number, plainly(error.errors()[0])) from None
            else:
                for item in items:
                    if seen.before(_identity(item)):
                        dropped["duplicate"] += 1
                    else:
                        usable += 1
                        yield item
    if not usable:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(f"no row could be used ({reasons})" if reasons else "there are no rows", file=table.name)


def _identity(item: Prompt | Conversation | StatedPreference | Row) -> str:
    """Rows with the same candidates and the same judgements have the same identity, in any file."""
    if not isinstance(item, Row):
        return item.id
    judged = item.model_dump(mode="json", exclude={"prompt", "candidates"}, exclude_defaults=True)
    texts = [[candidate.sampler, candidate.completion.text] for candidate in item.candidates]
    return digest([item.prompt.id, texts, judged], length=16)


class _Seen:
    """The ids seen so far, in a temporary SQLite file: a set in memory would grow with the data set."""

    def __enter__(self) -> _Seen:
        self._db = sqlite3.connect("", isolation_level=None)  # a temporary file, deleted when it is closed
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def before(self, identifier: str) -> bool:
        """Whether the id was seen before. Records it as seen."""
        inserted = self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", [bytes.fromhex(identifier)])
        return inserted.rowcount == 0


def _expanded(table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as they are, but for two shapes: a self-instruct row gives one row per instance, and a flat list of Open
    Assistant messages one row per thread, from its root to each leaf."""
    flat: list[tuple[int, dict[str, Any]]] = []
    for number, row in table.rows:
        if {"text", "role"} <= row.keys() and _parent_key(row):
            flat.append((number, row))
        elif isinstance(row.get("instances"), list) and "instruction" in row:
            if not row["instances"]:
                yield number, {**row, "input": None, "output": None}  # counted like any other row without a completion
            for instance in row["instances"]:
                if not isinstance(instance, dict):
                    raise table.error(number, "`instances` holds something other than objects")
                yield number, {**row, "input": instance.get("input"), "output": instance.get("output")}
        else:
            yield number, row
    if flat:
        yield from _threads(flat, table)


def _parent_key(row: dict[str, Any]) -> str | None:
    return next((key for key in ("parent_id", "parent_message_id") if key in row), None)


MOST_TURNS = 1_000  # of a thread: each of a thousand leaves repeats the turns above it


def _threads(flat: list[tuple[int, dict[str, Any]]], table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    by_id = {str(row.get("message_id", row.get("user_message_id"))): row for _, row in flat}
    parents = [row[_parent_key(row) or ""] for _, row in flat]
    inner = {str(parent) for parent in parents if parent is not None}
    for number, row in flat:
        if str(row.get("message_id", row.get("user_message_id"))) in inner:
            continue
        thread = [row]
        while (parent := thread[-1][_parent_key(thread[-1]) or ""]) is not None:
            if str(parent) not in by_id or len(thread) > len(flat):
                problem = f"its thread does not lead to a root: look at the parent {str(parent)[:80]!r}"
                raise table.error(number, problem)
            if len(thread) == MOST_TURNS:
                raise table.error(number, f"its thread has more than {MOST_TURNS:,} turns")
            thread.append(by_id[str(parent)])
        turns = [{"role": turn["role"], "content": turn["text"]} for turn in reversed(thread)]
        yield number, {"messages": turns} | {key: row[key] for key in ("system",) if key in row}
