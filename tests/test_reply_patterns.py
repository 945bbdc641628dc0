"""A reply that holds none of a pattern's words is not searched for it: no match can be passed over.

It is proved of each pattern from its parse tree, not only tried: every way through the pattern passes one of its words.
"""

from __future__ import annotations

import importlib
import re
import re._constants as op  # the parse tree has no public name
import re._parser as parser
import string
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from rlaif.judges.replies.conclusions import _patterns
from rlaif.judges.replies.patterns import DIGITS, Pattern
from rlaif.judges.replies.scales import _says_as_asked
from rlaif.judges.replies.verdicts import _label

MODULES = ("conclusions", "objects", "rankings", "ratings", "scales", "scores", "second_thoughts", "verdicts", "words")
MOST_WAYS = 4_000  # texts that a part of a pattern may stand for, to be listed


def patterns() -> Iterator[tuple[str, Pattern]]:
    for name in MODULES:
        for attribute, value in vars(importlib.import_module(f"rlaif.judges.replies.{name}")).items():
            for pattern in value if isinstance(value, tuple) else (value,):
                if isinstance(pattern, Pattern):
                    yield f"{name}.{attribute}", pattern
    for offered in (("1", "2", "tie"), ("A", "B"), ("Output (a)", "Output (b)", "tie")):
        yield from zip(_patterns(offered)._fields, _patterns(offered), strict=True)
        yield "verdicts.label", _label(offered)
    yield "scales.as asked", _says_as_asked(1, 5)


WITH_WORDS = {id(pattern): (name, pattern) for name, pattern in patterns() if pattern.words != ("",)}
DEAR = ("second_thoughts._THERE_IS_WRONG", "scales._LEGEND")  # seconds each: in `make lab`
CASES = [
    pytest.param(pattern, id=name, marks=(pytest.mark.lab,) if name in DEAR else ())
    for name, pattern in WITH_WORDS.values()
]


def ways(items: Iterable[tuple[Any, Any]]) -> set[str] | None:
    """Every text that a part of a pattern stands for, in lower case; None where these cannot be listed."""
    found = {""}
    for item in items:
        one = ways_of(*item)
        if one is None or len(found) * len(one) > MOST_WAYS:
            return None
        found = {before + after for before in found for after in one}
    return found


def ways_of(kind: Any, value: Any) -> set[str] | None:
    if kind is op.LITERAL:
        return {chr(value).lower()}
    if kind in (op.AT, op.ASSERT, op.ASSERT_NOT):
        return {""}
    if kind is op.SUBPATTERN:
        return ways(value[-1])
    if kind is op.BRANCH:
        return either(ways(branch) for branch in value[1])
    if kind is op.IN:
        return either(ways_of(*one) for one in value)
    if kind is op.CATEGORY and value is op.CATEGORY_DIGIT:
        return set("0123456789")  # the digits of other scripts are folded into one of these
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT) and value[1] == 1:
        return either([ways(value[2]), set() if value[0] else {""}])
    return None


def either(each: Iterable[set[str] | None]) -> set[str] | None:
    found: set[str] = set()
    for one in each:
        if one is None:
            return None
        found |= one
    return found


def without(words: tuple[str, ...], items: Iterable[tuple[Any, Any]], before: set[str]) -> set[str]:
    """How the texts end that hold none of the words: those in `before`, each followed by what the items match."""
    for kind, value in items:
        if kind is op.SUBPATTERN:
            before = without(words, value[-1], before)
        elif kind is op.BRANCH:
            before = set().union(*(without(words, branch, before) for branch in value[1]))
        elif kind is op.ASSERT and value[0] > 0:  # what stands ahead is passed, though what follows matches it again
            before = before if lacking(words, before, ways(value[1]) or {""}) else set()
        elif (one := ways_of(kind, value)) is not None:
            before = lacking(words, before, one)
        elif kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            again = without(words, value[2], {""}) if without(words, value[2], before) else set()
            before = again if value[0] else before | again
        else:
            before = {""} if before else before
        for length in (16, 8, 4, 0):  # what is forgotten of a text's beginning cannot prove anything
            if len(before) > MOST_WAYS:
                before = {text[len(text) - length :] for text in before if len(text) > length} | {
                    text for text in before if len(text) <= length
                }
    return before


def lacking(words: tuple[str, ...], before: set[str], after: set[str]) -> set[str]:
    longest = max(map(len, words))
    joined = (one + other for one in before for other in after)
    return {text[-longest:] for text in joined if not any(word in text for word in words)}


def proved(pattern: Pattern) -> bool:
    return not without(pattern.words, parser.parse(pattern.pattern, pattern.flags), {""})


@pytest.mark.parametrize("pattern", CASES)
def test_whatever_a_pattern_matches_holds_one_of_its_words(pattern: Pattern) -> None:
    assert proved(pattern), pattern.pattern


@pytest.mark.parametrize("pattern", CASES[::8])
def test_a_word_that_is_missing_would_be_seen(pattern: Pattern) -> None:
    other = "|".join([*pattern.words, "zzz"])
    assert proved(Pattern(f"(?:{pattern.pattern})|zz", pattern.flags, words=other)) is False


def test_case_and_digits_of_every_script_are_folded_as_a_pattern_reads_them() -> None:
    letters = re.compile("[a-z]", re.IGNORECASE)
    found = {chr(code) for code in range(sys.maxunicode) if letters.fullmatch(chr(code))}
    assert found >= {"ſ", "K", "İ", "ı"}
    for character in found:
        (letter,) = (one for one in string.ascii_lowercase if re.fullmatch(one, character, re.IGNORECASE))
        assert Pattern(letter, re.IGNORECASE, words=letter).search(f"é{character}") is not None, character
    for code in range(sys.maxunicode):
        if chr(code).isdecimal():
            assert Pattern(r"\d", words="|".join(DIGITS)).search(f"é{chr(code)}") is not None, hex(code)


def test_a_pattern_is_not_compiled_before_a_text_holds_one_of_its_words() -> None:
    pattern = Pattern("best|worst", words="best|worst")
    assert pattern.search("fair") is None and "compiled" not in vars(pattern)
    assert pattern.search("the best, the fair", 5) is None and "compiled" not in vars(pattern)
    assert pattern.search("the best") is not None and "compiled" in vars(pattern)
