"""The data of the measures: every model's completions of the same prompts, with judge's scores, rewards and truth.

There is one completion for each model and prompt, judged pointwise, so there is no position bias.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from rlaif.config import MeasureStage
from rlaif.engines.asking import Ask, Asking, together
from rlaif.engines.protocol import Engine
from rlaif.errors import EngineError, Stopped
from rlaif.judges.rating import Judge, rate
from rlaif.judges.verifiers import Check
from rlaif.records import Candidate, Completion, Prompt, Row, Sampling


class Truth(Protocol):
    """A gold judgement of one completion."""

    @property
    def total(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, float]: ...
    @property
    def kind(self) -> str:
        """The kind of prompt: `harmful`, `look-alike` (harmful in its words only) or `plain`."""
        ...

    @property
    def refused(self) -> bool: ...
    @property
    def complied(self) -> bool: ...


class Measured(NamedTuple):
    """One model's completions of the prompts (None where sampling failed), in the order of the prompts."""

    name: str
    completions: list[Completion | None]
    scores: list[float | None]  # None: unparsed, or the judge failed
    judge_failed: list[bool]
    rewards: list[float | None]  # the reward model's scores; None without a completion or a reward model
    truths: list[Truth | None]

    @property
    def there(self) -> list[Completion]:
        """The completions that did not fail."""
        return [completion for completion in self.completions if completion is not None]


Failure = tuple[Prompt, EngineError]
Pick = Callable[[Prompt], Awaitable[Completion]]  # the completion that is measured
Gold = Callable[[str, str], Truth]  # of a prompt's text and a completion's


@dataclass(frozen=True)
class Setting:
    """What is measured, on which prompts, by which judge and reward model.

    `parents` name the model that each trained model started from, its reference for the KL. `gold` is the truth of the
    embedded world, where the pipeline uses it. `on_done` is called after each completion, `failures` collects the
    prompts on which a model or the judge failed.
    """

    stage: MeasureStage
    prompts: Sequence[Prompt]
    asking: Asking
    engines: Mapping[str, Engine]
    parents: Mapping[str, str] = field(default_factory=dict)
    judge: Judge | None = None
    checks: Sequence[Check] = ()  # of every prompt, beside its own
    gold: Gold | None = None
    on_done: Callable[[], None] = lambda: None
    failures: list[Failure] = field(default_factory=list)

    @property
    def reward(self) -> Engine | None:
        return self.engines[self.stage.reward] if self.stage.reward else None

    def sampling(self, model: str) -> Sampling:
        """A model's sampling parameters."""
        return self.stage.sampling.resolved(self.asking.seed, self.asking.settings[model])

    async def several(self, model: str, prompt: Prompt, n: int) -> list[Completion]:
        """`n` completions of a prompt. Raises EngineError."""
        ask = Ask(model, prompt.messages, self.sampling(model), n, stage=self.asking.stage)
        return (await self.asking.sampler.sample([ask]))[0]


async def collect(setting: Setting) -> list[Measured]:
    """Every model's completions with their scores; last those of `best_of`, if any.

    Raises EngineError when a model cannot be called at all.
    """

    def sampled(name: str) -> Pick:
        async def pick(prompt: Prompt) -> Completion:
            return (await setting.several(name, prompt, 1))[0]

        return pick

    measured, stopped = [], list[Stopped]()
    for name in setting.stage.models:
        try:
            measured.append(await _measured(name, sampled(name), setting))
        except Stopped as error:  # the other models still say which calls they need: these may be collected
            stopped.append(error)
    if stopped:
        raise stopped[0]
    if setting.stage.best_of and setting.reward:
        best = await best_of(setting, setting.reward)
        measured.append(await _measured(setting.stage.best_of.name, best, setting))
    return measured


async def best_of(setting: Setting, reward: Engine) -> Pick:
    """Picks, for each prompt, the completion of n with the highest `reward`.

    A truncated one is picked only if all are: its score is read at an end token that it never reached.
    """
    best = setting.stage.best_of
    assert best is not None
    sampled = await asyncio.gather(
        *(setting.several(best.model, prompt, best.n) for prompt in setting.prompts), return_exceptions=True
    )
    errors = [outcome for outcome in sampled if isinstance(outcome, BaseException)]
    if grave := next((e for e in errors if not isinstance(e, EngineError) or e.fatal or isinstance(e, Stopped)), None):
        raise grave
    known = [(p, outcome) for p, outcome in zip(setting.prompts, sampled, strict=True) if isinstance(outcome, list)]
    scores = iter(await reward.score([(prompt.messages, c.text) for prompt, outcome in known for c in outcome]))
    picked: dict[str, Completion | EngineError] = {}
    for prompt, outcome in zip(setting.prompts, sampled, strict=True):
        if isinstance(outcome, list):
            ranked = [(c.finish_reason == "stop", _number(next(scores)), -i) for i, c in enumerate(outcome)]
            picked[prompt.id] = outcome[-max(ranked)[2]]
        elif isinstance(outcome, EngineError):
            picked[prompt.id] = outcome

    async def pick(prompt: Prompt) -> Completion:
        if isinstance(outcome := picked[prompt.id], EngineError):
            raise outcome
        return outcome

    return pick


def _number(score: float | EngineError) -> float:
    return -math.inf if isinstance(score, EngineError) else score


async def _measured(name: str, pick: Pick, setting: Setting) -> Measured:
    async def one(prompt: Prompt) -> tuple[Completion | None, float | None, bool]:
        completion: Completion | None = None
        try:
            completion = await pick(prompt)
            return completion, await _score(name, prompt, completion, setting), False
        except EngineError as error:
            if error.fatal or isinstance(error, Stopped):
                raise
            setting.failures.append((prompt, error))
            return completion, None, completion is not None
        finally:
            setting.on_done()

    prompts, reward, gold = setting.prompts, setting.reward, setting.gold
    results = await together(*(one(prompt) for prompt in prompts))
    truths = [gold(p.text, c.text) if gold and c else None for p, (c, _, _) in zip(prompts, results, strict=True)]
    there = [(p.messages, c.text) for p, (c, _, _) in zip(prompts, results, strict=True) if c is not None]
    scored = iter([s if isinstance(s, float) else None for s in await reward.score(there)] if reward else [])
    return Measured(
        name,
        [c for c, _, _ in results],
        [s for _, s, _ in results],
        [f for _, _, f in results],
        [next(scored) if reward and c is not None else None for c, _, _ in results],
        truths,
    )


async def _score(name: str, prompt: Prompt, completion: Completion, setting: Setting) -> float | None:
    """The judge's weighted mean rating of one completion; None where it is unparsed, or nobody judges."""
    judge, rater = setting.judge, setting.stage.rate
    if judge is None or rater is None:
        return None
    if not completion.text.strip():
        return float(judge.rubric.scale.low)  # an empty completion gets the lowest score, without a call
    row = Row(prompt=prompt, candidates=(Candidate(sampler=name, completion=completion),))
    rated = await rate(row, rater, judge, setting.asking.asker(rater.model, rater.sampling))
    return rated.score(0, judge.rubric.weights())
