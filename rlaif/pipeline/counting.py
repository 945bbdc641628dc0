"""The sampler of a plan: it answers from the call store, and counts the calls that are missing there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from rlaif.engines.asking import Ask
from rlaif.engines.scheduler import stored_completion
from rlaif.errors import EngineError
from rlaif.pipeline.session import Session
from rlaif.records import Completion, Message, Sampling, digest_text
from rlaif.store import call_keys

CHARACTERS_PER_TOKEN = 4  # a rough rule for English
UNPAID = "not paid for yet"
ASSUMED = "assumed-completion-"  # what every completion begins with that a plan assumes


class Need(dict[str, int]):
    """Calls of one model: `calls`, of which `paid` are cached; tokens of the others."""

    def __init__(self) -> None:
        super().__init__(calls=0, paid=0, prompt_tokens=0, max_completion_tokens=0)

    def add(self, messages: Sequence[Message], sampling: Sampling, *, calls: int, paid: int = 0) -> None:
        self["calls"] += calls
        self["paid"] += paid
        if calls > paid:
            self["prompt_tokens"] += sum(len(m.content) for m in messages) // CHARACTERS_PER_TOKEN
            self["max_completion_tokens"] += (calls - paid) * sampling.max_tokens


Needs = dict[str, dict[str, Need]]  # by stage and model


class Due(NamedTuple):
    """Calls that are not paid for: those whose prompts are known, and those that need words nobody has written yet."""

    exact: int = 0
    at_most: int = 0

    def plus(self, calls: int, *, known: bool) -> Due:
        return self._replace(exact=self.exact + calls) if known else self._replace(at_most=self.at_most + calls)


class Counting:
    """A sampler that answers from the store and counts missing calls, by stage and model.

    A missing completion is assumed to have the maximum length; without `assumes` it is an EngineError. With `each_once`
    a repeated call is counted once. `missing` counts missing completions.
    """

    def __init__(self, session: Session, needs: Needs, *, assumes: bool = True, each_once: bool = False) -> None:
        self._session, self._needs, self._assumes, self.missing = session, needs, assumes, 0
        self._counted: set[str] | None = set() if each_once else None
        self.due: dict[tuple[str, str], Due] = {}  # by stage and principle
        self._known: dict[str, bool] = {}  # by model, whether the store has any of its calls

    async def sample(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        before, answers = self.missing, [self._answered(ask) for ask in asks]
        if self.missing > before and not self._assumes:
            raise EngineError(UNPAID, cause="plan")
        return answers

    def _answered(self, ask: Ask) -> list[Completion]:
        stored = self._stored(ask)
        if ask.retries and len(stored) < ask.n:
            return []
        if not ask.attempt or len(stored) == ask.n:  # re-asks cannot be predicted
            calls, paid = self._new(ask, stored)
            if calls:
                need = self._needs.setdefault(ask.stage, {}).setdefault(ask.model, Need())
                need.add(ask.messages, ask.sampling, calls=calls, paid=paid)
            if ask.principle is not None and calls > paid:
                known = not any(ASSUMED in message.content for message in ask.messages)
                key = ask.stage, ask.principle
                self.due[key] = self.due.get(key, Due()).plus(calls - paid, known=known)
        self.missing += ask.n - len(stored)
        if not self._assumes:
            return list(stored.values())
        return [stored.get(index) or _assumed(ask, index) for index in range(ask.n)]

    def _stored(self, ask: Ask) -> dict[int, Completion]:
        """The cached completions by index; none of a model that is not trained yet."""
        engine = self._session.engines.get(ask.model)
        if engine is None:
            return {}
        if ask.model not in self._known:
            self._known[ask.model] = self._session.store.knows(engine.identity)
        if not self._known[ask.model]:
            return {}
        keys = call_keys(
            engine.identity, ask.messages, ask.sampling, indices=range(ask.n), attempt=ask.attempt,
            json_schema=ask.json_schema,
        )  # fmt: skip
        answers = self._session.store.get(keys)
        keep = self._session.thinking.get(ask.model) == "keep"
        return {
            i: stored_completion(ask.model, key, answers[key], "keep" if keep else "strip")
            for i, key in enumerate(keys)
            if key in answers
        }

    def _new(self, ask: Ask, stored: Mapping[int, Completion]) -> tuple[int, int]:
        """The number of an ask's calls that were not counted before, and how many of those are cached."""
        if self._counted is None:
            return ask.n, len(stored)
        names = _names(ask)
        new = [index for index, name in enumerate(names) if name not in self._counted]
        self._counted.update(names)
        return len(new), sum(index in stored for index in new)


def _assumed(ask: Ask, index: int) -> Completion:
    """A completion of the maximum length, another one for every call; empty for a re-ask, which is not counted."""
    if ask.attempt:
        return Completion(text="", model=ask.model, call="")
    name = _names(ask)[index]
    text = f"{ASSUMED}{name}".ljust(ask.sampling.max_tokens * CHARACTERS_PER_TOKEN, "x")
    return Completion(text=text, model=ask.model, call=name, assumed=True)


@lru_cache(maxsize=256)
def _told(sampling: Sampling) -> str:
    return str(sampling)


def _names(ask: Ask) -> list[str]:
    """A name for each call of an ask, the same for calls that are the same, whether or not the model exists."""
    shown = "\x1f".join((ask.model, _told(ask.sampling), *(f"{m.role} {m.content}" for m in ask.messages)))
    return [digest_text(f"{shown}\x1f{index}", length=16) for index in range(ask.n)]
