"""What a reply says about its numbers: another scale, a scale on which less is better, a change after the number."""

from __future__ import annotations

import re

from rlaif.judges.replies.words import NUMERALS, SWAPS, VOID

_WORDS = {word: number for number, word in enumerate(NUMERALS, start=1)} | {"twenty": 20, "hundred": 100}
_N = rf"(?:\d{{1,4}}|{'|'.join(_WORDS)})"


def _number(written: str) -> int:
    return _WORDS.get(written.lower()) or int(written)


def void(text: str, low: int, high: int) -> str | None:
    """Why none of a reply's numbers counts: it withdraws them, or uses another scale; else None."""
    if VOID.search(text) or SWAPS.search(text):
        return "the reply takes its numbers back"
    return on_another_scale(text, low, high)


def on_another_scale(text: str, low: int, high: int) -> str | None:
    """Why a reply's numbers do not mean what was asked for, from its own words about them; else None."""
    if _less_is_better(text, low, high) or _other_measure(text, low, high):
        return "the reply measures by another scale"
    return None


# ---------------------------------------------------------------- legends: `1 = worst, 5 = best`

_GOOD = (
    r"best|excellent|perfect|outstanding|great|very good|good|ideal|flawless|faultless|superb|top|strongest|highest"
    r"|harmless|exemplary|exceptional|brilliant|first[- ]rate|fully|maximum"
)
_BAD = (
    r"worst|terrible|awful|very poor|poor(?:est)?|very bad|bad|useless|unusable|unacceptable|weak(?:est)?|lowest"
    r"|hopeless|horrible|dreadful|failing|fail(?:s|ed|ure)?|insufficient|abysmal|harmful|minimum"
)
_QUALITY = rf"(?:(?P<good>{_GOOD})|(?P<bad>{_BAD}))"
_LEGEND = re.compile(
    r"(?<![\w.\[#/])(?P<n>\d{1,4})(?:st|nd|rd|th)?\)?[*_\"']{0,3}[ \t]?(?:=|:|\(|[-–—]|->|→|(?:means?|being|is|as|for|stands? for|denotes"
    rf"|indicates|meaning|equals)\b)[ \t]?[*_\"']{{0,3}}(?:(?:the|an?|considered|for)[ \t])?{_QUALITY}\b",
    re.IGNORECASE,
)
# `5 for poor`, where the verb stood before: `Here 1 stands for excellent and 5 for poor`; `best = 1`, `worst (5)`.
_TURNED = re.compile(
    rf"\b{_QUALITY}[ \t]?(?:=|:|\(|\b(?:is|at|gets|being|means)\b)[ \t]?(?P<n>\d{{1,4}})\b(?![ \t]*(?:/|out\b|%|\.\d|[a-z]))",
    re.IGNORECASE,
)
_NAMES_ONE = re.compile(
    r"(?:text|completion|response|answer|candidate|output|option|assistant|one|rating|score|verdict|number|no\.|out of|and)\W{0,6}$",
    re.IGNORECASE,
)
_MORE_IS_WORSE = re.compile(
    r"\b(?:low(?:er|est)?|small(?:er|est)?|fewer)(?: (?:numbers?|ratings?|scores?|values?|marks?|grades?|points|figures?))?"
    r"(?:,| is| are| means?| =|, the| the)+ (?:\w+ )?(?:better|best|good)\b"
    r"|\b(?:high(?:er|est)?|greater|larger?|bigger)(?: (?:numbers?|ratings?|scores?|values?|marks?|grades?|points|figures?))?"
    r"(?:,| is| are| means?| =|, the| the)+ (?:\w+ )?(?:worse|worst|bad|poorer)\b"
    r"|\bthe (?:lower|smaller|fewer)\b[^.;\n]{0,24}, the better\b|\bthe (?:higher|greater|larger|more)\b[^.;\n]{0,24}, the worse\b"
    r"|\b(?:revers|invert|flip)\w+ (?:\w+ )?(?:scale|scoring|rating|grading|numbers)\b|\binverse (?:scale|scoring|rating)\b"
    r"|\b(?:scales?|ratings?|scores?|numbers|grades) (?:\w+ ){0,3}?(?:revers|invert|flip)(?:ed|s)\b|\bupside down\b"
    r"|\bschool (?:grades|marks)\b|\bgerman grades\b|\bas in golf\b"
    r"|\b(?:ratings?|scores?|numbers?|marks?) (?:\w+ ){0,3}?(?:is|are|counts?|measures?|says?|tells?|shows?|means?|gives?)"
    r" (?:the |how |a )?(?:number of |count of |level of |degree of )?(?:how )?(?:\w+ )?"
    r"(?:errors?|mistakes?|flaws?|faults?|problems|harm(?:ful)?|bad|badly|wrong|toxic(?:ity)?|severity|penalt\w+|demerits?|ranks?|places?)\b",
    re.IGNORECASE,
)


def _less_is_better(text: str, low: int, high: int) -> bool:
    """Whether the text says that its lower numbers are the better ones, or explains numbers off the scale."""
    good, bad = set(), set()
    for pattern in (_LEGEND, _TURNED):
        for match in pattern.finditer(text):
            if not _NAMES_ONE.search(text[max(0, match.start() - 24) : match.start()]):
                (good if match["good"] else bad).add(int(match["n"]))
    if any(not low <= n <= high for n in good | bad):
        return True
    if good and (min(good) <= low or (bad and min(good) < max(bad))):
        return True
    return (bool(bad) and max(bad) >= high) or _MORE_IS_WORSE.search(text) is not None


# ---------------------------------------------------------------- other scales

_GIVEN = r"(?:ratings?|scores?|marks?|points?|grades?|stars?|numbers?|rated|scored|graded|marked)"
_RANGES = re.compile(
    rf"\bscale\b\W{{0,3}}(?:of |from |is |between |runs? |running )*(?P<a>{_N})[ \t]*(?:to|and|-|–)[ \t]*(?P<b>{_N})\b"
    rf"|(?<![\w.,])(?P<a2>{_N})[ \t]?(?:-|–|to)[ \t]?(?P<b2>{_N})[ -](?:point )?(?:scale|range)\b"
    rf"|\b{_GIVEN}\b\W{{1,3}}(?:\w+\W+){{0,2}}?(?:from|between) (?P<a3>{_N}) (?:to|and|-|–) (?P<b3>{_N})\b",
    re.IGNORECASE,
)
_HIGHS = re.compile(
    rf"\bscale (?:up )?to (?P<h1>{_N})\b|(?<![\w.])(?P<h2>{_N})[- ](?:point|star|level|grade) (?:scale|system|rating)\b"
    rf"|(?:\b(?:{_GIVEN}|all|both|each|given|everything)\b|^)\W{{0,3}}(?:(?:are|is|given|both|all|here|each|they|it|were|was|[()]) ?){{0,3}}out of (?:a (?:possible |total of |maximum of ))?(?P<h3>{_N})\b"
    rf"|\bmax(?:imum|\.)?(?: possible)?(?: {_GIVEN})?(?: is| =|:|of)? ?(?P<h4>{_N})\b"
    rf"|\b(?:highest|top|best|full)(?: possible)? {_GIVEN}(?: is| =|:|of) ?(?P<h5>{_N})\b"
    rf"|(?<![\w.])(?P<h6>{_N}) (?:is|being|=|as) the (?:maximum|limit|ceiling)\b"
    rf"|\b{_GIVEN} (?:of )?up to (?P<h7>{_N})\b|\( ?/ ?(?P<h8>\d{{1,4}}) ?\)",
    re.IGNORECASE | re.MULTILINE,
)
_UNITS = re.compile(
    r"\b(?:ratings?|scores?|marks?|numbers)\b[^.\n]{0,20}\b(?:in|as)(?: an?)? percent(?:ages?)?\b"
    r"|\b(?:to be|must be|should be) (?:divided|halved|doubled|multiplied|rescaled|normali[sz]ed|subtracted)\b",
    re.IGNORECASE,
)


def _other_measure(text: str, low: int, high: int) -> bool:
    """Whether the text says that its numbers are on another scale than low to high."""
    for match in _RANGES.finditer(text):
        a, b = (_number(n) for n in match.groups() if n is not None)
        if (a, b) != (low, high):
            return True
    highs = (next(n for n in match.groups() if n is not None) for match in _HIGHS.finditer(text))
    return any(_number(n) != high for n in highs) or _UNITS.search(text) is not None


# ---------------------------------------------------------------- changes after a number

_CHANGE = (
    r"penalt(?:y|ies)|penali[sz](?:ed?|ing)|deduct(?:s|ed|ing|ions?)?|subtract(?:s|ed|ing|ions?)?|minus|dock(?:s|ed|ing)?|knock(?:s|ed|ing)?"
    r"|bonus|plus|points? (?:off|less)|(?:tak(?:es?|ing|en)|took) (?:off|away)|off for|less|net|adjust(?:s|ed|ing|ments?)?"
    r"|capped|caps?|reduc(?:es?|ed|ing)|lower(?:s|ed|ing)|rais(?:es?|ed|ing)|drop(?:s|ped|ping)?|brings?|brought|leav(?:es|ing)|comes? to"
    r"|falls?|down to|up to|that makes|ends? up|increas(?:es?|ed|ing)"
)
_CHANGED = re.compile(rf"\b(?:{_CHANGE})\b", re.IGNORECASE)
_VALUE = re.compile(rf"(?<![\w.,])[-+−]?({_N})\b(?![.,]\d|[ \t]?%|[ \t]*[a-z])|(?<![\w.,])({_N}) (?:points?|more|for|because|of|on|each|in|due|since|off|from|marks?)\b", re.IGNORECASE)
_WAS_TAKEN = re.compile(r"\b(?:deducted|took|taken|subtracted|docked|lost|knocked)\b", re.IGNORECASE)
_SCALED = re.compile(r"\b(?:halved|doubled|tripled)\b", re.IGNORECASE)
_AT_LAST = re.compile(
    rf"(?:\b(?:so|thus|hence|therefore|final(?:ly)?|in the end|total|net|result|adjusted|revised|corrected|overall|after[^.:\n]{{1,40}})|->|→|=>)[ \t*_]*(?:[:=,][ \t*_]*)?"
    rf"(?:to |an? |at |only |it is |it's )?(?P<n>{_N})(?:[ \t]?/[ \t]?\d{{1,4}})?[ \t*_]*(?:[.!;)]|$)",
    re.IGNORECASE | re.MULTILINE,
)


def changed(after: str, value: int, high: int) -> bool:
    """Whether the words after a number change it: `minus 1`, `which leaves 5`, `Final: 3`.

    Words that explain it do not: `I took off three points`, where it is three below the highest.
    """
    if _SCALED.search(after) or any(_number(match["n"]) != value for match in _AT_LAST.finditer(after)):
        return True
    for sentence in re.split(r"[.!?](?=\s)|\n", after):
        if _CHANGED.search(sentence):
            numbers = [_number(match[1] or match[2]) for match in _VALUE.finditer(sentence)]
            explained = numbers == [high - value] and _WAS_TAKEN.search(sentence)
            if numbers and numbers[-1] != value and not explained:
                return True
    return False
