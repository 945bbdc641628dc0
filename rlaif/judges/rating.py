"""Rating: one judge prompt per aspect that shows all candidates of a prompt, or one at a time, and what its reply says.

Follows UltraFeedback (arXiv 2310.01377, section 2) in showing the candidates together; departs from it in that the
order is drawn by hash, every rating is bound to its candidate by an explicit number, identical texts are shown once,
and a reply that cannot be read is asked again a bounded number of times and is then *unparsed*.

`answers: expected` asks for no reply: it reads how likely each number of the scale is as the first token and scores by
the mean, as d-RLAIF does (arXiv 2309.00267, direct scoring), here left on the rubric's own scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rlaif.config import Rater
from rlaif.engines.asking import Asker, together
from rlaif.judges.replies import Reading, read_reply, read_score
from rlaif.records import (
    Candidate,
    Completion,
    Message,
    Prompt,
    Rating,
    Row,
    Score,
    digest,
    hashed_order,
    writable,
)
from rlaif.rubric import Aspect, Rubric
from rlaif.templates import Template

OFFERED = {"aspect", "scale", "prompt", "knowledge", "completions", "mark", "n"}
REQUIRED = {"aspect", "prompt", "completions"}
LEAST_MASS = 0.5  # of the first token; where the numbers hold less, the judge was about to say something else
SCORE_TOKENS = 2  # the number, whose probability is what counts, and the end
EMPTY = "empty completion"
REASK_TEMPERATURE = 0.7  # at temperature 0 another seed changes nothing, and the same words would be paid for twice


class Judge(NamedTuple):
    """What a judge rates by, and how it is asked."""

    rubric: Rubric
    template: Template


class RatingPrompt(NamedTuple):
    """One judge prompt. `slots[k]` are the indices of the candidates whose text stands at number k + 1."""

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
    """The judge prompts for one aspect: one of all candidates or one of each, none where none has any text to judge.

    `reverse` shows them in the reverse of the order that is drawn for them.
    """
    by_text: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        if candidate.completion.text.strip():
            by_text.setdefault(candidate.completion.text, []).append(index)
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
        mark=digest([prompt.text, *shown, *known], length=12),  # a fence that the text inside cannot know
        n=len(shown),
    )


def numbered(texts: Sequence[str]) -> dict[str, str]:
    """Completions by what an error calls them."""
    return {f"completion {number}": text for number, text in enumerate(texts, 1)}


def _schema(n: int, aspect: Aspect, rubric: Rubric) -> dict[str, Any]:
    rating: dict[str, Any] = {"type": "integer", "minimum": rubric.scale.low, "maximum": rubric.scale.high}
    if aspect.na:
        rating = {"anyOf": [rating, {"type": "string", "enum": ["N/A"]}]}
    types = {"types": {"type": "array", "items": {"type": "string", "enum": list(aspect.types)}}}
    properties = {"rationale": {"type": "string"}, **(types if aspect.types else {}), "rating": rating}
    one = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    numbers = [str(k + 1) for k in range(n)]
    return {
        "type": "object",
        "properties": dict.fromkeys(numbers, one),
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


Reader = Callable[[str, int, Aspect, Rubric, bool], list[Reading]]  # text, completions shown, ..., whether it was cut


class Answers(NamedTuple):
    """One way for a judge to answer (`answers:`): the schema it is held to, and how a reply is read."""

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
    """`row` with a rating of every candidate under every aspect, after those it has; or with a score of each.

    `reverse` shows the candidates in the reverse of the order that is drawn. Raises EngineError.
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
    answered = await together(*(_answered(question, aspect, rater, judge.rubric, asker) for question in prompts))
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


async def _answered(question: RatingPrompt, aspect: Aspect, rater: Rater, rubric: Rubric, asker: Asker) -> list[Rating]:
    """The ratings of one judge prompt.

    A re-ask is with another seed and warm enough to be answered otherwise. Of several replies the first with the most
    readable ratings counts as a whole: numbers from two replies would be two judgements.
    """
    ratings: list[Rating] = []
    for attempt in range(rater.reask + 1):
        reply = await warmed(asker, attempt).one(question.messages, attempt=attempt, json_schema=question.json_schema)
        read = _bound(reply, question, aspect, rubric, rater)
        if not ratings or _readable(read) > _readable(ratings):
            ratings = read
        if _readable(ratings) == len(ratings):
            break
    return ratings


def warmed(asker: Asker, attempt: int) -> Asker:
    """The asker of a re-ask: at temperature 0 another seed changes nothing, and the same words would be paid for."""
    return asker.sampled(temperature=max(asker.sampling.temperature, REASK_TEMPERATURE)) if attempt else asker


def _bound(reply: Completion, question: RatingPrompt, aspect: Aspect, rubric: Rubric, rater: Rater) -> list[Rating]:
    """The ratings of one reply, each bound to the candidates whose text stood at its number."""
    cut = reply.finish_reason == "length"
    readings = ANSWERS[rater.answers].read(reply.text, len(question.slots), aspect, rubric, cut)
    return [
        Rating(
            aspect=aspect.id,
            candidate=candidate,
            value=reading.value,
            na=reading.na,
            types=reading.types,
            raw=writable(reading.raw),
            problem="the reply was cut at max_tokens" if reading.problem and cut else reading.problem,
            judge=rater.model,
            call=reply.call,
            position=position,
        )
        for position, (slot, reading) in enumerate(zip(question.slots, readings, strict=True), start=1)
        for candidate in slot
    ]


def _readable(ratings: Sequence[Rating]) -> int:
    return sum(rating.problem is None for rating in ratings)


# ---------------------------------------------------------------- expected scores


async def score_aspect(row: Row, aspect: Aspect, rater: Rater, judge: Judge, asker: Asker) -> list[Score]:
    """One aspect's expected scores in the order of the candidates. First-token probabilities are not asked for twice:
    they depend on no seed. Raises EngineError."""
    prompts = rating_prompts(row.prompt, row.candidates, aspect, judge, rater)
    expecting = expecting_of(asker, judge.rubric)
    replies = await together(*(expecting.one(question.messages) for question in prompts))
    of_candidate = {
        i: reply for question, reply in zip(prompts, replies, strict=True) for slot in question.slots for i in slot
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
    """How an expected score is asked for: the first token, and how likely it is to be each number of the scale."""
    numbers = tuple(map(str, range(rubric.scale.low, rubric.scale.high + 1)))
    return asker.sampled(max_tokens=min(asker.sampling.max_tokens, SCORE_TOKENS), alternatives=numbers)


def read_expectation(alternatives: Mapping[str, float | None] | None) -> tuple[float | None, str | None]:
    """The mean of the numbers, each weighed by its probability, from their log-probabilities; or the problem.

    s = sum_i i * P(i), P made to add up to one over the numbers (arXiv 2309.00267, direct scoring). A number below the
    end of a server's list counts as impossible; what it could add is less than anything listed.
    """
    known = {int(number): math.exp(value) for number, value in (alternatives or {}).items() if value is not None}
    mass = math.fsum(known.values())
    if not known:
        return None, "the engine gave no probability of any number"
    if mass < LEAST_MASS:
        return None, f"only {mass:.0%} of the first token's probability is on the numbers"
    return round(math.fsum(number * p for number, p in known.items()) / mass, 9), None
