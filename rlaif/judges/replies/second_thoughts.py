"""What a judge says of its own answer: that it corrects it, takes it back, or has mixed the two up."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlaif.judges.replies.patterns import Pattern
from rlaif.judges.replies.words import NUMERALS

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


_VALUED = Pattern(rf"\d|\b(?:{'|'.join(NUMERALS)}|higher|lower)\b", re.IGNORECASE)


def takes_back(text: str) -> bool:
    """Whether the text holds a correction with a number, such as `Actually, 3`."""
    return any(_VALUED.search(text, end, end + 60) for end in corrections(text))


def corrections(text: str) -> Iterator[int]:
    """Where the words end that begin a correction."""
    return (match.end() for match in CORRECTION.finditer(text))
