"""Writes `prompts/checked.jsonl`: prompts of our own, each with checks in code of what it asks for.

    python benchmarks/real/prompts.py [FILE]

A prompt is a request about a subject with one constraint, as in IFEval (arXiv 2311.07911), whose words are not used
here. Each request is used once, so the prompts of two splits never differ in their constraint alone; subjects, and the
wordings of a constraint, are in all splits. `source` names the kind of constraint. All draws are by hash: the same
script writes the same file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.records import hashed_order

FILE = Path(__file__).parents[2] / "prompts" / "checked.jsonl"
PER_KIND = 54  # prompts of each kind of constraint

SUBJECTS = (
    "lighthouses", "honey bees", "umbrellas", "bicycles", "libraries", "volcanoes", "candles", "bridges", "maps",
    "clocks", "bread ovens", "sailing boats", "violins", "glaciers", "post offices", "mirrors", "windmills", "magnets",
    "kites", "owls", "railway stations", "gardens", "puppets", "chess clubs", "tea houses", "camels", "coral reefs",
    "telescopes", "night trains", "snowflakes", "markets", "beavers", "piano lessons", "water mills", "desert towns",
    "paper boats", "rain barrels", "school canteens", "wool sweaters", "mountain huts", "city trams", "apple trees",
    "fire drills", "hedgehogs", "old coins", "drum kits", "ferries", "compasses", "sea turtles", "street lamps",
    "rubber boots", "notebooks", "solar panels", "village fairs", "hot air balloons", "penguins", "stone walls",
    "swimming pools", "wooden toys", "thunderstorms",
)  # fmt: skip
REQUESTS = (
    "What are {0} good for?",
    "Describe {0} to somebody who has never seen any.",
    "Why do people care about {0}?",
    "Tell me something about {0}.",
    "Explain {0} to a child.",
    "What should I know about {0}?",
    "Say what is special about {0}.",
    "Write a note about {0}.",
    "Give me a fact about {0}.",
    "What would we miss without {0}?",
    "Recommend {0} to a friend.",
    "What is the trouble with {0}?",
)

Checks = list[dict[str, Any]]


class Constraint(NamedTuple):
    """A kind of constraint. Each of `wordings` holds the request, `{request}`, and may hold `{0}`, one of `values`.

    `checks` and `example`, a completion that passes them, are of a value.
    """

    kind: str
    values: Sequence[Any]
    wordings: Sequence[str]
    checks: Callable[[Any], Checks]
    example: Callable[[Any], str]


def instruction(name: str, **arguments: Any) -> dict[str, Any]:
    """A check by an instruction of IFEval."""
    return {"ifeval": {"id": name, "kwargs": arguments}}


NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
LANGUAGES = {"French": "fr", "German": "de", "Spanish": "es", "Italian": "it"}
IN_LANGUAGE = {
    "French": "Les bateaux sont utiles parce qu'ils portent les gens sur la mer.",
    "German": "Die Boote sind n\u00fctzlich, weil sie die Menschen \u00fcber das Meer tragen.",
    "Spanish": "Los barcos son \u00fatiles porque llevan a la gente por el mar.",
    "Italian": "Le barche sono utili perch\u00e9 portano la gente sul mare.",
}

CONSTRAINTS = (
    Constraint(
        "at most so many words",
        (12, 15, 20, 25),
        ("{request} Use at most {0} words.", "In {0} words or fewer: {request}", "{request} {0} words are the limit."),
        lambda most: [{"length": {"max_words": most}}],
        lambda most: " ".join(["word"] * most),
    ),
    Constraint(
        "at least so many words",
        (30, 35, 40),
        (
            "{request} Use at least {0} words.",
            "{request} Write {0} words or more.",
            "In no fewer than {0} words: {request}",
        ),
        lambda least: [{"length": {"min_words": least}}],
        lambda least: " ".join(["word"] * least),
    ),
    Constraint(
        "so many sentences",
        (2, 3),
        (
            "{request} Write exactly {0} sentences.",
            "In exactly {0} sentences: {request}",
            "{request} Give me {0} sentences.",
        ),
        lambda count: [
            instruction("length_constraints:number_sentences", num_sentences=count, relation="at least"),
            instruction("length_constraints:number_sentences", num_sentences=count + 1, relation="less than"),
        ],
        lambda count: " ".join(["They float on water."] * count),
    ),
    Constraint(
        "so many bullets",
        (2, 3, 4),
        (
            "{request} Give {0} bullet points, each starting with a hyphen.",
            "As a list of exactly {0} bullets that start with '-': {request}",
            "{request} Reply with {0} short bullet points and nothing else. Start each with '- '.",
        ),
        lambda count: [instruction("detectable_format:number_bullet_lists", num_bullets=count)],
        lambda count: "\n".join(["- They float."] * count),
    ),
    Constraint(
        "last words",
        ("That is all.", "Thank you.", "The end."),
        (
            "{request} Finish with the words: {0}",
            'End your reply with "{0}" {request}',
            '{request} The last words must be "{0}"',
        ),
        lambda words: [instruction("startend:end_checker", end_phrase=words)],
        lambda words: f"They float. {words}",
    ),
    Constraint(
        "first word",
        ("Well", "Indeed", "Honestly"),
        (
            "{request} Start with the word '{0}'.",
            "Begin your reply with '{0}'. {request}",
            "{request} The first word has to be '{0}'.",
        ),
        lambda word: [{"regex": {"pattern": rf"^\W*{word}\b"}}],
        lambda word: f"{word}, they float.",
    ),
    Constraint(
        "a word that has to be there",
        ("weather", "history", "money", "neighbour", "patience"),
        ("{request} Use the word '{0}'.", "{request} Mention '{0}'.", "Put the word '{0}' into your reply. {request}"),
        lambda word: [instruction("keywords:existence", keywords=[word])],
        lambda word: f"They have to do with {word}.",
    ),
    Constraint(
        "words that are not allowed",
        (("and",), ("the",), ("is", "are"), ("they",)),
        ("{request} Do not use {0}.", "Without {0}: {request}", "{request} Avoid {0}."),
        lambda words: [instruction("keywords:forbidden_words", forbidden_words=list(words))],
        lambda words: "Boats float on water.",
    ),
    Constraint(
        "no comma",
        ("comma",),
        ("{request} Do not use any comma.", "Without a single comma: {request}", "{request} Leave out all commas."),
        lambda _: [instruction("punctuation:no_comma")],
        lambda _: "They float.",
    ),
    Constraint(
        "a language",
        tuple(LANGUAGES),
        ("{request} Answer in {0}.", "Reply in {0}: {request}", "{request} Write in {0}, please."),
        lambda language: [{"language": {"is": LANGUAGES[language]}}],
        lambda language: IN_LANGUAGE[language],
    ),
    Constraint(
        "a question at the end",
        ("question",),
        (
            "{request} End with a question.",
            "{request} Your last sentence must be a question.",
            "Finish by asking me something. {request}",
        ),
        lambda _: [{"regex": {"pattern": r"\?\W*$"}}],
        lambda _: "They float. Have you seen one?",
    ),
)


def shown(value: Any) -> str:
    """A value as its wordings show it."""
    if isinstance(value, tuple):
        return " or ".join(f"the word '{word}'" for word in value)
    return NUMBERS.get(value, str(value)) if isinstance(value, int) else str(value)


def requests() -> Iterator[str]:
    """Every request about every subject, in an order drawn by hash."""
    every = [request.format(subject) for request, subject in product(REQUESTS, SUBJECTS)]
    return (every[i] for i in hashed_order(every, "requests"))


def rows(per_kind: int = PER_KIND) -> Iterator[dict[str, Any]]:
    """The rows of the file. Kinds take turns, so that the first rows have all of them; so do a kind's values and
    wordings, of which each meets each."""
    asked = requests()
    forms = {constraint.kind: list(product(constraint.wordings, constraint.values)) for constraint in CONSTRAINTS}
    for number, constraint in product(range(per_kind), CONSTRAINTS):
        wording, value = forms[constraint.kind][number % len(forms[constraint.kind])]
        text = wording.format(shown(value), request=next(asked))
        yield {"prompt": text, "source": constraint.kind, "checks": constraint.checks(value)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    parser.parse_args().file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
