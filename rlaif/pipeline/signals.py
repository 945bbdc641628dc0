"""What an interruption does: Ctrl-C and SIGTERM in the command line, an interrupted cell in a notebook."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlaif.errors import Stopped
from rlaif.pipeline.stages.stage import Work


class Interrupts:
    """Ends the stage that runs.

    The first interruption of a gentle stage stops sending and keeps what is finished; the second ends it immediately.
    Any other stage ends at the first: a trainer resumes from its checkpoint. At each after the first, `hurry` is called
    too: what computes in another thread cannot be cancelled.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self.hurry: Callable[[], None] = lambda: None
        self.heard = 0
        self._task: asyncio.Task[object] | None = None
        self._gentle = False

    def interrupt(self) -> None:
        """Called in the run's event loop."""
        self.heard += 1
        if self.heard > 1:
            self.hurry()
        scheduler = self._work.session.scheduler
        if self._gentle and scheduler.stopped is None:
            scheduler.stop(Stopped("interrupted", cause="interrupted"))
            waiting = "interrupted: waiting for the calls in flight; press Ctrl-C again to end at once"
            self._work.progress.announce(waiting)
        elif self._task is not None:
            self._task.cancel()

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Interruptions go to the whole run that the block is, also before its first stage and between two."""
        self._task = asyncio.current_task()
        with self._handled(blocks=False):
            yield

    @contextmanager
    def watched(self, *, gentle: bool, blocks: bool) -> Iterator[None]:
        """Interruptions go to the stage that the block runs.

        A stage that `blocks` never gives the event loop its turn, so there the signal itself has to break in. Outside
        the main thread no signal arrives, and `interrupt` is called by whoever waits for the run.
        """
        self._task, self._gentle = asyncio.current_task(), gentle
        with self._handled(blocks=blocks):
            yield

    @contextmanager
    def _handled(self, *, blocks: bool) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
        if (terminated := signal.getsignal(signal.SIGTERM)) is signal.SIG_DFL:  # the command line has a handler
            before[signal.SIGTERM] = terminated
        for number in before:
            if blocks:
                signal.signal(number, signal.default_int_handler)
            else:
                loop.add_signal_handler(number, self.interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)
