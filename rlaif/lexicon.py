"""The words a small model was taught: what it can be asked under, said before it is asked and answers at random.

A model of a million parameters knows a quality by the words it was trained on and by no others. Such a model's folder
holds `lexicon.json`, and every principle put to the model is held against it: one that names no known quality, or
several, is an error, and words that the model passes over are named. A model without the file is taken at its word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from rlaif.errors import InputError

FILE = "lexicon.json"
REACH = 4  # words: as far from its negation as the furthest a model was taught


class Quality(BaseModel):
    """The words that name a quality, and those that, negated, name it too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keywords: tuple[str, ...]
    opposites: tuple[str, ...]


class Lexicon(BaseModel):
    """What one model knows: qualities by their words, negations, and every other word it has met."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    qualities: dict[str, Quality]
    negations: tuple[str, ...]
    words: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Lexicon | None:
        """The lexicon of the model in `folder`; None where it has none. Raises InputError when it cannot be read."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"not a lexicon: {error}", file=str(path), fix="take the file out") from None

    @cached_property
    def _known(self) -> frozenset[str]:
        of_qualities = (word for quality in self.qualities.values() for word in (*quality.keywords, *quality.opposites))
        return frozenset([*self.words, *self.negations, *of_qualities])

    def unknown(self, text: str) -> list[str]:
        """The words of `text` that the model never met, each once, in order."""
        return list(dict.fromkeys(word for word in words(text) if word not in self._known))

    def named(self, text: str) -> dict[str, str]:
        """Each quality that `text` asks for, by the word or words that name it: a keyword, or a negated opposite."""
        found: dict[str, str] = {}
        for word, negation, _ in self._negated(text):
            for name, quality in self.qualities.items():
                if word in (quality.opposites if negation else quality.keywords):
                    found.setdefault(name, f"{negation} {word}" if negation else word)
        return found

    def _negated(self, text: str) -> Iterator[tuple[str, str | None, int]]:
        """Each word, the last negation before it in its clause, and how far away that is."""
        for clause in re.split(r"[.,;:!?]", text):
            said = words(clause)
            for place, word in enumerate(said):
                far = next((far for far in range(1, place + 1) if said[place - far] in self.negations), 0)
                yield word, said[place - far] if far else None, far

    def problem(self, text: str) -> tuple[str, str] | None:
        """Why the model cannot be asked under `text`, and what would mend it; None when it can."""
        named = self.named(text)
        for word, negation, far in self._negated(text):
            if far > REACH and any(word in (*q.keywords, *q.opposites) for q in self.qualities.values()):
                return f"{negation!r} stands too far from {word!r} for the model to see that they belong together", (
                    f"write {negation} {word}, or begin a new sentence between them"
                )
        if len(named) == 1:
            return None
        if named:
            told = " and ".join(f"{name} ({word!r})" for name, word in named.items())
            return f"it asks for {told}, and the model knows one quality at a time", "make each one of its own"
        strangers = self.unknown(text)
        knows = "; ".join(f"{name}: {', '.join(quality.keywords[:4])}" for name, quality in self.qualities.items())
        if strangers:
            problem = f"the model was never taught {listed(strangers)}, and no other word here names a quality"
        else:
            problem = "no word of it names a quality that the model knows"
        return f"{problem}: it would answer at random", f"use one of its words ({knows}, ...)"


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", text)


def listed(strangers: Sequence[str]) -> str:
    shown = ", ".join(repr(word) for word in strangers[:8])
    return shown if len(strangers) <= 8 else f"{shown} and {len(strangers) - 8} more"
