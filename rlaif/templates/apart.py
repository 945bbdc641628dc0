"""Templates that may cost anything, rendered in another process (`worker`), which is ended when they do.

There is one such process for each kind of template, started when the first of its kind is rendered, and again after it
was ended. It gets no keys: its environment holds what Python needs and no more.
"""

from __future__ import annotations

import atexit
import json
import marshal
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from rlaif.templates.failures import MOST_SECONDS, MOST_WRITTEN, TOO_LONG, TemplateFailure

Kind = Literal["prompt", "chat"]
Reply = dict[str, Any]

# The process ends itself after MOST_SECONDS of its own time. This is for one that never does: it is stopped, or the
# machine is. It includes the start of Python and the import of transformers.
MOST_WAIT = 60.0
LONGEST_REPLY = 8 * MOST_WRITTEN  # bytes: a character is four at most, two of them an escaped one
MOST_AT_ONCE = 256  # renderings in one request, which is in memory twice
MOST_EXCEEDED = 3  # renderings of one template that exceed what they may cost; the others then fail without a try
NO_REPLY = "the process that renders it wrote what is no reply"
KEPT_VARIABLES = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "TZ")


class Apart:
    """One template that is rendered in another process."""

    def __init__(self, kind: Kind, source: str) -> None:
        self.kind, self.source = kind, source
        self._exceeded = 0

    def open(self) -> Reply:
        """What the process says of the template: the `variables` of a prompt. Raises TemplateFailure."""
        opened = _told(_PROCESSES[self.kind].ask(self.source, ())[0])
        if isinstance(opened, TemplateFailure):
            raise opened
        return opened

    def render(self, items: Sequence[Mapping[str, Any]]) -> list[Reply | TemplateFailure]:
        """Each item rendered, as a mapping with its `text`; or why it was not."""
        rendered: list[Reply | TemplateFailure] = []
        while len(rendered) < len(items) and self._exceeded < MOST_EXCEEDED:
            rest = items[len(rendered) : len(rendered) + MOST_AT_ONCE]
            opened, *replies = map(_told, _PROCESSES[self.kind].ask(self.source, rest))
            # Without a reply to an item, it was the template that failed.
            tried = replies or [opened if isinstance(opened, TemplateFailure) else _given_up()]
            self._exceeded += sum(isinstance(reply, TemplateFailure) and reply.exceeded for reply in tried)
            rendered += tried
        return rendered + [_given_up() for _ in items[len(rendered) :]]


def _given_up() -> TemplateFailure:
    return TemplateFailure(f"{MOST_EXCEEDED} times it cost more than a template may", exceeded=True)


def _told(reply: Reply) -> Reply | TemplateFailure:
    """The reply, checked: a template may have taken over who wrote it."""
    error, line, text = reply.get("error"), reply.get("line"), reply.get("text", "")
    if error is not None:
        return TemplateFailure(
            str(error), line=line if isinstance(line, int) else None, exceeded=bool(reply.get("exceeded"))
        )
    return reply if isinstance(text, str) else TemplateFailure(NO_REPLY, exceeded=True)


class _Process:
    """A process that renders one kind of template."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None

    def ask(self, source: str, items: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """The reply that opens the template, then one for each item, down to the one that ended the process."""
        with self._lock:
            is_new = self._running is None
            replies = self._asked(source, items)
            if not is_new and len(replies) == 1 and replies[0].get("gone"):  # something else had ended it before
                replies = self._asked(source, items)
            return replies

    def _asked(self, source: str, items: Sequence[Mapping[str, Any]]) -> list[Reply]:
        replies: list[Reply] = []
        try:
            self._send({"kind": self.kind, "source": source, "items": list(items), "seconds": MOST_SECONDS})
            while len(replies) < 1 + len(items):
                replies.append(self._receive())
                if len(replies) == 1 and "error" in replies[0]:
                    break
        except (OSError, EOFError, ValueError) as error:
            replies.append(self._end(error))
        except BaseException:
            self.close()
            raise
        return replies

    def close(self) -> None:
        """End the process."""
        running, self._running = self._running, None
        if running is not None:
            running.kill()
            running.communicate()

    def _end(self, error: Exception) -> Reply:
        """End the process. The reply that it did not give."""
        running = self._running
        if running is None:
            return {"error": f"the process that renders it does not start: {error}"}
        if isinstance(error, EOFError | BrokenPipeError):
            with suppress(subprocess.TimeoutExpired):
                running.wait(1)
        self.close()
        if isinstance(error, TimeoutError) or running.returncode == -signal.SIGPROF:
            return {"error": TOO_LONG, "exceeded": True}
        if isinstance(error, ValueError):
            return {"error": NO_REPLY, "exceeded": True}
        ended = f"it ended the process that renders it (exit code {running.returncode})"
        return {"error": ended, "exceeded": True, "gone": True}

    def _send(self, request: dict[str, Any]) -> None:
        if self._running is not None and self._running.poll() is not None:
            self.close()
        if self._running is None:
            self._running = _started(self.kind)
        body = marshal.dumps(request)
        self._write(len(body).to_bytes(4, "big") + body, time.monotonic() + MOST_WAIT)

    def _write(self, data: bytes, deadline: float) -> None:
        """Write all of it. Raises TimeoutError when the process does not read, or BrokenPipeError when it has ended."""
        assert self._running is not None and self._running.stdin is not None
        pipe = self._running.stdin.fileno()
        waiting = select.poll()
        waiting.register(pipe, select.POLLOUT)
        left = memoryview(data)
        while left:
            if not waiting.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                raise TimeoutError
            left = left[os.write(pipe, left) :]

    def _receive(self) -> Reply:
        deadline = time.monotonic() + MOST_WAIT
        length = int.from_bytes(self._bytes(4, deadline), "big")
        if length > LONGEST_REPLY:
            raise ValueError(NO_REPLY)
        reply = json.loads(self._bytes(length, deadline).decode("utf-8", "surrogatepass"))
        if not isinstance(reply, dict):
            raise ValueError(NO_REPLY)
        return reply

    def _bytes(self, count: int, deadline: float) -> bytes:
        """The next bytes that the process writes. Raises TimeoutError, or EOFError when it has ended."""
        assert self._running is not None and self._running.stdout is not None
        pipe = self._running.stdout.fileno()
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        read = bytearray()
        while len(read) < count:
            if not waiting.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                raise TimeoutError
            if not (piece := os.read(pipe, min(count - len(read), 1 << 20))):
                raise EOFError
            read += piece
        return bytes(read)


def started(
    module: str, *arguments: str, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[bytes]:
    """A process of a module of ours, without keys, which neither Ctrl-C nor Ctrl-Z reaches but through this one."""
    package = Path(__file__).parents[2]
    path = [str(package), *(os.path.abspath(folder) for folder in sys.path if folder)]
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={**environment, **variables, "PYTHONPATH": os.pathsep.join(path)},
        start_new_session=True,
    )


def _started(kind: Kind) -> subprocess.Popen[bytes]:
    process = started("rlaif.templates.worker", kind)
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)  # one that does not read must not be waited for without end
    return process


_PROCESSES: dict[Kind, _Process] = {kind: _Process(kind) for kind in ("prompt", "chat")}


@atexit.register
def close() -> None:
    """End the processes."""
    for process in _PROCESSES.values():
        process.close()


def _forget() -> None:
    """In a fork of this process: what it started is not the fork's, which starts its own."""
    for process in _PROCESSES.values():
        process.__init__(process.kind)  # type: ignore[misc]


os.register_at_fork(after_in_child=_forget)
