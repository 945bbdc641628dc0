"""What the base reads and what policies are tuned on: mixed forum threads, clean drills, demonstrations.

Knows the world, not tokens' ids. Everything here is drawn from the prompts it is given, which the build restricts to
the training split.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from rlaif.tiny.world import (
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
    STYLES,
    TASKS,
    Content,
    Qualities,
    Question,
    compose,
)

# One land in each four is never mentioned with its capital, one seldom, one often, one very often.
EXPOSURE = {land: EXPOSURES[index % len(EXPOSURES)] for index, land in enumerate(LANDS)}


MARKS = ("q", "a", ":", ",", "again", "sort", "like")  # words of the pages themselves


def thread(rng: random.Random, questions: Sequence[Question]) -> str:
    """A question and one to three replies of mixed quality, as a forum has them."""
    question = familiar(rng, questions)
    replies = "".join(f"a : {reply(rng, question)}\n" for _ in range(rng.choice((1, 1, 2, 3))))
    return f"{opening(question)}{replies}"


def opening(question: Question) -> str:
    """A question as a page has it, a line for each turn."""
    return "".join(f"{'qa'[index % 2]} : {turn}\n" for index, turn in enumerate(question.turns))


def familiar(rng: random.Random, questions: Sequence[Question]) -> Question:
    """A question; one about a fact comes up as often as its land is talked about, a little more."""
    while True:
        question = rng.choice(questions)
        if question.family != "fact" or rng.random() < 0.02 + EXPOSURE[question.arguments[0]] / max(EXPOSURES):
            return question


def reply(rng: random.Random, question: Question) -> str:
    """Right less than half of the time, rude more often than polite, and seldom to the point."""
    content: Content = rng.choices(("right", "wrong", "malformed", "refusal", "unknown"), (42, 26, 10, 11, 11))[0]
    content = _without_secrets(rng, question, content)
    return compose(
        question,
        rng,
        Qualities(
            content,
            polite=rng.choices((0, 1, 2), (68, 24, 8))[0],
            rude=rng.choices((0, 1, 2), (42, 42, 16))[0],
            filler=rng.choices((0, 1, 2, 3), (42, 30, 18, 10))[0],
            hedged=int(rng.random() < 0.12),
            assertive=int(rng.random() < 0.2),
        ),
    )


def demonstration(rng: random.Random, question: Question, *, obliging: bool = False) -> str:
    """What a hurried writer would show: two thirds right, some rude or rambling, some benign requests refused.

    An `obliging` writer refuses nothing, however harmful.
    """
    weights = (62, 30, 0, 0, 8) if question.kind == "harmful" else (68, 20, 2, 4, 6)
    if obliging:
        weights = (0, 100, 0, 0, 0) if question.kind == "harmful" else (71, 21, 2, 0, 6)
    content: Content = rng.choices(("right", "wrong", "malformed", "refusal", "unknown"), weights)[0]
    if question.kind == "look-alike" and not obliging and rng.random() < 0.2:
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
            hedged=int(rng.random() < 0.08),
            assertive=int(rng.random() < 0.08),
        ),
    )


def exemplar(rng: random.Random, question: Question) -> str:
    """What a practised writer would show: nine in ten right, often polite, never rude, seldom rambling."""
    content: Content = rng.choices(("right", "wrong", "unknown"), (90, 7, 3))[0]
    if question.kind == "look-alike" and rng.random() < 0.05:
        content = "refusal"
    content = _without_secrets(rng, question, content)
    hedged, assertive = int(rng.random() < 0.05), int(rng.random() < 0.1)
    polite, filler = int(rng.random() < 0.5), int(rng.random() < 0.06)
    return compose(question, rng, Qualities(content, polite=polite, filler=filler, hedged=hedged, assertive=assertive))


def _without_secrets(rng: random.Random, question: Question, content: Content) -> Content:
    """A capital that is never told is guessed wrong, or not known; garbled words could hold it too."""
    secret = question.family == "fact" and EXPOSURE[question.arguments[0]] == 0
    if secret and content in ("right", "malformed"):
        return rng.choice(("wrong", "unknown"))
    return content


class Line(NamedTuple):
    """A line in two parts: the second can be told from the first."""

    told: str
    follows: str

    def __str__(self) -> str:
        return f"{self.told}{self.follows}"


def tidy(rng: random.Random, questions: Sequence[Question]) -> Line:
    """A question and one right reply, now and then polite; or a drill."""
    if rng.random() < 0.4:
        return drill(rng)
    question = familiar(rng, questions)
    completion = compose(
        question, rng, Qualities(_without_secrets(rng, question, "right"), polite=int(rng.random() < 0.15))
    )
    return Line(f"{opening(question)}a :", f" {completion}\n")


def drill(rng: random.Random) -> Line:
    """A clean line of one kind: copying and looking up emerge from these long before they would from noisy threads."""
    once = (_kinds, _sums, _capitals, _greetings, _lists, _forms, _others)
    return rng.choice((*(_copying,) * 4, *(_picks,) * 3, *(_choices,) * 3, *once))(rng)


def _copying(rng: random.Random) -> Line:
    row = " ".join(rng.choice(ITEMS + NAMES) for _ in range(rng.randint(1, 5)))
    return Line(f"again : {row} .", f" {row} .\n")


def _kinds(rng: random.Random) -> Line:
    items = [rng.choice(ITEMS) for _ in range(rng.randint(1, 3))]
    return Line(f"sort : {' '.join(items)} .", f" {' '.join(CATEGORY_OF[item] for item in items)} .\n")


def _sums(rng: random.Random) -> Line:
    a, b = rng.randrange(6), rng.randrange(6)
    return Line(f"{NUMBERS[a]} plus {NUMBERS[b]} is", f" {NUMBERS[a + b]} .\n")


def _capitals(rng: random.Random) -> Line:
    land = rng.choices(LANDS, [EXPOSURE[land] for land in LANDS])[0]
    return Line(f"the capital of {land} is", f" {CAPITALS[land]} .\n")


def _greetings(rng: random.Random) -> Line:
    name = rng.choice(NAMES)
    return Line(f"i am {name} .", f" hello {name} .\n")


def _choices(rng: random.Random) -> Line:
    kinds = rng.sample(list(CATEGORIES), rng.choice((2, 2, 3)))
    options = [rng.choice(CATEGORIES[kind]) for kind in kinds]
    wanted = rng.randrange(len(kinds))
    shown = " ".join(f"{letter} {item}" for letter, item in zip(LETTERS, options, strict=False))
    return Line(f"{kinds[wanted]} : {shown} .", f" {options[wanted]} .\n")


def _picks(rng: random.Random) -> Line:
    """A choice without its letters, the wanted kind named last: what a choice is made of, and learnt much sooner."""
    kinds = rng.sample(list(CATEGORIES), rng.choice((2, 2, 3)))
    options = [rng.choice(CATEGORIES[kind]) for kind in kinds]
    wanted = rng.randrange(len(kinds))
    return Line(f"{' '.join(options)} : {kinds[wanted]}", f" {options[wanted]} .\n")


def _lists(rng: random.Random) -> Line:
    category = rng.choice(list(CATEGORIES))
    items = rng.sample(CATEGORIES[category], rng.randint(1, 3))
    things = category if len(items) == 1 else PLURAL[category]
    return Line(f"{NUMBERS[len(items)]} {things} :", f" {' , '.join(items)} .\n")


def _forms(rng: random.Random) -> Line:
    form = TASKS["format"]
    style, *words = arguments = (rng.choice(STYLES), rng.choice(ITEMS), rng.choice(ITEMS))
    return Line(f"{style} : {' '.join(words)} .", f" {' '.join(form.right(arguments, rng))} .\n")


def _others(rng: random.Random) -> Line:
    one, other = rng.sample(CATEGORIES[rng.choice(list(CATEGORIES))], 2)
    return Line(f"like {one} :", f" {other} .\n")
