"""How each model is made: its size, its curriculum, and the digest that says which recipe made given weights.

A curriculum is counted in pools of examples (`training.POOL`). `scale` shortens every stage alike.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif import world
from rlaif.build import threads
from rlaif.build.chat import lesson
from rlaif.build.principles import FIRST_SHARES, LAST_SHARES, REWRITING_SHARES, Principles
from rlaif.build.ratings import ASPECTS, FEW, MANY, Lesson, Lessons, drill, principle
from rlaif.build.tokenizer import END, encode
from rlaif.build.training import Draw, Example, Stage, llama
from rlaif.resources import find
from rlaif.templates import Template
from rlaif.world import Question, read

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


def annotator_stages(
    vocabulary: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    template: Template,
    samples: Mapping[str, Sequence[str]],
    scale: float,
) -> list[Stage]:
    """Solve first, then judge step by step, then every aspect, what policies write, and whatever else is judging.

    From "strange wordings" on, a keyword has to be found among words that were never met.
    """
    templates = [Template.read(find(path)) for path in PRINCIPLE_TEMPLATES]
    first = Principles(questions, samples, *templates, shares=FIRST_SHARES, verdicts=0.4)
    last = Principles(questions, samples, *templates, shares=LAST_SHARES, verdicts=0.8)
    strange = Principles(questions, samples, *templates, shares=LAST_SHARES, verdicts=0.7, strangers=MANY)
    lessons = Lessons(questions, template)
    harmless = Lessons([question for question in questions if question.kind != "harmful"], template)
    sampled = sorted(samples)

    def early(rng: random.Random) -> Lesson:
        return lessons.rating(rng, _draw(rng, EARLY_SHARES), rng.choice((1, 1, 2, 2, 4)))

    again = Principles(questions, samples, *templates, shares=REWRITING_SHARES, verdicts=0.7, strangers=MANY)
    sums = Lessons([question for question in questions if question.family == "sum"], template)

    def late(strangers: float) -> Callable[[random.Random], Lesson]:
        def draw(rng: random.Random) -> Lesson:
            asked, name = rng.choice((lessons, harmless)), _draw(rng, LATE_SHARES)
            return asked.rating(rng, name, rng.choice((1, 2, 3, 4, 4)), negated=0.25, strangers=strangers)

        return draw

    def of_samples(strangers: float) -> Callable[[random.Random], Lesson]:
        def draw(rng: random.Random) -> Lesson:
            prompt = rng.choice(sampled)
            question, aspect = read(prompt), ASPECTS[_draw(rng, LATE_SHARES)]
            assert question is not None
            completions = rng.sample(samples[prompt], rng.choice((1, 2, 4, 4)))
            return lessons.rate(
                question, completions, aspect, principle(rng, aspect, negated=0.25, strangers=strangers)
            )

        return draw

    def mixed(*parts: tuple[int, Callable[[random.Random], Lesson]]) -> Draw:
        makes, weights = [make for _, make in parts], [weight for weight, _ in parts]

        def draw(rng: random.Random) -> Example:
            drawn = rng.choices(makes, weights)[0](rng)
            return lesson(vocabulary, drawn.turns, drawn.assistant)

        return draw

    solve, plain, written = lessons.solving, late(FEW), of_samples(FEW)
    parts = {
        "solving": (160, (2e-3, 2e-3), mixed((60, solve), (40, drill))),
        "judging": (200, (2e-3, 2e-3), mixed((82, early), (12, drill), (6, solve))),
        "aspects": (140, (2e-3, 1.2e-3), mixed((88, plain), (9, drill), (3, solve))),
        "samples": (180, (1.2e-3, 8e-4), mixed((48, written), (46, plain), (6, drill))),
        "principles": (
            240,
            (1.2e-3, 5e-4),
            mixed(
                (27, first.revising), (15, first.comparing), (8, first.deciding), (10, first.critiquing),
                (19, written), (15, plain), (4, drill), (2, solve),
            ),
        ),
        "verdicts and additions": (
            150,
            (5e-4, 1e-5),
            mixed(
                (22, last.revising), (18, last.comparing), (8, last.deciding), (8, last.critiquing),
                (24, written), (16, plain), (4, drill),
            ),
        ),
        "strange wordings": (
            100,
            (5e-4, 1e-5),
            mixed(
                (18, strange.revising), (16, strange.comparing), (7, strange.deciding), (7, strange.critiquing),
                (28, of_samples(MANY)), (21, late(MANY)), (3, drill),
            ),
        ),
        "rewriting": (
            200,
            (8e-4, 5e-6),
            mixed(
                (38, again.revising), (10, again.comparing), (5, again.deciding), (7, again.critiquing),
                (13, of_samples(MANY)), (11, late(MANY)), (3, drill), (6, solve),
                (4, sums.solving), (3, lambda rng: sums.rating(rng, "right", rng.choice((1, 4)))),
            ),
        ),
        "settling": (
            140,
            (6e-4, 2e-6),
            mixed(
                (16, of_samples(MANY)), (14, written), (18, late(MANY)), (10, plain), (22, again.revising),
                (8, strange.comparing), (4, strange.deciding), (4, strange.critiquing), (2, drill), (2, solve),
            ),
        ),
    }  # fmt: skip
    return [Stage(name, _pools(full, scale), rates, draw) for name, (full, rates, draw) in parts.items()]


def _draw(rng: random.Random, shares: Mapping[str, int]) -> str:
    return rng.choices(tuple(shares), tuple(shares.values()))[0]


def _pools(full: int, scale: float) -> int:
    return max(1, round(full * scale))


def recipe_digest(scale: float, seed: int) -> str:
    """Digest of everything that decides the weights: sources of the build and the world, templates, scale, seed."""
    folder = Path(__file__).parent
    sources = [
        *sorted(folder.glob("*.py")),
        Path(str(world.__file__)),
        *map(find, (CHAT_TEMPLATE, RATE_TEMPLATE, *PRINCIPLE_TEMPLATES)),
    ]
    texts = [path.read_text(encoding="utf-8") for path in sources if path.name not in ("cards.py", "measuring.py")]
    return hashlib.sha256(json.dumps([scale, seed, *texts]).encode()).hexdigest()[:32]
