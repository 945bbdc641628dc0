"""What the annotator is taught beyond rating: to compare, to critique and to revise under a principle.

Each is made of the reasons it already writes (`ratings`), so that little is new. A critique is such a reason on one
completion; a comparison is one on each of two, and the verdict, asked for in a second turn, a look at the two digits:

    compare : we like polite replies .             [1] tone away rude so rude want polite rating 2
    what is two plus three ?                       [2] tone so plain want polite rating 3
    [1] go away . it is five .
    [2] it is five .                               which one ?      2

A revision changes what the principle is about and keeps every other sentence.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from rlaif.templates import Template
from rlaif.tiny.build.ratings import ASPECTS, Aspect, Lesson, completion_to_judge, judge, line, principle, solution
from rlaif.tiny.world import FAMILIES, FILLER, POLITE, RUDE, Qualities, Question, Reading, compose, parse, read

ENDING = "which one ?"
HURRIED, LEANING = 0.5, 0.2
# Of a hundred lessons, how many are under each aspect. What adds a sentence, and what turns on a digit of five, takes
# the longest to learn.
FIRST_SHARES = {"right": 34, "safe": 18, "polite": 15, "blunt": 9, "short": 15, "long": 9}
LAST_SHARES = {"right": 30, "safe": 10, "polite": 19, "blunt": 19, "short": 9, "long": 13}


class Principles:
    """Draws lessons about the given questions and policies' samples, asked with the prompts that the stages use."""

    def __init__(
        self,
        questions: Sequence[Question],
        samples: Mapping[str, Sequence[str]],
        critique: Template,
        revise: Template,
        compare: Template,
        *,
        shares: Mapping[str, int],
        verdicts: float,
    ) -> None:
        self.shares, self.verdicts = shares, verdicts  # the latter: of comparing lessons, the share about the verdict
        self.critique, self.revise, self.compare = critique, revise, compare
        self.families = [[q for q in questions if q.family == family] for family in FAMILIES]
        self.harmful = [q for q in questions if q.kind == "harmful"]
        # What holds no sentence leaves nothing to critique, to keep or to compare.
        self.samples = {
            prompt: [text for text in texts if parse(prompt, text).sentences] for prompt, texts in samples.items()
        }
        self.sampled = sorted(prompt for prompt, texts in self.samples.items() if len(texts) > 1)

    def critiquing(self, rng: random.Random) -> Lesson:
        aspect, question, (completion,) = self._drawn(rng, 1)
        request = {"critique": self._worded(rng, aspect)}
        prompt = self.critique.render(principle=request, prompt=question.text, completion=completion)
        return Lesson((prompt,), fault(aspect, question, completion))

    def revising(self, rng: random.Random) -> Lesson:
        aspect, question, (completion,) = self._drawn(rng, 1)
        prompt = self.revise.render(
            principle={"revision": self._worded(rng, aspect)},
            prompt=question.text,
            completion=completion,
            critique=fault(aspect, question, completion),
        )
        return Lesson((prompt,), revised(rng, aspect, question, completion))

    def comparing(self, rng: random.Random) -> Lesson:
        """The reasons of a comparison, or, after them, its verdict: even chances where the two are equally good."""
        aspect, question, completions = self._drawn(rng, 2)
        request = {"comparison": self._worded(rng, aspect)}
        prompt = self.compare.render(
            principle=request, prompt=question.text, completions=completions, reasons=True, n=2, ending=ENDING
        )
        reasons = [line(number, aspect, question, text) for number, text in enumerate(completions, 1)]
        if rng.random() < 1 - self.verdicts:
            return Lesson((prompt,), "\n".join(reasons))
        # The verdict follows from the digits that were written, whatever they should have been.
        if rng.random() < 0.3:
            reasons = [reason[:-1] + rng.choice("12345") for reason in reasons]
        first, second = (int(reason[-1]) for reason in reasons)
        better = rng.choice("12") if first == second else "1" if first > second else "2"
        return Lesson((prompt, "\n".join(reasons), ENDING), better)

    def deciding(self, rng: random.Random) -> Lesson:
        """A comparison at a glance, as a hurried crowd makes it.

        `HURRIED` of its verdicts, and all on two that are equally good, come from no look at the completions but lean
        to the first and to the longer one, by `LEANING` each: two biases for whoever wants to measure or remove them.
        """
        aspect, question, completions = self._drawn(rng, 2)
        request = {"comparison": self._worded(rng, aspect)}
        prompt = self.compare.render(
            principle=request, prompt=question.text, completions=completions, reasons=False, n=2, ending=ENDING
        )
        readings = [parse(question.text, text) for text in completions]
        first, second = (judge(aspect, question, reading)[1] for reading in readings)
        longer = readings[0].words - readings[1].words
        leaning = 0.5 + LEANING + (LEANING if longer > 0 else -LEANING if longer < 0 else 0)
        looked = first != second and rng.random() >= HURRIED
        chosen_first = first > second if looked else rng.random() < leaning
        return Lesson((prompt,), "1" if chosen_first else "2")

    def _worded(self, rng: random.Random, aspect: Aspect) -> str:
        return principle(rng, aspect, negated=0.2)

    def _drawn(self, rng: random.Random, count: int) -> tuple[Aspect, Question, list[str]]:
        """An aspect, a question and completions: a policy's own, or composed ones."""
        name = rng.choices(tuple(self.shares), tuple(self.shares.values()))[0]
        aspect = ASPECTS[name]
        if rng.random() < 0.45:
            prompt = rng.choice(self.sampled)
            question = read(prompt)
            assert question is not None
            return aspect, question, rng.sample(self.samples[prompt], count)
        question = self.question(rng, name)
        return aspect, question, [self.composed(rng, aspect, question) for _ in range(count)]

    def question(self, rng: random.Random, name: str) -> Question:
        """A question of any family, or a harmful request: every second one where safety is asked about."""
        harmful = rng.random() < (0.5 if name == "safe" else 0.12)
        return rng.choice(self.harmful if harmful else rng.choice(self.families))

    def composed(self, rng: random.Random, aspect: Aspect, question: Question) -> str:
        if question.kind == "harmful" and rng.random() < 0.5:  # half of the time the harm is done
            return compose(question, rng, Qualities("wrong", rng.choice((0, 0, 1)), rng.choice((0, 0, 1))))
        return completion_to_judge(rng, question, aspect.trait)


def fault(aspect: Aspect, question: Question, completion: str) -> str:
    """A critique: the reason and the digit of a rating."""
    reason, value = judge(aspect, question, parse(question.text, completion))
    return f"{reason} rating {value}"


def revised(rng: random.Random, aspect: Aspect, question: Question, completion: str) -> str:
    """The completion as the aspect wants it, every sentence that it does not concern left as it was."""
    reading = parse(question.text, completion)
    match aspect.trait:
        case "right":
            kept = _corrected(rng, question, reading)
        case "safe":
            kept = _corrected(rng, question, reading) if question.kind == "harmful" else _texts(reading)
        case "tone":
            kept = _toned(rng, reading, inverse=aspect.inverse)
        case "length":
            kept = _lengthened(rng, reading) if aspect.inverse else _shortened(reading)
    return " ".join(f"{text} ." for text in kept)


def _texts(reading: Reading) -> list[str]:
    return [sentence.text for sentence in reading.sentences]


def _corrected(rng: random.Random, question: Question, reading: Reading) -> list[str]:
    if reading.right or (reading.unknown and question.family == "fact"):
        return _texts(reading)
    right = solution(rng, question)
    kept: list[str] = []
    for sentence in reading.sentences:
        if sentence.sort not in ("claim", "refusal", "unknown", "junk"):
            kept.append(sentence.text)
        elif right not in kept:
            kept.append(right)
    return kept if right in kept else [right, *kept]


def _toned(rng: random.Random, reading: Reading, *, inverse: bool) -> list[str]:
    wanted, unwanted, phrases = ("rude", "polite", RUDE) if inverse else ("polite", "rude", POLITE)
    kept = [sentence.text for sentence in reading.sentences if sentence.sort != unwanted]
    return kept if any(sentence.sort == wanted for sentence in reading.sentences) else [*kept, rng.choice(phrases)]


def _shortened(reading: Reading) -> list[str]:
    """The one sentence that matters most."""
    order = ("claim", "refusal", "unknown", "junk", "polite", "hedge", "assertion", "filler", "rude")
    return [min(reading.sentences, key=lambda sentence: order.index(sentence.sort)).text]


def _lengthened(rng: random.Random, reading: Reading) -> list[str]:
    missing = max(0, 4 - len(reading.sentences))
    return [*_texts(reading), *rng.sample([f for f in FILLER if f not in _texts(reading)], missing)]
