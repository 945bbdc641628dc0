"""The event loop of a run, and the garbage collector meanwhile."""

from __future__ import annotations

import asyncio
import gc
import resource
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from rlaif.errors import WorkError

LEAST_FILES = 64  # the event loop, the store, the stages' files and a few connections

Result = TypeVar("Result")


def run_to_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end, on uvloop if installed, with rare garbage collections.

    Calls create many objects and almost no cycles. The collector is restored at the end, since libraries
    report frozen objects as leaks at exit. Raises KeyboardInterrupt when the work was cancelled, by a
    second Ctrl-C or by one with nothing in flight.
    """
    if (files := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < LEAST_FILES:
        work.close()
        fix = "raise the limit: ulimit -n 1024"
        raise WorkError(f"only {files} files may be open at once, too few to start", fix=fix)
    try:
        with RareCollections():
            return _on_fastest_loop(work)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


class RareCollections:
    """Several runs of a process, in threads, share them: the last to end restores what the first one found."""

    _lock, _running, _thresholds = threading.Lock(), 0, (0, 0, 0)

    def __enter__(self) -> None:
        kind = type(self)
        with kind._lock:
            if kind._running == 0:
                kind._thresholds = gc.get_threshold()
                gc.set_threshold(50_000, 20, 100)
            gc.freeze()  # again, for what was imported since
            kind._running += 1

    def __exit__(self, *_: object) -> None:
        kind = type(self)
        with kind._lock:
            kind._running -= 1
            if kind._running == 0:
                gc.unfreeze()
                gc.set_threshold(*kind._thresholds)


def _on_fastest_loop(work: Coroutine[Any, Any, Result]) -> Result:
    try:
        import uvloop
    except ImportError:  # it does not exist for Windows
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
