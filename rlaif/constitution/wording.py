"""What can be told from the words of a principle without a model: how alike two texts are, and what they are about.

For English; a text of other words is alike only where it is the same, and about nothing that is known here.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Words that say nothing about what a text asks for, or stand in every request.
_EMPTY = frozenset(
    "a all also an and any are as at be by can does each either for from had has have he her him his i if in into is "
    "it its me more most must of on one or other our please prefer say shall she should so some such than that the "
    "their "
    "them then there these they this those to us was we were what when where which who will with would you your "
    "answer answers assistant choose completion completions human like model part parts principle prompt reply replies "
    "request response responses rewrite rule text".split()
)
VAGUE = frozenset(
    "acceptable appropriate appropriately awesome bad best better decent do excellent fine good great high ideal nice "
    "nicely ok okay optimal proper properly quality reasonable suitable suitably superior well wonderful".split()
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_ENDINGS = ("ingly", "ness", "ing", "edly", "ed", "est", "er", "ies", "ly", "es", "s", "e", "y")

# Each quality with the words that name it, also by its opposite.
_QUALITIES = {
    "safety": r"safe(?:ty|r|st|ly)?|unsafe|harm\w*|danger\w*|hurt\w*|illegal\w*|violen\w*|toxic\w*|weapons?",
    "truth": r"tru(?:e|er|th\w*|ly)|untru\w+|false\w*|honest\w*|dishonest\w*|lie|lies|lying|factual\w*|accura\w+"
    r"|inaccura\w+|invent\w*|deceiv\w*|decept\w*",
    "tone": r"polite\w*|impolite\w*|rude\w*|kind(?!s? of)(?:er|est|ly|ness)?|unkind\w*|respect(?:ful\w*)?|disrespect\w*"
    r"|insult\w*|mock\w*|friendl\w+|courte\w+|blunt\w*|condescend\w*",
    "length": r"brief\w*|brevity|short(?:er|est|ly|ness)?|concis\w+|(?<!as )(?<!no )long(?:er|est)?(?! as)|length\w*"
    r"|terse\w*|verbos\w+|word(?:y|iness)|succinct\w*|few(?:er)?(?: and \w+)? words",
    "fairness": r"stereotyp\w*|discriminat\w*|racis\w+|sexis\w+|bias(?:ed)?|unbiased|unfair\w*|prejudic\w*"
    r"|fair(?:ness)?",
    "privacy": r"priva(?:cy|te)|personal (?:data|details|facts|information)|confidential\w*",
}
_NAMING = {quality: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for quality, words in _QUALITIES.items()}

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
MOST_READ = 2_000  # characters of a sentence: the patterns below go through it many times
_DENIES = re.compile(
    r"\b(?:says?|means?|counts?|matters?|tells?|proves?)\b.*\b(?:nothing|not|little)\b"
    r"|\b(?:do|does|should|must) not (?:matter|count|affect|influence|decide|play)|\bneither (?:do|does|counts?)\b"
    r"|\b(?:ignore|disregard|regardless of|irrespective of|pay no attention to|irrelevant|no bearing)\b",
    re.IGNORECASE,
)
_EXCEPT = re.compile(r"\b(?:unless|except|(?:when|where|if) the (?:principle|rule) )", re.IGNORECASE)


@lru_cache(maxsize=4096)  # every text is compared with every other one
def words(text: str) -> tuple[str, ...]:
    return tuple(word.lower().replace("’", "'") for word in _WORD.findall(text))


@lru_cache(maxsize=4096)
def content(text: str) -> frozenset[str]:
    """The words that carry the meaning of a text, without their endings."""
    return frozenset(_stem(word) for word in words(text) if word not in _EMPTY)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def likeness(one: str, other: str) -> float:
    """The share of content words that two texts have in common (Jaccard); 1 where their words are the same."""
    a, b = content(one), content(other)
    return 1.0 if words(one) == words(other) else len(a & b) / len(a | b) if a | b else 0.0


def vague(text: str) -> bool:
    """Whether every word that carries meaning only praises."""
    left = [word for word in words(text) if word not in _EMPTY and word not in ("not", "never", "always", "very")]
    return bool(words(text)) and all(word in VAGUE for word in left)


def _sentences(text: str) -> list[str]:
    return [sentence[:MOST_READ] for sentence in _SENTENCE.split(text)]


def named(text: str) -> set[str]:
    """The qualities that a text names, not counting sentences that say that one does not matter."""
    asked = " ".join(sentence for sentence in _sentences(text) if not _DENIES.search(sentence))
    return {quality for quality, naming in _NAMING.items() if naming.search(asked)}


def denied(text: str) -> dict[str, str]:
    """The qualities that a text says do not matter, each with that sentence, unless the sentence has an exception."""
    found: dict[str, str] = {}
    for sentence in _sentences(text):
        if _DENIES.search(sentence) and not _EXCEPT.search(sentence):
            found |= {quality: sentence for quality, naming in _NAMING.items() if naming.search(sentence)}
    return found


# Verbs that begin a command, as rules use them.
_COMMAND = (
    r"(?:be|do|don't|never|always|avoid|give|keep|make|say|use|write|tell|explain|answer|help|refuse|decline|state|treat"
    r"|respect|show|speak|sound|stay|cite|admit|warn|protect)\b"
)
_JOINED = re.compile(rf",? and (?={_COMMAND})", re.IGNORECASE)


def two_commands(rule: str) -> tuple[str, str] | None:
    """The halves of a rule in which `and` joins two commands about different qualities."""
    rule = rule[:MOST_READ]
    for joint in _JOINED.finditer(rule):
        halves = rule[: joint.start()].strip(), rule[joint.end() :].strip()
        a, b = map(named, halves)
        if re.match(_COMMAND, halves[0], re.IGNORECASE) and a and b and not a & b:
            return halves
    return None
