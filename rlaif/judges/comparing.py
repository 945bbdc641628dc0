"""Comparing: which of two candidates a drawn principle prefers, asked in both orders.

Follows RLAIF (arXiv 2309.00267, section 3.1) and Constitutional AI (arXiv 2212.08073, section 4.1): the candidates are
called 1 and 2, and a soft verdict is how likely the judge is to begin its answer with either number, the two made to
add up to one. With reasons the judge first writes them and is asked for its verdict in a second turn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from rlaif.config import CompareStage, SamplingSettings
from rlaif.constitution import Constitution, Principle
from rlaif.engines.scheduler import Sampler, together
from rlaif.judges.rating import REASK_TEMPERATURE, numbered
from rlaif.judges.replies import unusable
from rlaif.records import (
    Candidate,
    Choice,
    Comparison,
    Completion,
    Message,
    Prompt,
    Row,
    Sampling,
    Verdict,
    digest,
    hashed_order,
    writable,
)
from rlaif.templates import Template

OFFERED = {"principle", "prompt", "completions", "reasons", "ending", "mark", "n"}
REQUIRED = {"principle", "prompt", "completions"}  # and `ending`, unless it is asked in a second turn


class Comparer(NamedTuple):
    """What completions are compared by, and how the judge is asked."""

    constitution: Constitution
    template: Template


NUMBERS = ("1", "2")
SOFT_VERDICT_TOKENS = 2  # the number, whose probability is what counts, and the end
VERDICT_TOKENS = 16  # of a hard verdict: a number and what a talkative judge puts around it
LEAST_MASS = 0.5  # of the first token; where the numbers hold less, the judge was about to say something else


def two_to_compare(prompt: Prompt, candidates: Sequence[Candidate]) -> tuple[int, int] | None:
    """The two candidates to compare: whole ones of different text, drawn by hash; None where there are no two."""
    by_text: dict[str, int] = {}
    for index, candidate in enumerate(candidates):
        if candidate.completion.finish_reason == "stop" and candidate.completion.text.strip():
            by_text.setdefault(candidate.completion.text, index)
    if len(by_text) < 2:
        return None
    indices = list(by_text.values())
    order = hashed_order([candidates[i].completion.call for i in indices], "compare", prompt.id)
    a, b = sorted(indices[place] for place in order[:2])
    return a, b


async def compare(
    row: Row,
    stage: CompareStage,
    comparer: Comparer,
    model: SamplingSettings,
    scheduler: Sampler,
    seed: int,
) -> Row:
    """`row` with a comparison of two of its candidates, where it has two that differ. Raises EngineError."""
    found = two_to_compare(row.prompt, row.candidates)
    if found is None:
        return row
    a, b = found
    principle = comparer.constitution.draw("compare", row.prompt.id)
    sampling = stage.sampling.resolved(seed, model)
    forward, backward = await together(
        *(_ask(row, order, principle, stage, comparer.template, sampling, scheduler) for order in ((a, b), (b, a)))
    )
    comparison = Comparison.merge(forward, backward, principle=principle.id, judge=stage.model)
    return row.model_copy(update={"comparisons": (comparison,)})


async def _ask(
    row: Row,
    order: tuple[int, int],
    principle: Principle,
    stage: CompareStage,
    template: Template,
    sampling: Sampling,
    scheduler: Sampler,
) -> Verdict:
    """The first verdict that can be read, of the first reply and those to re-asks; the first one where none can.

    A re-ask is with another seed and warm enough to be answered otherwise. The probabilities of the first token do not
    depend on a seed, so without reasons there is nothing to ask again.
    """
    tries = stage.reask + 1 if stage.reasons or stage.verdicts == "hard" else 1
    warm = sampling.model_copy(update={"temperature": max(sampling.temperature, REASK_TEMPERATURE)})
    first: Verdict | None = None
    for attempt in range(tries):
        asked = warm if attempt else sampling
        verdict = await _ask_once(row, order, principle, stage, template, asked, scheduler, attempt)
        if verdict.problem is None:
            return verdict
        first = first or verdict
    assert first is not None
    return first


async def _ask_once(
    row: Row,
    order: tuple[int, int],
    principle: Principle,
    stage: CompareStage,
    template: Template,
    sampling: Sampling,
    scheduler: Sampler,
    attempt: int,
) -> Verdict:
    a, b = order
    soft = stage.verdicts == "soft"
    reasons: Completion | None = None
    messages = question(row, order, principle, stage, template)
    if stage.reasons:
        reasons = (await scheduler.sample(stage.model, messages, sampling, attempt=attempt))[0]
        if problem := unusable("reasons", reasons):
            raw = writable(reasons.text)
            return Verdict(a=a, b=b, verdict=None, raw=raw, problem=problem, calls=(reasons.call,))
        messages = (
            *messages,
            Message(role="assistant", content=reasons.text),
            Message(role="user", content=stage.ending),
        )
    asked = sampling.model_copy(
        update={
            "max_tokens": min(sampling.max_tokens, SOFT_VERDICT_TOKENS if soft else VERDICT_TOKENS),
            "alternatives": NUMBERS if soft else (),
        }
    )
    reply = (await scheduler.sample(stage.model, messages, asked, attempt=attempt))[0]
    choice: Choice | None
    if soft:
        probability, problem = read_probability(reply.alternatives)
        if probability is not None and stage.clamp is not None:
            probability = min(max(probability, stage.clamp[0]), stage.clamp[1])
        choice = None if probability is None else "A" if probability > 0.5 else "B" if probability < 0.5 else "tie"
    else:
        probability = None
        choice, problem = read_choice(reply.text)
    return Verdict(
        a=a,
        b=b,
        verdict=choice,
        probability=probability,
        raw=writable(reply.text),
        reasons=None if reasons is None else writable(reasons.text),
        problem=problem,
        calls=tuple(c.call for c in (reasons, reply) if c is not None),
    )


def question(
    row: Row, order: tuple[int, int], principle: Principle, stage: CompareStage, template: Template
) -> tuple[Message, ...]:
    """The judge prompt for one order. Without reasons it ends with what asks for the verdict."""
    shown = [row.candidates[i].completion.text for i in order]
    rendered = template.render_showing(
        {"the prompt": row.prompt.text, "the principle's comparison": principle.comparison, **numbered(shown)},
        principle=principle,
        prompt=row.prompt.text,
        completions=shown,
        reasons=stage.reasons,
        ending=stage.ending,
        mark=digest([row.prompt.text, *sorted(shown)], length=12),  # a fence that the text inside cannot know
        n=len(shown),
    )
    return (Message(role="user", content=rendered),)


def read_probability(alternatives: dict[str, float | None] | None) -> tuple[float | None, str | None]:
    """The probability of the first candidate, from the log-probabilities of the two numbers; or the problem.

    A number below the end of a server's list counts as impossible; what it could add is less than anything listed.
    """
    known = {name: math.exp(value) for name, value in (alternatives or {}).items() if value is not None}
    first, second = (known.get(number, 0.0) for number in NUMBERS)
    mass = first + second
    if not known:
        return None, "the engine gave no probability of either number"
    if mass < LEAST_MASS:
        return None, f"only {mass:.0%} of the first token's probability is on the numbers"
    return round(first / mass, 9), None


_AROUND = r"[\s*_`\"'\[\]().:]*"  # what a judge puts around a number without saying more
_CHOICE = re.compile(rf"{_AROUND}(?:completion\s+)?(1|2|tie){_AROUND}", re.IGNORECASE)


def read_choice(text: str) -> tuple[Choice | None, str | None]:
    """The number that a reply consists of, or the problem: a reply that says more than a number is not searched."""
    found = _CHOICE.fullmatch(text)
    if found is None:
        return None, "expected 1, 2 or tie and nothing else"
    choices: dict[str, Choice] = {"1": "A", "2": "B"}
    return choices.get(found[1], "tie"), None
