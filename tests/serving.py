"""Real servers on real sockets: engines of ours behind the OpenAI protocol, and a script of faults.

`serve` puts engines behind POST /v1/chat/completions and GET /v1/models; requests that arrive together share a batch.
`scripted` answers from a list, entry by entry, and can delay, cut a body short or drop the connection. `speaking`
answers with any bytes, HTTP or not, as many as its client takes.
All listen on 127.0.0.1, on a port the system chooses, and stop when their `with` block ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from rlaif.engines.protocol import Engine, Reply, Request
from rlaif.errors import EngineError
from rlaif.records import Message, Sampling

GATHER = 0.005  # seconds during which requests join a batch
TOKENS = (
    "A",
    "B",
    *(str(number) for number in range(1, 11)),
)  # what top_logprobs can report: engines know named tokens


# ---------------------------------------------------------------- engines behind a server


class _Batcher:
    """Gathers what arrives within a few milliseconds into one `Engine.sample`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.waiting: list[tuple[Request, asyncio.Future[list[Reply | EngineError]]]] = []
        self.task: asyncio.Task[None] | None = None

    async def ask(self, request: Request) -> list[Reply | EngineError]:
        future: asyncio.Future[list[Reply | EngineError]] = asyncio.get_running_loop().create_future()
        self.waiting.append((request, future))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self.waiting:
            await asyncio.sleep(GATHER)
            batch, self.waiting = self.waiting, []
            try:
                answers = await self.engine.sample([request for request, _ in batch])
            except EngineError as error:
                answers = [[error] * len(request.indices) for request, _ in batch]
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def _requests(body: Mapping[str, Any]) -> list[Request]:
    """One request per sample: like vLLM, sample i of n is drawn with seed + i."""
    schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    stop = body.get("stop") or ()
    sampling = Sampling(
        temperature=body.get("temperature", 1.0),
        top_p=body.get("top_p", 1.0),
        max_tokens=body.get("max_tokens", 64),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        logprobs=bool(body.get("logprobs")),
        alternatives=TOKENS if body.get("top_logprobs") else (),
    )
    messages = tuple(Message(**message) for message in body["messages"])
    seed = body.get("seed") or 0
    return [
        Request(messages=messages, sampling=sampling.model_copy(update={"seed": seed + i}), json_schema=schema)
        for i in range(body.get("n") or 1)
    ]


def _choice(index: int, reply: Reply, top: int) -> dict[str, Any]:
    logprobs = None
    if reply.token_logprobs is not None:
        content: list[dict[str, Any]] = [{"token": "", "logprob": value} for value in reply.token_logprobs]
        for first in content[:1]:  # engines do not tell the texts of their tokens
            first["token"] = reply.text
            value = (reply.alternatives or {}).get(reply.text)
            first["logprob"] = first["logprob"] if value is None else value
        if content and reply.alternatives:
            known = [(value, name) for name, value in reply.alternatives.items() if value is not None]
            content[0]["top_logprobs"] = [
                {"token": f" {n}", "logprob": v} for v, n in sorted(known, reverse=True)[:top]
            ]
        logprobs = {"content": content}
    message = {"role": "assistant", "content": reply.text}
    return {"index": index, "message": message, "finish_reason": reply.finish_reason, "logprobs": logprobs}


class Chat:
    """Engines behind the OpenAI protocol, whatever brings the requests; counts them."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.names = list(engines)
        self._batchers = {name: _Batcher(engine) for name, engine in engines.items()}
        self.asked = 0

    async def answer(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a request's body."""
        self.asked += 1
        if body["model"] not in self._batchers:
            return 404, {"error": {"message": f"the model `{body['model']}` does not exist"}}
        answers = await asyncio.gather(*(self._batchers[body["model"]].ask(request) for request in _requests(body)))
        replies = []
        for reply in (reply for answer in answers for reply in answer):
            if isinstance(reply, EngineError):
                return 400, {"error": {"message": reply.message, "code": reply.cause}}
            replies.append(reply)
        usage = {
            "prompt_tokens": replies[0].usage.prompt_tokens,
            "completion_tokens": sum(reply.usage.completion_tokens for reply in replies),
        }
        choices = [_choice(i, reply, body.get("top_logprobs") or 0) for i, reply in enumerate(replies)]
        return 200, {"object": "chat.completion", "model": body["model"], "choices": choices, "usage": usage}

    def routes(self) -> list[Route]:
        async def models(_: HttpRequest) -> JSONResponse:
            return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self.names]})

        async def chat(http: HttpRequest) -> JSONResponse:
            status, answer = await self.answer(await http.json())
            return JSONResponse(answer, status)

        return [Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"])]


@contextlib.contextmanager
def serve(engines: Mapping[str, Engine], port: int = 0) -> Iterator[str]:
    """Serve `engines` under their names; gives the base URL. The engines stay the caller's to close."""
    with served(Chat(engines).routes(), port) as url:
        yield url


@contextlib.contextmanager
def served(routes: Sequence[Route], port: int = 0) -> Iterator[str]:
    """Serve an application of these routes; gives the base URL."""
    application = Starlette(routes=list(routes))
    config = uvicorn.Config(application, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", port)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), name="serve")
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


# ---------------------------------------------------------------- a script of faults


@dataclass(frozen=True)
class Answer:
    """One entry of a script. A dict body becomes JSON; a callable makes it, or the answer, from the request's body."""

    body: dict[str, Any] | str | Callable[[dict[str, Any]], dict[str, Any] | Answer] = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0  # seconds between the bytes of the body
    drop: bool = False  # close the connection without a word
    cut: int | None = None  # send only so many bytes of the body that was announced, then close


@dataclass
class Script:
    """A running script: where it listens and what it was asked."""

    answers: Sequence[Answer]
    base_url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)  # path, headers, body, and the body as `raw` bytes
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
            raw = await reader.readexactly(int(headers.get("content-length", 0)))
            body = json.loads(raw or b"{}")
            self.requests.append({"path": head[0].split()[1], "headers": headers, "body": body, "raw": raw})
            number = len(self.requests) - 1
            await self._answer(self.answers[min(number, len(self.answers) - 1)], body, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the script ended
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):  # the script may end here too
                await writer.wait_closed()
            self.connections.discard(task)

    async def _answer(self, answer: Answer, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(answer.delay)
        if answer.drop:
            return
        body = answer.body(asked) if callable(answer.body) else answer.body
        if isinstance(body, Answer):
            return await self._answer(body, asked, writer)
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        lines = [f"HTTP/1.1 {answer.status} Scripted", "content-type: application/json", f"content-length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()] + ["connection: close", "", ""]
        writer.write("\r\n".join(lines).encode())
        data = data[: answer.cut]
        for start in range(0, len(data), 1 if answer.drip else max(1, len(data))):
            writer.write(data[start : start + 1] if answer.drip else data)
            await writer.drain()
            await asyncio.sleep(answer.drip)


@contextlib.contextmanager
def scripted(answers: Sequence[Answer]) -> Iterator[Script]:
    """Answer each connection from the next entry of `answers`; the last one repeats."""
    script = Script(answers)
    ready, loops = threading.Event(), []

    async def run() -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(script._serve, "127.0.0.1", 0)
        script.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        loops.append((asyncio.get_running_loop(), stop))
        ready.set()
        await stop.wait()
        server.close()
        open_connections = list(script.connections)
        for connection in open_connections:
            connection.cancel()
        await asyncio.gather(*open_connections)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="scripted")
    thread.start()
    ready.wait()
    try:
        yield script
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join()


# ---------------------------------------------------------------- any bytes at all

Spoken = bytes | Callable[[], Iterable[bytes]]  # whole, or piece by piece as the client takes it


@dataclass
class Speaker:
    """A server of bytes: where it listens, what it was sent, and how much its clients took."""

    base_url: str = ""
    heads: list[str] = field(default_factory=list)  # of the requests, as they arrived
    sent: int = 0


@contextlib.contextmanager
def speaking(*answers: Spoken, pause: float = 0.0) -> Iterator[Speaker]:
    """Answer each request with the next of `answers`; the last one repeats.

    `pause` is waited between two pieces.
    """
    speaker = Speaker()
    ending = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as reading:
            head, line = "", b"x"
            while line not in (b"\r\n", b"") and not ending.is_set():
                line = reading.readline()
                head += line.decode("latin-1")
            length = next((int(h[15:]) for h in head.lower().splitlines() if h.startswith("content-length:")), 0)
            reading.read(length)
            speaker.heads.append(head)
            said = answers[min(len(speaker.heads), len(answers)) - 1]
            for piece in (said,) if isinstance(said, bytes) else said():
                if ending.is_set():
                    break
                connection.sendall(piece)
                speaker.sent += len(piece)
                if pause:
                    ending.wait(pause)

    def listen() -> None:
        while not ending.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                connection.settimeout(10)
                threading.Thread(target=answer, args=(connection,), name="speaking", daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        speaker.base_url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        thread = threading.Thread(target=listen, name="speaking")
        thread.start()
        try:
            yield speaker
        finally:
            ending.set()
            thread.join()


def spoken(
    body: bytes | Iterable[bytes] = b"", *headers: str, status: str = "200 OK", length: int | None = -1
) -> Callable[[], Iterator[bytes]]:
    """An HTTP answer of these pieces. `length` is what it says of its length: None nothing, -1 the truth."""

    def pieces() -> Iterator[bytes]:
        told = len(body) if length == -1 and isinstance(body, bytes) else length
        lines = [f"HTTP/1.1 {status}", "content-type: application/json", *headers, "connection: close"]
        lines += [] if told in (None, -1) else [f"content-length: {told}"]
        yield ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        yield from (body,) if isinstance(body, bytes) else body

    return pieces


def completion(*texts: str | None, finish_reason: str = "stop", logprobs: Any = None, **extra: Any) -> dict[str, Any]:
    """A chat completion with these texts as its choices, in the shape servers send."""
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": t},
            "finish_reason": finish_reason,
            "logprobs": logprobs,
        }
        for i, t in enumerate(texts)
    ]
    return {"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 5 * len(texts)}, **extra}


def top_logprobs(**probabilities: float) -> dict[str, Any]:
    """The `logprobs` of a choice of one token, whose alternatives have these probabilities."""
    top = [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items()]
    return {"content": [{**max(top, key=lambda entry: entry["logprob"]), "top_logprobs": top}]}
