"""The `rank` stage: all candidates of a prompt ranked at once, under a drawn principle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rlaif.config import RankStage, Step, TextCheck, unchecked
from rlaif.constitution import Asked, Constitution, Principle, read_constitution
from rlaif.engines.asking import Asking
from rlaif.generate.pairing import Pairing
from rlaif.judges import ranking
from rlaif.judges.comparing import Comparer
from rlaif.judges.ranking import rank
from rlaif.pipeline.rehearsal import REHEARSED, read_template, rehearse
from rlaif.pipeline.stages.stage import Opening, RowStage, unparsed
from rlaif.records import Row


class Rank(RowStage[RankStage]):
    facts = ("rankings", "unparsed", "orders_disagree")

    def __init__(self, step: Step, settings: RankStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self.ranker = open_ranker(settings, opening.text_check(settings.model))

    async def row(self, row: Row, asking: Asking) -> Row:
        return await rank(row, self.settings, self.ranker, asking.asker(self.settings.model, self.settings.sampling))

    def count(self, row: Row, facts: Counter[str]) -> None:
        facts["rankings"] += len(row.rankings)
        orders = [each.order for each in row.rankings if each.order is not None]
        facts["unparsed"] += len(row.rankings) - len(orders)
        facts["orders_disagree"] += len(set(orders)) > 1

    def outcome(self, facts: Mapping[str, Any]) -> str:
        return unparsed(facts, "rankings")

    def made_with(self) -> dict[str, str]:
        return self.ranker.digests()

    def asked(self, row: Row, principle: Principle) -> Iterator[Asked]:
        return _asked(row, principle, self.settings, self.ranker)

    def applies(self) -> Constitution:
        return self.ranker.constitution

    def pairing(self) -> Pairing:
        return Pairing("zephyr", "rankings")


def open_ranker(stage: RankStage, check: TextCheck = unchecked) -> Comparer:
    """The stage's constitution and template, rehearsed. Raises InputError."""
    template = read_template(stage.template, ranking.OFFERED, ranking.REQUIRED)
    ranker = Comparer(read_constitution(stage.constitution, ("comparison",), check), template)
    asked = partial(_asked, REHEARSED, stage=stage, ranker=ranker)
    rehearse(ranker.constitution.having("comparison"), asked, comparison=template)
    return ranker


def _asked(row: Row, principle: Principle, stage: RankStage, ranker: Comparer) -> Iterator[Asked]:
    yield Asked("comparison", ranking.ranking_prompt(row, ranking.shown_at(row), principle, stage, ranker).messages)
