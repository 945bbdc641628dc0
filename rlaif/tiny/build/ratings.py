"""What the annotator is taught: to rate one to four completions under a principle, giving its reason before the digit.

Knows the world and the rating prompt, not tokens' ids. A model of this size cannot judge at a glance. It learns to
write down what is needed, then what it got, and `ok` or `no` after each pair of words; the verdict is then a look-up:

    rate : we like right replies .                 [1] need five got five ok so right rating 5
    what is two plus three ?                       [2] need five got six no so wrong rating 1
    [1] it is five .
    [2] go away . it is six .

    rate : we like polite replies .                [2] tone away rude so rude want polite rating 2
    rate : we like long replies .                  [2] length one away two six so short want long rating 2

A principle is recognised by one keyword in any sentence, because the sentences it is taught are mostly word salad: a
model that sees fixed sentences learns them as strings. Words that are in no list below are unknown to it.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.templates import Template
from rlaif.tiny.lexicon import Lexicon, Quality
from rlaif.tiny.world import (
    CAPITALS,
    CATEGORY_OF,
    FAMILIES,
    ITEMS,
    LETTERS,
    NAMES,
    NUMBERS,
    PLURAL,
    POLITE,
    Content,
    Family,
    Qualities,
    Question,
    Reading,
    compose,
    parse,
    words,
)

Trait = Literal["right", "tone", "length", "safe"]


@dataclass(frozen=True)
class Aspect:
    """A quality a principle can ask for: the words that name it, and the words that, negated, mean the same."""

    trait: Trait
    keywords: tuple[str, ...]
    opposites: tuple[str, ...]
    inverse: bool = False


_RIGHT = (
    "right correct accurate true proper exact factual faithful valid truthful precise sound reliable honest".split()
)
_WRONG = "wrong false incorrect mistaken inaccurate untrue faulty erroneous invalid".split()
_POLITE = (
    "polite courteous kind friendly respectful gracious gentle civil warm considerate nice pleasant tactful cordial "
    "amiable caring thoughtful"
).split()
_RUDE = (
    "blunt rude harsh impolite unkind cold gruff coarse mean insulting nasty hostile disrespectful curt abrasive "
    "uncivil unfriendly"
).split()
_SHORT = "short brief concise terse succinct compact crisp pithy quick small little condensed snappy".split()
_LONG = (
    "long lengthy wordy detailed extended verbose elaborate rambling extensive full expansive thorough talkative"
).split()
_SAFE = "safe harmless secure careful cautious responsible innocuous protective ethical moral prudent".split()
_UNSAFE = "unsafe harmful dangerous risky hazardous reckless damaging hurtful destructive".split()

ASPECTS: dict[str, Aspect] = {
    "right": Aspect("right", tuple(_RIGHT), tuple(_WRONG)),
    "polite": Aspect("tone", tuple(_POLITE), tuple(_RUDE)),
    "blunt": Aspect("tone", tuple(_RUDE), tuple(_POLITE), inverse=True),
    "short": Aspect("length", tuple(_SHORT), tuple(_LONG)),
    "long": Aspect("length", tuple(_LONG), tuple(_SHORT), inverse=True),
    "safe": Aspect("safe", tuple(_SAFE), tuple(_UNSAFE)),
}

# What a digit means, for the traits that come in degrees. Tone is the number of rude sentences or, where there is none,
# of polite ones; length the number of sentences. Either is counted by naming each sentence by its last word. What the
# principle wants is named before the digit: seen and wanted are then two easy steps in place of one that is not learnt.
TONES = {5: "very polite", 4: "polite", 3: "plain", 2: "rude", 1: "very rude"}
LENGTHS = {5: "very short", 4: "short", 3: "middle", 2: "long", 1: "very long"}

_SENTENCES = (
    "we like {} replies .",
    "a good reply is {} .",
    "prefer the most {} reply .",
    "replies should be {} .",
    "be {} .",
    "how {} is it ?",
    "the reply must be {} .",
)
NEGATIONS = ("not", "never", "avoid", "no", "less", "without")
_BETWEEN = "be being at all too so very any a the like want write give anything replies text it that is".split()
_SALAD = (
    "we like want the of to be is it that should must all our good reply replies completion text one most more please "
    "give prefer rate value which and with in for very always best as choose judge see a how words users people say "
    ". , : ?"
).split()


FEW, MANY = 0.08, 0.5  # of the words around a keyword, the share that means nothing to the model


def principle(rng: random.Random, aspect: Aspect, *, negated: float = 0.0, strange: bool = True) -> str:
    """A wording of an aspect: a plain sentence, or its keyword among random words, some of them made up.

    Every second `strange` one is made up for half: so are sentences whose words the model was not taught.
    """
    strangers = rng.choice((FEW, MANY)) if strange else FEW
    keyword = rng.choice(aspect.keywords)
    if rng.random() < negated:  # the further away, the rarer
        between = (_between(rng, strangers) for _ in range(rng.choice((0, 0, 1, 1, 2, 3))))
        keyword = " ".join([rng.choice(NEGATIONS), *between, rng.choice(aspect.opposites)])
    if rng.random() < 0.35:
        return rng.choice(_SENTENCES).format(keyword)
    before, after = (
        " ".join(_stray(rng, strangers) for _ in range(rng.choice((0, 1, 2, 3, 4, 5, 8)))) for _ in range(2)
    )
    return f"{before} {keyword} {after} .".strip()


def _stray(rng: random.Random, strangers: float) -> str:
    return rng.choice(_SALAD) if rng.random() < 1 - strangers else _made_up(rng, 6)


def _between(rng: random.Random, strangers: float) -> str:
    return rng.choice(_BETWEEN) if rng.random() < 1 - strangers else _made_up(rng, 10)


def _made_up(rng: random.Random, longest: int) -> str:
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, longest)))


# --- Reasons --------------------------------------------------------------------------------------------------------


def line(number: int, aspect: Aspect, question: Question, completion: str) -> str:
    """The annotator's line on one completion."""
    reason, value = judge(aspect, question, parse(question.text, completion))
    return f"[{number}] {reason} rating {value}"


def judge(aspect: Aspect, question: Question, reading: Reading) -> tuple[str, int]:
    """The reason and the digit the world gives."""
    match aspect.trait:
        case "right":
            return _judge_right(question, reading)
        case "safe":
            return _judge_safe(question, reading)
        case "tone":
            value = (1 if reading.rude > 1 else 2) if reading.rude else 3 + min(2, reading.polite)
            marked = [f"{s.last_word} {s.sort}" for s in reading.sentences if s.sort in ("polite", "rude")]
            reason = " ".join(["tone", *marked, "so", TONES[value]])
            want = "rude" if aspect.inverse else "polite"
        case "length":
            value = min(5, max(1, 6 - len(reading.sentences)))
            counted = [f"{NUMBERS[n]} {s.last_word}" for n, s in enumerate(reading.sentences[:5], 1)]
            reason = " ".join(["length", *counted, "so", LENGTHS[value]])
            want = "long" if aspect.inverse else "short"
    return f"{reason} want {want}", 6 - value if aspect.inverse else value


def _judge_safe(question: Question, reading: Reading) -> tuple[str, int]:
    if question.family != "how":
        return "no harm asked so safe", 5
    request = " ".join(question.arguments)
    if question.kind != "harmful":
        return f"{request} fine so safe", 5
    got = "help" if reading.complied else "refusal" if reading.refused else "none"
    return f"{request} harmful got {got} so {'unsafe' if reading.complied else 'safe'}", 1 if reading.complied else 5


def _judge_right(question: Question, reading: Reading) -> tuple[str, int]:
    words = _right_steps(question, reading)
    if words[-1] == "unknown":
        return f"{' '.join(words)} so unknown", 3
    assert (words[-1] == "ok") == reading.right, (question, reading, words)
    return f"{' '.join(words)} so {'right' if reading.right else 'wrong'}", 5 if reading.right else 1


def _right_steps(question: Question, reading: Reading) -> list[str]:
    """What is needed, what it got, `ok` or `no`, step by step and only as far as the first `no`."""
    if question.kind == "harmful":
        got = "help" if reading.complied else "refusal" if reading.refused else "none"
        return [*question.arguments, "harmful", "need", "refusal", *_got(got, got == "refusal")]
    words, first_need = _preface(question)
    walk = {"list": _walk_list, "another": _walk_another}.get(question.family, _walk)
    for claim in reading.claims:
        words += walk(question, claim)
        if words[-1] == "no":
            return words
    if reading.refused or (reading.claims and not reading.right):
        return [*words, *(first_need if not reading.claims else []), *_got("refusal", False)]
    if not reading.claims:
        if reading.unknown and question.family == "fact":
            return [*words, *first_need, "got", "unknown"]
        return [*words, *first_need, *_got("unknown" if reading.unknown else "none", False)]
    return words


def _preface(question: Question) -> tuple[list[str], list[str]]:
    """What is worked out before looking at the completion; and the first need, for when there is nothing to compare."""
    match question.family:
        case "list":
            return ["need", question.arguments[0], PLURAL[question.arguments[1]]], []
        case "how":
            return [*question.arguments, "fine"], ["need", question.arguments[0]]
        case "choice":
            words = ["need", PLURAL[question.arguments[0]]]
            for letter, item in zip(LETTERS, question.arguments[1:], strict=False):
                kind = CATEGORY_OF[item]
                words += [letter, item, PLURAL[kind], "ok" if kind == question.arguments[0] else "no"]
                if words[-1] == "ok":
                    break
            return words, ["need", (question.needed or ())[0]]
        case "another":
            category, named = question.arguments
            return ["need", PLURAL[category], "not", named], []
        case _:
            return [], ["need", (question.needed or ())[0]]


def _walk(question: Question, claim: tuple[str, ...]) -> list[str]:
    needed = question.needed or ()
    if question.family in ("repeat", "format"):  # of any length, so its end is compared like a word
        needed, claim = (*needed, "end"), (*claim, "end")
    words: list[str] = []
    for need, got in zip(needed, claim, strict=False):
        words += ["need", need, *_got(got, need == got)]
        if need != got:
            break
    return words


def _walk_list(question: Question, claim: tuple[str, ...]) -> list[str]:
    count, category = question.arguments
    words: list[str] = []
    for index, item in enumerate(claim):
        if index == NUMBERS.index(count):
            return [*words, "more", "no"]
        kind = CATEGORY_OF[item]
        words += [NUMBERS[index + 1], item, PLURAL[kind], "ok" if kind == category else "no"]
        for earlier in claim[:index] if words[-1] == "ok" else ():
            words += [item, "not", earlier, "ok" if item != earlier else "no"]
            if words[-1] == "no":
                break
        if words[-1] == "no":
            return words
    return [*words, "end", "ok"] if len(claim) == NUMBERS.index(count) else [*words, "few", "no"]


def _walk_another(question: Question, claim: tuple[str, ...]) -> list[str]:
    category, named = question.arguments
    item, kind = claim[0], CATEGORY_OF.get(claim[0])
    words = [item, PLURAL[kind] if kind else "none", "ok" if kind == category else "no"]
    return [*words, item, "not", named, "ok" if item != named else "no"] if words[-1] == "ok" else words


def _got(got: str, ok: bool) -> list[str]:
    return ["got", got, "ok" if ok else "no"]


HARDER: dict[Family, int] = {
    "list": 5,
    "how": 5,
    "sum": 4,
    "choice": 3,
    "another": 3,
    "format": 3,
}  # where any other family has 2

# --- Lessons --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """What the annotator is asked, after what was said before, and what it should write."""

    turns: tuple[str, ...]
    assistant: str


class Lessons:
    """Draws lessons about the given questions, asked with the given rating prompt."""

    def __init__(self, questions: Sequence[Question], template: Template) -> None:
        self.template = template
        self.families = [[q for q in questions if q.family == family] for family in FAMILIES]
        there = zip(FAMILIES, self.families, strict=True)
        self.weights = [HARDER.get(family, 2) if questions else 0 for family, questions in there]

    def question(self, rng: random.Random) -> Question:
        """Any family, however many prompts it has; what is hard to judge more often."""
        return rng.choice(rng.choices(self.families, self.weights)[0])

    def ask(self, description: str, prompt: str, completions: Sequence[str]) -> str:
        """The user message of a rating, exactly as a judge stage renders it."""
        return self.template.render(aspect={"description": description}, prompt=prompt, completions=list(completions))

    def rating(
        self, rng: random.Random, name: str, count: int, *, negated: float = 0.0, strange: bool = True
    ) -> Lesson:
        """A rating of `count` composed completions to one prompt."""
        aspect, question = ASPECTS[name], self.question(rng)
        completions = [completion_to_judge(rng, question, aspect.trait) for _ in range(count)]
        described = principle(rng, aspect, negated=negated, strange=strange)
        return self.rate(question, completions, aspect, described)

    def rate(self, question: Question, completions: Sequence[str], aspect: Aspect, description: str) -> Lesson:
        lines = [line(number, aspect, question, text) for number, text in enumerate(completions, 1)]
        return Lesson((self.ask(description, question.text, completions),), "\n".join(lines))

    def solving(self, rng: random.Random) -> Lesson:
        """The question itself, and a right completion: who cannot solve it cannot know what is needed."""
        question = self.question(rng)
        sentences = [solution(rng, question)]
        if rng.random() < 0.25:
            sentences.insert(rng.randrange(2), rng.choice(POLITE))
        return Lesson(question.turns, " ".join(f"{sentence} ." for sentence in sentences))


def solution(rng: random.Random, question: Question) -> str:
    """A right sentence. A list is in alphabetical order: written greedily in any order, it repeats its first item."""
    if question.family != "list":
        return compose(question, rng, Qualities("right")).removesuffix(" .")
    claim = sorted(question.task.right(question.arguments, rng))
    return question.task.say(question.arguments, tuple(claim), rng)


def completion_to_judge(rng: random.Random, question: Question, trait: Trait) -> str:
    """Right as often as wrong, the rest of the qualities spread so that every digit is met."""
    content: Content = rng.choices(("right", "wrong", "malformed", "refusal", "unknown"), (50, 32, 8, 5, 5))[0]
    hedged, assertive = int(rng.random() < 0.12), int(rng.random() < 0.12)
    if trait == "tone":
        polite, rude, filler = rng.choice(((0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1), (2, 1), (1, 2))) + (
            rng.choice((0, 0, 1, 2)),
        )
    elif trait == "length":
        spread = rng.choice((0, 1, 2, 3, 4, 4, 5)) - hedged - assertive
        polite = rng.randint(0, max(0, min(2, spread)))
        rude = rng.randint(0, max(0, min(2, spread - polite)))
        filler = max(0, spread - polite - rude)
    else:
        polite = rude = filler = 0
        if rng.random() >= 0.4:
            polite, rude, filler = rng.choice((0, 1, 2)), rng.choice((0, 0, 1, 2)), rng.choice((0, 1))
    return compose(question, rng, Qualities(content, polite, rude, filler, hedged, assertive))


WORDS = (*ITEMS, *NAMES, *NUMBERS, *CAPITALS.values())


def drill(rng: random.Random) -> Lesson:
    """Dense practice of the single steps: comparing two words, seeing a repeated one, naming what kind an item is."""
    match rng.randrange(4):
        case 0 | 1:
            needs = [_word(rng) for _ in range(rng.randint(1, 4))]
            gots = [need if rng.random() < 0.6 else _word(rng) for need in needs]
            pairs = zip(needs, gots, strict=True)
            compared = " ".join(" ".join(["need", need, *_got(got, need == got)]) for need, got in pairs)
            return Lesson((f"compare : {' '.join(needs)} / {' '.join(gots)}",), compared)
        case 2:
            row = [rng.choice(ITEMS)]
            while len(row) < 3:
                row.append(rng.choice(row) if rng.random() < 0.3 else rng.choice(ITEMS))
            steps = [
                f"{item} not {earlier} {'ok' if item != earlier else 'no'}"
                for index, item in enumerate(row)
                for earlier in row[:index]
            ]
            return Lesson((f"double : {' '.join(row)}",), " ".join(steps))
        case _:
            items = [rng.choice(ITEMS) for _ in range(rng.randint(1, 4))]
            return Lesson((f"kinds : {' '.join(items)}",), " ".join(f"{i} {PLURAL[CATEGORY_OF[i]]}" for i in items))


def _word(rng: random.Random) -> str:
    if rng.random() < 0.9:
        return rng.choice(WORDS)
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 6)))


def vocabulary() -> list[str]:
    """Every word of the rating prompts and reasons, beside the world's."""
    texts = [
        *_SENTENCES, *NEGATIONS, *_BETWEEN, *_SALAD, *TONES.values(), *LENGTHS.values(), *_RIGHT, *_WRONG, *_POLITE,
        *_RUDE, *_SHORT, *_LONG, *_SAFE, *_UNSAFE,
        "rate need got ok no so right wrong unknown none refusal help harmful fine harm asked",
        "length safe unsafe rating tone more few end not compare double kinds / : 1 2 3 4 5 [",
    ]  # fmt: skip
    return sorted({word for text in texts for word in text.replace("{}", "").split()})


def lexicon() -> Lexicon:
    """What the annotator can be asked under, in its own words."""
    qualities = {name: Quality(keywords=a.keywords, opposites=a.opposites) for name, a in ASPECTS.items()}
    return Lexicon(
        qualities=qualities,
        negations=NEGATIONS,
        words=tuple(sorted({*vocabulary(), *words()})),
        completions=4,
        gold="world",
        judging=JUDGING,
        sampling={"max_tokens": 192},
    )


JUDGING: dict[str, dict[str, Any]] = {  # the short forms in which it was taught to be asked
    "compare": {
        "constitution": "constitutions/tiny.yaml",
        "template": "prompts/compare-compact.jinja",
        "ending": "which one ?",
        "reasons": True,
    },
    "rate": {
        "rubric": "prompts/rubrics/tiny.yaml",
        "template": "prompts/rate-compact.jinja",
        "answers": "lines",
        "sampling": {"temperature": 0, "max_tokens": 192},
    },
}
