"""How the process ends on a signal, and where the system leaves it too little to work with.

Imported before anything else, so it imports next to nothing: Ctrl-C before its handler is set shows Python's traceback.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # without the enumerations, which take milliseconds to load
import os
import sys

TYPE_CHECKING = False  # `typing` would be loaded for it
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Timer
    from types import FrameType, TracebackType
    from typing import Any, NoReturn

INTERRUPTED: int = 128 + signal.SIGINT
ENDING: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 0.6  # seconds after a second Ctrl-C in which the process may end by itself
AGAIN = 0.01  # seconds after which a lost interruption comes again
NO_MEMORY = ("Cannot allocate memory", "can't start new thread", "failed to map segment")  # as libraries say it


class Handled:
    """Signals go to these handlers in a block; one that is ignored, as `nohup` ignores SIGHUP, stays so."""

    def __init__(self, handlers: dict[int, Callable[[int, FrameType | None], object]]) -> None:
        self._handlers = handlers
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number, handler in self._handlers.items():
            before = signal.getsignal(number)
            try:
                if before is not signal.SIG_IGN:
                    signal.signal(number, handler)
                    self._before[number] = before
            except ValueError:  # outside the main thread no signal arrives
                return

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


class Ending:
    """A block that is a process's whole work: what a person does to end it is an exit code, and never a traceback.

    The code is 128 and the signal's number, as a shell has it. Too little memory, or too few files, is one line.

    Compiled code that cannot hand an exception on prints it and goes on, also a KeyboardInterrupt, as do finalisers.
    Here such an interruption comes again once that code has returned.
    """

    code = INTERRUPTED
    hurried = False  # nothing is waited for, not even the interpreter's own end

    def __init__(self) -> None:
        Ending.code, Ending.hurried = INTERRUPTED, False
        self._again: Timer | None = None
        self._printing: tuple[Any, Any] = sys.unraisablehook, sys.excepthook
        self._handled = Handled(dict.fromkeys(ENDING[1:], self._interrupt))

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The work ends as on Ctrl-C: whoever hears of that hears of this, once."""
        Ending.code = 128 + number
        heard = signal.getsignal(signal.SIGINT)
        if getattr(heard, "__name__", "") == "_sighandler_noop":  # asyncio's loop hears of an arrival alone
            os.kill(os.getpid(), signal.SIGINT)
        elif callable(heard):
            heard(signal.SIGINT, frame)
        else:  # it is ignored, as in a job that a script started in the background
            raise KeyboardInterrupt

    def _is_heard(self, lost: object) -> bool:
        """Whether what is about to be printed is an interruption."""
        if lost is not KeyboardInterrupt:
            return False
        from threading import Timer

        self._again = Timer(AGAIN, os.kill, (os.getpid(), self.code - 128))
        self._again.daemon = True
        self._again.start()
        return True

    def __enter__(self) -> None:
        unraisable, uncaught = self._printing
        sys.unraisablehook = lambda lost: None if self._is_heard(lost.exc_type) else unraisable(lost)
        sys.excepthook = lambda kind, *more: None if self._is_heard(kind) else uncaught(kind, *more)
        self._handled.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._again is not None:
            self._again.cancel()
        self._handled.__exit__()
        if Ending.hurried and isinstance(error, KeyboardInterrupt | SystemExit):
            _end()
        sys.unraisablehook, sys.excepthook = self._printing
        if self._again is not None and error is None:
            sys.exit(self.code)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(self.code)
        if isinstance(error, SystemExit) and error.code == INTERRUPTED:
            error.code = self.code
        if error is not None and (sentence := too_little(error)) is not None:
            sys.stderr.write(f"error: {ascii(sentence)[1:-1]}\n")
            sys.stderr.flush()
            os._exit(1)  # without memory, libraries crash as they are taken down


def _end() -> NoReturn:
    """End the process without its threads, and with the processes that an engine started."""
    processes = sys.modules.get("multiprocessing")
    for child in processes.active_children() if processes else ():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - contextlib is not loaded yet where this module is
            stream.flush()
        except (OSError, ValueError):  # closed, or its reader is gone
            pass
    os._exit(Ending.code)


def leave_soon(say: Callable[[], object]) -> None:
    """End the process within a second, whatever its threads compute; before that, `say` what there is to say.

    What is finished is on disk: a kill loses no more.
    """
    import threading

    Ending.hurried = True

    def end() -> None:
        try:
            say()
        finally:
            _end()

    timer = threading.Timer(PATIENCE, end)
    timer.daemon = True  # a process that ends by itself does not wait for it
    timer.start()


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End at once and in silence: while the program is being loaded there is nothing to keep."""
    os._exit(128 + number)


def too_little(error: BaseException) -> str | None:
    """What the system had too little of for the program to work, in a sentence; None for any other error."""
    words = " ".join(str(error).split())
    # What a library does after a MemoryError may fail in any way.
    memory = any(isinstance(each, MemoryError) for each in (error, error.__context__))
    if memory or any(sign in words for sign in NO_MEMORY):
        problem = "there is not enough memory"
        fix = "raise the limit (`ulimit -v`, or `ulimit -u` for threads), or free some memory"
    elif "Too many open files" in words:
        problem, fix = "too many files are open", "raise the limit (`ulimit -n`)"
    elif isinstance(error, ImportError) and not str(error.name).startswith("rlaif"):
        problem, fix = f"a library cannot be loaded: {words}", "install the package again"
    else:
        return None
    return f"{problem}; finished work is kept. Fix: {fix}"
