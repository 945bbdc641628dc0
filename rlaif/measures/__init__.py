"""The measure stage: several models on the same prompts, each number with its 95 % interval.

A measure is one file here, registered in `MEASURES`: its figures of one model, and the table lines that show them. Only
this package reads held-out prompts and, with `judge: gold` in the pipeline, the truth of the embedded world. Nothing
measured flows back into data or training.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple

from rlaif.measures import checked, divergence, ended, gold, incomplete, judged, length, reward, safety
from rlaif.measures.collecting import Measured, Setting, collect
from rlaif.measures.lines import Figures, Line, as_dict
from rlaif.statistics import pair_accuracy


class Measure(NamedTuple):
    """`figures(model, baseline, setting)` are one model's, by the keys of summary.json; `lines(summary, baseline)` show
    them, with the baseline's name in the table."""

    figures: Callable[[Measured, Measured, Setting], Awaitable[dict[str, Any]]]
    lines: Callable[[Figures, str], list[Line]]


MEASURES: dict[str, Measure] = {  # in the order of the table
    "gold": Measure(gold.figures, gold.lines),
    "checked": Measure(checked.figures, checked.lines),
    "judged": Measure(judged.figures, judged.lines),
    "length": Measure(length.figures, length.lines),
    "ended": Measure(ended.figures, ended.lines),
    "reward": Measure(reward.figures, reward.lines),
    "safety": Measure(safety.figures, safety.lines),
    "divergence": Measure(divergence.figures, divergence.lines),
    "incomplete": Measure(incomplete.figures, incomplete.lines),
}


async def measure(setting: Setting) -> dict[str, Any]:
    """The report's figures. Raises EngineError when a model cannot be called at all."""
    stage, measured = setting.stage, await collect(setting)
    baseline = next(m for m in measured if m.name == (stage.baseline or stage.models[0]))
    return {
        "split": stage.split,
        "prompts": len(setting.prompts),
        "baseline": baseline.name,
        "models": [await _of_model(model, baseline, setting) for model in measured],
        "judge": _judge_figures(measured, setting),
        # A reward model overrates what it chose itself, so best-of-n is left out of its agreement with gold.
        "reward": {"model": stage.reward, "pair_accuracy": _agreement(measured[: len(stage.models)], "rewards")}
        if setting.reward
        else {},
    }


async def _of_model(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    best = setting.stage.best_of
    is_best = best is not None and model.name == best.name
    sampling = setting.sampling(best.model if best is not None and is_best else model.name)
    figures: dict[str, Any] = {"name": model.name, "sampling": sampling.model_dump(mode="json")}
    if best is not None and is_best:
        figures["best_of"] = best.n
    for entry in MEASURES.values():
        figures |= await entry.figures(model, baseline, setting)
    return figures


def _judge_figures(measured: Sequence[Measured], setting: Setting) -> dict[str, Any]:
    rater = setting.stage.rate
    if rater is None:
        return {}
    shown = sum(c is not None for m in measured for c in m.completions)
    failed = sum(failed for m in measured for failed in m.judge_failed)
    rated = sum(score is not None for m in measured for score in m.scores)
    return {
        "model": rater.model,
        "rated": rated,
        "unparsed": shown - failed - rated,
        "failed": failed,
        "pair_accuracy": _agreement(measured, "scores"),
    }


def _agreement(measured: Sequence[Measured], what: Literal["scores", "rewards"]) -> dict[str, Any] | None:
    """How often the judge's or the reward model's scores order two models' completions like the truth."""
    scores: list[list[float | None]] = []
    truths: list[list[float]] = []
    for prompt in range(len(measured[0].completions)):
        known = [(getattr(m, what)[prompt], truth.total) for m in measured if (truth := m.truths[prompt]) is not None]
        scores.append([score for score, _ in known])
        truths.append([total for _, total in known])
    return as_dict(pair_accuracy(scores, truths))
