"""The `verify` stage: checks in code of each candidate, as scores and as a filter.

A stage's checks apply to every prompt; a prompt may have checks of its own, as in IFEval.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import ValidationError

from rlaif.errors import EngineError, plainly
from rlaif.judges.verifiers import Check, Outcome, all_pass
from rlaif.records import Prompt, Row, Score, oneline

VERIFIER = "verifier"  # the judge of such scores


def verified(row: Row, checks: Sequence[Check], keep: str) -> Row:
    """`row` with a score of 1 or 0 for each candidate and check; with `keep: passing` only candidates that pass all.

    A check that does not apply to a candidate (no reference, two final numbers) gives a score without a value, and does
    not count as passed. Raises EngineError when the prompt's own checks cannot be read.
    """
    all_checks = (*checks, *own_checks(row.prompt))
    outcomes = [outcomes_of(all_checks, row.prompt, candidate.completion.text) for candidate in row.candidates]
    kept = [i for i, of_one in enumerate(outcomes) if keep == "all" or not of_one or all_pass(of_one) == 1.0]
    return row.model_copy(
        update={
            "candidates": tuple(row.candidates[i] for i in kept),
            "scores": tuple(
                _score(position, number, check, outcome)
                for position, i in enumerate(kept)
                for number, (check, outcome) in enumerate(zip(all_checks, outcomes[i], strict=True), start=1)
            ),
        }
    )


def unverified(row: Row) -> dict[int, str]:
    """The candidates of a verified row that did not pass every check, with the reason."""
    missed = [score for score in row.scores if score.judge == VERIFIER and score.value != 1.0]
    reasons = {score.candidate: "not checkable" for score in missed}
    return reasons | {score.candidate: "failed a check" for score in missed if score.value is not None}


def outcomes_of(checks: Sequence[Check], prompt: Prompt, completion: str) -> list[Outcome]:
    """The outcome of each check, given the prompt and its references."""
    known = prompt.reference
    reference = json.dumps(known, ensure_ascii=False) if len(known) > 1 else known[0] if known else None
    return [check.check(completion, prompt=prompt.text, reference=reference) for check in checks]


def own_checks(prompt: Prompt) -> tuple[Check, ...]:
    """The prompt's own checks. Raises EngineError when they cannot be read."""
    try:
        return tuple(Check.model_validate(check) for check in prompt.checks)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"`{'.'.join(map(str, first['loc']))}`: " if first["loc"] else ""
        raise EngineError(f"the prompt's own checks: {where}{oneline(plainly(first))}", cause="checks") from None


def _score(candidate: int, number: int, check: Check, outcome: Outcome) -> Score:
    """The aspect is the check's number and kind, so two checks of one kind are two aspects."""
    aspect = f"{number} {check.kind}"
    if outcome.passed is None:
        return Score(candidate=candidate, value=None, judge=VERIFIER, aspect=aspect, problem=outcome.why)
    return Score(candidate=candidate, value=float(outcome.passed), judge=VERIFIER, aspect=aspect)
