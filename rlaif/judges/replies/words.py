"""What the readers of all kinds of replies share: the reply without its thinking, quotations, corrections, numbers."""

from __future__ import annotations

import re
from typing import NamedTuple

from rlaif.judges.replies.patterns import Pattern
from rlaif.records import Completion

CUT = "the reply was cut at max_tokens"
# A reply is a stranger's text too, and its readers look around at every mark: what they read is bounded.
MOST_CHARACTERS = 100_000  # of a reply without its thinking: 25,000 tokens of English
MOST_MARKS = 64  # places where a reply gives its one rating or verdict: a judge repeats it once or twice
MOST_OF_A_SENTENCE = 4_000  # characters: whose words a longer one tells cannot be known
TOO_LONG = f"the reply has more than {MOST_CHARACTERS:,} characters"
TOO_MANY = f"the reply gives its answer in more than {MOST_MARKS} places"


class Reading(NamedTuple):
    """One rating or score of a reply: a value, `na` (not applicable), or the problem that left it unparsed."""

    value: int | None
    raw: str  # the judge's words
    problem: str | None = None
    na: bool = False
    types: tuple[str, ...] = ()  # the offered codes that it names
    note: str | None = None  # what could not be used beside the value


def unusable(what: str, completion: Completion) -> str | None:
    """Why a model's words, called `what` in the message, cannot be used; None where they can."""
    if completion.finish_reason == "length":
        return f"{what}: cut at max_tokens"
    if completion.finish_reason == "content_filter":
        return f"{what}: stopped by a content filter"
    return None if completion.text.strip() else f"{what}: empty"


# ---------------------------------------------------------------- the reply without its thinking

_BLOCK = r"(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad)"
_THINKING = Pattern(rf"\s*<{_BLOCK}>", re.IGNORECASE)
_THOUGHT = Pattern(rf"</{_BLOCK}>", re.IGNORECASE)
_FENCE = Pattern(r"```[ \t]{0,4}\w{0,20}[ \t]{0,4}\r?\n")
_WIDE = str.maketrans({chr(sign + 0xFEE0): chr(sign) for sign in b"0123456789:/=>[]()*|"})


def spoken(text: str) -> str:
    """The reply without its thinking and the one code fence around it; empty where the thinking has no clear end."""
    ends = list(_THOUGHT.finditer(text))
    begun = _THINKING.match(text)
    if ends or begun:
        if len(ends) != 1:
            return ""  # a completion that is quoted in the thinking may hold the tag too
        if begun is None and not _closes(text, ends[0].start()):
            return ""
        text = text[ends[0].end() :]
    text = text.strip()
    fence = _FENCE.match(text)
    if fence and text.endswith("```") and text.count("```") == 2:
        return text[fence.end() : -3].strip()
    return text


def _closes(text: str, at: int) -> bool:
    """Whether an end tag without its beginning, which a chat template may have written, stands behind a sentence."""
    before = text[:at].rstrip()
    return before.endswith(_ENDS) and not quoted(text, at) and not foreign(text, at)


def narrow(text: str) -> str:
    """Full-width digits and signs as ASCII, every character at the same index."""
    return text.translate(_WIDE)


def quoted(text: str, at: int) -> bool:
    """Whether the text at index `at` is in quotation marks, in a code fence or in a block quotation.

    A mark that is never closed quotes all that follows it.
    """
    before = text[:at]
    line = before[before.rfind("\n") + 1 :]
    return (
        before.count('"') % 2 == 1
        or any(before.count(opening) > before.count(closing) for opening, closing in ("“”", "«»", "「」", "„“"))
        or before.count("`") % 2 == 1  # three of a fence, one of code in a line
        or line.lstrip().startswith(">")
    )


_QUOTES = Pattern(
    r"```.*?(?:```|\Z)|`[^`\n]*`|^[ \t]*>[^\n]*|“[^”]*(?:”|\Z)|«[^»]*(?:»|\Z)|„[^“”]*(?:[“”]|\Z)|「[^」]*(?:」"
    r"|\Z)|\"[^\"]*(?:\"|\Z)"
    r"|(?<![\w)])'[^'\n]{1,400}'(?!\w)|‘[^’\n]{1,400}’(?!\w)",
    re.DOTALL | re.MULTILINE,
    words="\"|'|>|`|«|‘|“|„|「",
)
_A_NAME = Pattern(r"\W*(?:\w{1,12} )?[(\[#]?\w{1,2}\W*")  # `"Output (a)" is better`


def unquoted(text: str) -> str:
    """The text with all that is quoted crossed out, every other character at the same index."""
    return _QUOTES.sub(lambda found: _crossed(found[0]), text)


def _crossed(quotation: str) -> str:
    return quotation if len(quotation) < 30 and _A_NAME.fullmatch(quotation) else "¤" * len(quotation)


NAMED = r"(?:text|completion|response|answer|candidate|output)"  # what a completion is called
# What a judge may count or measure instead of quality.
BAD = (
    r"(?:(?:errors?|mistakes?|flaws?|faults?|problems?|defects?|violations?|weakness(?:es)?|harms?|harmful(?:ness)?|toxic(?:ity)?"
    r"|bias(?:es)?|badness|severity|wrong(?:ness)?|demerits?|falsehoods?|danger(?:ousness)?)\b)"
)
_NAMES_BAD = Pattern(
    rf"\b{BAD}",
    re.IGNORECASE,
    words=(
        "error|mistake|flaw|fault|problem|defect|violation|weakness|harm|toxic|bias|badness|severity|wrong|demerit|"
        "falsehood|danger"
    ),
)
_ENDS = (".", "!", "?", ";", ")", "]", "。", "！", "？")
INTRODUCES = Pattern(
    r"^(?:sure,? )?here\W|^\W*sure\W|\b(?:my|ratings?|evaluations?|assessments?|json|results?|verdict|answer"
    r"|judge?ments?|object|scores?|ranking|scale|best (?:first|to worst))\b",
    re.IGNORECASE,
)
# Words with which a judge reports what somebody else wrote, or what a reply would look like.
REPORTS = Pattern(
    r"\b(?:say(?:s|ing)?|said|writes?|wrote|written|writing|reads|contain(?:s|ing)?|claim(?:s|ed|ing)|quot\w+|inject\w*"
    r"|demand(?:s|ed|ing)?|asks|ask(?:ed|ing)? (?:for|that)|instruct\w*|tell(?:s|ing)?|told|tr(?:ies|ied"
    r"|ying)|example|e\.g\.|format"
    r"|template|schema|pretend\w*|imitat\w+|fake\w*|smuggl\w+|suggest\w*|insist\w*|plead\w*|beg(?:s|ged|ging)?"
    r"|order(?:s|ed|ing)|ignor\w+|(?:its|their) own (?:rating|score|verdict|mark|word|ranking)s?|attempt\w*"
    r"|embed\w*|(?<!\bi )would|could|should|might|must|if|unless|instead of"
    r"|never|cannot|can't|n't|isn't|wasn't|another judge|previous\w*|earlier|at first|initial(?:ly)?)\b",
    re.IGNORECASE,
)
_FOLLOWS = Pattern(r"\b(?:following|follows|below|namely)\b", re.IGNORECASE)


def aside(text: str, at: int) -> bool:
    """Whether the text at index `at` is in quotation marks that close on the same line."""
    rest = text[at:].partition("\n")[0]
    return quoted(text, at) and any(closing in rest for closing in '"”»」`')


def foreign(text: str, at: int) -> bool:
    """Whether the words before index `at` attribute what follows to somebody else, or present it as an example.

    Those words are the start of its sentence, and the line before where that ends in a colon or inside a sentence.
    """
    above, _, line = text[:at].rpartition("\n")
    sentence = re.split(r"[.!?](?=\s)", line[-MOST_OF_A_SENTENCE:])[-1]
    if len(sentence) == MOST_OF_A_SENTENCE or REPORTS.search(sentence):
        return True
    led = above.rstrip().rpartition("\n")[2].rstrip(" \t*_`")[-MOST_OF_A_SENTENCE:]
    if not led or line.strip(" \t*_#|-•"):
        return False
    announced = led.endswith((":", "：")) or _FOLLOWS.search(re.split(r"[.!?](?=\s)", led)[-1])
    if announced and led.strip(" #*_[]:0123456789"):
        return INTRODUCES.search(led) is None or REPORTS.search(led) is not None
    return not led.endswith(_ENDS) and REPORTS.search(led) is not None


def headed(text: str, at: int) -> bool:
    """Whether the line of index `at` is under a heading of something else, such as `Clarity` above `7/10`."""
    led = heading(text, at)
    return bool(led) and ((not led.endswith(_ENDS) and INTRODUCES.search(led) is None) or measures_bad(led))


def heading(text: str, at: int) -> str:
    """The line above that of index `at`, without empty ones and marks of emphasis."""
    return text[: text.rfind("\n", 0, at) + 1].rstrip().rpartition("\n")[2].rstrip(" \t*_`")


def measures_bad(title: str) -> bool:
    """Whether a line that is no sentence names something bad, by which what follows is counted or ordered."""
    return not title.rstrip().endswith((".", "!", ";", "。", "！")) and _NAMES_BAD.search(title) is not None


RESULT = r"\[RESULT\](?:[ \t]*:)?\s*"  # as Prometheus ends its feedback (arXiv 2310.08491)
_BOXED = Pattern(r"\$?\\{1,2}boxed\{(?:\\{1,2}text\{)?([^{}\n]{1,20})\}{1,2}\$?(?=[ \t.*_$]*\Z|[ \t.*_$]*\n)")

_TAGGED = Pattern(
    r"^[ \t]*<(?P<tag>(?:final[_-]?)?(?:answer|verdict|choice|decision|preference|winner|score|rating|ranking))>"
    r"\s{0,4}([^<\n]{1,60}?)\s{0,4}</(?P=tag)>(?=[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
    words="</",
)


def unboxed(text: str, answer: Pattern, form: str = "[[{}]]") -> str:
    r"""The text with `form` for each `\boxed{...}` of an answer that ends a line, and each `<answer>...</answer>`."""

    def given(found: re.Match[str]) -> str:
        inner = found[found.re.groups]
        return form.format(inner) if answer.fullmatch(inner) else found[0]

    return _TAGGED.sub(given, _BOXED.sub(given, text))


# ---------------------------------------------------------------- a number

NUMERALS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER = Pattern(
    rf"""[*_`"'\[(]*
    (?:(?P<digits>[+-]?\d{{1,9}}(?:\.0{{1,9}}(?!\d))?)|(?P<word>(?:{"|".join(NUMERALS)})\b)
    |(?P<na>(?:n/a|n\.a\.|na|not\ applicable)(?!\w)))
    [*_`"'\])]*
    (?:\s*\(?(?:/|out\s+of\b)\s*[*_]*(?P<of>\d{{1,9}})(?:\.0{{1,9}})?(?!\d)[)*_\]]*)?
    [*_`"']*(?P<tail>.*)""",
    re.IGNORECASE | re.VERBOSE,
)
# `4 or 5`, `4 - 5`, `4.5` and `4 minus` are not 4.
_CLOSES = Pattern(r"\s*$|\s*[.;:!,)|]+(?=\s|$)|\s+[-–—]+\s|\s+\(|\s+(?:because|since|as|for|due)\b", re.IGNORECASE)
_HEDGE = Pattern(
    r"[\s*_(]*(?:(?:or|to|and|maybe|perhaps|possibly|probably|if|but|out|of|not|no|minus|plus|half|though"
    r"|although|almost"
    r"|nearly|actually|wait|rather|approximately|about|on a scale)\b|[+-]?\d|[½¼¾~<>≈])",
    re.IGNORECASE,
)
_OTHER_SCALE = Pattern(r"\bscale\b|\bout of\b|\bpercent|[%½¼¾]", re.IGNORECASE, words="scale|out of|percent|%|½|¼|¾")


def other_scale(words: str, low: int, high: int) -> bool:
    """Whether the brackets after a keyword, as in `Rating (1-10): 4`, hold another scale or a count of errors."""
    numbers = re.findall(r"\d+", words)
    if measures_bad(words):
        return True
    return bool(numbers) and numbers not in ([str(low), str(high)], [str(high)])


class Number(NamedTuple):
    """The number at the start of a line, or why there is none. `tail` is the rest of the line."""

    value: int | None
    problem: str | None
    tail: str
    of: bool = False  # `4/5`
    na: bool = False
    word: bool = False  # `four`
    numeric: bool = True  # whether there is anything like a number


def leading_number(line: str, low: int, high: int) -> Number:
    """The whole number of the scale that `line` begins with: `4`, `**4**`, `4/5`, `[[4]]`, `four`, or N/A.

    The words after it decide too: `4.5`, `4-5`, `4 or 5`, `40%` and `4/10` on a scale to 5 are unparsed.
    """
    match = _NUMBER.match(line)
    if match is None:
        return Number(None, f"{line.strip()[:40]!r} is not a whole number of the scale", line, numeric=False)
    tail, word = match["tail"], match["word"]
    if match["na"]:
        plain = _CLOSES.match(tail) is not None
        return Number(None, None if plain else f"{line.strip()[:40]!r} is not clear", tail, na=plain)
    closes = _CLOSES.match(tail)
    value = NUMERALS.index(word.lower()) + 1 if word else int(match["digits"].partition(".")[0])
    of = match["of"] is not None
    if closes is None or _HEDGE.match(tail[closes.end() :]) or _OTHER_SCALE.search(tail) or "?" in tail[:3]:
        return Number(None, f"the rating {line.strip()[:40]!r} is not a whole number of the scale", tail)
    clause = re.split(r"[.;!)](?:\s|$)", tail)[0]  # what still belongs to the number: `4 for style, 2 for the rest`
    if set(re.findall(r"\d+", clause)) - {str(value)} or re.search(rf"^\s*[.)].*(?<!\d){value + 1}[.)]\s", tail):
        return Number(None, f"{line.strip()[:40]!r} holds several numbers", tail)
    if of and int(match["of"]) != high:
        return Number(None, f"the rating {line.strip()[:40]!r} is on another scale", tail)
    if not low <= value <= high:
        return Number(None, f"the rating {value} is outside {low} to {high}", tail)
    return Number(value, None, tail, of=of, word=word is not None)
