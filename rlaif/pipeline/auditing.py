"""Audits: a judge on gold pairs and probes (`rlaif audit JUDGE`), or a run's own judgements (`rlaif audit RUN`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.audits.asking import audit, gold_pairs
from rlaif.audits.figures import Decide, judged, of_judged, of_ratings, probes_of, with_people
from rlaif.audits.findings import findings, markdown, verdict
from rlaif.audits.goldset import WORLD, GoldPair
from rlaif.config import Pipeline, Step, judging_pipeline, read_pipeline
from rlaif.engines.open import notes_on_keys
from rlaif.errors import InputError, nearest
from rlaif.files import json_of, write_json, write_text
from rlaif.generate.pairing import candidate_scores
from rlaif.judges.person import judged_by_people, read_labels
from rlaif.pipeline.folder import RunFolder, read_records
from rlaif.pipeline.named_judge import check_options, judge_document
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.session import Session
from rlaif.pipeline.stages import STAGES, Opening
from rlaif.pipeline.stages.judging import JudgingStage
from rlaif.records import Row, digest
from rlaif.resources import find, given_path
from rlaif.store import CallStore


class Audited(NamedTuple):
    """An opened judge, how it judges in a sentence, and its gold pairs."""

    name: str
    method: str
    decide: Decide
    pairs: list[GoldPair]
    gold: str | None
    session: Session
    notes: list[str]  # for the user, before the first call


def judge_of(
    judge: str, settings: Sequence[str], *, method: str | None, model: str | None, key_variable: str | None,
    stage: str | None,
) -> tuple[Pipeline, Step]:  # fmt: skip
    """The judging stage that the command line names: in a pipeline file, or built from the options.

    Raises InputError.
    """
    if not is_pipeline(judge):
        document = judge_document(judge, method, settings, model=model, key_variable=key_variable)
        pipeline = judging_pipeline(document)
        return pipeline, pipeline.steps[0]
    pipeline = read_pipeline(judge, settings)
    return pipeline, existing_judge(pipeline, judging_step(pipeline, stage))


def is_run(path: str) -> bool:
    return (given_path(path) / "manifest.json").is_file()


def is_pipeline(path: str) -> bool:
    return Path(path).suffix in (".yaml", ".yml") and not is_run(path)


def check_audit_options(judge: str, given: Mapping[str, object]) -> None:
    """Raise InputError for an option that does not apply to what is audited."""
    kind = "a server" if "://" in judge else "a model's folder"
    check_options("a run" if is_run(judge) else "a pipeline" if is_pipeline(judge) else kind, given)


def existing_judge(pipeline: Pipeline, step: Step) -> Step:
    """The step. Raises InputError when its judge has to be trained first."""
    for use in step.stage.models_used():
        if use.model not in pipeline.models:
            problem = f"the judge {use.model!r} is trained in this pipeline and does not exist before it runs"
            raise InputError(problem, file=pipeline.document.path, fix="audit its folder after the run")
    return step


def judging_step(pipeline: Pipeline, name: str | None) -> Step:
    """The compare or rate stage of a pipeline called `name`, or the first of them. Raises InputError."""
    steps = [step for step in pipeline.steps if issubclass(STAGES[step.stage.kind], JudgingStage)]
    if not steps:
        problem, fix = "the pipeline has no stage that compares or rates", "add one, or name a model to audit"
        raise InputError(problem, file=pipeline.document.path, fix=fix)
    chosen = next((step for step in steps if name in (None, step.name)), None)
    if chosen is None:
        fix = nearest(str(name), [step.name for step in steps])
        raise InputError(f"no judging stage is called {name!r}", file=pipeline.document.path, key="--stage", fix=fix)
    return chosen


def opened(opening: Opening, step: Step) -> JudgingStage[Any]:
    """The judging stage without its sources."""
    alone = Step(step.number, step.name, step.stage, [])
    stage = STAGES[step.stage.kind](alone, step.stage, opening)
    assert isinstance(stage, JudgingStage)
    return stage


def open_audited(pipeline: Pipeline, step: Step, gold: str | None, take: int | None, store: Path) -> Audited:
    """The judge of a stage, opened; its calls go to `store`. Raises InputError.

    Without `gold` the pairs are those of the stage's gate, else the default ones for the judge. The gate's own calls
    are cached, given its pairs and the pipeline's seed.
    """
    opening = Opening(pipeline)
    stage = opened(opening, step)
    if stage.settings.require is not None and gold is None:
        take = take or stage.settings.require.take
    gold = gold or stage.gold
    pairs = gold_pairs(gold, take)  # before anything is written
    models = {name: spec for name, spec in pipeline.models.items() if name in stage.models}
    session = Session(models, CallStore(store, run="audit"), seed=pipeline.seed)
    decide = stage.decide(session.asking("audit"), gold)
    name = " + ".join(models[model].called for model in stage.models)
    return Audited(name, stage.how(), decide, pairs, gold, session, [*notes_on_keys(models.values()), *opening.notes])


def cost_of(session: Session, verdicts: int) -> dict[str, int | float | None]:
    """The calls, tokens and cost behind the verdicts, cached ones included, in total and per verdict.

    A server's probes count as tokens, not as calls.
    """
    ledger = session.ledger
    tallies = ledger.by_model()
    read = {name: tally.prompt_tokens + tally.cached_prompt_tokens for name, tally in tallies.items()}
    written = {name: tally.completion_tokens + tally.cached_completion_tokens for name, tally in tallies.items()}
    costs = [ledger.cost(name, read[name], written[name]) for name in tallies]
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


async def audit_judge(audited: Audited, *, probes: bool, progress: Progress) -> dict[str, Any]:
    """The audit of an opened judge, with its cost; closes the judge. Raises EngineError."""
    world = audited.gold == WORLD
    to_probe = probes_of(audited.pairs, world=world) if probes else []
    count = len(audited.pairs) + len(to_probe)
    progress.begin("audit", "pairs", total=count)
    async with audited.session as session:
        figures = await audit(audited.pairs, audited.decide, to_probe, progress.advance)
        cost = cost_of(session, count)
    progress.end("audit", f"{len(audited.pairs):,} pairs, {len(to_probe):,} probes")
    gold = {"pairs": len(audited.pairs), "digest": digest([pair.model_dump(mode="json") for pair in audited.pairs])}
    how = f"{audited.method}, on {len(audited.pairs):,} gold pairs{' of the embedded world' if world else ''}"
    return _report(audited.name, how, figures) | {"gold": gold, "cost": cost}


def _report(judge: str, how: str, figures: dict[str, Any]) -> dict[str, Any]:
    ordered = findings(figures)
    return {
        "judge": judge,
        "asked": how,
        "verdict": verdict(ordered),
        "findings": [finding._asdict() for finding in ordered],
        "figures": figures,
    }


def audit_run(folder: RunFolder, stage: str | None, labels: str | None) -> dict[str, Any]:
    """An audit of a run's judgements, without gold and without calls, and against people's `labels`, if given.

    Raises InputError.
    """
    pipeline = read_pipeline(str(folder.path / "pipeline.yaml"))
    step = judging_step(pipeline, stage)
    judging = STAGES[step.stage.kind]
    assert issubclass(judging, JudgingStage)
    scoring = judging.scoring(step.stage)
    rows = [row for row in read_records(Row, folder.stage(step.number, step.name)) if row.failure is None]
    judge = " + ".join(use.model for use in step.stage.models_used())
    families = {name: spec.called for name, spec in pipeline.models.items()}
    items = judged(rows, None if scoring is None else lambda row: candidate_scores(row, *scoring), judge)
    if not items:
        problem = f"the stage {step.name!r} has no judgements in this run"
        raise InputError(problem, file=str(folder.path), fix="run the pipeline again: it resumes where it stopped")
    figures = of_judged(items, families)
    if scoring is not None:
        figures["ratings"] = of_ratings(rows, scoring.weights)
    if labels is not None:
        known = read_labels(find(labels, key="--labels"))
        figures["people"] = with_people(items, judged([judged_by_people(row, known) for row in rows]), families)
        if not figures["people"]["pairs"]:
            problem = f"none of the {known.total:,} labels is of a pair that the stage {step.name!r} judged"
            fix = "name prompts by id, and candidates by call or whole text, as in the run's stages/"
            raise InputError(problem, file=labels, fix=fix)
    about = "comparisons" if scoring is None else "preferences by rating"
    how = f"The {len(items):,} {about} of the stage {step.name}, without gold"
    return _report(f"{judge} in the run {folder.path.name}", how, figures)


def audited_in(pipeline: Pipeline, step: Step, gold: str | None) -> str:
    """What tells an audit from that of another judge: its models, its stage, and on which pairs it is asked.

    An audit with other settings of the same judge takes the place of the one before.
    """
    models = {use.model: pipeline.models[use.model].model_dump(mode="json") for use in step.stage.models_used()}
    return digest({"models": models, "stage": step.name, "gold": gold})


def audited_run(folder: RunFolder, stage: str | None) -> str:
    """The same of an audit of a run."""
    return digest({"run": str(folder.path.resolve()), "stage": stage})


def refuse_another(out: Path, of: str) -> None:
    """Raise InputError where an audit would replace another, or what no audit wrote. `of` says what is audited."""
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file", key="--out", fix="name a folder")
    files = [out / "audit.json", out / "audit.md"]
    there = json_of(files[0]) or {}
    if there.keys() >= {"judge", "findings"}:
        if there.get("of", of) != of:
            problem = f"the folder holds another audit, of {there['judge']}"
            raise InputError(problem, file=str(out), key="--out", fix="name another, or remove this one")
        return
    for file in files:
        if os.path.lexists(file):
            raise InputError("the file is there, and no audit made it", file=str(file), key="--out", fix="move it")


def write_audit(audited: Mapping[str, Any], out: Path) -> None:
    """Write audit.json and audit.md into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "audit.json", dict(audited))
    write_text(out / "audit.md", markdown(audited))
