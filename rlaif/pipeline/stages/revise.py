"""The `revise` stage: each candidate critiqued and rewritten, and the last revisions as demonstrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from rlaif.config import ReviseStage, Step, TextCheck, unchecked
from rlaif.constitution import Asked, Constitution, Principle, read_constitution
from rlaif.engines.asking import Asking
from rlaif.formats import sft_rows
from rlaif.generate import revising
from rlaif.generate.revising import Reviser, ends, revise, revised, told, unrevised
from rlaif.judges.replies.nothing import ELLIPSIS
from rlaif.pipeline.rehearsal import REHEARSED, read_template, rehearse
from rlaif.pipeline.stages.stage import Opening, RowStage
from rlaif.records import Kept, Row


class Revise(RowStage[ReviseStage]):
    facts = ("revisions", "found_nothing", "broken", "stopped_early", "saved_calls")
    writes = ("sft",)

    def __init__(self, step: Step, settings: ReviseStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self.reviser = open_reviser(settings, opening.text_check(settings.model))

    @property
    def chains(self) -> bool:
        return True

    async def row(self, row: Row, asking: Asking) -> Row:
        return await revise(row, self.settings, self.reviser, asking)

    def count(self, row: Row, facts: Counter[str]) -> str | None:
        facts["revisions"] += len(row.revisions)
        facts["found_nothing"] += sum(step.found_nothing for step in row.revisions)
        facts["broken"] += sum(step.problem is not None for step in row.revisions)
        for index in range(len(row.candidates)):
            chain = [step for step in row.revisions if step.candidate == index]
            missing = self.settings.revisions - len(chain)
            early = bool(chain) and chain[-1].found_nothing and missing > 0
            facts["stopped_early"] += early
            facts["saved_calls"] += sum(step.found_nothing for step in chain) + (2 * missing if early else 0)
        return unrevised(row, self.settings) if row.failure is None else None  # it gives no demonstration: dropped

    def outcome(self, facts: Mapping[str, Any]) -> str:
        told = (
            (facts["found_nothing"], "critiques found nothing"),
            (facts["saved_calls"], "calls saved"),
            (facts["broken"], "broken steps"),
        )
        return "".join(f", {count:,} {what}" for count, what in told if count)

    def told(self, row: Row) -> Mapping[str, int]:
        return told(row)

    def made_with(self) -> dict[str, str]:
        constitution = self.reviser.constitution
        return {
            f"constitution {constitution.name}": constitution.digest,
            "critique template": self.reviser.critique.digest,
            "revision template": self.reviser.revision.digest,
        }

    def asked(self, row: Row, principle: Principle) -> Iterator[Asked]:
        return revising.asked(row, principle, self.reviser)

    def applies(self) -> Constitution:
        return self.reviser.constitution

    def kept(self, row: Row) -> Iterator[Kept]:
        return revised(row, self.settings)

    def data(self, row: Row, shape: str) -> Iterable[dict[str, Any]] | str:
        return unrevised(row, self.settings) or sft_rows(self.kept(row))

    def left_out(self, row: Row) -> Mapping[str, int]:
        return Counter(end.why for end in ends(row, self.settings) if end.why is not None)


def open_reviser(stage: ReviseStage, check: TextCheck = unchecked) -> Reviser:
    """The stage's constitution and templates, rehearsed. Raises InputError."""
    reviser = Reviser(
        read_constitution(stage.constitution, ("critique", "revision"), check),
        read_template(stage.critique_template, revising.OFFERED_CRITIQUE, revising.REQUIRED_CRITIQUE),
        read_template(stage.revision_template, revising.OFFERED_REVISION, revising.REQUIRED_REVISION),
        next((phrase for phrase in stage.found_nothing if not phrase.startswith(ELLIPSIS)), ""),
    )
    asked = partial(revising.asked, REHEARSED, reviser=reviser)
    rehearse(reviser.constitution.having("critique"), asked, critique=reviser.critique, revision=reviser.revision)
    return reviser
