"""The event loop of a run, and the garbage collector meanwhile."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_to_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end, on uvloop if installed, with rare garbage collections.

    Calls create many objects and almost no cycles. The collector is restored at the end, since libraries
    report frozen objects as leaks at exit. Raises KeyboardInterrupt when the work was cancelled, by a
    second Ctrl-C or by one with nothing in flight.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        return _on_fastest_loop(work)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def _on_fastest_loop(work: Coroutine[Any, Any, Result]) -> Result:
    try:
        import uvloop
    except ImportError:  # it does not exist for Windows
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
