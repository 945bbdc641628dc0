"""The records of a run, with their operations.

Records are plain data, independent of files, engines and stages. Ids come from content, so the same prompt has the same
id in every run and on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from json.encoder import encode_basestring
from math import fsum
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


def one_system(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages, of which leading system messages are one: most chat templates know only one."""
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "system":
        return messages
    end = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    joined = "\n\n".join(message.content for message in messages[:end])
    return (Message(role="system", content=joined), *messages[end:])


_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def writable(text: str) -> str:
    """NUL and lone surrogates become U+FFFD: tokenizers, SQLite or Parquet refuse them."""
    return text if text.isascii() and "\0" not in text else _UNWRITABLE.sub("\ufffd", text)


def oneline(text: str) -> str:
    """Collapse every run of white space to one space."""
    return " ".join(text.split())


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Any) -> str:
    """A JSON value in canonical form: sorted keys, no spaces. Raises ValueError for NaN and infinity."""
    return _canonical.encode(value)


def digest_text(text: str, *, length: int = 32) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def digest(value: Any, *, length: int = 32) -> str:
    """Hex digest of a JSON value in canonical form, as UTF-8."""
    return digest_text(canonical(value), length=length)


def unit_interval(*parts: str) -> float:
    """A number in [0, 1) that depends only on `parts`; the source of every draw (split, order, choice)."""
    return (
        int.from_bytes(hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    )


def hashed_order(names: Sequence[str], *salt: str) -> list[int]:
    """Indices of `names` in an order that depends only on the names and the salt (rendezvous hashing)."""
    return sorted(range(len(names)), key=lambda i: (unit_interval(*salt, names[i]), i))


def prompt_id(messages: Sequence[Message]) -> str:
    """The digest of the roles and texts as canonical JSON."""
    turns = ",".join(f"[{encode_basestring(m.role)},{encode_basestring(m.content)}]" for m in messages)
    return digest_text(f"[{turns}]", length=16)


def split_of(identifier: str) -> Split:
    """The split of a prompt, from its id alone, so the three never mix."""
    draw = unit_interval("split", identifier)
    if draw < HELD_OUT_SHARE:
        return "held-out"
    return "validation" if draw < HELD_OUT_SHARE + VALIDATION_SHARE else "train"


class Prompt(Record):
    """Messages up to the turn to be completed.

    `reference` holds true answers, any of which is correct: verifiers compare with them, and judges see them as
    knowledge. `checks` are verified in code, as `judges.verifiers` reads them. `kept` holds columns of its file, such
    as the row's own id, that travel to every export. The sampled model sees none of them, and none is part of the id.
    """

    messages: tuple[Message, ...]
    source: str | None = None
    reference: tuple[str, ...] = ()
    checks: tuple[dict[str, Any], ...] = ()
    kept: dict[str, str | None] = {}

    @model_validator(mode="after")
    def _ends_with_a_user_turn(self) -> Prompt:
        if not self.messages or self.messages[-1].role != "user":
            raise ValueError("a prompt's messages must end with a user turn")
        if not self.messages[-1].content.strip():
            raise ValueError("the prompt is empty")
        return self

    @cached_property
    def id(self) -> str:
        return prompt_id(self.messages)

    @property
    def split(self) -> Split:
        return split_of(self.id)

    @property
    def text(self) -> str:
        """The prompt as judges read it: the user's text for one turn, a transcript with roles for several."""
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n\n".join(f"{m.role}: {m.content}" for m in self.messages)


class Usage(Record):
    """Tokens read and written. Of the n samples of one request only the first carries the prompt's tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


FinishReason = Literal["stop", "length", "content_filter"]

ROUNDING = 0.01  # by which a log-probability may exceed 0: bfloat16 has errors of this size


def logprob_problem(value: float) -> str | None:
    """Why no probability has this natural logarithm; else None. Minus infinity is that of an impossible token."""
    if value <= ROUNDING:
        return None
    return f"a log-probability of {min(value, 1e308):.6g}, and none is above 0"  # a whole number may be beyond floats


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
    thinking: str | None = None  # what a reasoning model thought before it; only for `show`
    assumed: bool = False  # by a plan, in place of one that nobody has written: its text says nothing


class Candidate(Record):
    """A completion while it competes for its prompt. `sampler` names its model and settings."""

    sampler: str
    completion: Completion
    principle: str | None = None  # the one in its system message, where one was drawn


class Judgement(Record):
    """A judgement of a row's candidates by a model, code or a person."""

    def models(self) -> tuple[str, ...]:
        """The models behind it, by their names in the pipeline file."""
        judge: str = self.judge  # type: ignore[attr-defined]
        return (judge,)

    def paid_calls(self) -> tuple[str, ...]:
        """The keys of the calls behind it."""
        calls: tuple[str, ...] = self.calls  # type: ignore[attr-defined]
        return calls

    def unread(self) -> str | None:
        """Why it is unparsed; None where it could be read."""
        problem: str | None = self.problem  # type: ignore[attr-defined]
        return problem


class Rating(Judgement):
    """A judge's rating of one candidate under one aspect: an integer in the rubric's range, N/A, or unparsed."""

    aspect: str
    candidate: int  # index into the row's candidates
    value: int | None
    na: bool = False  # the judge says that the aspect does not apply, where the rubric allows N/A
    types: tuple[str, ...] = ()  # codes of the faults that it names, where the aspect has any
    raw: str  # the judge's words on this candidate, or the whole reply where it cannot be split
    problem: str | None = None  # why it is unparsed
    judge: str
    call: str
    position: int  # the candidate's position in the judge prompt, from 1

    def paid_calls(self) -> tuple[str, ...]:
        return (self.call,) if self.call else ()

    @model_validator(mode="after")
    def _unparsed_has_a_reason(self) -> Rating:
        if [self.value is not None, self.na, self.problem is not None].count(True) != 1:
            raise ValueError("a rating has a value, does not apply, or has a problem: one of the three")
        return self


class Score(Judgement):
    """A float for one candidate: a reward model's, a verifier's, or an expectation over ratings; None without one.

    Scores of one `judge` and `aspect` are comparable within a prompt; different judges have no common scale.
    """

    candidate: int  # index into the row's candidates
    value: float | None
    judge: str
    aspect: str | None = None
    problem: str | None = None  # why there is no value
    calls: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _missing_has_a_reason(self) -> Score:
        if (self.value is None) != (self.problem is not None):
            raise ValueError("a score has either a value or a problem")
        return self


class Ranking(Judgement):
    """A judge's order of all candidates, best first, with tied candidates in one group; or unparsed."""

    order: tuple[tuple[int, ...], ...] | None  # indices into the row's candidates
    shown: tuple[int, ...]  # the candidates in the order in which the judge read them
    judge: str
    principle: str | None = None
    raw: str = ""
    problem: str | None = None  # why it is unparsed
    calls: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _each_candidate_once(self) -> Ranking:
        if (self.order is None) != (self.problem is not None):
            raise ValueError("a ranking has either an order or a problem")
        if self.order is not None and sorted(i for tied in self.order for i in tied) != sorted(self.shown):
            raise ValueError("a ranking holds each candidate that was shown, once")
        return self


class Revision(Judgement):
    """One step of a chain: a draft critiqued under a principle and rewritten.

    The draft is the candidate's completion at number 1, and the last usable revision after that, so both parents of a
    revision, its draft and its critique, are kept.
    """

    candidate: int  # index into the row's candidates: whose chain it is in
    number: int  # its position in the chain, from 1
    principle: str
    critique: Completion
    completion: Completion | None  # None when the critique was unusable, or found nothing
    problem: str | None = None  # why the step gave no usable revision
    found_nothing: bool = False  # the critique found nothing to mend, so no revision was asked for

    def models(self) -> tuple[str, ...]:
        return (self.critique.model,)

    def paid_calls(self) -> tuple[str, ...]:
        return tuple(written.call for written in (self.critique, self.completion) if written and written.call)

    def unread(self) -> None:
        """A step without a usable revision judges nothing."""


Choice = Literal["A", "B", "tie"]


class Verdict(Record):
    """A judge's preference between two candidates, shown in one order. A is the first one shown."""

    a: int  # index into the row's candidates
    b: int
    verdict: Choice | None
    probability: float | None = None  # of A, where known
    raw: str = ""
    reasons: str | None = None
    problem: str | None = None  # why it is unparsed
    calls: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _unparsed_has_a_reason(self) -> Verdict:
        if (self.verdict is None) != (self.problem is not None):
            raise ValueError("a verdict has either a choice or a problem")
        return self

    @property
    def likelihood(self) -> float | None:
        """How likely A is the better one, a verdict without a probability counting as certain; None where unparsed."""
        return likelihood(self.verdict, self.probability)

    def swap(self) -> Verdict:
        """The same judgement with the two candidates swapped."""
        swapped: dict[Choice | None, Choice | None] = {"A": "B", "B": "A"}
        probability = None if self.probability is None else 1.0 - self.probability
        verdict = swapped.get(self.verdict, self.verdict)
        return self.model_copy(update={"a": self.b, "b": self.a, "verdict": verdict, "probability": probability})


class Comparison(Judgement):
    """A judge's, or a jury's, preference between two candidates under a principle, shown in both orders.

    With probabilities the verdict follows from their average; hard verdicts that disagree are a tie.
    """

    a: int
    b: int
    principle: str
    judge: str  # of a jury, all its members
    verdict: Choice | None
    probability: float | None  # of A, where known
    orders: tuple[Verdict, ...]  # both, in the order of their calls; none where a jury or a person decided
    jury: tuple[Comparison, ...] = ()  # its members' comparisons, each with two orders
    weights: tuple[float, ...] = ()  # of the jury's members, where they differ

    @model_validator(mode="after")
    def _has_both_orders(self) -> Comparison:
        if len(self.orders) not in (0, 2):
            raise ValueError("a comparison has both orders, or none where it was not asked in one")
        return self

    def models(self) -> tuple[str, ...]:
        return tuple(member.judge for member in self.members)

    def paid_calls(self) -> tuple[str, ...]:
        return tuple(call for member in self.members for order in member.orders for call in order.calls)

    def unread(self) -> str | None:
        if self.verdict is not None:
            return None
        problems = (order.problem for member in self.members for order in member.orders)
        return next(filter(None, problems), "it names neither completion")

    @property
    def members(self) -> tuple[Comparison, ...]:
        """The comparisons of single judges: a jury's members, or this one."""
        return self.jury or (self,)

    @property
    def disagrees(self) -> bool:
        """Whether the two orders gave different verdicts (position bias). Of a jury: any member's."""
        if self.jury:
            return any(member.disagrees for member in self.jury)
        if not self.orders:
            return False
        first, second = self.orders[0], self.orders[1].swap()
        return None not in (first.verdict, second.verdict) and first.verdict != second.verdict

    @property
    def contradicts(self) -> bool:
        """Whether the two orders name different winners. Of a jury: what its members' verdicts in either order make."""
        asked = [(member, weight) for member, weight in zip(self.members, self._weights, strict=True) if member.orders]
        weights, majority = [weight for _, weight in asked], bool(self.jury) and self.probability is None
        forward = [member.orders[0] for member, _ in asked]
        backward = [member.orders[1].swap() for member, _ in asked]
        return {_weighed(order, weights, majority)[0] for order in (forward, backward)} == {"A", "B"}

    @property
    def _weights(self) -> Sequence[float]:
        return self.weights or [1.0] * len(self.members)

    @property
    def likelihood(self) -> float | None:
        """How likely A is the better one, a verdict without a probability counting as certain; None where unparsed."""
        return likelihood(self.verdict, self.probability)

    @classmethod
    def merge(cls, forward: Verdict, backward: Verdict, *, principle: str, judge: str) -> Comparison:
        """Both orders as one comparison; the second is swapped back first. Raises ValueError for other candidates."""
        other = backward.swap()
        if (other.a, other.b) != (forward.a, forward.b):
            raise ValueError("the second verdict is not on the first one's candidates in the other order")
        verdict: Choice | None = forward.verdict if forward.verdict == other.verdict else "tie"
        probability = None
        if None in (forward.verdict, other.verdict):
            verdict = None
        elif forward.probability is not None and other.probability is not None:
            # Rounded, so that the average of p and 1 - p is exactly one half.
            probability = round((forward.probability + other.probability) / 2, 9)
            verdict = preferred(probability)
        return cls(
            a=forward.a,
            b=forward.b,
            principle=principle,
            judge=judge,
            verdict=verdict,
            probability=probability,
            orders=(forward, backward),
        )

    @classmethod
    def of_jury(cls, members: Sequence[Comparison], weights: Sequence[float], *, majority: bool) -> Comparison:
        """A jury's preference: the mean of its members' likelihoods, or with `majority` most verdicts, else a tie.

        `weights` are the members'. Unparsed verdicts do not vote; with half of the weight or more, they make the jury's
        unparsed. A majority gives no probability.
        """
        verdict, probability = _weighed(members, weights, majority)
        first = members[0]
        return cls(
            a=first.a,
            b=first.b,
            principle=first.principle,
            judge=" + ".join(member.judge for member in members),
            verdict=verdict,
            probability=probability,
            orders=(),
            jury=tuple(members),
            weights=tuple(weights) if len(set(weights)) > 1 else (),
        )


def _weighed(
    votes: Sequence[Verdict | Comparison], weights: Sequence[float], majority: bool
) -> tuple[Choice | None, float | None]:
    """The verdict of weighted votes and, unless it is a majority's, the probability of A; see `Comparison.of_jury`."""
    read = [(vote.likelihood, vote.verdict, w) for vote, w in zip(votes, weights, strict=True) if vote.verdict]
    mass = sum(weight for *_, weight in read)
    if 2 * mass <= sum(weights):
        return None, None
    if majority:
        # Rounded, so that equal sums with different rounding errors tie.
        a, b, tie = (round(fsum(w for _, choice, w in read if choice == side), 9) for side in ("A", "B", "tie"))
        return "A" if a > max(b, tie) else "B" if b > max(a, tie) else "tie", None
    probability = round(sum(weight * value for value, _, weight in read if value is not None) / mass, 9)
    return preferred(probability), probability


def likelihood(verdict: Choice | None, probability: float | None) -> float | None:
    """The probability of A; of a verdict without one, 1, 0 or one half; None without a verdict."""
    if verdict is None or probability is not None:
        return probability
    return {"A": 1.0, "B": 0.0, "tie": 0.5}[verdict]


def preferred(probability: float) -> Choice:
    """The verdict for a probability of A."""
    return "A" if probability > 0.5 else "B" if probability < 0.5 else "tie"


class Row(Record):
    """One prompt with the results of the row stages so far."""

    prompt: Prompt
    candidates: tuple[Candidate, ...] = ()
    ratings: tuple[Rating, ...] = ()
    revisions: tuple[Revision, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    scores: tuple[Score, ...] = ()
    failure: str | None = None  # why the row was not completed
    cause: str | None = None  # the word that failures are grouped by
    dropped: str | None = None  # why the stage whose file it stands in makes no data of it, though it did not fail

    def judgements(self) -> Iterator[Judgement]:
        """All judgements of its candidates."""
        for name in JUDGEMENTS:
            yield from getattr(self, name)

    def unparsed(self) -> list[str]:
        """Why its unparsed judgements are unparsed."""
        return [problem for judgement in self.judgements() if (problem := judgement.unread()) is not None]

    def models(self) -> set[str]:
        """The models that wrote or judged its candidates."""
        judges = {model for judgement in self.judgements() for model in judgement.models()}
        return judges.union(candidate.completion.model for candidate in self.candidates)

    def calls(self) -> set[str]:
        """The keys of all calls behind it."""
        judged = {call for judgement in self.judgements() for call in judgement.paid_calls()}
        return judged.union(candidate.completion.call for candidate in self.candidates)

    def unjudged(self) -> Row:
        """The row with only its candidates and their revisions."""
        return self.model_copy(update=dict.fromkeys((name for name in JUDGEMENTS if name != "revisions"), ()))

    def score(self, candidate: int, weights: dict[str, float]) -> float | None:
        """Weighted mean of a candidate's ratings; None when any aspect is missing or unparsed, or none applies.

        An aspect that does not apply is left out of the mean.
        """
        ratings = (rating for rating in self.ratings if rating.candidate == candidate)
        return weighted_mean({rating.aspect: NA if rating.na else rating.value for rating in ratings}, weights)

    def last_revision(self, candidate: int) -> Completion | None:
        """The last usable revision of a candidate; its completion where every critique found nothing; else None."""
        chain = [step for step in self.revisions if step.candidate == candidate]
        written = [step.completion for step in chain if step.problem is None and step.completion is not None]
        if written or not chain:
            return written[-1] if written else None
        return self.candidates[candidate].completion if all(step.found_nothing for step in chain) else None


NA = math.nan  # stands for the value of an aspect that does not apply


def weighted_mean(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The mean of the values of the weighted aspects, without those that are NA; None as of `Row.score`."""
    total, mass = 0.0, 0.0
    for aspect, weight in weights.items():
        if (value := values.get(aspect)) is None:
            return None
        if not math.isnan(value):
            total, mass = total + weight * value, mass + weight
    # Rounded, so that equal means with different rounding errors tie.
    return round(total / mass, 9) if mass else None


# The fields of a row that hold judgements: all tuples except its candidates.
JUDGEMENTS = tuple(name for name, about in Row.model_fields.items() if about.default == () and name != "candidates")


class Kept(Record):
    """A prompt with a completion to learn, and its judge's score, where there is one."""

    prompt: Prompt
    candidate: Candidate
    score: float | None = None


class Preference(Record):
    """A prompt with a chosen and a rejected candidate, and their origin."""

    prompt: Prompt
    chosen: Candidate
    rejected: Candidate
    score_chosen: float
    score_rejected: float
    rule: str
    probability: float | None = None  # that chosen is the better one, where the judge gave one
    principle: str | None = None  # what the two were compared under

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

    @property
    def learnt(self) -> Kept:
        """Its chosen completion as one to learn."""
        return Kept(prompt=self.prompt, candidate=self.chosen, score=self.score_chosen)


class Sampling(Record):
    """How a completion is sampled. Every field is part of a call's key."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=512, gt=0)
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    alternatives: tuple[str, ...] = ()
    seed: int = 0
