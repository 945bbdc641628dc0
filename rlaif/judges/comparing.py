"""Comparing: which of two candidates is better under a drawn principle, by one judge or a jury, in both orders.

Follows RLAIF (arXiv 2309.00267, section 3.1) and Constitutional AI (arXiv 2212.08073, section 4.1). The candidates are
numbered 1 and 2. A soft verdict is the probability of either number as the first token, normalised over the two. With
`reasons` the judge first writes them, and gives its verdict in a second turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from rlaif.config import CompareStage
from rlaif.constitution import Asked, Constitution, Principle
from rlaif.engines.asking import Asker, together
from rlaif.judges.fences import fence_mark
from rlaif.judges.rating import FILTERED, LEAST_MASS, first_readable, numbered, probabilities
from rlaif.judges.replies import read_choice, unusable
from rlaif.records import (
    Candidate,
    Choice,
    Comparison,
    Completion,
    Message,
    Prompt,
    Row,
    Verdict,
    hashed_order,
    preferred,
    writable,
)
from rlaif.templates import Template

OFFERED = {"principle", "prompt", "completions", "reasons", "ending", "mark", "n"}
REQUIRED = {"principle", "prompt", "completions"}  # and `ending`, unless it is asked in a second turn


class Comparer(NamedTuple):
    """The constitution that completions are compared under, and the judge prompt's template."""

    constitution: Constitution
    template: Template

    def digests(self) -> dict[str, str]:
        """The digests of both, by their names in a manifest."""
        name = f"constitution {self.constitution.name}"
        return {name: self.constitution.digest, "comparison template": self.template.digest}


NUMBERS = ("1", "2")
REASONS = "(the reasons)"  # where some are to stand that nobody has written
SOFT_VERDICT_TOKENS = 2  # the number, whose probability is read, and the end
VERDICT_TOKENS = 16  # of a hard verdict: a number and the words around it


def pairs_to_compare(prompt: Prompt, candidates: Sequence[Candidate], which: str) -> list[tuple[int, int]]:
    """The pairs of candidates to compare, complete and of different texts: `one` drawn by hash, or `all`."""
    by_text: dict[str, int] = {}
    for index, candidate in enumerate(candidates):
        if candidate.completion.finish_reason == "stop" and candidate.completion.text.strip():
            by_text.setdefault(candidate.completion.text, index)
    indices = list(by_text.values())
    if which == "one":
        order = hashed_order([candidates[i].completion.call for i in indices], "compare", prompt.id)
        indices = sorted(indices[position] for position in order[:2])
    return list(combinations(indices, 2))


class _Judge(NamedTuple):
    """One judge of a stage, with what the stage compares by."""

    asker: Asker
    stage: CompareStage
    comparer: Comparer


async def compare(row: Row, stage: CompareStage, comparer: Comparer, askers: Sequence[Asker]) -> Row:
    """`row` with comparisons of its candidates; none where no two differ. Raises EngineError.

    `askers` are the stage's judges, in its order. All pairs of a prompt are compared under the same principle.
    """
    principle = comparer.constitution.draw("compare", row.prompt.id, request="comparison")
    judges = [_Judge(asker.under(principle.id), stage, comparer) for asker in askers]
    pairs = pairs_to_compare(row.prompt, row.candidates, stage.pairs)
    compared = await together(*(_both_orders(row, pair, principle, judge) for pair in pairs for judge in judges))
    if stage.jury is not None:
        size, weights = len(judges), [stage.weights.get(name, 1.0) for name in stage.judges]
        compared = [
            Comparison.of_jury(compared[start : start + size], weights, majority=stage.combine == "majority")
            for start in range(0, len(compared), size)
        ]
    return row.model_copy(update={"comparisons": tuple(compared)})


async def _both_orders(row: Row, pair: tuple[int, int], principle: Principle, judge: _Judge) -> Comparison:
    a, b = pair
    forward, backward = await together(*(_ask(row, order, principle, judge) for order in ((a, b), (b, a))))
    return Comparison.merge(forward, backward, principle=principle.id, judge=judge.asker.model)


async def _ask(row: Row, order: tuple[int, int], principle: Principle, judge: _Judge) -> Verdict:
    """The first readable verdict of the first reply and the re-asks; the first one when none is readable.

    First-token probabilities do not depend on a seed, so soft verdicts without reasons are not re-asked.
    """
    stage = judge.stage
    messages = comparison_prompt(row, order, principle, stage, judge.comparer)
    if stage.verdicts == "soft" and not stage.reasons:
        return await _ask_once(order, messages, judge, 0)

    async def once(asker: Asker, attempt: int) -> Verdict:
        return await _ask_once(order, messages, judge._replace(asker=asker), attempt)

    return await first_readable(once, judge.asker, stage.reask + 1)


async def _ask_once(order: tuple[int, int], messages: Sequence[Message], judge: _Judge, attempt: int) -> Verdict:
    """One verdict, the mean of several votes where the stage has them."""
    stage, asker = judge.stage, judge.asker
    if not stage.reasons:
        replies = await _short(asker, stage).several(messages, stage.votes, attempt=attempt)
        return _of_votes([_read(order, reply, None, stage) for reply in replies])
    chains = await asker.several(messages, stage.votes, attempt=attempt)
    return _of_votes(await together(*(_conclude(order, messages, chain, judge, attempt) for chain in chains)))


async def _conclude(
    order: tuple[int, int], messages: Sequence[Message], reasons: Completion, judge: _Judge, attempt: int
) -> Verdict:
    """The verdict after the judge's own reasons, asked for in a second turn."""
    if problem := unusable("reasons", reasons):
        raw, (a, b) = writable(reasons.text), order
        return Verdict(a=a, b=b, verdict=None, raw=raw, problem=problem, calls=(reasons.call,))
    second_turn = (
        *messages,
        Message(role="assistant", content=reasons.text),
        Message(role="user", content=judge.stage.ending),
    )
    reply = await _short(judge.asker, judge.stage).one(second_turn, attempt=attempt)
    return _read(order, reply, reasons, judge.stage)


def _short(asker: Asker, stage: CompareStage) -> Asker:
    """The asker of a verdict: few tokens, and for a soft one the first token's probabilities.

    A verdict by `names` may end an explanation, and has all the stage's tokens.
    """
    soft = stage.verdicts == "soft"
    most = SOFT_VERDICT_TOKENS if soft else VERDICT_TOKENS if stage.names is None else asker.sampling.max_tokens
    return asker.sampled(max_tokens=min(asker.sampling.max_tokens, most), alternatives=NUMBERS if soft else ())


def _read(order: tuple[int, int], reply: Completion, reasons: Completion | None, stage: CompareStage) -> Verdict:
    choice: Choice | None
    if stage.verdicts == "soft":
        probability, problem = read_probability(reply.alternatives)
        if probability is not None and stage.clamp is not None:
            probability = min(max(probability, stage.clamp[0]), stage.clamp[1])
        choice = None if probability is None else preferred(probability)
    else:
        probability = None
        offered = (*(stage.names or NUMBERS), "tie")
        choice, problem = read_choice(reply.text, offered, cut=reply.finish_reason == "length")
    if problem is not None and reply.finish_reason == "content_filter":
        problem = f"the reply was {FILTERED}"
    return Verdict(
        a=order[0],
        b=order[1],
        verdict=choice,
        probability=probability,
        raw=writable(reply.text),
        reasons=None if reasons is None else writable(reasons.text),
        problem=problem,
        calls=tuple(c.call for c in (reasons, reply) if c is not None),
    )


def _of_votes(votes: Sequence[Verdict]) -> Verdict:
    """Self-consistency (arXiv 2203.11171): the mean of the readable votes, if most are readable."""
    first = votes[0]
    if len(votes) == 1:
        return first
    likelihoods = [vote.likelihood for vote in votes if vote.likelihood is not None]
    known = 2 * len(likelihoods) > len(votes)
    probability = round(sum(likelihoods) / len(likelihoods), 9) if known else None
    reasons = [vote.reasons for vote in votes if vote.reasons is not None]
    return Verdict(
        a=first.a,
        b=first.b,
        verdict=None if probability is None else preferred(probability),
        probability=probability,
        raw="\n".join(vote.raw for vote in votes),
        reasons="\n\n".join(reasons) if reasons else None,
        problem=None if known else f"{len(votes) - len(likelihoods)} of {len(votes)} votes unparsed: {_problem(votes)}",
        calls=tuple(call for vote in votes for call in vote.calls),
    )


def _problem(votes: Sequence[Verdict]) -> str:
    return next(vote.problem for vote in votes if vote.problem is not None)


def comparison_prompt(
    row: Row, order: tuple[int, int], principle: Principle, stage: CompareStage, comparer: Comparer
) -> tuple[Message, ...]:
    """The judge prompt for one order. Without `reasons` it ends with the request for the verdict."""
    shown = [row.candidates[i].completion.text for i in order]
    rendered = comparer.template.render_showing(
        {"the prompt": row.prompt.text, "the principle's comparison": principle.comparison, **numbered(shown)},
        principle=principle,
        prompt=row.prompt.text,
        completions=shown,
        reasons=stage.reasons,
        ending=stage.ending,
        mark=fence_mark(row.prompt.text, *sorted(shown)),
        n=len(shown),
    )
    return (*comparer.constitution.before("comparison"), Message(role="user", content=rendered))


def asked(row: Row, principle: Principle, stage: CompareStage, comparer: Comparer) -> Iterator[Asked]:
    """The prompt for a comparison of the row's first two candidates, with the second turn after reasons."""
    messages = comparison_prompt(row, (0, 1), principle, stage, comparer)
    if stage.reasons:
        reasons = Message(role="assistant", content=REASONS)
        messages = (*messages, reasons, Message(role="user", content=stage.ending))
    yield Asked("comparison", messages)


def read_probability(alternatives: dict[str, float | None] | None) -> tuple[float | None, str | None]:
    """The probability of the first candidate, from the log-probabilities of the two numbers; or the problem.

    A number missing from a server's top log-probs counts as 0: its probability is below every listed one.
    """
    known, problem = probabilities(alternatives)
    first, second = (known.get(number, 0.0) for number in NUMBERS)
    mass = first + second
    if problem is not None:
        return None, problem
    if not known:
        return None, "the engine gave no probability of either number"
    if mass < LEAST_MASS:
        return None, f"only {mass:.0%} of the first token's probability is on the numbers"
    return round(first / mass, 9), None
