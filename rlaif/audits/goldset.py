"""Gold pairs: prompts with a better and a worse completion on which no expert would disagree, to audit a judge with.

The project's own set ships in `gold/pairs.jsonl`; a user's own file has the same shape, or is any preference file that
`formats` reads. The claims of a row about its own texts (`check`) are verified when it is read. Not to be confused with
`rlaif.tiny.gold`, the truth of the embedded world, which gives pairs of its own (`of_world`).
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from rlaif.errors import InputError, nearest, plainly
from rlaif.formats.files import Table, rows_of
from rlaif.formats.reading import StatedPreference, read_preferences
from rlaif.judges.verifiers.checks import PATTERN_SECONDS, check_pattern, searched
from rlaif.records import Candidate, Completion, Prompt, Record, Row, digest
from rlaif.resources import PACKAGE

PAIRS = PACKAGE / "audits/gold/pairs.jsonl"
WORLD = "world"  # what a user writes for pairs of the embedded world
CATEGORIES = (
    "factual",
    "reasoning",
    "instruction-following",
    "safety",
    "over-refusal",
    "style-against-substance",
)
Range = tuple[int, int]  # both ends included


class PairCheck(Record):
    """What a program can check of a pair: the better completion meets all of it, the worse one breaks some of it.

    `arithmetic` holds expressions with their values; it is about the pair and is no demand on the texts.
    """

    words: Range | None = None  # pieces between white space that hold a letter or digit
    sentences: Range | None = None
    lines: Range | None = None  # that are not blank
    characters: Range | None = None
    contains: tuple[str, ...] = ()  # in any case
    lacks: tuple[str, ...] = ()  # in any case
    starts: str | None = None
    ends: str | None = None
    matches: str | None = None  # a regular expression for the whole text
    counts: dict[str, int] = {}  # how often each text occurs
    case: Literal["lower", "upper"] | None = None
    sorted_lines: bool = False
    keys: tuple[str, ...] | None = None  # of the JSON object that the text is
    arithmetic: dict[str, float] = {}

    @field_validator("matches")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            check_pattern(pattern)
        return pattern

    @field_validator("arithmetic")
    @classmethod
    def _adds_up(cls, sums: dict[str, float]) -> dict[str, float]:
        for expression, value in sums.items():
            result = evaluate(expression)
            if not math.isclose(result, value, abs_tol=1e-9):
                raise ValueError(f"{expression} is {result:g}, not {value:g}")
        return sums

    @property
    def demands(self) -> bool:
        """Whether it asks anything of the texts."""
        return bool(self.model_dump(exclude={"arithmetic"}, exclude_defaults=True))

    def broken(self, text: str) -> list[str]:
        """What `text` breaks, in words; empty where it meets everything."""
        lines = [line for line in text.splitlines() if line.strip()]
        counted = {
            "words": (self.words, len(_pieces(r"\s+", text))),
            "sentences": (self.sentences, len(_pieces(_SENTENCE_END, text))),
            "lines": (self.lines, len(lines)),
            "characters": (self.characters, len(text)),
        }
        broken = [
            f"{count} {what} and not {wanted[0]} to {wanted[1]}"
            for what, (wanted, count) in counted.items()
            if wanted and not wanted[0] <= count <= wanted[1]
        ]
        lowered = text.lower()
        broken += [f"without {part!r}" for part in self.contains if part.lower() not in lowered]
        broken += [f"with {part!r}" for part in self.lacks if part.lower() in lowered]
        broken += [f"{part!r} not {n} times" for part, n in self.counts.items() if text.count(part) != n]
        matched = self.matches is None or searched(self.matches, text, whole=True)  # None where it timed out
        held = {
            f"does not start with {self.starts!r}": text.startswith(self.starts or ""),
            f"does not end with {self.ends!r}": text.endswith(self.ends or ""),
            f"does not match {self.matches!r}": matched is not False,
            f"took more than {PATTERN_SECONDS:g} s to match {self.matches!r}": matched is not None,
            f"not in {self.case} case": self.case is None or text == getattr(text, self.case)(),
            "its lines are not sorted": not self.sorted_lines or lines == sorted(lines),
            f"not a JSON object with the keys {self.keys}": self.keys is None or _keys(text) == set(self.keys),
        }
        return broken + [problem for problem, holds in held.items() if not holds]


_SENTENCE_END = r"(?<=[.!?])[\"'”“»)*]*(?:\s+|$)"


def _pieces(separator: str, text: str) -> list[str]:
    return [piece for piece in re.split(separator, text) if re.search(r"\w", piece)]


def sentences(text: str) -> list[str]:
    """The sentences of a text, their white space stripped; a full stop, `!` or `?` before white space ends one."""
    return [" ".join(piece.split()) for piece in _pieces(_SENTENCE_END, text)]


def _keys(text: str) -> set[str] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return set(value) if isinstance(value, dict) else None


_OPERATORS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


MOST_EXPRESSION = 1000


def evaluate(expression: str) -> float:
    """The value of sums, products, quotients and powers of numbers. Raises ValueError for anything else."""

    def value(node: ast.AST) -> float:
        match node:
            case ast.Expression(body=inner):
                return value(inner)
            case ast.Constant(value=int() | float() as number):
                return float(number)  # a power of whole numbers could run without end
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -value(inner)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
        raise ValueError(f"{expression!r} is not arithmetic")

    if len(expression) > MOST_EXPRESSION:
        raise ValueError(f"{expression[:40]!r}... is not arithmetic of at most {MOST_EXPRESSION} characters")
    try:
        result = value(ast.parse(expression, mode="eval"))
        return float(result)  # a root of what is below zero is complex
    except (SyntaxError, ZeroDivisionError, OverflowError, TypeError, RecursionError, MemoryError):
        raise ValueError(f"{expression!r} is not arithmetic") from None


class GoldPair(Record):
    """One prompt, two completions, and which is the better one. `why` says in one sentence how anyone can see it.

    `assertive_wrong` and `hedged_right` are two more completions of the prompt: wrong and sure of it, right and unsure.
    `principle` is the request of comparison under which the better one is better, where it is not better in every way.
    """

    id: str = Field(min_length=1)
    category: str = Field(min_length=1)
    prompt: Prompt
    better: str
    worse: str
    why: str = ""
    principle: str | None = None
    check: PairCheck | None = None
    assertive_wrong: str | None = None
    hedged_right: str | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _from_text_or_messages(cls, value: Any) -> Any:
        """A file writes a prompt of one turn as text, one of several as messages."""
        if isinstance(value, str):
            return {"messages": [{"role": "user", "content": value}]}
        return {"messages": value} if isinstance(value, list) else value

    @field_validator("better", "worse", "assertive_wrong", "hedged_right")
    @classmethod
    def _has_words(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("the completion is empty")
        return text

    @model_validator(mode="after")
    def _is_what_it_says(self) -> Self:
        if self.better == self.worse:
            raise ValueError("`better` and `worse` have the same text")
        if (self.assertive_wrong is None) != (self.hedged_right is None):
            raise ValueError("`assertive_wrong` and `hedged_right` go together")
        if self.assertive_wrong is not None and self.assertive_wrong == self.hedged_right:
            raise ValueError("`assertive_wrong` and `hedged_right` have the same text")
        if self.check is not None:
            if broken := self.check.broken(self.better):
                raise ValueError(f"`better` breaks its `check`: {'; '.join(broken)}")
            if self.check.demands and not self.check.broken(self.worse):
                raise ValueError("`worse` meets the whole `check`")
        return self

    @property
    def length_margin(self) -> int:
        """By how many characters the better completion is the longer one."""
        return len(self.better) - len(self.worse)


def of_world(n: int, seed: int) -> list[GoldPair]:
    """`n` pairs on held-out prompts of the embedded world. Raises ValueError where it has fewer prompts."""
    from rlaif.tiny.gold import world_pairs  # which makes all of the world's questions

    return [GoldPair(**pair._asdict()) for pair in world_pairs(n, seed)]


def to_judge(prompt: Prompt, texts: Sequence[str]) -> Row:
    """The row by which a judge is shown `texts`, its candidates in their order."""
    return Row(
        prompt=prompt,
        candidates=tuple(
            Candidate(
                sampler="gold",
                completion=Completion(text=text, model="gold", call=digest(["gold", prompt.id, text])),
            )
            for text in texts
        ),
    )


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_gold(path: Path | None = None, dropped: Counter[str] | None = None) -> list[GoldPair]:
    """The pairs of a file, in its order; without a path those that ship with the package.

    A file whose first row has `better` or `worse` has the shape of the project's own; any other is read as preferences,
    the source of each being its category. Preferences that cannot be used are counted in `dropped` by reason; without
    it they are an error. Raises InputError with file, line and key.
    """
    table = rows_of(path or PAIRS)
    rows = iter(table.rows)
    first = next(rows, None)
    if first is None:
        raise InputError("there are no pairs", file=table.name, fix="put one object on each line")
    whole = table._replace(rows=itertools.chain([first], rows))
    if not {"better", "worse"} & first[1].keys():
        read = read_preferences(whole)
        if dropped is not None:
            dropped.update(read.dropped)
        elif read.dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in read.dropped.items())
            raise InputError(f"rows that are no pairs: {reasons}", file=table.name, fix="take them out")
        return [_stated(preference) for preference in read.items]
    return list(_each(whole))


def _stated(preference: StatedPreference) -> GoldPair:
    return GoldPair(
        id=preference.id,
        category=preference.prompt.source or "preferences",
        prompt=preference.prompt,
        better=preference.chosen,
        worse=preference.rejected,
    )


def _each(table: Table) -> Iterator[GoldPair]:
    numbers: dict[str, int] = {}
    for number, row in table.rows:
        try:
            pair = GoldPair.model_validate(row)
        except ValidationError as error:
            raise _wrong(table, number, error) from None
        if pair.id in numbers:
            raise table.error(
                number,
                f"the id {pair.id!r} is used at {table.unit} {numbers[pair.id]} too",
                "give each pair its own id",
                key="id",
            )
        numbers[pair.id] = number
        yield pair


def _wrong(table: Table, number: int, error: ValidationError) -> InputError:
    """An error about the first thing wrong with a row, with its key."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    key = ".".join(parts) or None
    message = plainly(first)
    model: type[Record] = PairCheck if parts[:1] == ["check"] else GoldPair
    if first["type"] == "extra_forbidden":
        return table.error(number, "unknown key", nearest(parts[-1], model.model_fields), key=key)
    if first["type"] == "missing":
        return table.error(number, "the key is missing", _SHAPE, key=key)
    return table.error(number, message[:1].lower() + message[1:], _SHAPE if key else None, key=key)


_SHAPE = (
    "a pair has `id`, `category`, `prompt` (text, or messages that end with a user turn), `better` and `worse`, "
    "and may have `why`, `check`, `assertive_wrong` and `hedged_right`"
)
