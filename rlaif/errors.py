"""The errors a user can meet, and the exit code of each.

RlaifError
|-- InputError        2   a file, key, option or template is wrong; nothing was started
|   `-- InputErrors     all that is wrong with one file
`-- WorkError         1   the work itself failed, or is incomplete
    |-- EngineError       a model or a server failed
    |   `-- Stopped       no more calls are sent, since the run is stopping
    `-- StoreError        the call store cannot be read or written
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlaif.visible import visible


class RlaifError(Exception):
    """Every error of this package. The message is one sentence; where it happened and the fix are kept apart.

    Its text is one line of visible text: what a server or a file says stands in it, and others print it, too.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.file, self.line, self.key, self.fix = message, file, line, key, fix

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        parts = [part for part in (where, f"`{self.key}`" if self.key else "", self.message) if part]
        text = ": ".join(parts)
        end = "" if text.endswith("...") else "."
        return visible(f"{text}{end} Fix: {self.fix}" if self.fix else text).replace("\n", r"\n")


class InputError(RlaifError):
    exit_code = 2


class InputErrors(InputError):
    """Everything that is wrong with one file, in the order of its lines. The text has a line for each."""

    def __init__(self, errors: Sequence[InputError]) -> None:
        first = errors[0]
        super().__init__(first.message, file=first.file, line=first.line, key=first.key, fix=first.fix)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


def as_one(errors: Iterable[InputError]) -> InputError:
    """The errors of a file, at least one, as one error: each once, by line."""
    every = list({str(error): error for error in sorted(errors, key=lambda error: error.line or 0)}.values())
    return every[0] if len(every) == 1 else InputErrors(every)


def raise_all(errors: Sequence[InputError]) -> None:
    """Raises the errors of a file together; nothing where there are none."""
    if errors:
        raise as_one(errors)


class WorkError(RlaifError):
    """The work failed or is incomplete; what was finished is kept."""


class EngineError(WorkError):
    """A model or a server failed.

    `cause` is a short word by which failures are grouped and counted. `retryable`: the failure may be transient.
    `fatal`: no other request can succeed either (server down, key refused, model unknown), so the run should stop.
    `wait`: how many seconds the server asked to wait; None where it did not say. `usage`: the tokens of an answer that
    could not be used (a `records.Usage`). `lost`: an answer may have been paid for and could not be read. `early`: the
    model has answered nothing of the kind yet, so that the failure may not be about the request.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str = "engine",
        retryable: bool = False,
        fatal: bool = False,
        fix: str | None = None,
        wait: float | None = None,
        usage: Any = None,
        lost: bool = False,
    ) -> None:
        super().__init__(message, fix=fix)
        self.cause, self.retryable, self.fatal = cause, retryable, fatal
        self.wait, self.usage, self.lost, self.early = wait, usage, lost, False


class Stopped(EngineError):
    """No more calls are sent: the run is stopping. Finished calls stay, and the same command resumes the run."""


class StoreError(WorkError):
    """The call store cannot be read or written."""


INTERRUPTED = 130  # the exit code after Ctrl-C, as a shell knows it


def shortened(text: str, most: int = 80) -> str:
    """The beginning of a text, with dots where it was longer."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(value: Any) -> str:
    """A value as an error shows it."""
    return shortened("nothing" if value is None else repr(value))


def first_line(error: BaseException) -> str:
    """The first line of a library's error, shortened; its kind where it says nothing."""
    return shortened(str(error).strip().partition("\n")[0], 200).rstrip(".") or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...` with the closest known names, or the whole list, if it is short, when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(f'`{c}`' for c in close)}?"
    return f"use one of {', '.join(known[:MOST_NAMED] + ['...'] * (len(known) > MOST_NAMED))}"


MOST_NAMED = 60


def plainly(detail: Mapping[str, Any]) -> str:
    """What one of the details of a pydantic error says, in plain words; an error of our own keeps its own."""
    kind: str = detail["type"]
    if kind == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    numbers = {
        name: f"{value:.15g}" if isinstance(value, float) else value for name, value in detail.get("ctx", {}).items()
    }
    return _PLAINLY.get(kind, "expected a value of another kind").format_map(numbers)


# By pydantic's names of its errors. Numbers of `ctx` are filled in.
_PLAINLY = {
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "expected keys and values"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), "expected a list"),
    **dict.fromkeys(("string_type", "string_sub_type"), "expected text"),
    "int_parsing_size": "expected an integer with fewer digits",
    "string_unicode": "expected text in Unicode",
    "finite_number": "expected a finite number",
    "missing": "the key is missing",
    "extra_forbidden": "unknown key",
    "invalid_key": "expected a key that is text",
    "none_required": "expected nothing",
    "literal_error": "expected {expected}",
    "greater_than": "expected a number greater than {gt}",
    "greater_than_equal": "expected a number greater than or equal to {ge}",
    "less_than": "expected a number less than {lt}",
    "less_than_equal": "expected a number less than or equal to {le}",
    "string_too_short": "expected some text",
    "string_too_long": "expected a text of at most {max_length} characters",
    "string_pattern_mismatch": (
        "expected letters, digits, '.', '_' or '-', 100 at most, the first a letter or digit"  # the one pattern of ours
    ),
    "too_short": "expected more items",
    "too_long": "expected fewer items",
    "json_invalid": "not valid JSON",
    "recursion_loop": "the value contains itself",
}
