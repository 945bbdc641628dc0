"""Rating: one judge prompt per aspect that shows all candidates of a prompt, and the reading of its reply.

Follows UltraFeedback (arXiv 2310.01377, section 2) in showing the candidates together; departs from it in that the
order is drawn by hash, every rating is bound to its candidate by an explicit number, identical texts are shown once,
and a reply that cannot be read is asked again a bounded number of times and is then *unparsed*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rlaif.config import Rater, SamplingSettings
from rlaif.engines.scheduler import Sampler, together
from rlaif.judges.replies import read_reply
from rlaif.records import (
    Candidate,
    Completion,
    Message,
    Prompt,
    Rating,
    Row,
    digest,
    hashed_order,
    writable,
)
from rlaif.rubric import Aspect, Rubric
from rlaif.templates import Template

OFFERED = {"aspect", "scale", "prompt", "completions", "mark", "n"}
REQUIRED = {"aspect", "prompt", "completions"}
REASK_TEMPERATURE = 0.7  # at temperature 0 another seed changes nothing, and the same words would be paid for twice


class Judge(NamedTuple):
    """What a judge rates by, and how it is asked."""

    rubric: Rubric
    template: Template


class Question(NamedTuple):
    """One judge prompt. `slots[k]` are the indices of the candidates whose text stands at number k + 1."""

    messages: tuple[Message, ...]
    slots: tuple[tuple[int, ...], ...]
    json_schema: dict[str, Any] | None


def question(
    prompt: Prompt, candidates: Sequence[Candidate], aspect: Aspect, rubric: Rubric, template: Template, answers: str
) -> Question | None:
    """The judge prompt for one aspect, or None when no candidate has any text to judge."""
    by_text: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        if candidate.completion.text.strip():
            by_text.setdefault(candidate.completion.text, []).append(index)
    if not by_text:
        return None
    texts = list(by_text)
    order = hashed_order(texts, "rate", prompt.id, aspect.id)
    shown = [texts[i] for i in order]
    rendered = template.render_showing(
        {"the prompt": prompt.text, "the aspect": aspect.description, **numbered(shown)},
        aspect=aspect,
        scale=rubric.scale,
        prompt=prompt.text,
        completions=shown,
        mark=digest([prompt.text, *shown], length=12),  # a fence that the text inside cannot know
        n=len(shown),
    )
    schema = _schema(len(shown), rubric) if answers == "json" else None
    return Question((Message(role="user", content=rendered),), tuple(tuple(by_text[t]) for t in shown), schema)


def numbered(texts: Sequence[str]) -> dict[str, str]:
    """Completions by what an error calls them."""
    return {f"completion {number}": text for number, text in enumerate(texts, 1)}


def _schema(n: int, rubric: Rubric) -> dict[str, Any]:
    one = {
        "type": "object",
        "properties": {
            "rationale": {"type": "string"},
            "rating": {"type": "integer", "minimum": rubric.scale.low, "maximum": rubric.scale.high},
        },
        "required": ["rationale", "rating"],
        "additionalProperties": False,
    }
    numbers = [str(k + 1) for k in range(n)]
    return {
        "type": "object",
        "properties": dict.fromkeys(numbers, one),
        "required": numbers,
        "additionalProperties": False,
    }


async def rate(
    row: Row, rater: Rater, rubric: Rubric, template: Template, model: SamplingSettings, scheduler: Sampler, seed: int
) -> Row:
    """`row` with a rating of every candidate under every aspect. Raises EngineError."""
    groups = await together(
        *(
            rate_aspect(row.prompt, row.candidates, rater, rubric, aspect, template, model, scheduler, seed)
            for aspect in rubric.aspects
        )
    )
    return row.model_copy(update={"ratings": tuple(rating for group in groups for rating in group)})


async def rate_aspect(
    prompt: Prompt,
    candidates: Sequence[Candidate],
    rater: Rater,
    rubric: Rubric,
    aspect: Aspect,
    template: Template,
    model: SamplingSettings,
    scheduler: Sampler,
    seed: int,
) -> list[Rating]:
    """One aspect's ratings in the order of the candidates.

    A re-ask is with another seed and warm enough to be answered otherwise. Of several replies the first with the most
    readable ratings counts as a whole: numbers from two replies would be two judgements.
    """
    asked = question(prompt, candidates, aspect, rubric, template, rater.answers)
    sampling = rater.sampling.resolved(seed, model)
    ratings: list[Rating] = []
    for attempt in range(rater.reask + 1 if asked else 0):
        assert asked is not None
        if attempt == 1:
            sampling = sampling.model_copy(update={"temperature": max(sampling.temperature, REASK_TEMPERATURE)})
        reply = (
            await scheduler.sample(
                rater.model, asked.messages, sampling, attempt=attempt, json_schema=asked.json_schema
            )
        )[0]
        found = _bound(reply, asked, aspect, rubric, rater)
        if not ratings or _readable(found) > _readable(ratings):
            ratings = found
        if _readable(ratings) == len(ratings):
            break
    shown = {rating.candidate for rating in ratings}
    ratings += [
        Rating(
            aspect=aspect.id,
            candidate=i,
            value=None,
            raw="",
            problem="empty completion",
            judge=rater.model,
            call="",
            position=0,
        )
        for i in range(len(candidates))
        if i not in shown
    ]
    return sorted(ratings, key=lambda rating: rating.candidate)


def _bound(reply: Completion, asked: Question, aspect: Aspect, rubric: Rubric, rater: Rater) -> list[Rating]:
    """The ratings of one reply, each bound to the candidates whose text stood at its number."""
    cut = reply.finish_reason == "length"
    readings = read_reply(reply.text, len(asked.slots), rubric.scale.low, rubric.scale.high, rater.answers, cut=cut)
    return [
        Rating(
            aspect=aspect.id,
            candidate=candidate,
            value=reading.value,
            raw=writable(reading.raw),
            problem="the reply was cut at max_tokens" if reading.problem and cut else reading.problem,
            judge=rater.model,
            call=reply.call,
            position=position,
        )
        for position, (slot, reading) in enumerate(zip(asked.slots, readings, strict=True), start=1)
        for candidate in slot
    ]


def _readable(ratings: Sequence[Rating]) -> int:
    return sum(rating.value is not None for rating in ratings)
