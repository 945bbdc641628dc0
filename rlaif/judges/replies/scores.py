"""One overall score of one completion, with the critique around it: `Overall Score: 7`, `[[7]]`, `7/10`."""

from __future__ import annotations

import re

from rlaif.judges.replies.objects import OBJECT, find_object, overridden, whole
from rlaif.judges.replies.patterns import Pattern
from rlaif.judges.replies.scales import changed, spans_the_scale, void
from rlaif.judges.replies.second_thoughts import takes_back
from rlaif.judges.replies.words import (
    CUT,
    MOST_CHARACTERS,
    MOST_MARKS,
    RESULT,
    TOO_LONG,
    TOO_MANY,
    Number,
    Reading,
    aside,
    foreign,
    headed,
    heading,
    leading_number,
    measures_bad,
    narrow,
    other_scale,
    quoted,
    spoken,
    unboxed,
)

_FIELD = Pattern(r"(?:overall|final|total)?[ _-]*(?:score|rating)")
_KEY = Pattern(
    r"(?:(?<=[.!?;][ \t])|^(?![ \t]*>)[ \t#*_•-]*)(?:(?:so|thus|therefore|my|the|an?|overall|final|total)\b,?[ \t]*)*"
    r"(?:(?:\b(?:score|rating)|\boverall)\b[*_]*(?:[ \t]*\([^()\n]{1,30}\))?[*_]*(?:[ \t]*[:=][*_]*\s*"
    rf"|[ \t]+(?:is:?[ \t]+)?(?=[*_\[]*\d))|{RESULT})",
    re.IGNORECASE | re.MULTILINE,
    words="score|rating|overall|[result]",
)
_BOXED = Pattern(r"\d{1,3}(?:\.0)?")
_BRACKETS = Pattern(r"\[\[[^\[\]\n]{1,12}\]\]")
_LONE = Pattern(r"^[ \t*_]*\d{1,3}[ \t]*(?:/|out of)[ \t]*\d{1,3}[ \t*_.]*$", re.MULTILINE | re.IGNORECASE)
_MENTION = Pattern(
    r"(\d{1,4})[ \t]*(?:/|out of)[ \t]*\d|\b(?:score|rating)\b\W{0,4}(?:(?:of|is|to|as|should be)\W+)?(\d{1,4})",
    re.IGNORECASE,
    words="score|rating|/|out of",
)


def read_score(text: str, low: int, high: int, *, cut: bool = False) -> Reading:
    """The score of a reply on the scale from low to high; `raw` is the whole reply, which holds the critique.

    It is given as `Overall Score: 7`, `[[7]]` or `7/10` in a place of its own, as the whole reply, or as the field of
    one JSON object. Everything formally given must be the same, and nothing after it may name another. Nothing is
    rescaled: `0.8`, `8.5` and `80%` are unparsed, `1/10` is 1, and `10/10` is 10 on a scale to 10 and unparsed on any
    other. `cut`: the reply was truncated at max_tokens, and is unparsed.
    """
    if cut:
        return Reading(None, text, CUT)
    heard = narrow(spoken(text))
    if len(heard) > MOST_CHARACTERS:
        return Reading(None, text, TOO_LONG)
    heard = unboxed(heard, _BOXED)
    if OBJECT.search(heard):
        return _field(heard, text, low, high)
    alone = leading_number(heard.strip(), low, high)
    if alone.value is not None and not alone.tail.strip(" .*_") and "\n" not in heard.strip():
        return Reading(alone.value, text)
    if problem := void(heard, low, high):
        return Reading(None, text, problem)
    if spans_the_scale(heard, low, high):
        return Reading(None, text, "the reply may say what its numbers mean")
    given, end = _given(heard, low, high)
    if not given:
        return Reading(None, text, "no score")
    if len({number.value for number in given}) > 1:
        return Reading(None, text, "several scores that differ")
    value = given[0].value
    if value is None:
        return Reading(None, text, given[0].problem or "not applicable is not a score")
    if re.match(rf"[.)].*^[ \t]*{value + 1}[.)]\s", heard[end:], re.DOTALL | re.MULTILINE):
        return Reading(None, text, "the first of a numbered list")
    if (
        takes_back(heard[end:])
        or changed(heard[end:], value, low, high)
        or any(int(m[1] or m[2]) != value for m in _MENTION.finditer(heard, end))
    ):
        return Reading(None, text, "the words after the score may take it back")
    return Reading(value, text)


_NUMBER = Pattern(r"[^\w\n]*\w+(?:\.0+\b)?(?:[ \t]*\(?(?:/|out of)[ \t]*\d+\)?)?[\])*_]*", re.IGNORECASE)


def _given(heard: str, low: int, high: int) -> tuple[list[Number], int]:
    """The scores in formal positions, and the index after the last one."""
    starts = {match.end(): match.start() for match in _KEY.finditer(heard)}
    lone = {m.start(): m.start() for m in (*_BRACKETS.finditer(heard), *_LONE.finditer(heard))}
    given, end = [], 0
    if len(places := sorted((lone | starts).items())) > MOST_MARKS:
        return [Number(None, TOO_MANY, "")], len(heard)
    for start, at in places:
        number = leading_number(heard[start:].partition("\n")[0], low, high)
        if start not in starts and not number.numeric:
            continue  # double brackets around something else
        if aside(heard, at):
            continue
        if start in starts and other_scale(heard[at:start], low, high):
            number = Number(None, "a score on another scale", number.tail)
        elsewhere = foreign(heard, at) or foreign(heard, start) or measures_bad(heading(heard, at))
        if quoted(heard, at) or elsewhere or (start in lone and headed(heard, at)):
            number = Number(None, "a score that is not given in its own place", number.tail)
        given.append(number)
        ended = _NUMBER.match(heard, start)
        end = ended.end() if ended else start
    return given, end


def _field(heard: str, text: str, low: int, high: int) -> Reading:
    """The score field of one JSON object."""
    parsed = find_object(heard)
    if isinstance(parsed, str):
        return Reading(None, text, parsed)
    value, before = parsed
    fields = [key for key in value if _FIELD.fullmatch(key)] if isinstance(value, dict) else []
    if len(fields) != 1 or _given(before, low, high)[0] or overridden(value, fields[0], (low, high)):
        return Reading(None, text, "expected one score")
    if problem := void(
        "\n".join([before, *(str(other) for other in value.values() if isinstance(other, str))]), low, high
    ):
        return Reading(None, text, problem)
    written = whole(value[fields[0]])
    if not isinstance(written, (int, str)):
        return Reading(None, text, "no whole-number score")
    number = leading_number(str(written), low, high)
    if number.value is None or number.tail.strip():
        return Reading(None, text, number.problem or f"the score {str(written)[:40]!r} is not a whole number")
    keys = list(value)
    later = [value[key] for key in keys[keys.index(fields[0]) + 1 :] if isinstance(value[key], str)]
    if any(takes_back(words) or changed(words, number.value, low, high) for words in later):
        return Reading(None, text, "the words after the score may take it back")
    return Reading(number.value, text)
