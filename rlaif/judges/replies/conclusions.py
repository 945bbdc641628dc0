"""What a judge says of two candidates in its sentences: `Therefore, Output (b) is better.`, `I prefer completion 2`.

Only a statement about a candidate as a whole counts, by one of its names and without a hedge. A statement about one
property (`better in style`), a hypothetical one (`would be better if`) and a question say nothing. One that is
reported, conditional or denied is no verdict, but stands against a verdict before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from rlaif.judges.replies.patterns import Pattern
from rlaif.judges.replies.words import MOST_MARKS, MOST_OF_A_SENTENCE, unquoted
from rlaif.records import Choice

MOST_BEFORE = 1_000  # characters of a sentence before its statement: so many words may lead anywhere


class Said(NamedTuple):
    """One statement: the verdicts it leaves open, and whether it is the judge's own and without a condition."""

    choices: frozenset[Choice]
    clear: bool
    concluding: bool  # after `Therefore`, or as the judge's own decision
    at: int
    end: int  # of its sentence


def concluded(text: str, offered: Sequence[str]) -> tuple[Choice | None, int]:
    """The verdict that a reply without a formal one concludes with, and where its sentence ends; else None.

    It opens the reply, ends it, or is marked as a conclusion, and nothing that is said contradicts it.
    """
    sentences = list(_sentences(text, 0))
    if _SMUGGLED.search(text):
        return None, len(text)
    said = _said(sentences, offered)
    verdicts = [one for one in said if one.clear and len(one.choices) == 1]
    ends = {sentences[0].end, sentences[-1].end} if sentences else set()
    if len(said) > MOST_MARKS or not any(one.concluding or one.end in ends for one in verdicts):
        return None, len(text)
    last = verdicts[-1]
    (choice,) = last.choices
    if any(choice not in one.choices for one in said if one.clear or one.at > last.at):
        return None, len(text)
    return choice, last.end


def speaks_against(text: str, choice: Choice, offered: Sequence[str], start: int) -> bool:
    """Whether anything that is said from index `start` on stands against `choice`."""
    said = _said(_sentences(text, start), offered)
    return len(said) > MOST_MARKS or any(choice not in one.choices for one in said)


# Where a judge says that a text speaks to it, an unquoted conclusion may be that text's.
_SMUGGLED = Pattern(
    r"\binject(?:s|ed|ion)\b|\bmanipulat\w+|\binfluence (?:me|the judge|my)\b|\b(?:to|tells?|asks|orders"
    r"|addresses|begs) (?:me|the judge)\b(?! (?:that|more|like|clear|as|to be|the))"
    r"|\b(?:note|message|appeal|plea) to (?:me|the judge)\b|\bi (?:ignore|disregard|set aside"
    r"|leave aside) (?:this|that|it)\b|\b(?:is|be) disregarded\b",
    re.IGNORECASE,
    words=(
        "inject|manipulat|influence |to me|to the judge|tell me|tells me|tell the judge|tells the judge|asks |"
        "orders |addresses |begs |i ignore |i disregard |i set aside |i leave aside |disregarded"
    ),
)


# ---------------------------------------------------------------- sentences


class _Sentence(NamedTuple):
    words: str  # on one line, without marks of emphasis
    led: str  # the line above that announces it with a colon
    at: int
    end: int


_END = Pattern(
    r"[.!?](?<!\be\.g.)(?<!\bi\.e.)(?<!\bvs.)[\"')\]*_`]{0,4}(?=\s|$)|\n[ \t\r]*\n|\n(?=[ \t]*(?:[-*•#|]"
    r"|\d+[.)][ \t]))|:[ \t*_]*\n"
)
# A sentence that shows what follows, as a colon does: `It has this line.`
_SHOWS = Pattern(
    r"\b(?:this|these|following)\b[^.:]{0,20}\b(?:lines?|sentences?|words|text|note|message|claims?|remarks?)\W*$",
    re.IGNORECASE,
    words="line|sentence|word|text|note|message|claim|remark",
)
# One after whose colon somebody else may speak, to the end of the paragraph: `Its text is: I am the best. ...`
_TELLS = Pattern(
    r"\b(?:is|are|reads?|says?|said|writes?|wrote|ends?|states?|goes|begins|adds|concludes|contains?|claims?): \S",
    re.IGNORECASE,
    words=": ",
)
_MARKS = Pattern(r"[*`]+|(?<!\w)_+|_+(?!\w)", words="*|`|_")


def _sentences(text: str, start: int) -> Iterator[_Sentence]:
    plain = unquoted(text)
    led = ""
    ends = [match.end() for match in _END.finditer(plain, start)]
    for begin, end in zip([start, *ends], [*ends, len(plain)], strict=True):
        words = " ".join(_MARKS.sub("", plain[begin:end]).replace("’", "'").split())
        if not words.strip(" #-•|.>"):
            continue
        if words.endswith((":", "：")):
            led = words
            continue
        listed = words[0] in "-*•#" or words[0].isdigit()
        yield _Sentence(words, led, begin, end)
        told = _TELLS.search(words) or (led and not plain[begin:end].endswith("\n") and _TELLS.search(led))
        led = words if _SHOWS.search(words) or (told and not led) else led if listed or told else ""


def _said(sentences: Iterator[_Sentence] | Sequence[_Sentence], offered: Sequence[str]) -> list[Said]:
    """What the sentences say, in order; one too many where it is too much."""
    patterns = _patterns(tuple(offered))
    each = (one for sentence in sentences for one in _of_sentence(sentence, patterns))
    return list(islice(each, MOST_MARKS + 1))


# ---------------------------------------------------------------- names

_NOUNS = (
    r"outputs?|completions?|responses?|answers?|texts?|options?|candidates?|repl(?:y|ies)|choices?|versions?"
    r"|submissions?"
)
_JUDGED = rf"{_NOUNS}|assistants?|models?"  # unless the candidates are named otherwise: then it may be a debater


@lru_cache(maxsize=16)
def names(offered: tuple[str, ...]) -> tuple[str, str]:
    """The patterns of the two candidates' names: `Output (a)`, `response A`, `completion #1`, `the first output`."""
    parts = [
        re.fullmatch(r"(?:([^\W\d_]\w+)[ \t_]*#?)?[(\[]?([^\W_]{1,12})[)\]]?", name.strip()) for name in offered[:2]
    ]
    nouns = [part[1] for part in parts if part and part[1]]
    noun = "|".join([*map(re.escape, nouns), _NOUNS if nouns else _JUDGED])
    found = []
    for name, part, place in zip(offered, parts, ("first|1st", "second|2nd"), strict=False):
        ways = [re.escape(name)]
        if part is not None:
            core = re.escape(part[2])
            ways += [
                rf"(?:(?i:the|this) )?(?i:{noun}) ?#?(?:[(\[\"']{{1,2}}(?i:{core})[)\]\"']{{1,2}}|(?:number "
                rf"|no\. ?)?{core}(?![\w'’]))",
                rf"[(\[](?i:{core})[)\]]",
            ]
            if not nouns:
                ways.append(rf"(?<![\w.#\[-]){core}(?![\w'’)-]|[.,]\d)")
        ways.append(rf"(?i:the (?:{place})(?: (?:{noun}|one))?)(?!\w| \w+ (?:of|in) )")
        found.append("|".join(ways))
    return found[0], found[1]


def _either(pair: tuple[str, str], tag: str) -> str:
    return rf"(?!\B\w)(?:(?P<a{tag}>{pair[0]})|(?P<b{tag}>{pair[1]}))"  # not in the middle of a word


# ---------------------------------------------------------------- statements

_GOOD = r"better|best|superior|preferable|preferred|stronger|strongest|winner|winning"
_BAD = r"worse|worst|inferior|weaker|weakest|loser|losing"
_QUALITIES = "better|best|superior|prefer|strong|winn|worse|worst|inferior|weak|los"  # in all of these
_IS = {"is", "was", "are", "remains", "proves", "emerges", "stands", "comes", "turns", "be", "being", "as"}
_HEDGES = {
    "seems", "appears", "looks", "may", "might", "could", "can", "should", "would", "perhaps", "maybe", "possibly",
    "probably", "arguably", "likely", "potentially", "presumably", "supposedly", "allegedly", "almost", "nearly",
    "if", "lean", "'d",
}  # fmt: skip
_DENIALS = {
    "not", "never", "hardly", "neither", "nor", "no", "isn't", "wasn't", "don't", "didn't", "cannot", "can't", "won't",
    "doesn't", "wouldn't", "scarcely", "far", "nothing",
}  # fmt: skip
_ADVERBS = {
    "a", "an", "the", "my", "much", "far", "by", "bit", "little", "clearly", "significantly", "slightly", "marginally",
    "somewhat", "definitely", "certainly", "obviously", "undoubtedly", "overall", "still", "therefore", "thus",
    "hence", "also", "indeed", "ultimately", "generally", "simply", "considerably", "substantially", "objectively",
    "decidedly", "then", "out", "to", "evidently", "easily", "really", "truly", "in", "fact", "again", "so", "now",
    "just", "finally", "strongly", "do", "will", "have", "has", "had", "am", "going", "i", "we", "must", "both",
    "consequently", "accordingly", "on", "balance", "whole", "all", "one", "clear", "and", "even", "only", "'ll", "'m",
    "'ve",
}  # fmt: skip
_BETWEEN = _IS | _HEDGES | _DENIALS | _ADVERBS
_UNREAL = Pattern(r"\bif\b|\bhad\b")  # `would be better if`
_WORDS = r"(?:,? [a-z']{1,14},?){0,8}?"
_CHOOSE = (
    r"prefer|preferred|choose|chose|chosen|pick|picked|select|selected|favou?r|recommend|go with|going with|vote for"
    r"|opt for|opted for|went with|switch to|side with"
)


class _Patterns(NamedTuple):
    quality: Pattern  # X is better (than Y)
    beats: Pattern  # X wins, X outperforms Y
    chosen: Pattern  # I prefer X (over Y)
    named: Pattern  # the better output is X
    other: Pattern  # than Y
    tied: Pattern
    joined: Pattern


@lru_cache(maxsize=16)
def _patterns(offered: tuple[str, ...]) -> _Patterns:
    pair = names(offered)
    one, other = _either(pair, ""), _either(pair, "2")
    noun = rf"(?:{_JUDGED}|one|quality|fit|overall|of the two|here)"
    return _Patterns(
        quality=Pattern(
            rf"{one}(?P<mid>{_WORDS}) (?i:(?P<good>{_GOOD})|(?P<bad>{_BAD})|(?P<even>as good as)"
            r"|(?P<part>more \w+))(?![\w-])",
            words=f"{_QUALITIES}|as good as|more ",
        ),
        beats=Pattern(
            rf"{one}(?P<mid>{_WORDS}) (?i:(?P<good>wins out|wins?|won|prevails|beats it|takes the (?:win|lead"
            r"|prize)|has the edge|comes out ahead|should win|gets my vote|takes it|deserves (?:it|the win"
            rf"|to win|the preference|my vote)|(?:outperforms|beats|surpasses|outdoes) (?:{other}"
            r"|the other(?: one)?))|(?P<bad>loses|lost))(?!\w)",
            words="win|won|prevails|beats|takes|edge|ahead|vote|deserves|outperforms|surpasses|outdoes|loses|lost",
        ),
        chosen=Pattern(
            rf"\b(?i:(?:i|we)(?P<mid>(?:'(?:d|ll|m|ve))?{_WORDS}) (?:{_CHOOSE})) {one}(?!\w| and\b| or\b)",
            words=(
                "prefer|choose|chose|pick|select|favo|recommend|go with|going with|vote for|opt for|opted for|"
                "went with|switch to|side with"
            ),
        ),
        named=Pattern(
            rf"\b(?i:(?:the|my)(?P<mid>{_WORDS}) (?:(?P<good>{_GOOD}|pick|choice|vote|preference|verdict"
            rf"|decision|favou?rite)|(?P<bad>{_BAD})) (?:{noun} ){{0,3}}(?:is|was|goes to"
            rf"|goes for)(?P<mid2>{_WORDS}))(?::|,)? {one}(?!\w| and\b| or\b)",
            words=f"{_QUALITIES}|pick|choice|vote|verdict|decision|favo",
        ),
        joined=Pattern(rf"(?:{pair[0]}|{pair[1]}),? (?:and|or|nor) $", words=" and | or | nor "),
        other=Pattern(rf" (?i:than|to|over) (?:{other}|(?i:the other)\b)"),
        tied=Pattern(
            r"\b(?i:(?:it is|it's|this is|that's|is|are|call it|as|calls? for|ends? in) (?:a |an )?(?:clear "
            r"|dead |perfect )?(?:tied?|draw)\b|equally (?!likely)\w+|neither (?:(?:of (?:them|the two)"
            rf"|{_JUDGED}|one|\S+ \S+ nor \S+ \S+) )?(?:is|can be considered|was) (?:\w+ ){{0,2}}(?:better"
            r"|best|superior)|no (?:clear |real )?(?:winner|preference|better)|(?:cannot|can't|unable to"
            r"|hard to|impossible to) (?:decide|choose|tell|say)|just as good|on a par|toss-?up)",
            words=" tie| draw|equally |neither |no |cannot |can't |unable to|hard to|impossible to|as good|par|toss",
        ),
    )


_ANY: frozenset[Choice] = frozenset({"A", "B", "tie"})


def _of_sentence(sentence: _Sentence, patterns: _Patterns) -> Iterator[Said]:
    """The statements of a sentence, in order."""
    words = sentence.words
    if len(words) > MOST_OF_A_SENTENCE:  # what it says cannot be known, and it may speak against anything
        yield Said(frozenset(), False, False, sentence.at, sentence.end)
        return
    found: list[tuple[int, Said]] = []
    for pattern in (patterns.quality, patterns.beats, patterns.chosen, patterns.named):
        for match in islice(pattern.finditer(words), MOST_MARKS):
            said = _stated(match, pattern, sentence, patterns)
            if said is not None:
                found.append((match.start(), said))
    tied = patterns.tied.search(words)
    if tied is not None and not words.endswith("?"):
        found.append((tied.start(), Said(frozenset({"tie"}), False, False, sentence.at, sentence.end)))
    yield from (said for _, said in sorted(found, key=lambda one: one[0]))


def _stated(match: re.Match[str], pattern: Pattern, sentence: _Sentence, patterns: _Patterns) -> Said | None:
    """What one match says; None where it says nothing of the candidate as a whole."""
    groups, before = match.groupdict(), sentence.words[: match.start()]
    between = set(re.findall(r"[a-z']+", f"{groups['mid']} {groups.get('mid2') or ''}".lower()))
    if between - _BETWEEN or patterns.joined.search(before[-60:]):
        return None  # `Output (a) gives the better ...`, `Output (a) and Output (b) is ...`
    if pattern is patterns.quality and not _IS & between and not _MAKES.search(before):
        return None
    favoured = _favours(match, pattern is patterns.chosen, between, sentence.words[match.end() :], patterns)
    if favoured is None:
        return None
    choices, rest = favoured
    tail, led = _tail(rest), _lead(before, sentence.led)
    at, end = sentence.at + match.start(), sentence.end
    if groups.get("part"):  # `so Output (a) is more relevant`: no verdict, but none for the other either
        return Said(choices, False, False, at, end) if led == "concluding" else None
    hedged = bool(_HEDGES & between) and not (pattern is patterns.chosen and "would" in between)
    if "apart" in (tail, led) or (hedged and "would" in between and _UNREAL.search(sentence.words)):
        return None
    clear = not hedged and tail == "plain" and led in ("plain", "concluding")
    decides = led == "concluding" or pattern in (patterns.chosen, patterns.named) or "therefore" in between
    return Said(_ANY - choices if led == "denied" else choices, clear, clear and decides, at, end)


def _favours(
    match: re.Match[str], chosen: bool, between: set[str], rest: str, patterns: _Patterns
) -> tuple[frozenset[Choice], str] | None:
    """The verdicts that the words of a statement leave open, and the rest of its sentence; None for no comparison."""
    groups = match.groupdict()
    mine, theirs = _pair(match)
    good = chosen or bool(groups.get("good") or groups.get("part"))
    denied = bool(_DENIALS & between) and not {"by", "far"} <= between
    if groups.get("even"):  # `not as good as Output (b)`
        rest = f" than {rest.strip()}"
        compared = patterns.other.match(rest)
        if not denied or compared is None or _against(compared) != theirs:
            return None
        return frozenset({theirs}), rest[compared.end() :]
    compared = patterns.other.match(rest)
    if _against(compared) == mine:
        return None
    rest = rest[compared.end() :] if compared is not None else rest
    choices: frozenset[Choice] = frozenset({mine if good else theirs})
    return (_ANY - choices if denied else choices), rest


def _pair(match: re.Match[str], tag: str = "") -> tuple[Choice, Choice]:
    """The candidate that is named, and the other one."""
    return ("A", "B") if match[f"a{tag}"] else ("B", "A")


def _against(compared: re.Match[str] | None) -> Choice | None:
    """The candidate that a statement compares with, where it names it: `than Output (b)`, not `than the other`."""
    return _pair(compared, "2")[0] if compared is not None and (compared["a2"] or compared["b2"]) else None


# ---------------------------------------------------------------- the words after a statement

_SAME = Pattern(
    rf"(?: (?:{_JUDGED}|one|fit|match|quality|performer|work|winner|result|executor|pick))?(?: of the (?:two"
    r"|pair|both)(?: \w+)?)?(?: (?:overall|here|again|indeed|altogether|after all|in the end))?"
    r"(?:,? (?:for|to|at|in|under|according to|based on|given|on|of|between) (?:"
    r"(?:(?:precisely|honestly|closely|accurately|correctly|properly|strictly|directly|better|and|,"
    r"|/) ?)*(?:executing|following|fulfilling|adhering to|answering|addressing|responding to) (?:the|this"
    r"|that|these) (?:\w+ ){0,2}?(?:instructions?|tasks?|prompts?|questions?|requests?|requirements?)"
    r"|(?:the|this|that|these|my|our|both|all|every|any)(?:['’]s|[ \w-]){0,40}?(?:instructions?|tasks?"
    r"|prompts?|questions?|requests?|queries|query|users?|purposes?|inputs?|cases?|contexts?|instances?"
    r"|situations?|opinion|view|judge?ment|assessment|evaluation|criteri(?:on|a)|principles?|rules|reasons?"
    r"|respects?|ways|scenario|comparison|requirements?|two|outputs|responses|completions|answers|whole|balance)"
    r"|general|all|every way|balance"
    r")(?! of\b| and\b)(?=[\s.,;:!)(—–-]|$)|,? by (?:far|a (?:\w+ ){0,2}margin)\b){0,3}",
    re.IGNORECASE,
)
_PLAIN = Pattern(
    r"[.!)\]\"' ]*$|[,;:]? ?(?:because|since|as|due to|thanks to|given|with|while|whereas|although|though"
    r"|even though|in that|owing to)\b|,? by \w+ing\b|,? for (?:its|their|the reasons?|\w+ing|several|these"
    r"|two|three|being|this reason)\b"
    r"|,? and\b| ?[,;:.—–(]| -+ |,? which\b|,? so\b|\. ",
    re.IGNORECASE,
)
_HOLDS_BACK = Pattern(
    r"\b(?:said|says|it is said|they say|allegedly|supposedly|or so)\b|\bwhich (?:\w+ ){0,4}means?\b"
    r"|^[ ,;:(—–-]*(?:(?:and|or|so|then) )*(?:or|if|unless|except|maybe|perhaps|possibly|probably|not sure"
    r"|only|provided|assuming|depending|as long as|in case|but(?! (?:only )?(?:slightly|marginally|just|not by)))\b"
    r"|[,;(—–-] ?(?:but|or rather|or is it|unless|if|except|provided|depending|assuming|i think|i guess|or so"
    r"|as long as|only when|only if)\b|\bunless\b|\bdepend(?:s|ing) on (?:the|one|what|who|how|your"
    r"|personal)\b|\bnot sure\b|\bif (?:you|one|the (?:reader|user|goal|aim|focus))\b|\bonly (?:if|when)\b"
    r"|\bas long as\b",
    re.IGNORECASE,
)


def _tail(rest: str) -> str:
    """`plain`, `held back`, or `apart` where the statement is of one property."""
    same = _SAME.match(rest)
    rest = rest[same.end() :] if same else rest
    if rest.rstrip(" )\"'").endswith("?") and not re.search(r"[.!] ", rest):
        return "apart"
    if _HOLDS_BACK.search(rest):
        return "held back"
    plain = _PLAIN.match(rest)
    return "apart" if plain is None else "plain"


# ---------------------------------------------------------------- the words before a statement

_MAKES = Pattern(
    r"\b(?:makes?|making|made|finds?|found|consider|deem|declare|judge|rate|rank|see|regard|think|believe)(?: that)? $",
    re.IGNORECASE,
)
_MARKED = (
    r"therefore|thus|hence|so|overall|consequently|accordingly|ultimately|finally|all in all|all things considered"
    r"|in (?:conclusion|summary|short|sum|the end|total|light of (?:this|that|these|the above))"
    r"|to (?:conclude|sum(?: \w+)? up|summari[sz]e)|as a (?:result|consequence)|for (?:this|these|that|those"
    r"|all these) reasons?"
    r"|on (?:balance|the whole)|(?:final |my )*(?:verdict|conclusion|decision|judge?ment)|altogether"
    r"|taken together|on second (?:reading|thoughts?|look)|on reflection|in my (?:opinion|view|judge?ment"
    r"|assessment|evaluation)|if i (?:have|had) to choose"
)
_LEADS = Pattern(
    rf"(?:[\W_]*(?:\d+[.)] )?(?:{_MARKED}|yes|and|then|again|clearly|obviously|in (?:this|that|the given"
    r"|these) (?:case|context|instance|situation|comparison|scenario)s?|here|indeed|in (?:contrast"
    r"|comparison|fact|general|addition)|on the other hand|by contrast|comparatively|generally|evidently"
    r"|additionally|moreover|furthermore|however|but|explanation|reasoning|evaluation|answer)\b[,:;]?)*[\W_]*",
    re.IGNORECASE,
)
_CONCLUDES = Pattern(rf"\b(?:{_MARKED})\b", re.IGNORECASE)
_ADV = (
    r"(?:(?:therefore|thus|hence|can|have|has|had|must|would|will|also|do|then|now|strongly|firmly|am|to|'ve|'d"
    r"|safely|confidently|finally|ultimately|to the|come|came|reached?|arrived|at|leads? me|leading me|honestly"
    r"|still) ?){0,5}"
)
_DECIDES = Pattern(
    r"(?:^|[,;:—–] ?|\b(?:and|so|but|therefore|thus|hence|,) ?|[.!] )(?:(?:that|this|which|it"
    rf"|my [\w ]{{1,80}}?) )?(?P<who>(?:i|we) ?{_ADV}(?:the )?(?:conclu\w+|determin\w+|decid\w+|decision"
    r"|believe|think|find|found|say|judge\w*|consider\w*|feel|hold|agree|opinion|confident|convinced|argue"
    r"|see|deem|assess\w*|rate|declare|view)"
    r"|(?:leads?|leading) (?:me|us) to (?:the )?(?:conclu\w+|believe|decide|determine)"
    r"|it (?:is|was|becomes?|'s)(?: \w+)? (?:clear|evident|obvious|apparent|plain|safe to say|fair to say"
    r"|my (?:\w+ )?(?:opinion|view|judge?ment|conclusion|belief))(?: to me)?"
    r"|it (?:can|may|could) be (?:concluded|said|determined|inferred|seen|argued)"
    r"|(?:my|the|our) (?:\w+ )?(?:verdict|conclusion|decision|judge?ment|opinion|view|evaluation|assessment) is"
    r"|this (?:means|shows|implies|makes)|which (?:means|makes)|making|makes)(?: (?:that|:))?,? ?$",
    re.IGNORECASE,
)
_DENIES = Pattern(
    r"\b(?:not|n't|never|cannot|no|hardly|doubt\w*|disagree\w*|deny|denies|false|untrue|wrong|mistake\w*"
    r"|incorrect\w*|far from|reject\w*|refus\w*|rather than|instead of|without|against|opposite|contrary"
    r"|neither|nor)\b[^,;:]*$|n't\b[^,;:]*$",
    re.IGNORECASE,
)
_REPORTS = Pattern(
    r"\b(?:says?|said|saying|writes?|wrote|written|claims?|claim(?:ed|ing)|argu(?:es?|ed|ing)|insist\w*"
    r"|assert\w*|tells?|told|demand\w*|asks?|asked|according to|pretend\w*|suggest\w*|announc\w*|declar(?:es"
    r"|ed)|promis\w*|boast\w*|maintain\w*|inject\w*|quot(?:es?|ed|ing)|reads|ends|ending|contains?|containing"
    r"|thinks|believes|feels|states?|stated|stating|line|words|sentence|phrase|text that|instruct(?:s|ed|ing)"
    r"|orders?|begs?|pleads?|writes|repeats?|adds|concludes|example|e\.g|imagine|pretending|mention(?:s|ed|ing))\b",
    re.IGNORECASE,
)
_CONDITIONS = Pattern(
    r"\b(?:if|unless|had|were|should|suppos\w+|assum\w+|provid(?:ed|ing) that|granted that|in case|whenever"
    r"|until|otherwise|depending|hypothetical\w*|would|could|might|perhaps|maybe|possibly|probably|arguably"
    r"|one (?:may|might|could)|some (?:may|might|would|could|people|readers|users)|someone|somebody|others?"
    r"|readers?|at first|initially|first sight|first glance|superficially|on the surface|seemingly|apparently"
    r"|earlier|previously)\b",
    re.IGNORECASE,
)
_OPENS = Pattern(
    r"^(?:after|based on|given|considering|taking|since|because|as|while|although|though|even though|despite"
    r"|in light of|in view of|having|upon|by|when (?:evaluat|compar|consider|review|assess|look|judg)\w+"
    r"|from (?:the|this|my)|overall|with (?:this|that|these|all)|due to|in (?:evaluat|compar|review|consider"
    r"|assess)ing|in (?:this|my|the|these)\b|between|of the two|out of|both|to (?:determine|evaluate|decide)"
    r"|it's worth|whereas|for (?:this|these|the|that)|i|we|however|therefore|unlike|compared|\w+ing|in accordance)\b",
    re.IGNORECASE,
)
_LINKS = Pattern(
    r"(?:[;—–]|\. |,? \b(?:so|thus|therefore|hence|but|and therefore|and thus|and hence|and so|making"
    r"|and as such|meaning|consequently)\b|,? \band\b),? ?$",
    re.IGNORECASE,
)
_OF_ONE = Pattern(
    r"(?:^|[,;] ?)(?:in terms of|as for|as far as|regarding|with regards? to|with respect to|concerning"
    r"|when it comes to|on|for|to|in|from|at|under)\b(?! accordance| contrast| comparison|(?: (?:this|that"
    r"|these|the|my|balance|comparing|evaluating|reviewing|considering|assessing) ?(?:case|context|instance"
    r"|situation|view|opinion|accordance|reason|analysis|evaluation|comparison|given|whole|other hand"
    r"|instruction|above|two|task|prompt)?))[^,;]*, ?$|(?:^|[,;] ?)\w+(?:ally|wise),? ?$",
    re.IGNORECASE,
)
_OFFERS = Pattern(
    r"\b(?:possible|options?|alternatives?|either|could|might|may|would|hypothes\w+|claims?|statements?|examples?)\b",
    re.IGNORECASE,
)
_INTRODUCES = Pattern(
    r"\b(?:verdict|decision|conclusion|answer|judge?ment|explanation|reason(?:s|ing)?|evaluation|comparison"
    r"|analysis|summary|result|overall|final|therefore|assessment|preference|choice|conclude|opinion|review"
    r"|response)\b",
    re.IGNORECASE,
)


def _lead(before: str, led: str) -> str:
    """`plain`, `concluding`, `unclear`, `denied`, or `apart` where the words before restrict it to one property."""
    if len(before) > MOST_BEFORE or (led and not _is_introduced(led)):
        return "unclear"
    leads = _LEADS.match(before)
    start = leads.end() if leads else 0
    rest = before[start:]
    decides = _DECIDES.search(rest)
    if decides is not None:
        rest = rest[: decides.start()].rstrip(" ,")
        rest += "," if rest else ""
    marked = bool(led) or decides is not None or _CONCLUDES.search(before[:start]) is not None
    if not rest.strip(" ,"):
        return "concluding" if marked else "plain"
    return _clause(rest, marked, decides is not None)


def _is_introduced(led: str) -> bool:
    """Whether a line that ends in a colon introduces the judge's own words."""
    others = _OFFERS.search(led) or _REPORTS.search(led) or _DENIES.search(led[:-1])
    return not others and _INTRODUCES.search(led) is not None


def _clause(rest: str, marked: bool, decided: bool) -> str:
    """As `_lead`, of the words before a statement that are more than a mark such as `Therefore`."""
    links = _LINKS.search(rest)
    link = links[0] if links else ""
    strong = bool(link) and link.strip(" ,").lower() != "and"
    if not decided and not link and _DENIES.search(rest):
        return "denied"
    if _OF_ONE.search(rest):
        return "apart"
    told = rest.rpartition(":")[0] if strong and link.lstrip()[:1] in ",;—–." else rest
    last = re.split(r"[,;]", rest.rstrip(" ,"))[-1]
    if _CONDITIONS.search(last if strong else rest) or _REPORTS.search(told):
        return "unclear"
    if strong and link.strip(" ,;—–.").lower() not in ("", "but"):
        return "concluding"
    if link or (rest.rstrip().endswith(",") and (decided or _OPENS.match(rest))):
        return "concluding" if marked else "plain"
    return "unclear"
