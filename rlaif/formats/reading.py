"""Prompts, conversations, preferences and rows of judged candidates from the files people have.

A row whose shape is unknown stops the reading with an error that names it; a row of a known shape that cannot be used
(empty, a duplicate, ...) is dropped and counted by reason.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import fsum
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import ValidationError, model_validator

from rlaif.errors import InputError, nearest, plainly
from rlaif.formats.columns import Column
from rlaif.formats.files import Table, names, rows_of
from rlaif.formats.judged import (
    MOST_COMPARISONS,
    PAIRS,
    is_consulted,
    missing_completions,
    records_of,
    shapes_of,
    unread_margin,
)
from rlaif.formats.messages import (
    COMPLETED,
    PREFERENCE_SHAPES,
    UnknownShape,
    Unusable,
    check_turns,
    checks_of,
    column_messages,
    conversation_messages,
    number_of,
    prompt_messages,
    reference_of,
    text_of,
    unknown,
)
from rlaif.formats.published import (
    ATTRIBUTES,
    JUDGED_ALONE,
    LABEL,
    SCORES,
    good,
    judged_alone,
    normal,
    present,
    without_nan,
)
from rlaif.formats.teaching import masked_turns, untaught
from rlaif.records import Message, Prompt, Record, Row, Split, digest, prompt_id, split_of, writable

Turns = Literal["all", "last"]


class Conversation(Record):
    """Messages that end with an assistant turn: a demonstration."""

    messages: tuple[Message, ...]
    source: str | None = None
    turns: Turns = "all"  # which of the assistant's turns are learnt
    masked: tuple[int, ...] = ()  # the places of those that its file excepts
    assigned: Split | None = None  # its split, where that does not follow from its prompts

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
        if self.assigned is not None:
            return self.assigned
        splits = {split_of(prompt_id(messages)) for messages in self._prompts()}
        return next(split for split in _MOST_WITHHELD_FIRST if split in splits)

    def _prompts(self) -> Iterator[Sequence[Message]]:
        for turn, message in enumerate(self.messages):
            if message.role == "assistant" and (self.turns == "all" or turn == len(self.messages) - 1):
                before = self.messages[:turn]
                for messages in (before, [m for m in before if m.role != "system"]):
                    if messages and messages[-1].role == "user":
                        yield messages


class PlainText(Record):
    """A text of no conversation, learnt whole as in pre-training."""

    text: str
    source: str | None = None
    assigned: Split | None = None  # its split, where that does not follow from its words

    @property
    def id(self) -> str:
        return digest(self.text, length=16)

    @property
    def split(self) -> Split:
        return self.assigned or split_of(self.id)


class StatedPreference(Record):
    """A prompt with a chosen and a rejected completion, as somebody else's file states it."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None  # by how much chosen is the better one, in the unit of the file
    probability: float | None = None  # that chosen is the better one
    assigned: Split | None = None  # its split, where that does not follow from its prompt

    @property
    def id(self) -> str:
        return digest([self.prompt.id, self.chosen, self.rejected], length=16)

    @property
    def split(self) -> Split:
        return self.assigned or self.prompt.split


_MOST_WITHHELD_FIRST: tuple[Split, ...] = ("held-out", "validation", "train")
Item = TypeVar("Item", Prompt, Conversation, PlainText, StatedPreference, Row)
Make = Callable[[dict[str, Any], str], list[Item]]


class ReadResult(NamedTuple, Generic[Item]):
    """What could be used, in file order, and how many rows could not, by reason: rows = items + dropped.

    `told` counts what a person should know of the rows that were used, such as a judgement that was not.
    """

    items: list[Item]
    dropped: dict[str, int]
    told: dict[str, int] = {}


class Reading(NamedTuple):
    """How rows are read. `keep`: the columns that travel with a prompt, beside its `id`; `told` as in `ReadResult`."""

    dropped: Counter[str]
    told: Counter[str]
    keep: Sequence[str] = ()


def read_prompts(source: Path | Table, *, column: str | None = None) -> ReadResult[Prompt]:
    """The prompts of a file, or of one named column of it. A trailing assistant turn is cut off.

    Raises InputError for a row of an unknown shape and for a file without a usable row.
    """
    dropped: Counter[str] = Counter()
    return ReadResult(list(each_prompt(source, dropped, column=column)), dict(dropped))


def each_prompt(
    source: Path | Table, dropped: Counter[str], *, column: str | None = None, keep: Sequence[str] = ()
) -> Iterator[Prompt]:
    """As `read_prompts`, one at a time as they are read. `dropped` is complete after the last one."""
    table = source if isinstance(source, Table) else rows_of(source)
    if column is not None:
        table = _with_path(table, column)

    def make(row: dict[str, Any], origin: str) -> list[Prompt]:
        messages = column_messages(row, column) if column is not None else _asked(row, origin)
        while messages and messages[-1].role == "assistant":
            messages.pop()
        check_turns(messages)
        reference = reference_of(row) or reference_of({"reference": row.get("answer")})
        return [Prompt(messages=tuple(messages), source=origin, reference=reference, checks=checks_of(row))]

    how = Reading(dropped, Counter(), keep)
    return _each(table, make, how, "prompts" if column is None else "column")


def _asked(row: dict[str, Any], origin: str) -> list[Message]:
    """The messages of a row's prompt, which may stand in its completions alone."""
    if {"conversation_a", "conversation_b"} <= row.keys() or ({"chosen", "rejected"} <= row.keys() and not _asks(row)):
        return list(records_of(row, origin, turns="last")[0].prompt.messages)
    return prompt_messages(row)


def _asks(row: Mapping[str, Any]) -> bool:
    return not {"prompt", "messages", "conversations", "instruction", "question"}.isdisjoint(row)


def _with_path(table: Table, column: str) -> Table:
    """The table with the value at the path as a column of its own, unless it is one already."""
    if "." not in column:
        return table
    path = Column(column)

    def beside(number: int, row: dict[str, Any]) -> dict[str, Any]:
        return row if column in row else row | {column: path.of(row, number, table)}

    return table._replace(rows=((number, beside(number, row)) for number, row in table.rows))


def read_conversations(source: Path | Table, *, turns: Turns = "all") -> ReadResult[Conversation]:
    """The conversations of a file that end with an assistant turn; `turns` says which of those turns are learnt.

    What a row calls a bad completion is not learnt. Raises InputError as `read_prompts`.
    """

    def make(row: dict[str, Any], origin: str) -> list[Conversation]:
        messages = conversation_messages(row)
        if judged_alone(row).get("aspect") == LABEL and not good(row["label"]):
            raise Unusable("labelled as bad")
        if not messages or messages[-1].role != "assistant":
            raise Unusable("no assistant turn at the end")
        if not messages[-1].content.strip():
            raise Unusable("empty completion")
        check_turns(messages[:-1], [messages[-1].content])
        masked = masked_turns(row, messages)
        if turns == "last" and len(messages) - 1 in masked:
            raise Unusable("not to be trained on")
        return [
            Conversation(messages=tuple(messages), source=origin, turns=turns, masked=masked if turns == "all" else ())
        ]

    return _read(source, make)


def read_texts(source: Path | Table, column: str) -> ReadResult[PlainText]:
    """The texts in a column of a file. Raises InputError as `read_prompts`."""
    table = source if isinstance(source, Table) else rows_of(source)

    def make(row: dict[str, Any], origin: str) -> list[PlainText]:
        if column not in row:
            raise UnknownShape(f"there is no column {column!r}, only {names(row)}", nearest(column, map(str, row)))
        if row[column] is None or not (text := text_of(row[column], column)).strip():
            raise Unusable("empty text")
        check_turns([Message(role="user", content=text)])
        return [PlainText(text=text, source=origin)]

    how = Reading(Counter(), Counter())
    return ReadResult(list(_each(_with_path(table, column), make, how, "column")), dict(how.dropped))


def read_preferences(source: Path | Table) -> ReadResult[StatedPreference]:
    """The preferences of a file: chosen and rejected, or two completions with a label.

    Raises InputError as `read_prompts`.
    """

    def make(row: dict[str, Any], origin: str) -> list[StatedPreference]:
        if shapes_of(row):
            return [made for pair in records_of(row, origin, turns="last") for made in stated_preferences(pair)]
        records_of(row, origin, turns="last")  # where one of two completions is missing, that is the reason
        raise unknown(row, PREFERENCE_SHAPES, "under these names")

    return _read(source, make, "rows")


def stated_preferences(row: Row) -> list[StatedPreference]:
    """What a row states of its candidates: of every two that were compared, or else, as the rule `all` has it, of every
    two whose ratings, scores or ranks differ.

    Raises Unusable where there is nothing to learn.
    """
    if row.comparisons or len(row.candidates) == 2 and not (row.ratings or row.scores or row.rankings):
        compared = {(one.a, one.b): None for one in row.comparisons} or {(0, 1): None}
        pairs = [_agreed(row, a, b) for a, b in compared]
    else:
        pairs = _apart(row)
    made, reasons = [], []
    for pair in pairs:
        if isinstance(pair, str):
            reasons.append(pair)
            continue
        chosen, rejected = (row.candidates[i].completion.text for i in pair)
        if not chosen.strip() or not rejected.strip():
            reasons.append("empty completion")
        elif chosen == rejected:
            reasons.append("identical texts")
        else:
            margin, probability = _margin(row, *pair), _probability(row, *pair)
            texts: dict[str, Any] = {"prompt": row.prompt, "chosen": chosen, "rejected": rejected}
            made.append(StatedPreference(**texts, margin=margin, probability=probability))
    if not made:
        raise Unusable(reasons[0] if reasons else "tie")
    return made


def _agreed(row: Row, a: int, b: int) -> tuple[int, int] | str:
    """The better and the worse of two candidates, by all their comparisons, or why nobody can say."""
    texts = [row.candidates[i].completion.text for i in (a, b)]
    if any(not text.strip() for text in texts):
        return "empty completion"
    if texts[0] == texts[1]:
        return "identical texts"
    verdicts = {one.verdict for one in row.comparisons if (one.a, one.b) == (a, b)}
    if not verdicts or None in verdicts:
        return "unparsed"
    if len(verdicts) > 1:
        return "its labels disagree"
    return "tie" if verdicts == {"tie"} else (a, b) if verdicts == {"A"} else (b, a)


def _margin(row: Row, chosen: int, rejected: int) -> float | None:
    """By how much the row's ratings or scores set the two apart; None where they do not, or say the opposite."""
    values = _values(row) if row.ratings or row.scores else {}
    if chosen not in values or rejected not in values or values[chosen] <= values[rejected]:
        return None
    return values[chosen] - values[rejected]


def _probability(row: Row, chosen: int, rejected: int) -> float | None:
    """That chosen is the better one: the mean of the probabilities that the row's comparisons of the two give."""
    of_a = [(one.a, one.probability) for one in row.comparisons if {one.a, one.b} == {chosen, rejected}]
    given = [p if a == chosen else 1 - p for a, p in of_a if p is not None]
    return fsum(given) / len(given) if given else None


def _apart(row: Row) -> list[tuple[int, int] | str]:
    """Every two candidates that the row's ratings, else its scores, else its ranking tell apart, the better first."""
    values = _values(row)
    if len(row.candidates) < 2:
        return ["fewer than two candidates"]
    if len(values) < 2:
        return ["unparsed"]
    apart: list[tuple[int, int] | str] = [(i, j) for i in values for j in values if values[i] > values[j]]
    if len(apart) > MOST_COMPARISONS:
        problem = f"its {len(values):,} completions make more than {MOST_COMPARISONS:,} pairs"
        raise UnknownShape(problem, "put a `pair` stage between, with the rule `zephyr` or `best-worst`")
    return apart


def _values(row: Row) -> dict[int, float]:
    weights = {rating.aspect: 1.0 for rating in row.ratings}
    if weights:
        rated = {i: row.score(i, weights) for i in range(len(row.candidates))}
        return {i: value for i, value in rated.items() if value is not None}
    if row.scores:
        return {score.candidate: score.value for score in row.scores if score.value is not None}
    orders = [ranking.order for ranking in row.rankings if ranking.order is not None]
    return {i: -float(place) for place, tied in enumerate(orders[0]) for i in tied} if orders else {}


def each_row(
    source: Path | Table,
    dropped: Counter[str],
    *,
    turns: Turns = "last",
    told: Counter[str] | None = None,
    keep: Sequence[str] = (),
) -> Iterator[Row]:
    """Rows with the candidates of a file and the judgements that it states, one at a time as they are read.

    `sampler` is the model that a file names, else the name of the completion in the file. `call` is a digest of the
    text and its position, so that it is the same in every run. A completion may be empty and two may be alike: what
    nothing can be learnt from is dropped where pairs are made. A conversation gives its last turn, or one row for each
    with `turns="all"`. Completions of one prompt that a file judges in rows of their own are the candidates of one row.
    `dropped` and `told` are complete after the last one. Raises InputError as `read_prompts`.
    """
    how = Reading(dropped, Counter() if told is None else told, keep)
    return _each(source, lambda row, origin: records_of(row, origin, turns=turns), how, "rows")


def _read(
    source: Path | Table, make: Make[Item], read_as: Literal["conversations", "rows"] = "conversations"
) -> ReadResult[Item]:
    how = Reading(Counter(), Counter())
    return ReadResult(list(_each(source, make, how, read_as)), dict(how.dropped), dict(how.told))


ReadAs = Literal["prompts", "column", "conversations", "rows"]


def _each(source: Path | Table, make: Make[Item], how: Reading, read_as: ReadAs) -> Iterator[Item]:
    table = source if isinstance(source, Table) else rows_of(source)
    usable, dropped = 0, how.dropped
    unused = _Unused(read_as, make, how.told)
    with _Seen() as seen:
        for number, raw in expanded(table, how, read_as):
            row = raw
            try:
                row = raw if read_as == "column" else normal(raw)
                if how.keep and (missing := next((name for name in how.keep if name not in raw), None)):
                    fix = nearest(missing, map(str, raw))
                    raise UnknownShape(f"`keep`: there is no column {missing!r}, only {names(raw)}", fix)
                origin = _origin(row, table.source)
                items = [_kept(item, raw, how.keep) for item in _made(row, raw, origin, make)]
                if read_as in ("conversations", "rows"):
                    unused.count(row, raw, origin)
                    how.told.update(untaught(row) if read_as == "conversations" else ())
                if note := unread_margin(row) if read_as == "rows" else None:
                    how.told[note] += 1
                if missing_count := missing_completions(row) if read_as == "rows" else 0:
                    how.told["a completion of a list is null and is left out"] += missing_count
            except Unusable as reason:
                dropped[str(reason)] += 1
            except UnknownShape as problem:
                told = str(problem).replace(names(row), names(present(raw)))  # as the file has them
                raise table.error(number, told, problem.fix) from None
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
        if not reasons:
            raise InputError("there are no rows", file=table.name, fix="the file is empty: name another, or fill it")
        fix = "mend them, or name the columns that count with `columns`"
        if "fewer than two candidates" in dropped:
            fix = f"a preference is between two completions of one prompt; {fix}"
        raise InputError(f"no row could be used ({reasons})", file=table.name, fix=fix)


def _origin(row: Mapping[str, Any], otherwise: str) -> str:
    """The data set that a row says it is from."""
    for name in ("source", "subset"):  # RewardBench's parts
        if isinstance(row.get(name), str) and row[name]:
            return writable(row[name])
    return otherwise


def _made(row: dict[str, Any], raw: Mapping[str, Any], origin: str, make: Make[Item]) -> list[Item]:
    """What `make` makes of a row; a row whose shape is unknown because its columns are null is unusable alone."""
    try:
        return make(row, origin)
    except UnknownShape:
        empty = {name: value for name, value in raw.items() if value is None and name not in row}
        if not empty:
            raise
        with suppress(UnknownShape):
            return make(row | empty, origin)
        if _KNOWN.isdisjoint(empty):
            raise
        raise Unusable("the columns that it needs are null") from None


_KNOWN = frozenset(
    name for pair in (*COMPLETED, *PAIRS, ("chosen", "rejected"), ("messages", "conversations")) for name in pair
) | {"completions", "answers"}


def _kept(item: Item, raw: Mapping[str, Any], keep: Sequence[str]) -> Item:
    """The item with the row's own id and the columns to keep, in its prompt."""
    if isinstance(item, Conversation | PlainText):
        return item
    own = {writable(name): _as_text(raw[name]) for name in ("id", *keep) if name in raw}
    if not any(value is not None for value in own.values()) and not keep:
        return item
    if isinstance(item, Prompt):
        return item.model_copy(update={"kept": own})
    return item.model_copy(update={"prompt": item.prompt.model_copy(update={"kept": own})})


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return None if value is None else writable(value)
    return writable(json.dumps(value, ensure_ascii=False, default=str))


class _Unused:
    """Counts the columns that state a judgement and are not read: without one, the same is made of the row."""

    def __init__(self, read_as: ReadAs, make: Make[Any], told: Counter[str]) -> None:
        # A preference is a part of what is stated: all of it is compared.
        self._make = make if read_as == "conversations" else partial(records_of, turns="last")
        self._told, self._learnt = told, read_as == "conversations"
        self._known: dict[tuple[tuple[str, str], ...], list[str]] = {}

    def count(self, row: dict[str, Any], raw: Mapping[str, Any], origin: str) -> None:
        shape = tuple((name, type(value).__name__) for name, value in row.items())
        if shape not in self._known:
            if len(self._known) == MOST_SHAPES:  # rows of many shapes of their own
                self._known.clear()
            self._known[shape] = self._unused(row, raw, origin)
        for name in self._known[shape]:
            self._told[f"the column `{writable(name[:40])}` states a judgement and is not used"] += 1

    def _unused(self, row: dict[str, Any], raw: Mapping[str, Any], origin: str) -> list[str]:
        judging = [name for name in row if name in raw and states_judgement(name, row[name])]
        if self._learnt:  # what is learnt is what was chosen
            alone = LABEL if judged_alone(row).get("aspect") == LABEL else None
            judging = [name for name in judging if name != alone and "rejected" not in row]
        else:
            judging = [name for name in judging if not is_consulted(name, row)]
        without = {name: {k: v for k, v in row.items() if k != name} for name in judging}
        without |= _without_in_entries(row)
        if not without:
            return []
        made = self._made(row, origin)
        return [name for name, less in without.items() if self._made(less, origin) == made]

    def _made(self, row: dict[str, Any], origin: str) -> list[str] | None:
        try:
            return [_identity(item) for item in self._make(row, origin)]
        except (UnknownShape, Unusable, RecursionError, ValidationError):
            return None


def _without_in_entries(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The row without each column that states a judgement within its completions, by its path."""
    found: dict[str, dict[str, Any]] = {}
    for column in ("completions", "answers"):
        entries = row.get(column)
        if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
            continue
        for name in entries[0]:
            if states_judgement(name, entries[0][name]):
                less = [{k: v for k, v in e.items() if k != name} if isinstance(e, dict) else e for e in entries]
                found[f"{column}.{name}"] = row | {column: less}
    return found


MOST_SHAPES = 1_000
_JUDGING = frozenset(
    "label labels rating ratings rated score scores rank ranks ranking preference preferred winner verdict choice"
    " margin magnitude strength reward rewards votes upvotes downvotes selected better grade quality safe safer"
    " helpfulness correctness coherence harmlessness honesty is_safe likes stars".split()
)
_JUDGING_WORDS = frozenset(
    "a b tie good bad yes no true false high low best worst better worse correct incorrect chosen rejected safe unsafe"
    " positive negative model_a model_b".split()
)


def states_judgement(name: Any, value: Any) -> bool:
    """Whether a column's name and value say how good a completion is."""
    parts = re.split(r"[^a-z]+", str(name).lower())
    if _JUDGING.isdisjoint((parts[0], parts[-1] or parts[0])):
        return False
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(
        isinstance(one, bool) or number_of(one) is not None or str(one).strip().lower() in _JUDGING_WORDS
        for one in values
    )


def _identity(item: Prompt | Conversation | PlainText | StatedPreference | Row) -> str:
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


def expanded(table: Table, how: Reading, read_as: ReadAs) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as they are, but for three shapes: a self-instruct row gives one row per instance; a flat list of Open
    Assistant messages one row per thread, from its root to each leaf, or with ranks, for who judges, per message with
    its replies; and completions that are judged in rows of their own, for who judges, one row per prompt."""
    flat: list[tuple[int, dict[str, Any]]] = []
    with _Groups() as groups:
        for number, row in table.rows:
            row = without_nan(row)
            if {"text", "role"} <= row.keys() and _parent_key(row):
                flat.append((number, row))
            elif isinstance(row.get("instances"), list) and "instruction" in row:
                if not row["instances"]:
                    yield number, {**row, "input": None, "output": None}  # counted like any other row without one
                for instance in row["instances"]:
                    if not isinstance(instance, dict):
                        raise table.error(number, "`instances` holds something other than objects")
                    yield number, {**row, "input": instance.get("input"), "output": instance.get("output")}
            elif read_as == "rows" and groups.take(number, row):
                continue
            else:
                yield number, row
        yield from groups.rows(table, how)
    if flat and read_as == "rows" and any(row.get("rank") is not None for _, row in flat):
        yield from _replies(flat, table)
    elif flat:
        yield from _threads(flat, table)


class _Groups:
    """Rows that judge one completion each, put together by their prompts, in a temporary SQLite file as `_Seen`."""

    def __enter__(self) -> _Groups:
        self._db: sqlite3.Connection | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._db is not None:
            self._db.close()

    def take(self, number: int, row: dict[str, Any]) -> bool:
        """Whether the row is of that kind, and kept for later."""
        if JUDGED_ALONE.isdisjoint(row):
            return False
        try:
            own = normal(row)
            judged = judged_alone(own)
            if not judged:
                return False
            *asked, answer = conversation_messages(own)
        except (UnknownShape, Unusable, ValueError, RecursionError):
            return False  # as a row of its own it is an error, or dropped
        if answer.role != "assistant":
            return False
        entry = {"text": answer.content} | judged
        if (model := own.get("model") or own.get("generator")) is not None:
            entry["model"] = model
        rest = {name: value for name, value in own.items() if name not in _OF_ONE}
        rest["messages"] = [{"role": turn.role, "content": turn.content} for turn in asked]
        if self._db is None:
            self._db = sqlite3.connect("", isolation_level=None)
            self._db.execute("PRAGMA journal_mode=OFF")
            self._db.execute("CREATE TABLE rows (prompt BLOB, number INTEGER, entry TEXT, rest TEXT)")
            self._db.execute("BEGIN")
        texts = [json.dumps(part, default=str) for part in (entry, rest)]
        self._db.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", [bytes.fromhex(prompt_id(asked)), number, *texts])
        return True

    def rows(self, table: Table, how: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
        """One row for each prompt, in the order in which they first came. What a file holds twice is a duplicate."""
        if self._db is None:
            return
        self._db.execute("CREATE INDEX by_prompt ON rows (prompt)")
        firsts = self._db.execute("SELECT prompt, MIN(rowid) AS first FROM rows GROUP BY prompt ORDER BY first")
        for prompt, _ in firsts:
            of_prompt = self._db.execute(
                "SELECT number, entry, rest FROM rows WHERE prompt = ? ORDER BY rowid", [prompt]
            )
            number, first, rest = next(of_prompt)
            entries = dict.fromkeys([first])
            for _, entry, _ in of_prompt:
                (how.dropped if entry in entries else how.told)["duplicate" if entry in entries else TOGETHER] += 1
                entries[entry] = None
                if len(entries) > MOST_OF_PROMPT:
                    problem = f"its prompt has more than {MOST_OF_PROMPT:,} completions"
                    raise table.error(number, problem, "name the column of its prompt with `columns`")
            yield number, json.loads(rest) | {"completions": list(map(json.loads, entries))}


MOST_OF_PROMPT = 10_000  # which are in memory together
TOGETHER = "a completion is put together with the others of its prompt"
_OF_ONE = {name for pair in COMPLETED for name in pair} | {"input", "system", "conversations", "model", "generator"}
_OF_ONE |= {LABEL, *ATTRIBUTES, *SCORES}


def _parent_key(row: dict[str, Any]) -> str | None:
    return next((key for key in ("parent_id", "parent_message_id") if key in row), None)


MOST_TURNS = 1_000  # of a thread: each of a thousand leaves repeats the turns above it


def _threads(flat: list[tuple[int, dict[str, Any]]], table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    by_id = {_message_id(row): row for _, row in flat}
    parents = [row[_parent_key(row) or ""] for _, row in flat]
    inner = {str(parent) for parent in parents if parent is not None}
    for number, row in flat:
        if _message_id(row) not in inner:
            yield number, _thread(number, row, by_id, table)


def _replies(flat: list[tuple[int, dict[str, Any]]], table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each message that assistants reply to, with the replies as completions, and their ranks where all have one."""
    by_id = {_message_id(row): row for _, row in flat}
    replies: dict[str, list[dict[str, Any]]] = {}
    for _, row in flat:
        if row["role"] == "assistant" and (parent := row[_parent_key(row) or ""]) is not None:
            replies.setdefault(str(parent), []).append(row)
    for number, row in flat:
        if (listed := replies.get(_message_id(row))) is None:
            continue
        ranked = len(listed) > 1 and all(one.get("rank") is not None for one in listed)
        entries = [{"text": one["text"]} | ({"rank": one["rank"]} if ranked else {}) for one in listed]
        yield number, _thread(number, row, by_id, table) | {"completions": entries}


def _message_id(row: Mapping[str, Any]) -> str:
    return str(row.get("message_id", row.get("user_message_id")))


def _thread(number: int, row: dict[str, Any], by_id: Mapping[str, dict[str, Any]], table: Table) -> dict[str, Any]:
    """The messages from the root to this one."""
    thread = [row]
    while (parent := thread[-1][_parent_key(thread[-1]) or ""]) is not None:
        if str(parent) not in by_id or len(thread) > len(by_id):
            problem = f"its thread does not lead to a root: look at the parent {str(parent)[:80]!r}"
            raise table.error(number, problem)
        if len(thread) == MOST_TURNS:
            raise table.error(number, f"its thread has more than {MOST_TURNS:,} turns")
        thread.append(by_id[str(parent)])
    turns = [{"role": turn["role"], "content": turn["text"]} for turn in reversed(thread)]
    return {"messages": turns} | {key: row[key] for key in ("system",) if key in row}
