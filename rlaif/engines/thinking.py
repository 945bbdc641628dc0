"""A reasoning model's thinking, told apart from its answer.

Thinking stands at the beginning of a text, in `<think>` or marks like it. Some servers send it without the opening,
which their chat template wrote. A text in which the end of the thinking is not clear has no answer: a completion that
is quoted in the thinking may hold the marks, too.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

_NAMES = r"think(?:ing)?|thoughts?|reason(?:ing)?|reflection|seed:think|analysis"
# A pair of marks each: what opens, what closes.
_PAIRS = (
    (rf"<(?:{_NAMES})\s{{0,4}}>", rf"</(?:{_NAMES})\s{{0,4}}>"),
    (r"\[think\]", r"\[/think\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|start_thinking\|>", r"<\|end_thinking\|>"),
    (
        r"<\|channel\|>analysis<\|message\|>",
        r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>",
    ),
)
_MARKS = [(re.compile(rf"\s*{opening}", re.I), re.compile(closing, re.I)) for opening, closing in _PAIRS]
# Without an opening only these are marks: `</reasoning>` alone is a slip in a text of another kind.
_STRAY = re.compile(
    r"</(?:think(?:ing)?|seed:think)\s{0,4}>|\[/think\]|◁/think▷|<\|end_of_thought\|>|<\|end_thinking\|>"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_LATER = re.compile(r"^[ \t]*<(?P<name>think(?:ing)?)>(?P<thought>.*?)(?:</(?P=name)>|\Z)", re.I | re.M | re.S)
_MARK = re.compile(
    rf"</?(?:{_NAMES})|\[/?think\]|◁/?think|<\|(?:begin_of_|end_of_|start_|end_)(?:thought|think)|<\|channel\|>", re.I
)
_NAMED = re.compile(r"(?:[`'\"“«]|\b(?:the|a|an|closing|opening|literal|this|that)) ?\Z", re.IGNORECASE)
_CLOSES = re.compile(r"[ \t]*(?:[\r\n{]|$)")
_ENDS = re.compile(r"(?:^|[\n.!?…。！？)\]}*])[ \t]*$")


# The template of a generation prompt opens the thinking with one of these, and closes it with what stands beside it.
_OPENED = [
    (re.compile(rf"({opening})\s*\Z", re.I), closing)
    for opening, closing in (
        (rf"<(?:{_NAMES})>", ""),
        (r"\[think\]", "[/THINK]"),
        (r"◁think▷", "◁/think▷"),
        (r"<\|begin_of_thought\|>", "<|end_of_thought|>"),
        (r"<\|start_thinking\|>", "<|END_THINKING|>"),
    )
]
_CHANNELS = frozenset(("<|channel|>", "<|message|>", "<|end|>", "<|start|>"))


def left_open(prompt: str) -> tuple[str, str]:
    """The mark at the end of a prompt by which its template opens the thinking, and what closes it; empty without."""
    for pattern, closing in _OPENED:
        if opened := pattern.search(prompt):
            return opened[1], closing or opened[1].replace("<", "</")
    return "", ""


def marks_among(tokens: Collection[str]) -> set[str]:
    """The tokens of a vocabulary by which thinking is told from the answer."""
    marks = {token for token in tokens if _MARK.match(token)}
    return marks | (_CHANNELS & {*tokens} if "<|channel|>" in marks else set())


class Parts(NamedTuple):
    """A text's thinking, None where it has none, and the answer. `clear`: whether one could be told from the other."""

    thinking: str | None
    answer: str
    clear: bool = True


def marked(text: str) -> bool:
    """Whether a text may hold thinking. Every completion is looked at, so it is cheap where there is none."""
    suspicious = "</" in text or "<|" in text or "[/" in text or "◁" in text or "\n<think" in text
    return (suspicious or text[:40].lstrip().startswith(("<", "["))) and _MARK.search(text) is not None


def parted(text: str) -> Parts:
    """The text's thinking and the answer after it."""
    if not marked(text):
        return Parts(None, text)
    thoughts, rest, ended = _leading(text)
    if not ended:
        return Parts("\n\n".join(thoughts), "")
    stray = [match for match in _STRAY.finditer(rest) if not _is_named(rest, match)]
    if stray and not (thoughts or _opened(rest, stray[0])) and len(stray) == 1:
        end = stray[0]
        if not (_CLOSES.match(rest, end.end()) or _ENDS.search(rest[: end.start()])):
            return Parts(rest, "", clear=False)
        return Parts(rest[: end.start()].strip(), rest[end.end() :].strip())
    kept, later = _without_later(rest)
    if any(not _is_named(kept, match) for match in _STRAY.finditer(kept)):
        return Parts(text, "", clear=False)
    thoughts += later
    return Parts("\n\n".join(thoughts), kept.strip()) if thoughts else Parts(None, text)


def _leading(text: str) -> tuple[list[str], str, bool]:
    """The thoughts that the text begins with, the rest, and whether the last of them was closed."""
    thoughts: list[str] = []
    while True:
        found = ((begun, closing) for opening, closing in _MARKS if (begun := opening.match(text)))
        begun, closing = next(found, (None, None))
        if begun is None or closing is None:
            return thoughts, text, True
        ended = next((m for m in closing.finditer(text, begun.end()) if not _is_quoted(text[: m.start()])), None)
        if ended is None:
            return [*thoughts, text[begun.end() :].strip()], "", False
        thought = text[begun.end() : ended.start()].strip()
        thoughts += [thought] if thought else []
        text = text[ended.end() :].strip()
        if not thoughts and not marked(text):
            return [""], text, True


def _without_later(text: str) -> tuple[str, list[str]]:
    """The text without thoughts that begin a later line, as of models that think between paragraphs; and those."""
    kept, thoughts, end = "", [], 0
    for match in _LATER.finditer(text):
        if text[: match.start()].count("```") % 2:  # code, which is about such marks
            continue
        kept, end = kept + text[end : match.start()], match.end()
        thoughts.append(match["thought"].strip())
    return kept + text[end:], thoughts


def _opened(text: str, closing: re.Match[str]) -> bool:
    return any(opening in text[: closing.start()].lower() for opening in ("<think", "[think]", "◁think▷"))


def _is_quoted(before: str) -> bool:
    """Whether a quotation mark opens right behind these words."""
    return before[-1:] in ("“", "«") or (before[-1:] in ("`", '"') and before.count(before[-1]) % 2 == 1)


def _is_named(text: str, match: re.Match[str]) -> bool:
    """Whether the text speaks of the mark, or quotes it, or shows it in code."""
    before = text[: match.start()]
    return bool(_NAMED.search(before[-20:])) or before.count("```") % 2 == 1
