"""A ranking of n numbered completions, best first: `2 > 1 = 3`, `Ranking: 2, 1, 3`, {"ranking": [2, [1, 3]]}."""

from __future__ import annotations

import re
from typing import Any

from rlaif.judges.replies.objects import NOTHING, OBJECT, find_object, overridden
from rlaif.judges.replies.patterns import Pattern
from rlaif.judges.replies.second_thoughts import revokes, withdraws
from rlaif.judges.replies.words import (
    BAD,
    CUT,
    MOST_CHARACTERS,
    MOST_MARKS,
    TOO_LONG,
    foreign,
    headed,
    heading,
    measures_bad,
    narrow,
    quoted,
    spoken,
    unboxed,
)

RankGroups = tuple[tuple[int, ...], ...]  # groups of numbers, best first; those in one group are tied

_NAME = r"[*_]*(?:(?:completion|text|response|answer|candidate|output)[ \t]*#?)?\[?"
_NUMBER = Pattern(rf"{_NAME}(\d{{1,4}})\]?[*_]*", re.IGNORECASE)
_ITEM = rf"{_NAME}\d{{1,4}}\]?[*_]*"
_CHAIN = Pattern(rf"{_ITEM}(?:[ \t]*[>=≻][ \t]*{_ITEM})+", re.IGNORECASE)
_LIST = Pattern(rf"\[?{_ITEM}(?:[ \t]*,[ \t]*{_ITEM})*\]?", re.IGNORECASE)
_KEY = Pattern(
    r"[ \t#*_•-]*(?:(?:so|thus|therefore|my|the|final|overall)\b,?[ \t]*)*\branking\b[*_]*"
    r"(?:[ \t]*\(?,?(?:from )?best (?:first|to worst)\)?)?[*_]*(?:[ \t]*[:=][*_]*[ \t]*|[ \t]+is:?[ \t]+)",
    re.IGNORECASE,
)
_PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_PLACE = Pattern(
    rf"[ \t*_•-]*(?:(?P<digits>\d{{1,2}})(?:st|nd|rd|th)|(?P<word>{'|'.join(_PLACES)}))(?:[ \t]+place)?"
    rf"[*_]*[ \t]*[:–—-][*_]*[ \t]*{_NAME}(?P<k>\d{{1,4}})\]?[*_]*(?P<tail>[^\n]*)",
    re.IGNORECASE,
)
_WORSE = (
    r"(?:worst|weakest|poorest|lowest|bottom|least|worse|inferior"
    r"|most (?:harmful|toxic|wrong|flawed|biased|dangerous|offensive))"
)
_BEST = r"(?:best|strongest|top|highest|winner|most helpful)"
_WORST_FIRST = Pattern(
    rf"\b{_WORSE}\W+(?:first|to)\b|\b{_WORSE}\b[^.\n]{{0,30}}\b(?:first|to (?:the )?{_BEST}|at the (?:top"
    r"|start|beginning|left|front|head))\b"
    r"|\bupside[- ]down\b|\bgreater[- ]than\b|\b(?:sign|symbol|arrow)\b|\b(?:losers?|failures?) first\b"
    rf"|\b{_WORSE}\b[^.\n]{{0,12}}\b(?:leads|heads|tops|opens)\b|\bmost (?!(?:help|hon|accura|correct|clear"
    r"|polite|kind|use|harmless|relevant|complete|convinc|suit))\w+ (?:one )?(?:comes? )?first\b"
    r"|\bfrom (?:the )?(?:bad|low|last|weak|right|poor|lower|smallest)\b|\bmore [^.\n]{0,30}\bfirst\b"
    r"|\brank(?:ing|ed|s)? by (?!(?:(?:the|their|overall|your|given|stated|above) )*(?:quality|preference|merit|how"
    r"|rank|principle|use|excellence|help|hon|harmless|accura|correct|clar|relevan|complet|truth|safe|criteri|rubric|instruct"
    r"|aspect|\w+ness|me\b))"
    r"|\border of (?!(?:(?:the|decreasing|descending|overall|their|my) )*(?:quality|preference|merit|how well"
    r"|rank|principle|goodness|use|excellence|help|hon|harmless|accura|correct|clar|polite|kind))"
    rf"|\b(?:from|starting (?:with|from|at)|beginning with|begins with|starts with) (?:the )?{_WORSE}\b"
    r"|\b(?:ascending|increasing|rising|improving|upwards?)\b|\bbottom[- ](?:to|up)\b"
    rf"|\b(?:from|first|1st|top|leftmost|leads|(?:begins|starts) with)\b[^.\n]{{0,40}}\b(?:most|worst|greatest|highest"
    rf"|largest)(?: number of| count of| amount of)?(?: the)? {BAD}"
    rf"|\b{_BEST}\b[^.\n>]{{0,20}}\b(?:last|at the (?:end|bottom|right|back))\b"
    r"|\b(?:in|the) reversed?\b|\breversed? (?:order|ranking)\b|\binverted order\b|\bbackwards\b"
    r"|[>≻]\W{0,3}(?:\w+ ){0,3}?(?:means?|is|as|stands? for|reads?|denotes|indicates|signif\w+|="
    r"|:)[^.\n]{0,30}\b(?:worse|weaker|inferior|less|poorer|lower|more (?:harmful|toxic|wrong|flawed|biased))\b"
    r"|\bmeans?\b[^\n]{0,80}\bworse\b|\b(?:lower|smaller|fewer) is better\b|\b(?:higher|greater|larger|bigger"
    r"|more) is worse\b"
    r"|\bby (?:the |their )?(?:number|count|level|degree|amount|severity) of (?:errors|mistakes|flaws|faults"
    r"|problems|harm|toxicity)\b|\bby (?:errors|harmfulness|toxicity|severity)\b",
    re.IGNORECASE,
)
_PAIRED = Pattern(
    rf"{_NAME}(?P<k>\d{{1,4}})\]?[*_]* (?:(?:is|was|seems) (?:\w+ ){{0,2}}?(?:(?P<better>better|stronger|superior"
    r"|preferable)|(?P<worse>worse|weaker|inferior)) (?:than|to)|(?P<beats>beats|outperforms|surpasses|outdoes))"
    rf" (?:the )?{_NAME}(?P<other>\d{{1,4}})(?![\w.]*\w)",
    re.IGNORECASE,
    words="better|stronger|superior|preferable|worse|weaker|inferior|beats|outperforms|surpasses|outdoes",
)
_ENDS_SAY = Pattern(
    rf"\b(?:last|final|rightmost)\b[^.\n>]{{0,15}}\b(?:is|being|was)\b (?:the )?{_BEST}\b|\b(?:first"
    rf"|leftmost)\b[^.\n>]{{0,15}}\b(?:is|being|was)\b (?:the )?{_WORSE}\b",
    re.IGNORECASE,
)
_SIGN = Pattern(
    r"(?<![-=<\w/\"'])[>≻](?=\s)(?<!^>)|[\"'“(][>≻][\"'”)]|\w [>≻] \w[^.\n]{0,20}\b(?:means?|says?|reads?|is"
    r"|stands|denotes)\b|^\s*[>≻]\s*(?:=|:|means|is|stands|reads|denotes)"
)
_RANKED = Pattern(rf"{_ITEM}[ \t]*[>=≻][ \t]*{_ITEM}", re.IGNORECASE)
_EXTREMES = Pattern(
    r"(?:\b(?:completion|text|response|answer|candidate|output) #?|(?<![\w.#>=-]) ?)(?P<k>\d{1,4}),? (?:is"
    r"|was|being|as) (?:clearly |by far |easily )?(?:the )?(?:very )?(?:(?P<best>best|strongest|winner)"
    r"|(?P<worst>worst|weakest))(?! (?:in|at|on|of (?:the )?(?:first|second))\b)\b"
    r"|(?<!to )\b(?:(?P<best2>best|strongest|winner)|(?P<worst2>worst|weakest))(?: (?:one|completion|text"
    r"|response|answer))?(?: is|:) (?:completion |text |response |answer )?#?(?P<k2>\d{1,4})(?!\d|\.\d)(?!,| and)\b",
    re.IGNORECASE,
)
_REASONS = Pattern(r"reason|rational|expla|justif|analys|thought|critique|feedback|summary", re.IGNORECASE)
_BEST_FIRST = Pattern(r"\W*(?:from )?(?:best (?:first|to worst)|descending)\W*", re.IGNORECASE)
_ENDS = Pattern(r"best|worst|first|last|top|bottom", re.IGNORECASE)


def read_ranking(text: str, n: int, *, cut: bool = False) -> tuple[RankGroups | None, str | None]:
    """The ranking of a reply, each of 1 to n in it exactly once; or the problem.

    It is a chain on a line of its own (`2 > 1 = 3`), a chain or list after `Ranking:`, a list that is the whole reply,
    places (`1st: 2`), or the `ranking` of one JSON object. Two that differ, an order from worst to best and a
    correction after it are unparsed. `cut`: the reply was truncated at max_tokens, and is unparsed.
    """
    if cut:
        return None, CUT
    heard = whole = narrow(spoken(text)).strip()
    if len(heard) > MOST_CHARACTERS:
        return None, TOO_LONG
    heard = unboxed(heard, _CHAIN, "{}")
    given: list[RankGroups | None] = []
    end = 0
    if OBJECT.search(heard):
        parsed = find_object(heard)
        if isinstance(parsed, str):
            return None, parsed
        value, heard = parsed
        given.append(_groups(value["ranking"]) if isinstance(value, dict) and _is_plain(value) else None)
        end = len(heard)
    said_so, last = _given(heard)
    given += said_so
    if not given:
        return None, "no ranking in a place of its own"
    ranking = given[0]
    if ranking is None or any(other != ranking for other in given):
        return None, "a ranking that cannot be read, or several that differ"
    numbers = [number for group in ranking for number in group]
    if sorted(numbers) != list(range(1, n + 1)):
        return None, f"expected the numbers 1 to {n} once each, found {', '.join(map(str, numbers[: n + 3]))}"
    after = heard[max(end, last) :]
    if _WORST_FIRST.search(whole.replace("_", " ")) or _ENDS_SAY.search(after):
        return None, "an order from worst to best"
    if _redefined(heard) or revokes(heard) or _contradicted(whole, ranking):
        return None, "the words around the ranking may say something else"
    others = (_ordered(chain[0]) for chain in _CHAIN.finditer(after) if chain[0].count(">") == len(ranking) - 1)
    if withdraws(after) or any(other != ranking for other in others):
        return None, "the words after the ranking may take it back"
    return ranking, None


def _redefined(heard: str) -> bool:
    """Whether a `>` stands among words: they may say what it means."""
    return any(_SIGN.search(line) for line in heard.split("\n") if not _RANKED.search(line))


def _contradicted(text: str, ranking: RankGroups) -> bool:
    """Whether the reply says of two of them, or of the best or worst one, what the ranking does not say."""
    place = {k: at for at, group in enumerate(ranking) for k in group}
    for match in _PAIRED.finditer(text):
        k, other = place.get(int(match["k"])), place.get(int(match["other"]))
        if k is not None and other is not None and not (k < other if match["better"] or match["beats"] else k > other):
            return True
    return any(not _agrees(one, ranking) for one in _EXTREMES.finditer(text))


def _agrees(match: re.Match[str], ranking: RankGroups) -> bool:
    """Whether what is said of the best or the worst one is what the ranking says."""
    k = int(next(n for n in (match["k"], match["k2"]) if n is not None))
    best = match["best"] or match["best2"]
    return k in (ranking[0] if best else ranking[-1])


def _is_plain(item: dict[str, Any]) -> bool:
    """Whether a JSON object gives one ranking, and no other field says that it is read in another way."""
    if "ranking" not in item:
        return False
    others = {key: value for key, value in item.items() if not _BEST_FIRST.fullmatch(str(value).replace("_", " "))}
    told = [value for key, value in others.items() if key != "ranking" and not _REASONS.search(key)]
    plain = all(value in NOTHING or (isinstance(value, str) and len(value.split()) > 3) for value in told)
    return plain and not overridden(others, "ranking") and not any(_ENDS.search(key) for key in others)


def _groups(value: Any) -> RankGroups | None:
    """The groups in a JSON list such as [2, [1, 3]]."""
    if not isinstance(value, list):
        return None
    groups: list[tuple[int, ...]] = []
    for item in value:
        numbers = [_number(one) for one in (item if isinstance(item, list) else [item])]
        if not numbers or None in numbers:
            return None
        groups.append(tuple(sorted(number for number in numbers if number is not None)))
    return tuple(groups)


def _number(item: Any) -> int | None:
    match = _NUMBER.fullmatch(str(item).strip()) if isinstance(item, (int, str)) else None
    return int(match[1]) if match else None


def _given(heard: str) -> tuple[list[RankGroups | None], int]:
    """Every ranking in a formal position, None for one that is not clear, and where the last of them ends."""
    given: list[RankGroups | None] = []
    places: dict[int, int | None] = {}
    end = at = 0
    waiting = False  # the line before was `Ranking:` and nothing else
    for line in heard.split("\n"):
        key = _KEY.match(line)
        body = line[key.end() if key else 0 :].strip(" \t\r`*_.")
        keyed = key is not None or waiting
        chain = _CHAIN.fullmatch(body) is not None
        listed = _LIST.fullmatch(body) is not None and (keyed or body == heard.strip(" `*_.")) and "," in body
        if chain or listed:
            clear = not quoted(heard, at) and not line.lstrip().startswith(("`", '"'))
            clear = clear and not foreign(heard, at) and (key is not None or not headed(heard, at))
            clear = clear and not measures_bad(heading(heard, at))
            given.append(_ordered(body) if clear else None)
            end = at + len(line)
        elif keyed and body:
            given.append(None)
        elif ranked := _PLACE.fullmatch(line):
            rank = int(ranked["digits"]) if ranked["digits"] else _PLACES.index(ranked["word"].lower()) + 1
            if not places and measures_bad(heading(heard, at)):
                given.append(None)
            alone = re.match(r"[ \t\r.]*$|[ \t]*[.,;:][ \t]+\D|[ \t]+[-–—(]|[ \t]+because\b", ranked["tail"])
            unclear = (
                rank in places
                or (not places and measures_bad(heading(heard, at)))
                or not alone
                or quoted(heard, at)
                or re.match(r"[ \t,]*(?:and|or)\b", ranked["tail"])
            )
            places[rank] = None if unclear else int(ranked["k"])
            end = at + len(line)
        if len(given) > MOST_MARKS:
            return [None], len(heard)
        waiting = (key is not None and not body) or (waiting and not body)
        at += len(line) + 1
    if places:
        ranks = sorted(places)
        ordered = [places[rank] for rank in ranks]
        whole = ranks == list(range(1, len(ranks) + 1)) and None not in ordered
        given.append(tuple((k,) for k in ordered if k is not None) if whole else None)
    return given, end


def _ordered(body: str) -> RankGroups:
    groups = re.split(r"[>≻,]", body)
    return tuple(tuple(sorted(int(number) for number in re.findall(r"\d+", group))) for group in groups)
