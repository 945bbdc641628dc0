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
from typing import NamedTuple

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

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    def _of_qualities(self) -> frozenset[str]:
        return frozenset(word for q in self.qualities.values() for word in (*q.keywords, *q.opposites))

    @cached_property
    def _known(self) -> frozenset[str]:
        return self._of_qualities.union(self.words, self.negations)

    def unknown(self, text: str) -> list[str]:
        """The words of `text` that the model never met, each once, in order."""
        return list(dict.fromkeys(word for word in words(text) if word not in self._known))

    def named(self, text: str) -> dict[str, str]:
        """Each quality that `text` asks for, by the word or words that name it: a keyword, or a negated opposite."""
        found: dict[str, str] = {}
        for said in self._said(text):
            for name, quality in self.qualities.items():
                if said.word in (quality.opposites if said.negations else quality.keywords):
                    found.setdefault(name, str(said))
        return found

    def problem(self, text: str) -> tuple[str, str] | None:
        """Why the model cannot be asked under `text`, and what would mend it; None when it can."""
        for said in self._said(text):
            if wrong := self._unclear(said):
                return wrong
        named = self.named(text)
        if len(named) == 1:
            return None
        if named:
            told = " and ".join(f"{name} ({word!r})" for name, word in named.items())
            return f"it asks for {told}, and the model knows one quality at a time", "make each one of its own"
        strangers = self.unknown(text)
        if spelled := next((word for word in strangers if word.lower() in self._of_qualities), None):
            return f"the model reads small letters only, and not {spelled!r}", f"write {spelled.lower()!r}"
        knows = "; ".join(f"{name}: {', '.join(quality.keywords[:4])}" for name, quality in self.qualities.items())
        if strangers:
            problem = f"the model was never taught {listed(strangers)}, and no other word here names a quality"
        else:
            problem = "no word of it names a quality that the model knows"
        return f"{problem}: it would answer at random", f"use one of its words ({knows}, ...)"

    def _said(self, text: str) -> Iterator[_Said]:
        """Each word of a quality, with what negates it in its clause."""
        for clause in re.split(r"[.,;:!?]", text):
            said = words(clause)
            odd = next((word for word in said if _ODD_NEGATION.fullmatch(word)), None)
            for place, word in enumerate(said):
                if word in self._of_qualities:
                    before = [place - at for at in range(place) if said[at] in self.negations]
                    yield _Said(word, tuple(said[place - far] for far in before), min(before, default=0), odd)

    def _unclear(self, said: _Said) -> tuple[str, str] | None:
        """Why what was said of one quality is not what the model would read in it."""
        word, known = said.word, ", ".join(self.negations)
        if said.odd:
            return f"the model does not read {said.odd!r} as a negation of {word!r}", f"negate with one of {known}"
        if len(said.negations) > 1:
            return f"two negations stand before {word!r}: {' and '.join(said.negations)}", "leave one"
        if said.far > REACH:
            return (
                f"{said.negations[0]!r} stands too far from {word!r} for the model to see that they belong together",
                (f"write '{said.negations[0]} {word}', or begin a new sentence between them"),
            )
        if not any(word in (q.opposites if said.negations else q.keywords) for q in self.qualities.values()):
            asked = f"after {said.negations[0]!r}" if said.negations else "on its own"
            return f"{word!r} names no quality {asked}", "ask for what you want in place of what you do not"
        return None


class _Said(NamedTuple):
    """A word of a quality, the negations before it in its clause, and the nearest one's distance."""

    word: str
    negations: tuple[str, ...]
    far: int
    odd: str | None  # a negation in the clause that no model was taught

    def __str__(self) -> str:
        return " ".join([*self.negations[-1:], self.word])


# What turns a clause round and is no single word that can be taught as a negation.
_ODD_NEGATION = re.compile(
    r"\w+n['\u2019]t|cannot|nobody|nothing|none|neither|nor|hardly|barely|rather|than|instead|unless|except|refrain|stop",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", text)


def listed(strangers: Sequence[str]) -> str:
    shown = ", ".join(repr(word) for word in strangers[:8])
    return shown if len(strangers) <= 8 else f"{shown} and {len(strangers) - 8} more"
