"""What a judge says of its own answer: that it corrects it, takes it back, or has mixed the two up."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlaif.judges.replies.patterns import Pattern
from rlaif.judges.replies.words import NUMERALS, unquoted

_AGAIN = r"(?:thoughts?|reading|look|inspection|glance|reflection|consideration|examination|analysis|thinking)"
CORRECTS = (
    r"actually|correction|(?:up)?on (?:reflection|re-?reading|reconsideration|re-?examination"
    rf"|(?:a )?(?:second|third|final|last|closer|further|careful|another|more|deeper) {_AGAIN})"
    r"|(?:having|after) (?:re-?read|reconsider|re-?think|re-?thought|re-?check)\w*|(?:thinking|looking"
    r"|reading) (?:\w+ ){0,2}(?:again|over)|in hindsight|second thoughts?"
    r"|(?:scratch|strike|disregard|ignore|forget|discard) (?:that|this|it|the above|what)|withdrawn|retracted"
    r"|i stand corrected|my bad|(?:hold|hang) on|let me think|(?:i )?think(?:ing)? again|ah|oh|yet|wait|sorry"
    r"|oops|hmm+|rather(?! than)|really"
    r"|make (?:that|it)|i mean|i meant|let me (?:revise|correct|change|reconsider)|my mistake|apologies|edit(?:ed)?"
    r"|update[ds]?|revised|no(?=[,.;!])|not(?=[.!])|nope|just kidding"
)
# At the beginning of a clause, so that `it actually answers` corrects nothing.
CORRECTION = Pattern(
    rf"(?:^|[.!?;,:(\n–—-])[ \t*_]{{0,8}}(?:but |and )?(?:{CORRECTS})\b|\bshould (?:be|read|say|have been"
    r"|have read|have said)\b"
    r"|\bchang(?:e|ed|ing) (?:it|that|this|my|the|to)\b|\b(?:take|took|taking) (?:it|that) back\b"
    r"|\bi(?:'d| would| will|'ll)? (?:lower|raise|revise|correct|downgrade|upgrade|take|deduct|subtract)\b"
    r"|\bis (?:really|more like|rather)\b|\bi (?:no longer|was (?:wrong|mistaken|too)|misread|misjudged"
    r"|reconsider\w*|take (?:it|that|this) back|withdraw|retract|spoke too)\b"
    r"|\b(?:changed|change|changing) my mind\b",
    re.IGNORECASE,
    words=(
        "actually|correction|corrected|i correct|me correct|on reflection|on reconsideration|on re-|on reread|"
        "on reexam|on second |on third |on final |on last |on closer |on further |on careful |on another |on more |"
        "on deeper |on a second |on a third |on a final |on a last |on a closer |on a further |on a careful |"
        "on a another |on a more |on a deeper |re-read|reread|reconsider|rethink|re-think|rethought|re-thought|"
        "recheck|re-check|thinking |looking |reading |hindsight|second thought|scratch |strike |disregard |ignore |"
        "forget |discard |withdrawn|retracted|my bad|hold on|hang on|let me |think again|ah|oh|yet|wait|sorry|oops|"
        "hmm|rather|really|make that|make it|i mean|my mistake|apologies|edit|update|revise|no,|no.|no;|no!|not.|"
        "not!|nope|just kidding|should |change |changed |changing |take |took |taking |i'd |i would |i will |i'll |"
        "i lower|i raise|i downgrade|i upgrade|i deduct|i subtract|i take|is more like|i no longer|i was |i misread|"
        "i misjudged|i withdraw|i retract|i spoke"
    ),
)
SWAPS = Pattern(
    r"\b(?:swap|exchang|revers)\w*(?: \w+)? (?:the two|them|these|those|two|ratings|scores|numbers|verdicts?"
    r"|completions?|texts?|\W?\d)"
    r"|\bmixed (?:\w+ ){0,3}up\b|\b(?:other|wrong) way a?round\b|\bwrong (?:order|number|one|letter)\b"
    r"|\btypo\b|\bmistyped\b|\bvice versa\b|\bbackwards\b|\bthe (?:reverse|opposite|other way round) (?:is"
    r"|holds|applies)\b"
    r"|\b(?:verdict|answer|choice|order|result|decision) (?:is|should be|must be) the (?:reverse|opposite)\b"
    r"|\bconfused (?:the two|them|these|one)\b|\b(?:got|had|have|has) (?:it|that|them|this"
    r"|these) (?:\w+ )?(?:reversed|switched|flipped|swapped|inverted|confused|wrong)\b|\b(?:numbers|labels"
    r"|names|texts|two) (?:are|were|got) (?:\w+ )?(?:reversed|switched|flipped|swapped|inverted|exchanged)\b",
    re.IGNORECASE,
    words=(
        "swap|exchang|revers|mixed |wrong|typo|mistyped|vice versa|backwards|opposite|other way |confused|switched|"
        "flipped|inverted"
    ),
)
VOID = Pattern(
    r"\b(?:disregard|ignore|discard) (?:the|this|these|that|my|all)\b|\bplaceholders?\b|\bdummy\b|\b(?:wrong"
    r"|other) (?:texts|completions)\b"
    r"|\bi (?:decline|refuse) to\b|\bin reverse\b|\b(?:are|were) (?:only |just )?(?:examples|guesses)\b",
    re.IGNORECASE,
    words=(
        "disregard|ignore|discard|placeholder|dummy|wrong|other text|other completions|decline|refuse|reverse|"
        "example|guesses"
    ),
)


# ---------------------------------------------------------------- what it says of its own answer as a whole

_ONE = r"(?:verdict|choice|decision|judge?ment|rating|score|ranking|mark|grade|pick)"
# By names that no completion's content has: `this rating`, `the line above`, `all of these scores`.
_MINE = (
    rf"(?:(?:this|that|these|those|the|my|both|all|each|any|no|which|such)(?: (?:of|the|my|these|those|above|final"
    rf"|previous|first|given|stated|last|preceding))* {_ONE}s?(?: (?:above|given|stated|here|i gave))?"
    r"|(?:the|this|that|these|those) (?:above|preceding|previous) (?:line|table|list|number|answer|result|figure"
    r"|order)s?|(?:line|table|list|number|answer|result|figure|order)s? above"
    r"|(?:my|these|those|both) (?:number|figure|answer|list|table|order)s?"
    rf"|(?:everything|all|nothing|any|most|much|either|each)(?: of)? (?:the above|these|those|this|that)(?: {_ONE}s?)?)"
)
_WAS = r"(?:is|are|was|were|has been|have been|should be|must be|may be|might be|being)"
_NOT = r"(?:n't| not| never| no longer)"
_IT = rf"(?:{_MINE}|(?:it|this|that|these|those|them)\b(?=\W*$|[.!;,)]))"
_INDEED = (
    r"(?:(?:in fact|simply|clearly|just|only|completely|plainly|probably|now|therefore|thus|hence|also|of course"
    r"|actually|really|all|both|perhaps|not|merely?|entirely|quite|an?|my|the|pure|complete|random|first|rough) )*"
)
_WORTHLESS = (
    "wrong|incorrect|false|invalid|void|null|mistake|mistaken|untrue|withdrawn|retracted|overturned|overruled|reversed"
    "|inverted|revoked|cancelled|canceled|rejected|nonsense|meaningless|made up|invented|random|arbitrary|fake|guess"
    "|guesses|joke|test|slip|lie|typo|error|example|examples|sample|draft|opposite|reverse"
)
_VALID = (
    "valid|mine|my|final|right|correct|meant|real|serious|reliable|true|binding|sound|tenable|justified|what i"
    "|to be|trustworthy|usable|intended"
)
_HOLDS = "hold|stand|count|apply|be used|be trusted|be right|reflect my|reflect what|say what|mean what"
_MEANS = "stand by|mean|meant|believe in|believe|trust|follow|endorse|agree with|hold"
_USES = "use|trust|rely on|count|take|accept|follow|believe|read|record|heed|be used|be trusted"
_DOUBTS = (
    "reject|disown|doubt|overrule|overturn|cancel|revoke|regret|dispute|distrust|disagree with|made up|invented|guessed"
)
_GONE = "withdrawn|retracted|void|overturned|revoked|cancelled|canceled|overruled"


def _denied(words: str) -> str:
    return "|".join(f"{no} {word}" for no in ("n't", "not", "never", "no longer") for word in words.split("|"))


_REVOKES = tuple(
    Pattern(pattern, re.IGNORECASE | re.MULTILINE, words=words)
    for pattern, words in (
        (rf"\b{_MINE} {_WAS} {_INDEED}(?:{_WORTHLESS})\b", _WORTHLESS),
        (rf"\b{_MINE} {_WAS}{_NOT} (?:{_VALID})\b", _denied(_VALID)),
        (rf"\b{_MINE} (?:do|does|did|can|could|will|should|must){_NOT} (?:{_HOLDS})\b", _denied(_HOLDS)),
        (
            rf"\bnone of (?:the above|these|those|my|it)(?: {_ONE}s?)? (?:\w+ )?{_WAS} (?:{_VALID})\b",
            "none of ",
        ),
        (rf"\bi (?:\w+ )?(?:{_DOUBTS}) {_MINE}\b", _DOUBTS),
        (rf"\bi(?: do| did| can| could| would| will)?{_NOT} (?:{_MEANS}) {_IT}", _denied(_MEANS)),
        (rf"\b(?:do|should|must|may|can){_NOT} (?:{_USES}) {_IT}", _denied(_USES)),
        (rf"\b{_MINE} (?:should|must|may|can){_NOT} (?:{_USES})\b", _denied(_USES)),
        (rf"\b{_ONE}s? (?:is |was |are |were )?(?:{_GONE})\b", _GONE),
        (rf"\bi made (?:{_IT}|{_MINE}|(?:the|this|that) number|it|this|that|them|these) up\b", "i made "),
        (
            rf"\b(?:this|that|it|above) {_WAS} (?:the |an? )?{_ONE} (?:of|by|from) (?:the|an?|another|some) (?:\w+ )?"
            r"(?:judge|user|prompt|template|completion|model|text)\b",
            "|".join(
                f"{one} {of}"
                for one in "verdict|choice|decision|ment|rating|score|ranking|mark|grade|pick".split("|")
                for of in ("of", "by", "from")
            ),
        ),
        (
            r"\bi (?:said|wrote|gave|put|chose|picked|named) (?:\S+ )?(?:only |just )?to "
            r"(?:please|satisfy|comply|obey)\b",
            "to please|to satisfy|to comply|to obey",
        ),
        (
            r"\bslip of the (?:pen|tongue|keyboard|finger)\b|\bthe (?:number|letter|name|one) should have been\b"
            r"|\b(?:i (?:\w+ )?(?:mean|meant|believe|think)|^\W*(?:please )?(?:do|take|read)|[.!?] (?:please )?(?:do|take"
            r"|read)) the (?:opposite|reverse)\b|\bthe (?:opposite|reverse) of (?:what i|my)\b",
            "slip of the |the opposite|the reverse|should have been",
        ),
    )
)
# The same of a verdict or a ranking, in the sentence after it: in a rating's, `this` is the completion.
_DISOWNS = Pattern(
    rf"\A\W*(?:this|that|it|which|these)(?: answer| one| number)? {_WAS}"
    rf"(?:{_NOT} (?:{_VALID})| {_INDEED}(?:{_WORTHLESS}))\b",
    re.IGNORECASE,
)


def revokes(text: str) -> bool:
    """Whether the reply says of its own answer that it does not hold, in words with which it quotes nobody."""
    return any(pattern.search(text) and pattern.search(unquoted(text)) for pattern in _REVOKES)


def withdraws(after: str) -> bool:
    """Whether the words after a verdict or a ranking take it back."""
    thoughts = (CORRECTION, SWAPS, VOID, _DISOWNS)
    return any(pattern.search(after) for pattern in thoughts) or revokes(after)


_VALUED = Pattern(rf"\d|\b(?:{'|'.join(NUMERALS)}|higher|lower)\b", re.IGNORECASE)


def takes_back(text: str) -> bool:
    """Whether the text holds a correction with a number, such as `Actually, 3`."""
    return any(_VALUED.search(text, end, end + 60) for end in corrections(text))


def corrections(text: str) -> Iterator[int]:
    """Where the words end that begin a correction."""
    return (match.end() for match in CORRECTION.finditer(text))
