"""How each model is made: its size, its curriculum, and the digest that says which recipe made given weights.

A curriculum is counted in pools of examples (`training.POOL`). `scale` shortens every stage alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif.resources import find
from rlaif.templates import Template
from rlaif.tiny.build import threads
from rlaif.tiny.build.chat import lesson
from rlaif.tiny.build.principles import FIRST_SHARES, LAST_SHARES, Principles
from rlaif.tiny.build.ratings import ASPECTS, Lesson, Lessons, drill, principle
from rlaif.tiny.build.tokenizer import END, encode
from rlaif.tiny.build.training import Draw, Example, Stage, llama
from rlaif.tiny.world import Question, read

CHAT_TEMPLATE, RATE_TEMPLATE = "prompts/chat/tiny.jinja", "prompts/rate-compact.jinja"
PRINCIPLE_TEMPLATES = (
    "prompts/critique-compact.jinja",
    "prompts/revise-compact.jinja",
    "prompts/compare-compact.jinja",
)

PAGE_TOKENS = 160  # whole threads and drills, as many as fit


def new_base(vocabulary: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    return llama(hidden=128, heads=4, mlp=336, tokenizer=vocabulary, seed=seed)


def new_annotator(vocabulary: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    return llama(hidden=160, heads=5, mlp=416, tokenizer=vocabulary, seed=seed)


def base_stages(vocabulary: PreTrainedTokenizerFast, questions: Sequence[Question], scale: float) -> list[Stage]:
    """Tidy lines first, then pages of threads of mixed quality, drills among both.

    Of a tidy line only what can be told is learnt. Were all of it, as on the pages, the noise of the rest would hide
    how to copy for some millions of tokens.
    """

    def line(rng: random.Random) -> Example:
        told, follows = threads.tidy(rng, questions)
        before = encode(vocabulary, told)
        return Example(before + encode(vocabulary, follows), len(before))

    def page(rng: random.Random) -> Example:
        ids: list[int] = []
        while True:
            text = threads.thread(rng, questions) if rng.random() < 0.6 else str(threads.drill(rng))
            added = encode(vocabulary, text + END)
            if ids and len(ids) + len(added) > PAGE_TOKENS:
                return Example(ids, 1)
            ids += added

    return [
        Stage("tidy lines", _pools(800, scale), (2e-3, 2e-3), line),
        Stage("pages", _pools(50, scale), (1.5e-3, 1.2e-3), page),
        Stage("pages, slowing down", _pools(40, scale), (1.2e-3, 1e-4), page),
    ]


# Of a hundred ratings, how many ask for each aspect. Right is by far the hardest. The inverse aspects come only after
# the traits they invert can be told.
EARLY_SHARES = {"right": 62, "polite": 17, "short": 17, "safe": 4}
LATE_SHARES = {"right": 42, "polite": 13, "blunt": 13, "short": 12, "long": 12, "safe": 8}
EVEN_SHARES = {"right": 30, "polite": 16, "blunt": 16, "short": 12, "long": 12, "safe": 14}


def annotator_stages(
    vocabulary: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    template: Template,
    samples: Mapping[str, Sequence[str]],
    scale: float,
) -> list[Stage]:
    """Solve first, then judge step by step, then every aspect, what policies write, and whatever else is judging."""
    templates = [Template.read(find(path)) for path in PRINCIPLE_TEMPLATES]
    first = Principles(questions, samples, *templates, shares=FIRST_SHARES, verdicts=0.4)
    last = Principles(questions, samples, *templates, shares=LAST_SHARES, verdicts=0.75)
    lessons = Lessons(questions, template)
    harmless = Lessons([question for question in questions if question.kind != "harmful"], template)
    sampled = sorted(samples)

    def early(rng: random.Random) -> Lesson:
        return lessons.rating(rng, _draw(rng, EARLY_SHARES), rng.choice((1, 1, 2, 2, 4)), strange=False)

    def late(rng: random.Random) -> Lesson:
        source = rng.choice((lessons, harmless))
        return source.rating(rng, _draw(rng, LATE_SHARES), rng.choice((1, 1, 2, 3, 4, 4)), negated=0.25)

    def even(rng: random.Random) -> Lesson:
        source = rng.choice((lessons, harmless))
        return source.rating(rng, _draw(rng, EVEN_SHARES), rng.choice((1, 1, 2, 3, 4, 4)), negated=0.35)

    def of_samples(rng: random.Random) -> Lesson:
        prompt = rng.choice(sampled)
        question, aspect = read(prompt), ASPECTS[_draw(rng, LATE_SHARES)]
        assert question is not None
        completions = rng.sample(samples[prompt], rng.choice((1, 1, 2, 4, 4)))
        return lessons.rate(question, completions, aspect, principle(rng, aspect, negated=0.25))

    def mixed(*parts: tuple[int, Callable[[random.Random], Lesson]]) -> Draw:
        makes, weights = [make for _, make in parts], [weight for weight, _ in parts]

        def draw(rng: random.Random) -> Example:
            drawn = rng.choices(makes, weights)[0](rng)
            return lesson(vocabulary, drawn.turns, drawn.assistant)

        return draw

    solve = lessons.solving
    parts = {
        "solving": (160, (2e-3, 2e-3), mixed((60, solve), (40, drill))),
        "judging": (200, (2e-3, 2e-3), mixed((82, early), (12, drill), (6, solve))),
        "aspects": (150, (2e-3, 1.4e-3), mixed((88, late), (9, drill), (3, solve))),
        "samples": (180, (1.4e-3, 1e-3), mixed((48, of_samples), (44, late), (6, drill), (2, solve))),
        "principles": (
            320,
            (1.2e-3, 6e-4),
            mixed(
                (32, first.revising), (13, first.comparing), (6, first.deciding), (8, first.critiquing),
                (19, of_samples), (14, late), (4, drill), (4, solve),
            ),
        ),
        "settling": (
            320,
            (8e-4, 2e-6),
            mixed(
                (25, last.revising), (10, last.comparing), (5, last.deciding), (5, last.critiquing),
                (27, of_samples), (22, late), (2, drill), (4, solve),
            ),
        ),
        "polishing": (
            420,
            (6e-4, 2e-6),
            mixed(
                (22, last.revising), (9, last.comparing), (4, last.deciding), (5, last.critiquing),
                (24, of_samples), (30, even), (2, drill), (4, solve),
            ),
        ),
    }  # fmt: skip
    return [Stage(name, _pools(full, scale), rates, draw) for name, (full, rates, draw) in parts.items()]


def _draw(rng: random.Random, shares: Mapping[str, int]) -> str:
    return rng.choices(tuple(shares), tuple(shares.values()))[0]


def _pools(full: int, scale: float) -> int:
    return max(1, round(full * scale))
