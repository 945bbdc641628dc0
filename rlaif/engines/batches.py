"""Files of requests at a provider that answers them within a day, through the `openai` package's files and batches.

Every verb is one request, tried once. Knows nothing of what the requests ask, nor of what was sent before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec

from rlaif.engines import sdk
from rlaif.engines.openai import OpenAIEngine
from rlaif.engines.wire import MB, Broken, CutShort, Misled, TooLong, Unreached
from rlaif.errors import EngineError
from rlaif.files import opened

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
WINDOW = "24h"  # the only one that there is
OWN_PATH, AZURE_PATH = "/v1/chat/completions", "/chat/completions"
ANSWER = 4 * MB  # bytes of what is said of files and batches
RESULTS = 16_000 * MB  # of a file of results
PAGES, A_PAGE = 20, 100  # of the list of batches that is searched

# Ids are a provider's, and become parts of addresses.
Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][\w.:-]{0,199}\Z")]
Read = TypeVar("Read", bound=msgspec.Struct)


class _File(msgspec.Struct):
    """What is read of a provider's words; the rest is left alone."""

    id: Id


class _Counts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class _Problem(msgspec.Struct):
    message: str | None = None
    line: int | None = None


class _Problems(msgspec.Struct):
    data: list[_Problem] | None = None


class Batch(msgspec.Struct):
    """A file of requests under way. The two files of results are there once it has ended, as far as there are any."""

    id: Id
    status: str
    input_file_id: str | None = None
    output_file_id: Id | None = None
    error_file_id: Id | None = None
    request_counts: _Counts | None = None
    errors: _Problems | None = None


class _Page(msgspec.Struct):
    data: list[Batch]
    has_more: bool = False


class Provider:
    """The files and batches of the server of one model."""

    def __init__(self, engine: OpenAIEngine) -> None:
        self._engine, self._server = engine, engine.urls[0]
        self._wire = cast(sdk.SdkWire, engine.wire_by(sdk.opens(engine.spec)))

    async def upload(self, path: Path) -> str:
        """The id that a file of requests gets there. Raises EngineError."""
        with opened(path) as file:
            given = (path.name, file, "application/jsonl")
            return (await self._read(lambda api, how: api.files.create(file=given, purpose="batch", **how), _File)).id

    async def create(self, file_id: str) -> Batch:
        """Have a file answered, which is paid for. Raises EngineError."""
        return await self._read(
            lambda api, how: api.batches.create(
                input_file_id=file_id, endpoint=path_of(self._engine), completion_window=WINDOW, **how
            ),
            Batch,
        )

    async def state(self, batch_id: str) -> Batch:
        return await self._read(lambda api, how: api.batches.retrieve(batch_id, **how), Batch)

    def problem(self, batch: Batch) -> str:
        """Why all of a batch failed, in the provider's words; empty where it did not."""
        said = [one for one in (batch.errors.data if batch.errors else None) or () if one.message]
        words = "; ".join(f"{one.message}{f' (line {one.line})' if one.line else ''}" for one in said[:3])
        return self._engine.shown(words)

    async def of_file(self, file_id: str) -> Batch | None:
        """The batch that was made of a file; None where none was. Raises EngineError."""
        given: dict[str, Any] = {"limit": A_PAGE}
        for _ in range(PAGES):
            page = await self._read(lambda api, how, given=given: api.batches.list(**given, **how), _Page)  # type: ignore[misc]
            if found := next((batch for batch in page.data if batch.input_file_id == file_id), None):
                return found
            if not page.has_more or not page.data:
                return None
            given = {"limit": A_PAGE, "after": page.data[-1].id}
        return None

    async def download(self, file_id: str, to: Path) -> None:
        """A file of results, appended to what is there. Raises EngineError."""
        with open(to, "ab") as file:
            await self._asked(lambda api, how: api.files.content(file_id, **how), RESULTS, file)

    async def _read(self, ask: Callable[[Any, dict[str, Any]], Any], kind: type[Read]) -> Read:
        body = self._engine.masked(await self._asked(ask, ANSWER))
        with suppress(ValueError, RecursionError):
            return msgspec.json.decode(body, type=kind)
        raise self._engine.went_wrong(self._server, CutShort("what it says of files and batches cannot be read"))

    async def _asked(self, ask: Callable[[Any, dict[str, Any]], Any], most: int, to: Any = None) -> bytes:
        try:
            arrived = await self._wire.resource(
                lambda client, how: ask(client.with_streaming_response, how), self._engine.spec.timeout, most, to
            )
        except TimeoutError:
            problem = f"{self._server} did not answer within {self._engine.spec.timeout:g} s"
            raise EngineError(problem, cause="timeout", fix="run the same command again") from None
        except (Misled, Unreached, Broken, CutShort, TooLong) as error:
            raise self._engine.went_wrong(self._server, error) from None
        if arrived.status != 200:
            raise self._engine.went_wrong(self._server, arrived)
        return arrived.body


def path_of(engine: OpenAIEngine) -> str:
    """The path of a request in a file of many."""
    return OWN_PATH if engine.spec.azure is None else AZURE_PATH
