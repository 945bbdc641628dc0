"""What the built models can do, on validation prompts only. The figures go into their cards.

The truth is the world's. Held-out prompts are never read here: they are for the experiments of whoever uses the models.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif.build.chat import prefix, sample
from rlaif.build.policies import Policy, sample_policies
from rlaif.build.principles import ENDING, Principles, fault
from rlaif.build.ratings import ASPECTS, Lesson, Lessons, completion_to_judge, judge, principle
from rlaif.build.tokenizer import encode
from rlaif.judges.replies import read_lines
from rlaif.templates import Template
from rlaif.world import FAMILIES, Family, Question, gold, parse

TOKENS_PER_LINE = 48  # the longest line taught, on a list of three, has 37

Row = tuple[Question, list[str]]  # a prompt and its completions, as many in each row


class Verdict(NamedTuple):
    family: Family
    wanted: int
    given: int | None


def measure_policy(policy: Policy, questions: Sequence[Question], tries: int = 8) -> dict[str, float]:
    """Gold of one completion per prompt at temperature 0.7, the best of several, and what the mean hides."""
    prompts = [question.text for question in questions]
    runs = [policy.complete(prompts, temperature=0.7, seed=seed) for seed in range(tries)]
    golds = [[gold(prompt, text) for prompt, text in zip(prompts, run, strict=True)] for run in runs]
    first = golds[0]
    figures = {
        "gold": mean(found.total for run in golds for found in run),
        f"best of {tries}": mean(max(found.total for found in each) for each in zip(*golds, strict=True)),
        "harmful refused": mean(found.refused for found in first if found.kind == "harmful"),
        "look-alikes refused": mean(found.refused for found in first if found.kind == "look-alike"),
        "words": mean(len(text.split()) for text in runs[0]),
    }
    for family in FAMILIES:
        figures[f"right: {family}"] = mean(
            g.content == 1 for run in golds for g, q in zip(run, questions, strict=True) if q.family == family
        )
    return figures


class Annotator:
    """The annotator as a judge stage uses it: greedy, its lines read back by number."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        lessons: Lessons,
        templates: Sequence[Template],
    ) -> None:
        self.model, self.tokenizer, self.lessons, self.templates = model, tokenizer, lessons, templates

    def rate(self, lessons: Sequence[Lesson], count: int) -> list[list[int | None]]:
        texts = sample(
            self.model,
            self.tokenizer,
            [lesson.user for lesson in lessons],
            temperature=0,
            seed=0,
            limit=TOKENS_PER_LINE * count,
            batch=64,
        )
        return [[reading.value for reading in read_lines(text, count, 1, 5)] for text in texts]

    def measure(
        self, questions: Sequence[Question], policies: Sequence[Policy], each: int, seed: int
    ) -> dict[str, float]:
        """Right and wrong by family, balanced, and the exact digits of every other aspect; one and four at once."""
        rng = random.Random(f"measuring {seed}")
        figures: dict[str, float] = {}
        for count in (1, 4):
            for family in FAMILIES:
                asked = [question for question in questions if question.family == family]
                rows = [_composed(rng, "right", rng.choice(asked), count) for _ in range(each)]
                figures[f"right, {count} at once: {family}"] = _balanced(self._verdicts("right", rows))
            for aspect in ASPECTS:
                if aspect != "right":
                    rows = [_composed(rng, aspect, rng.choice(questions), count) for _ in range(each)]
                    figures[f"{aspect}, {count} at once"] = _exact(self._verdicts(aspect, rows))
        figures |= self.measure_principles(questions, each, seed)
        sampled = sample_policies(policies, [question.text for question in questions], seed)
        rows = [(question, rng.sample(sampled[question.text], 4)) for question in questions]
        for aspect in ASPECTS:
            verdicts = self._verdicts(aspect, rows)
            if aspect != "right":
                figures[f"{aspect}, of policies' samples"] = _exact(verdicts)
                continue
            figures["right, of policies' samples"] = _balanced(verdicts)
            for family in FAMILIES:
                own = [verdict for verdict in verdicts if verdict.family == family]
                figures[f"right, of policies' samples: {family}"] = _balanced(own)
        return figures

    def measure_principles(self, questions: Sequence[Question], each: int, seed: int) -> dict[str, float]:
        """Critiques, revisions and comparisons of composed completions, as the stages ask for them."""
        rng = random.Random(f"measuring principles {seed}")
        drawn = Principles(questions, {}, *self.templates, shares={}, verdicts=0.0)
        figures: dict[str, float] = {}
        for name, aspect in ASPECTS.items():
            rows = [(drawn.question(rng, name), principle(rng, aspect, negated=0.1)) for _ in range(each)]
            drafts = [drawn.composed(rng, aspect, question) for question, _ in rows]
            critiques = self._write(
                [
                    drawn.critique.render(principle={"critique": said}, prompt=q.text, completion=draft)
                    for (q, said), draft in zip(rows, drafts, strict=True)
                ],
                64,
            )
            revisions = self._write(
                [
                    drawn.revise.render(
                        principle={"revision": said}, prompt=q.text, completion=draft, critique=critique
                    )
                    for (q, said), draft, critique in zip(rows, drafts, critiques, strict=True)
                ],
                64,
            )
            questions_asked = [question for question, _ in rows]
            wanted = [fault(aspect, q, draft) for q, draft in zip(questions_asked, drafts, strict=True)]
            figures[f"critiques as the world's: {name}"] = _share(map(str.__eq__, critiques, wanted))
            for what, texts in (("drafts", drafts), ("revisions", revisions)):
                digits = [judge(aspect, q, parse(q.text, t))[1] for q, t in zip(questions_asked, texts, strict=True)]
                figures[f"mean rating deserved, {what}: {name}"] = mean(digits)
            figures |= self._comparisons(rng, drawn, name, rows)
        return figures

    def _comparisons(
        self, rng: random.Random, drawn: Principles, name: str, rows: Sequence[tuple[Question, str]]
    ) -> dict[str, float]:
        """Of pairs that differ: how often both orders averaged, and each order alone, prefer the better one."""
        aspect = ASPECTS[name]
        texts = [[drawn.composed(rng, aspect, question) for _ in range(2)] for question, _ in rows]
        digits = [
            [judge(aspect, q, parse(q.text, t))[1] for t in pair] for (q, _), pair in zip(rows, texts, strict=True)
        ]
        of_first: list[list[float]] = []
        for turn in (1, -1):
            asked = [
                drawn.compare.render(
                    principle={"comparison": said}, prompt=q.text, completions=pair[::turn], reasons=True, n=2
                )
                for (q, said), pair in zip(rows, texts, strict=True)
            ]
            shown_first = self._first_better(list(zip(asked, self._write(asked, 112), strict=True)))
            of_first.append([p if turn == 1 else 1 - p for p in shown_first])
        told = [
            (forward, backward, first > second)
            for forward, backward, (first, second) in zip(*of_first, digits, strict=True)
            if first != second
        ]
        if not told:
            return {}
        return {
            f"compared, both orders: {name}": _share((f + b > 1) == better for f, b, better in told),
            f"compared, one order: {name}": _share((p > 0.5) == better for f, b, better in told for p in (f, b)),
        }

    @torch.inference_mode()
    def _first_better(self, turns: Sequence[tuple[str, str]]) -> list[float]:
        """The probability of `1` against `2` as the verdict after each question and its reasons."""
        one, two = encode(self.tokenizer, " 1")[0], encode(self.tokenizer, " 2")[0]
        found = []
        for turn in turns:
            ids = torch.tensor([encode(self.tokenizer, prefix(self.tokenizer, ENDING, (turn,)))])
            logits = self.model(input_ids=ids).logits[0, -1]
            found.append(float(torch.sigmoid(logits[one] - logits[two])))
        return found

    def _write(self, asked: Sequence[str], limit: int) -> list[str]:
        return sample(self.model, self.tokenizer, asked, temperature=0, seed=0, limit=limit, batch=64)

    def _verdicts(self, name: str, rows: Sequence[Row]) -> list[Verdict]:
        """Of every completion the wanted and the given rating, the principle worded anew for each row."""
        aspect, rng = ASPECTS[name], random.Random(name)
        lessons = [self.lessons.rate(q, texts, aspect, principle(rng, aspect, negated=0.1)) for q, texts in rows]
        given = [value for values in self.rate(lessons, len(rows[0][1])) for value in values]
        asked = [(question, text) for question, texts in rows for text in texts]
        return [
            Verdict(question.family, judge(aspect, question, parse(question.text, text))[1], value)
            for (question, text), value in zip(asked, given, strict=True)
        ]


def _composed(rng: random.Random, aspect: str, question: Question, count: int) -> Row:
    return question, [completion_to_judge(rng, question, ASPECTS[aspect].trait) for _ in range(count)]


def _share(outcomes: Iterable[bool]) -> float:
    return mean(map(float, outcomes))


def _exact(verdicts: Sequence[Verdict]) -> float:
    return mean(verdict.wanted == verdict.given for verdict in verdicts)


def _balanced(verdicts: Sequence[Verdict]) -> float:
    """The mean of two shares: of right completions rated right, of all others rated as they should be."""
    right = [verdict for verdict in verdicts if verdict.wanted == 5]
    other = [verdict for verdict in verdicts if verdict.wanted != 5]
    return mean(_exact(part) for part in (right, other) if part)
