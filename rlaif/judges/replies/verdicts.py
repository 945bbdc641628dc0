"""A verdict on two completions, after reasons or without any: `2`, `Final verdict: [[B]]`, {"verdict": "1"}.

Without a formal one, a verdict told in a sentence: `Therefore, completion 2 is better.`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from rlaif.judges.replies.conclusions import concluded, names, speaks_against
from rlaif.judges.replies.objects import KNOWN, OBJECT, find_object, leaves, overridden
from rlaif.judges.replies.patterns import Pattern
from rlaif.judges.replies.second_thoughts import revokes, withdraws
from rlaif.judges.replies.words import (
    CUT,
    MOST_CHARACTERS,
    MOST_MARKS,
    RESULT,
    TOO_LONG,
    aside,
    foreign,
    narrow,
    quoted,
    spoken,
    unboxed,
)
from rlaif.records import Choice

_NAMED = r"(?:completion|text|response|answer|option|candidate|assistant)"
_KEYWORD = (
    r"(?:verdict|choice|decision|preference|winner|judge?ment|pick"
    rf"|(?:better|preferred|best|stronger|superior|winning)[ \t]+(?:one|{_NAMED})"
    rf"|preferred|(?:one|{_NAMED})[ \t]+i[ \t]+prefer)"
)
# No two of these words begin alike and `based on ...` stands once: a thousand of them can be read in one way only.
_LEADS = r"(?:(?:so|thus|therefore|hence|overall|finally|in conclusion|in summary|to conclude|my|the|final)\b,?[ \t]*)*"
# At the beginning of a line or sentence, with nothing before it but words that lead up to a verdict.
_KEY = Pattern(
    rf"(?:(?<=[.!?;][ \t])|^(?![ \t]*>)[ \t#*_•-]*){_LEADS}(?:based on [^.,:\n]{{1,60}}\b,?[ \t]*{_LEADS})?"
    rf"(?:\b{_KEYWORD}\b[*_]*(?:[ \t]*(?:[:=]|→)[*_]*\s*|[ \t]+is(?:[ \t]+that)?[ \t]*:?[ \t]*)|{RESULT})",
    re.IGNORECASE | re.MULTILINE,
    words=(
        "verdict|choice|decision|preference|winner|judgement|judgment|pick|better|prefer|best|stronger|superior|"
        "winning|[result]"
    ),
)
_SAYS_AGAIN = Pattern(r"[ \t]*:[ \t*_]*(?=\[\[)")  # `My final verdict is tie: [[C]]`
_STATES = Pattern(r" (?:is|wins|was)\b")  # `Verdict: completion 2 is better.`
MOST_OF_A_NAME = 40  # characters
_FIELDS = ("verdict", "choice", "winner", "preference", "preferred", "better", "decision")
_TIES = (
    r"(?:(?:it(?:'s|[ \t]+is)[ \t]+)?an?[ \t]+)?(?:tie|draw)|equal|equally[ \t]+(?:good|bad)"
    r"|(?:both|they|the[ \t]+two)[ \t]+(?:\w+[ \t]+)?are[ \t]+equal(?:ly[ \t]+(?:good|bad))?"
)
_LAST = r"[*_`\])\"']*"
# What may follow a verdict on its line: the end, or reasons that do not go on to qualify it.
_REASONS = Pattern(
    r"[ \t\r.!*_]*$|,?[ \t]+(?:because|since|as)\b|[ \t]*[.,;][ \t]+|[ \t]+[-–—][ \t]+|[ \t]+\(", re.IGNORECASE
)
_QUALIFIES = Pattern(
    r"[ \t(]*(?:or|and|not|no|but|if|unless|though|although|is|by|maybe|perhaps|possibly|also|then|both"
    r"|neither)\b|[^\n]*"
    r"\b(?:or (?:maybe|perhaps|rather|possibly|even)|unless|depends|on the other hand|not sure|unsure"
    r"|scratch that|were it not|would|almost|nearly)\b",
    re.IGNORECASE,
)
_CONCLUDES = Pattern(
    r"\b(?:therefore|thus|hence|in conclusion|i (?:choose|prefer|pick)|my (?:final |last )?(?:call|word|say"
    r"|ruling|pick|judge?ment))\b"
    r"|\bfinal (?:call|word|ruling)\b|\b(?:better|superior|on a par|tied?|equal(?:ly good)?):\W*$",
    re.IGNORECASE,
)
_BRACKETS = Pattern(r"\[\[[^\[\]\n]{1,12}\]\]")
_COMPARED = Pattern(r"\[\[([^\[\]\n<>=]{1,16})(>{1,3}|<{1,3}|={1,2})([^\[\]\n<>=]{1,16})\]\]")
_RESULT_LETTER = Pattern(rf"({RESULT})([AB])(?=[ \t.*_]*$)", re.MULTILINE)
_LOSES = Pattern(r"los[et]|losing|less|least|poor|worse|worst|reject|weak|inferior|bad", re.IGNORECASE)
_A_TEXT = Pattern(rf"{_NAMED}|\W*\d|texts?\b|first|second|[ab]$", re.IGNORECASE)
# After a verdict: a last word under another keyword.
_FINAL = Pattern(
    r"\b(?:final(?:ly)?|answer|overall|updated?|revised|corrected|new|adjusted|result|actual(?:ly)?|correct"
    r"|in the end|ultimately)\b[^:=\n]{0,30}[:=][*_]*[ \t]*(?=\S)",
    re.IGNORECASE,
    words="final|answer|overall|update|revised|correct|new|adjusted|result|actual|in the end|ultimately",
)
_A_LABEL_HERE = Pattern(r"(?:^|(?<=[\s:,;(]))(?=\S)", re.MULTILINE)
_NOT = Pattern(r"\b(?:not|n't|never)[ \t]+", re.IGNORECASE)
_LIST_ITEM = Pattern(r"\d[.)][ \t]+\w")
_ENDS_A_CLAUSE = Pattern(r"[ \t*_]*(?:[.!;)](?:\s|$)|$| (?:it is|then|instead|after all|now)\b)", re.MULTILINE)
_WITH_IT = Pattern(
    r"\b(?:than|over|unlike|to|of|and|or|in|with|by|from|for|against|beats|outperforms|while|nor|as|does|did"
    r"|both|about|says?|between|versus|vs\.?"
    r"|completion|text|response|answer|option|candidate|assistant|output|step|chapter|section|item|line|part"
    r"|point|example) $",
    re.IGNORECASE,
)
_NAMES_THE_WORSE = Pattern(
    r"\b(?:verdicts?|numbers?|letters?|choice|labels?|i)\b (?:\w+ ){0,3}(?:names?|naming|gives?|is|are|marks?"
    r"|stands? for|means?|denotes?|indicates?|picks?|pick out|states?|refers? to|write|list|chose|choose"
    r"|picked|selected)"
    r" (?:the )?(?:\w+ ){0,4}(?:worse|worst|weaker|weakest|loser|less|least|inferior|to reject|to avoid"
    r"|rejected|losing|poorer|bad)\b",
    re.IGNORECASE,
    words="worse|worst|weaker|weakest|loser|losing|less|least|inferior|reject|to avoid|poorer|bad",
)
_BECAUSE = Pattern(r"because|since|as", re.IGNORECASE)
_UNSAID = Pattern(
    r"^\W*\d|\b(?:worse|worst|not|reject\w*|weak\w*|least|los(?:es?|ers?|ing)|bad|avoid|inferior|never|n't)\b",
    re.IGNORECASE,
)


def read_choice(
    text: str, offered: Sequence[str] = ("1", "2", "tie"), *, cut: bool = False
) -> tuple[Choice | None, str | None]:
    """The verdict of a reply as A (the first of `offered`), B (the second) or tie (the third, where it is offered).

    It is the whole reply or a line of its own at either end, in double brackets, after a keyword such as `Verdict:`, or
    a field of one JSON object; without any of these, the sentence that the reply concludes with. All verdicts in formal
    positions must be the same. The reasons before it do not matter, but the words after it may not withdraw it or
    prefer the other. A line that goes on (`1 is worse`, `1 or 2`) gives no verdict. `cut`: the reply was truncated at
    max_tokens, and is unparsed.
    """
    if cut:
        return None, CUT
    heard = narrow(spoken(text)).strip()
    if len(heard) > MOST_CHARACTERS:
        return None, TOO_LONG
    label = _label(tuple(offered))
    heard = _compared(unboxed(heard, label), label, offered)
    choices: set[Choice | None] = set()
    end = 0
    if OBJECT.search(heard):
        parsed = find_object(heard)
        if isinstance(parsed, str):
            return None, parsed
        value, before = parsed
        choices.add(_field(value, label, offered) if isinstance(value, dict) else None)
        heard, end = before, len(before)
    given, last = _given(heard, label, offered)
    choices |= given
    end = max(end, last)
    if len(choices) > 1:
        return None, "several verdicts that differ"
    choice = next(iter(choices), None)
    if not choices:
        choice, end = concluded(heard, offered)
    if choice is None:
        return None, f"no verdict in a place of its own: expected {', '.join(offered)}"
    if _NAMES_THE_WORSE.search(heard) or (choices and revokes(heard)):
        return None, "the verdict may name the worse one"
    after = heard[end:]
    if after.strip(" \n.*_)]") and (
        withdraws(after, formal=bool(choices))
        or _prefers_other(after, choice, offered)
        or any(_chosen(label.match(after, m.end()), offered) not in (choice, None) for m in _FINAL.finditer(after))
        or _denies(after, choice, label, offered)
        or _names_other(after, choice, label, offered)
        or (choices and speaks_against(heard, choice, offered, end))
    ):
        return None, "the words after the verdict may take it back"
    return choice, None


def _denies(after: str, choice: Choice, label: Pattern, offered: Sequence[str]) -> bool:
    """Whether the words after a verdict deny it by its name: `It is not 2.`"""
    named = (label.match(after, match.end()) for match in _NOT.finditer(after))
    return any(
        found is not None and _chosen(found, offered) == choice and _ENDS_A_CLAUSE.match(after, found.end())
        for found in named
    )


def _names_other(after: str, choice: Choice, label: Pattern, offered: Sequence[str]) -> bool:
    """Whether the words after a verdict give the other one where a verdict could stand: `So 2 it is.`, `Not 1, 2.`"""
    if any(re.fullmatch("[a-z]", name) for name in offered[:2]):
        return False  # `a` is a word
    for match in _A_LABEL_HERE.finditer(after):
        found = label.match(after, match.end())
        if found is None or _chosen(found, offered) in (choice, None):
            continue
        listed = _LIST_ITEM.match(after, match.end()) and (match.end() == 0 or after[match.end() - 1] == "\n")
        if (
            _ENDS_A_CLAUSE.match(after, found.end())
            and not listed
            and not _WITH_IT.search(after[max(0, match.end() - 24) : match.end()])
        ):
            return True
    return False


def _field(item: dict[str, Any], label: Pattern, offered: Sequence[str]) -> Choice | None:
    """The verdict of a JSON object: one field that names it, and no other that changes or contradicts it."""
    fields = [key for key in item if key in _FIELDS]
    others = {key: value for key, value in item.items() if key not in fields}
    if not fields or overridden(others, ""):
        return None
    choices = {_chosen(label.fullmatch(str(item[field]).strip()), offered) for field in fields}
    choice = choices.pop()
    later = list(item)[list(item).index(fields[0]) + 1 :]
    for key, value in (leaf for name, held in others.items() for leaf in leaves(name, held)):
        named = _named(value, label, offered)
        same = named is None or (named != choice if _LOSES.search(key) and named != "tie" else named == choice)
        if key not in KNOWN and (not same or (named is not None and _A_TEXT.match(key))):
            return None  # it names another, or says which text is which
        if not isinstance(value, str):
            continue
        if concluded(value, offered)[0] not in (choice, None) or revokes(value) or _NAMES_THE_WORSE.search(value):
            return None
        if key in later and withdraws(value):
            return None
    return None if choices else choice


def _named(value: Any, label: Pattern, offered: Sequence[str]) -> Choice | None:
    """The verdict or the candidate that the value of a field names: `"2"`, `"Completion 2"`, `"the second"`."""
    if not isinstance(value, (int, str)):
        return None
    written = str(value).strip()
    given = _chosen(label.fullmatch(written), offered)
    if given is not None:
        return given
    for choice, name in zip(("A", "B"), names(tuple(offered)), strict=True):
        if len(written) < MOST_OF_A_NAME and re.fullmatch(name, written):
            return "A" if choice == "A" else "B"
    return None


@lru_cache(maxsize=16)
def _label(offered: tuple[str, ...]) -> Pattern:
    """What says one of the verdicts. Letters are capitals, since `a` is a word."""
    two = "|".join(map(re.escape, offered[:2]))
    ties = "|".join([*(re.escape(name) + r"\b" for name in offered[2:]), rf"(?i:{_TIES})\b"])
    return Pattern(
        rf"[*_`\"'(\[]{{0,8}}(?:(?i:{_NAMED})(?:[ \t]+#?|#|[ \t]+(?i:no\.|number)[ \t]*))?[*_`\"'(\[]{{0,8}}"
        rf"(?:(?<![\w.])(?P<first>{two})(?![\w.]*\w)|(?P<tie>{ties})){_LAST}"
    )


def _compared(heard: str, label: Pattern, offered: Sequence[str]) -> str:
    """The reply with `[[A>>B]]` as `[[A]]`, and `[[A=B]]` as a tie: Arena-Hard's verdicts (arXiv 2406.11939)."""

    def better(match: re.Match[str]) -> str:
        two = [_place(name, label, offered) for name in (match[1], match[3])]
        if sorted(map(str, two)) != ["A", "B"]:
            return match[0]
        if match[2].startswith("="):
            return "[[tie]]"
        return f"[[{offered['AB'.index(two[match[2].startswith('<')] or 'A')]}]]"

    heard = _COMPARED.sub(better, heard)
    return _RESULT_LETTER.sub(lambda m: m[1] + offered["AB".index(m[2])], heard) if "[RESULT]" in heard else heard


def _place(name: str, label: Pattern, offered: Sequence[str]) -> Choice | None:
    """The candidate that a name stands for; A and B stand for the first and the second, whatever is offered."""
    found = _chosen(label.fullmatch(name.strip()), offered)
    return found or ("A" if name.strip() == "A" else "B" if name.strip() == "B" else None)


def _chosen(match: re.Match[str] | None, offered: Sequence[str]) -> Choice | None:
    if match is None:
        return None
    if match["tie"]:
        return "tie" if len(offered) > 2 else None
    return "A" if match["first"] == offered[0] else "B"


def _given(heard: str, label: Pattern, offered: Sequence[str]) -> tuple[set[Choice | None], int]:
    """Every verdict in a formal position, None for one that is not clear, and where the last of them ends."""
    choices: set[Choice | None] = set()
    end = 0
    lines = heard.split("\n")
    starts = accumulate((len(line) + 1 for line in lines), initial=0)
    alone = [
        (i, at, match)
        for (i, line), at in zip(enumerate(lines), starts, strict=False)
        if (match := label.fullmatch(line.strip(" \t\r*_#").rstrip(".*_"))) is not None
    ]
    keyed = {match.end(): match.start() for match in _KEY.finditer(heard)}
    bracketed = {match.start(): match.start() for match in _BRACKETS.finditer(heard)}
    if len(alone) + len(bracketed | keyed) > MOST_MARKS:
        return {None}, len(heard)
    for i, at, match in alone:
        clear = _stands_alone(lines, i) and not quoted(heard, at) and not foreign(heard, at)
        choices.add(_chosen(match, offered) if clear else None)
        end = max(end, at + len(lines[i]))
    for start, begins in sorted((bracketed | keyed).items()):
        if aside(heard, begins):
            continue
        labelled = label.match(heard, start)
        if start in keyed and labelled is None and "\n" in heard[begins:start]:
            continue  # a heading such as `Decision:`, and sentences under it
        if start in keyed and labelled is not None:
            line = heard[start:].partition("\n")[0]
            if _STATES.match(heard, labelled.end()):
                stated = concluded(line, offered)[0]
                if stated or "\n" not in heard[begins:start]:
                    choices.add(stated)
                    end = max(end, start + len(line))
                continue
            if _SAYS_AGAIN.match(heard, labelled.end()):
                choices.add(_chosen(labelled, offered))
                continue
        sentence = re.split(r"[.!?]", heard[heard.rfind("\n", 0, begins) + 1 : begins])[-1]
        clear = (
            labelled is not None
            and _ends_there(heard[labelled.end() :].partition("\n")[0], label)
            and not (quoted(heard, begins) or foreign(heard, begins) or foreign(heard, start))
            and (start in keyed or not sentence.strip(" \t*_#-") or _concludes(heard, sentence, labelled.end()))
        )
        choices.add(_chosen(labelled, offered) if clear else None)
        end = max(end, labelled.end() if labelled else start)
    return choices, end


def _ends_there(rest: str, label: Pattern) -> bool:
    """Whether the rest of a line ends a verdict, or gives reasons that neither qualify it nor name the other."""
    reasons = _REASONS.match(rest)
    if reasons is None or _QUALIFIES.match(rest[reasons.end() :]):
        return False
    clause = re.split(r"[.;!]\s", rest)[0]
    return _BECAUSE.search(reasons[0]) is not None or not (_UNSAID.search(clause) or label.search(clause))


def _concludes(heard: str, sentence: str, end: int) -> bool:
    """Whether double brackets end the reply and its last sentence concludes with a verdict."""
    plain = not heard[end:].strip(" .*_") and _UNSAID.search(sentence) is None and "answer" not in sentence.lower()
    return plain and _CONCLUDES.search(sentence) is not None


def _stands_alone(lines: Sequence[str], i: int) -> bool:
    """Whether a label on a line of its own is the reply's first word or last, and not the beginning of a sentence."""
    before = [line for line in lines[:i] if line.strip()]
    after = [line for line in lines[i + 1 :] if line.strip()]
    if before and after:
        return False
    if not before:
        return not after or not lines[i + 1].strip()
    led = before[-1].rstrip(" \t\r*_")
    return led.endswith((".", "!", ":", "。", "！", "：")) and not (led.endswith(":") and _UNSAID.search(led))


def _prefers_other(after: str, choice: Choice, offered: Sequence[str]) -> bool:
    others = [name for name, value in zip(offered, ("A", "B"), strict=False) if value != choice]
    other = "|".join(map(re.escape, others))
    no_tie = r"|\bneither\b|\bboth are\b|\b(?:a|it's) tie\b"
    better = r"(?:better|best|preferable|superior|stronger|preferred)"
    return (
        re.search(
            rf"(?:{_NAMED}[ \t]+)?\b(?:{other})\b[ \t]+(?:is|seems|looks)[ \t]+(?:\w+[ \t]+){{0,2}}{better}\b"
            rf"|\b(?:prefer|choose|pick|go with)\b[ \t]+(?:{_NAMED}[ \t]+)?(?:{other})\b"
            rf"|\b(?:preference|vote|choice|verdict|decision|pick)[ \t]+(?:is|goes|was|would be)[ \t]+"
            rf"(?:for[ \t]+|to[ \t]+)?(?:{_NAMED}[ \t]+)?(?:{other})\b"
            rf"|\bthe other(?: one| {_NAMED})?(?:,[^,.\n]{{1,30}},)? (?:is|was|seems) (?:\w+ )?{better}\b"
            rf"|\b(?:in fact|rather|no|actually|truly|it is|make it),? the other(?: one| {_NAMED})?\W*$"
            rf"|\bit depends\b{'' if choice == 'tie' else no_tie}",
            after,
            re.IGNORECASE | re.MULTILINE,
        )
        is not None
    )
