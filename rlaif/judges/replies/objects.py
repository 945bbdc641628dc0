"""The one JSON object of a reply: its words around, and its fields beside the answer."""

from __future__ import annotations

import json
import re
from typing import Any

from rlaif.judges.replies.patterns import Pattern
from rlaif.judges.replies.second_thoughts import CORRECTS, SWAPS, VOID
from rlaif.judges.replies.words import INTRODUCES, REPORTS, quoted

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


def overridden(item: dict[str, Any], field: str) -> bool:
    """Whether another field of a JSON object may change what `field` says."""
    others = [key for key, value in item.items() if key != field and value not in NOTHING]
    return any(OVERRIDES.search(key.replace("_", " ")) for key in others)


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
    if any(pattern.search(after) for pattern in (_AFTERTHOUGHT, REPORTS, SWAPS, VOID)):
        return "the words after the object may take it back"
    return value, before
