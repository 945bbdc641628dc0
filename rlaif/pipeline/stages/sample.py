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
from rlaif.pipeline.stages.keeping import Keeping
from rlaif.pipeline.stages.stage import Opening, RowStage
from rlaif.principles import Mixture, read_principles
from rlaif.records import Row, digest


class Sample(Keeping[SampleStage], RowStage[SampleStage]):
    facts = ("candidates",)
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
        return self.unkept(row)

    def outcome(self, facts: Mapping[str, Any]) -> str:
        return ""

    def made_with(self) -> dict[str, str]:
        return {} if self._mixture is None else {"principles": digest(self._mixture._asdict())}
