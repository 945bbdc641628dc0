"""One file for each kind of stage: how it is opened, run and planned, what it counts, its digests.

A stage's settings are a model in `rlaif.config.stages`. A new stage is a file here and a line in `STAGES`.
"""

from __future__ import annotations

from typing import Any

from rlaif.config import Pipeline
from rlaif.pipeline.stages.compare import Compare
from rlaif.pipeline.stages.data import Data
from rlaif.pipeline.stages.elo import Elo
from rlaif.pipeline.stages.measure import Measuring
from rlaif.pipeline.stages.pair import Pair
from rlaif.pipeline.stages.person import Person
from rlaif.pipeline.stages.prompts import PromptSource
from rlaif.pipeline.stages.rank import Rank
from rlaif.pipeline.stages.rate import Rate
from rlaif.pipeline.stages.revise import Revise
from rlaif.pipeline.stages.sample import Sample
from rlaif.pipeline.stages.score import Scoring
from rlaif.pipeline.stages.stage import Made, Opening, RowStage, Stage, TableStage, Work
from rlaif.pipeline.stages.train import Train
from rlaif.pipeline.stages.verify import Verify

__all__ = ["STAGES", "Made", "Opening", "RowStage", "Stage", "TableStage", "Work", "open_stages"]

STAGES: dict[str, type[Stage[Any]]] = {
    "data": Data,
    "prompts": PromptSource,
    "sample": Sample,
    "rate": Rate,
    "revise": Revise,
    "compare": Compare,
    "rank": Rank,
    "score": Scoring,
    "verify": Verify,
    "person": Person,
    "elo": Elo,
    "pair": Pair,
    "train": Train,
    "measure": Measuring,
}


def open_stages(pipeline: Pipeline) -> Opening:
    """Every stage of a pipeline with its files read and checked, before anything is written or sent.

    Raises InputError for the first problem.
    """
    opening = Opening(pipeline)
    opening.check_models()
    for step in pipeline.steps:
        STAGES[step.stage.kind].check_settings(step.stage)
    for step in pipeline.steps:
        opening.stages[step.name] = STAGES[step.stage.kind](step, step.stage, opening)
    if not any(stage.makes for stage in opening.stages.values()):
        last = opening.stages[pipeline.steps[-1].name]
        problem = "the pipeline ends here, and makes no data, no model and no report"
        raise pipeline.error(last.step, problem, fix=last.to_continue)
    return opening
