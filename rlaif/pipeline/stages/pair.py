"""The `pair` stage: preferences from judgements, written as data sets in one pass over the rows."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from statistics import fmean
from typing import Any

from rlaif.config import PairStage, Step
from rlaif.generate.pairing import length_balance, noise, preferences_of
from rlaif.pipeline.datasets import Piece, preference_pieces, write_datasets
from rlaif.pipeline.manifest import StageRecord
from rlaif.pipeline.spool import RowWriter
from rlaif.pipeline.stages.stage import (
    Lazy,
    Made,
    Opening,
    Planning,
    Reiterable,
    TableStage,
    Work,
    all_made_with,
    starting_rows,
)
from rlaif.records import Preference, Row

NEAR_TIES = 0.5  # share of margins within the judge's noise above which the user is warned


class Pair(TableStage[PairStage]):
    holds = "preferences"
    writes = ("ultrafeedback", "preference", "sft")
    blocks = True
    finishes = True

    def __init__(self, step: Step, settings: PairStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        judging = opening.stages[self.source.name]
        if problem := judging.unpairable(settings.rule):
            fix = "judge its completions with `rate` or `compare` in between"
            problem = f"the stage {self.source.name!r} {problem}"
            raise opening.pipeline.error(step, problem, ("rule",) if settings.rule else (), fix)
        fitting = judging.pairing()
        assert fitting is not None, "a pair stage reads judgements"
        self.how = fitting._replace(
            rule=settings.rule or fitting.rule, min_margin=settings.min_margin, orders=settings.orders
        )

    async def run(self, work: Work) -> StageRecord:
        source = work.made[self.source.name]
        rows, counts, pairing = starting_rows(source), source.counts, self.how
        weights = pairing.weights if pairing.basis == "ratings" else None
        keep = length_balance(rows, pairing) if self.settings.balance else None
        writer, margins, dropped = RowWriter(Preference, work.file(self.step)), array("d"), Counter[str]()

        def pieces() -> Iterator[Piece]:
            for row in rows:
                made = preferences_of(row, pairing, dropped, keep)
                for preference in made:
                    writer.append(preference)
                    margins.append(preference.margin)
                yield from preference_pieces(row, made, weights)
            work.made[self.name] = Made(preferences=writer.finish())  # before the data sets are moved into place

        failed = {"failed": counts.failed} if counts and counts.failed else {}
        with closing(writer):
            work.manifest.digests |= write_datasets(
                work.dataset(self, len(rows), counts, all_made_with(self.step.line(), work.stages)),
                pieces(),
                {"ultrafeedback": failed, "preference": dropped, "sft": dropped},
            )
        facts: dict[str, Any] = {
            "rule": pairing.rule,
            "preferences": len(margins),
            "mean_margin": round(fmean(margins), 4) if margins else None,
            "basis": pairing.basis,
            **({"weights": dict(pairing.weights)} if pairing.weights else {}),
            **({"judge": pairing.judge} if pairing.judge else {}),
            **({"min_margin": pairing.min_margin} if pairing.min_margin else {}),
            **({"orders": pairing.orders} if pairing.basis == "comparisons" else {}),
            **({"balance": self.settings.balance} if self.settings.balance else {}),
        }
        return StageRecord(
            self.name, self.settings.kind, self.source.name, len(rows), len(rows) - dropped.total(), dropped,
            file=f"stages/{work.file(self.step).name}", facts=facts | self._near_ties(rows, margins, work),
        )  # fmt: skip

    def _near_ties(self, rows: Reiterable[Row], margins: array[float], work: Work) -> dict[str, float]:
        """The judge's noise, and the share of margins within it."""
        if not margins or (within := noise(rows, self.how)) is None:
            return {}
        near = sum(margin <= within for margin in margins) / len(margins)
        if near > NEAR_TIES:
            work.note(
                f"{self.name}: {near:.0%} of the margins are within the judge's noise ({within:.2g}), which cannot "
                "tell such candidates apart: sample warmer or from more models, or set `min_margin`"
            )
        return {"noise": round(within, 4), "near_ties": round(near, 4)}

    def outcome(self, facts: Mapping[str, Any]) -> str:
        return f", {facts['preferences']:,} preferences" if facts["preferences"] != facts["out"] else ""

    async def plan(self, planning: Planning) -> dict[str, Any]:
        """Counts the known preferences, without `balance`, which needs all rows."""
        source = planning.made[self.source.name]
        rows = starting_rows(source)

        def preferences() -> Iterator[Preference]:
            return (made for row in rows for made in preferences_of(row, self.how, Counter()))

        count = sum(1 for _ in preferences())
        planning.made[self.name] = Made(preferences=Lazy(preferences, count), unknown=source.unknown)
        return {"rows": count} | ({"at_most": len(rows)} if source.unknown else {})
