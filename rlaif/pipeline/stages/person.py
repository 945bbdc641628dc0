"""The `person` stage: people's judgements of the candidates, read from a file."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rlaif.config import PersonStage, Step
from rlaif.engines.asking import Asking
from rlaif.generate.pairing import Pairing
from rlaif.judges.person import judged_by_people, read_labels
from rlaif.pipeline.manifest import RowCounts
from rlaif.pipeline.spool import Stored
from rlaif.pipeline.stages.stage import Opening, RowStage, Work
from rlaif.records import Row
from rlaif.resources import find


class Person(RowStage[PersonStage]):
    facts = ("comparisons", "ratings")

    def __init__(self, step: Step, settings: PersonStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self._labels = read_labels(find(settings.labels))

    async def row(self, row: Row, asking: Asking) -> Row:
        return judged_by_people(row, self._labels)

    def count(self, row: Row, facts: Counter[str]) -> None:
        facts["comparisons"] += len(row.comparisons)
        facts["ratings"] += len(row.ratings)

    def pairing(self) -> Pairing:
        if self._labels.pairs:
            return Pairing("compared", "comparisons")
        return Pairing("zephyr", "ratings", dict.fromkeys(self._labels.aspects(), 1.0))

    async def finish(self, rows: Stored[Row], counts: RowCounts, work: Work) -> dict[str, Any]:
        if missed := self._labels.unused():
            work.note(f"{self.name}: {missed:,} of {self._labels.total:,} labels name no candidate here")
        return await super().finish(rows, counts, work)
