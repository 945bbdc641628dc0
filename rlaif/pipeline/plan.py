"""`rlaif plan`: the calls that a run would make, how many are cached, tokens, cost, and what would be trained.

Nothing is sent or written. The stages run with a sampler that answers from the call store and counts missing calls. A
missing completion is assumed to have the maximum length, so later stages are counted too, as upper bounds; token counts
are estimates. Rows with an assumed completion are not kept, but made again when a later stage reads them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from rlaif.config import OpenAIModel, Pipeline
from rlaif.constitution import Change, changes, read_constitution
from rlaif.engines.adapters import Source
from rlaif.engines.asking import Asking
from rlaif.pipeline.counting import UNPAID, Counting, Due, Need, Needs
from rlaif.pipeline.folder import RunFolder
from rlaif.pipeline.inputs import kept_input
from rlaif.pipeline.manifest import count_spent
from rlaif.pipeline.run import session_of
from rlaif.pipeline.spool import Spool
from rlaif.pipeline.stages import Made, Opening, RowStage, Stage, TableStage
from rlaif.pipeline.stages.stage import groups, starting_rows
from rlaif.records import Row
from rlaif.store import CallStore


def _edit(stage: str, principle: str | None, edit: str, due: Due) -> dict[str, Any]:
    return {"stage": stage, "principle": principle, "edit": edit, "calls": due.exact, "at_most": due.at_most}


class Plan:
    """Plans the stages of a pipeline in order, in its own session."""

    def __init__(self, opening: Opening, folder: RunFolder, store: CallStore) -> None:
        self.pipeline: Pipeline = opening.pipeline
        self.folder, self.stages, self.notes = folder, opening.stages, opening.notes
        self.made: dict[str, Made] = dict(opening.made)
        self.session = session_of(self.pipeline, store)
        count_spent(self.pipeline, self.session, folder, folder.manifest() or {})
        self.shapes: dict[str, Source] = {}  # of each model that is not trained yet, one with its sizes
        self.needs: Needs = {}
        self._assuming = Counting(self.session, self.needs)
        self._refusing = Counting(self.session, self.needs, assumes=False)
        self._unseen = Counting(self.session, {})  # for rows that are made again: not counted twice

    def asking(self, stage: str, *, each_once: bool = False) -> Asking:
        """The sampler of a table stage in this plan."""
        counting = Counting(self.session, self.needs, each_once=True) if each_once else self._assuming
        return self.session.asking(stage, sampler=counting)

    async def make(self) -> dict[str, Any]:
        """The plan by stage and by model. Closes the session."""
        try:
            return await self._made()
        finally:
            await self.session.close()
            self.folder.close()

    async def _made(self) -> dict[str, Any]:
        stages = []
        for group in groups(self.stages[step.name] for step in self.pipeline.steps):
            stages += await self._rows(group) if isinstance(group, list) else [await self._table(group)]
        manifest = self.folder.manifest()
        budget = self.pipeline.budget
        return {
            "name": self.pipeline.name,
            "from_package": self.pipeline.shipped,
            "stages": stages,
            "calls": self._by_model(),
            "changed": self._changed(),
            "budget_left": None if budget is None else budget - self.session.ledger.spent,
            "last_run_seconds": manifest and manifest["seconds"],
        }

    async def _table(self, stage: TableStage[Any]) -> dict[str, Any]:
        return self._about(stage) | await stage.plan(self)

    def _about(self, stage: Stage[Any]) -> dict[str, Any]:
        reads = " + ".join(source.name for source in stage.step.sources)
        return {"stage": stage.name, "kind": stage.settings.kind, "from": reads or None, "makes": stage.makes}

    async def _rows(self, stages: Sequence[RowStage[Any]]) -> list[dict[str, Any]]:
        """Every row through the stages of a group; known rows go to disk for later stages."""
        for stage in stages:
            if stage.gated and all(model in self.session.engines for model in stage.models):
                await stage.gate(self.asking(stage.name))
        kept = {stage.name: Spool(Row) for stage in stages}
        unknown = dict.fromkeys(kept, 0)
        async for origin, row, known in self._source(stages[0]):
            for stage in stages:
                if row.failure is None:
                    row, complete = await self._through(stage, row, known)
                    known = known and complete
                unknown[stage.name] += not known
                kept[stage.name].append(row if known else origin.model_copy(update={"failure": UNPAID}))
        for stage in stages:
            self.made[stage.name] = stage.made_of(kept[stage.name], unknown=unknown[stage.name])
        return [self._about(stage) | {"rows": len(kept[stage.name]), "calls": self._calls(stage)} for stage in stages]

    async def _through(self, stage: RowStage[Any], row: Row, known: bool) -> tuple[Row, bool]:
        """A row through a stage, and whether all its calls are cached.

        If no later prompt shows the stage's completions, a missing one is not assumed: it would only be parsed.
        """
        counting = self._assuming if stage.chains else self._refusing
        before = counting.missing
        if not known and stage.reads_words:
            return row, False  # what it would do with words that nobody has written cannot be known
        passed = await stage.through(row, self.session.asking(stage.name, sampler=counting))
        complete = counting.missing == before
        return (passed if complete or stage.chains else row), complete

    async def _source(self, stage: RowStage[Any]) -> AsyncIterator[tuple[Row, Row, bool]]:
        """The rows that a stage reads: the original row, the row, and whether it is known.

        An unknown one is made again, uncounted.
        """
        line = [self.stages[step.name] for step in stage.step.line()]
        before = [stage for stage in reversed(line) if isinstance(stage, RowStage) and stage.chains]
        for row in starting_rows(self.made[stage.source.name]):
            if row.failure != UNPAID:
                yield row, row, True
                continue
            origin = row.model_copy(update={"failure": None})
            assumed = origin
            for earlier in before:
                assumed = await earlier.through(assumed, self.session.asking(earlier.name, sampler=self._unseen))
            yield origin, assumed, False

    def _changed(self) -> list[dict[str, Any]]:
        """What was edited in the stages' constitutions since the last run, with the calls that are due under each.

        `calls` is exact, `at_most` a bound of those that follow: their prompts hold words that nobody has written yet.
        """
        told = []
        for stage in self.stages.values():
            if (edited := stage.applies()) is None:
                continue
            if (kept := kept_input(self.folder.path, stage.name, "constitution")) is None:
                continue
            edits: dict[str | None, list[Change]] = {}
            for change in changes(read_constitution(str(kept)), edited, stage.settings.principles_asked()):
                edits.setdefault(change.principle, []).append(change)
            ids = {principle.id for principle in edited.principles}
            whole = None in edits  # then every prompt is another one
            for principle, found in edits.items():
                due = self._due(stage.name, ids if principle is None else () if whole else {principle})
                told.append(_edit(stage.name, principle, "; ".join(change.told for change in found), due))
            if edits and not whole and any(due := self._due(stage.name, ids - edits.keys())):
                told.append(_edit(stage.name, None, "what changes under other principles", due))
        return told

    def _due(self, stage: str, principles: Collection[str | None]) -> Due:
        counted = [
            due
            for counting in (self._assuming, self._refusing)
            for (name, principle), due in counting.due.items()
            if name == stage and principle in principles
        ]
        return Due(sum(due.exact for due in counted), sum(due.at_most for due in counted))

    def _calls(self, stage: Stage[Any]) -> dict[str, dict[str, int]]:
        needs = self.needs.get(stage.name, {})
        return {model: {"calls": need["calls"], "paid": need["paid"]} for model, need in needs.items()}

    def _by_model(self) -> dict[str, dict[str, Any]]:
        """Each model's calls and tokens over all stages, with their maximum cost."""
        totals: dict[str, Need] = {}
        for stage in self.stages:
            for model, need in self.needs.get(stage, {}).items():
                total = totals.setdefault(model, Need())
                for what, count in need.items():
                    total[what] += count
        return {
            model: dict(need) | {"max_cost": self._cost(model, need), "unpriced": self._unpriced(model)}
            for model, need in totals.items()
        }

    def _unpriced(self, model: str) -> bool:
        """Whether its server may charge what nobody stated."""
        spec = self.session.specs.get(model)
        return isinstance(spec, OpenAIModel) and spec.price is None

    def _cost(self, model: str, need: Need) -> float | None:
        spec = self.session.specs.get(model)
        if not isinstance(spec, OpenAIModel) or (price := spec.price) is None:
            return None
        return round((need["prompt_tokens"] * price.prompt + need["max_completion_tokens"] * price.completion) / 1e6, 6)
