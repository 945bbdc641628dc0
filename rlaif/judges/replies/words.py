"""What the readers of all kinds of replies share: the reply without its thinking, quotations, corrections, numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

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
_THINKING = re.compile(rf"\s*<{_BLOCK}>", re.IGNORECASE)
_THOUGHT = re.compile(rf"</{_BLOCK}>", re.IGNORECASE)
_FENCE = re.compile(r"```[ \t]{0,4}\w{0,20}[ \t]{0,4}\r?\n")
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


_QUOTES = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|^[ \t]*>[^\n]*|“[^”]*(?:”|\Z)|«[^»]*(?:»|\Z)|„[^“”]*(?:[“”]|\Z)|「[^」]*(?:」"
    r"|\Z)|\"[^\"]*(?:\"|\Z)"
    r"|(?<![\w)])'[^'\n]{1,400}'(?!\w)|‘[^’\n]{1,400}’(?!\w)",
    re.DOTALL | re.MULTILINE,
)
_A_NAME = re.compile(r"\W*(?:\w{1,12} )?[(\[#]?\w{1,2}\W*")  # `"Output (a)" is better`


def unquoted(text: str) -> str:
    """The text with all that is quoted crossed out, every other character at the same index."""
    return _QUOTES.sub(lambda found: _crossed(found[0]), text)


def _crossed(quotation: str) -> str:
    return quotation if len(quotation) < 30 and _A_NAME.fullmatch(quotation) else "¤" * len(quotation)


_ENDS = (".", "!", "?", ";", ")", "]", "。", "！", "？")
_FOLLOWS = re.compile(r"\b(?:following|follows|below|namely)\b", re.IGNORECASE)


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
        return _INTRODUCES.search(led) is None or REPORTS.search(led) is not None
    return not led.endswith(_ENDS) and REPORTS.search(led) is not None


def headed(text: str, at: int) -> bool:
    """Whether the line of index `at` is under a heading of something else, such as `Clarity` above `7/10`."""
    led = text[: text.rfind("\n", 0, at) + 1].rstrip().rpartition("\n")[2].rstrip(" \t*_`")
    return bool(led) and not led.endswith(_ENDS) and _INTRODUCES.search(led) is None


RESULT = r"\[RESULT\](?:[ \t]*:)?\s*"  # as Prometheus ends its feedback (arXiv 2310.08491)
_BOXED = re.compile(r"\$?\\{1,2}boxed\{(?:\\{1,2}text\{)?([^{}\n]{1,20})\}{1,2}\$?(?=[ \t.*_$]*\Z|[ \t.*_$]*\n)")

_TAGGED = re.compile(
    r"^[ \t]*<(?P<tag>(?:final[_-]?)?(?:answer|verdict|choice|decision|preference|winner|score|rating|ranking))>"
    r"\s{0,4}([^<\n]{1,60}?)\s{0,4}</(?P=tag)>(?=[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)


def unboxed(text: str, answer: re.Pattern[str], form: str = "[[{}]]") -> str:
    r"""The text with `form` for each `\boxed{...}` of an answer that ends a line, and each `<answer>...</answer>`."""

    def given(found: re.Match[str]) -> str:
        inner = found[found.re.groups]
        return form.format(inner) if answer.fullmatch(inner) else found[0]

    text = _BOXED.sub(given, text) if "boxed{" in text else text
    return _TAGGED.sub(given, text) if "</" in text else text


# ---------------------------------------------------------------- a JSON object and the words around it

# Keys beside an answer with which a judge changes it, or says what it means.
OVERRIDES = re.compile(
    r"final|adjust|revis|correct|updat|amend|actual|\btrue|\breal|\bnew\b|\bnet\b|\bafter|effective|overall"
    r"|total|swap|revers|invert"
    r"|meaning|means|order|direction|scale|legend|polarity|penal|deduct|minus|bonus|second|reconsider|instead"
    r"|overrid|overrul"
    r"|severity|difference|\bunit|\bof$|percent|prelim|provisional|tentative|\bdraft|descend|ascend|\bsort"
    r"|chang|should|\bresult"
    r"|\bmax|out.of|lower.is|higher.is|\b(?:score|rating|grade|marks?|points?|stars?|level|verdict|winner"
    r"|ranking|percent)",
    re.IGNORECASE,
)


OBJECT = re.compile(r"\{\s*[\"'}]|\{\s*\Z")  # braces of code or of mathematics hold no answer


def whole(value: Any) -> Any:
    """A JSON number such as 4.0 as the whole number it equals; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


NOTHING: tuple[Any, ...] = (None, "", [], {})  # values of a field that say nothing


def overridden(item: dict[str, Any], field: str) -> bool:
    """Whether another field of a JSON object may change what `field` says."""
    others = [key for key, value in item.items() if key != field and value not in NOTHING]
    return any(OVERRIDES.search(key.replace("_", " ")) for key in others)


_DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: _unique(pairs))
_OPENING = re.compile(r"```[ \t]{0,4}\w{0,20}$")
_CLOSING = re.compile(r"```")
_HARMLESS = re.compile(
    r"\bin (?:the|your|this) (?:(?:requested|required|specified|given|json) )*format\b|\bas (?:asked"
    r"|requested|instructed)\b"
    r"|\blet me know\b[^.!?\n\d{}]*",
    re.IGNORECASE,
)
_INTRODUCES = re.compile(
    r"^(?:sure,? )?here\W|^\W*sure\W|\b(?:my|ratings?|evaluations?|assessments?|json|results?|verdict|answer"
    r"|judge?ments?|object|scores?|ranking|scale|best (?:first|to worst))\b",
    re.IGNORECASE,
)
# Words with which a judge reports what somebody else wrote, or what a reply would look like.
REPORTS = re.compile(
    r"\b(?:say(?:s|ing)?|said|writes?|wrote|written|writing|reads|contain(?:s|ing)?|claim(?:s|ed|ing)|quot\w+|inject\w*"
    r"|demand(?:s|ed|ing)?|asks|ask(?:ed|ing)? (?:for|that)|instruct\w*|tell(?:s|ing)?|told|tr(?:ies|ied"
    r"|ying)|example|e\.g\.|format"
    r"|template|schema|pretend\w*|imitat\w+|fake\w*|smuggl\w+|suggest\w*|insist\w*|plead\w*|beg(?:s|ged|ging)?"
    r"|order(?:s|ed|ing)|ignor\w+|(?:its|their) own (?:rating|score|verdict|mark|word|ranking)s?|attempt\w*"
    r"|embed\w*|(?<!\bi )would|could|should|might|must|if|unless|instead of"
    r"|never|cannot|can't|n't|isn't|wasn't|another judge|previous\w*|earlier|at first|initial(?:ly)?)\b",
    re.IGNORECASE,
)
_DENIES = re.compile(r"\bnot\b|\bopposite\b|\bunlike\b", re.IGNORECASE)
_AGAIN = r"(?:thoughts?|reading|look|inspection|glance|reflection|consideration|examination|analysis|thinking)"
_CORRECTS = (
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
CORRECTION = re.compile(
    rf"(?:^|[.!?;,:(\n–—-])[ \t*_]{{0,8}}(?:but |and )?(?:{_CORRECTS})\b|\bshould (?:be|read|say|have been"
    r"|have read|have said)\b"
    r"|\bchang(?:e|ed|ing) (?:it|that|this|my|the|to)\b|\b(?:take|took|taking) (?:it|that) back\b"
    r"|\bi(?:'d| would| will|'ll)? (?:lower|raise|revise|correct|downgrade|upgrade|take|deduct|subtract)\b"
    r"|\bis (?:really|more like|rather)\b|\bi (?:no longer|was (?:wrong|mistaken|too)|misread|misjudged"
    r"|reconsider\w*|take (?:it|that|this) back|withdraw|retract|spoke too)\b"
    r"|\b(?:changed|change|changing) my mind\b",
    re.IGNORECASE,
)
SWAPS = re.compile(
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
)
_AFTERTHOUGHT = re.compile(
    rf"\b(?:{_CORRECTS}|but|however|instead|not|except|wrong|mistakes?|errors?|opposite|unlike)\b|[\d{{}}]",
    re.IGNORECASE,
)
VOID = re.compile(
    r"\b(?:disregard|ignore|discard) (?:the|this|these|that|my|all)\b|\bplaceholders?\b|\bdummy\b|\b(?:wrong"
    r"|other) (?:texts|completions)\b"
    r"|\bi (?:decline|refuse) to\b|\bin reverse\b|\b(?:are|were) (?:only |just )?(?:examples|guesses)\b",
    re.IGNORECASE,
)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object, keys in lower case. Raises ValueError for a repeated key: such a reply is ambiguous."""
    if len({key.strip().lower() for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return {key.strip().lower(): value for key, value in pairs}


def find_object(text: str) -> tuple[Any, str] | str:
    """The one JSON value of a reply, keys in lower case, and the words before it; or the problem.

    Plain words around it are accepted. A second object, words that make the object somebody else's or an example, and
    a correction are not: the reply would then be ambiguous.
    """
    start = text.find("{")
    if start < 0:
        return "not readable as JSON (no object)"
    if (before := text[:start].rstrip()).endswith("["):
        start = len(before) - 1
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        return "not readable as JSON (nested too deep)"
    except json.JSONDecodeError as error:
        return f"not readable as JSON ({error})"
    except ValueError as error:  # a key that stands twice, or a whole number that Python refuses to read
        return f"not readable as JSON ({'a number is too long' if 'limit' in str(error) else error})"
    before, after = text[:start].rstrip(), text[end:]
    if re.match(r"[ \t]*[^\s`]", after):
        return "the sentence goes on behind the object"
    after = after.lstrip()
    opening, closing = _OPENING.search(before), _CLOSING.match(after)
    if opening is not None and closing is not None:
        before, after = before[: opening.start()], after[closing.end() :]
    before, after = _HARMLESS.sub("", before).rstrip(), _HARMLESS.sub("", after)
    last = before.rpartition("\n")[2]
    if quoted(before, len(before)):
        return "the object stands in words that quote it"
    if REPORTS.search(last) or (
        last and not last.endswith((".", "!")) and (_DENIES.search(last) or not _INTRODUCES.search(last))
    ):
        return "the words before the object do not introduce it as the judge's own"
    if any(pattern.search(after) for pattern in (_AFTERTHOUGHT, REPORTS, SWAPS, VOID)):
        return "the words after the object may take it back"
    return value, before


# ---------------------------------------------------------------- a number

NUMERALS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER = re.compile(
    rf"""[*_`"'\[(]*
    (?:(?P<digits>[+-]?\d{{1,9}}(?:\.0{{1,9}}(?!\d))?)|(?P<word>(?:{"|".join(NUMERALS)})\b)
    |(?P<na>(?:n/a|n\.a\.|na|not\ applicable)(?!\w)))
    [*_`"'\])]*
    (?:\s*\(?(?:/|out\s+of\b)\s*[*_]*(?P<of>\d{{1,9}})(?:\.0{{1,9}})?(?!\d)[)*_\]]*)?
    [*_`"']*(?P<tail>.*)""",
    re.IGNORECASE | re.VERBOSE,
)
# `4 or 5`, `4 - 5`, `4.5` and `4 minus` are not 4.
_CLOSES = re.compile(r"\s*$|\s*[.;:!,)|]+(?=\s|$)|\s+[-–—]+\s|\s+\(|\s+(?:because|since|as|for|due)\b", re.IGNORECASE)
_HEDGE = re.compile(
    r"[\s*_(]*(?:(?:or|to|and|maybe|perhaps|possibly|probably|if|but|out|of|not|no|minus|plus|half|though"
    r"|although|almost"
    r"|nearly|actually|wait|rather|approximately|about|on a scale)\b|[+-]?\d|[½¼¾~<>≈])",
    re.IGNORECASE,
)
_OTHER_SCALE = re.compile(r"\bscale\b|\bout of\b|\bpercent|[%½¼¾]", re.IGNORECASE)


def other_scale(words: str, low: int, high: int) -> bool:
    """Whether the brackets after a keyword, as in `Rating (1-10): 4`, hold another scale than low to high."""
    numbers = re.findall(r"\d+", words)
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


_VALUED = re.compile(rf"\d|\b(?:{'|'.join(NUMERALS)}|higher|lower)\b", re.IGNORECASE)


def takes_back(text: str) -> bool:
    """Whether the text holds a correction with a number, such as `Actually, 3`."""
    return any(_VALUED.search(text, end, end + 60) for end in corrections(text))


def corrections(text: str) -> Iterator[int]:
    """Where the words end that begin a correction."""
    return (match.end() for match in CORRECTION.finditer(text))
