"""What is wrong with a revision as SFT data, by rules about its text.

A reviser adds words for whoever asked it to revise: a preface, the tags of its prompt, a next turn, a word about the
critique. Trained on, a model writes them to people. What the draft or the prompt holds itself is no fault: somebody
who asks for a dialogue or a tag gets it. The rules are for English; of another language only tags, markers and lengths
are seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlaif.judges.replies.patterns import Pattern
from rlaif.records import Completion, Prompt, oneline

MOST_GROWTH, SHORTEST = 20, 50  # times the draft's characters; a shorter draft counts as one of so many
EDGE = 1_000  # characters at the beginning and at the end, where a reviser's own words stand

PREFACE, TAGS, MARKERS, WORDS = "preface", "stray tag", "role marker", "critic's words"
GROWN = f"more than {MOST_GROWTH} times the draft's length"

_CHANGED = (
    r"(?:revis(?:ed|ion)|rewrit(?:ten|e)|rewrote|reworded|rephrased|improved|corrected|updated|edited|amended|modified)"
)
_NAMED = r"(?:completion|revision|response|reply|answer)"
_SURE = (
    r"(?:(?:sure|certainly|of course|okay|ok|absolutely|understood|got it|yes|no problem|gladly)\b[ ,.!:-]{0,3}){0,2}"
)
_HERE = r"(?:here(?:['’]s| is| are)|below (?:is|are)|(?:this|the following|what follows) is)"
_BEGINS = rf"{_HERE} (?:an?|the|my|your)? ?(?:[\w-]{{1,20}},? ){{0,3}}?"

# "Here is the revised completion:", of a first line; and "Revised response:" at its beginning.
_PREFACE = Pattern(
    rf"[\W_]{{0,8}}{_SURE}(?:{_BEGINS}(?:{_CHANGED} (?:[\w-]{{1,20}} ){{0,2}}?{_NAMED}|revision)\b"
    rf"|(?:the |my )?(?:{_CHANGED} {_NAMED}|revision|completion)[*_ ]{{0,3}}(?::|[*_]{{1,3}}\s*$|\s*$))",
    re.IGNORECASE | re.MULTILINE,
)
# "Here is a rewritten version of the text:" may be what the prompt asks for.
_PREFACE_OF_A_REWRITER = Pattern(
    rf"[\W_]{{0,8}}{_SURE}{_BEGINS}{_CHANGED}\b[^\n]{{0,120}}:[ \t*_]*$", re.IGNORECASE | re.MULTILINE
)
_ASKS_TO_REWRITE = Pattern(
    r"\b(?:re-?(?:writ|wrote|vis(?:e|ing|ion)|word|phras)|edit|improv|correct|paraphras|proof-?read|polish)\w*",
    re.IGNORECASE,
)

_TAG_NAME = r"(?:prompt|completion|critique|revision|revised[ _-]?(?:completion|response))"
_TAG = Pattern(rf"</?{_TAG_NAME}[ \t]{{1,3}}[0-9a-f]{{6,16}}[ \t]{{0,3}}>", re.IGNORECASE, words="<")
_BARE_TAG = Pattern(rf"\A\s*<{_TAG_NAME}\s?>|</{_TAG_NAME}\s?>\s*\Z", re.IGNORECASE, words="<")

_TURN = Pattern(
    r"^[ \t>]{0,4}(?:\*\*|__)?(?:human|user|assistant)(?:\*\*|__)?[ \t]?:", re.IGNORECASE | re.MULTILINE, words=":"
)
_TOKEN = Pattern(
    r"<\|[a-z_0-9]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜\n]{2,40}｜>|\A\s*<s>|</s>\s*\Z"
    r"|^###? ?(?:human|user|assistant|instruction|response)[ \t]?:",
    re.IGNORECASE | re.MULTILINE,
    words="<|[|###",
)

_SAYS = (
    r"(?:says?|said|states?|stated|notes?|noted|points?|pointed|suggests?|suggested|finds?|found|mentions?|mentioned"
    r"|asks?|asked|raises?|raised|identifie[sd]|highlights?|highlighted|above|correctly|rightly|was right)"
)
_OF_IT = (
    rf"(?:{_NAMED}|draft|original|version|text|harmful|offensive|inappropriate|stereotyp\w*|insult\w*|disclaimers?"
    r"|warnings?|refusal|instructions?|repetitions?|critique|statements?|sentences?|language|claims?|content|details?"
    r"|phrases?|wording|tone)"
)
_DID = (
    r"(?:removed|revised|rewritten|rewrote|reworded|rephrased|toned down|adjusted|edited|corrected|omitted|replaced"
    r"|softened|shortened|taken out|left out|eliminated|cut out|changed|added)"
)
_CRITIQUE = Pattern(
    rf"\b(?:the|this|your|that|my) critique(?:['’]s)? {_SAYS}\b"
    r"|\b(?:according to|based on|in response to|in light of|in view of|following|as per|per|given"
    r"|address(?:es|ed|ing)?|taking into account) (?:the|this|your|that) critique\b"
    r"|\bthe (?:original|previous) (?:completion|response) "
    r"(?:was|is|contain\w*|includ\w+|had|has|did|does|fail\w*|gave|gives|state[ds]|violat\w+)\b"
    rf"|\b(?:the|this|my) (?:revis(?:ed|ion)|rewritten|corrected)(?: {_NAMED}| version)? "
    r"(?:removes?|no longer|avoids?|keeps?|maintains?|focus(?:es)?|addresses|omits|eliminates|complies|provides|now"
    r"|retains|preserves|ensures|is (?:now|more|free|safer|shorter))\b",
    re.IGNORECASE,
    words="critique|completion|response|revis|rewritten|corrected",
)
_LINE = r"^[ \t(\[*_#>-]{0,6}"
_ABOUT_IT = Pattern(
    rf"\bI(?:['’]ve| have)?(?: also| now)? {_DID}\b[^.!?\n]{{0,80}}?\b{_OF_IT}\b"
    rf"|{_LINE}(?:note|notes|n\.?b\.?|explanation|rationale|what (?:I )?changed)\b[*_ ]{{0,3}}:?[^\n]{{0,160}}"
    rf"\b(?:(?:has|have) been {_DID}|(?:was|were) {_DID}|(?:this|the) (?:revis(?:ion|ed)|rewrit\w+)|critique)\b"
    rf"[^\n]{{0,120}}?\b{_OF_IT}\b"
    rf"|{_LINE}changes made\b",
    re.IGNORECASE | re.MULTILINE,
    words="i |i'|i’|not|n.b|nb|changes|explanation|rationale|what ",
)


def fault(revision: Completion, draft: str, prompt: Prompt, marks: Sequence[str] = ()) -> str | None:
    """Why a revision of the `draft` may not be learnt as it is; None where no rule finds anything.

    `marks` are those of the tags that the reviser was shown.
    """
    # Not `prompt.text`, whose transcript of several turns has markers of its own.
    text, asked = revision.text, "\n".join(message.content for message in prompt.messages)
    given = f"{asked}\n{draft}"
    if any(mark in text for mark in marks) or _new(_TAG, text, given) or _new(_BARE_TAG, text, given):
        return TAGS
    first, drafted, ends = _first_line(text), _first_line(draft), _ends(text)
    if _PREFACE.match(first) and not _PREFACE.match(drafted):
        return PREFACE
    rewritten = _PREFACE_OF_A_REWRITER.match(first) and not _PREFACE_OF_A_REWRITER.match(drafted)
    if rewritten and not _ASKS_TO_REWRITE.search(asked):
        return PREFACE
    if _new(_TOKEN, text, given) or _new(_TURN, text, given):
        return MARKERS
    if _new(_CRITIQUE, ends, given):
        return WORDS
    if _ABOUT_IT.search(ends) and not _ABOUT_IT.search(given) and not _ASKS_TO_REWRITE.search(asked):
        return WORDS
    return GROWN if len(text) > MOST_GROWTH * max(len(draft), SHORTEST) else None


def unchanged(text: str, draft: str) -> bool:
    """Whether two texts differ in nothing but white space."""
    return oneline(text) == oneline(draft)


def _new(pattern: Pattern, text: str, given: str) -> bool:
    """Whether a text holds a pattern that nothing in `given` does, nor its words elsewhere."""
    found = pattern.search(text)
    return found is not None and pattern.search(given) is None and found[0].strip().casefold() not in given.casefold()


def _first_line(text: str) -> str:
    return text.strip()[:EDGE].partition("\n")[0]


def _ends(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 2 * EDGE else f"{text[:EDGE]}\n{text[-EDGE:]}"
