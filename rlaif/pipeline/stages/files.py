"""The files of stages that read files, and the records of what was read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rlaif.config import FileStage, Step
from rlaif.errors import InputError
from rlaif.formats import Table, read_hub, rows_of
from rlaif.pipeline.manifest import StageRecord
from rlaif.resources import find


def source_of(settings: FileStage) -> Path | Table:
    """The file, or the rows of a data set on the hub."""
    if settings.hub is not None:
        return read_hub(settings.hub, split=settings.hub_split, revision=settings.revision)
    assert settings.path is not None
    return find(settings.path)


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".gz", ".parquet", ".yaml")


def named_on_the_command_line(data: str, split: str, revision: str | None) -> Table:
    """A file or folder, or else a data set on the hub. Raises InputError and WorkError."""
    try:
        return rows_of(find(data))
    except InputError:
        if Path(data).exists() or not _HUB_ID.fullmatch(data) or data.lower().endswith(_FILES):
            raise
    return read_hub(data, split=split, revision=revision)


def record_of(step: Step, read: int, unusable: Mapping[str, int], kept: int, dropped: Counter[str]) -> StageRecord:
    """The record of a file: usable rows read, unusable ones by reason, rows kept, and others dropped by reason."""
    given = read + sum(unusable.values())
    reads = step.source.name if step.source else None
    return StageRecord(step.name, step.stage.kind, reads, given, kept, dropped + Counter(unusable)).checked()
