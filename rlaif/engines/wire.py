"""HTTP to one server: a pool of kept-alive connections, one deadline for a whole request.

The `openai` package's client builds a model object for every request and every answer, which costs several times as
much as the request. Over Rust's `reqwest` a request costs 50 microseconds of processor time where aiohttp's costs 135
(benchmarks/RESULTS.md). The package's conventions are kept: paths under the base URL, a bearer key, organisation and
project from the environment, proxies from the environment, compressed answers, redirects.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from rlaif.version import __version__

if TYPE_CHECKING:
    from pyreqwest.client import Client

CONNECT_TIMEOUT = timedelta(seconds=10)
KEEP_ALIVE = timedelta(seconds=15)  # servers that close idle connections do so later
OPENAI_HOST = "api.openai.com"
# Headers that the `openai` package takes from the environment. They go to OpenAI only.
OPENAI_HEADERS = {"OPENAI_ORG_ID": "OpenAI-Organization", "OPENAI_PROJECT_ID": "OpenAI-Project"}


class Arrival(NamedTuple):
    status: int
    headers: Mapping[str, str]  # empty for a 200
    body: bytes


class Unreached(Exception):
    """The server could not be reached. The message says why."""


class Broken(Exception):
    """The connection broke after the request was sent."""


class CutShort(Exception):
    """The answer was truncated."""


class Wire:
    """Connections to one base URL with one key. Opens them when first used."""

    def __init__(self, base_url: str, key: str) -> None:
        self.base_url = base_url
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        if urlsplit(base_url).hostname == OPENAI_HOST:
            self._headers |= {name: os.environ[v] for v, name in OPENAI_HEADERS.items() if os.environ.get(v)}
        self._client: Client | None = None
        self._deadlines: dict[float, timedelta] = {}

    async def post(self, path: str, body: bytes, timeout: float) -> Arrival:
        """Send one request. Raises TimeoutError, Unreached, Broken or CutShort."""
        return await self._request("POST", path, body, timeout)

    async def get(self, path: str, timeout: float) -> Arrival:
        """Send one request. Raises TimeoutError, Unreached, Broken or CutShort."""
        return await self._request("GET", path, None, timeout)

    async def _request(self, method: str, path: str, body: bytes | None, timeout: float) -> Arrival:
        from pyreqwest import exceptions  # a run without a server never needs it

        deadline = self._deadlines.get(timeout)
        if deadline is None:
            deadline = self._deadlines[timeout] = timedelta(seconds=timeout)
        try:
            request = self._opened().request(method, self.base_url + path).timeout(deadline)
        except (ValueError, RuntimeError) as error:  # no host can have this name, or no more files can be opened
            raise Unreached(str(error)) from None
        if body is not None:
            request = request.body_bytes(body)
        began = time.monotonic()
        try:
            answer = await request.build().send()
            status = answer.status
            return Arrival(status, answer.headers if status != 200 else {}, bytes(await answer.bytes()))
        except exceptions.RequestTimeoutError as error:
            if time.monotonic() - began < 0.9 * timeout:  # no connection was accepted
                raise Unreached(_reason(error)) from None
            raise TimeoutError from None
        except exceptions.DecodeError as error:
            raise CutShort(_reason(error)) from None
        except exceptions.ConnectError as error:
            raise Unreached(_reason(error)) from None
        except exceptions.RequestError as error:
            raise Broken(_reason(error)) from None

    def _opened(self) -> Client:
        if self._client is None:
            from pyreqwest.client import ClientBuilder

            builder = ClientBuilder().default_headers(self._headers).user_agent(f"rlaif/{__version__}")
            self._client = builder.connect_timeout(CONNECT_TIMEOUT).pool_idle_timeout(KEEP_ALIVE).build()
        return self._client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


class Wires:
    """One wire for each server and key: models on one server share its connections."""

    def __init__(self) -> None:
        self._wires: dict[tuple[str, str], Wire] = {}

    def to(self, base_url: str, key: str) -> Wire:
        wire = self._wires.get((base_url, key))
        if wire is None:
            wire = self._wires[base_url, key] = Wire(base_url, key)
        return wire

    async def close(self) -> None:
        for wire in self._wires.values():
            await wire.close()


def _reason(error: BaseException) -> str:
    """The innermost cause: the layers above it say only that a request failed."""
    details = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], dict) else {}
    causes = details.get("causes") or []
    reason = str(causes[-1]["message"]) if causes else str(error.args[0] if error.args else error)
    return " ".join(reason.split()).rstrip(".") or type(error).__name__
