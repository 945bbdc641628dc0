"""The `verify` stage: checks in code of each candidate, as scores and as a filter.

A stage's checks apply to every prompt; a prompt may have checks of its own, as in IFEval.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from pydantic import ValidationError

from rlaif.errors import EngineError, plainly
from rlaif.judges.verifiers import Check, Outcome
from rlaif.records import Prompt, Row, Score, oneline

VERIFIER = "verifier"  # the judge of such scores


def verified(row: Row, checks: Sequence[Check]) -> Row:
    """`row` with a score of 1 or 0 for each candidate and check.

    A check that does not apply to a candidate (no reference, two final numbers) gives a score without a value, and does
    not count as passed. Raises EngineError when the prompt's own checks cannot be read.
    """
    all_checks = (*checks, *own_checks(row.prompt))
    scores = (
        _score(index, number, check, outcome)
        for index, candidate in enumerate(row.candidates)
        for number, (check, outcome) in enumerate(
            zip(all_checks, outcomes_of(all_checks, row.prompt, candidate.completion.text), strict=True), start=1
        )
    )
    return row.model_copy(update={"scores": tuple(scores)})


def without(row: Row, removed: Collection[int]) -> Row:
    """A verified row without some of its candidates, and their scores."""
    kept = [index for index in range(len(row.candidates)) if index not in removed]
    places = {index: place for place, index in enumerate(kept)}
    return row.model_copy(
        update={
            "candidates": tuple(row.candidates[index] for index in kept),
            "scores": tuple(
                score.model_copy(update={"candidate": places[score.candidate]})
                for score in row.scores
                if score.candidate in places
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
