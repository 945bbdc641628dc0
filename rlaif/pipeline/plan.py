"""What a run would do: calls by model, how many are paid for, tokens and cost, and what would be trained.

Nothing is sent and nothing is written. The row stages and the measure are run dry: a scheduler that answers from the
call store alone counts what is missing. Where an answer is missing, what follows from it is counted with completions as
long as they may get, so that `at most` is meant; token counts are by a rule of thumb, and say "about".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rlaif.config import (
    ROW_STAGES,
    CompareStage,
    EloStage,
    MeasureStage,
    OpenAIModel,
    PairStage,
    PPOSettings,
    RankStage,
    Rater,
    RateStage,
    ReviseStage,
    SampleStage,
    ScoreStage,
    Step,
    TrainStage,
)
from rlaif.engines.protocol import Engine
from rlaif.engines.scheduler import Ask, completion, together
from rlaif.errors import EngineError
from rlaif.generate.sampling import drawn
from rlaif.judges.rating import Judge, expecting, questions, rate
from rlaif.pipeline.auditing import gate
from rlaif.pipeline.folder import read_json
from rlaif.pipeline.run import Run
from rlaif.records import Candidate, Completion, Message, Prompt, Row, Sampling, digest
from rlaif.store import CallStore, call_keys
from rlaif.train.job import finished

CHARACTERS_PER_TOKEN = 4  # a rough rule for English


class Need(dict[str, int]):
    """Calls of one model: `calls`, of which `paid` are in the store; tokens of the others."""

    def __init__(self) -> None:
        super().__init__(calls=0, paid=0, prompt_tokens=0, max_completion_tokens=0)

    def add(self, messages: Sequence[Message], sampling: Sampling, *, calls: int, paid: int = 0) -> None:
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
        self.missing = 0

    def need(self, model: str) -> Need:
        return self.needs.setdefault(model, Need())

    async def sample_all(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        return await together(*(self.sample(*ask[:3], **_options(ask)) for ask in asks))

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
        keys: list[str] = []
        answers: dict[str, dict[str, Any]] = {}
        if model in self._engines:  # else it has yet to be trained, and nothing of its can be in the store
            identity = self._engines[model].identity
            keys = call_keys(identity, messages, sampling, indices=range(n), attempt=attempt, json_schema=json_schema)
            answers = self._store.get(keys)
        if not attempt or len(answers) == n:  # whether a reply will have to be asked for again nobody can know
            self.need(model).add(messages, sampling, calls=n, paid=len(answers))
        if len(answers) < n:
            self.missing += n - len(answers)
            raise EngineError("not paid for yet", cause="plan")
        return [completion(model, key, answers[key]) for key in keys]


class Assuming:
    """Answers as the dry scheduler does, and where it cannot, with a completion as long as it may get."""

    def __init__(self, dry: DryScheduler) -> None:
        self._dry = dry

    async def sample_all(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        return await together(*(self.sample(*ask[:3], **_options(ask)) for ask in asks))

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
        try:
            return await self._dry.sample(model, messages, sampling, n=n, attempt=attempt, json_schema=json_schema)
        except EngineError:
            return [_candidate(f"{model} {index}", sampling.max_tokens).completion for index in range(n)]


def _options(ask: Ask) -> dict[str, Any]:
    return {"n": ask.n, "attempt": ask.attempt, "json_schema": ask.json_schema}


async def plan(run: Run) -> dict[str, Any]:
    """The plan of `run`, which must not have been executed; figures by stage and by model."""
    dry = DryScheduler(run.store, run.engines)
    stages = []
    for step in run.pipeline.steps:
        about = {"stage": step.name, "kind": step.stage.kind, "from": " + ".join(s.name for s in step.sources) or None}
        stages.append(about | await _plan_stage(run, step, dry))
    calls = {model: dict(need) | {"max_cost": _cost(run, model, need)} for model, need in dry.needs.items()}
    manifest = run.folder.manifest()
    return {
        "name": run.pipeline.name,
        "stages": stages,
        "calls": calls,
        "budget_left": None if run.pipeline.budget is None else run.pipeline.budget - run.ledger.spent,
        "last_run_seconds": manifest and manifest["seconds"],
    }


async def _plan_stage(run: Run, step: Step, dry: DryScheduler) -> dict[str, Any]:
    stage = step.stage
    if stage.kind in ROW_STAGES:
        return await _plan_rows(run, step, dry)
    if isinstance(stage, PairStage):
        assert step.source is not None
        dropped, rows = Counter[str](), run.rows[step.source.name]
        made = run.pairs[step.name] = [p for row in rows for p in run.preferences_of(row, step, dropped)]
        known = {"rows": len(made)}
        return known | ({"at_most": len(run.rows[step.source.name])} if _waits(run, step) else {})
    if isinstance(stage, ScoreStage):
        assert step.source is not None
        unscored = (
            row.model_copy(update={"failure": row.failure or "not scored yet"}) for row in run.source_rows(step)
        )
        run.rows[step.name] = list(unscored)
        return {"rows": len(run.rows[step.name]), "state": "to score"}
    if isinstance(stage, EloStage):
        assert step.source is not None
        return {"rows": len(run.rows[step.source.name])}
    if isinstance(stage, TrainStage):
        return _plan_training(run, step, stage)
    if isinstance(stage, MeasureStage):
        return await _plan_measure(run, step, stage, dry)
    return {"rows": run.inputs.records[step.name].out}


async def _plan_rows(run: Run, step: Step, dry: DryScheduler) -> dict[str, Any]:
    stage = step.stage
    before = {model: dict(need) for model, need in dry.needs.items()}
    known = all(name in run.engines for name, _ in stage.named_models())
    if isinstance(stage, CompareStage | RateStage) and stage.require is not None and known:
        await gate(stage, run.inputs.judge_of(step.name), run.specs, run.settings, Assuming(dry), run.pipeline.seed)
    done = []
    for row in run.source_rows(step):
        if isinstance(stage, ReviseStage | CompareStage | RankStage):
            row = await _plan_chain(run, step, row, dry)
        elif row.failure is None:
            row = await run.row(step, row, dry)
        elif isinstance(stage, RateStage) and row.candidates:  # what is missing is another judge's call
            await run.row(step, row.model_copy(update={"failure": None}), dry)
        elif isinstance(stage, RateStage):
            candidates = _longest(run, step, row.prompt)
            _count_ratings(run, stage, run.inputs.judges[step.name], row.prompt, candidates, dry)
        done.append(row)
    run.rows[step.name] = done
    counts = {m: {k: n[k] - before.get(m, {}).get(k, 0) for k in ("calls", "paid")} for m, n in dry.needs.items()}
    return {"rows": len(done), "calls": {m: c for m, c in counts.items() if c["calls"]}}


async def _plan_chain(run: Run, step: Step, row: Row, dry: DryScheduler) -> Row:
    """A row through a stage whose calls build on one another: each missing one is assumed and counted."""
    given, missing = row, dry.missing
    if row.failure is not None:
        candidates = tuple(_longest(run, step, row.prompt))
        given = row.model_copy(update={"failure": None, "candidates": candidates})
    done = await run.row(step, given, Assuming(dry))
    unpaid = row.failure or ("not paid for yet" if dry.missing > missing else None)
    return row.model_copy(update={"failure": unpaid}) if unpaid else done


def _longest(run: Run, step: Step, prompt: Prompt) -> list[Candidate]:
    """Candidates as long as they may get, for a prompt that is not sampled yet."""
    assert step.sampled is not None and isinstance(step.sampled.stage, SampleStage)
    stage, found = step.sampled.stage, []
    for sampler in drawn(stage, prompt):
        limit = Sampling(**sampler.over(stage.sampling, run.settings[sampler.model])).max_tokens
        for index in range(stage.per_prompt):
            found.append(_candidate(f"{sampler.name or sampler.model} {index}", limit))
    return found


def _candidate(name: str, tokens: int) -> Candidate:
    text = name.ljust(tokens * CHARACTERS_PER_TOKEN, "x")
    return Candidate(sampler=name, completion=Completion(text=text, model=name, call=digest(name)))


def _count_ratings(
    run: Run, rater: Rater, judge: Judge, prompt: Prompt, candidates: Sequence[Candidate], dry: DryScheduler
) -> None:
    sampling = rater.sampling.resolved(run.pipeline.seed, run.settings[rater.model])
    if rater.answers == "expected":
        sampling = expecting(sampling, judge.rubric)
    for aspect in judge.rubric.aspects:
        for asked in questions(prompt, candidates, aspect, judge.rubric, judge.template, rater):
            dry.need(rater.model).add(asked.messages, sampling, calls=1)


def _plan_training(run: Run, step: Step, stage: TrainStage) -> dict[str, Any]:
    settings, survey = stage.trainer, run.survey(step, complete=False)
    known = settings.base in run.engines and not any(_waits(run, source) for source in step.sources)
    if isinstance(settings, PPOSettings):
        known = known and (settings.reward is None or settings.reward in run.engines)
    if known and finished((job := run.job(step, stage, survey)[0]).out, job.key) is not None:
        run.use_trained(stage)
        return {"rows": survey.given, "state": "unchanged"}
    run.settings[settings.name] = run.settings[settings.base]
    waits = any(_waits(run, source) for source in step.sources)
    return {"rows": survey.given, "state": "to train, on rows that are not all known yet" if waits else "to train"}


def _waits(run: Run, step: Step) -> bool:
    """Whether what a stage makes of rows depends on calls that are not paid for yet."""
    rows = step.source if step.stage.kind == "pair" else step if step.stage.kind == "revise" else None
    return rows is not None and any(row.failure is not None for row in run.rows[rows.name])


async def _plan_measure(run: Run, step: Step, stage: MeasureStage, dry: DryScheduler) -> dict[str, Any]:
    prompts, judge = list(run.inputs.prompts[step.name]), run.inputs.judges.get(step.name)
    if all(name in run.engines for name, _ in stage.named_models()):
        found = read_json(run.folder.path / "report" / "summary.json")
        if found is not None and found.get("key") == run.measure_key(step, stage):
            return {"rows": len(prompts), "state": "unchanged"}
    for name in stage.models:
        sampling = stage.sampling.resolved(run.pipeline.seed, run.settings[name])
        for prompt in prompts:
            try:
                sampled = (await dry.sample(name, prompt.messages, sampling))[0]
            except EngineError:
                if stage.rate and judge:
                    _count_ratings(run, stage.rate, judge, prompt, [_candidate(name, sampling.max_tokens)], dry)
                continue
            if stage.rate and judge:
                row = Row(prompt=prompt, candidates=(Candidate(sampler=name, completion=sampled),))
                settings = run.settings[stage.rate.model]
                try:
                    await rate(row, stage.rate, judge.rubric, judge.template, settings, dry, run.pipeline.seed)
                except EngineError:
                    continue
    if best := stage.best_of:
        sampling = stage.sampling.resolved(run.pipeline.seed, run.settings[best.model])
        for prompt in prompts:
            with suppress(EngineError):
                await dry.sample(best.model, prompt.messages, sampling, n=best.n)
            if best.model in stage.models:  # the first of the n is what the model itself is measured by
                dry.need(best.model)["calls"] -= 1
            if stage.rate and judge:  # which of the n it will be is not known, nor whether it is rated already
                _count_ratings(run, stage.rate, judge, prompt, [_candidate(best.name, sampling.max_tokens)], dry)
    return {"rows": len(prompts), "state": "to measure"}


def _cost(run: Run, model: str, need: Need) -> float | None:
    spec = run.specs.get(model)
    if not isinstance(spec, OpenAIModel) or (price := spec.price) is None:
        return None
    return round((need["prompt_tokens"] * price.prompt + need["max_completion_tokens"] * price.completion) / 1e6, 6)
