"""The measure stage: several models on the same prompts, each number with its 95 % interval.

One completion for each model and prompt, judged point by point, so that no order of presentation can matter. This is
the only place that reads held-out prompts and, when the pipeline says `judge: gold`, the truth of the embedded world;
nothing it finds flows back into data or training.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rlaif.config import MeasureStage, SamplingSettings
from rlaif.engines.protocol import Engine
from rlaif.engines.scheduler import Sampler
from rlaif.errors import EngineError
from rlaif.judges.rating import rate
from rlaif.records import Candidate, Completion, Prompt, Row, Sampling
from rlaif.rubric import Rubric
from rlaif.statistics import mean_interval, pair_accuracy, share_interval, win_rate
from rlaif.templates import Template


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


class Judge(NamedTuple):
    rubric: Rubric
    template: Template


class Measured(NamedTuple):
    """One model's completions of the prompts (None where sampling failed), in the order of the prompts."""

    name: str
    completions: list[Completion | None]
    scores: list[float | None]
    truths: list[Truth | None]


async def measure(
    stage: MeasureStage,
    prompts: Sequence[Prompt],
    engines: Mapping[str, Engine],
    settings: Mapping[str, SamplingSettings],
    parents: Mapping[str, str],
    scheduler: Sampler,
    judge: Judge | None,
    gold: Callable[[str, str], Truth] | None,
    seed: int,
    on_done: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The report's figures. `parents` name the model that each trained model started from: its reference for the KL."""
    measured = [
        await _measure_one(name, stage, prompts, settings, scheduler, judge, gold, seed, on_done)
        for name in stage.models
    ]
    by_name = {m.name: m for m in measured}
    baseline = by_name[stage.baseline or stage.models[0]]
    return {
        "split": stage.split,
        "prompts": len(prompts),
        "baseline": baseline.name,
        "temperature": Sampling(**stage.sampling.over()).temperature,
        "models": [
            _figures(m, baseline)
            | await _divergence(m, prompts, engines, parents.get(m.name), stage.sampling.temperature)
            for m in measured
        ],
        "judge": _judge_figures(stage, measured),
    }


async def _measure_one(
    name: str,
    stage: MeasureStage,
    prompts: Sequence[Prompt],
    settings: Mapping[str, SamplingSettings],
    scheduler: Sampler,
    judge: Judge | None,
    gold: Callable[[str, str], Truth] | None,
    seed: int,
    on_done: Callable[[], None],
) -> Measured:
    sampling = Sampling(seed=seed, **stage.sampling.over(settings[name]))

    async def one(prompt: Prompt) -> tuple[Completion | None, float | None]:
        try:
            completion = (await scheduler.sample(name, prompt.messages, sampling))[0]
        except EngineError:
            return None, None
        try:
            return completion, await _score(prompt, completion)
        except EngineError:
            return completion, None
        finally:
            on_done()

    async def _score(prompt: Prompt, completion: Completion) -> float | None:
        if judge is None or stage.rate is None:
            return None
        row = Row(prompt=prompt, candidates=(Candidate(sampler=name, completion=completion),))
        rated = await rate(row, stage.rate, judge.rubric, judge.template, settings[stage.rate.model], scheduler, seed)
        return rated.score(0, judge.rubric.weights())

    results = await asyncio.gather(*(one(prompt) for prompt in prompts))
    truths = [gold(p.text, c.text) if gold and c else None for p, (c, _) in zip(prompts, results, strict=True)]
    return Measured(name, [c for c, _ in results], [s for _, s in results], truths)


def _figures(model: Measured, baseline: Measured) -> dict[str, Any]:
    completions = [c for c in model.completions if c is not None]
    figures: dict[str, Any] = {
        "name": model.name,
        "failed": len(model.completions) - len(completions),
        "length": _dict(mean_interval([len(c.text.split()) for c in completions])),
        "ended": _dict(share_interval([c.finish_reason == "stop" for c in completions])),
    }
    won = win_rate(model.scores, baseline.scores)
    if won is not None:
        figures["win_rate"] = won.rate.as_dict() | {"ties": round(won.ties, 6), "against": baseline.name}
        figures["score"] = _dict(mean_interval([s for s in model.scores if s is not None]))
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
        figures["look_alikes_answered"] = _dict(
            share_interval([not t.refused for t in truths if t.kind == "look-alike"])
        )
    return figures


async def _divergence(
    model: Measured,
    prompts: Sequence[Prompt],
    engines: Mapping[str, Engine],
    parent: str | None,
    temperature: float | None,
) -> dict[str, Any]:
    """KL(model || its parent) for each completion in nats, estimated on the model's own samples.

    E_y[log model(y) - log parent(y)] over the text's tokens; the end token is left out, since a model and the one it
    was trained from may end in different ways. Only samples at temperature 1 estimate it.
    """
    if parent is None or temperature not in (None, 1.0):
        return {}
    items = [(p.messages, c.text) for p, c in zip(prompts, model.completions, strict=True) if c is not None and c.text]
    try:
        own, reference = await engines[model.name].logprobs(items), await engines[parent].logprobs(items)
    except EngineError:
        return {}
    differences = [sum(a.tokens) - sum(b.tokens) for a, b in zip(own, reference, strict=True)]
    return {"kl": (_dict(mean_interval(differences)) or {}) | {"against": parent}}


def _judge_figures(stage: MeasureStage, measured: Sequence[Measured]) -> dict[str, Any]:
    if stage.rate is None:
        return {}
    scores = [score for m in measured for c, score in zip(m.completions, m.scores, strict=True) if c is not None]
    figures: dict[str, Any] = {
        "model": stage.rate.model,
        "rated": sum(score is not None for score in scores),
        "unparsed": sum(score is None for score in scores),
    }
    if all(truth is not None for m in measured for truth in m.truths):
        accuracy = pair_accuracy(
            [list(column) for column in zip(*(m.scores for m in measured), strict=True)],
            [[t.total for t in column if t] for column in zip(*(m.truths for m in measured), strict=True)],
        )
        figures["pair_accuracy"] = _dict(accuracy)
    return figures


def _dict(interval: Any) -> dict[str, Any] | None:
    return None if interval is None else interval.as_dict()
