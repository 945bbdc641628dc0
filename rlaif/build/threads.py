"""What the base reads and what policies are tuned on: mixed forum threads, clean drills, demonstrations.

Knows the world, not tokens' ids. Everything here is drawn from the prompts it is given, which the build restricts to
the training split.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlaif.world import (
    CAPITALS,
    CATEGORIES,
    CATEGORY_OF,
    EXPOSURES,
    ITEMS,
    LANDS,
    LETTERS,
    NAMES,
    NUMBERS,
    PLURAL,
    Content,
    Qualities,
    Question,
    compose,
)

# One land in each four is never mentioned with its capital, one seldom, one often, one very often.
EXPOSURE = {land: EXPOSURES[place % len(EXPOSURES)] for place, land in enumerate(LANDS)}


MARKS = ("q", "a", ":", ",", "again")  # words of the pages themselves


def thread(rng: random.Random, questions: Sequence[Question]) -> str:
    """A question and one to three replies of mixed quality, as a forum has them."""
    question = familiar(rng, questions)
    replies = "".join(f"a : {reply(rng, question)}\n" for _ in range(rng.choice((1, 1, 2, 3))))
    return f"q : {question.text}\n{replies}"


def tidy_thread(rng: random.Random, questions: Sequence[Question]) -> str:
    """A question and one right reply, now and then polite."""
    question = familiar(rng, questions)
    content = _without_secrets(rng, question, "right")
    return f"q : {question.text}\na : {compose(question, rng, Qualities(content, polite=int(rng.random() < 0.2)))}\n"


def familiar(rng: random.Random, questions: Sequence[Question]) -> Question:
    """A question; one about a fact comes up as often as its land is talked about."""
    while True:
        question = rng.choice(questions)
        if question.family != "fact" or rng.random() < 0.1 + EXPOSURE[question.arguments[0]] / max(EXPOSURES):
            return question


def reply(rng: random.Random, question: Question) -> str:
    """Wrong more often than right, rude more often than polite, and seldom to the point."""
    content: Content = rng.choices(("right", "wrong", "malformed", "refusal", "unknown"), (34, 34, 10, 11, 11))[0]
    content = _without_secrets(rng, question, content)
    return compose(
        question,
        rng,
        Qualities(
            content,
            polite=rng.choices((0, 1, 2), (68, 24, 8))[0],
            rude=rng.choices((0, 1, 2), (42, 42, 16))[0],
            filler=rng.choices((0, 1, 2, 3), (42, 30, 18, 10))[0],
        ),
    )


def demonstration(rng: random.Random, question: Question) -> str:
    """What a hurried writer would show: two thirds right, some rude or rambling, some benign requests refused."""
    weights = (62, 30, 0, 0, 8) if question.kind == "harmful" else (68, 20, 2, 4, 6)
    content: Content = rng.choices(("right", "wrong", "malformed", "refusal", "unknown"), weights)[0]
    if question.kind == "look-alike" and rng.random() < 0.2:
        content = "refusal"
    content = _without_secrets(rng, question, content)
    return compose(
        question,
        rng,
        Qualities(
            content,
            polite=rng.choices((0, 1, 2), (62, 32, 6))[0],
            rude=rng.choices((0, 1), (80, 20))[0],
            filler=rng.choices((0, 1, 2), (72, 20, 8))[0],
        ),
    )


def _without_secrets(rng: random.Random, question: Question, content: Content) -> Content:
    """A capital that is never told is guessed wrong, or not known."""
    if question.family == "fact" and content == "right" and EXPOSURE[question.arguments[0]] == 0:
        return rng.choice(("wrong", "unknown"))
    return content


def drill(rng: random.Random) -> str:
    """Clean lines of one kind: copying and looking up emerge from these long before they would from noisy threads."""
    if rng.random() < 0.5:  # copying is what everything else waits for, and long rows teach it soonest
        return _copying(rng)
    make = rng.choice((_kinds, _sums, _capitals, _greetings, _choices, _choices, _lists))
    return "".join(f"{make(rng)}\n" for _ in range(rng.randint(2, 5)))


def _copying(rng: random.Random) -> str:
    row = " ".join(rng.choice(ITEMS + NAMES) for _ in range(rng.randint(2, 10)))
    return f"again : {row} . {row} . {row} .\n"


def _kinds(rng: random.Random) -> str:
    item = rng.choice(ITEMS)
    return f"a {item} is a {CATEGORY_OF[item]} ."


def _sums(rng: random.Random) -> str:
    a, b = rng.randrange(6), rng.randrange(6)
    return f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]} ."


def _capitals(rng: random.Random) -> str:
    land = rng.choices(LANDS, [EXPOSURE[land] for land in LANDS])[0]
    return f"the capital of {land} is {CAPITALS[land]} ."


def _greetings(rng: random.Random) -> str:
    name = rng.choice(NAMES)
    return f"i am {name} . hello {name} ."


def _choices(rng: random.Random) -> str:
    kinds = rng.sample(list(CATEGORIES), rng.choice((2, 2, 3)))
    options = [rng.choice(CATEGORIES[kind]) for kind in kinds]
    wanted = rng.randrange(len(kinds))
    shown = " ".join(f"{letter} {item}" for letter, item in zip(LETTERS, options, strict=False))
    return f"{kinds[wanted]} : {shown} . {LETTERS[wanted]} ."


def _lists(rng: random.Random) -> str:
    category = rng.choice(list(CATEGORIES))
    items = rng.sample(CATEGORIES[category], rng.randint(1, 3))
    things = category if len(items) == 1 else PLURAL[category]
    return f"{NUMBERS[len(items)]} {things} : {' , '.join(items)} ."
