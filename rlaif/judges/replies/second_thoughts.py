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
        "actually|correction|corrected|i correct|me correct|thought|reading|reread|re-read|look|inspection|glance|"
        "reflection|reconsider|consideration|examination|analysis|think|recheck|re-check|hindsight|scratch |strike |"
        "disregard |ignore |forget |discard |withdrawn|retracted|my bad|hold on|hang on|let me |ah|oh|yet|wait|sorry|"
        "oops|hmm|rather|really|make that|make it|i mean|my mistake|apologies|edit|update|revise|no,|no.|no;|no!|"
        "not.|not!|nope|just kidding|should |change |changed |changing |take |took |taking |i'd |i would |i will |"
        "i'll |i lower|i raise|i downgrade|i upgrade|i deduct|i subtract|i take|is more like|i no longer|i was |"
        "i misread|i misjudged|i withdraw|i retract|i spoke"
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
# By names that no completion's content has: `this rating`, `the final verdict`, `all of these scores`.
_MINE = (
    rf"(?:(?:this|that|these|those|the|my|both|all|each|any|no|which|such)(?: (?:of|the|my|these|those|above|final"
    rf"|previous|first|given|stated|last|preceding))* {_ONE}s?"
    r"(?: (?:above|below|given|stated|here|i (?:just )?gave|that follows))?"
    rf"|(?:everything|all|nothing|any|most|much|either|each)(?: of)? (?:the above|these|those|this|that)(?: {_ONE}s?)?)"
)
# By names of what a completion may hold too: `the line above`, `these numbers`.
_THING = r"(?:line|sentence|table|list|number|letter|answer|result|figure|order)"
_THERE = (
    rf"(?:(?:the|this|that|these|those) (?:above|preceding|previous) {_THING}s?|{_THING}s? above"
    rf"|(?:my|these|those|both) {_THING}s?)"
)
_WAS = r"(?:is|are|was|were|has been|have been|should be|must be|may be|might be|being)"
_NOT = r"(?:n't| not| never| no longer)"
_NOTS = ("n't", "not", "never", "no longer")
_DENIAL = Pattern("|".join(_NOTS), words="|".join(_NOTS))
_IT = rf"(?:{_MINE}|{_THERE}|(?:it|this|that|these|those|them)\b(?=\W*$|[.!;,)]))"
_INDEED = (
    r"(?:(?:in fact|simply|clearly|just|only|completely|plainly|probably|now|therefore|thus|hence|also|of course"
    r"|actually|really|all|both|perhaps|not|merely?|entirely|quite|an?|my|the|pure|complete|random|first|rough) )*"
)
_WORTHLESS = (
    "wrong|incorrect|false|invalid|void|null|mistake|mistaken|untrue|withdrawn|retracted|overturned|overruled|reversed"
    "|inverted|revoked|cancelled|canceled|rejected|nonsense|meaningless|made up|invented|random|arbitrary|fake|guess"
    "|guesses|joke|test|slip|lie|typo|error|example|examples|sample|draft|opposite|reverse|placeholder|placeholders"
)
_VALID = (
    "valid|mine|my|final|right|correct|meant|real|serious|reliable|true|binding|sound|tenable|justified|what i"
    "|to be|trustworthy|usable|intended"
)
_HOLDS = "hold|stand|count|apply|be used|be trusted|be right|reflect my|reflect what|say what|mean what"
_MEANS = "stand by|mean|meant|believe in|believe|trust|follow|endorse|agree with|hold"
_USES = "use|trust|rely on|count|take|accept|follow|believe|read|record|heed|be used|be trusted"
_HOLDS_OR_IS_USED = f"{_HOLDS}|{_USES}"
_DOUBTS = (
    "reject|disown|doubt|overrule|overturn|cancel|revoke|regret|dispute|distrust|disagree with|made up|invented|guessed"
)
_DROPPED = "disregarded|ignored|discarded|thrown|deleted|removed|dropped|forgotten|skipped|treated|read from"
_UNDO = "reverse|invert|flip|swap|turn|read|ignore|disregard|forget|skip|drop|delete|strike"
_GONE = "withdrawn|retracted|void|overturned|revoked|cancelled|canceled|overruled"


def _denied(words: str) -> str:
    return "|".join(f"{no} {word}" for no in _NOTS for word in words.split("|"))


WORTHLESS = Pattern(rf"\W*{_INDEED}(?:{_WORTHLESS}|{_GONE}|no|none)\W*", re.IGNORECASE)  # as the value of a field
_REVOKES = tuple(
    Pattern(pattern, re.IGNORECASE | re.MULTILINE, words=words)
    for pattern, words in (
        (rf"\b{_MINE} {_WAS} {_INDEED}(?:{_WORTHLESS})\b", _WORTHLESS),
        (rf"\b{_MINE} (?:should|must|may|can|is to|are to) be (?:{_DROPPED})\b", _DROPPED),
        (rf"\bnone of (?:the above|these|those|my|it)(?: {_ONE}s?)? (?:\w+ )?{_WAS} (?:{_VALID})\b", "none of "),
        (rf"\bi (?:\w+ )?(?:{_DOUBTS}) (?:{_MINE}|{_THERE})\b", _DOUBTS),
        (
            r"\bi (?!(?:\w+ )?(?:give|gave|assign\w*|base|based|stand|chose|choose|set|settle\w*|award\w*|think|believe"
            rf"|hold|keep|kept|confirm\w*|explain\w*|justif\w+)\b)(?:\w+ ){{1,2}}?(?:{_MINE}|{_THERE})\b",
            "i ",
        ),
        (rf"\b{_ONE}s? (?:is |was |are |were )?(?:{_GONE})\b", _GONE),
        (rf"\bi made (?:{_IT}|{_MINE}|(?:the|this|that) number|it|this|that|them|these) up\b", "i made "),
        (
            rf"\b(?:this|that|it|above) {_WAS} (?:the |an? )?{_ONE} (?:of|by|from) (?:the|an?|another|some) (?:\w+ )?"
            r"(?:judge|user|prompt|template|completion|model|text)\b",
            "judge|user|prompt|template|completion|model|text",
        ),
        (
            r"\bi (?:said|wrote|gave|put|chose|picked|named) (?:\S+ )?(?:only |just )?to "
            r"(?:please|satisfy|comply|obey)\b",
            "to please|to satisfy|to comply|to obey",
        ),
        (
            r"\bslip of the (?:pen|tongue|keyboard|finger)\b|\bthe (?:number|letter|name|one) should have been\b"
            r"|\b(?:i (?:\w+ )?(?:mean|meant|believe|think)|^\W*(?:please )?(?:do|take|read)|[.!?] (?:please )?(?:do"
            r"|take|read)) the (?:opposite|reverse)\b|\bthe (?:opposite|reverse) of (?:what i|my)\b",
            "slip of the |the opposite|the reverse|should have been",
        ),
    )
)
_DISAVOWS = tuple(  # by a denial: `This rating is not mine`
    Pattern(pattern, re.IGNORECASE, words=_denied(words))
    for pattern, words in (
        (rf"\b{_MINE} {_WAS}{_NOT} (?:{_VALID})\b", _VALID),
        (rf"\b{_THERE} {_WAS}{_NOT} (?:mine|my|meant|final|what i)\b", "mine|my|meant|final|what i"),
        (
            rf"\b{_MINE} (?:do|does|did|can|could|will|should|must|may){_NOT} (?:{_HOLDS}|{_USES})\b",
            f"{_HOLDS}|{_USES}",
        ),
        (rf"\bi(?: do| did| can| could| would| will)?{_NOT} (?:{_MEANS}) {_IT}", _MEANS),
        (rf"\b(?:do|should|must|may|can){_NOT} (?:{_USES}) {_IT}", _USES),
    )
)
_THERE_IS_WRONG = Pattern(
    rf"\b{_THERE} {_WAS}(?:{_NOT} (?:{_VALID})| {_INDEED}(?:{_WORTHLESS}))\b",
    re.IGNORECASE,
    words=f"{_WORTHLESS}|{_denied(_VALID)}",
)
# After a verdict or a ranking, a sentence that is about the judge or its answer must be known to uphold it: what else
# may be said of an answer has no end.
_ITSELF = Pattern(
    rf"\b(?:this|that|these|those|the|my|its|no|such|any)(?: \w+)? (?:{_ONE}|preference)s?\b(?! of the)"
    r"|\b(?:my|these) (?:order|answer|line|number)s?\b|\b(?:this|that) (?:order|answer|line|number)\b"
    rf"|\b(?:the|wrote|written|stated|said|{_THING}s?) above\b(?!-)"
    r"(?! (?:principle|criteri|reason|point|comparison|analysis|instruction|question|prompt|rule|consideration))"
    rf"|\b(?:i|i'm|i've|i'd)\b|^\W*(?:not|don't|do not|never|none|please|{_UNDO}) "
    rf"|\A\W*(?:\w+, )?(?:this|that|it|which|these) (?:\w+ )?(?:contradict|{_WAS}(?:{_NOT} (?:{_VALID})"
    rf"| {_INDEED}(?:{_WORTHLESS}))\b)",
    re.IGNORECASE,
)
_UPHOLDS = Pattern(
    r"\b(?:i(?:'m|'ve)? (?:\w+ly |have |am |also |therefore )*(?:prefer(?:red)?|choose|chose|chosen|pick(?:ed)?"
    r"|liked?|find|found|think|believe|consider(?:ed)?|values?|weigh(?:ed)?|gave|give|see|saw|based?|judged?|rank(?:ed)?|rated?|put|placed?"
    r"|favou?r(?:ed)?|select(?:ed)?|stand by|confident|sure|certain|noticed?|checked|compared|read|looked)\b"
    rf"|(?:this|that|the|my|both)(?: \w+)? (?:{_ONE}|preference)s? (?:\w+ly )?(?:holds?|stands?|rests?|follows?"
    r"|reflects?|comes?|(?:is|was|are|were) (?:\w+ly )?(?:based|clear|final|firm|because|for|due|easy|close|unanimous"
    r"|correct|sound|right|in line))\b)",
    re.IGNORECASE,
)
_DENIES = Pattern(
    rf"\b(?:not|n't|never|no|none|nor|contradict\w*|{_WORTHLESS}|{_DOUBTS}|{_GONE}|withdraw\w*|retract\w*|worse|wrong)\b|n't\b",
    re.IGNORECASE,
)


def _disowned(after: str) -> bool:
    """Whether a sentence after a verdict or a ranking is about the judge or its answer, and may not uphold it."""
    for sentence in re.split(r"[.!?;](?=\s)|\n", unquoted(after)):
        itself = _ITSELF.search(sentence)
        if itself and (_UPHOLDS.search(sentence) is None or _DENIES.search(sentence)):
            return True
    return False


def revokes(text: str, *, alone: bool = False) -> bool:
    """Whether the reply says of its own answer that it does not hold, in words with which it quotes nobody.

    `alone`: the text is no reason for a rating, in which `the line above` is the completion's.
    """
    disavows = _DISAVOWS if _DENIAL.may_match(text) else ()
    patterns = (*_REVOKES, *disavows, *((_THERE_IS_WRONG,) if alone else ()))
    return any(pattern.search(text) and pattern.search(unquoted(text)) for pattern in patterns)


def withdraws(after: str, *, formal: bool = True) -> bool:
    """Whether the words after a verdict or a ranking take it back; those after one in a sentence are of its kind."""
    found = any(pattern.search(after) for pattern in (CORRECTION, SWAPS, VOID))
    found = found or revokes(after, alone=True)
    return found or (formal and _disowned(after))


_VALUED = Pattern(rf"\d|\b(?:{'|'.join(NUMERALS)}|higher|lower)\b", re.IGNORECASE)


def takes_back(text: str) -> bool:
    """Whether the text holds a correction with a number, such as `Actually, 3`."""
    return any(_VALUED.search(text, end, end + 60) for end in corrections(text))


def corrections(text: str) -> Iterator[int]:
    """Where the words end that begin a correction."""
    return (match.end() for match in CORRECTION.finditer(text))
