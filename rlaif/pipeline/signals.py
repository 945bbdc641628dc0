"""What Ctrl-C and SIGTERM do while a stage runs."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rlaif.errors import Stopped
from rlaif.pipeline.stages.stage import Work


@contextmanager
def interruptible(work: Work, *, gentle: bool, blocks: bool) -> Iterator[None]:
    """With `gentle` the first Ctrl-C stops sending and keeps what is finished; the second ends immediately.

    Without it the first one ends immediately: a trainer resumes from its checkpoint. A stage that `blocks` the event
    loop is interrupted by the default handler. Outside the main thread handlers are unchanged.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        if gentle and work.session.scheduler.stopped is None:
            work.session.scheduler.stop(Stopped("interrupted", cause="interrupted"))
            work.progress.announce("interrupted: waiting for the calls in flight; press Ctrl-C again to end at once")
        else:
            task.cancel()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        if blocks:
            signal.signal(number, signal.default_int_handler)
        else:
            loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
