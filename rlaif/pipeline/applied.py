"""Constitutions as a pipeline applies them: every prompt as it is sent, and what an edit costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config import CompareStage, Pipeline, ReviseStage, read_pipeline
from rlaif.config.document import read_yaml
from rlaif.constitution import Asked, Change, changes, read_constitution
from rlaif.errors import InputError, nearest
from rlaif.generate import revising
from rlaif.judges import comparing
from rlaif.pipeline.folder import RunFolder
from rlaif.pipeline.inputs import kept_input
from rlaif.pipeline.stages import open_stages
from rlaif.pipeline.stages.compare import open_comparer
from rlaif.pipeline.stages.revise import open_reviser
from rlaif.pipeline.start import open_plan
from rlaif.records import Candidate, Completion, Message, Prompt, Row
from rlaif.resources import find

# What stands for the words of a row.
PLACES = Row(
    prompt=Prompt(messages=(Message(role="user", content="(the prompt)"),)),
    candidates=tuple(
        Candidate(sampler="s", completion=Completion(text=f"(completion {n})", model="m", call=str(n))) for n in (1, 2)
    ),
)


class Shown(NamedTuple):
    """A request as a stage sends it under a principle."""

    stage: str
    principle: str
    asked: Asked

    def as_dict(self) -> dict[str, Any]:
        messages = [message.model_dump() for message in self.asked.messages]
        return {"stage": self.stage, "principle": self.principle, "request": self.asked.request, "messages": messages}


def shown_by(constitution: str, pipeline: str | None, principle: str | None) -> list[Shown]:
    """The requests of a constitution as they are sent, by the templates that ship or a pipeline's.

    Of the pipeline's stages, those that apply a constitution of this name. Raises InputError.
    """
    read = read_constitution(constitution)
    ids = [one.id for one in read.principles]
    if principle is not None and principle not in ids:
        raise InputError(f"there is no principle {principle!r}", file=constitution, fix=nearest(principle, ids))
    found = list(shown(constitution) if pipeline is None else shown_in(read_pipeline(pipeline), read.name))
    return [one for one in found if principle in (None, one.principle)]


def shown(constitution: str) -> Iterator[Shown]:
    """Every request of a constitution, by the templates that ship. Raises InputErrors."""
    read, stage = read_constitution(constitution), CompareStage(model="model", constitution=constitution)
    reviser = open_reviser(ReviseStage(model="model", constitution=constitution)) if read.having("critique") else None
    comparer = open_comparer(stage) if read.having("comparison") else None
    for principle in read.principles:
        if reviser is not None and principle.critique:
            yield from (Shown("revise", principle.id, each) for each in revising.asked(PLACES, principle, reviser))
        if comparer is not None and principle.comparison:
            asked = comparing.asked(PLACES, principle, stage, comparer)
            yield from (Shown("compare", principle.id, each) for each in asked)


def shown_in(pipeline: Pipeline, name: str) -> Iterator[Shown]:
    """Every request that the stages of a pipeline make under the constitution of this name, by their own templates.

    Raises InputError where none does.
    """
    stages = open_stages(pipeline).stages.items()
    applying = [(called, stage, read) for called, stage in stages if (read := stage.applies()) is not None]
    if name not in (names := sorted({read.name for *_, read in applying})):
        fix = nearest(name, names) if names else "`revise`, `compare` and `rank` do"
        raise InputError(f"no stage of {pipeline.name!r} applies the constitution {name!r}", fix=fix)
    for called, stage, read in applying:
        drawn_for = next(iter(stage.settings.principles_asked()))
        for principle in read.having(drawn_for) if read.name == name else ():
            yield from (Shown(called, principle.id, asked) for asked in stage.asked(PLACES, principle))


def compared_files(before: str, after: str) -> list[Change]:
    return changes(read_constitution(before), read_constitution(after))


async def compared_with_run(constitution: str, run: Path) -> tuple[list[Change], dict[str, Any]]:
    """What differs from the constitution that a run used, and the plan of the run with this one. Raises InputError."""
    replaced = _replaced(constitution, run)
    edited, found = read_constitution(constitution), dict[Change, None]()
    place = str(find(constitution).absolute())
    pipeline = read_pipeline(str(run / "pipeline.yaml"), values=dict.fromkeys(replaced, place))
    for step in pipeline.steps:
        key = f"stages.{step.number - 1}.{step.stage.kind}.constitution"
        if key in replaced:
            before = read_constitution(str(replaced[key]))
            found |= dict.fromkeys(changes(before, edited, step.stage.principles_asked()))
    return list(found), await open_plan(pipeline, run).make()


def _replaced(constitution: str, run: Path) -> dict[str, Path]:
    """The keys of a run's pipeline that a constitution takes the place of, with the copies that the run kept.

    Those of the constitution of the same name; with another name, of the only one. Raises InputError.
    """
    RunFolder.existing(run)
    name = read_constitution(constitution).name
    kept = {
        f"stages.{number}.{kind}.constitution": copy
        for number, stage in enumerate(read_yaml(run / "pipeline.yaml").value["stages"])
        for kind, settings in stage.items()
        if (copy := kept_input(run, settings["name"], "constitution")) is not None
    }
    if not kept:
        fix = "name the run of a pipeline with `revise` or `compare`; one of an earlier version is to be run again"
        raise InputError(f"the run in {str(run)!r} kept no constitution", fix=fix)
    own = {key: read_constitution(str(copy)).name for key, copy in kept.items()}
    names = sorted(set(own.values()))
    if name not in names and len(names) > 1:
        fix = f"give it the name of the one that it is to replace: {', '.join(names)}"
        raise InputError(f"the run applied several constitutions, and none is called {name!r}", fix=fix)
    return {key: copy for key, copy in kept.items() if len(names) == 1 or own[key] == name}
