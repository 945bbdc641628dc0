"""Everything a pipeline reads from files, read and checked before anything is made, sent or paid for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlaif.config import (
    DataStage,
    FileStage,
    MeasureStage,
    OpenAIModel,
    Pipeline,
    PromptsStage,
    Rater,
    RateStage,
    Step,
    TrainStage,
    api_key,
)
from rlaif.formats import Conversation, Rows, read_conversations, read_hub, read_prompts
from rlaif.judges.rating import OFFERED, REQUIRED, Judge
from rlaif.measure import Truth
from rlaif.pipeline.record import StageRecord
from rlaif.records import Prompt
from rlaif.resources import find, read_text
from rlaif.rubric import read_rubric
from rlaif.templates import Template


class Inputs:
    """Prompts, conversations and judges by the name of their stage, and what was read and dropped on the way.

    Raises InputError for the first thing that is wrong with any of them.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.prompts: dict[str, list[Prompt]] = {}
        self.conversations: dict[str, list[Conversation]] = {}
        self.judges: dict[str, Judge] = {}
        self.chat_templates: dict[str, str] = {}
        self.records: dict[str, StageRecord] = {}
        self._read: dict[str, tuple[list[Prompt], dict[str, int]]] = {}
        for spec in pipeline.models.values():
            if isinstance(spec, OpenAIModel):
                api_key(spec)
        for step in pipeline.steps:
            stage = step.stage
            if isinstance(stage, DataStage):
                self._conversations(step, stage)
            elif isinstance(stage, PromptsStage):
                self._prompts(step, stage)
            elif isinstance(stage, RateStage):
                self.judges[step.name] = open_judge(stage)
            elif isinstance(stage, TrainStage) and stage.sft and stage.sft.template:
                self.chat_templates[step.name] = read_text(find(stage.sft.template))
            elif isinstance(stage, MeasureStage):
                self._measured(step, stage)

    def _conversations(self, step: Step, stage: DataStage) -> None:
        result = read_conversations(_source(stage))
        kept, dropped = _take(result.items, stage.take, lambda c: c.split != "held-out", "held-out")
        self.conversations[step.name] = kept
        self._note(step, len(result.items), result.dropped, kept, dropped)

    def _prompts(self, step: Step, stage: PromptsStage) -> None:
        result = read_prompts(_source(stage), column=stage.column)
        self._read[step.name] = (result.items, result.dropped)
        self.prompts[step.name] = self._of_split(step, step, stage.split, stage.take)

    def _measured(self, step: Step, stage: MeasureStage) -> None:
        """The measure's own prompts: only here are held-out prompts kept."""
        assert step.source is not None
        if stage.rate:
            self.judges[step.name] = open_judge(stage.rate)
        self.prompts[step.name] = self._of_split(step, step.source, stage.split, stage.take)
        if (gold := truth(stage)) is not None:
            for prompt in self.prompts[step.name]:
                gold(prompt.text, "")

    def _of_split(self, step: Step, source: Step, split: str, take: int | None) -> list[Prompt]:
        items, unusable = self._read[source.name]
        kept, dropped = _take(items, take, lambda p: split in (p.split, "all"), f"not in the {split} split")
        if not kept:
            raise self.pipeline.error(step, f"none of the {len(items)} prompts is in the {split} split")
        self._note(step, len(items), unusable, kept, dropped)
        return kept

    def _note(
        self, step: Step, read: int, unusable: dict[str, int], kept: Sequence[Any], dropped: Counter[str]
    ) -> None:
        given = read + sum(unusable.values())
        reads = step.source.name if step.source else None
        record = StageRecord(step.name, step.stage.kind, reads, given, len(kept), dropped + Counter(unusable))
        self.records[step.name] = record.checked()


def open_judge(rater: Rater) -> Judge:
    """The rater's rubric and template, checked against what a judge prompt offers."""
    rubric, template = read_rubric(rater.rubric), Template.read(find(rater.template))
    template.check(OFFERED, REQUIRED)
    return Judge(rubric, template)


def truth(stage: MeasureStage) -> Callable[[str, str], Truth] | None:
    """The truth of the embedded world, where the pipeline asks for it and nowhere else."""
    if stage.judge != "gold":
        return None
    from rlaif.judges.gold import gold

    return gold


def _source(stage: FileStage) -> Path | Rows:
    if stage.hub is not None:
        return read_hub(stage.hub, split=stage.hub_split)
    assert stage.path is not None
    return find(stage.path)


def _take(
    items: Sequence[Any], take: int | None, keep: Callable[[Any], bool], reason: str
) -> tuple[list[Any], Counter[str]]:
    """The first `take` items that `keep` lets through; the rest counted by reason."""
    fitting = [item for item in items if keep(item)]
    kept = fitting[:take]
    counts = {reason: len(items) - len(fitting), "not taken": len(fitting) - len(kept)}
    return kept, Counter({k: v for k, v in counts.items() if v})
