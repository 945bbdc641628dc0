"""`rlaif try`: a typed prompt and principle, given to the embedded models."""

from __future__ import annotations

import difflib

from rlaif.config import ModelSpec, Rater, ReviseStage, SamplingSettings, TransformersModel
from rlaif.constitution import Constitution, Principle
from rlaif.engines.asking import Asking
from rlaif.errors import InputError
from rlaif.formats import read_prompts
from rlaif.generate.revising import Reviser, revise
from rlaif.judges.rating import Judge, rate
from rlaif.records import Candidate, Message, Prompt, Row
from rlaif.resources import find
from rlaif.rubric import Aspect, Rubric, Scale
from rlaif.templates import Template
from rlaif.tiny.gold import is_question
from rlaif.tiny.lexicon import Lexicon, listed

POLICIES, ANNOTATOR = ("weak", "strong"), "annotator"
EACH = 2  # completions by each policy
LONGEST = 300  # characters of a principle
GREEDY = {"temperature": 0, "max_tokens": 192}


def understood(prompt: str, principle: str) -> tuple[str, list[str]]:
    """The quality that the annotator reads in a principle, and the words that it ignores.

    Raises InputError when the prompt is not from the embedded models' world, or the principle is not in their
    vocabulary.
    """
    shown = repr(prompt if len(prompt) <= 120 else prompt[:117] + "...")
    if "\n" in prompt or not is_question(prompt):
        raise InputError(
            f"the embedded models know only their own small world, and {shown} is not a question of it",
            key="PROMPT",
            fix="ask in one line and in its vocabulary, for example " + " or ".join(map(repr, _nearest(prompt))),
        )
    if len(principle) > LONGEST:
        raise InputError(f"the principle has {len(principle):,} characters", key="PRINCIPLE", fix="write one sentence")
    folder = find(f"tiny/{ANNOTATOR}")
    if (lexicon := Lexicon.read(folder)) is None:
        raise InputError("the annotator here has no lexicon", file=str(folder), fix="rename the folder, or rebuild it")
    if strangers := lexicon.unknown(prompt):
        raise InputError(
            f"the models were not trained on {listed(strangers)}", key="PROMPT", fix=f"ask {_nearest(prompt)[0]!r}"
        )
    if wrong := lexicon.problem(principle):
        raise InputError(wrong[0], key="PRINCIPLE", fix=wrong[1])
    return next(iter(lexicon.named(principle))), lexicon.unknown(principle)


def _nearest(prompt: str) -> list[str]:
    """The harmless questions of the world that are most similar to a text."""
    known = [
        item.text
        for item in read_prompts(find("tiny/prompts.jsonl")).items
        if len(item.messages) == 1 and item.source != "how"
    ]
    return difflib.get_close_matches(prompt[:LONGEST], known, n=3, cutoff=0.0)


MODELS: dict[str, ModelSpec] = {
    name: TransformersModel(engine="transformers", path=f"tiny/{name}", sampling=SamplingSettings(max_tokens=48))
    for name in (*POLICIES, ANNOTATOR)
}


async def put(prompt: str, principle: str, asking: Asking) -> Row:
    """Completions by both policies, each rated, critiqued and revised under the principle.

    `asking` is for the models of `MODELS`. Raises EngineError.
    """
    typed = Prompt(messages=(Message(role="user", content=prompt),))
    samplers = [asking.asker(name, SamplingSettings()) for name in POLICIES]
    sampled = [await sampler.several(typed.messages, EACH) for sampler in samplers]
    candidates = [Candidate(sampler=c.model, completion=c) for completions in sampled for c in completions]
    row = Row(prompt=typed, candidates=tuple(candidates))
    rubric = Rubric(
        name="typed", version=1, scale=Scale(low=1, high=5), aspects=(Aspect(id="typed", description=principle),)
    )
    rater = Rater.model_validate(
        {"model": ANNOTATOR, "rubric": "typed", "answers": "lines", "reask": 0, "sampling": GREEDY}
    )
    annotator = asking.asker(ANNOTATOR, rater.sampling)
    row = await rate(row, rater, Judge(rubric, Template.read(find("prompts/rate-compact.jinja"))), annotator)
    rule = Principle(id="typed", rule=principle, critique=principle, revision=principle, comparison=principle)
    critique, revision = (Template.read(find(f"prompts/{name}-compact.jinja")) for name in ("critique", "revise"))
    reviser = Reviser(Constitution(name="typed", principles=(rule,)), critique, revision)
    stage = ReviseStage.model_validate({"model": ANNOTATOR, "constitution": "typed", "sampling": GREEDY})
    return await revise(row, stage, reviser, asking)
