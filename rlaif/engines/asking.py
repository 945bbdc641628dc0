"""What a model is asked, and for which stage and row. This context travels in one object, from stage to server.

A stage holds an `Asking`: its name, the row, how each model is sampled. A judge gets an `Asker`: one model with its
sampling parameters. The sampler gets an `Ask`. There are no context variables: they would not cross a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any, NamedTuple, Protocol, TypeVar

from rlaif.config.models import SamplingSettings
from rlaif.errors import EngineError
from rlaif.records import Completion, Message, Sampling

Result = TypeVar("Result")
RETRIED = 101  # the attempts from here on are those of `--retry-failed`, above any `reask`


class Declined(Exception):
    """An attempt of `--retry-failed` that no run has made and this one does not make."""


def attempts(tries: int) -> Iterator[int]:
    """The attempts at a readable reply: `tries` of them, then those of `--retry-failed`, until one is Declined."""
    return chain(range(tries), count(RETRIED))


class Ask(NamedTuple):
    """`n` completions of `messages` by one model."""

    model: str
    messages: Sequence[Message]
    sampling: Sampling
    n: int = 1
    attempt: int = 0  # counts re-asks
    json_schema: Mapping[str, Any] | None = None
    stage: str = ""  # the stage that pays for the calls
    row: int = 0  # the row that needs them; lower rows go first
    principle: str | None = None  # whose request it makes, in a stage that applies a constitution

    @property
    def retries(self) -> bool:
        """Whether only `--retry-failed` makes the calls; without it they come from the store, or not at all."""
        return self.attempt >= RETRIED


class Sampler(Protocol):
    """What stages need of a scheduler. A plan uses one that counts and sends nothing."""

    async def sample(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        """The completions of each ask, in order: looked up together, sent concurrently.

        None for an ask that `retries` where it is not to be made. Raises EngineError when one fails; the others are
        stored by then.
        """
        ...


@dataclass(frozen=True, slots=True)
class Asker:
    """One model with its sampling parameters, for one stage and row."""

    sampler: Sampler
    model: str
    sampling: Sampling
    stage: str = ""
    row: int = 0
    principle: str | None = None

    async def several(
        self, messages: Sequence[Message], n: int, *, attempt: int = 0, json_schema: Mapping[str, Any] | None = None
    ) -> list[Completion]:
        """`n` completions of `messages`. Raises EngineError, and Declined for an attempt that is not to be made."""
        ask = Ask(self.model, messages, self.sampling, n, attempt, json_schema, self.stage, self.row, self.principle)
        (completions,) = await self.sampler.sample([ask])
        if ask.retries and not completions:
            raise Declined
        return completions

    async def one(
        self, messages: Sequence[Message], *, attempt: int = 0, json_schema: Mapping[str, Any] | None = None
    ) -> Completion:
        """One completion of `messages`, as `several`."""
        return (await self.several(messages, 1, attempt=attempt, json_schema=json_schema))[0]

    def under(self, principle: str) -> Asker:
        """The same model, asked for what a principle requests."""
        return replace(self, principle=principle)

    def sampled(self, **changed: Any) -> Asker:
        """The same model with some sampling parameters changed."""
        return replace(self, sampling=self.sampling.model_copy(update=changed))


@dataclass(frozen=True, slots=True)
class Asking:
    """What a stage needs to make calls: the sampler, each model's sampling settings, the stage and the row."""

    sampler: Sampler
    settings: Mapping[str, SamplingSettings]  # by model
    seed: int
    stage: str = ""
    row: int = 0

    def of(self, stage: str, row: int = 0) -> Asking:
        return replace(self, stage=stage, row=row)

    def asker(self, model: str, settings: SamplingSettings, *outer: SamplingSettings) -> Asker:
        """The model with `settings`; what they leave unset comes from `outer`, then from the model's own."""
        sampling = settings.resolved(self.seed, *outer, self.settings[model])
        return Asker(self.sampler, model, sampling, self.stage, self.row)


async def together(*work: Awaitable[Result]) -> list[Result]:
    """The results of all `work`. After a failure the others still finish; then the gravest error is raised."""
    if len(work) == 1:
        return [await work[0]]
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    if errors := [outcome for outcome in outcomes if isinstance(outcome, BaseException)]:
        try:
            raise gravest(errors)
        finally:  # a frame that holds its own error is a reference cycle, which would keep the row alive
            del errors, outcomes
    return outcomes  # type: ignore[return-value]


def gravest(errors: Sequence[BaseException]) -> BaseException:
    """The first fatal error, or the first error when none is fatal."""
    return min(errors, key=lambda error: isinstance(error, EngineError) and not error.fatal)
