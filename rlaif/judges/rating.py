"""Rating: one judge prompt per aspect, for all candidates of a prompt or for each one, and its reply read as ratings.

Follows UltraFeedback (arXiv 2310.01377, section 2) in showing the candidates together. Unlike it, the order is drawn by
hash, every rating is bound to its candidate by an explicit number, identical texts are shown once, and an unreadable
reply is re-asked a bounded number of times and then *unparsed*.

`answers: expected` reads no text: the score is the mean over the scale's numbers by their first-token probabilities, as
in d-RLAIF (arXiv 2309.00267, direct scoring), but kept on the rubric's own scale.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from rlaif.config import Rater
from rlaif.engines.asking import Asker, Declined, attempts, together
from rlaif.judges.fences import fence_mark
from rlaif.judges.replies import Reading, read_reply, read_score
from rlaif.records import (
    Candidate,
    Completion,
    Message,
    Prompt,
    Ranking,
    Rating,
    Row,
    Score,
    Verdict,
    hashed_order,
    logprob_problem,
    writable,
)
from rlaif.rubric import Aspect, Rubric
from rlaif.templates import Template

OFFERED = {"aspect", "scale", "prompt", "knowledge", "completions", "mark", "n"}
REQUIRED = {"aspect", "prompt", "completions"}
LEAST_MASS = 0.5  # first-token probability that the numbers must hold together; below, the reply is unparsed
SCORE_TOKENS = 2  # the number, whose probability is read, and the end
NO_CHANCE = -1000.0  # a log-probability: its exponential is 0, as that of any below
EMPTY = "empty completion"
FILTERED = "stopped by a content filter"  # and would be again: it is not re-asked
REASK_TEMPERATURE = 0.7  # at least: at temperature 0 another seed would give the same reply


Judged = TypeVar("Judged", Verdict, Ranking)


class Judge(NamedTuple):
    """A judge's rubric and prompt template."""

    rubric: Rubric
    template: Template

    def digests(self) -> dict[str, str]:
        """The digests of both, by their names in a manifest."""
        return {f"rubric {self.rubric.name}": self.rubric.digest, "rating template": self.template.digest}


class RatingPrompt(NamedTuple):
    """One judge prompt. `slots[k]` are the indices of the candidates whose text is number k + 1."""

    messages: tuple[Message, ...]
    slots: tuple[tuple[int, ...], ...]
    json_schema: dict[str, Any] | None


def rating_prompts(
    prompt: Prompt,
    candidates: Sequence[Candidate],
    aspect: Aspect,
    judge: Judge,
    rater: Rater,
    *,
    reverse: bool = False,
) -> list[RatingPrompt]:
    """The judge prompts for one aspect: one for all candidates or one for each; none when all are empty.

    `reverse` reverses the order that is drawn for them.
    """
    by_text = indices_by_text(candidates)
    if not by_text:
        return []
    texts = list(by_text)
    shown = [texts[i] for i in hashed_order(texts, "rate", prompt.id, aspect.id)][:: -1 if reverse else 1]
    groups = [shown] if rater.shown == "all" else [[text] for text in shown]
    return [
        RatingPrompt(
            (Message(role="user", content=_rendered(prompt, group, aspect, judge)),),
            tuple(tuple(by_text[text]) for text in group),
            ANSWERS[rater.answers].schema(len(group), aspect, judge.rubric),
        )
        for group in groups
    ]


def indices_by_text(candidates: Sequence[Candidate]) -> dict[str, list[int]]:
    """The candidates that are not empty, by text in order of appearance."""
    by_text: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        if candidate.completion.text.strip():
            by_text.setdefault(candidate.completion.text, []).append(index)
    return by_text


def _rendered(prompt: Prompt, shown: Sequence[str], aspect: Aspect, judge: Judge) -> str:
    known = prompt.reference if aspect.knowledge else ()
    must_show = {"the prompt": prompt.text, "the aspect": aspect.description, **numbered(shown)}
    must_show |= {f"what the type {code} means": meaning for code, meaning in aspect.types.items()}
    must_show |= {f"the true answer {number}": text for number, text in enumerate(known, 1)}
    if aspect.na:
        must_show["that a rating may be N/A"] = "N/A"
    return judge.template.render_showing(
        must_show,
        aspect=aspect,
        scale=judge.rubric.scale,
        prompt=prompt.text,
        knowledge=known,
        completions=shown,
        mark=fence_mark(prompt.text, *shown, *known),
        n=len(shown),
    )


def numbered(texts: Sequence[str]) -> dict[str, str]:
    """Completions by their names in errors."""
    return {f"completion {number}": text for number, text in enumerate(texts, 1)}


def _schema(n: int, aspect: Aspect, rubric: Rubric) -> dict[str, Any]:
    rating: dict[str, Any] = {"type": "integer", "minimum": rubric.scale.low, "maximum": rubric.scale.high}
    if aspect.na:
        rating = {"anyOf": [rating, {"type": "string", "enum": ["N/A"]}]}
    types = {"types": {"type": "array", "items": {"type": "string", "enum": list(aspect.types)}}}
    properties = {"rationale": {"type": "string"}, **(types if aspect.types else {}), "rating": rating}
    item = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    numbers = [str(k + 1) for k in range(n)]
    return {
        "type": "object",
        "properties": dict.fromkeys(numbers, item),
        "required": numbers,
        "additionalProperties": False,
    }


# ---------------------------------------------------------------- ways to answer


def _no_schema(n: int, aspect: Aspect, rubric: Rubric) -> None:
    return None


def _read_ratings(answers: Literal["json", "lines"]) -> Reader:
    def read(text: str, n: int, aspect: Aspect, rubric: Rubric, cut: bool) -> list[Reading]:
        low, high = rubric.scale.low, rubric.scale.high
        return read_reply(text, n, low, high, answers, cut=cut, na=aspect.na, types=tuple(aspect.types))

    return read


def _read_overall(text: str, n: int, aspect: Aspect, rubric: Rubric, cut: bool) -> list[Reading]:
    return [read_score(text, rubric.scale.low, rubric.scale.high, cut=cut)]


def _read_nothing(text: str, n: int, aspect: Aspect, rubric: Rubric, cut: bool) -> list[Reading]:
    raise AssertionError("an expected score is read from probabilities")


Reader = Callable[
    [str, int, Aspect, Rubric, bool], list[Reading]
]  # text, completions shown, ..., whether it was truncated


class Answers(NamedTuple):
    """One way for a judge to answer (`answers:`): how a reply is read, and the JSON schema that constrains it."""

    read: Reader
    schema: Callable[[int, Aspect, Rubric], dict[str, Any] | None] = _no_schema


ANSWERS: dict[str, Answers] = {
    "json": Answers(_read_ratings("json"), _schema),
    "lines": Answers(_read_ratings("lines")),
    "score": Answers(_read_overall),
    "expected": Answers(_read_nothing),
}


# ---------------------------------------------------------------- rating


async def rate(row: Row, rater: Rater, judge: Judge, asker: Asker, *, reverse: bool = False) -> Row:
    """`row` with ratings, or expected scores, of every candidate under every aspect, after those it has.

    `reverse` reverses the order in which the candidates are shown. Raises EngineError.
    """
    aspects = judge.rubric.aspects
    if rater.basis == "scores":
        scored = await together(*(score_aspect(row, aspect, rater, judge, asker) for aspect in aspects))
        return row.model_copy(update={"scores": (*row.scores, *(score for group in scored for score in group))})
    rated = await together(*(rate_aspect(row, aspect, rater, judge, asker, reverse=reverse) for aspect in aspects))
    return row.model_copy(update={"ratings": (*row.ratings, *(rating for group in rated for rating in group))})


async def rate_aspect(
    row: Row, aspect: Aspect, rater: Rater, judge: Judge, asker: Asker, *, reverse: bool = False
) -> list[Rating]:
    """One aspect's ratings in the order of the candidates. Raises EngineError."""
    prompts = rating_prompts(row.prompt, row.candidates, aspect, judge, rater, reverse=reverse)
    answered = await together(
        *(_answered(judge_prompt, aspect, rater, judge.rubric, asker) for judge_prompt in prompts)
    )
    ratings = [rating for group in answered for rating in group]
    shown = {rating.candidate for rating in ratings}
    ratings += [
        Rating(
            aspect=aspect.id,
            candidate=i,
            value=None,
            raw="",
            problem=EMPTY,
            judge=rater.model,
            call="",
            position=0,
        )
        for i in range(len(row.candidates))
        if i not in shown
    ]
    return sorted(ratings, key=lambda rating: rating.candidate)


async def _answered(
    judge_prompt: RatingPrompt, aspect: Aspect, rater: Rater, rubric: Rubric, asker: Asker
) -> list[Rating]:
    """The ratings of one judge prompt: the first reply, of it and the re-asks, with the most readable ratings.

    Ratings of two replies are never mixed: they would be two judgements.
    """
    ratings: list[Rating] = []
    for attempt in attempts(rater.reask + 1):
        try:
            reply = await warmed(asker, attempt).one(
                judge_prompt.messages, attempt=attempt, json_schema=judge_prompt.json_schema
            )
        except Declined:
            break
        read = _bound(reply, judge_prompt, aspect, rubric, rater)
        if not ratings or _readable(read) > _readable(ratings):
            ratings = read
        if _readable(ratings) == len(ratings) or reply.finish_reason == "content_filter":
            break
    return ratings


def warmed(asker: Asker, attempt: int) -> Asker:
    """The asker of an attempt: a re-ask is warm enough for another reply."""
    return asker.sampled(temperature=max(asker.sampling.temperature, REASK_TEMPERATURE)) if attempt else asker


async def first_readable(once: Callable[[Asker, int], Awaitable[Judged]], asker: Asker, tries: int) -> Judged:
    """The first judgement of `tries`, and of `--retry-failed`, that can be read; the first one when none can.

    `once` asks for one, with the asker of that attempt. Raises EngineError.
    """
    first: Judged | None = None
    for attempt in attempts(tries):
        try:
            judgement = await once(warmed(asker, attempt), attempt)
        except Declined:
            break
        if judgement.problem is None:
            return judgement
        first = first or judgement
        if FILTERED in judgement.problem:
            break
    assert first is not None
    return first


def _bound(reply: Completion, judge_prompt: RatingPrompt, aspect: Aspect, rubric: Rubric, rater: Rater) -> list[Rating]:
    """The ratings of one reply, each bound to the candidates with the text of its number."""
    cut = reply.finish_reason == "length"
    readings = ANSWERS[rater.answers].read(reply.text, len(judge_prompt.slots), aspect, rubric, cut)
    return [
        Rating(
            aspect=aspect.id,
            candidate=candidate,
            value=reading.value,
            na=reading.na,
            types=reading.types,
            raw=writable(reading.raw),
            problem=_cause(reply) or reading.problem if reading.problem else None,
            judge=rater.model,
            call=reply.call,
            position=position,
        )
        for position, (slot, reading) in enumerate(zip(judge_prompt.slots, readings, strict=True), start=1)
        for candidate in slot
    ]


def _cause(reply: Completion) -> str | None:
    """Why a reply ended before its time, where it did."""
    causes = {"length": "the reply was cut at max_tokens", "content_filter": f"the reply was {FILTERED}"}
    return causes.get(reply.finish_reason)


def _readable(ratings: Sequence[Rating]) -> int:
    return sum(rating.problem is None for rating in ratings)


# ---------------------------------------------------------------- expected scores


async def score_aspect(row: Row, aspect: Aspect, rater: Rater, judge: Judge, asker: Asker) -> list[Score]:
    """One aspect's expected scores in the order of the candidates. Raises EngineError.

    There are no re-asks: first-token probabilities do not depend on a seed.
    """
    prompts = rating_prompts(row.prompt, row.candidates, aspect, judge, rater)
    expecting = expecting_of(asker, judge.rubric)
    replies = await together(*(expecting.one(judge_prompt.messages) for judge_prompt in prompts))
    of_candidate = {
        i: reply
        for judge_prompt, reply in zip(prompts, replies, strict=True)
        for slot in judge_prompt.slots
        for i in slot
    }

    def score(candidate: int) -> Score:
        reply = of_candidate.get(candidate)
        value, problem = read_expectation(reply.alternatives) if reply else (None, EMPTY)
        calls = (reply.call,) if reply else ()
        return Score(
            candidate=candidate, value=value, judge=rater.model, aspect=aspect.id, problem=problem, calls=calls
        )

    return [score(i) for i in range(len(row.candidates))]


def expecting_of(asker: Asker, rubric: Rubric) -> Asker:
    """The asker of an expected score: the first token's probability of each number of the scale."""
    numbers = tuple(map(str, range(rubric.scale.low, rubric.scale.high + 1)))
    return asker.sampled(max_tokens=min(asker.sampling.max_tokens, SCORE_TOKENS), alternatives=numbers)


def read_expectation(alternatives: Mapping[str, float | None] | None) -> tuple[float | None, str | None]:
    """The expected number, from the numbers' log-probabilities; or the problem.

    s = sum_i i * P(i), with P normalised over the numbers (arXiv 2309.00267, direct scoring). A number missing from a
    server's top log-probs counts as 0: its probability is below every listed one.
    """
    known, problem = probabilities(alternatives)
    mass = math.fsum(known.values())
    if problem is not None:
        return None, problem
    if not known:
        return None, "the engine gave no probability of any number"
    if mass < LEAST_MASS:
        return None, f"only {mass:.0%} of the first token's probability is on the numbers"
    return round(math.fsum(int(number) * p for number, p in known.items()) / mass, 9), None


def probabilities(alternatives: Mapping[str, float | None] | None) -> tuple[dict[str, float], str | None]:
    """The probability of each name whose log-probability is known; and what is wrong with one of them."""
    known = {name: value for name, value in (alternatives or {}).items() if value is not None}
    if problem := next(filter(None, map(logprob_problem, known.values())), None):
        return {}, f"the engine gave {problem}"
    return {name: math.exp(max(value, NO_CHANCE)) for name, value in known.items()}, None
