"""The records that flow through a run, each with the operations its meaning requires.

Records are plain data: they know nothing of files, engines or stages. Ids come from content, so the same prompt has the
same id in every run, on every machine, in every order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "validation", "held-out"]
Role = Literal["system", "user", "assistant"]

VALIDATION_SHARE, HELD_OUT_SHARE = 0.05, 0.20


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(Record):
    role: Role
    content: str


_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def writable(text: str) -> str:
    """NUL and lone surrogates become U+FFFD: tokenizers, SQLite and Parquet refuse them, each in its own way."""
    return _UNWRITABLE.sub("\ufffd", text)


def oneline(text: str) -> str:
    """Collapse every run of white space to one space: the text cannot open a line of its own."""
    return " ".join(text.split())


def digest(value: Any, *, length: int = 32) -> str:
    """Hex digest of a JSON value in canonical form: sorted keys, no spaces, UTF-8, NaN refused."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def unit_interval(*parts: str) -> float:
    """A number in [0, 1) that depends only on `parts`: the one source of every draw (split, order, choice)."""
    return (
        int.from_bytes(hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    )


def hashed_order(names: Sequence[str], *salt: str) -> list[int]:
    """Indices of `names` in an order that depends only on the names and the salt (rendezvous hashing)."""
    return sorted(range(len(names)), key=lambda i: (unit_interval(*salt, names[i]), i))


def prompt_id(messages: Sequence[Message]) -> str:
    return digest([[m.role, m.content] for m in messages], length=16)


def split_of(identifier: str) -> Split:
    """Which split a prompt belongs to, from its id alone, so the three can never mix."""
    draw = unit_interval("split", identifier)
    if draw < HELD_OUT_SHARE:
        return "held-out"
    return "validation" if draw < HELD_OUT_SHARE + VALIDATION_SHARE else "train"


class Prompt(Record):
    """Messages up to the turn to be answered."""

    messages: tuple[Message, ...]
    source: str | None = None

    @model_validator(mode="after")
    def _ends_with_a_user_turn(self) -> Prompt:
        if not self.messages or self.messages[-1].role != "user":
            raise ValueError("a prompt's messages must end with a user turn")
        if not self.messages[-1].content.strip():
            raise ValueError("the prompt is empty")
        return self

    @property
    def id(self) -> str:
        return prompt_id(self.messages)

    @property
    def split(self) -> Split:
        return split_of(self.id)

    @property
    def text(self) -> str:
        """What a judge reads: the user's words alone for one turn, a labelled transcript for several."""
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n\n".join(f"{m.role}: {m.content}" for m in self.messages)


class Usage(Record):
    """Tokens read and written. n samples of one request share the reading: only the first carries it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


FinishReason = Literal["stop", "length", "content_filter"]


class Completion(Record):
    """One model's continuation of some messages."""

    text: str
    model: str  # the name in the pipeline file
    call: str  # key in the call store
    finish_reason: FinishReason = "stop"
    usage: Usage = Usage()
    token_logprobs: tuple[float, ...] | None = None  # chosen tokens, natural log, before temperature
    alternatives: dict[str, float | None] | None = (
        None  # log-probability of each named first token; None = not reported
    )


class Candidate(Record):
    """A completion while it competes for its prompt. `sampler` names the model and settings that made it."""

    sampler: str
    completion: Completion


class Rating(Record):
    """A judge's rating of one candidate under one aspect: an integer in the rubric's range, or unparsed (None)."""

    aspect: str
    candidate: int  # index into the row's candidates
    value: int | None
    raw: str  # the judge's words on this candidate, or the whole reply where they could not be told apart
    problem: str | None = None  # why it is unparsed
    judge: str
    call: str
    position: int  # the place, from 1, at which the judge read this candidate

    @model_validator(mode="after")
    def _unparsed_has_a_reason(self) -> Rating:
        if (self.value is None) != (self.problem is not None):
            raise ValueError("a rating has either a value or a problem")
        return self


class Row(Record):
    """One prompt on its way through the row stages."""

    prompt: Prompt
    candidates: tuple[Candidate, ...] = ()
    ratings: tuple[Rating, ...] = ()
    failure: str | None = None  # why the row could not be finished

    def score(self, candidate: int, weights: dict[str, float]) -> float | None:
        """Weighted mean of a candidate's ratings; None when any aspect is missing or unparsed."""
        values = {r.aspect: r.value for r in self.ratings if r.candidate == candidate}
        total, mass = 0.0, 0.0
        for aspect, weight in weights.items():
            value = values.get(aspect)
            if value is None:
                return None
            total, mass = total + weight * value, mass + weight
        # Rounded, so that two ways of adding up the same mean are a tie and not a preference.
        return round(total / mass, 9) if mass else None


class Comparison(Record):
    """A verdict on two candidates. `probability` is that of A, where known."""

    a: int
    b: int
    verdict: Literal["A", "B", "tie"] | None
    probability: float | None = None

    def swap(self) -> Comparison:
        """The same judgement with the two candidates named the other way round."""
        verdict = {"A": "B", "B": "A", "tie": "tie", None: None}[self.verdict]
        probability = None if self.probability is None else 1.0 - self.probability
        return Comparison(a=self.b, b=self.a, verdict=verdict, probability=probability)  # type: ignore[arg-type]

    @staticmethod
    def merge(forward: Comparison, backward: Comparison) -> Comparison:
        """Both orders into one: hard verdicts that disagree are a tie, probabilities are averaged after un-swapping."""
        other = backward.swap()
        if (other.a, other.b) != (forward.a, forward.b):
            raise ValueError("the second comparison is not the first one with its order swapped")
        if forward.verdict is None or other.verdict is None:
            return Comparison(a=forward.a, b=forward.b, verdict=None)
        probabilities = [c.probability for c in (forward, other) if c.probability is not None]
        return Comparison(
            a=forward.a,
            b=forward.b,
            verdict=forward.verdict if forward.verdict == other.verdict else "tie",
            probability=sum(probabilities) / 2 if len(probabilities) == 2 else None,
        )


class Preference(Record):
    """A prompt with a chosen and a rejected candidate, and where each came from."""

    prompt: Prompt
    chosen: Candidate
    rejected: Candidate
    score_chosen: float
    score_rejected: float
    rule: str

    @model_validator(mode="after")
    def _texts_differ(self) -> Preference:
        if self.chosen.completion.text == self.rejected.completion.text:
            raise ValueError("chosen and rejected have the same text")
        if not self.score_chosen > self.score_rejected:
            raise ValueError("chosen must score above rejected")
        return self

    @property
    def margin(self) -> float:
        return self.score_chosen - self.score_rejected


class Sampling(Record):
    """How a completion is asked for: every field is part of a call's key."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=512, gt=0)
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    alternatives: tuple[str, ...] = ()
    seed: int = 0
