"""Ratings of n numbered completions: as one JSON object, as a block for each, or as the rows of a table.

Every rating is bound to the number written with it, never to its position. The numbers are counted before ratings are
assigned: a reply that names a completion twice, omits one or has one too many gives no rating.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rlaif.judges.replies.objects import ABOUT, find_object, overridden, whole
from rlaif.judges.replies.patterns import Pattern
from rlaif.judges.replies.scales import changed, explains_otherwise, on_another_scale, spans_the_scale, void
from rlaif.judges.replies.second_thoughts import CORRECTION, corrections, revokes, takes_back
from rlaif.judges.replies.words import (
    CUT,
    MOST_CHARACTERS,
    MOST_MARKS,
    NAMED,
    TOO_LONG,
    TOO_MANY,
    Number,
    Reading,
    aside,
    foreign,
    leading_number,
    narrow,
    other_scale,
    quoted,
    spoken,
)


def read_reply(
    text: str,
    n: int,
    low: int,
    high: int,
    answers: str,
    *,
    cut: bool = False,
    na: bool = False,
    types: Sequence[str] = (),
) -> list[Reading]:
    """The ratings of numbers 1 to n in a judge's reply, `answers` saying its form: `json` or `lines`.

    `cut`: the reply was truncated at max_tokens, so its last rating may be incomplete (1 of 10).
    `na`: the judge may rate N/A, which is a reading without value or problem; else N/A is unparsed.
    `types`: the codes it may name beside a rating (UltraFeedback, arXiv 2310.01377); others are left out and noted.
    """
    read = read_json if answers == "json" else read_lines
    return read(text, n, low, high, cut=cut, na=na, types=types)


# ---------------------------------------------------------------- JSON

_KEY = Pattern(rf"(?:{NAMED}[ _]?)?\[?(\d{{1,4}})\]?")
_INDEX = ("completion", "text", "index", "number")
_PLACES = ("a", "first", "one", "b", "second", "two", "c", "third", "three", "d", "fourth", "four")
_PLACE = rf"(?:(?P<number>\d{{1,4}})|(?P<place>{'|'.join(_PLACES)}))"
_ONE = Pattern(rf"\W*(?:the )?(?P<noun>{NAMED})?[ _]?(?:no\.? ?|number )?\W*{_PLACE}(?: (?:one|{NAMED}))?\W*")
_IS_ONE = Pattern(
    r"\b(?:this|it|that|here)(?: (?:is|was|means|concerns)|'s) (?:about |for |really "
    rf"|actually )?(?:the )?{NAMED} #?{_PLACE}\b(?! (?:is|has|does|was)\b)",
    words="text |completion |response |answer |candidate |output ",
)
_HEADED = Pattern(
    rf"\W*(?:(?:(?:rating|score) )?(?:for|of|on|about|re) (?:{NAMED} )?|{NAMED} )#?{_PLACE}\s*(?:[:)\]–—-]|$)"
)
_WRAPPERS = ("ratings", "completions", "evaluations", "evaluation", "results", "judgments", "judgements")


def read_json(
    text: str, n: int, low: int, high: int, *, cut: bool = False, na: bool = False, types: Sequence[str] = ()
) -> list[Reading]:
    """A reply such as {"1": {"rationale": "...", "rating": 4}, "2": ...}, or a list of {"completion": 1, "rating": 4}.

    It may be in one code fence, and plain words may introduce it.
    """
    heard = spoken(text)
    parsed = TOO_LONG if len(heard) > MOST_CHARACTERS else find_object(heard)
    if isinstance(parsed, str):
        return [Reading(None, text, parsed)] * n
    value, before = parsed
    told = "\n".join(_words(value))
    after = heard[heard.rfind("}") + 1 :]
    if explains_otherwise(before, low, high):
        return [Reading(None, text, "the words before may say what the numbers mean")] * n
    if problem := void(f"{before}\n{after}", low, high) or on_another_scale(told, low, high):
        return [Reading(None, text, problem)] * n
    if _openers(before) or _RATING.search(before):
        return [Reading(None, text, "ratings stand before the object too")] * n
    items = _by_number(value)
    if items is None or sorted(items) != list(range(1, n + 1)):
        held = ", ".join(map(str, sorted(items)[: n + 3])) if items else ""
        return [Reading(None, text, f"expected the numbers 1 to {n}, found {held or 'none'}")] * n
    return [_json_reading(items[k + 1], low, high, na, types) for k in range(n)]


def _by_number(value: Any) -> dict[int, Any] | None:
    """The item with each number, or None where an item has no number or shares one."""
    if isinstance(value, dict) and len(value) == 1 and (key := next(iter(value))) in _WRAPPERS:
        value = value[key]
    pairs: list[tuple[object, Any]] = []
    if isinstance(value, dict):
        pairs = [(key, item) for key, item in value.items()]
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
        for item in value:
            keys = [key for key in _INDEX if isinstance(item.get(key), (int, str))]
            pairs.append((str(item[keys[0]]) if len(keys) == 1 else None, item))
    numbers = [_KEY.fullmatch(str(key).strip().lower()) for key, _ in pairs]
    if not pairs or None in numbers:
        return None
    items = {int(match[1]): item for match, (_, item) in zip(numbers, pairs, strict=True) if match}
    if len(items) < len(pairs) or any(_names_another(item, k) for k, item in items.items() if isinstance(item, dict)):
        return None
    return items


def _names_another(item: dict[str, Any], k: int) -> bool:
    """Whether a field of the item of completion `k` names another completion as the one it is about."""
    for key, value in item.items():
        written = str(value).strip().lower() if isinstance(value, (int, str)) and key != "rating" else ""
        named = _ONE.fullmatch(written)
        if named is not None and not (named["noun"] or ABOUT.search(key.replace("_", " "))):
            named = None  # a number of something else
        said = (named, _HEADED.match(written), *_IS_ONE.finditer(written))
        if any(_place(one) != k for one in said if one is not None):
            return True
    return False


def _place(match: re.Match[str]) -> int:
    return int(match["number"]) if match["number"] else _PLACES.index(match["place"]) // 3 + 1


def _words(value: Any) -> Iterator[str]:
    """Every text in a JSON value but its keys; a short one beside a rating is what that number means."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict) and "rating" in one:
            yield from (f"Rating: {one['rating']} ({v})" for v in one.values() if isinstance(v, str) and len(v) <= 40)
        if isinstance(one, str):
            yield one
        elif isinstance(one, (dict, list)):
            waiting += one.values() if isinstance(one, dict) else one


def _json_reading(item: Any, low: int, high: int, na: bool, types: Sequence[str]) -> Reading:
    raw = json.dumps(item, ensure_ascii=False)
    if not isinstance(item, dict) or "rating" not in item:
        return Reading(None, raw, "no whole-number rating")
    if overridden(item, "rating", (low, high)):
        return Reading(None, raw, "several fields that may be the rating")
    value = whole(item["rating"])
    if not isinstance(value, (int, str)):
        return Reading(None, raw, "no whole-number rating")
    number = leading_number(str(value), low, high)
    if number.tail.strip():  # a field holds the rating and nothing else
        number = number._replace(
            value=None, na=False, problem=f"the rating {str(value)[:40]!r} is not a whole number of the scale"
        )
    keys = list(item)
    later = [item[key] for key in keys[keys.index("rating") + 1 :] if isinstance(item[key], str)]
    if any(takes_back(words) or (number.value and changed(words, number.value, low, high)) for words in later):
        return Reading(None, raw, "the words after the rating may take it back")
    measured = (m for words in _words(item) for m in _MENTION.finditer(words) if m[3])
    if any(int(m[2]) == number.value and int(m[3]) != high for m in measured):
        return Reading(None, raw, "the rating is on another scale")
    named, note = _json_types(item, types)
    reading = _reading(number, raw, na)._replace(types=named, note=note)
    told = item.get("rationale")
    return reading._replace(raw=told) if reading.problem is None and isinstance(told, str) else reading


def _json_types(item: dict[str, Any], offered: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    value = item.get("types", item.get("type", ""))
    written = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return read_types(written, offered)


def read_types(written: str, offered: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """The codes in `1, 3` or `[1, 3]`, in the order they are offered; and which ones are not offered."""
    if not offered or re.fullmatch(r"[\s\[\]()*_.]*(?:none|null|n/?a)?[\s\[\]()*_.]*", written, re.IGNORECASE):
        return (), None
    codes = [code.strip(" \t*_[]().\"'") for code in re.split(r"[,;&]|\band\b", written)]
    unknown = sorted({code for code in codes if code and code not in offered})
    note = f"types not offered: {', '.join(unknown)[:80]}" if unknown else None
    return tuple(code for code in offered if code in codes), note


def _reading(number: Number, raw: str, na: bool) -> Reading:
    if number.na:
        return Reading(None, raw, None if na else "rated N/A, which is not offered", na=na)
    return Reading(number.value, raw, number.problem)


# ---------------------------------------------------------------- lines

# A block opens with its number in brackets, or with the completion's name as UltraFeedback's judge heads it
# (`#### Output for Text 1`, its templates). A bare `1.` may be a list of anything and opens none.
_BLOCK = Pattern(
    r"^[ \t]*(?:(?:[-*•]|\d{1,2}[.)](?=[ \t]+\[))[ \t]+)?(?:#{1,6}[ \t]*)?[*_]{0,3}"
    rf"(?:\[(?P<bracket>\d{{1,4}})\]"
    rf"|(?:output[ \t]+for[ \t]+)?{NAMED}[ \t]*#?(?P<open>\[)?(?P<named>\d{{1,4}})(?(open)\])"
    r"(?![\w.])(?=[ \t]*[*_]{0,3}[ \t]*(?:[:|(→\r\n]|[-–—][ \t]|$)))[*_]{0,3}",
    re.MULTILINE | re.IGNORECASE,
)
_ANOTHER = Pattern(r"[ \t]*(?:[,/&+-]|and\b|or\b)?[ \t]*\[\d|[ \t]*(?:,|/|&|and\b|or\b)[ \t]*\d", re.IGNORECASE)
_BRACKETS = r"(?:[ \t]*\([^()\n]{1,30}\))?"
_KEYED = Pattern(rf"\brating\b[*_]*{_BRACKETS}[*_]*[ \t]*[:=]", re.IGNORECASE)
_RATING = Pattern(
    rf"\brating\b[*_]*{_BRACKETS}[*_]*(?:[ \t]*[:=][*_]*[ \t]*|[ \t]*(?=[*_`\"'\[(]*[+-]?\d))", re.IGNORECASE
)
_MENTION = Pattern(
    r"\brating[ \t]+(?:of|is|to|was|as)[ \t]+[*_]*(\d{1,4})(?!\d)|(?<![\d/.])(\d{1,4})[ \t]*(?:/"
    r"|out of)[ \t]*(\d{1,4})(?![\d/])",
    re.IGNORECASE,
    words="rating |rating\t|/|out of",
)
_VALUE = Pattern(r"\A[^\w\n]*\w+(?:\.0+\b)?[*_]*(?:[ \t]*\(?(?:/|out of)[ \t]*[*_]*\d+\)?)?", re.IGNORECASE)
_HEAD = Pattern(r"[ \t*_]*(?:[:|→]|[-–—][ \t])?[ \t*_]*")
_STARTS = Pattern(r"[\s*_#|•(-]*(?:(?:my|the|overall|final|and|so)\b[\s*_]*)*", re.IGNORECASE)
# Words before `rating 4` that make it a rating of something else, or no rating.
_SOME = Pattern(
    r"\b(?:an?|the|of|any|this|that|its|no|not|for|with|another|some|every|max\w*|min\w*|highest|lowest|top|best|worst"
    r"|human|users?|average|mean)[ \t*_]*$",
    re.IGNORECASE,
)
_SUMMARY = Pattern(
    r"^\W*(?:final(?:ly)?|summary|in sum|to sum up|ratings|scores|overall|totals?"
    r"|results?)\b(?![*_ \t]*rating\b)[^\n]*\d"
    rf"|\[\d{{1,4}}\]\W{{0,4}}(?:rating\W{{0,4}})?\d|\b{NAMED}[ \t]*\[?\d{{1,4}}\]?[ \t]*(?:[:=]|->"
    rf"|→)[ \t]*[*_]*(?:rating\W{{0,4}})?\d",
    re.IGNORECASE | re.MULTILINE,
    words=(
        "final|summary|in sum|to sum up|ratings|scores|overall|total|result|]|text|completion|response|answer|"
        "candidate|output"
    ),
)
_TYPES = Pattern(r"^[ \t*_#-]*types?[*_]*[ \t]*:[*_ \t]*(.*)$", re.IGNORECASE | re.MULTILINE, words="type")
_OTHERS = Pattern(rf"\[\d|\b{NAMED}s?[ \t]*\[?\d|\b(?:first|second|third|fourth|former|latter|other)\b", re.IGNORECASE)


def read_lines(
    text: str, n: int, low: int, high: int, *, cut: bool = False, na: bool = False, types: Sequence[str] = ()
) -> list[Reading]:
    """A reply with one block for each completion, opened by `[k]`, `#### Output for Text k` or `Completion k:`.

    A block gives its rating in a formal position: `Rating: r` at the beginning of a line or sentence, `rating r` at the
    end of a line, or r alone after the number; once, or always the same. Or the reply is a table with a column of
    numbers and one of ratings.
    """
    heard = narrow(spoken(text))
    if len(heard) > MOST_CHARACTERS:
        return [Reading(None, text, TOO_LONG)] * n
    marks = _openers(heard)
    if not marks and (rows := _table(heard)):
        return _read_table(rows, heard, text, n, low, high, cut, na)
    numbers = [number for number, _, _ in marks]
    if sorted(numbers) != list(range(1, n + 1)):
        held = ", ".join(map(str, numbers[: n + 3])) or "none"
        return [Reading(None, text, f"expected the numbers 1 to {n} once each, found {held}")] * n
    if any(_ANOTHER.match(heard, end) for _, _, end in marks):
        return [Reading(None, text, "a block is headed by several numbers")] * n
    if _RATING.search(heard, 0, marks[0][1]):
        return [Reading(None, text, "a rating stands before the first number")] * n
    ends = [start for _, start, _ in marks[1:]] + [len(heard)]
    if any(
        not aside(heard, summary.start())
        for (_, _, after), end in zip(marks, ends, strict=True)
        for summary in _SUMMARY.finditer(heard, after, end)
    ):
        return [Reading(None, text, "a summary that names ratings again")] * n
    if problem := void(heard, low, high):
        return [Reading(None, text, problem)] * n
    last = _RATING.search(heard, marks[-1][2])
    after = heard[last.end() if last else marks[-1][2] :]
    before = heard[: marks[0][1]]
    if explains_otherwise(before, low, high) or any(spans_the_scale(words, low, high) for words in (before, after)):
        return [Reading(None, text, "the words before may say what the numbers mean")] * n
    if _mixes_up(heard):
        return [Reading(None, text, "a correction that names another number")] * n
    bodies = [
        (k, heard[start:end].strip(), heard[after:end]) for (k, start, after), end in zip(marks, ends, strict=True)
    ]
    whole = _Whole(compact=not any(_KEYED.search(body) for _, _, body in bodies), corrects=CORRECTION.may_match(heard))
    readings = {k: _block_reading(block, body, low, high, na, types, whole) for k, block, body in bodies}
    if cut:
        readings[numbers[-1]] = Reading(None, readings[numbers[-1]].raw, CUT)
    return [readings[k + 1] for k in range(n)]


def _openers(text: str) -> list[tuple[int, int, int]]:
    """The number, start and end of each mark that opens a block, in order."""
    return [(int(m["bracket"] or m["named"]), m.start(), m.end()) for m in _BLOCK.finditer(text)]


def _mixes_up(text: str) -> bool:
    """Whether the reply corrects the rating of one completion in the block of another."""
    return any(_OTHERS.search(text[end : end + 60].partition("\n")[0]) for end in corrections(text))


class _Whole(NamedTuple):
    """What is known of a reply when its blocks are read."""

    compact: bool  # without any `Rating:`
    corrects: bool  # with words that may begin a correction


def _block_reading(
    block: str, body: str, low: int, high: int, na: bool, types: Sequence[str], whole: _Whole
) -> Reading:
    """The rating of one block, `body` being what follows the number that opened it.

    Only in a reply that is compact throughout may a rating end a line of other words.
    """
    head = _HEAD.match(body)
    body = body[head.end() if head else 0 :]
    given: list[Number] = []
    mentioned = set()
    after = begins_at = len(body)
    first = leading_number(body.partition("\n")[0], low, high)
    if first.numeric and not first.word and (first.of or not first.tail.strip(" \t\r.*_")):
        given, after, begins_at = [first], 0, 0
    for count, match in enumerate(_RATING.finditer(body)):
        if count == MOST_MARKS:
            return Reading(None, block, TOO_MANY)
        number = leading_number(body[match.end() :].partition("\n")[0], low, high)
        before = body[: match.start()].rpartition("\n")[2]
        begins = _STARTS.fullmatch(re.split(r"[.;!?|,–—]|\s-\s", before)[-1]) is not None
        last = whole.compact and not number.tail.strip(" \t\r.!*_)")
        if aside(body, match.start()):
            continue
        formal = begins or (last and not _SOME.search(before))
        if formal and (number.numeric or _KEYED.match(match[0])):
            if other_scale(match[0], low, high):
                number = Number(None, "a rating on another scale", number.tail)
            if foreign(body, match.start()) or quoted(body, match.start()):
                number = Number(None, "a rating that is not given in its own place", number.tail)
            given.append(number)
            after, begins_at = min(after, match.end()), min(begins_at, match.start())
        elif number.numeric:
            mentioned.add(number.value)
    if not given:
        return Reading(None, block, "no rating in a place of its own" if mentioned else "no rating")
    value = given[0].value
    mentioned |= {
        int(m[1] or m[2]) if int(m[3] or high) == high else None
        for m in _MENTION.finditer(body)
        if not (m.end() <= begins_at and foreign(body, m.start()))  # `It says the film has a rating of 3. Rating: 2`
    }
    if len({(number.value, number.na) for number in given}) > 1 or (value is not None and mentioned - {value}):
        return Reading(None, block, "several ratings that differ")
    rest = _VALUE.sub("", body[after:], count=1)
    if (whole.corrects and takes_back(body[after:])) or (value is not None and changed(rest, value, low, high)):
        return Reading(None, block, "the words after the rating may take it back")
    written = {match[1].strip() for match in _TYPES.finditer(body)}
    named, note = read_types(written.pop(), types) if len(written) == 1 else ((), None)
    if written and types:
        named, note = (), "several lines of types that differ"
    return _reading(given[0], block, na)._replace(types=named, note=note)


# ---------------------------------------------------------------- a table

_COLUMN = Pattern(rf"(?:{NAMED}s?|no\.?|number|index|#)(?:[ ]*(?:no\.?|number|#))?", re.IGNORECASE)
_RULE = Pattern(r":?-{2,}:?")


def _table(text: str) -> list[list[str]]:
    """The cells of a Markdown table, its header first; nothing where there are two tables or none."""
    lines = [line.strip() for line in text.split("\n")]
    at = [i for i, line in enumerate(lines) if line.startswith("|")]
    if len(at) < 3 or at[-1] - at[0] != len(at) - 1:
        return []
    rows = [[cell.strip(" \t*_") for cell in line.strip("|").split("|")] for line in lines[at[0] : at[-1] + 1]]
    plain = [i for i, row in enumerate(rows) if not all(_RULE.fullmatch(cell.strip()) for cell in row)]
    return [rows[i] for i in plain] if plain == [0, *range(2, len(rows))] else []


def _read_table(
    rows: list[list[str]], heard: str, text: str, n: int, low: int, high: int, cut: bool, na: bool
) -> list[Reading]:
    """A table whose header names one column of numbers and one of ratings."""

    def unclear(problem: str) -> list[Reading]:
        return [Reading(None, text, problem)] * n

    header, body = rows[0], rows[1:]
    keys = [i for i, cell in enumerate(header) if _COLUMN.fullmatch(cell)]
    values = [i for i, cell in enumerate(header) if "rating" in cell.lower() or "score" in cell.lower()]
    named = [re.sub(r"\(.*\)", "", header[i]).strip().lower() for i in values]
    if len(keys) != 1 or named != ["rating"] or any(len(row) != len(header) for row in body):
        return unclear("a table without one column of numbers and one of ratings")
    numbers = [_KEY.fullmatch(row[keys[0]].lower()) for row in body]
    indices = [int(match[1]) for match in numbers if match]
    if None in numbers or sorted(indices) != list(range(1, n + 1)):
        return unclear(f"expected the numbers 1 to {n} once each, found {', '.join(map(str, indices)) or 'none'}")
    around = "\n".join(line for line in heard.split("\n") if not line.strip().startswith("|"))
    if _RATING.search(around) or CORRECTION.search(around) or void(around, low, high) or revokes(around, alone=True):
        return unclear("the words around the table may say something else")
    if quoted(heard, heard.index("|")) or foreign(heard, heard.index("|")):
        return unclear("the table stands in words that quote it")
    readings = {}
    for k, row in zip(indices, body, strict=True):
        number = leading_number(row[values[0]], low, high)
        if number.tail.strip():
            number = number._replace(value=None, na=False, problem="a cell that holds more than a rating")
        readings[k] = _reading(number, " | ".join(row), na)
    if cut:
        readings[indices[-1]] = Reading(None, " | ".join(body[-1]), CUT)
    return [readings[k + 1] for k in range(n)]
