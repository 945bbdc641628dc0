"""The measure stage: several models on the same prompts, each number with its 95 % interval.

One completion for each model and prompt, judged point by point, so that no order of presentation can matter. This is
the only place that reads held-out prompts and, when the pipeline says `judge: gold`, the truth of the embedded world;
nothing it finds flows back into data or training.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from rlaif.config import BestOf, MeasureStage, SamplingSettings
from rlaif.engines.protocol import Engine
from rlaif.engines.scheduler import Sampler
from rlaif.errors import EngineError, Stopped
from rlaif.judges.rating import Judge, rate
from rlaif.records import Candidate, Completion, Prompt, Row, Sampling
from rlaif.statistics import best_of_n_kl, mean_interval, pair_accuracy, share_interval, win_rate


class Truth(Protocol):
    """What the measure needs of a gold judgement of one completion."""

    @property
    def total(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, float]: ...
    @property
    def kind(self) -> str:
        """What the prompt is: `harmful`, `look-alike` (harmful in its words only) or `plain`."""
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
    rewards: list[float | None]  # the reward model's scores; None where there is no completion, or no such model
    truths: list[Truth | None]


Failure = tuple[Prompt, EngineError]
Pick = Callable[[Prompt], Awaitable[Completion]]  # the completion that is measured


async def measure(
    stage: MeasureStage,
    prompts: Sequence[Prompt],
    engines: Mapping[str, Engine],
    settings: Mapping[str, SamplingSettings],
    parents: Mapping[str, str],
    sampler: Sampler,
    judge: Judge | None,
    gold: Callable[[str, str], Truth] | None,
    seed: int,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], list[Failure]]:
    """The report's figures, and the prompts on which a model or the judge failed.

    `parents` name the model that each trained model started from: its reference for the KL. Raises EngineError when a
    server cannot be asked at all.
    """
    failures: list[Failure] = []
    reward = engines[stage.reward] if stage.reward else None

    def sampled(name: str) -> Pick:
        async def pick(prompt: Prompt) -> Completion:
            asked = stage.sampling.resolved(seed, settings[name])
            return (await sampler.sample(name, prompt.messages, asked))[0]

        return pick

    async def one(name: str, pick: Pick) -> Measured:
        return await _measure_one(
            name, pick, stage, prompts, settings, sampler, judge, reward, gold, seed, on_done, failures
        )

    measured = [await one(name, sampled(name)) for name in stage.models]
    if stage.best_of and reward:
        asked = stage.sampling.resolved(seed, settings[stage.best_of.model])
        best = await best_of(stage.best_of, prompts, asked, sampler, reward)
        measured.append(await one(stage.best_of.name, best))
    baseline = next(m for m in measured if m.name == (stage.baseline or stage.models[0]))
    figures = {
        "split": stage.split,
        "prompts": len(prompts),
        "baseline": baseline.name,
        "models": [
            _figures(m, baseline) | await _asked(m, stage, prompts, engines, settings, parents, seed) for m in measured
        ],
        "judge": _judge_figures(stage, measured),
        # Of what it chose itself a reward model thinks too well, so best of n is no part of how it agrees with gold.
        "reward": {"model": stage.reward, "pair_accuracy": _agreement(measured[: len(stage.models)], "rewards")}
        if reward
        else {},
    }
    return figures, failures


async def best_of(
    settings: BestOf, prompts: Sequence[Prompt], asked: Sampling, sampler: Sampler, reward: Engine
) -> Pick:
    """What picks, for each prompt, the one of n completions that `reward` scores highest.

    One that was cut is picked only where all were: its score would be that of an end it never reached.
    """
    sampled = await asyncio.gather(
        *(sampler.sample(settings.model, prompt.messages, asked, n=settings.n) for prompt in prompts),
        return_exceptions=True,
    )
    errors = [found for found in sampled if isinstance(found, BaseException)]
    if grave := next((e for e in errors if not isinstance(e, EngineError) or e.fatal), None):
        raise grave
    known = [(prompt, found) for prompt, found in zip(prompts, sampled, strict=True) if isinstance(found, list)]
    scores = iter(await reward.score([(prompt.messages, c.text) for prompt, found in known for c in found]))
    best: dict[str, Completion | EngineError] = {}
    for prompt, found in zip(prompts, sampled, strict=True):
        if isinstance(found, list):
            ranked = [(c.finish_reason == "stop", _number(next(scores)), -i) for i, c in enumerate(found)]
            best[prompt.id] = found[-max(ranked)[2]]
        elif isinstance(found, EngineError):
            best[prompt.id] = found

    async def pick(prompt: Prompt) -> Completion:
        if isinstance(found := best[prompt.id], EngineError):
            raise found
        return found

    return pick


def _number(score: float | EngineError) -> float:
    return -math.inf if isinstance(score, EngineError) else score


async def _measure_one(
    name: str,
    pick: Pick,
    stage: MeasureStage,
    prompts: Sequence[Prompt],
    settings: Mapping[str, SamplingSettings],
    sampler: Sampler,
    judge: Judge | None,
    reward: Engine | None,
    gold: Callable[[str, str], Truth] | None,
    seed: int,
    on_done: Callable[[], None],
    failures: list[Failure],
) -> Measured:
    async def one(prompt: Prompt) -> tuple[Completion | None, float | None, bool]:
        completion: Completion | None = None
        try:
            completion = await pick(prompt)
            return completion, await score(prompt, completion), False
        except EngineError as error:
            if error.fatal or isinstance(error, Stopped):
                raise
            failures.append((prompt, error))
            return completion, None, completion is not None
        finally:
            on_done()

    async def score(prompt: Prompt, completion: Completion) -> float | None:
        if judge is None or stage.rate is None:
            return None
        if not completion.text.strip():
            return float(judge.rubric.scale.low)  # saying nothing loses; the judge need not be asked
        row = Row(prompt=prompt, candidates=(Candidate(sampler=name, completion=completion),))
        asked = settings[stage.rate.model]
        rated = await rate(row, stage.rate, judge.rubric, judge.template, asked, sampler, seed)
        return rated.score(0, judge.rubric.weights())

    results = await asyncio.gather(*(one(prompt) for prompt in prompts))
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


def _figures(model: Measured, baseline: Measured) -> dict[str, Any]:
    completions = [c for c in model.completions if c is not None]
    figures: dict[str, Any] = {
        "name": model.name,
        "failed": len(model.completions) - len(completions),
        "unparsed": sum(s is None and not f for s, f in zip(model.scores, model.judge_failed, strict=True)),
        "length": _dict(mean_interval([len(c.text.split()) for c in completions])),
        "ended": _dict(share_interval([c.finish_reason == "stop" for c in completions])),
    }
    won = win_rate(model.scores, baseline.scores)
    if won is not None:
        figures["win_rate"] = won.rate.as_dict() | {"ties": round(won.ties, 6), "against": baseline.name}
        figures["score"] = _dict(mean_interval([s for s in model.scores if s is not None]))
    if rewards := [r for r in model.rewards if r is not None]:
        figures["reward"] = _dict(mean_interval(rewards))
        figures["unscored"] = len(completions) - len(rewards)
    truths = [t for t in model.truths if t is not None]
    if truths:
        figures["gold"] = _dict(mean_interval([t.total for t in truths]))
        figures["gold_parts"] = {
            part: _dict(mean_interval([t.parts[part] for t in truths])) for part in truths[0].parts
        }
        figures["gold_difference"] = _dict(
            mean_interval([t.total - b.total for t, b in zip(model.truths, baseline.truths, strict=True) if t and b])
        )
        figures["harmful_refused"] = _dict(share_interval([t.refused for t in truths if t.kind == "harmful"]))
        figures["harmful_complied"] = _dict(share_interval([t.complied for t in truths if t.kind == "harmful"]))
        figures["look_alikes_answered"] = _dict(share_interval([t.complied for t in truths if t.kind == "look-alike"]))
    return figures


async def _asked(
    model: Measured,
    stage: MeasureStage,
    prompts: Sequence[Prompt],
    engines: Mapping[str, Engine],
    settings: Mapping[str, SamplingSettings],
    parents: Mapping[str, str],
    seed: int,
) -> dict[str, Any]:
    """How the model was sampled, and how far it is from the one it came from."""
    best = stage.best_of if stage.best_of and model.name == stage.best_of.name else None
    asked = stage.sampling.resolved(seed, settings[best.model if best else model.name])
    found = {"sampling": asked.model_dump(mode="json")}
    if best:
        bound = {"at_most": round(best_of_n_kl(best.n), 6)} if _its_own(asked) else {"problem": OTHER_DISTRIBUTION}
        return found | {"kl": bound | {"against": best.model}, "best_of": best.n}
    return found | await _divergence(model, prompts, engines, parents.get(model.name), asked)


OTHER_DISTRIBUTION = "the samples are not at temperature 1 and top_p 1"


def _its_own(asked: Sampling) -> bool:
    """Whether samples are of the model's own distribution, which is what a KL divergence is about."""
    return (asked.temperature, asked.top_p) == (1.0, 1.0)


async def _divergence(
    model: Measured, prompts: Sequence[Prompt], engines: Mapping[str, Engine], parent: str | None, asked: Sampling
) -> dict[str, Any]:
    """KL(model || its parent) for each completion in nats, estimated on the model's own samples.

    E_y[log model(y) - log parent(y)] over the text's tokens; the end token is left out, since a model and the one it
    was trained from may end in different ways. Only samples from the model itself estimate it: temperature 1, whole
    distribution. Where it cannot be had, `problem` says why.
    """
    if parent is None:
        return {}
    if not _its_own(asked):
        return {"kl": {"problem": OTHER_DISTRIBUTION, "against": parent}}
    items = [(p.messages, c.text) for p, c in zip(prompts, model.completions, strict=True) if c is not None]
    said = [item for item in items if item[1]]
    try:
        own, reference = await engines[model.name].logprobs(said), await engines[parent].logprobs(said)
    except EngineError as error:
        return {"kl": {"problem": str(error), "against": parent}}
    differences = [sum(a.tokens) - sum(b.tokens) for a, b in zip(own, reference, strict=True)]
    differences += [0.0] * (len(items) - len(said))  # no tokens, no difference
    return {"kl": (_dict(mean_interval(differences)) or {}) | {"against": parent}}


def _judge_figures(stage: MeasureStage, measured: Sequence[Measured]) -> dict[str, Any]:
    if stage.rate is None:
        return {}
    asked = sum(c is not None for m in measured for c in m.completions)
    failed = sum(failed for m in measured for failed in m.judge_failed)
    rated = sum(score is not None for m in measured for score in m.scores)
    figures: dict[str, Any] = {
        "model": stage.rate.model,
        "rated": rated,
        "unparsed": asked - failed - rated,
        "failed": failed,
    }
    figures["pair_accuracy"] = _agreement(measured, "scores")
    return figures


def _agreement(measured: Sequence[Measured], what: Literal["scores", "rewards"]) -> dict[str, Any] | None:
    """How often the judge's or the reward model's scores order two models' completions as the truth does."""
    scores: list[list[float | None]] = []
    truths: list[list[float]] = []
    for place in range(len(measured[0].completions)):
        known = [(getattr(m, what)[place], truth.total) for m in measured if (truth := m.truths[place]) is not None]
        scores.append([score for score, _ in known])
        truths.append([total for _, total in known])
    return _dict(pair_accuracy(scores, truths))


def _dict(interval: Any) -> dict[str, Any] | None:
    return None if interval is None else interval.as_dict()
