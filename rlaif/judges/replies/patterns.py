"""Regular expressions that cost nothing until a reply needs them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import cached_property

DIGITS = "0123456789"
_END = sys.maxsize
_ANY_DIGIT = re.compile(r"\d")


class Pattern:
    """A regular expression that is compiled when it is first used, and a text is searched only where it may match.

    Of `words`, in lower case with `|` between them, one stands in whatever it matches: most replies hold none, and to
    look for them takes a twentieth of the time of the search.
    """

    def __init__(self, pattern: str, flags: int = 0, *, words: str = "") -> None:
        self.pattern, self.flags = pattern, flags
        self.words = tuple(words.split("|")) if words else ("",)

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern, self.flags)

    @cached_property
    def match(self) -> Callable[..., re.Match[str] | None]:
        return self.compiled.match

    @cached_property
    def fullmatch(self) -> Callable[..., re.Match[str] | None]:
        return self.compiled.fullmatch

    def may_match(self, text: str) -> bool:
        """Whether the text holds one of the words."""
        folded = text.lower() if text.isascii() else _folded(text)
        for word in self.words:  # noqa: SIM110 - a generator takes twice the time
            if word in folded:
                return True
        return False

    def search(self, text: str, start: int = 0, end: int = _END) -> re.Match[str] | None:
        return self.compiled.search(text, start, end) if self.may_match(text[start:end]) else None

    def finditer(self, text: str, start: int = 0, end: int = _END) -> Iterator[re.Match[str]]:
        return self.compiled.finditer(text, start, end) if self.may_match(text[start:end]) else iter(())

    def sub(self, instead: str | Callable[[re.Match[str]], str], text: str, count: int = 0) -> str:
        return self.compiled.sub(instead, text, count) if self.may_match(text) else text


def _folded(text: str) -> str:
    """The text as a pattern that ignores case reads it: a long s is an s, a digit of any script a digit."""
    return _ANY_DIGIT.sub("0", text.casefold().replace("ı", "i"))
