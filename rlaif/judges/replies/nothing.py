"""Whether a critique ends with the words that say that it found nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rlaif.judges.replies.words import MOST_CHARACTERS, spoken

ELLIPSIS = "..."  # begins a phrase that may stand behind other words of its sentence
_MARKS = re.compile(r"[*_`#~\"'“”„«»「」‘’()\[\]]+")  # not that of a block quotation: what is quoted is another's
_SENTENCES = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n+")
_LABEL = re.compile(r"^(?:my |the )?critique ?: ?")


def finds_nothing(reply: str, phrases: Iterable[str]) -> bool:
    """Whether the last sentence of a reply is one of the phrases, apart from capitals, emphasis and quotation marks.

    So `Nothing to mend.` counts in a line of its own and after another sentence, and not in `Otherwise nothing to
    mend.` or `Can I say: nothing to mend?` A phrase that begins with `...` only has to end the sentence.
    """
    text = spoken(reply)
    if len(text) > MOST_CHARACTERS:
        return False
    sentences = [plain for part in _SENTENCES.split(text) if (plain := _plain(part))]
    last = sentences[-1] if sentences else ""
    return any(
        last.endswith(f" {_plain(phrase)}") or last == _plain(phrase)
        if phrase.startswith(ELLIPSIS)
        else last == _plain(phrase)
        for phrase in phrases
    )


def _plain(text: str) -> str:
    return _LABEL.sub("", " ".join(_MARKS.sub("", text).casefold().split())).strip(" .!。！…-–—")
