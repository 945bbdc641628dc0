"""One thread for one model in this process. It loads the model at the first verb and unloads it on `close`.

Knows threads and cancellation, nothing of what runs the model. One thread, because a model computes one batch at a
time, and because some libraries accept calls only from the thread that loaded the model.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


class Worker(Generic[Loaded]):
    """Runs verbs of the model that `load` gives. Both run in the worker's thread."""

    def __init__(self, name: str, load: Callable[[], Loaded]) -> None:
        self.name, self._load = name, load
        self.model: Loaded | None = None  # once it is loaded
        self._thread: ThreadPoolExecutor | None = None

    async def run(self, verb: Callable[[Loaded, threading.Event], Result]) -> Result:
        """The result of `verb`. Cancelling the caller sets the event, which a verb checks between its batches."""
        stopped = threading.Event()

        def work() -> Result:
            if self.model is None:
                self.model = self._load()
            return verb(self.model, stopped)

        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"rlaif-{self.name}")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            stopped.set()

    async def close(self, release: Callable[[Loaded], None] = lambda model: None) -> None:
        """Call `release` on a loaded model and end the thread. A later verb loads the model again."""
        thread, self._thread = self._thread, None
        model, self.model = self.model, None
        if model is not None and thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, release, model)
        if thread is not None:
            await asyncio.to_thread(thread.shutdown)
