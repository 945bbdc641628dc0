"""The `score` stage: a float for each candidate, from a reward model or implied by a policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from rlaif.config import ScoreStage
from rlaif.generate.keeping import ALL, Choice, choose
from rlaif.generate.pairing import Pairing
from rlaif.judges.scoring import score
from rlaif.pipeline.manifest import RowCounts, StageRecord
from rlaif.pipeline.spool import RowWriter
from rlaif.pipeline.stages.keeping import Keeping
from rlaif.pipeline.stages.stage import Lazy, Planning, TableStage, Work, row_record, starting_rows, write_data
from rlaif.records import Row


class Scoring(Keeping[ScoreStage], TableStage[ScoreStage]):
    holds = "rows"
    to_continue = "give it `keep: {best: 1}`, or put a `pair` stage after it"
    facts = ("scores", "without_a_score")

    async def run(self, work: Work) -> StageRecord:
        rows, writer = starting_rows(work.made[self.source.name]), RowWriter(Row, work.file(self.step))
        counts = RowCounts(self.facts)
        work.progress.total(len(rows))
        with closing(writer):
            async for row in score(rows, self.settings, work.session.engines):
                dropped = self.unkept(row)
                writer.append(row.model_copy(update={"dropped": dropped}))
                counts.add(row, row.failure is not None, dropped)
                self._count(row, counts.facts)
                work.progress.advance(row.cause)
            done = writer.finish()
        work.made[self.name] = self.made_of(done, counts)
        record = row_record(self, counts, counts.failed_before, len(rows), work)
        record.facts |= write_data(self, done, counts, work)
        return record

    @staticmethod
    def _count(row: Row, facts: Counter[str]) -> None:
        facts["scores"] += sum(score.value is not None for score in row.scores)
        facts["without_a_score"] += sum(score.value is None for score in row.scores)

    def score_of(self, row: Row) -> Mapping[int, float]:
        return self.pairing().scores(row)

    def choose(self, row: Row) -> Choice:
        return choose(row, scores=self.score_of(row), keep=self.settings.keep or ALL)

    def pairing(self) -> Pairing:
        return Pairing("zephyr", "scores", judge=self.settings.judge)

    async def plan(self, planning: Planning) -> dict[str, Any]:
        rows = starting_rows(planning.made[self.source.name])
        unscored = {"failure": "not scored yet"}
        table = Lazy(lambda: (row if row.failure else row.model_copy(update=unscored) for row in rows), len(rows))
        planning.made[self.name] = self.made_of(table, unknown=len(rows))
        return {"rows": len(rows), "state": "to score"}
