"""What an engine is: three verbs, whatever runs the model.

An engine knows one model. It knows nothing of the call store, of retries, or of what its completions are for; those
belong to the scheduler above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import BeforeValidator

from rlaif.errors import EngineError
from rlaif.records import FinishReason, Message, Record, Sampling, Usage, writable


def _cleaned(text: Any) -> Any:
    return writable(text) if isinstance(text, str) else text


Arrived = Annotated[str, BeforeValidator(_cleaned)]  # a text that a model wrote


class Request(Record):
    """Some samples of one model's continuation of `messages`.

    `indices` are the sample indices wanted (a server is asked for all of them at once), `attempt` counts re-asks;
    both change the random stream, never the messages, and so does `salt`, which counts how often these very calls came
    back of no use and is no part of their keys. `json_schema` asks for JSON of that shape where the engine can.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    indices: tuple[int, ...] = (0,)
    attempt: int = 0
    salt: int = 0
    json_schema: dict[str, Any] | None = None
    # Who asks: of no influence on what is answered.
    stage: str = ""
    row: int = 0


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


class Engine(Protocol):
    """One model, ready to be asked."""

    name: str

    @property
    def in_process(self) -> bool:
        """True: a `Local` engine; False: a `Served` one."""
        ...

    @property
    def identity(self) -> str:
        """What determines the answers, for the call's key: a weights digest, or base URL, model and revision."""
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


class Local(Engine, Protocol):
    """A model in this process: wants large batches and runs one at a time."""

    @property
    def batch_size(self) -> int:
        """Samples that it takes at once."""
        ...

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply | EngineError]]:
        """For each request, in the order of its `indices`, a reply or the error that befell this sample.

        What befalls a whole request stands in each of its urls; what befalls them all is raised.
        """
        ...


class Limits(Protocol):
    """What the user says a server allows, a minute; None where nothing is said."""

    @property
    def requests_per_minute(self) -> float | None: ...
    @property
    def tokens_per_minute(self) -> float | None: ...


class Served(Engine, Protocol):
    """A model behind one or several servers, each named by its url. Every verb is one request, tried once."""

    @property
    def urls(self) -> tuple[str, ...]: ...
    @property
    def retries(self) -> int: ...
    @property
    def limits(self) -> Limits | None: ...

    capabilities: dict[str, bool | None]  # what the servers were found to honour

    @property
    def model(self) -> str:
        """The model's name there."""
        ...

    async def models(self, url: str) -> list[str] | None:
        """The models a server says it has; None where it does not say. Raises EngineError when it cannot be asked."""
        ...

    async def probe(self, url: str) -> list[Usage]:
        """Learn what the server honours; returns what that cost. Called once, before its first request is paid for.

        Raises EngineError (fatal) when the model cannot be asked at all.
        """
        ...

    def parts(self, request: Request) -> list[Request]:
        """The request as the server can be asked it: whole where it gives several samples at once."""
        ...

    def estimate(self, request: Request) -> int:
        """About how many tokens the server reads."""
        ...

    async def post(self, request: Request, url: str) -> list[Reply | EngineError]:
        """A verified reply or what befell it for each sample. Raises nothing that a server can cause."""
        ...
