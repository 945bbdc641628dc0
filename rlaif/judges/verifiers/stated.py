"""What a completion states as its final text, number or choice.

A value is stated by `#### 42` (GSM8K, arXiv 2110.14168), by `\\boxed{42}` (MATH, arXiv 2103.03874), or by words such as
`the answer is 42` and `Answer: 42`. Where no value is stated, the text is the whole completion, the number is its last
number, and the choice is the one label that it sets apart, as in `(B)`. Nothing is guessed: a completion that states
two different values, or none that can be read, gives a problem and no value. Numbers written as words are not read;
units and percent signs are ignored. Everything here is linear in the length of the completion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeVar

Value = TypeVar("Value")


class Stated(NamedTuple):
    """Something stated as final. `how`: after `####`, in a box, or in words; `words` end with their sentence."""

    how: str
    words: str

    @property
    def negated(self) -> bool:
        return self.how == "words" and _NEGATED.search(self.words) is not None


_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S[^\n]*)$", re.MULTILINE)
# A look-ahead, which consumes nothing: two statements on one line are two matches.
_WORDS = re.compile(
    r"\banswer\b(?:[ \t]+to[ \t]+(?:the|this|your)[ \t]+(?:question|problem))?[ \t*_]{0,4}"
    r"(\b(?:(?:is|was)(?:n['\u2019]t)?|(?:can['\u2019]t|cannot|must|should|will|would)[ ]be)\b|[:=])"
    r"[\s*_:]{0,8}(?=([^\n]{0,300}))",
    re.IGNORECASE,
)
_BOX_OR_BRACE = re.compile(r"\\boxed\s{0,4}\{|\\[{}]|[{}]")
_SENTENCE_END = re.compile(r"[.!?](?=[\s*_\"'\u201d)]|$)|;")
_REASON = re.compile(r"\b(?:because|since|as|which|where|so)\b|\u2013|\u2014")
_NEGATED = re.compile(r"\b(?:not|never|neither|nor|cannot)\b|n['\u2019]t\b", re.IGNORECASE)


def stated(text: str) -> list[Stated]:
    """Everything that `text` states as final, readable or not."""
    hashes = [Stated("####", match[1].strip()) for match in _HASHES.finditer(text)]
    boxes = [Stated("box", content.strip()) for content in _boxes(text)]
    phrases = [(f"not {match[2]}" if _NEGATED.search(match[1]) else match[2]) for match in _WORDS.finditer(text)]
    return hashes + boxes + [Stated("words", _sentence(words)) for words in phrases if "\\boxed" not in words]


def _boxes(text: str) -> Iterator[str]:
    """The contents of each closed `\\boxed{...}` that holds no other."""
    opened: list[tuple[bool, int]] = []
    innermost = -1
    for match in _BOX_OR_BRACE.finditer(text):
        if match[0] == "}":
            boxed, start = opened.pop() if opened else (False, 0)
            if boxed and innermost < start:
                yield text[start : match.start()]
                innermost = start
        elif match[0] not in (r"\{", r"\}"):
            opened.append((match[0] != "{", match.end()))


def _sentence(words: str) -> str:
    """`words` up to the end of their sentence, or to where they begin to give reasons."""
    ends = [match.start() for match in (_SENTENCE_END.search(words), _REASON.search(words)) if match]
    return words[: min(ends, default=len(words))].strip()


def _agreed(values: Sequence[tuple[Value, str]]) -> tuple[Value | None, str | None]:
    """The one value that is stated, each given with its words; or the problem."""
    if not values:
        return None, "states no final value that can be read"
    if any(value != values[0][0] for value, _ in values):
        differing = list(dict.fromkeys(words[:30] for _, words in values))[:4]
        return None, f"states values that differ: {', '.join(map(repr, differing))}"
    return values[0][0], None


# --- Texts ------------------------------------------------------------------------------------------------------------


def final_text(text: str, normal: Callable[[str], str]) -> tuple[str | None, str | None]:
    """What is stated, else the whole of `text`, as `normal` writes it; or the problem."""
    statements = stated(text)
    if not statements:
        return normal(text.strip()), None
    return _agreed([(normal(_bare(one.words)), one.words) for one in statements if not one.negated])


def _bare(words: str) -> str:
    """Without the emphasis, quotes and full stop around it."""
    return words.strip().rstrip(".").strip("*_`\"'\u201c\u201d ").rstrip(".")


# --- Numbers ----------------------------------------------------------------------------------------------------------

# A number as it is written, with all that is glued to it: only `_number` knows whether the whole can be read.
_TOKEN = re.compile(r"(?<![\w.,^])[-+\u2212]?\.?\d[\w.,/:^\u00d7]*(?:(?<=[eE])[-+]\d+)?")
_DECIMAL = re.compile(
    r"[-+]?(?:(?:\d{1,3}(?:,\d{3}){1,100}(?![\d,])|\d{1,400})(?:\.\d{1,400})?|\.\d{1,400})(?:[eE][-+]?\d{1,3}(?!\d))?"
)
_FRACTION = re.compile(r"([-+]?\d{1,400})/(\d{1,400})")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{([-+]?\d{1,400})\}\{(\d{1,400})\}")
_LATEX = re.compile(r"\\(?:,|!|;|%|\$|text\{|mathrm\{|left|right)|[{}$\u20ac\u00a3]")
_ASIDE = re.compile(r"\([^()\n]{0,200}\)")
_LINE = re.compile(
    r"\W{0,8}\d(?:[\w.,/]*\w)?[^\d.:)\n]{0,30}\.?"
)  # after `####`: a number and its unit, not `1. First`


def final_number(text: str) -> tuple[Fraction | None, str | None]:
    """The number stated, else the last one of `text`; or the problem."""
    statements = [
        one for one in stated(text) if one.how != "####" or _LINE.fullmatch(_plain(one.words))
    ]  # else: a heading
    values: list[tuple[Fraction, str]] = []
    for one in statements:
        value, problem = (None, None) if one.negated else _number_in(_plain(one.words))
        if problem:
            return None, problem
        if value is not None:
            values.append((value, one.words))
    if values or any(one.negated or one.how == "box" for one in statements):
        return _agreed(values)
    tokens = list(_TOKEN.finditer(_plain(text)))
    if not tokens:
        return None, "states no number"
    last = tokens[-2:]
    either = len(last) == 2 and re.fullmatch(r"\W{0,3}or\W{0,3}", last[0].string[last[0].end() : last[1].start()])
    read = [(_number(token[0]), token[0]) for token in (last if either else last[-1:])]
    if any(value is None for value, _ in read):
        return None, f"its last number cannot be read: {read[-1][1][:30]!r}"
    return _agreed(read)


def _plain(words: str) -> str:
    """Without LaTeX and signs of currency."""
    return _LATEX.sub("", _LATEX_FRACTION.sub(r"\1/\2", words))


def _number_in(words: str) -> tuple[Fraction | None, str | None]:
    """The one number that some words state. None without a problem where they hold no number at all."""
    words = words.rpartition("=")[2]
    tokens = _TOKEN.findall(_ASIDE.sub("", words)) or _TOKEN.findall(words)
    values = {_number(token) for token in tokens}
    if None in values or len(values) > 1:
        return None, f"cannot be read as one number: {words.strip()[:60]!r}"
    return (values.pop() if values else None), None


def _number(written: str) -> Fraction | None:
    """`42`, `-1,234.5`, `1e-6`, `3/4`, `42kg`, `50.`; None for `1,2`, `3:30`, `1/0`, `10^6` and everything else."""
    written = written.replace("\u2212", "-").rstrip(".,:/")
    if fraction := _FRACTION.fullmatch(written):
        return Fraction(int(fraction[1]), int(fraction[2])) if int(fraction[2]) else None
    decimal = _DECIMAL.match(written)
    if decimal is None or not re.fullmatch(r"[^\W\d_]{0,10}", written[decimal.end() :]):
        return None
    return Fraction(decimal[0].replace(",", ""))


# --- Choices ----------------------------------------------------------------------------------------------------------

_AROUND = r"[\s*_`\"'(\[{$]*"
_MARKS = r"[\s.,:;!)\]}*_`\"'$]*"


def final_choice(text: str, among: Sequence[str]) -> tuple[str | None, str | None]:
    """The label stated, as `among` writes it, else the one that the text sets apart; or the problem.

    A label in words counts where it is all that is said, or a mark follows it: `the answer is A dog` states none.
    """
    labels = {label.casefold(): label for label in among}
    label = f"({'|'.join(re.escape(name) for name in sorted(among, key=len, reverse=True))})"
    begins = re.compile(rf"{_AROUND}(?:(?:option|choice)\b)?{_AROUND}{label}(?!\w)", re.IGNORECASE)
    ended = re.compile(rf"{_MARKS}$|[.,:;)\]}}*]")
    another = re.compile(rf"\W{{0,4}}(?:[,/&]|\bor\b|\band\b)\W{{0,4}}{label}(?!\w)", re.IGNORECASE)
    values: list[tuple[str, str]] = []
    statements = stated(text)
    for one in statements:
        words = one.words.replace("\\text{", "")
        match = None if one.negated else begins.match(words)
        if match and another.match(words, match.end()):
            return None, f"cannot be read as one choice: {one.words[:60]!r}"
        if match and ended.match(words, match.end()):
            values.append((labels[match[1].casefold()], one.words))
    if not values and not any(one.how != "####" for one in statements):
        whole = re.fullmatch(rf"{_AROUND}{label}{_MARKS}", text, re.IGNORECASE)
        apart = re.compile(rf"\({label}\)|^[ \t*_]*{label}(?:[).:](?=[\s*]|$)|[ \t*_]*$)")
        for line in text.splitlines():
            names = [next(filter(None, match.groups())) for match in apart.finditer(line)]
            if names and _NEGATED.search(line):
                return None, f"sets a choice apart and says what is not: {line.strip()[:60]!r}"
            values += [(labels[name.casefold()], name) for name in names]
        if whole:
            values = [(labels[whole[1].casefold()], text)]
    return _agreed(values)


def alternatives(reference: str, separator: str | None) -> list[str]:
    """The texts of which any is right: a JSON list, the parts between separators, or the whole."""
    if reference.lstrip().startswith("["):
        try:
            listed = json.loads(reference)
        except (ValueError, RecursionError):
            listed = None
        if isinstance(listed, list) and listed and all(isinstance(item, str | int | float) for item in listed):
            return [str(item) for item in listed]
    parts = [part.strip() for part in reference.split(separator)] if separator else [reference.strip()]
    return [part for part in parts if part]
