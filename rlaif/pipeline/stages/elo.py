"""The `elo` stage: the samplers' strengths by the comparisons of their candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlaif.config import EloStage
from rlaif.files import write_json
from rlaif.judges.strengths import strengths
from rlaif.pipeline.folder import RunFolder
from rlaif.pipeline.manifest import StageRecord
from rlaif.pipeline.stages.stage import Made, Planning, TableStage, Work, starting_rows


class Elo(TableStage[EloStage]):
    @property
    def makes(self) -> list[str]:
        return [f"report/{self.name}.json"]

    def check_folder(self, folder: RunFolder) -> None:
        folder.refuse_report(f"{self.name}.json", "elo")

    async def run(self, work: Work) -> StageRecord:
        rows, file = starting_rows(work.made[self.source.name]), f"report/{self.name}.json"
        fitted = strengths(rows, self.settings.prior)
        write_json(work.folder.path / file, fitted.facts)
        work.made[self.name] = Made(report=fitted.facts)
        dropped = +Counter({"no comparison": len(rows) - fitted.rows})
        return StageRecord(
            self.name, self.settings.kind, self.source.name, len(rows), fitted.rows, dropped, file=file,
            facts=fitted.facts,
        )  # fmt: skip

    def outcome(self, facts: Mapping[str, Any]) -> str:
        return "".join(
            f", {name} {fitted['elo']:,} ({fitted['low']:,} to {fitted['high']:,})"
            for name, fitted in facts["elo"].items()
        )

    async def plan(self, planning: Planning) -> dict[str, Any]:
        return {"rows": len(starting_rows(planning.made[self.source.name]))}
