"""The `compare` stage: which of two candidates a judge, or a jury, prefers under a drawn principle, in both orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rlaif.config import CompareStage, Step, TextCheck, unchecked
from rlaif.constitution import Asked, Constitution, Principle, read_constitution
from rlaif.engines.asking import Asker, Asking
from rlaif.generate.pairing import Pairing
from rlaif.judges import comparing
from rlaif.judges.comparing import Comparer, compare
from rlaif.pipeline.rehearsal import REHEARSED, read_template, rehearse
from rlaif.pipeline.stages.judging import JudgingStage
from rlaif.pipeline.stages.stage import Opening, unparsed
from rlaif.records import Comparison, Prompt, Row

if TYPE_CHECKING:
    from rlaif.audits.figures import Decide

OVERALL = "constitutions/overall.yaml"  # the default constitution of `rlaif audit` and `rlaif judge`


class Compare(JudgingStage[CompareStage]):
    facts = ("comparisons", "unparsed", "orders_disagree")

    def __init__(self, step: Step, settings: CompareStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self.comparer = open_comparer(settings, opening.text_check(*settings.judges))

    def _askers(self, asking: Asking) -> list[Asker]:
        return [asking.asker(judge, self.settings.sampling) for judge in self.settings.judges]

    @property
    def chains(self) -> bool:
        return self.settings.reasons

    async def row(self, row: Row, asking: Asking) -> Row:
        return await compare(row, self.settings, self.comparer, self._askers(asking))

    def count(self, row: Row, facts: Counter[str]) -> None:
        facts["comparisons"] += len(row.comparisons)
        facts["unparsed"] += sum(comparison.verdict is None for comparison in row.comparisons)
        members = [member for comparison in row.comparisons for member in comparison.members]
        facts["orders_disagree"] += sum(member.disagrees for member in members)

    def outcome(self, facts: Mapping[str, Any]) -> str:
        return unparsed(facts, "verdicts")

    def made_with(self) -> dict[str, str]:
        return self.comparer.digests()

    def asked(self, row: Row, principle: Principle) -> Iterator[Asked]:
        return comparing.asked(row, principle, self.settings, self.comparer)

    def applies(self) -> Constitution:
        return self.comparer.constitution

    def pairing(self) -> Pairing:
        return Pairing("compared" if self.settings.pairs == "one" else "zephyr", "comparisons")

    # ------------------------------------------------------------ audited

    def decide(self, asking: Asking, gold: str | None) -> Decide:
        """The built-in gold pairs are about overall quality, so they are compared under a principle of that; a user's
        own pairs under the stage's constitution."""
        comparer = self.comparer
        if gold is None:
            comparer = comparer._replace(constitution=read_constitution(OVERALL))
        return by_comparing(self.settings, comparer, self._askers(asking))

    def how(self) -> str:
        stage = self.settings
        text = f"Compared in both orders, {stage.verdicts} verdicts{', after reasons' if stage.reasons else ''}"
        text += f", {stage.votes} votes" if stage.votes > 1 else ""
        return text + (f", by a jury ({stage.combine})" if stage.jury else "")


def open_comparer(stage: CompareStage, check: TextCheck = unchecked) -> Comparer:
    """The stage's constitution and template, rehearsed. Raises InputError."""
    required = comparing.REQUIRED if stage.reasons else comparing.REQUIRED | {"ending"}
    template = read_template(stage.template, comparing.OFFERED, required)
    comparer = Comparer(read_constitution(stage.constitution, ("comparison",), check), template)
    asked = partial(comparing.asked, REHEARSED, stage=stage, comparer=comparer)
    rehearse(comparer.constitution.having("comparison"), asked, comparison=template)
    return comparer


def by_comparing(stage: CompareStage, comparer: Comparer, askers: list[Asker]) -> Decide:
    """A judge as a compare stage uses it, under the gold pair's own principle or else the comparer's."""
    from rlaif.audits.goldset import to_judge

    async def decide(prompt: Prompt, texts: tuple[str, str], principle: str | None) -> Comparison:
        under = comparer if principle is None else comparer._replace(constitution=_only(principle))
        row = await compare(to_judge(prompt, texts), stage, under, askers)
        return row.comparisons[0]

    return decide


def _only(comparison: str) -> Constitution:
    rule = Principle(id="gold", rule=comparison, critique=comparison, revision=comparison, comparison=comparison)
    return Constitution(name="gold", principles=(rule,))
