"""The `revise` stage: each candidate critiqued and rewritten, and the last revisions as demonstrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from rlaif.config import ReviseStage, Step, TextCheck, unchecked
from rlaif.constitution import Applied, Asked, Principle, read_constitution
from rlaif.engines.asking import Asking
from rlaif.formats import sft_rows
from rlaif.generate import revising
from rlaif.generate.revising import Reviser, revise, revised, unrevised
from rlaif.pipeline.rehearsal import REHEARSED, read_template, rehearse
from rlaif.pipeline.stages.stage import Opening, RowStage
from rlaif.records import Kept, Row


class Revise(RowStage[ReviseStage]):
    facts = ("revisions", "broken_off")
    writes = ("sft",)

    def __init__(self, step: Step, settings: ReviseStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self.reviser = open_reviser(settings, opening.text_check(settings.model))

    @property
    def chains(self) -> bool:
        return True

    async def row(self, row: Row, asking: Asking) -> Row:
        asker = asking.asker(self.settings.model, self.settings.sampling)
        return await revise(row, self.settings, self.reviser, asker)

    def count(self, row: Row, facts: Counter[str]) -> str | None:
        facts["revisions"] += len(row.revisions)
        facts["broken_off"] += sum(revision.problem is not None for revision in row.revisions)
        return unrevised(row) if row.failure is None else None  # a row that gives no demonstration is dropped

    def made_with(self) -> dict[str, str]:
        constitution = self.reviser.constitution
        return {
            f"constitution {constitution.name}": constitution.digest,
            "critique template": self.reviser.critique.digest,
            "revision template": self.reviser.revision.digest,
        }

    def asked(self, row: Row, principle: Principle) -> Iterator[Asked]:
        return revising.asked(row, principle, self.reviser)

    def applies(self) -> Applied:
        return Applied(self.reviser.constitution, ("critique", "revision"))

    def kept(self, row: Row) -> Iterator[Kept]:
        return revised(row)

    def data(self, row: Row, shape: str) -> Iterable[dict[str, Any]] | str:
        return unrevised(row) or sft_rows(self.kept(row))


def open_reviser(stage: ReviseStage, check: TextCheck = unchecked) -> Reviser:
    """The stage's constitution and templates, rehearsed. Raises InputError."""
    reviser = Reviser(
        read_constitution(stage.constitution, ("critique", "revision"), check),
        read_template(stage.critique_template, revising.OFFERED_CRITIQUE, revising.REQUIRED_CRITIQUE),
        read_template(stage.revision_template, revising.OFFERED_REVISION, revising.REQUIRED_REVISION),
    )
    asked = partial(revising.asked, REHEARSED, reviser=reviser)
    rehearse(reviser.constitution.having("critique"), asked, critique=reviser.critique, revision=reviser.revision)
    return reviser
