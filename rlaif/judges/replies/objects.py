"""The one JSON object of a reply: its words around, and its fields beside the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from rlaif.judges.replies.patterns import Pattern
from rlaif.judges.replies.second_thoughts import CORRECTS, SWAPS, VOID, WORTHLESS, revokes
from rlaif.judges.replies.words import INTRODUCES, NAMED, REPORTS, leading_number, measures_bad, quoted

# Keys beside an answer with which a judge changes it, or says what it means.
OVERRIDES = Pattern(
    r"final|adjust|revis|correct|updat|amend|actual|\btrue|\breal|\bnew\b|\bnet\b|\bafter|effective|overall"
    r"|total|swap|revers|invert"
    r"|meaning|means|order|direction|scale|legend|polarity|penal|deduct|minus|bonus|second|reconsider|instead"
    r"|overrid|overrul"
    r"|severity|difference|\bunit|\bof$|percent|prelim|provisional|tentative|\bdraft|descend|ascend|\bsort"
    r"|chang|should|\bresult"
    r"|\bmax|out.of|lower.is|higher.is|\b(?:score|rating|grade|marks?|points?|stars?|level|verdict|winner"
    r"|ranking|percent)",
    re.IGNORECASE,
    words=(
        "final|adjust|revis|correct|updat|amend|actual|true|real|new|net|after|effective|overall|total|swap|revers|"
        "invert|mean|order|direction|scale|legend|polarity|penal|deduct|minus|bonus|second|reconsider|instead|"
        "overrid|overrul|severity|difference|unit|of|percent|prelim|provisional|tentative|draft|cend|sort|chang|"
        "should|result|max|out|lower|higher|score|rating|grade|mark|point|star|level|verdict|winner|ranking"
    ),
)


OBJECT = Pattern(r"\{\s*[\"'}]|\{\s*\Z")  # braces of code or of mathematics hold no answer


def whole(value: Any) -> Any:
    """A JSON number such as 4.0 as the whole number it equals; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


NOTHING: tuple[Any, ...] = (None, "", [], {})  # values of a field that say nothing


# Fields whose numbers are about something else than quality as a whole, by their names.
ABOUT = Pattern(
    rf"{NAMED}|number|index|shown|original|position|source|target|\bref|which|about|\b(?:id|for|of|no|key|name|label)\b"
)
_QUALITY = Pattern(r"\w+(?:ness|ity|cy|nce|style|tone|depth|detail|grammar|spelling|coverage|logic|safety)")
KNOWN = ("type", "types", "confidence", "certainty", "probability", "weight", "margin", "strength")
_BOUND = Pattern(
    r"\bmin|lowest|\bmax|\bout\b|\bof$|limit|\bbest\b|highest|upper|ceiling|denominator|possible|\bscale|\brange|\btop\b|\bfull\b"
    r"|\bbounds?\b"
)
_MEASURE = Pattern(r"measure|criteri|metric|\bbasis|\bby\b|\bcount|\bmean|\bwhat\b|\bkind|\btitle|\bsort")
_STATE = Pattern(r"status|\bstate|valid|standing|\bflag|trust|reliab|usab")
MOST_OF_A_NAME = 100  # characters
MOST_OF_A_FIGURE = 30  # characters: what is longer are words


class _Name(NamedTuple):
    """What the name of a field says of the fields beside it."""

    overrides: bool
    bounds: bool
    measures: bool
    states: bool


@lru_cache(maxsize=256)
def _told_by(name: str) -> _Name:
    name = name.replace("_", " ")
    patterns = (OVERRIDES, _BOUND, _MEASURE, _STATE)
    return _Name(*(pattern.search(name) is not None for pattern in patterns))


def overridden(item: dict[str, Any], field: str, scale: tuple[int, int] | None = None) -> bool:
    """Whether another field of a JSON object may change what `field` says, or may be meant in its place.

    With the `scale` of a number, a figure under a name that is not known to be of something else may be.
    """
    for key, value in item.items():
        if key == field or value in NOTHING:
            continue
        if len(key) > MOST_OF_A_NAME:  # it may say anything
            return True
        told = _told_by(key)
        if scale and told.bounds and _figures(value) in _ends(*scale):
            continue
        if told.overrides or (isinstance(value, bool) and not (key == "tie" and not value)):
            return True
        if isinstance(value, str) and (
            (told.measures and len(value) < MOST_OF_A_FIGURE and measures_bad(value))
            or (told.states and WORTHLESS.fullmatch(value))
        ):
            return True
        if scale and ((told.bounds and _figures(value)) or any(_may_be_meant(*leaf) for leaf in leaves(key, value))):
            return True
    return False


def _ends(low: int, high: int) -> tuple[list[str], ...]:
    """The figures of a field that states the scale as it was asked for: `"max": 5`, `"scale": "1-5"`."""
    return [str(high)], [str(low), str(high)], [str(low)]


def _figures(value: Any) -> list[str]:
    written = str(value)
    return re.findall(r"\d+", written) if len(written) < MOST_OF_A_FIGURE else []


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values in a JSON value that hold no others, each with the nearest name."""
    waiting = [(key, value)]
    while waiting:
        name, one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.items()
        elif isinstance(one, list):
            waiting += ((name, other) for other in one)
        else:
            yield name, one


def _of_something_else(key: str) -> bool:
    return key in KNOWN or ABOUT.search(key.replace("_", " ")) is not None or _QUALITY.fullmatch(key) is not None


def _may_be_meant(key: str, value: Any) -> bool:
    """Whether a field beside a number holds one that may be meant in its place; one of a quality's name is not."""
    if _of_something_else(key):
        return False
    number = leading_number(value, 0, 0) if isinstance(value, str) else None
    return isinstance(value, (int, float)) or (number is not None and number.numeric and not number.tail.strip(" ."))


_DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: _unique(pairs))
_OPENING = Pattern(r"```[ \t]{0,4}\w{0,20}$")
_CLOSING = Pattern(r"```")
_HARMLESS = Pattern(
    r"\bin (?:the|your|this) (?:(?:requested|required|specified|given|json) )*format\b|\bas (?:asked"
    r"|requested|instructed)\b"
    r"|\blet me know\b[^.!?\n\d{}]*",
    re.IGNORECASE,
    words="format|as asked|as requested|as instructed|let me know",
)
_DENIES = Pattern(r"\bnot\b|\bopposite\b|\bunlike\b", re.IGNORECASE)
_AFTERTHOUGHT = Pattern(
    rf"\b(?:{CORRECTS}|but|however|instead|not|except|wrong|mistakes?|errors?|opposite|unlike)\b|[\d{{}}]",
    re.IGNORECASE,
)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object, keys in lower case. Raises ValueError for a repeated key: such a reply is ambiguous."""
    if len({key.strip().lower() for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return {key.strip().lower(): value for key, value in pairs}


def find_object(text: str) -> tuple[Any, str] | str:
    """The one JSON value of a reply, keys in lower case, and the words before it; or the problem.

    Plain words around it are accepted. A second object, words that make the object somebody else's or an example, and
    a correction are not: the reply would then be ambiguous.
    """
    start = text.find("{")
    if start < 0:
        return "not readable as JSON (no object)"
    if (before := text[:start].rstrip()).endswith("["):
        start = len(before) - 1
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        return "not readable as JSON (nested too deep)"
    except json.JSONDecodeError as error:
        return f"not readable as JSON ({error})"
    except ValueError as error:  # a key that stands twice, or a whole number that Python refuses to read
        return f"not readable as JSON ({'a number is too long' if 'limit' in str(error) else error})"
    before, after = text[:start].rstrip(), text[end:]
    if re.match(r"[ \t]*[^\s`]", after):
        return "the sentence goes on behind the object"
    after = after.lstrip()
    opening, closing = _OPENING.search(before), _CLOSING.match(after)
    if opening is not None and closing is not None:
        before, after = before[: opening.start()], after[closing.end() :]
    before, after = _HARMLESS.sub("", before).rstrip(), _HARMLESS.sub("", after)
    last = before.rpartition("\n")[2]
    if quoted(before, len(before)):
        return "the object stands in words that quote it"
    if REPORTS.search(last) or (
        last and not last.endswith((".", "!")) and (_DENIES.search(last) or not INTRODUCES.search(last))
    ):
        return "the words before the object do not introduce it as the judge's own"
    if any(pattern.search(after) for pattern in (_AFTERTHOUGHT, REPORTS, SWAPS, VOID)) or revokes(after, alone=True):
        return "the words after the object may take it back"
    return value, before
