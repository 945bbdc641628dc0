"""The process that templates are rendered in which may cost anything: it is limited, and ended when it exceeds.

`rlaif.templates.apart` starts it. It has no keys in its environment, writes no file, and leaves when its input ends.
It reads requests and writes replies, each after its length in four bytes. The first reply to a request says whether the
template compiles, and one follows for each item. Requests are marshalled, which keeps numbers that are keys. Replies
are JSON, since what a template may have taken over is not trusted.
"""

from __future__ import annotations

import json
import marshal
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, BinaryIO

from jinja2 import meta

from rlaif.templates.bounds import size, within
from rlaif.templates.environments import prompting
from rlaif.templates.failures import MOST_MEMORY, failure

Render = Callable[[Mapping[str, Any]], dict[str, Any]]

KEPT = 64  # compiled templates; a run has a few


def main() -> None:
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    if sys.argv[1:] == ["chat"]:
        import transformers.utils.chat_template_utils  # noqa: F401  before memory and files are limited
    _limit()
    while (request := _read(requests)) is not None:
        _answer(request, replies)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        most = used + MOST_MEMORY * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _answer(request: dict[str, Any], replies: BinaryIO) -> None:
    try:
        _timed(request["seconds"])
        first, render = _OPENED[request["kind"]](request["source"])
    except Exception as error:
        return _write(replies, _failed(error))
    _write(replies, first)
    for item in request["items"]:
        try:
            _timed(request["seconds"])
            reply = render(item)
            within(reply["text"], size(item))
        except Exception as error:
            reply = _failed(error)
        _write(replies, reply)
    return None


def _timed(seconds: float) -> None:
    """Let this process be ended after so many seconds of its own time, also inside a library's C code."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _failed(error: Exception) -> dict[str, Any]:
    failed = failure(error)
    return {"error": failed.message, "line": failed.line, "exceeded": failed.exceeded}


# ---------------------------------------------------------------- kinds of templates


@lru_cache(KEPT)
def _prompt(source: str) -> tuple[dict[str, Any], Render]:
    """A judge prompt. Its variables are told first."""
    variables = sorted(meta.find_undeclared_variables(prompting.parse(source)))
    compiled = prompting.from_string(source)
    return {"variables": variables}, lambda values: {"text": compiled.render(**values)}


@lru_cache(KEPT)
def _chat(source: str) -> tuple[dict[str, Any], Render]:
    """A chat template, rendered as transformers does."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template  # its annotations are wrong

    def render(item: Mapping[str, Any]) -> dict[str, Any]:
        texts, spans = rendered(
            [item["messages"]],
            chat_template=source,
            return_assistant_tokens_mask=item["marks"],
            add_generation_prompt=item["generation_prompt"],
            **item["names"],
        )
        return {"text": texts[0], "spans": spans[0] if item["marks"] else []}

    return {}, render


_OPENED: dict[str, Callable[[str], tuple[dict[str, Any], Render]]] = {"prompt": _prompt, "chat": _chat}


# ---------------------------------------------------------------- the pipe


def _read(stream: BinaryIO) -> dict[str, Any] | None:
    head = stream.read(4)
    if len(head) < 4:
        return None
    request: dict[str, Any] = marshal.loads(stream.read(int.from_bytes(head, "big")))  # noqa: S302 - of our own parent
    return request


def _write(stream: BinaryIO, reply: dict[str, Any]) -> None:
    _timed(0)
    body = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


if __name__ == "__main__":
    main()
