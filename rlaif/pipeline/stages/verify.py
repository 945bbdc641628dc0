"""The `verify` stage: checks in code of each candidate, as scores and as a filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlaif.config import Step, VerifyStage
from rlaif.config.document import Position, validated
from rlaif.engines.asking import Asking
from rlaif.errors import EngineError
from rlaif.generate.keeping import Choice, choose
from rlaif.generate.pairing import Pairing
from rlaif.judges.verifiers import Check
from rlaif.judges.verifying import VERIFIER, own_checks, unverified, verified, without
from rlaif.pipeline.stages.keeping import Keeping
from rlaif.pipeline.stages.stage import Opening, RowStage, unparsed
from rlaif.records import Prompt, Row, oneline


class Verify(Keeping[VerifyStage], RowStage[VerifyStage]):
    reads_words = True
    facts = ("candidates", "passed", "failed_checks", "not_checkable")

    def __init__(self, step: Step, settings: VerifyStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self.checks = open_checks(step, settings.checks, (), opening)

    async def row(self, row: Row, asking: Asking) -> Row:
        row = verified(row, self.checks)
        if self.settings.keep == "all":
            return row
        failing = unverified(row)
        self.removed.update(failing.values())
        return without(row, failing)

    def choose(self, row: Row) -> Choice:
        unfit = unverified(row)
        if not any(score.judge == VERIFIER for score in row.scores):  # where only other prompts have checks
            unfit = dict.fromkeys(range(len(row.candidates)), "nothing to check")
        choice = choose(row, unfit)
        return choice if row.candidates else choice._replace(reason="no candidate passed")

    def unpairable(self, rule: str | None) -> str | None:
        if self.settings.keep == "all":
            return None
        return "keeps only completions that pass every check, so all of them tie"

    def count(self, row: Row, facts: Counter[str]) -> str | None:
        facts["candidates"] += len(row.candidates)
        facts["passed"] += sum(score.value == 1.0 for score in row.scores)
        facts["failed_checks"] += sum(score.value == 0.0 for score in row.scores)
        facts["not_checkable"] += sum(score.value is None for score in row.scores)
        return self.unkept(row)

    def outcome(self, facts: Mapping[str, Any]) -> str:
        failed = facts["failed_checks"]
        return unparsed(facts, "ratings") + (f", {failed:,} checks failed" if failed else "")

    def pairing(self) -> Pairing:
        return Pairing("zephyr", "scores", judge=VERIFIER)


def open_checks(step: Step, given: Sequence[dict[str, Any]], under: Position, opening: Opening) -> tuple[Check, ...]:
    """The checks of a stage, under the key `under`.checks of the pipeline file; prompts may have their own.

    Raises InputError when any of them cannot be read, or there are none.
    """
    document, key = opening.pipeline.document, (*under, "checks")
    base: Position = ("stages", step.number - 1, step.stage.kind, *key)
    checks = tuple(validated(Check, check, document, (*base, number)) for number, check in enumerate(given))
    own = 0
    for prompt in _prompts_of(step, opening):
        try:
            own += len(own_checks(prompt))
        except EngineError as error:
            problem = f"{error.message}, of the prompt {prompt.id} ({oneline(prompt.text)[:60]!r})"
            raise opening.pipeline.error(step, problem, key, "correct them in the file of prompts") from None
    if not checks and not own:
        problem = "there is nothing to check: neither the stage nor a prompt has checks"
        raise opening.pipeline.error(step, problem, key, "write `checks: [{length: {max_words: 100}}]`")
    return checks


def _prompts_of(step: Step, opening: Opening) -> Iterable[Prompt]:
    """The prompts behind a stage's rows, as far as they are known before the run."""
    *_, origin = (step, *step.line())
    made = opening.made.get(origin.name)
    return made.prompts.kept if made is not None and made.prompts is not None else ()
