"""Judges that give floats: a reward model, and the implicit reward of a policy.

The implicit reward of a policy is beta * (log pi(y|x) - log ref(y|x)), summed over the completion's tokens and its end:
what DPO fits (arXiv 2305.18290, equation 5, without the term that all completions of a prompt share).
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Mapping
from itertools import islice

from rlaif.config import ScoreStage
from rlaif.engines.protocol import Engine, Logprobs
from rlaif.errors import EngineError
from rlaif.records import Message, Row, Score

ROWS_AT_ONCE = 64  # rows whose candidates an engine gets together, to fill its batches

Item = tuple[tuple[Message, ...], str]


async def score(rows: Iterable[Row], stage: ScoreStage, engines: Mapping[str, Engine]) -> AsyncIterator[Row]:
    """Each row with a score of every candidate; a failed row is unchanged. Raises EngineError."""
    stream = iter(rows)
    while group := list(islice(stream, ROWS_AT_ONCE)):
        live = [row for row in group if row.failure is None]
        items = [(row.prompt.messages, candidate.completion.text) for row in live for candidate in row.candidates]
        values = iter(await _values(items, stage, engines))
        for row in group:
            if row.failure is not None:
                yield row
                continue
            scores = tuple(_score(index, next(values), stage) for index in range(len(row.candidates)))
            yield row.model_copy(update={"scores": scores})


async def _values(items: list[Item], stage: ScoreStage, engines: Mapping[str, Engine]) -> list[float | EngineError]:
    if not items:
        return []
    if stage.reward is not None:
        return await engines[stage.reward].score(items)
    assert stage.policy is not None and stage.reference is not None
    policy, reference = [await engines[name].logprobs(items) for name in (stage.policy, stage.reference)]
    return [stage.beta * (_total(p, r) - _total(r, p)) for p, r in zip(policy, reference, strict=True)]


def _total(logprobs: Logprobs, other: Logprobs) -> float:
    """The log-probability of the tokens, and of the end token where both models give one."""
    end = 0.0 if logprobs.end is None or other.end is None else logprobs.end
    return sum(logprobs.tokens) + end


def _score(candidate: int, value: float | EngineError, stage: ScoreStage) -> Score:
    if isinstance(value, EngineError):
        return Score(candidate=candidate, value=None, judge=stage.judge, problem=str(value))
    if not math.isfinite(value):
        return Score(candidate=candidate, value=None, judge=stage.judge, problem=f"the score is {value}")
    return Score(candidate=candidate, value=round(value, 6), judge=stage.judge)
