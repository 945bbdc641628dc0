"""Checks that a pipeline file asks for: whether a completion has what can be verified in code.

A check is pure: the same completion, prompt and reference give the same outcome, except that a pattern may reach its
time limit. An empty completion passes no check. A check that cannot be judged (no reference, an unknown language, a
pattern that timed out) has the outcome None, which differs from failing and never becomes a number.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from rlaif.config import Settings, Text
from rlaif.errors import InputError
from rlaif.judges.verifiers import ifeval
from rlaif.judges.verifiers.languages import LanguageCode, language_of
from rlaif.judges.verifiers.stated import alternatives, final_choice, final_number, final_text
from rlaif.records import Record
from rlaif.version import install

PATTERN_SECONDS = 1.0  # time limit of a pattern on one completion; useful patterns take milliseconds
AtLeastOne = Annotated[int, Field(ge=1)]


class Outcome(Record):
    """Whether the completion passed a check, None where that could not be judged, and why."""

    passed: bool | None
    why: str


class Verifier(Settings):
    """The settings of one kind of check. `serialize_by_alias`: a resolved pipeline says what its reader takes."""

    model_config = ConfigDict(serialize_by_alias=True)

    def check(self, completion: str, *, prompt: str, reference: str | None) -> Outcome:
        """The outcome for a completion that is not empty. Each kind of check overrides it."""
        raise NotImplementedError

    def passes(self, completion: str, *, prompt: str, reference: str | None) -> bool:
        """Whether the completion passed; one that could not be judged did not."""
        return bool(completion.strip()) and self.check(completion, prompt=prompt, reference=reference).passed is True


# --- Against a reference ----------------------------------------------------------------------------------------------


class AgainstReference(Verifier):
    """Compares what the completion states as final with the row's reference (`stated` says how both are read).

    The reference is one text, a JSON list of which any is right, or, with `separator`, several in one text.
    """

    separator: str | None = Field(default=None, min_length=1)

    def check(self, completion: str, *, prompt: str, reference: str | None) -> Outcome:
        right = alternatives(reference, self.separator) if reference is not None else []
        if not right:
            return Outcome(passed=None, why="the row has no reference")
        wanted = [self.read(text) for text in right]
        if unreadable := next((problem for _, problem in wanted if problem), None):
            return Outcome(passed=None, why=f"the reference {unreadable}")
        value, problem = self.read(completion)
        if problem:
            return Outcome(passed=False, why=f"the completion {problem}")
        passed = any(self.equal(value, other) for other, _ in wanted)
        return Outcome(passed=passed, why=f"states {str(value)[:60]!r}, the reference {reference!r:.80}")

    def read(self, text: str) -> tuple[Any, str | None]:
        """What a text states as final; or the problem. Each kind of check overrides it."""
        raise NotImplementedError

    def equal(self, value: Any, reference: Any) -> bool:
        return bool(value == reference)


class Exact(AgainstReference):
    """The same text. `ignore`: differences in capital letters, in white space, in punctuation."""

    ignore: tuple[Literal["case", "space", "punctuation"], ...] = ()

    def read(self, text: str) -> tuple[str | None, str | None]:
        return final_text(text, self._normal)

    def _normal(self, text: str) -> str:
        if "case" in self.ignore:
            text = text.casefold()
        if "punctuation" in self.ignore:
            text = re.sub(r"[^\w\s]|_", "", text)
        return " ".join(text.split()) if "space" in self.ignore else text.strip()


class Numeric(AgainstReference):
    """The same number, or nearer than `tolerance` times the reference, or than `tolerance` where that is below 1.

    Numbers are exact fractions: without a tolerance 0.1 is 1/10 and nothing else. Units and percent signs do not count.
    """

    tolerance: float = Field(default=0.0, ge=0)

    def read(self, text: str) -> tuple[Fraction | None, str | None]:
        return final_number(text)

    def equal(self, value: Fraction, reference: Fraction) -> bool:
        return abs(value - reference) <= Fraction(self.tolerance) * max(Fraction(1), abs(reference))


class Choice(AgainstReference):
    """The same one of several labels, small or capital."""

    among: tuple[Text, ...] = Field(min_length=2)

    @field_validator("among")
    @classmethod
    def _differ(cls, among: tuple[str, ...]) -> tuple[str, ...]:
        if len({label.casefold() for label in among}) < len(among):
            raise ValueError("two of the labels are the same but for capital letters")
        return among

    def read(self, text: str) -> tuple[str | None, str | None]:
        return final_choice(text, self.among)


# --- Of the completion alone ------------------------------------------------------------------------------------------


class Regex(Verifier):
    """A pattern that is the whole completion (`match`), that is somewhere in it (`search`), or nowhere (`not`).

    The syntax is that of Python's `re`, run by the `regex` package, which has a time limit: after PATTERN_SECONDS on
    one completion the outcome is that it could not be judged. So no pattern can make a run hang.
    """

    pattern: str = Field(min_length=1)
    must: Literal["match", "search", "not"] = "search"

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        check_pattern(pattern)
        return pattern

    def check(self, completion: str, *, prompt: str, reference: str | None) -> Outcome:
        matched = searched(self.pattern, completion, whole=self.must == "match")
        if matched is None:
            return Outcome(passed=None, why=f"the pattern took more than {PATTERN_SECONDS:g} s")
        return Outcome(
            passed=matched != (self.must == "not"), why=f"the pattern is {'there' if matched else 'not there'}"
        )


MOST_PATTERN = 10_000  # characters; compiling one has no time limit
MOST_REPEATED = 100_000  # characters that its counts ask for, as `(ab{10}){20}` asks for 220: they are written out
_PIECE = re.compile(
    r"\(\?\#[^)]*\)|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(?P<open>\()|(?P<close>\))|\{(?P<count>\d+)(?:,\d*)?\}|.", re.DOTALL
)


def check_pattern(pattern: str) -> None:
    """Raise ValueError for what is not a regular expression."""
    import regex

    if len(pattern) > MOST_PATTERN:
        raise ValueError(f"the pattern has more than {MOST_PATTERN:,} characters")
    if _repeated(pattern) > MOST_REPEATED:
        raise ValueError(f"the counts of the pattern ask for more than {MOST_REPEATED:,} characters")
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"not a regular expression: {error}") from None


def _repeated(pattern: str) -> int:
    """At least the characters that a pattern asks for by its counts."""
    # Comments at line ends and sets in sets hide brackets: there all counts may be nested.
    unclear = re.search(r"\(\?[A-Za-z0-9-]*(?:x|V1)[A-Za-z0-9-]*[:)]", pattern) is not None
    before, last, product = [0], 0, 1
    for piece in _PIECE.finditer(pattern):
        if piece["count"]:
            times = max(1, int(piece["count"][:10]))
            last, product = last * times, product * times
        elif piece["close"]:
            last += before.pop()
            before = before or [0]
        else:
            before[-1] += last
            last = 1
            if piece["open"]:
                before.append(0)
                last = 0
    return product if unclear else sum(before) + last


def searched(pattern: str, text: str, *, whole: bool = False) -> bool | None:
    """Whether a pattern is in a text, or is the whole of it; None where it timed out."""
    import regex

    compiled = regex.compile(pattern)
    try:
        return (compiled.fullmatch if whole else compiled.search)(text, timeout=PATTERN_SECONDS) is not None
    except (TimeoutError, MemoryError):
        return None


class JSONSchema(Verifier):
    """JSON of a given shape and nothing else, bare or in one code fence. Needs the jsonschema package.

    A pattern inside the schema has the time limit of `regex`. Nothing is fetched: a `$ref` must point into the schema.
    """

    wanted: dict[str, Any] = Field(alias="schema")

    @field_validator("wanted")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        try:
            import jsonschema
        except ImportError:
            raise ValueError(f"a JSON schema needs the jsonschema package: {install('verify')}") from None
        try:
            keywords = list(itertools.islice(_keywords(schema), MOST_KEYWORDS + 1))
            if len(keywords) > MOST_KEYWORDS:
                raise ValueError(f"the JSON schema has more than {MOST_KEYWORDS:,} keywords")
            for key, value in keywords:
                if key == "pattern" and isinstance(value, str):
                    check_pattern(value)
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            path = "/".join(map(str, error.absolute_path)) or "its top"
            raise ValueError(f"not a JSON schema: {error.message[:120]} (at {path})") from None
        except RecursionError:
            raise ValueError("the JSON schema is nested too deeply") from None
        for key, value in keywords:
            if key == "patternProperties":
                raise ValueError("`patternProperties` cannot be bounded in time: use `propertyNames` with a `pattern`")
            if key in ("$ref", "$dynamicRef") and not _resolves(value, schema):
                raise ValueError(f"{key} {value!r} is nowhere in the schema: point to a part of it, as in '#/$defs/x'")
        return schema

    @cached_property
    def _rules(self) -> Any:
        """The schema without the dialects that it names: a part under another one would be held without bounds."""
        return _without_dialects(self.wanted)

    def check(self, completion: str, *, prompt: str, reference: str | None) -> Outcome:
        fenced = re.fullmatch(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", completion.strip(), re.DOTALL | re.IGNORECASE)
        body = fenced[1] if fenced else completion
        try:
            value = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            return Outcome(passed=False, why=f"not readable as JSON ({error})")
        try:
            first = next(_bounded()(self._rules).iter_errors(value), None)
        except (_OutOfTime, RecursionError, ArithmeticError) as error:  # also numbers beyond those of floats
            return Outcome(passed=None, why=f"the schema could not be held against it ({type(error).__name__})")
        if first is None:
            return Outcome(passed=True, why="as the schema asks")
        path = "/".join(map(str, first.absolute_path)) or "its top"
        return Outcome(passed=False, why=f"{first.message[:120]} (at {path})")


class _OutOfTime(Exception):
    """A pattern inside a schema timed out, or the schema asks for too many steps."""


MOST_KEYWORDS = 10_000  # of a schema
MOST_STEPS = 50_000  # keywords held against values, a second or two; a schema of 25 lines can ask for 2^25 of them
MOST_UNIQUE = 10_000  # items that must differ
SCHEMA_SECONDS = 3.0  # of processor time: one step may walk through a whole completion


def _bounded() -> Any:
    """A class of validators that stop: at a pattern's time limit, and together after MOST_STEPS."""
    import jsonschema

    steps = itertools.count(1)
    ends = time.process_time() + SCHEMA_SECONDS

    def counted(keyword: Callable[..., Any]) -> Callable[..., Any]:
        def step(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            if next(steps) > MOST_STEPS or time.process_time() > ends:
                raise _OutOfTime
            return keyword(validator, value, instance, schema)

        return step

    keywords = jsonschema.Draft202012Validator.VALIDATORS | {"pattern": _pattern, "uniqueItems": _unique_items}
    counting = {name: counted(keyword) for name, keyword in keywords.items()}
    return jsonschema.validators.extend(jsonschema.Draft202012Validator, counting)


def _unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """jsonschema compares each item with each where they have no order."""
    import jsonschema

    if wanted is True and isinstance(instance, list):
        if len(instance) > MOST_UNIQUE:
            raise _OutOfTime
        if len(set(map(_frozen, instance))) < len(instance):
            yield jsonschema.ValidationError("two of its items are the same")


def _frozen(value: Any) -> Any:
    """A JSON value of which equal ones are found at once: 1 is 1.0 and is not true."""
    if isinstance(value, dict):
        return frozenset((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return (bool, value) if isinstance(value, bool) else value


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    import jsonschema

    if isinstance(instance, str):
        matched = searched(pattern, instance)
        if matched is None:
            raise _OutOfTime
        if not matched:
            yield jsonschema.ValidationError(f"{instance[:60]!r} does not match {pattern!r}")


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a schema with its value, at any depth."""
    if isinstance(schema, Mapping):
        yield from schema.items()
    for part in schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list) else ():
        yield from _keywords(part)


def _without_dialects(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_dialects(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {key: part for key, part in schema.items() if key != "$schema" or not isinstance(part, str)}
    return {key: _without_dialects(part) for key, part in kept.items()}


def _resolves(reference: Any, schema: Any) -> bool:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return False
    for part in reference.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(schema, Mapping) or part not in schema:
            return False
        schema = schema[part]
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_number(written: str) -> float:
    raise ValueError(f"{written} is no number of JSON")


class Length(Verifier):
    """How long the completion is, both bounds included. Words stand between white space, lines that are blank do not
    count, and neither does white space at either end."""

    min_words: AtLeastOne | None = None
    max_words: AtLeastOne | None = None
    min_characters: AtLeastOne | None = None
    max_characters: AtLeastOne | None = None
    min_lines: AtLeastOne | None = None
    max_lines: AtLeastOne | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Length:
        bounds = self._of()
        if all(low is None and high is None for low, high in bounds.values()):
            raise ValueError("give at least one bound, for example `max_words`")
        for unit, (low, high) in bounds.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"`min_{unit}` is above `max_{unit}`")
        return self

    def _of(self) -> dict[str, tuple[int | None, int | None]]:
        return {u: (getattr(self, f"min_{u}"), getattr(self, f"max_{u}")) for u in ("words", "characters", "lines")}

    def check(self, completion: str, *, prompt: str, reference: str | None) -> Outcome:
        text = completion.strip()
        lines = sum(bool(line.strip()) for line in text.splitlines())
        lengths = {"words": len(text.split()), "characters": len(text), "lines": lines}
        bounds_of = {unit: bounds for unit, bounds in self._of().items() if bounds != (None, None)}
        outside = [
            unit
            for unit, (low, high) in bounds_of.items()
            if lengths[unit] < (low or 0) or (high is not None and lengths[unit] > high)
        ]
        return Outcome(passed=not outside, why=", ".join(f"{lengths[unit]} {unit}" for unit in outside or bounds_of))


class Language(Verifier):
    """The language of the completion as a whole."""

    code: LanguageCode = Field(alias="is")

    def check(self, completion: str, *, prompt: str, reference: str | None) -> Outcome:
        language = language_of(completion)
        if language is None:
            return Outcome(passed=None, why="its language cannot be told")
        return Outcome(passed=language == self.code, why=f"the language is {language}")


class IFEval(Verifier):
    """An instruction of IFEval with its arguments; loosely, one of eight variants of the completion follows it."""

    id: str
    kwargs: dict[str, Any] = {}
    loose: bool = False

    @model_validator(mode="after")
    def _known(self) -> IFEval:
        ifeval.instruction(self.id, self.kwargs)
        return self

    def check(self, completion: str, *, prompt: str, reference: str | None) -> Outcome:
        followed = ifeval.follows(ifeval.instruction(self.id, self.kwargs), completion, loose=self.loose)
        return Outcome(passed=followed.passed, why=followed.why)


# --- A check as a file writes it, and several together
# -------------------------------------------------------------------

KINDS = ("exact", "numeric", "choice", "regex", "json_schema", "length", "language", "ifeval")


class Check(Settings):
    """One check as a pipeline file writes it: a mapping whose one key names its kind."""

    exact: Exact | None = None
    numeric: Numeric | None = None
    choice: Choice | None = None
    regex: Regex | None = None
    json_schema: JSONSchema | None = None
    length: Length | None = None
    language: Language | None = None
    ifeval: IFEval | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Check:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"give exactly one kind of check: {', '.join(f'`{kind}`' for kind in KINDS)}")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def verifier(self) -> Verifier:
        verifier: Verifier = getattr(self, self.kind)
        return verifier

    def check(self, completion: str, *, prompt: str, reference: str | None) -> Outcome:
        if not completion.strip():
            return Outcome(passed=False, why="the completion is empty")
        return self.verifier.check(completion, prompt=prompt, reference=reference)

    def passes(self, completion: str, *, prompt: str, reference: str | None) -> bool:
        return self.verifier.passes(completion, prompt=prompt, reference=reference)


def verify(checks: Sequence[Check], prompt: str, completion: str, reference: str | None) -> list[Outcome]:
    """The outcome of each check, in their order."""
    return [check.check(completion, prompt=prompt, reference=reference) for check in checks]


def all_pass(outcomes: Sequence[Outcome]) -> float | None:
    """1.0 when every check passed, 0.0 when one failed; None when none failed and one could not be judged."""
    if any(outcome.passed is False for outcome in outcomes):
        return 0.0
    return 1.0 if outcomes and all(outcome.passed for outcome in outcomes) else None


def share_passed(outcomes: Sequence[Outcome]) -> float | None:
    """The share of checks that passed; None when one could not be judged, or there is none."""
    if not outcomes or any(outcome.passed is None for outcome in outcomes):
        return None
    return sum(outcome.passed is True for outcome in outcomes) / len(outcomes)


def checks_of_ifeval(
    instruction_id_list: Sequence[str], kwargs: Sequence[Mapping[str, Any]], *, loose: bool = False
) -> tuple[Check, ...]:
    """The checks of a prompt whose row has IFEval's two columns. Raises InputError for a wrong id or argument.

    Arguments that are None are left out: tables write one wherever another instruction has an argument.
    """
    if len(instruction_id_list) != len(kwargs):
        raise InputError(
            f"{len(instruction_id_list)} instructions and arguments for {len(kwargs)}",
            key="kwargs",
            fix="give each instruction one mapping, empty where it takes no arguments",
        )
    checks = []
    for number, (identifier, given) in enumerate(zip(instruction_id_list, kwargs, strict=True)):
        arguments = {name: value for name, value in given.items() if value is not None}
        try:
            ifeval.instruction(identifier, arguments)
        except ValueError as error:
            key = "kwargs" if identifier in ifeval.INSTRUCTIONS else "instruction_id_list"
            raise InputError(str(error), key=f"{key}.{number}") from None
        checks.append(Check(ifeval=IFEval(id=identifier, kwargs=arguments, loose=loose)))
    return tuple(checks)
