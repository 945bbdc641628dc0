"""Constitutions as a pipeline applies them: every prompt as it is sent, and what an edit costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config import CompareStage, Pipeline, ReviseStage, read_pipeline
from rlaif.config.document import read_yaml
from rlaif.constitution import Asked, read_constitution
from rlaif.errors import InputError
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


def shown_in(pipeline: Pipeline) -> Iterator[Shown]:
    """Every request that the stages of a pipeline make, by their own templates. Raises InputError."""
    applying = {name: stage for name, stage in open_stages(pipeline).stages.items() if stage.applies() is not None}
    if not applying:
        raise InputError(
            f"no stage of {pipeline.name!r} applies a constitution", fix="`revise`, `compare` and `rank` do"
        )
    for name, stage in applying.items():
        applied = stage.applies()
        assert applied is not None
        for principle in applied.constitution.having(applied.requests[0]):
            yield from (Shown(name, principle.id, asked) for asked in stage.asked(PLACES, principle))


async def forecast(constitution: str, run: Path) -> dict[str, Any]:
    """The plan of a finished run with an edited constitution in place of its own. Nothing is sent or written.

    It takes the place of the constitution of the same name; with another name, of the only one. Raises InputError.
    """
    RunFolder.existing(run)
    edited, file = read_constitution(constitution), str(run / "pipeline.yaml")
    applying = [
        (f"stages.{number}.{kind}.constitution", kept)
        for number, stage in enumerate(read_yaml(run / "pipeline.yaml").value["stages"])
        for kind, settings in stage.items()
        if (kept := kept_input(run, settings["name"], "constitution")) is not None
    ]
    own = {key: read_constitution(str(kept)).name for key, kept in applying}
    if not own:
        fix = "name the run of a pipeline with `revise` or `compare`"
        raise InputError(f"the run in {str(run)!r} applied no constitution", fix=fix)
    names = sorted(set(own.values()))
    if edited.name not in names and len(names) > 1:
        fix = f"give it the name of the one that it is to replace: {', '.join(names)}"
        raise InputError(f"the run applied several constitutions, and none is called {edited.name!r}", fix=fix)
    place = str(find(constitution).absolute())
    replaced = {key: place for key, name in own.items() if edited.name == name or len(names) == 1}
    return await open_plan(read_pipeline(file, values=replaced), run).make()
