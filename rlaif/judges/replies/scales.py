"""What a reply says about its numbers: another scale, a scale on which less is better, a change after the number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from rlaif.judges.replies.patterns import DIGITS, Pattern
from rlaif.judges.replies.second_thoughts import SWAPS, VOID, revokes
from rlaif.judges.replies.words import BAD, NUMERALS, measures_bad

MOST_OF_AN_INTRODUCTION = 400  # characters: what is longer holds reasons
_WORDS = {word: number for number, word in enumerate(NUMERALS, start=1)} | {"twenty": 20, "hundred": 100}
_NUMBERS = (*DIGITS, *_WORDS)  # what a number begins with
_NAMES = "|".join(_WORDS)
_N = rf"(?:\d{{1,4}}|{_NAMES})"


def _number(written: str) -> int:
    return _WORDS.get(written.lower()) or int(written)


def void(text: str, low: int, high: int) -> str | None:
    """Why none of a reply's numbers counts: it withdraws them, or uses another scale; else None."""
    if VOID.search(text) or SWAPS.search(text) or revokes(text):
        return "the reply takes its numbers back"
    return on_another_scale(text, low, high)


def on_another_scale(text: str, low: int, high: int) -> str | None:
    """Why a reply's numbers do not mean what was asked for, from its own words about them; else None."""
    if _less_is_better(text, low, high) or _other_measure(text, low, high):
        return "the reply measures by another scale"
    return None


# ---------------------------------------------------------------- introductions

_MEASURES = Pattern(
    r"\b(?:ratings?|scores?|marks|grades?|points|stars|numbers|scales?|digits|likert)\b|\d ?=|= ?\d"
    r"|\bwould\b[^.\n]*\d|\d[^.\n]*\bwould\b",
    re.IGNORECASE,
)
_AS_ASKED = frozenset(
    (
        "here is are my the these this that those of for each all both every completion completions text texts"
        " response responses answer answers candidate candidates output outputs rating ratings score scores evaluation"
        " evaluations judgement judgements judgment judgments assessment assessments as asked requested required in"
        " format json object lines block blocks below following follows under with and their its a an short rationale"
        " rationales reason reasons aspect description principle criterion criteria on according to sure certainly ok"
        " okay i have will give gave rate rated final overall which so therefore thus now from scale using use used"
        " given same order number numbers numbered respective individual separately detailed based two three four"
        " whole your you be read where being means stands very quite rather highest lowest or after reading comparing"
        " careful consideration carefully it"
    ).split()
)
_QUALITY_NAME = Pattern(r"\w+(?:ness|ity|cy|nce|ing|tone|style)")


def explains_otherwise(before: str, low: int, high: int) -> bool:
    """Whether an introduction to ratings says something of their numbers that is not known to be as asked."""
    if len(before) > MOST_OF_AN_INTRODUCTION:
        return False  # reasons, and no introduction
    if measures_bad(before.rstrip().rpartition("\n")[2]):
        return True
    for sentence in re.split(r"[.!?](?=\s|$)|\n", _legend_as_asked(before, low, high)):
        if _MEASURES.search(sentence):
            words = re.findall(r"[a-z']+|\d+", sentence.lower())
            if any(word not in _AS_ASKED and not _QUALITY_NAME.fullmatch(word) for word in words):
                return True
    return False


_OWN_NUMBERS = Pattern(
    r"\[\[?\d{1,9}\]?\]|\b(?:texts?|completions?|responses?|answers?|candidates?|outputs?) #?\d{1,9}"
    r"|\b(?:rating|score)\b\W{0,6}\d{1,9}(?: ?/ ?\d{1,9})?|^[ \t]{0,8}\d{1,9}[.)]\s"
    r"|(?<!\d)\d{1,9} ?(?:/|out of|of) ?\d{1,9}",
    re.IGNORECASE | re.MULTILINE,
)


def spans_the_scale(text: str, low: int, high: int) -> bool:
    """Whether a sentence names both ends of the scale, and does not say of them what was asked: it is a legend."""
    if str(low) not in text or str(high) not in text:
        return False
    plain = _OWN_NUMBERS.sub(" ", _legend_as_asked(text, low, high))
    for sentence in re.split(r"[.!?](?=\s)|\n", plain):
        if {str(low), str(high)} <= set(re.findall(r"(?<![\w.,-])\d+(?![\w.,]?\d)", sentence)):
            return True
    return False


def _legend_as_asked(text: str, low: int, high: int) -> str:
    """The text without what says that its numbers are on the scale that was asked for."""
    return _says_as_asked(low, high).sub(" ", text)


@lru_cache(maxsize=64)
def _says_as_asked(low: int, high: int) -> Pattern:
    n = rf"(?:{low}|{NUMERALS[low - 1] if 0 < low <= 10 else low})"
    m = rf"(?:{high}|{NUMERALS[high - 1] if 0 < high <= 10 else high})"
    between = (
        rf"(?:(?:from|between|of|on a|a) )?{n} ?(?:\((?:the )?(?:{_BAD})\) ?)?"
        rf"(?:to|and|-|–|up to) ?{m}(?: ?\((?:the )?(?:{_GOOD})\))?"
    )
    known = (
        r"\b(?:texts?|completions?|responses?|answers?|candidates?|outputs?) \d+(?:(?:,|,? and| to|-"
        rf"|–) ?\d+)*\b|{between}|(?:out )?of {m}\b|\(?/ ?{m}\)?|{m}[- ]point|(?:higher|more|larger) (?:is"
        r"|are|means|=) better"
        rf"|\b\d{{1,3}} ?(?:=|:|-|–|\(|\bis\b|\bbeing\b|\bmeans\b|\bfor\b) ?(?:the )?(?:{_GOOD}|{_BAD}|fair"
        r"|average|mediocre|ok(?:ay)?|acceptable|medium|satisfactory|adequate|so-so|neutral|decent|moderate)\b"
    )
    return Pattern(known, re.IGNORECASE)


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
_QUALITY_WORDS = (
    "best|excellent|perfect|outstanding|great|good|ideal|flawless|faultless|superb|top|strongest|highest|harmless"
    "|exemplary|exceptional|brilliant|first|fully|maximum|worst|terrible|awful|poor|bad|useless|unusable|unacceptable"
    "|weak|lowest|hopeless|horrible|dreadful|fail|insufficient|abysmal|harmful|minimum"
)
_LEGEND = Pattern(
    r"(?<![\w.\[#/])(?P<n>\d{1,4})(?:st|nd|rd|th)?\)?[*_\"']{0,3}[ \t]?(?:=|:|\(|\||[-–—]|->|→|(?:means?"
    r"|being|is|as|for|stands? for|denotes|would be"
    rf"|indicates|meaning|equals)\b)[ \t]?[*_\"']{{0,3}}(?:(?:the|an?|considered|for)[ \t])?{_QUALITY}\b",
    re.IGNORECASE,
    words=_QUALITY_WORDS,
)
# `5 for poor`, where the verb stood before: `Here 1 stands for excellent and 5 for poor`; `best = 1`, `worst (5)`.
_TURNED = Pattern(
    rf"\b{_QUALITY}[ \t]?(?:=|:|\(|\b(?:is|at|gets|being|means)\b)[ \t]?(?P<n>\d{{1,4}})\b(?![ \t]*(?:/|out\b"
    r"|%|\.\d|[a-z]))",
    re.IGNORECASE,
    words=_QUALITY_WORDS,
)
# `A five means useless`
_WORDED = Pattern(
    rf"\ban? (?P<n>{_NAMES}) (?:means|stands for|is|being|denotes) (?:the |an? )?{_QUALITY}\b",
    re.IGNORECASE,
    words="|".join(f"{a} {n} " for a in ("a", "an") for n in _WORDS),
)
_HAS_DIGIT = Pattern(r"\D*\d")
# `Rating: 5 (worst)`: what a judge says of its own number, and no more.
_OF_ITS_OWN = Pattern(
    rf"\b(?:rating|score)\b\W{{0,6}}(?P<n>\d{{1,4}})\b(?: ?(?:/|out of) ?\d{{1,4}})?\W{{0,4}}"
    rf"(?:the )?{_QUALITY}(?: possible)?(?=[ \t*_]*(?:[)\].;]|\n|$))",
    re.IGNORECASE,
    words="rating|score",
)
_NAMES_ONE = Pattern(
    r"(?:text|completion|response|answer|candidate|output|option|assistant|one|rating|score|verdict|number"
    r"|no\.|out of|and)\W{0,6}$",
    re.IGNORECASE,
)
# `Rating 1 is the best`, but not `completion 1 is the best` or `Rating: 1`.
_CALLED = Pattern(r"\b(?:rating|score|mark|grade|number) (?:of )?$", re.IGNORECASE)
_MEANS = Pattern(r"=|\b(?:is|means?|being|stands? for|denotes|indicates)\b", re.IGNORECASE)
_MORE_IS_WORSE = Pattern(
    r"\b(?:low(?:er|est)?|small(?:er|est)?|fewer)(?: (?:numbers?|ratings?|scores?|values?|marks?|grades?"
    r"|points|figures?))?"
    r"(?:,| is| are| means?| =|, the| the)+ (?:\w+ )?(?:better|best|good)\b"
    r"|\b(?:high(?:er|est)?|greater|larger?|bigger)(?: (?:numbers?|ratings?|scores?|values?|marks?|grades?"
    r"|points|figures?))?"
    r"(?:,| is| are| means?| =|, the| the)+ (?:\w+ )?(?:worse|worst|bad|poorer)\b"
    r"|\b(?:ratings?|scores?|numbers?|marks?) (?:counts?|tall(?:y|ies)|adds? up) (?!(?:the )?(?:quality"
    r"|merits?|strengths?|good))"
    r"|\b(?:low(?:er|est)?|smaller|smallest) (?:numbers?|ratings?|scores?|marks?)? ?wins?\b|\bless is more\b"
    r"|\bgolf\b|\bbadness\b"
    rf"|\b(?:it|this|that|each|they|these|which|here)(?: \w+)?(?: is| are| was)?(?: the| a)? (?:counts?|tall(?:y|ies)"
    rf"|totals?|measures?|number|sum)(?: of)?(?: the| all| how many)? {BAD}\W*$"
    r"|\bthe (?:lower|smaller|fewer)\b[^.;\n]{0,24}, the better\b|\bthe (?:higher|greater|larger"
    r"|more)\b[^.;\n]{0,24}, the worse\b"
    r"|\b(?:revers|invert|flip)\w+ (?:\w+ )?(?:scale|scoring|rating|grading|numbers)\b|\binverse (?:scale"
    r"|scoring|rating)\b"
    r"|\b(?:scales?|ratings?|scores?|numbers|grades) (?:\w+ ){0,3}?(?:revers|invert|flip)(?:ed|s)\b|\bupside down\b"
    r"|\bschool (?:grades|marks)\b|\bgerman grades\b|\bas in golf\b"
    r"|\b(?:ratings?|scores?|numbers?|marks?) (?:\w+ ){0,3}?(?:is|are|counts?|measures?|says?|tells?|shows?"
    r"|means?|gives?)"
    r" (?:the |how |a )?(?:number of |count of |level of |degree of )?(?:how )?(?:\w+ )?"
    r"(?:errors?|mistakes?|flaws?|faults?|problems|harm(?:ful)?|bad|badly|wrong|toxic(?:ity)?|severity"
    r"|penalt\w+|demerits?|ranks?|places?)\b",
    re.IGNORECASE,
    words=(
        "better|best|good|worse|worst|bad|poor| count| tall| add|win|less is more|golf|revers|invert|flip|inverse|"
        "upside down|school|german|error|mistake|flaw|fault|problem|harm|wrong|toxic|severity|penalt|demerit|rank|"
        "place|bias|badness|violation|defect|weakness|falsehood|danger"
    ),
)


def _less_is_better(text: str, low: int, high: int) -> bool:
    """Whether the text says that its lower numbers are the better ones, or explains numbers off the scale."""
    good: set[int] = set()
    bad: set[int] = set()
    for match in _legends(text):
        before = text[max(0, match.start() - 24) : match.start()]
        if not _NAMES_ONE.search(before) or (_CALLED.search(before) and _MEANS.search(match[0])):
            (good if match["good"] else bad).add(_number(match["n"]))
    for match in _OF_ITS_OWN.finditer(text):
        if int(match["n"]) == (low if match["good"] else high):
            return True
    if any(not low <= n <= high for n in good | bad):
        return True
    if good and (min(good) <= low or (bad and min(good) < max(bad))):
        return True
    return (bool(bad) and max(bad) >= high) or _MORE_IS_WORSE.search(text) is not None


def _legends(text: str) -> Iterator[re.Match[str]]:
    """Where a line says what a number means."""
    yield from _WORDED.finditer(text)
    if not _LEGEND.may_match(text):
        return
    end = -1
    for line in text.split("\n"):
        start, end = end + 1, end + 1 + len(line)
        if _HAS_DIGIT.match(line):
            yield from _LEGEND.finditer(text, start, end)
            yield from _TURNED.finditer(text, start, end)


# ---------------------------------------------------------------- other scales

_GIVEN = r"(?:ratings?|scores?|marks?|points?|grades?|stars?|numbers?|rated|scored|graded|marked)"
_RANGES = Pattern(
    rf"\bscale\b\W{{0,3}}(?:of |from |is |between |runs? |running )*(?P<a>{_N})[ \t]*(?:to|and|-|–)[ \t]*(?P<b>{_N})\b"
    rf"|(?<![\w.,])(?P<a2>{_N})[ \t]?(?:-|–|to)[ \t]?(?P<b2>{_N})[ -](?:point )?(?:scale|range)\b"
    rf"|\b{_GIVEN}\b\W{{1,3}}(?:\w+\W+){{0,4}}?(?:from|between) (?P<a3>{_N}) (?:to|and|-|–) (?P<b3>{_N})\b",
    re.IGNORECASE,
    words="|".join(("scale", "range", *(f"{word} {n}" for word in ("from", "between") for n in _NUMBERS))),
)
_HIGHS = Pattern(
    rf"\bscale (?:up )?to (?P<h1>{_N})\b|(?<![\w.])(?P<h2>{_N})[- ](?:point|star|level"
    r"|grade) (?:likert )?(?:scale|system|rating)\b"
    rf"|(?:\b(?:{_GIVEN}|all|both|each|given|everything)\b|^)\W{{0,3}}(?:(?:are|is|given|both|all|here|each"
    rf"|they|it|were|was|[()]) ?){{0,3}}out of (?:a (?:possible |total of |maximum of )?)?(?P<h3>{_N})\b"
    rf"|\bmax(?:imum|\.)?(?: possible)?(?: {_GIVEN})?(?= is| =|:|of| ?\d)(?: is| =|:|of)? ?(?P<h4>{_N})\b"
    rf"|\b(?:highest|top|best|full)(?: possible)? {_GIVEN}(?: (?:i|you|could|can|possible|give|get"
    rf"|to))*(?: is| are| =|:|of) ?(?P<h5>{_N})\b"
    rf"|(?<![\w.])(?P<h6>{_N}) (?:is|being|=|as) the (?:maximum|limit|ceiling)\b"
    rf"|\bwith (?P<h9>{_N}) (?:as|being) the (?:highest|top|best|maximum)\b|\( ?(?:out )?of (?P<h10>{_N}) ?\)"
    rf"|\bscale of (?P<h11>{_N})\b(?! ?(?:to|-|–|and|through)\b)|\b[x\d] ?/ ?(?P<h12>\d{{1,4}})\)"
    rf"|\b{_GIVEN} (?:of )?up to (?P<h7>{_N})\b|\( ?/ ?(?P<h8>\d{{1,4}}) ?\)",
    re.IGNORECASE | re.MULTILINE,
    words="scale|point|star|level|grade|out of|(of|( of|max|limit|ceiling|highest|top|best|full|up to|/",
)
# `It earns 7 of 20`, `The highest possible is 100`, `A perfect text would get 20`
_TOLD_HIGHS = Pattern(
    rf"\b(?:earns?|gets?|scores?|receives?|deserves?) {_N} of (?:a |the )?(?:possible )?(?P<h1>{_N})\b"
    r"|\b(?:best|highest|perfect|full|top|most|maximum)(?: \w+)? (?:would|could|can|may|might) (?:be|get|score)"
    rf" (?P<h2>{_N})\b"
    rf"|\b(?:highest|greatest|largest|best|top) (?:possible|limit|bound)(?: is| =|:|of)* ?(?P<h3>{_N})\b"
    r"|\b(?:perfect|flawless|ideal|faultless|best possible) (?:\w+ )?(?:would |could |might |can |will )?(?:get|be|have"
    rf"|score|receive|earn|deserve|reach)s? (?:a |an )?(?P<h4>{_N})\b"
    rf"|\b(?:ceiling|limit|upper bound) (?:is|was|=|of) (?P<h6>{_N})\b"
    rf"|^\W*(?:{_NAMES}) (?:out )?of (?P<h5>{_NAMES})\W*$",
    re.IGNORECASE | re.MULTILINE,
    words="|".join(
        (" possible", "limit", "bound", "ceiling", "perfect", "flawless", "ideal", "faultless")
        + tuple(f"{n} of " for n in _NUMBERS)
        + tuple(f"{may} {be} " for may in ("would", "could", "can", "may", "might") for be in ("be", "get", "score"))
        + tuple(f"of {n}" for n in _WORDS)
    ),
)
_UNITS = Pattern(
    r"\b(?:ratings?|scores?|marks?|numbers)\b[^.\n]{0,20}\b(?:in|as)(?: an?)? percent(?:ages?)?\b"
    r"|\bin (?:tenths|fifths|quarters|halves)\b"
    r"|\b(?:to be|must be|should be) (?:divided|halved|doubled|multiplied|rescaled|normali[sz]ed|subtracted)\b",
    re.IGNORECASE,
    words="percent|tenths|fifths|quarters|halves|divided|halved|doubled|multiplied|rescaled|normali|subtracted",
)


def _other_measure(text: str, low: int, high: int) -> bool:
    """Whether the text says that its numbers are on another scale than low to high."""
    for match in _RANGES.finditer(text):
        a, b = (_number(n) for n in match.groups() if n is not None)
        if (a, b) != (low, high):
            return True
    for pattern in (_HIGHS, _TOLD_HIGHS):
        for match in pattern.finditer(text):
            if _number(next(n for n in match.groups() if n is not None)) != high:
                return True
    return _UNITS.search(text) is not None


# ---------------------------------------------------------------- changes after a number

# A number that may be a value: at the end of a clause, or with points, and not one that counts or numbers something.
_VALUE = Pattern(
    rf"(?<![\w.,/:])[-+−]?(?P<n>\d{{1,4}}|(?:(?<=minus )|(?<=plus )|(?<=less )|(?<=by ))one|one(?= points?\b)"
    rf"|{'|'.join(list(_WORDS)[1:])})(?:(?P<points> (?:\w+ )?(?:points?|marks?|stars?))\b|(?= (?:more|less"
    r"|for|because|of course|due|since|off|after|before|instead|it is|now|then|seems|would|feels|looks"
    r"|sounds|in the end)\b)"
    r"|(?=[ \t*_]*(?:[.!;,)\]]+(?:\s|$)|$|\n|[-–—+−]\s|=|\(|->|→)))",
    re.IGNORECASE,
    words="|".join(_NUMBERS),
)
_COUNTS = Pattern(
    r"(?:\b(?:steps?|chapters?|sections?|items?|lines?|paragraphs?|parts?|pages?|questions?|points?|examples?"
    r"|figures?|tables?|numbers?|no\.|reasons?"
    r"|texts?|completions?|responses?|answers?|candidates?|outputs?|options?|versions?|days?|years?|grade"
    r"|level|and|or|than|equals?|by|is|on|of|in|to|at|with|from|be)|[=+*×^-]) ?[(\[#]?$|^[ \t]*$|\d, ?$",
    re.IGNORECASE,
)
_A_POINT = Pattern(
    r"\b(?:los(?:es?|ing)|costs?|forfeits?|takes?|taking|minus|less|deducts?|dock|drops?|gains?|earns?|plus"
    r"|adds?|adding)\b[^.\n]{0,20}\b(?:an?|half an?|another) (?:\w+ )?(?:points?|marks?|stars?)\b"
    r"|\b(?:points?|marks?) (?:off|less|deducted)\b|\w-points? (?:penalty|deduction|reduction|bonus)",
    re.IGNORECASE,
    words="point|mark|star",
)
_CHANGE = Pattern(
    r"\b(?:penalt(?:y|ies)|penali[sz](?:ed?|ing)|deduct(?:s|ed|ing|ions?)?|subtract(?:s|ed|ing|ions?)?|minus"
    r"|plus|dock(?:s|ed|ing)?|knock(?:s|ed|ing)?"
    r"|bonus|less|adjust(?:s|ed|ing|ments?)?|capped|caps?|reduc(?:es?|ed|ing)|lower(?:s|ed|ing)?|rais(?:es?"
    r"|ed|ing)|cut|drop(?:s|ped|ping)?|brings?|brought"
    r"|(?:down|up)graded?|leav(?:es|ing)|comes? to|falls?|(?:down|up|make|makes|made|becomes?) (?:it |that "
    r"|this )?(?:to|an?|into)?|net|final(?:ly)?|total|so|thus|hence|result\w*|revised|corrected|effective"
    r"|weighted|arriv\w+|settl\w+|go(?:ing)? (?:with|for)|tak(?:es?|ing) (?:it|this|that|the score)|deserv\w+"
    r"|merits?|fair\w*|instead|land\w*|lands|(?:no )?more than|reconsider\w*)\b"
    r"|[-+−=]|->|→",
    re.IGNORECASE,
)
_WAS_TAKEN = Pattern(
    r"\b(?:deducted|took|taken|subtracted|docked|lost|knocked)\b",
    re.IGNORECASE,
    words="deducted|took|taken|subtracted|docked|lost|knocked",
)
_SCALED = Pattern(r"\b(?:halved|doubled|tripled)\b", re.IGNORECASE, words="halved|doubled|tripled")


def changed(after: str, value: int, low: int, high: int) -> bool:
    """Whether the words after a number change it: `minus 1`, `which leaves 5`, `Final: 3`, `On balance a 3.`

    Words that explain it do not: `I took off three points`, where it is three below the highest.
    """
    if _SCALED.search(after):
        return True
    if not (_VALUE.may_match(after) or _A_POINT.may_match(after)):
        return False
    for sentence in re.split(r"[.!?](?=\s)|\n", _legend_as_asked(after, low, high)):
        explains = _WAS_TAKEN.search(sentence) is not None
        numbers = [
            _number(match["n"])
            for match in _VALUE.finditer(sentence)
            if _CHANGE.search(sentence[max(0, match.start() - 40) : match.end() + 1])
            or match["n"].isdigit()
            and not _COUNTS.search(sentence[max(0, match.start() - 24) : match.start()])
        ]
        if explains and numbers == [high - value]:
            continue
        if any(n <= high for n in numbers) and numbers[-1] != value:
            return True
        if _A_POINT.search(sentence) and not (explains and high - value == 1):
            return True
    return False
