"""What an engine is: three verbs, whatever runs the model.

An engine knows one model. It knows nothing of the call store, of retries across processes, or of what its completions
are for; those belong to the scheduler above it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import BeforeValidator

from rlaif.errors import EngineError
from rlaif.records import FinishReason, Message, Record, Sampling, Usage, writable

# Causes that tell of the way to a server, not of what was asked: many in a row mean that the server is gone.
TRANSPORT = frozenset({"connection", "timeout", "server", "rate-limit"})


def _cleaned(text: Any) -> Any:
    return writable(text) if isinstance(text, str) else text


Arrived = Annotated[str, BeforeValidator(_cleaned)]  # a text that a model wrote


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

    text: Arrived
    finish_reason: FinishReason
    usage: Usage = Usage()
    token_logprobs: tuple[float, ...] | None = None
    alternatives: dict[str, float | None] | None = None


class Logprobs(NamedTuple):
    """Log-probabilities (natural log, temperature 1) of a given completion's tokens, the end token apart."""

    tokens: tuple[float, ...]
    end: float | None  # of the end token right after the text; None where the engine cannot say


@dataclass
class Account:
    """What an engine was paid beyond the replies it gave. The scheduler moves it to its tally as it goes."""

    discarded: int = 0  # calls whose answer was of no use: probes, empty completions
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: Counter[str] = field(default_factory=Counter)  # calls made again, by cause

    def discard(self, usage: Usage) -> None:
        self.discarded += 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens


class Engine(Protocol):
    """One model, ready to be asked."""

    name: str
    in_process: bool  # True: wants large batches and runs one at a time; False: a server, one request a call
    account: Account

    @property
    def server(self) -> str | None:
        """What the models of one server share, so that it is probed once: address and key. None in process."""
        ...

    @property
    def identity(self) -> str:
        """What determines the answers, for the call's key: a weights digest, or base URL, model and revision."""
        ...

    async def probe(self) -> None:
        """Learn what the engine honours; called once for each server, before its first request is paid for.

        Raises EngineError (fatal) when the model cannot be asked at all.
        """
        ...

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply | EngineError]]:
        """For each request, in the order of its `indices`, a reply or the error that befell this sample.

        What befalls a whole request stands in each of its places; what befalls them all is raised.
        """
        ...

    async def logprobs(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[Logprobs]:
        """Log-probabilities of a given completion (second) after given messages (first).

        Raises EngineError when the engine cannot score given text.
        """
        ...

    async def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float | EngineError]:
        """The reward head's score of each completion, read at its end token; or why that completion has none.

        Raises EngineError without such a head.
        """
        ...

    async def close(self) -> None: ...
