"""What a server's refusal says, in any of the wordings of today's servers: its words, and what they are about.

Knows nothing of requests on their way: it reads an error's body and the body of the request that met it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


FILTERED = _any(
    r"content[_ ](?:filter|management policy|policy[_ ]violation|moderation)|responsible_?ai_?policy",
    r"data_inspection_failed|prohibited_content|inappropriate content|flagged (?:by|for|as)|guardrail",
    r"safety (?:system|filters?|settings?)|moderation (?:system|policy|filter|error)",
    r"violat\w+ (?:our|the|\w+'s) (?:usage|content|safety) polic",
)
NO_CREDIT = _any(
    r"insufficient[_ ](?:quota|credits?|balance|funds)|exceeded your current quota|credit balance is too low",
    r"(?:no|not enough|out of|more) credits?\b|billing (?:hard )?limit|payment required|purchase credits|arrears",
)
TOO_LONG = _any(
    r"context[_ ](?:length|window|size|limit)|maximum context|max_model_len|maximum model length|token limit",
    r"exceeds? the maximum (?:number of tokens|model length|prompt length|sequence length)",
    r"(?:prompt|input|request|message)s? (?:is |are )?too (?:long|large)|too many (?:input )?tokens",
    r"maximum (?:prompt|input|sequence) length|reduce (?:the length|your prompt)|string_above_max_length",
    r"inputs?`? tokens? \+ `?max_new_tokens|longer than the (?:model|maximum)|token count .{0,40}exceeds",
    r"tokens? exceeds? (?:the )?(?:limit|max)",
)
# The model's context, where the words tell it: no prompt can have an answer of as many tokens.
_CONTEXT = _any(r"(?:context (?:length|window|size)|max_model_len|model length)\D{0,30}?(\d{2,9})")
# Of a prompt that is longer than the context by itself: llama.cpp does not count `max_tokens`.
_PROMPT_ALONE = _any(r"request \(\d+ tokens\) exceeds the available context size")
LOGPROBS = _any(r"log_?probs\b|log[- ]probabilit")
_TOO_MANY = _any(
    r"max_(?:completion_|new_)?tokens\W{0,3}(?: is)? too (?:large|high|big)|at most \d+ (?:completion|output) tokens",
    r"max_(?:completion_|new_)?tokens.{0,60}(?:exceed|<=|≤|less than|at most|maximum|greater than the)",
)
_UNSUPPORTED = _any(
    r"unsupported|not (?:\w+ )?(?:support|allowed|permitted|available|implemented|enabled|accepted|valid)",
    r"unknown|unrecogni[sz]ed|unexpected|extra (?:inputs|fields)|extra_forbidden|forbidden|deprecated|disabled",
    r"invalid (?:parameter|argument|field)|n['’o]t (?:support|accept|have|allow)|cannot (?:be )?(?:use|set|specif)",
    r"\bonly\b|no such|additional properties|must be (?:removed|omitted)|remove",
)
_RANGE = _any(
    r"out of range|between|(?:less|greater|smaller|larger) than|at (?:most|least)|[<>≤≥]",
    r"must be (?:in|positive|non)|strictly|too (?:large|high|low|small|big)|maximum|minimum",
)
# How the words name what they refuse. A plain `n` is a letter of a text, unless it stands as a name does.
_NAMES = {
    "response_format": _any(
        r"response_format|response format|json_schema|json schema|structured[_ ]output|guided|grammar|json mode"
    ),
    "n": _any(
        r"[`'\"]n[`'\"]|(?<![\w'’])n (?:>|!?=|must|should|is not|greater|larger|other|parameter)|\bn[>=!]",
        r"only one (?:completion|choice|candidate|output|sample)",
        r"multiple (?:completion|choice|candidate|output|sample)",
        r"(?:parameter|argument|field|supplied|inputs?)s?:? n\b|best_of|num_return_sequences",
    ),
    "top_logprobs": _any(r"top_logprobs|\blogprobs of \d+"),
    "seed": _any(r"\bseed\b"),
    "temperature": _any(r"\btemperature\b"),
    "top_p": _any(r"\btop_p\b"),
    "stop": _any(r"[`'\"]stop[`'\"]|\bstop (?:sequence|word|string|parameter)|parameters?:? stop\b"),
    "max_tokens": _any(r"\bmax_tokens\b|max_completion_tokens"),
    "system": _any(
        r"system[_ ](?:role|message|prompt|instruction)|developer[_ ]instruction|roles? must alternate",
        r"['\"`]system['\"`]|role:? system|(?:first|leading) (?:message|role) must be",
    ),
}
READ = 20_000  # characters of a server's error that are looked at
NEUTRAL = {"temperature": 0, "top_p": 1}  # values that a server may refuse as the ends of its range


class Said(NamedTuple):
    """What an error's body says: its words, its code, the fields that it names apart from them."""

    words: str
    code: str = ""
    fields: tuple[str, ...] = ()

    @property
    def all(self) -> str:
        return f"{self.words} {self.code}"


def said(raw: bytes) -> Said:
    """The error in a body, from any of the fields that servers use."""
    text = raw.decode("utf-8", "replace")
    try:
        body: Any = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    told = said_by(body) if isinstance(body, dict) else Said(body if isinstance(body, str) and body else text)
    return told._replace(words=told.words[:READ], code=told.code[:READ])


def said_by(body: Mapping[str, Any]) -> Said:
    """As `said`, of a body that was read."""
    inner = body.get("error") or body
    if isinstance(inner, list) and inner:
        inner = inner[0]
    if not isinstance(inner, dict):
        return Said(str(inner))
    details = next((d for d in (inner.get("detail"), body.get("detail")) if isinstance(d, list)), None)
    words: Any = inner.get("message") or inner.get("detail") or inner.get("msg")
    fields: tuple[str, ...] = ()
    if details and all(isinstance(detail, dict) for detail in details):  # of FastAPI: one for each field
        places = [[str(part) for part in at] for d in details if isinstance(at := d.get("loc"), list) and at]
        fields = tuple(place[1] if len(place) > 1 else place[0] for place in places)
        told = [f"{d.get('msg')}: {'.'.join(map(str, d.get('loc') or ()))}" for d in details]
        words = "; ".join(told)
    elif isinstance(inner.get("param"), str):
        fields = (inner["param"],)
    codes = (inner.get("code"), inner.get("type"), inner.get("innererror"))
    code = " ".join(str(code) for code in codes if code)
    metadata = inner.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):  # of OpenRouter: the provider's own words
        words = f"{words or ''} ({metadata['raw']})"
    return Said(str(words or json.dumps(body, ensure_ascii=False)), code, fields)


def context_of(words: str) -> int | None:
    """The context length that the words hold `max_tokens` against; None where they tell none."""
    found = None if _PROMPT_ALONE.search(words) else _CONTEXT.search(words)
    return int(found[1]) if found else None


def too_many_tokens(words: str) -> bool:
    """Whether it is the number of tokens asked for that the words refuse."""
    return _TOO_MANY.search(words) is not None


def refused_fields(told: Said, sent: Mapping[str, Any], could: Collection[str]) -> list[str]:
    """What of a request its refusal is about, of the fields that `could` be sent otherwise."""
    if TOO_LONG.search(told.words) or FILTERED.search(told.all):
        return []
    words = told.words
    unsupported, limits = _UNSUPPORTED.search(told.all) is not None, _RANGE.search(words) is not None
    fields = []
    for name in could:
        if name not in told.fields and not _NAMES[name].search(words):
            continue
        if name == "max_tokens":
            fits = "max_completion_tokens" in words or (unsupported and not too_many_tokens(words))
        elif name in NEUTRAL:  # a value out of range is the user's to mend
            fits = sent.get(name) == NEUTRAL[name] or ((unsupported or name in told.fields) and not limits)
        else:
            fits = True
        if fits:
            fields.append(name)
    exact = [name for name in fields if name in told.fields]
    return exact or fields
