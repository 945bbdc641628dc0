"""What a run would do: calls by model, how many are paid for, tokens, cost, and what would be trained. Nothing is sent.

The row stages are run dry: a scheduler that answers from the call store alone counts what is missing. Where a model has
yet to be trained its calls cannot be looked up, so they are counted as new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rlaif.config import (
    DataStage,
    MeasureStage,
    OpenAIModel,
    PairStage,
    PromptsStage,
    RateStage,
    SampleStage,
    Step,
    TrainStage,
)
from rlaif.engines.protocol import Engine
from rlaif.errors import EngineError
from rlaif.generate.pairing import pair
from rlaif.pipeline.folder import read_json
from rlaif.pipeline.run import Run
from rlaif.records import Completion, Message, Row, Sampling
from rlaif.store import CallStore, call_key

CHARACTERS_PER_TOKEN = 4  # a rough rule for English; the plan says "about"


class Need(dict[str, int]):
    """Calls of one model: `calls`, of which `paid` are in the store; tokens of the others, at most."""

    def __init__(self) -> None:
        super().__init__(calls=0, paid=0, prompt_tokens=0, max_completion_tokens=0)

    def add(self, calls: int, paid: int, messages: Sequence[Message], sampling: Sampling) -> None:
        self["calls"] += calls
        self["paid"] += paid
        if calls > paid:
            self["prompt_tokens"] += sum(len(m.content) for m in messages) // CHARACTERS_PER_TOKEN
            self["max_completion_tokens"] += (calls - paid) * sampling.max_tokens


class DryScheduler:
    """Answers from the store and counts what is missing; never sends."""

    def __init__(self, store: CallStore, engines: Mapping[str, Engine]) -> None:
        self._store, self._engines = store, engines
        self.needs: dict[str, Need] = {}

    async def sample(
        self,
        model: str,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        n: int = 1,
        attempt: int = 0,
        json_schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        need, answers = self.needs.setdefault(model, Need()), {}
        if model in self._engines:
            identity = self._engines[model].identity
            keys = [
                call_key(identity, messages, sampling, index=i, attempt=attempt, json_schema=json_schema)
                for i in range(n)
            ]
            answers = self._store.get(keys)
        need.add(n, len(answers), messages, sampling)
        if len(answers) < n:
            raise EngineError("not paid for yet", cause="plan")
        return [Completion(model=model, call=k, **{a: b for a, b in answers[k].items() if b is not None}) for k in keys]


async def plan(run: Run) -> dict[str, Any]:
    """The plan of `run`, which must not have been executed; figures by stage and by model."""
    dry = DryScheduler(run.store, run.engines)
    run.sampler = dry
    stages = []
    for step in run.pipeline.steps:
        stages.append({"stage": step.name, "kind": step.stage.kind, "from": step.source.name if step.source else None}
                      | await _plan_stage(run, step, dry))  # fmt: skip
    calls = {model: dict(need) | {"max_cost": _cost(run, model, need)} for model, need in dry.needs.items()}
    manifest = run.folder.manifest()
    return {
        "name": run.pipeline.name,
        "stages": stages,
        "calls": calls,
        "last_run_seconds": manifest and manifest["seconds"],
    }


async def _plan_stage(run: Run, step: Step, dry: DryScheduler) -> dict[str, Any]:
    stage, source = step.stage, step.source.name if step.source else ""
    if isinstance(stage, DataStage):
        return {"rows": run.read_data(step, stage).out}
    if isinstance(stage, PromptsStage):
        return {"rows": run.read_prompts(step, stage).out}
    if isinstance(stage, SampleStage | RateStage):
        return await _plan_rows(run, step, dry)
    if isinstance(stage, PairStage):
        rows, weights = run.rows[source], run.judges[source].rubric.weights()
        run.pairs[step.name] = pair(rows, stage.rule, weights, stage.min_margin)
        waiting = sum(row.failure is not None for row in rows)
        return {"rows": len(run.pairs[step.name].preferences), "at_most": len(rows)} if waiting else {
            "rows": len(run.pairs[step.name].preferences)}  # fmt: skip
    if isinstance(stage, TrainStage):
        return _plan_training(run, step, stage)
    assert isinstance(stage, MeasureStage)
    return await _plan_measure(run, step, stage, dry)


async def _plan_rows(run: Run, step: Step, dry: DryScheduler) -> dict[str, Any]:
    stage, source = step.stage, step.source.name if step.source else ""
    rows = run.rows[source] if source in run.rows else [Row(prompt=prompt) for prompt in run.prompts[source]]
    if isinstance(stage, RateStage):
        run.judges[step.name] = run.open_judge(stage)
    before = {model: dict(need) for model, need in dry.needs.items()}
    done = []
    for row in rows:
        if row.failure is None:
            row = await run.row(step, row)
        elif isinstance(stage, RateStage):
            # its candidates are not sampled yet: one call for each aspect, of a length still unknown
            sampling = Sampling(**stage.sampling.over(run.settings[stage.model]))
            candidates = "x" * CHARACTERS_PER_TOKEN * sampling.max_tokens
            for _ in run.judges[step.name].rubric.aspects:
                dry.needs.setdefault(stage.model, Need()).add(
                    1, 0, [Message(role="user", content=candidates)], sampling
                )
        done.append(row)
    run.rows[step.name] = done
    run.failures.clear()
    counts = {m: {k: n[k] - before.get(m, {}).get(k, 0) for k in ("calls", "paid")} for m, n in dry.needs.items()}
    return {"rows": len(rows), "calls": {m: c for m, c in counts.items() if c["calls"]}}


def _plan_training(run: Run, step: Step, stage: TrainStage) -> dict[str, Any]:
    settings = stage.trainer
    given = run.training_data(step, stage)
    pending = settings.base not in run.engines or _waits(run, step)
    record = read_json(run.folder.model(settings.name) / "rlaif.json")
    if not pending and given and record is not None and record["key"] == run.training_key(stage, given):
        run.use_trained(stage)
        return {"rows": len(given), "state": "unchanged"}
    run.settings[settings.name] = run.settings[settings.base]
    return {"rows": len(given), "state": "to train"}


def _waits(run: Run, step: Step) -> bool:
    """Whether the preferences to train on depend on calls that are not paid for yet."""
    source = step.source
    if source is None or source.stage.kind != "pair" or source.source is None:
        return False
    return any(row.failure is not None for row in run.rows[source.source.name])


async def _plan_measure(run: Run, step: Step, stage: MeasureStage, dry: DryScheduler) -> dict[str, Any]:
    prompts, _ = run.measured_prompts(step, stage)
    judge = run.open_judge(stage.rate) if stage.rate else None
    if all(name in run.engines for name in stage.models):
        found = read_json(run.folder.path / "report" / "summary.json")
        if found is not None and found.get("key") == run.measure_key(stage, prompts, judge):
            return {"rows": len(prompts), "state": "unchanged"}
    aspects = len(judge.rubric.aspects) if judge else 0
    for name in stage.models:
        sampling = Sampling(seed=run.pipeline.seed, **stage.sampling.over(run.settings[name]))
        for prompt in prompts:
            with suppress(EngineError):
                await dry.sample(name, prompt.messages, sampling)
        if stage.rate:
            rating = Sampling(**stage.rate.sampling.over(run.settings[stage.rate.model]))
            need = dry.needs.setdefault(stage.rate.model, Need())
            for prompt in prompts * aspects:
                need.add(1, 0, prompt.messages, rating)
    return {"rows": len(prompts), "state": "to measure"}


def _cost(run: Run, model: str, need: Need) -> float | None:
    spec = run.specs.get(model)
    if not isinstance(spec, OpenAIModel) or (price := spec.price) is None:
        return None
    return round((need["prompt_tokens"] * price.prompt + need["max_completion_tokens"] * price.completion) / 1e6, 6)
