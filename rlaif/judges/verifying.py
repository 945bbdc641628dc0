"""The `verify` stage: what code can check of each candidate, as scores, and as a filter.

A stage's own checks hold for every prompt; a prompt may bring checks of its own, as IFEval's do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import ValidationError

from rlaif.errors import EngineError
from rlaif.judges.verifiers import Check, Outcome, all_pass
from rlaif.records import Prompt, Row, Score, oneline

VERIFIER = "verifier"  # what scores name as their judge


def verified(row: Row, checks: Sequence[Check], keep: str) -> Row:
    """`row` with a score of 1 or 0 for each candidate and check; with `keep` passing, only what passes every check.

    A check that cannot be made of a candidate (no reference, two final numbers) leaves a score without a value, and the
    candidate out. Raises EngineError for a row whose own checks cannot be read.
    """
    asked = (*checks, *own_checks(row.prompt))
    outcomes = [outcomes_of(asked, row.prompt, candidate.completion.text) for candidate in row.candidates]
    kept = [i for i, found in enumerate(outcomes) if keep == "all" or not found or all_pass(found) == 1.0]
    return row.model_copy(
        update={
            "candidates": tuple(row.candidates[i] for i in kept),
            "scores": tuple(
                _score(place, number, check, outcome)
                for place, i in enumerate(kept)
                for number, (check, outcome) in enumerate(zip(asked, outcomes[i], strict=True), start=1)
            ),
        }
    )


def outcomes_of(checks: Sequence[Check], prompt: Prompt, completion: str) -> list[Outcome]:
    """What each check finds, the prompt's references beside it."""
    known = prompt.reference
    reference = json.dumps(known, ensure_ascii=False) if len(known) > 1 else known[0] if known else None
    return [check.check(completion, prompt=prompt.text, reference=reference) for check in checks]


def own_checks(prompt: Prompt) -> tuple[Check, ...]:
    """The checks that stand with a prompt. Raises EngineError where they cannot be read."""
    try:
        return tuple(Check.model_validate(check) for check in prompt.checks)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"`{'.'.join(map(str, first['loc']))}`: " if first["loc"] else ""
        problem = oneline(first["msg"]).removeprefix("Value error, ")
        raise EngineError(f"the prompt's own checks: {where}{problem}", cause="checks") from None


def _score(candidate: int, number: int, check: Check, outcome: Outcome) -> Score:
    """Its aspect is the check's place and kind: two checks of one kind are two aspects."""
    aspect = f"{number} {check.kind}"
    if outcome.passed is None:
        return Score(candidate=candidate, value=None, judge=VERIFIER, aspect=aspect, problem=outcome.why)
    return Score(candidate=candidate, value=float(outcome.passed), judge=VERIFIER, aspect=aspect)
