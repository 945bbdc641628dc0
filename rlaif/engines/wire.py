"""HTTP to one server: a pool of kept-alive connections, one deadline for a whole request.

The `openai` package's client builds a model object for every request and every answer, which costs several times as
much as the request. Over Rust's `reqwest` a request costs 50 microseconds of processor time where aiohttp's costs 135
(benchmarks/RESULTS.md). The package's conventions are kept: paths under the base URL, a bearer key, organisation and
project from the environment, proxies from the environment, compressed answers, redirects. `sdk.SdkWire` is the same
over the package itself.

A server is not trusted: its answer is read only up to a bound, which counts what is decompressed, and a redirect to
another origin (scheme, host or port) carries no key.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from rlaif.engines.secrets import Secrets
from rlaif.version import __version__

if TYPE_CHECKING:
    from pyreqwest.client import Client
    from pyreqwest.http import Url
    from pyreqwest.response import Response

CONNECT_TIMEOUT = timedelta(seconds=10)
KEEP_ALIVE = timedelta(seconds=15)  # servers that close idle connections do so later
OPENAI_HOST = "api.openai.com"
# Headers that the `openai` package takes from the environment. They go to OpenAI only.
OPENAI_HEADERS = {"OPENAI_ORG_ID": "OpenAI-Organization", "OPENAI_PROJECT_ID": "OpenAI-Project"}
NO_KEY = "none"  # what is sent to a server that needs no key
HOPS = 10  # redirects that one request follows, as reqwest and the `openai` package do
REDIRECTS = frozenset({301, 302, 303, 307, 308})
FRESH = frozenset({301, 302, 303})  # after these a request is made anew, by GET, as browsers do
MB = 1_000_000
GZIP_OR_ZLIB = 47  # for zlib: whichever of the two it meets
FIRST = 256_000  # bytes of an answer that are read at once; nearly every answer is shorter
LONG = 4  # answers of one server that are read beyond FIRST at a time, so that many cannot fill the memory together
MOST = 64 * MB  # bytes of an answer, whatever was asked: half a million tokens with their log-probabilities
ERROR = 256_000  # bytes of an answer whose status is an error: only its first words are shown


class Extra(NamedTuple):
    """What a model's requests carry beside the key. `secrets` are the values that the environment gave."""

    headers: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    secrets: tuple[str, ...] = ()


NOTHING = Extra()


class Arrival(NamedTuple):
    status: int
    headers: Mapping[str, str]  # empty for a 200
    body: bytes
    elsewhere: str = ""  # the other origin that a redirect led to, which got no key


class Unreached(Exception):
    """The server could not be reached. The message says why."""


class Broken(Exception):
    """The connection broke after the request was sent."""


class CutShort(Exception):
    """The answer was truncated."""


class TooLong(Exception):
    """The answer is longer than its bound. The message names it."""


def too_long(most: int) -> TooLong:
    return TooLong(f"it is longer than {most / MB:.3g} MB")


class Misled(Exception):
    """A redirect that is not followed. The message says where it leads."""


class Wire:
    """Connections to one base URL with one key. Opens them when first used."""

    def __init__(self, base_url: str, key: str, extra: Extra = NOTHING) -> None:
        self.base_url = base_url
        self._query = f"?{urlencode(extra.query)}" if extra.query else ""
        self._plain = {"Content-Type": "application/json"}
        # A server that is given another header for its key may refuse one that holds none.
        self._keys = {} if key == NO_KEY and extra.secrets else {"Authorization": f"Bearer {key}"}
        if urlsplit(base_url).hostname == OPENAI_HOST:
            self._keys |= {name: os.environ[v] for v, name in OPENAI_HEADERS.items() if os.environ.get(v)}
        self.secrets = [value for value in (key, *list(self._keys.values())[1:], *extra.secrets) if value != NO_KEY]
        self._keys = {
            name: value for name, value in self._keys.items() if name.lower() not in map(str.lower, extra.headers)
        }
        self._keys |= extra.headers
        self.hide: Callable[[str], None] = lambda _: None  # is told a secret that comes later, as of a sign-in
        self._clients: dict[bool, Client] = {}  # by whether they send the keys
        self._deadlines: dict[float, timedelta] = {}
        self._long = asyncio.Semaphore(LONG)

    async def post(self, path: str, body: bytes, timeout: float, most: int = MOST) -> Arrival:
        """Send one request, and read at most `most` bytes of its answer.

        Raises TimeoutError, Unreached, Broken, CutShort, TooLong or Misled.
        """
        return await self._request("POST", path, body, timeout, most)

    async def get(self, path: str, timeout: float, most: int = MOST) -> Arrival:
        """As `post`."""
        return await self._request("GET", path, None, timeout, most)

    async def _request(self, method: str, path: str, body: bytes | None, timeout: float, most: int) -> Arrival:
        from pyreqwest import exceptions  # a run without a server never needs it

        deadline = self._deadlines.get(timeout)
        if deadline is None:
            deadline = self._deadlines[timeout] = timedelta(seconds=timeout)
        began = time.monotonic()
        try:
            arrived = await self._sent(method, self.base_url + path + self._query, body, deadline, most)
            if arrived.status in REDIRECTS:
                async with asyncio.timeout(timeout):
                    arrived = await self._followed(arrived, method, path, body, deadline, most)
            return arrived
        except exceptions.RequestTimeoutError as error:
            if time.monotonic() - began < 0.9 * timeout:  # no connection was accepted
                raise Unreached(_reason(error)) from None
            raise TimeoutError from None
        except exceptions.DecodeError as error:
            raise CutShort(_reason(error)) from None
        except (exceptions.ConnectError, exceptions.BuilderError) as error:  # the latter: an address of no use
            raise Unreached(_reason(error)) from None
        except exceptions.RequestError as error:
            raise Broken(_reason(error)) from None

    async def _sent(
        self, method: str, url: Url | str, body: bytes | None, deadline: timedelta, most: int, *, keys: bool = True
    ) -> Arrival:
        """One request and its answer, wherever that leads. Raises pyreqwest's exceptions, Unreached or TooLong.

        Raises MemoryError where the client's threads cannot be started.
        """
        try:
            request = self._opened(keys).request(method, url).timeout(deadline)
        except (ValueError, RuntimeError) as error:  # no host can have this name, or no more files can be opened
            if "thread" in str(error):
                raise MemoryError(str(error)) from None
            raise Unreached(str(error)) from None
        if body is not None:
            request = request.body_bytes(body)
        async with request.build_streamed() as answer:
            status = answer.status
            if status == 200:
                return Arrival(status, {}, await self._read(answer, most))
            try:
                return Arrival(status, answer.headers, await self._read(answer, ERROR))
            except TooLong as error:
                return Arrival(status, answer.headers, f"an error page, and {error}".encode())

    async def _read(self, answer: Response, most: int) -> bytes:
        """The whole body, decompressed. Raises TooLong."""
        first = await answer.body_reader.read(min(FIRST, most + 1))
        body = bytes(first or b"")
        if len(body) == FIRST:
            async with self._long:
                rest = await answer.body_reader.read(most + 1 - FIRST)
                body += bytes(rest or b"")
        if len(body) > most:
            raise too_long(most)
        return body

    async def _followed(
        self, arrived: Arrival, method: str, path: str, body: bytes | None, deadline: timedelta, most: int
    ) -> Arrival:
        """The answer where redirects lead. Only their own origin gets the keys. Raises Misled."""
        from pyreqwest.http import Url  # reads addresses as the client does, which sends to what is read

        here = Url(self.base_url + path + self._query)
        home, elsewhere = here.origin_ascii, ""
        for _ in range(HOPS):
            there = _location(arrived, here)
            if there is None:
                return arrived
            if there.scheme not in ("http", "https"):
                raise Misled(f"it redirects to {_place(there)}, which is no http address")
            if here.scheme == "https" and there.scheme == "http":
                raise Misled(f"it redirects to {_place(there)}, where nothing is encrypted")
            if arrived.status in FRESH:
                method, body = "GET", None
            elsewhere = "" if there.origin_ascii == home else _place(there)
            there = there.with_username("").with_password(None)
            arrived = await self._sent(method, there, body, deadline, most, keys=not elsewhere)
            if arrived.status not in REDIRECTS:
                return arrived._replace(elsewhere=elsewhere)
            here = there
        raise Misled(f"it redirects more than {HOPS} times")

    def _opened(self, keys: bool) -> Client:
        client = self._clients.get(keys)
        if client is None:
            from pyreqwest.client import ClientBuilder

            headers = self._plain | self._keys if keys else self._plain
            builder = (
                ClientBuilder().default_headers(headers).user_agent(f"rlaif/{__version__}").follow_redirects(False)
            )
            client = builder.connect_timeout(CONNECT_TIMEOUT).pool_idle_timeout(KEEP_ALIVE).build()
            self._clients[keys] = client
        return client

    async def close(self) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()


Opens = Callable[[str, str, Extra], Wire]


class Wires:
    """One wire for each server and key: models on one server share its connections. `secrets` are all their keys."""

    def __init__(self) -> None:
        self.secrets = Secrets()
        self._wires: dict[tuple[str, ...], Wire] = {}

    def to(self, base_url: str, key: str, extra: Extra = NOTHING, opens: Opens = Wire) -> Wire:
        name = (base_url, key, *map(repr, extra), repr(opens))
        wire = self._wires.get(name)
        if wire is None:
            wire = self._wires[name] = opens(base_url, key, extra)
            wire.hide = self.secrets.add
            for secret in wire.secrets:
                self.secrets.add(secret)
        return wire

    async def close(self) -> None:
        for wire in self._wires.values():
            await wire.close()


def proxy_of(url: str) -> str | None:
    """The environment variable whose proxy requests to an address go through; None where they go straight."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies_environment()
    scheme = next((name for name in (parts.scheme, "all") if proxies.get(name)), None)
    if scheme is None:
        return None
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    return next((name for name in names if os.environ.get(name)), names[1])


def _location(arrived: Arrival, here: Url) -> Url | None:
    """Where a redirect leads; None where it does not say so in a way that can be read."""
    try:
        location = arrived.headers.get("location")
        return None if location is None else here.join(location)
    except ValueError:
        return None


def _place(url: Url) -> str:
    """An address as errors show it: its origin, or its scheme alone."""
    origin = url.origin_ascii if url.scheme in ("http", "https") else ""
    return (origin or f"{url.scheme}:")[:200]


def _reason(error: BaseException) -> str:
    """The innermost cause: the layers above it say only that a request failed."""
    details = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], dict) else {}
    causes = details.get("causes") or []
    reason = str(causes[-1]["message"]) if causes else str(error.args[0] if error.args else error)
    return " ".join(reason.split()).rstrip(".") or type(error).__name__
