"""The engine protocol: three verbs, whatever runs the model.

An engine runs one model. The call store, retries and the purpose of a completion belong to the scheduler above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import BeforeValidator

from rlaif.errors import EngineError
from rlaif.records import FinishReason, Message, Record, Sampling, Usage, writable


def _cleaned(text: Any) -> Any:
    return writable(text) if isinstance(text, str) else text


Arrived = Annotated[str, BeforeValidator(_cleaned)]  # text that a model wrote


REFUSES = "refuses "  # begins the name of a capability that records what a server refuses


class Request(Record):
    """Some samples of one model's continuation of `messages`.

    `indices` are the sample indices (a server gets them in one request), `attempt` counts re-asks. Both change the
    random stream, never the messages. So does `salt`, which counts unusable replies to these calls and is not part of
    their keys. `json_schema` asks for JSON of that schema where the engine supports it.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    indices: tuple[int, ...] = (0,)
    attempt: int = 0
    salt: int = 0
    json_schema: dict[str, Any] | None = None
    # Who asks; does not change the completion.
    stage: str = ""
    row: int = 0


class Reply(Record):
    """One verified sample.

    `thinking` is what a server sent apart from the text, which may begin with thinking of its own. `alternatives` are
    those of the token that the text without its thinking begins with. `masked`: a key in it was masked.
    """

    text: Arrived
    finish_reason: FinishReason
    usage: Usage = Usage()
    token_logprobs: tuple[float, ...] | None = None
    alternatives: dict[str, float | None] | None = None
    thinking: Arrived | None = None
    masked: bool = False


class Logprobs(NamedTuple):
    """Log-probabilities (natural log, temperature 1) of a given completion's tokens, without the end token."""

    tokens: tuple[float, ...]
    end: float | None  # of the end token right after the text; None where unknown


class Engine(Protocol):
    """One model."""

    name: str

    @property
    def in_process(self) -> bool:
        """True: a `Local` engine; False: a `Served` one."""
        ...

    @property
    def identity(self) -> str:
        """The model's part of a call's key: a weights digest, or base URL, model and revision."""
        ...

    async def logprobs(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[Logprobs]:
        """Log-probabilities of each item's completion (second) after its messages (first).

        Raises EngineError when the engine cannot score given text.
        """
        ...

    async def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float | EngineError]:
        """The reward head's score of each completion, read at its end token, or the error of that completion.

        Raises EngineError when the model has no reward head.
        """
        ...

    async def close(self) -> None: ...


class Local(Engine, Protocol):
    """A model in this process: takes large batches, one at a time."""

    @property
    def batch_size(self) -> int:
        """Samples in one batch."""
        ...

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply | EngineError]]:
        """For each request, in the order of its `indices`, a reply or that sample's error.

        An error of a whole request is repeated for each of its samples. Raises EngineError when all requests fail.
        """
        ...


class Limits(Protocol):
    """Rate limits per minute set by the user; None where unset."""

    @property
    def requests_per_minute(self) -> float | None: ...
    @property
    def tokens_per_minute(self) -> float | None: ...


class Served(Engine, Protocol):
    """A model on one or several servers, each with its base URL. Every verb is one request, tried once."""

    @property
    def urls(self) -> tuple[str, ...]: ...
    @property
    def retries(self) -> int: ...
    @property
    def limits(self) -> Limits | None: ...

    capabilities: dict[str, bool | None]  # what the servers honour, as far as known, and what they refuse
    tell: Callable[[str], None]  # is given a line for the user on what was found out

    @property
    def model(self) -> str:
        """The model's name on the server."""
        ...

    async def models(self, url: str) -> list[str] | None:
        """The models that a server lists; None where it lists none. Raises EngineError when it cannot be reached."""
        ...

    async def probe(self, url: str) -> list[Usage]:
        """Probe what the server honours. Called once, before its first request; returns the usage of the probe.

        Raises EngineError (fatal) when the model cannot be called at all.
        """
        ...

    def parts(self, request: Request) -> list[Request]:
        """The request, split where the server cannot return several samples at once."""
        ...

    def estimate(self, request: Request) -> int:
        """Estimated prompt tokens."""
        ...

    async def post(self, request: Request, url: str) -> list[Reply | EngineError]:
        """A verified reply or an error for each sample. Raises nothing that a server can cause."""
        ...
