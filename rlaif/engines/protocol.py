"""What an engine is: three verbs, whatever runs the model.

An engine knows one model. It knows nothing of the call store, of retries across processes, or of what its completions
are for; those belong to the scheduler above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from rlaif.errors import EngineError
from rlaif.records import FinishReason, Message, Record, Sampling, Usage


class Request(Record):
    """Some samples of one model's continuation of `messages`.

    `indices` are the sample indices wanted (a server is asked for all of them at once), `attempt` counts re-asks;
    both change the random stream, never the messages. `json_schema` asks for JSON of that shape where the engine can.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    indices: tuple[int, ...] = (0,)
    attempt: int = 0
    json_schema: dict[str, Any] | None = None


class Reply(Record):
    """One sample, as the engine returned it and after it was verified."""

    text: str
    finish_reason: FinishReason
    usage: Usage = Usage()
    token_logprobs: tuple[float, ...] | None = None
    alternatives: dict[str, float | None] | None = None


class Logprobs(NamedTuple):
    """Log-probabilities (natural log, temperature 1) of a given completion's tokens, the end token apart."""

    tokens: tuple[float, ...]
    end: float | None  # of the end token right after the text; None where the engine cannot say


class Engine(Protocol):
    """One model, ready to be asked."""

    name: str
    in_process: bool  # True: wants large batches and runs one at a time; False: a server, one request a call

    @property
    def identity(self) -> str:
        """What determines the answers, for the call's key: a weights digest, or base URL, model and revision."""
        ...

    async def probe(self) -> None:
        """Learn what the engine honours; called once, before the first request is paid for.

        Raises EngineError (fatal) when the model cannot be asked at all.
        """
        ...

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply] | EngineError]:
        """For each request its replies in the order of `indices`, or the error that befell it alone."""
        ...

    async def logprobs(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[Logprobs]:
        """Log-probabilities of a given completion (second) after given messages (first).

        Raises EngineError when the engine cannot score given text.
        """
        ...

    async def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float]:
        """The reward head's score of each completion, read at its end token. Raises EngineError without such a head."""
        ...

    async def close(self) -> None: ...
