"""HTTP to one server through the `openai` package (`client: sdk`): Azure and its sign-in, and the package's variables.

It is a wire like any other, below the verification, the retries and the bounds: the package makes and signs a request
and sends it, and what arrives is taken as bytes. Its own retries and its reading of answers are off. Beside the key it
takes `OPENAI_ORG_ID`, `OPENAI_PROJECT_ID` and `OPENAI_CUSTOM_HEADERS` from the environment, for whatever server.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from rlaif.config import Azure, OpenAIModel
from rlaif.engines.wire import (
    CONNECT_TIMEOUT,
    ERROR,
    FIRST,
    GZIP_OR_ZLIB,
    NO_KEY,
    OPENAI_HEADERS,
    Arrival,
    Broken,
    CutShort,
    Extra,
    Opens,
    TooLong,
    Unreached,
    Wire,
    too_long,
)
from rlaif.errors import InputError, first_line
from rlaif.version import __version__

if TYPE_CHECKING:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient
    from pyreqwest.http import Url

SCOPE = "https://cognitiveservices.azure.com/.default"  # of a sign-in at Azure
SIGN_IN = "azure.identity"  # a module of azure-identity, which nothing here depends on
CUSTOM_HEADERS = "OPENAI_CUSTOM_HEADERS"
Response = Any  # of the HTTP library below the package, which is no dependency of ours: its errors are known by name


def opens(spec: OpenAIModel) -> Opens:
    """What opens the wire of a model with `client: sdk`."""
    return SdkWire if spec.azure is None else partial(SdkWire, azure=spec.azure, own_key=spec.api_key_env is not None)


class SdkWire(Wire):
    """Connections to one base URL through the package. `own_key`: the pipeline file names the key's variable."""

    def __init__(
        self, base_url: str, key: str, extra: Extra, azure: Azure | None = None, *, own_key: bool = False
    ) -> None:
        super().__init__(base_url, key, extra)
        self._key, self._extra, self._azure = key, extra, azure
        self._token = None if azure is None or own_key or not azure.trusted else os.environ.get("AZURE_OPENAI_AD_TOKEN")
        self.secrets += [value for value in (self._token, *_of_environment()) if value and value not in self.secrets]
        self._sign_in: Callable[[], Awaitable[str]] | None = None
        if azure is not None and not self._token and key == NO_KEY and not extra.secrets:
            self._sign_in = self._signing_in(azure)
        self._sdk: AsyncOpenAI | None = None
        self._other: DefaultAsyncHttpxClient | None = None  # without keys

    async def _sent(
        self, method: str, url: Url | str, body: bytes | None, deadline: timedelta, most: int, *, keys: bool = True
    ) -> Arrival:
        """As of any wire. Raises TimeoutError, Unreached, Broken, CutShort or TooLong."""
        self.client()  # opened before the clock runs: the package takes half a second to load
        send = self._signed if keys else self._unsigned
        async with asyncio.timeout(deadline.total_seconds()):
            try:
                with _as_of_a_wire():
                    answer = await send(method, str(url), body, deadline)
                    try:
                        return Arrival(answer.status_code, {}, await self._whole(answer, most))
                    finally:
                        await answer.aclose()
            except _Refusal as refusal:
                return refusal.arrival

    async def _signed(self, method: str, url: str, body: bytes | None, deadline: timedelta) -> Response:
        """An answer, not read yet, to a request that the package made. The address is whole, so it stays as it is."""
        import openai

        timeout = openai.Timeout(deadline.total_seconds(), connect=CONNECT_TIMEOUT.total_seconds())
        how: Any = {"cast_to": object, "stream": True, "stream_cls": openai.AsyncStream[object],
                    "options": {"timeout": timeout, "headers": self.headers()}}  # fmt: skip
        sdk = self.client()
        stream = await (sdk.get(url, **how) if method == "GET" else sdk.post(url, content=body, **how))
        return stream.response

    async def _unsigned(self, method: str, url: str, body: bytes | None, deadline: timedelta) -> Response:
        """As `_signed`, for another origin, which gets no key."""
        if self._other is None:
            self._other = self._http(self._plain | {"User-Agent": f"rlaif/{__version__}"})
        request = self._other.build_request(method, url, content=body, timeout=deadline.total_seconds())
        return await self._other.send(request, stream=True)

    async def resource(
        self, ask: Callable[[AsyncOpenAI, Any], Any], timeout: float, most: int, to: BinaryIO | None = None
    ) -> Arrival:
        """What one of the package's resources answers, such as its files: `ask` gets the client and what each of its
        methods takes. A 200 is written `to` a file where one is given. Raises as `post`."""
        import openai

        within = openai.Timeout(timeout, connect=CONNECT_TIMEOUT.total_seconds())
        given = {"extra_headers": self.headers(), "extra_query": dict(self._extra.query), "timeout": within}
        try:
            with _as_of_a_wire():
                async with ask(self.client(), given) as streamed:
                    answer: Response = streamed.http_response
                    if to is None:
                        return Arrival(answer.status_code, {}, await self._whole(answer, most))
                    async for piece in _pieces(answer, most):
                        to.write(piece)
                    return Arrival(answer.status_code, {}, b"")
        except _Refusal as refusal:
            return refusal.arrival

    def client(self) -> AsyncOpenAI:
        """The package's client, opened when it is first used."""
        if self._sdk is None:
            import openai

            given: Any = {"max_retries": 0, "http_client": self._http({})}
            if self._azure is None:
                self._sdk = openai.AsyncOpenAI(base_url=self.base_url, api_key=self._key, **given)
            else:
                signed: dict[str, Any] = {"api_key": self._key}
                if self._token:
                    signed = {"azure_ad_token": self._token}
                elif self._sign_in is not None:
                    signed = {"azure_ad_token_provider": self._sign_in}
                self._sdk = openai.AsyncAzureOpenAI(
                    azure_endpoint=self._azure.endpoint, azure_deployment=self._azure.deployment,
                    api_version=self._azure.api_version, **signed, **given,
                )  # fmt: skip
        return self._sdk

    def headers(self) -> dict[str, Any]:
        """Those of each request. As of the lean wire, a server with another header for its key gets none beside it."""
        import openai

        unkeyed = {"Authorization" if self._azure is None else "api-key": openai.Omit()}
        return (unkeyed if self._key == NO_KEY and self._extra.secrets else {}) | dict(self._extra.headers)

    def _http(self, headers: Mapping[str, str]) -> DefaultAsyncHttpxClient:
        """A client of the package's defaults (proxies, certificates) that follows no redirect."""
        import openai

        return openai.DefaultAsyncHttpxClient(
            headers={"Accept-Encoding": "gzip, deflate"} | dict(headers),
            follow_redirects=False,
            event_hooks={"response": [self._refused]},
        )

    async def _refused(self, answer: Response) -> None:
        """Take an answer that is no 200 away from the package, which would read all of it, however long."""
        if answer.status_code == 200:
            return
        try:
            said = await self._whole(answer, ERROR)
        except TooLong as error:
            said = f"an error page, and {error}".encode()
        raise _Refusal(Arrival(answer.status_code, dict(answer.headers), said))

    async def _whole(self, answer: Response, most: int) -> bytes:
        """The whole body, decompressed. Raises CutShort or TooLong."""
        body = bytearray()
        async with AsyncExitStack() as held:
            async for piece in _pieces(answer, most):
                body += piece
                if len(body) >= FIRST > len(body) - len(piece):
                    await held.enter_async_context(self._long)
        return bytes(body)

    def _signing_in(self, azure: Azure) -> Callable[[], Awaitable[str]]:
        """Asks azure-identity for a token, as the environment signs in. Raises InputError where it cannot."""
        if not azure.trusted:
            problem = f"{azure.endpoint} is no address of Azure's, so it gets no credential that the file does not name"
            fix = "name the variable of its key in `api_key_env`, or the endpoint in AZURE_OPENAI_ENDPOINT"
            raise InputError(problem, key="azure", fix=fix)
        try:
            identity = importlib.import_module(SIGN_IN)
        except ImportError:
            problem = "neither AZURE_OPENAI_API_KEY nor AZURE_OPENAI_AD_TOKEN is set, and there is no azure-identity"
            raise InputError(problem, key="azure", fix="set one of them, or `pip install azure-identity`") from None
        provider = identity.get_bearer_token_provider(identity.DefaultAzureCredential(), SCOPE)

        async def token() -> str:
            try:
                got = str(await asyncio.to_thread(provider))
            except Exception as error:  # whatever a way to sign in raises
                raise Unreached(f"the sign-in at Azure failed: {first_line(error)}") from None
            self.hide(got)
            return got

        return token

    async def close(self) -> None:
        sdk, other, self._sdk, self._other = self._sdk, self._other, None, None
        if sdk is not None:
            await sdk.close()
        if other is not None:
            await other.aclose()


async def _pieces(answer: Response, most: int) -> AsyncIterator[bytes]:
    """A body, decompressed, of at most so many bytes. Raises CutShort or TooLong."""
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise CutShort(f"it is encoded as {encoding[:40]!r}, which was not asked for")
    packed, read = None if encoding == "identity" else zlib.decompressobj(GZIP_OR_ZLIB), 0
    async for piece in answer.aiter_raw():
        try:
            plain = piece if packed is None else packed.decompress(piece, most + 1 - read)
        except zlib.error as error:
            raise CutShort(first_line(error)) from None
        read += len(plain)
        if read > most:
            raise too_long(most)
        yield plain
    if packed is not None and not packed.eof:
        raise CutShort("unexpected end of file in what is compressed")


class _Refusal(Exception):
    """Carries an answer that is no 200 past the package."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival


def _of_environment() -> list[str]:
    """What the package takes from the environment beside keys; it may be as secret as one."""
    lines = os.environ.get(CUSTOM_HEADERS, "").split("\n")
    return [*(os.environ.get(name, "") for name in OPENAI_HEADERS), *(line.partition(":")[2].strip() for line in lines)]


@contextmanager
def _as_of_a_wire() -> Iterator[None]:
    """Make an error of a wire of what the package raises, or the HTTP library below it."""
    import openai

    try:
        yield
    except openai.APIConnectionError as error:
        raise _on_the_way(error.__cause__ or error) from None
    except Exception as error:
        if {"TransportError", "InvalidURL", "UnicodeError"} & _kinds(error):
            raise _on_the_way(error) from None
        raise


def _on_the_way(error: BaseException) -> Exception:
    """What became of a request: no answer in time, one that is no HTTP, an end after it left, or it never left."""
    kinds, words = _kinds(error), first_line(error)
    if kinds & {"ReadTimeout", "WriteTimeout", "PoolTimeout"}:
        return TimeoutError()
    if "RemoteProtocolError" in kinds and "disconnected" not in words:
        # Other words than those of an end repeat the server's, as Python writes them.
        return CutShort(words if words.startswith("peer closed") else "it is no HTTP")
    if kinds & {"ReadError", "WriteError", "CloseError", "RemoteProtocolError"}:
        return Broken(words)
    return Unreached(words)


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
