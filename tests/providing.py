"""A provider of batches on a real socket: files and batches of the OpenAI protocol, answered by engines of ours.

Batches end when the test says so: until then they are under way. `run_batch` is what vLLM's command of that name does,
without a server: one file in, one file out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from serving import Chat, served
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlaif.engines.protocol import Engine

Line = dict[str, Any]
Change = Callable[[list[Line]], list[Line]]


class Provider:
    """What it was sent and what it made of it. `files` and `batches` are by id, in order."""

    def __init__(self, engines: Mapping[str, Engine], prefix: str) -> None:
        self.chat, self.base_url, self.prefix = Chat(engines), "", prefix
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []  # method, path with its query, headers
        self.broken: set[str] = set()  # "POST /v1/batches": done, and then without an answer

    def end(self, batch_id: str, change: Change = lambda lines: lines, status: str = "completed") -> None:
        """Answer the requests of a batch, as far as `change` leaves their lines; errors in a file of their own."""
        batch = self.batches[batch_id]
        lines = change(asyncio.run(answered(self.chat, self.files[batch["input_file_id"]])))
        failed = [line for line in lines if line["error"] or line["response"]["status_code"] != 200]
        for key, some in (("output_file_id", [x for x in lines if x not in failed]), ("error_file_id", failed)):
            if some:
                batch[key] = self._keep("".join(json.dumps(line) + "\n" for line in some).encode())
        batch |= {"status": status, "request_counts": {"total": len(lines), "completed": len(lines), "failed": 0}}

    def open(self) -> list[str]:
        return [name for name, batch in self.batches.items() if batch["status"] == "in_progress"]

    def _keep(self, data: bytes) -> str:
        name = f"file-{len(self.files) + 1}"
        self.files[name] = data
        return name

    def routes(self) -> list[Route]:
        def seen(http: Request) -> str:
            path = http.url.path + (f"?{http.url.query}" if http.url.query else "")
            self.seen.append((http.method, path, dict(http.headers)))
            return f"{http.method} {http.url.path}"

        async def upload(http: Request) -> Response:
            seen(http)
            boundary = http.headers["content-type"].partition("boundary=")[2].encode()
            parts = (await http.body()).split(b"--" + boundary)
            fields = [part.partition(b"\r\n\r\n") for part in parts if b"\r\n\r\n" in part]
            assert any(b'name="purpose"' in head and data == b"batch\r\n" for head, _, data in fields)
            (data,) = [data.removesuffix(b"\r\n") for head, _, data in fields if b'name="file"' in head]
            return JSONResponse({"id": self._keep(data), "object": "file"})

        async def content(http: Request) -> Response:
            seen(http)
            return Response(self.files[http.path_params["id"]])

        async def create(http: Request) -> Response:
            what, body = seen(http), await http.json()
            name = f"batch_{len(self.batches) + 1}"
            self.batches[name] = {"id": name, "status": "in_progress", "metadata": None, **body}
            if what in self.broken:
                self.broken.discard(what)
                return JSONResponse({"error": {"message": "the answer was lost"}}, 502)
            return JSONResponse(self.batches[name])

        async def listed(http: Request) -> Response:
            seen(http)
            names = list(reversed(self.batches))
            after = http.query_params.get("after")
            rest = names[names.index(after) + 1 :] if after else names
            page = [self.batches[name] for name in rest[:2]]  # small pages, so that the second is needed, too
            return JSONResponse({"object": "list", "data": page, "has_more": len(rest) > 2})

        async def state(http: Request) -> Response:
            seen(http)
            batch = self.batches.get(http.path_params["id"])
            return JSONResponse(batch or {"error": {"message": "no such batch"}}, 200 if batch else 404)

        return [
            *self.chat.routes(),
            Route(f"{self.prefix}/files", upload, methods=["POST"]),
            Route(f"{self.prefix}/files/{{id}}/content", content),
            Route(f"{self.prefix}/batches", create, methods=["POST"]),
            Route(f"{self.prefix}/batches", listed),
            Route(f"{self.prefix}/batches/{{id}}", state),
        ]


@contextlib.contextmanager
def providing(engines: Mapping[str, Engine], prefix: str = "/v1") -> Iterator[Provider]:
    provider = Provider(engines, prefix)
    with served(provider.routes()) as url:
        provider.base_url = url
        yield provider


async def answered(chat: Chat, requests: bytes) -> list[Line]:
    """A line of results for each line of requests, as providers and vLLM write them."""
    lines = [json.loads(line) for line in requests.splitlines()]
    assert all(line["method"] == "POST" and line["url"].endswith("/chat/completions") for line in lines)
    answers = await asyncio.gather(*(chat.answer(line["body"]) for line in lines))
    return [
        {
            "id": f"vllm-{number}",
            "custom_id": line["custom_id"],
            "response": {"status_code": status, "request_id": f"vllm-batch-{number}", "body": body},
            "error": None,
        }
        for number, (line, (status, body)) in enumerate(zip(lines, answers, strict=True))
    ]


def run_batch(
    requests: Path, results: Path, engines: Mapping[str, Engine], change: Change = lambda lines: lines
) -> list[Line]:
    """`vllm run-batch -i REQUESTS -o RESULTS`, as far as `change` leaves the lines."""
    lines = change(asyncio.run(answered(Chat(engines), requests.read_bytes())))
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines
