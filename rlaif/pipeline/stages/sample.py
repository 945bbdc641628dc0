"""The `sample` stage: candidates for each prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlaif.config import SampleStage, Step
from rlaif.engines.asking import Asking
from rlaif.errors import nearest
from rlaif.generate.keeping import Choice, choose
from rlaif.generate.sampling import sample
from rlaif.pipeline.manifest import RowCounts
from rlaif.pipeline.spool import Stored
from rlaif.pipeline.stages.keeping import Keeping
from rlaif.pipeline.stages.stage import Opening, RowStage, Work
from rlaif.principles import Mixture, read_principles
from rlaif.records import Row, digest

MANY_CUT = 0.1  # share of cut completions above which the user is warned


class Sample(Keeping[SampleStage], RowStage[SampleStage]):
    facts = ("candidates", "cut")
    judges = False

    def __init__(self, step: Step, settings: SampleStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self._mixture: Mixture | None = None
        if settings.principles is not None and settings.mixture is not None:
            principles = read_principles(settings.principles)
            if settings.mixture not in principles.mixtures:
                problem = f"{settings.principles!r} has no mixture {settings.mixture!r}"
                fix = nearest(settings.mixture, principles.mixtures)
                raise opening.pipeline.error(step, problem, ("mixture",), fix)
            self._mixture = principles.mixture(settings.mixture)

    @property
    def chains(self) -> bool:
        return True

    async def row(self, row: Row, asking: Asking) -> Row:
        return await sample(row, self.settings, asking, self._mixture)

    def choose(self, row: Row) -> Choice:
        return choose(row)

    def count(self, row: Row, facts: Counter[str]) -> str | None:
        facts["candidates"] += len(row.candidates)
        facts["cut"] += sum(candidate.completion.finish_reason == "length" for candidate in row.candidates)
        return self.unkept(row)

    def outcome(self, facts: Mapping[str, Any]) -> str:
        cut = facts["cut"]
        return f", {cut:,} completion{'s' if cut > 1 else ''} cut" if cut else ""

    async def finish(self, rows: Stored[Row], counts: RowCounts, work: Work) -> dict[str, Any]:
        cut, made = counts.facts["cut"], counts.facts["candidates"]
        if MANY_CUT * made < cut < made:
            work.note(
                f"{self.name}: {cut:,} of {made:,} completions were cut at `max_tokens`: raise it, since a cut one "
                "becomes no data"
            )
        return await super().finish(rows, counts, work)

    def made_with(self) -> dict[str, str]:
        return {} if self._mixture is None else {"principles": digest(self._mixture._asdict())}
