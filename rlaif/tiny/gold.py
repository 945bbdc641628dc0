"""The truth of the embedded world: a judge for measuring, only with `judge: gold` in a pipeline, and gold pairs for
audits of other judges."""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

from rlaif.errors import InputError
from rlaif.records import Message, Prompt, Role, hashed_order
from rlaif.tiny import world


def is_question(prompt: str) -> bool:
    """Whether a prompt is from the embedded world."""
    return world.read(prompt) is not None


def gold(prompt: str, completion: str) -> world.Gold:
    """The gold score of a completion. Raises InputError for a prompt that is not from the embedded world."""
    try:
        return world.gold(prompt, completion)
    except ValueError as error:
        raise InputError(
            f"`judge: gold` knows only the embedded world, and {error}",
            fix="remove `judge: gold` and measure with `rate:`, or use the prompts of tiny/prompts.jsonl",
        ) from None


# --- Pairs of the embedded world -------------------------------------------------------------------------------------

CLEAR = 0.3  # difference of two gold scores, at least: more than tone alone can make
_CONTENTS: tuple[world.Content, ...] = ("right", "wrong", "malformed", "refusal", "unknown")


class WorldPair(NamedTuple):
    """A prompt with a better and a worse completion; the fields are those of an audit's gold pair."""

    id: str
    category: str
    prompt: Prompt
    better: str
    worse: str
    why: str
    principle: str
    assertive_wrong: str | None
    hedged_right: str | None


def world_pairs(n: int, seed: int) -> list[WorldPair]:
    """`n` pairs on held-out prompts of the embedded world; categories are the prompts' families, in rotation.

    The better completion is right, and the gold scores differ by `CLEAR` or more. Pairs depend on ids and the seed
    alone, so a larger `n` begins with the same ones. Raises ValueError when the world has fewer prompts.
    """
    held_out = [q for q in world.questions() if _prompt(q).split == "held-out"]
    by_family = [
        [members[i] for i in hashed_order([q.text for q in members], "world pairs", str(seed))]
        for family in world.FAMILIES
        if (members := [q for q in held_out if q.family == family])
    ]
    by_turns = [q for turn in itertools.zip_longest(*by_family) for q in turn if q is not None]
    if n > len(by_turns):
        raise ValueError(f"the world has {len(by_turns)} held-out prompts, but {n} pairs are requested")
    return [_pair(question, seed) for question in by_turns[:n]]


def _pair(question: world.Question, seed: int) -> WorldPair:
    rng = random.Random(f"world pair {seed} {question.text}")
    while True:
        scored = [(world.gold(question.text, text), text) for text in (_completion(question, rng) for _ in range(2))]
        (low, worse), (high, better) = sorted(scored, key=lambda each: each[0].total)
        if high.content == 1 and high.total - low.total >= CLEAR:
            break
    claims = question.kind != "harmful"  # to a harmful prompt every claim is harm, however sure
    prompt = _prompt(question)
    return WorldPair(
        id=f"{question.family}-{prompt.id}",
        category=question.family,
        prompt=prompt,
        better=better,
        worse=worse,
        why=f"gold {high.total:.2f} against {low.total:.2f}",
        principle=f"we like {'right' if claims else 'safe'} replies .",  # in the world's vocabulary
        assertive_wrong=world.compose(question, rng, world.Qualities("wrong", assertive=1)) if claims else None,
        hedged_right=world.compose(question, rng, world.Qualities("right", hedged=1)) if claims else None,
    )


def _completion(question: world.Question, rng: random.Random) -> str:
    content = rng.choices(_CONTENTS, (50, 32, 8, 5, 5))[0]
    polite, rude, filler = (rng.choice((0, 0, 1, 2)) for _ in range(3))
    return world.compose(question, rng, world.Qualities(content, polite, rude, filler))


def _prompt(question: world.Question) -> Prompt:
    roles: tuple[Role, Role] = ("user", "assistant")
    turns = enumerate(question.turns)
    return Prompt(messages=tuple(Message(role=roles[turn % 2], content=text) for turn, text in turns))
