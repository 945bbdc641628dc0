"""Reading a judge's reply: every rating bound to a number, or *unparsed* with the reason.

Nothing is guessed. A reply that names a completion twice, leaves one out, or rates outside the scale gives no rating
for what it left unclear; its words are kept.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from rlaif.records import Completion


class Reading(NamedTuple):
    """What one number of the reply says: a value, or the problem that left it unparsed. `raw` are the judge's words."""

    value: int | None
    raw: str
    problem: str | None = None


def unusable(what: str, completion: Completion) -> str | None:
    """Why nothing can be built on a model's words, `what` saying which; None where they can be used."""
    if completion.finish_reason == "length":
        return f"{what}: cut at max_tokens"
    if completion.finish_reason == "content_filter":
        return f"{what}: stopped by a content filter"
    return None if completion.text.strip() else f"{what}: empty"


def read_reply(text: str, n: int, low: int, high: int, answers: str, *, cut: bool = False) -> list[Reading]:
    """The ratings of numbers 1 to n in a judge's reply, `answers` saying its form: `json` or `lines`.

    `cut`: the reply ended at max_tokens, so its last rating may be the beginning of another (1 of 10).
    """
    return read_json(text, n, low, high) if answers == "json" else read_lines(text, n, low, high, cut=cut)


def read_json(text: str, n: int, low: int, high: int) -> list[Reading]:
    """A reply such as {"1": {"rationale": "...", "rating": 4}, "2": ...}, bare or inside one code fence.

    Plain words around the fence are let pass, but no brace and no digit: a judge that quotes an object and then says
    something else has given two replies, and nothing says which one counts.
    """
    parts = text.split("```")
    fenced = len(parts) == 3 and not any(c.isdigit() or c in "{}" for c in parts[0] + parts[2])
    body = parts[1].strip() if fenced else text.strip()
    if fenced and body[:4].lower() == "json":
        body = body[4:]
    try:
        reply = json.loads(body, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        return [Reading(None, text, f"not readable as JSON ({error})")] * n
    if not isinstance(reply, dict) or set(reply) != {str(k + 1) for k in range(n)}:
        found = ", ".join(sorted(reply)[: n + 3]) if isinstance(reply, dict) else type(reply).__name__
        return [Reading(None, text, f"expected the numbers 1 to {n}, found {found or 'none'}")] * n
    return [_json_reading(reply[str(k + 1)], low, high) for k in range(n)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a key stand twice and keeps the last; a reply that rates a completion twice is ambiguous."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _json_reading(item: Any, low: int, high: int) -> Reading:
    raw = json.dumps(item, ensure_ascii=False)
    value = item.get("rating") if isinstance(item, dict) else None
    if isinstance(value, str):
        reading = _reading(value, raw, low, high)
    elif isinstance(value, bool) or not isinstance(value, int):
        return Reading(None, raw, "no whole-number rating")
    else:
        reading = _in_range(value, raw, low, high)
    said = item.get("rationale")
    return reading._replace(raw=said) if reading.value is not None and isinstance(said, str) else reading


# A block opens with its number in brackets, or as UltraFeedback's judge heads it (arXiv 2310.01377, its templates).
_BLOCK = re.compile(
    r"^[ \t]*(?:\[(?=\d{1,4}\])|#{1,6}[ \t]*Output for Text[ \t]+)(\d{1,4})\b\]?:?", re.MULTILINE | re.IGNORECASE
)
# What follows decides too: `4 out of 10`, `4 - 5` and `4 or 5` are not 4.
_RATING = re.compile(r"\brating\b\s*[:=]?\s*(\S+)(\s+(?:out\s+of\b|of\b|or\b|to\b|[-/%]))?", re.IGNORECASE)

_NUMBER = re.compile(r"([+-]?\d{1,3})(?:/(\d{1,3}))?")


def read_lines(text: str, n: int, low: int, high: int, *, cut: bool = False) -> list[Reading]:
    """A reply with one block for each completion, which holds `rating r` once, or always the same r.

    A block is opened by `[k]` or `#### Output for Text k`.
    """
    marks = list(_BLOCK.finditer(text))
    numbers = [int(mark.group(1)) for mark in marks]
    if sorted(numbers) != list(range(1, n + 1)):
        found = ", ".join(map(str, numbers[: n + 3])) or "none"
        return [Reading(None, text, f"expected the numbers 1 to {n} once each, found {found}")] * n
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    blocks = {k: text[mark.start() : end].strip() for k, mark, end in zip(numbers, marks, ends, strict=True)}
    readings = {k: _block_reading(block, low, high) for k, block in blocks.items()}
    if cut:
        readings[numbers[-1]] = Reading(None, blocks[numbers[-1]], "the reply was cut at max_tokens")
    return [readings[k + 1] for k in range(n)]


def _block_reading(block: str, low: int, high: int) -> Reading:
    found = [_reading(number + follows, block, low, high) for number, follows in _RATING.findall(block)]
    if not found:
        return Reading(None, block, "no rating")
    if len({reading.value for reading in found}) > 1:
        return Reading(None, block, "several ratings that differ")
    return found[-1]


def _reading(written: str, raw: str, low: int, high: int) -> Reading:
    """A rating as text: `4` or `4/5`. Anything else (`4.5`, `4-5`, `40%`, `4/10`) is not guessed at."""
    written = written.strip().strip("*\"'").rstrip(".,;)")
    match = _NUMBER.fullmatch(written)
    if match is None or (match.group(2) is not None and int(match.group(2)) != high):
        return Reading(None, raw, f"the rating {written[:40]!r} is not a whole number of the scale")
    return _in_range(int(match.group(1)), raw, low, high)


def _in_range(value: int, raw: str, low: int, high: int) -> Reading:
    if low <= value <= high:
        return Reading(value, raw)
    return Reading(None, raw, f"the rating {value} is outside {low} to {high}")
