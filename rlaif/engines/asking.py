"""What is asked of a model, and by whom: the one object in which context travels from a stage to a server.

A stage holds an `Asking` (its name, the row, how each model is sampled); a judge is handed an `Asker`, one model bound
to how it is asked; what reaches the sampler is an `Ask`. Nothing travels in context variables, which would not cross a
process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

from rlaif.config.models import SamplingSettings
from rlaif.errors import EngineError
from rlaif.records import Completion, Message, Sampling

Result = TypeVar("Result")


class Ask(NamedTuple):
    """What one model is asked: `n` samples of its continuation of `messages`."""

    model: str
    messages: Sequence[Message]
    sampling: Sampling
    n: int = 1
    attempt: int = 0  # counts re-asks
    json_schema: Mapping[str, Any] | None = None
    stage: str = ""  # the stage the calls are counted for
    row: int = 0  # the row they are for: rows that began first are finished first


class Sampler(Protocol):
    """What stages need of a scheduler. A plan has one that counts and never sends."""

    async def sample(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        """The completions of each ask, in order: looked up together, sent at the same time.

        Raises EngineError when one of them cannot be had; the others are stored by then.
        """
        ...


@dataclass(frozen=True, slots=True)
class Asker:
    """One model, bound to how it is sampled and to the stage and row that ask it."""

    sampler: Sampler
    model: str
    sampling: Sampling
    stage: str = ""
    row: int = 0

    async def several(
        self, messages: Sequence[Message], n: int, *, attempt: int = 0, json_schema: Mapping[str, Any] | None = None
    ) -> list[Completion]:
        """`n` completions of `messages`. Raises EngineError."""
        ask = Ask(self.model, messages, self.sampling, n, attempt, json_schema, self.stage, self.row)
        return (await self.sampler.sample([ask]))[0]

    async def one(
        self, messages: Sequence[Message], *, attempt: int = 0, json_schema: Mapping[str, Any] | None = None
    ) -> Completion:
        """One completion of `messages`. Raises EngineError."""
        return (await self.several(messages, 1, attempt=attempt, json_schema=json_schema))[0]

    def sampled(self, **changed: Any) -> Asker:
        """The same model asked with some sampling parameters changed."""
        return replace(self, sampling=self.sampling.model_copy(update=changed))


@dataclass(frozen=True, slots=True)
class Asking:
    """Whose calls are made: the sampler, how each model of the pipeline is sampled, the stage and the row."""

    sampler: Sampler
    settings: Mapping[str, SamplingSettings]  # by model
    seed: int
    stage: str = ""
    row: int = 0

    def of(self, stage: str, row: int = 0) -> Asking:
        return replace(self, stage=stage, row=row)

    def asker(self, model: str, settings: SamplingSettings) -> Asker:
        """The model as the stage asks it: what `settings` leave open is filled by the model's own."""
        sampling = settings.resolved(self.seed, self.settings[model])
        return Asker(self.sampler, model, sampling, self.stage, self.row)


async def together(*work: Awaitable[Result]) -> list[Result]:
    """The results of all `work`. One that fails lets the others finish; then the gravest error is raised."""
    if len(work) == 1:
        return [await work[0]]
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    if errors := [outcome for outcome in outcomes if isinstance(outcome, BaseException)]:
        try:
            raise gravest(errors)
        finally:  # an error whose own frame holds it would wait for the collector, and keep the row that it befell
            del errors, outcomes
    return outcomes  # type: ignore[return-value]


def gravest(errors: Sequence[BaseException]) -> BaseException:
    """The first error that stops the run; the first of all where each concerns one row alone."""
    return min(errors, key=lambda error: isinstance(error, EngineError) and not error.fatal)
