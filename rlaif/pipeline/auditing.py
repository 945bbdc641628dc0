"""Audits: a judge on gold pairs (`rlaif audit JUDGE`), a run's own comparisons (`rlaif audit RUN`), and the gate that
stops a run before money is spent on a judge that fails (`require:` on a judging stage).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlaif.audits.figures import (
    Decide,
    figures,
    judged,
    of_judged,
    of_ratings,
    probe,
    probes_of,
    rule,
    with_people,
)
from rlaif.audits.findings import findings, markdown, verdict
from rlaif.audits.goldset import WORLD, GoldPair, of_world, read_gold, to_judge
from rlaif.audits.probes import Probe
from rlaif.config import (
    CompareStage,
    LocalModel,
    ModelSpec,
    OpenAIModel,
    Pipeline,
    RateStage,
    Require,
    SamplingSettings,
    Stage,
    Step,
    read_pipeline,
)
from rlaif.constitution import Constitution, Principle, read_constitution
from rlaif.engines.ledger import Ledger
from rlaif.engines.scheduler import Sampler, Scheduler, together
from rlaif.engines.wire import Wires
from rlaif.errors import InputError, nearest
from rlaif.generate.pairing import candidate_scores
from rlaif.judges.comparing import Comparer, compare
from rlaif.judges.person import judged_by_people, read_labels
from rlaif.judges.rating import Judge, rate
from rlaif.pipeline.engines import concurrency_of, open_engine, prices_of
from rlaif.pipeline.folder import RunFolder, read_lines, write_json, write_text
from rlaif.pipeline.inputs import open_comparer, open_judge
from rlaif.pipeline.judging import OVERALL
from rlaif.pipeline.progress import Silent
from rlaif.records import Comparison, Prompt, Row, Verdict, digest, hashed_order, preferred
from rlaif.resources import find
from rlaif.store import CallStore
from rlaif.tiny.lexicon import Lexicon

WORLD_PAIRS = 240
IN_FLIGHT = 64  # pairs asked at a time: enough to fill a server's slots, and few enough to stop soon

Result = TypeVar("Result")


def gold_pairs(gold: str | None, take: int | None) -> list[GoldPair]:
    """The pairs of a file, those that ship, or those of the embedded world; `take` draws so many by hash, the
    categories by turns. Raises InputError."""
    if gold == WORLD:
        try:
            return of_world(take or WORLD_PAIRS, seed=0)
        except ValueError as error:
            raise InputError(str(error), key="take", fix="take fewer") from None
    pairs = read_gold(None if gold is None else find(gold))
    if take is None or take >= len(pairs):
        return pairs
    by_category: dict[str, list[GoldPair]] = {}
    for place in hashed_order([pair.id for pair in pairs], "gold"):
        by_category.setdefault(pairs[place].category, []).append(pairs[place])
    turns = [(turn, category, pair) for category, found in by_category.items() for turn, pair in enumerate(found)]
    return [pair for _, _, pair in sorted(turns, key=lambda one: one[:2])[:take]]


# ---------------------------------------------------------------- judges as an audit asks them


def by_comparing(
    stage: CompareStage, comparer: Comparer, models: Mapping[str, SamplingSettings], scheduler: Sampler, seed: int
) -> Decide:
    """A judge as a compare stage asks it, under the gold pair's own principle or else the comparer's."""

    async def decide(prompt: Prompt, texts: tuple[str, str], principle: str | None) -> Comparison:
        asked = comparer if principle is None else comparer._replace(constitution=_only(principle))
        row = await compare(to_judge(prompt, texts), stage, asked, models, scheduler, seed)
        return row.comparisons[0]

    return decide


def _only(comparison: str) -> Constitution:
    rule = Principle(id="gold", rule=comparison, critique=comparison, revision=comparison, comparison=comparison)
    return Constitution(name="gold", version=1, principles=(rule,))


def by_rating(stage: RateStage, judge: Judge, model: SamplingSettings, scheduler: Sampler, seed: int) -> Decide:
    """A judge as a rate stage asks it: of two texts the one with the higher weighted mean, rated in both orders.

    One that is shown a text at a time knows no order, and is asked once.
    """
    basis = "scores" if stage.answers == "expected" else "ratings"

    async def decide(prompt: Prompt, texts: tuple[str, str], _: str | None) -> Comparison:
        row = to_judge(prompt, texts)
        asked = await together(
            *(
                rate(row, stage, judge.rubric, judge.template, model, scheduler, seed, reverse=reverse)
                for reverse in ((False, True) if stage.shown == "all" else (False,))
            )
        )
        read = [_read_first(asked, place) for place in (0, 1)] if stage.shown == "all" else asked * 2
        forward, backward = (_verdict(one, basis, judge.rubric.weights()) for one in read)
        merged = Comparison.merge(forward, backward.swap(), principle=judge.rubric.name, judge=stage.model)
        return merged if stage.shown == "all" else merged.model_copy(update={"orders": ()})

    return decide


def _read_first(asked: Sequence[Row], candidate: int) -> Row:
    """The ratings given where `candidate` was read before the other one: which prompt that is, each aspect draws."""
    first, second = asked
    ratings = []
    for one, other in zip(first.ratings, second.ratings, strict=True):
        places = {r.candidate: r.position for r in first.ratings if r.aspect == one.aspect}
        ratings.append(one if places[candidate] <= places[1 - candidate] else other)
    return first.model_copy(update={"ratings": tuple(ratings)})


def _verdict(row: Row, basis: str, weights: Mapping[str, float]) -> Verdict:
    """What the scores of two candidates come to: A is the first of the row."""
    scores = candidate_scores(row, basis, weights)
    calls = (*(rating.call for rating in row.ratings), *(call for score in row.scores for call in score.calls))
    calls = tuple(dict.fromkeys(call for call in calls if call))
    raw = " against ".join(f"{scores[i]:g}" if i in scores else "unparsed" for i in (0, 1))
    if len(scores) < 2:
        problems = (*(rating.problem for rating in row.ratings), *(score.problem for score in row.scores))
        problem = next((problem for problem in problems if problem), "no aspect applies")
        return Verdict(a=0, b=1, verdict=None, raw=raw, problem=problem, calls=calls)
    verdict = preferred(0.5 if scores[0] == scores[1] else float(scores[0] > scores[1]))
    return Verdict(a=0, b=1, verdict=verdict, raw=raw, calls=calls)


# ---------------------------------------------------------------- opening one


class Audited(NamedTuple):
    """A judge that can be asked, how it is asked in a sentence, and what it is audited on."""

    name: str
    asked: str
    decide: Decide
    pairs: list[GoldPair]
    world: bool  # they are of the embedded world
    run: AuditRun


class AuditRun:
    """The engines, store and ledger behind an audit's calls."""

    def __init__(self, models: Mapping[str, ModelSpec], store: CallStore) -> None:
        self.wires = Wires()
        self.engines = {name: open_engine(name, spec, self.wires) for name, spec in models.items()}
        self.settings = {name: spec.sampling for name, spec in models.items()}
        self.ledger, self.store = Ledger(prices_of(models)), store
        self.scheduler = Scheduler(store, self.engines, concurrency_of(models), ledger=self.ledger)

    async def close(self) -> None:
        await self.scheduler.close()
        for engine in self.engines.values():
            await engine.close()
        await self.wires.close()
        self.store.close()

    def cost(self, verdicts: int) -> dict[str, int | float | None]:
        """What the verdicts rest on, paid for now or before; a preference takes one verdict of both orders.

        The short probes of a server are among the tokens and are no calls.
        """
        tallies = self.ledger.by_model()
        read = {name: tally.prompt_tokens + tally.cached_prompt_tokens for name, tally in tallies.items()}
        written = {name: tally.completion_tokens + tally.cached_completion_tokens for name, tally in tallies.items()}
        costs = [self.ledger.cost(name, read[name], written[name]) for name in tallies]
        known = [cost for cost in costs if cost is not None]
        total = sum(known) if known and len(known) == len(costs) else None
        calls = sum(tally.sent - tally.discarded + tally.cached for tally in tallies.values())
        return {
            "calls": calls,
            "of them from the store": sum(tally.cached for tally in tallies.values()),
            "tokens read": sum(read.values()),
            "tokens written": sum(written.values()),
            "cost": total,
            "calls per preference": round(calls / verdicts, 2),
            "tokens per preference": round((sum(read.values()) + sum(written.values())) / verdicts, 1),
            "cost per preference": None if total is None else total / verdicts,
        }


def stage_of(pipeline: Pipeline, name: str | None) -> tuple[dict[str, ModelSpec], Stage]:
    """The judging stage of a pipeline file, by its name or the first. Raises InputError."""
    chosen = judging_step(pipeline, name)
    for model, _ in chosen.stage.named_models():
        if model not in pipeline.models:
            problem = f"the judge {model!r} is trained in this pipeline and does not exist before it runs"
            raise InputError(problem, file=pipeline.document.path, fix="audit its folder after the run")
    asked = {model for model, _ in chosen.stage.named_models()}
    return {name: spec for name, spec in pipeline.models.items() if name in asked}, chosen.stage


def judging_step(pipeline: Pipeline, name: str | None) -> Step:
    """The compare or rate stage of a pipeline called `name`, or the first of them. Raises InputError."""
    steps = [step for step in pipeline.steps if isinstance(step.stage, CompareStage | RateStage)]
    if not steps:
        problem, fix = "the pipeline has no stage that compares or rates", "add one, or name a model to be audited"
        raise InputError(problem, file=pipeline.document.path, fix=fix)
    chosen = next((step for step in steps if name in (None, step.name)), None)
    if chosen is None:
        fix = nearest(str(name), [step.name for step in steps])
        raise InputError(f"no judging stage is called {name!r}", file=pipeline.document.path, key="--stage", fix=fix)
    return chosen


def open_audited(
    models: Mapping[str, ModelSpec], stage: Stage, gold: str | None, take: int | None, store: Path, seed: int = 0
) -> Audited:
    """The judge of a compare or rate stage, ready to be asked; its calls are kept in `store`. Raises InputError.

    Without `gold` it is asked the pairs that the stage's gate names, and else those that fit it; with the gate's pairs
    and the pipeline's seed what the gate asked is not asked again.
    """
    assert isinstance(stage, CompareStage | RateStage)
    if stage.require is not None and gold is None:
        take = take or stage.require.take
    judge = open_comparer(stage) if isinstance(stage, CompareStage) else open_judge(stage)
    gold = gold or (stage.require and stage.require.gold) or default_gold(stage, models)
    pairs = gold_pairs(gold, take)  # before anything is made: wrong input leaves no trace
    run = AuditRun(models, CallStore(store, run="audit"))
    decide = decide_by(stage, judge, gold, run.settings, run.scheduler, seed)
    name = " + ".join(_called(models[name]) for name, _ in stage.named_models())
    return Audited(name, how(stage, judge), decide, pairs, gold == WORLD, run)


def default_gold(stage: Stage, models: Mapping[str, ModelSpec]) -> str | None:
    """The embedded world's pairs for a judge that knows no other words; None for those that ship."""
    specs = [spec for name, _ in stage.named_models() if isinstance(spec := models.get(name), LocalModel) and spec.path]
    return WORLD if any(Lexicon.read(find(str(spec.path))) is not None for spec in specs) else None


def decide_by(
    stage: CompareStage | RateStage,
    judge: Comparer | Judge,
    gold: str | None,
    settings: Mapping[str, SamplingSettings],
    scheduler: Sampler,
    seed: int,
) -> Decide:
    """A stage's judge as an audit asks it.

    The pairs that ship are about whole quality, so they are compared under one principle of that; a user's own pairs
    under the stage's constitution.
    """
    if isinstance(stage, RateStage):
        assert isinstance(judge, Judge)
        return by_rating(stage, judge, settings[stage.model], scheduler, seed)
    assert isinstance(judge, Comparer)
    if gold is None:
        judge = judge._replace(constitution=read_constitution(OVERALL))
    return by_comparing(stage, judge, settings, scheduler, seed)


def how(stage: CompareStage | RateStage, judge: Comparer | Judge) -> str:
    """How an audit asks a stage's judge, in a sentence without its end."""
    if isinstance(stage, CompareStage):
        told = f"Compared in both orders, {stage.verdicts} verdicts{', after reasons' if stage.reasons else ''}"
        told += f", {stage.votes} votes" if stage.votes > 1 else ""
        return told + (f", by a jury ({stage.combine})" if stage.jury else "")
    assert isinstance(judge, Judge)
    shown = "one at a time" if stage.shown == "one" else "together, in both orders"
    rating = "scored by the expected rating" if stage.answers == "expected" else "rated"
    return f"Both completions {rating} {shown} under {judge.rubric.name}, the higher weighted mean preferred"


def _called(spec: ModelSpec) -> str:
    return spec.model if isinstance(spec, OpenAIModel) else Path(spec.path or spec.hub or "").name


# ---------------------------------------------------------------- an audit


async def audit_judge(audited: Audited, *, probes: bool, progress: Silent) -> dict[str, Any]:
    """The whole audit of an opened judge, its cost beside it; the judge is closed after it."""
    asked = probes_of(audited.pairs, world=audited.world) if probes else []
    count = len(audited.pairs) + len(asked)
    progress.begin("audit", "pairs", total=count)
    try:
        found = await audit(audited.pairs, audited.decide, asked, progress.advance)
        cost = audited.run.cost(count)
    finally:
        await audited.run.close()
    progress.end("audit", f"{len(audited.pairs):,} pairs, {len(asked):,} probes")
    gold = {"pairs": len(audited.pairs), "digest": digest([pair.model_dump(mode="json") for pair in audited.pairs])}
    asked_on = (
        f"{audited.asked}, on {len(audited.pairs):,} gold pairs{' of the embedded world' if audited.world else ''}"
    )
    return _told(audited.name, asked_on, found) | {"gold": gold, "cost": cost}


def _told(judge: str, asked: str, found: dict[str, Any]) -> dict[str, Any]:
    said = findings(found)
    return {
        "judge": judge,
        "asked": asked,
        "verdict": verdict(said),
        "findings": [finding._asdict() for finding in said],
        "figures": found,
    }


def audit_run(folder: RunFolder, stage: str | None, labels: str | None) -> dict[str, Any]:
    """What a run's own judgements show of a judge, without gold and without a call, and beside people's `labels`.

    Raises InputError.
    """
    pipeline = read_pipeline(str(folder.path / "pipeline.yaml"))
    step = judging_step(pipeline, stage)
    rows = [Row.model_validate_json(line) for line in read_lines(folder.stage(step.number, step.name))]
    rows = [row for row in rows if row.failure is None]
    judge, scores, about = " + ".join(name for name, _ in step.stage.named_models()), None, "comparisons"
    families = {name: _called(spec) for name, spec in pipeline.models.items()}
    if isinstance(step.stage, RateStage):
        weights, about = open_judge(step.stage).rubric.weights(), "preferences that the ratings amount to"
        basis = "scores" if step.stage.answers == "expected" else "ratings"
        scores = partial(candidate_scores, basis=basis, weights=weights)
    items = judged(rows, scores, judge)
    if not items:
        problem = f"the stage {step.name!r} has judged nothing of this run that could be looked at"
        raise InputError(problem, file=str(folder.path), fix="run the pipeline again: it goes on where it stopped")
    found = of_judged(items, families)
    if isinstance(step.stage, RateStage):
        found["ratings"] = of_ratings(rows, weights)
    if labels is not None:
        known = read_labels(find(labels, key="--labels"))
        found["people"] = with_people(items, judged([judged_by_people(row, known) for row in rows]), families)
        if not found["people"]["pairs"]:
            problem = f"none of the {known.total:,} labels is of a pair that the stage {step.name!r} judged"
            fix = "name prompts by their id and candidates by call or whole text, as in the run's stages/"
            raise InputError(problem, file=labels, fix=fix)
    asked = f"The {len(items):,} {about} of the stage {step.name}, without gold"
    return _told(f"{judge} in the run {folder.path.name}", asked, found)


def write_audit(found: Mapping[str, Any], out: Path) -> None:
    """audit.json and audit.md in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "audit.json", dict(found))
    write_text(out / "audit.md", markdown(found))


async def audit(
    pairs: Sequence[GoldPair],
    decide: Decide,
    probes: Sequence[Probe] = (),
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The figures of a judge on gold pairs, and on probes made of them. Raises EngineError."""
    rulings = await _each([rule(pair, decide) for pair in pairs], advance)
    ruled = {ruling.pair.id: ruling for ruling in rulings}
    probed = await _each([probe(one, ruled[one.pair], decide) for one in probes], advance)
    return figures(rulings, probed)


async def _each(work: Sequence[Coroutine[Any, Any, Result]], advance: Callable[[], None]) -> list[Result]:
    """The results in order, a bounded number under way at a time. The first error ends them all: what befalls one pair
    alone was caught before."""
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def one(item: Coroutine[Any, Any, Result]) -> Result:
        async with slots:
            result = await item
        advance()
        return result

    tasks = [asyncio.create_task(one(item)) for item in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for item in work:
            item.close()


async def gate(
    stage: CompareStage | RateStage,
    judge: Comparer | Judge,
    models: Mapping[str, ModelSpec],
    settings: Mapping[str, SamplingSettings],
    scheduler: Sampler,
    seed: int,
) -> dict[str, Any]:
    """What a stage's judge reaches on the gold pairs that its `require` names. Raises EngineError and InputError."""
    assert stage.require is not None
    gold = stage.require.gold or default_gold(stage, models)
    return await audit(gold_pairs(gold, stage.require.take), decide_by(stage, judge, gold, settings, scheduler, seed))


def unmet(require: Require, found: Mapping[str, Any]) -> list[str]:
    """What a judge falls short of, in sentences; empty where it may be trusted with the work.

    A figure itself is held against the bound, not an end of its interval: the bound is what the user asked for.
    """
    measured = {
        "agreement": found["agreement"]["both_orders"],
        "position_consistency": found["position"]["consistency"],
    }
    short = []
    for name, bound in (("agreement", require.agreement), ("position_consistency", require.position_consistency)):
        share = measured[name]
        if share is None and name == "position_consistency" and found["verdicts"]["n"]:
            continue  # it reads one completion at a time, and knows no order
        if bound is not None and (share is None or share["mean"] < bound):
            has = "nothing to say of it" if share is None else f"{share['mean']:.2f} on {share['n']} pairs"
            if name == "agreement" and (example := found["verdicts"].get("failed_example")):
                has += f", where calls failed ({example})"
            short.append(f"{name.replace('_', ' ')} {has}, {bound:g} required")
    unparsed = found["agreement"]["unparsed_share"]  # calls that failed among them
    if require.unparsed is not None and unparsed["mean"] > require.unparsed:
        short.append(
            f"unparsed {unparsed['mean']:.2f} of {unparsed['n']} verdicts, at most {require.unparsed:g} allowed"
        )
    return short
