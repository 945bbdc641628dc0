"""The vocabulary of a tiny model: which principles it can judge by, checked before the first call.

A model of a million parameters knows a quality only by the words it was trained on; with other words it answers at
random. Such a model's folder holds `lexicon.json`, and every principle for the model is checked against it. One that
names no known quality, or several, is an error; unknown words are reported. A model without the file is not checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from rlaif.errors import InputError
from rlaif.files import read_whole

FILE = "lexicon.json"
MOST = 4_000_000  # bytes of it; the one that ships has 10,000
REACH = 3  # words from a negation to what it negates, at most: longer ones were too rare in training


class Quality(BaseModel):
    """The words that name a quality, and the words that name it when negated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keywords: tuple[str, ...]
    opposites: tuple[str, ...]


class Lexicon(BaseModel):
    """A model's vocabulary: qualities by their words, negations, and all other words that it was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    qualities: dict[str, Quality]
    negations: tuple[str, ...]
    words: tuple[str, ...]
    completions: int | None = None  # in one rating prompt, at most
    gold: str | None = None  # the gold pairs in its vocabulary
    judging: dict[str, dict[str, Any]] = {}  # settings of judging stages that use it, by kind
    sampling: dict[str, Any] = {}  # its sampling settings as a judge

    @classmethod
    def read(cls, folder: Path) -> Lexicon | None:
        """The lexicon of the model in `folder`; None without one. Raises InputError when it cannot be read."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(read_whole(path, MOST))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or None
            fix = "build it again, or copy it from the model's origin"
            raise InputError(f"not a lexicon: {first['msg']}", file=str(path), key=key, fix=fix) from None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from None

    @cached_property
    def _of_qualities(self) -> frozenset[str]:
        return frozenset(word for q in self.qualities.values() for word in (*q.keywords, *q.opposites))

    @cached_property
    def _known(self) -> frozenset[str]:
        return self._of_qualities.union(self.words, self.negations)

    def unknown(self, text: str) -> list[str]:
        """The distinct words of `text` that the model was not trained on, in order."""
        return list(dict.fromkeys(word for word in words(text) if word not in self._known))

    def named(self, text: str) -> dict[str, str]:
        """Each quality that `text` asks for, with the words that name it: a keyword, or a negated opposite."""
        qualities: dict[str, str] = {}
        for naming in self._namings(text):
            for name, quality in self.qualities.items():
                if naming.word in (quality.opposites if naming.negation else quality.keywords):
                    qualities.setdefault(name, str(naming))
        return qualities

    def problem(self, text: str) -> tuple[str, str] | None:
        """The problem and the fix when the model cannot judge by `text`; else None."""
        for word in words(text):
            if word not in self._known and word.lower() in self._of_qualities.union(self.negations):
                return f"the model reads lower case only, not {word!r}", f"write {word.lower()!r}"
        for clause in self._clauses(text):
            if wrong := self._unclear(clause):
                return wrong
        named = self.named(text)
        if len(named) == 1:
            return None
        if named:
            asked_for = " and ".join(f"{name} ({word!r})" for name, word in named.items())
            problem = f"it asks for {asked_for}, and the model knows one quality at a time"
            return problem, "write a principle for each"
        strangers = self.unknown(text)
        knows = "; ".join(f"{name}: {', '.join(quality.keywords[:3])}" for name, quality in self.qualities.items())
        if strangers:
            problem = f"the model was not trained on {listed(strangers)}, and no other word here names a quality"
        else:
            problem = "none of its words names a quality that the model knows"
        return f"{problem}: it would answer at random", f"use one of its words ({knows}, ...)"

    def _clauses(self, text: str) -> Iterator[_Clause]:
        for clause in re.split(r"[.,;:!?()]", text):
            clause_words = words(clause)
            positions = [at for at, word in enumerate(clause_words) if word in self._of_qualities]
            negations = [at for at, word in enumerate(clause_words) if word in self.negations]
            odd = next((word for word in clause_words if _TURNS.fullmatch(word)), None)
            yield _Clause(clause_words, positions, negations, odd)

    def _namings(self, text: str) -> Iterator[_Naming]:
        """Each word of a quality, with the negation before it in its clause."""
        for clause in self._clauses(text):
            for position in clause.positions:
                before = [at for at in clause.negations if at < position]
                yield _Naming(clause.words[position], clause.words[before[-1]] if before else None)

    def _unclear(self, clause: _Clause) -> tuple[str, str] | None:
        """The problem and the fix when the model would misread a clause; else None."""
        known = ", ".join(self.negations)
        if not clause.positions:
            if clause.negations and self._known.issuperset(clause.words):
                negation = clause.words[clause.negations[0]]
                return (
                    f"{negation!r} negates no quality in its part of the sentence",
                    f"write {negation} before one word",
                )
            return None
        word = clause.words[clause.positions[0]]
        if clause.odd:
            return f"the model does not read {clause.odd!r} as a negation of {word!r}", f"negate with one of {known}"
        if after := [at for at in clause.negations if at > clause.positions[-1]]:
            return f"{clause.words[after[0]]!r} comes after {word!r}, where the model does not read it", (
                f"write '{clause.words[after[0]]} {word}'"
            )
        for position in clause.positions:
            word = clause.words[position]
            before = [at for at in clause.negations if at < position]
            if len(before) > 1:
                both = " and ".join(clause.words[at] for at in before)
                return f"two negations come before {word!r}: {both}", "remove one"
            if before and position - before[0] > REACH:
                return f"{clause.words[before[0]]!r} is too far from {word!r} for the model to connect them", (
                    f"write '{clause.words[before[0]]} {word}', or begin a new sentence between them"
                )
            strangers = (
                [other for other in clause.words[before[0] + 1 : position] if other not in self._known]
                if before
                else []
            )
            if strangers:
                negation = clause.words[before[0]]
                return f"{strangers[0]!r}, between {negation!r} and {word!r}, is a word the model was not trained on", (
                    f"write '{negation} {word}'"
                )
            if not any(word in (q.opposites if before else q.keywords) for q in self.qualities.values()):
                context = f"after {clause.words[before[0]]!r}" if before else "on its own"
                return f"{word!r} names no quality {context}", "ask for what you want instead of what you do not want"
        return None


class _Clause(NamedTuple):
    """The words between two punctuation marks, the positions of qualities and negations, and an unknown negation."""

    words: list[str]
    positions: list[int]
    negations: list[int]
    odd: str | None


class _Naming(NamedTuple):
    """A word of a quality, and what negates it."""

    word: str
    negation: str | None

    def __str__(self) -> str:
        return f"{self.negation} {self.word}" if self.negation else self.word


# Words that negate a clause and are not among a model's negations. No list is complete, so unknown words are reported
# too.
_TURNS = re.compile(
    r"\w*n['\u2018\u2019\u00b4`]t|(?:do|does|did|is|are|was|wo|ca|should|must|would)nt|don|doesn|isn|aren|"
    r"cannot|nobody|nothing|none|neither|nor|hardly|barely|rather|than|instead|unless|except|refrain|stop|bad|worse|worst|hate|dislike|against|"
    r"discourage|punish|reject|fails?|lacks?|far|but|minus|non|zero|low|lower|too|only|harm",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['\u2018\u2019\u00b4`-][^\W_]+)*", text)


def listed(strangers: Sequence[str]) -> str:
    shown = ", ".join(repr(word) for word in strangers[:8])
    return shown if len(strangers) <= 8 else f"{shown} and {len(strangers) - 8} more"
