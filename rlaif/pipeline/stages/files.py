"""The files of stages that read files, and the records of what was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rlaif.config import FileStage, Step
from rlaif.formats import Table, read_hub
from rlaif.pipeline.manifest import StageRecord
from rlaif.resources import find


def source_of(settings: FileStage) -> Path | Table:
    """The file, or the rows of a data set on the hub."""
    if settings.hub is not None:
        return read_hub(settings.hub, split=settings.hub_split, revision=settings.revision)
    assert settings.path is not None
    return find(settings.path)


def record_of(step: Step, read: int, unusable: Mapping[str, int], kept: int, dropped: Counter[str]) -> StageRecord:
    """The record of a file: usable rows read, unusable ones by reason, rows kept, and others dropped by reason."""
    given = read + sum(unusable.values())
    reads = step.source.name if step.source else None
    return StageRecord(step.name, step.stage.kind, reads, given, kept, dropped + Counter(unusable)).checked()
