"""The errors a user can meet, and the exit code of each.

RlaifError
|-- InputError        2   a file, key, option or template is wrong; nothing was started
`-- WorkError         1   the work itself failed, or is incomplete
    |-- EngineError       a model or a server failed
    |   `-- Stopped       no more calls are sent, since the run is stopping
    `-- StoreError        the call store cannot be read or written
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from rlaif.visible import visible


class RlaifError(Exception):
    """Every error of this package. The message is one sentence; where it happened and the fix are kept apart.

    Its text is visible text, since it is printed by others, too: what a server or a file says stands in it.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.file, self.line, self.key, self.fix = message, file, line, key, fix

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        parts = [part for part in (where, f"`{self.key}`" if self.key else "", self.message) if part]
        text = ": ".join(parts)
        return visible(f"{text}. Fix: {self.fix}" if self.fix else text)


class InputError(RlaifError):
    exit_code = 2


class WorkError(RlaifError):
    """The work failed or is incomplete; what was finished is kept."""


class EngineError(WorkError):
    """A model or a server failed.

    `cause` is a short word by which failures are grouped and counted. `retryable`: the failure may be transient.
    `fatal`: no other request can succeed either (server down, key refused, model unknown), so the run should stop.
    `wait`: how many seconds the server asked to wait; None where it did not say. `usage`: the tokens of an answer that
    could not be used (a `records.Usage`). `lost`: an answer may have been paid for and could not be read.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str = "engine",
        retryable: bool = False,
        fatal: bool = False,
        fix: str | None = None,
        wait: float | None = None,
        usage: Any = None,
        lost: bool = False,
    ) -> None:
        super().__init__(message, fix=fix)
        self.cause, self.retryable, self.fatal = cause, retryable, fatal
        self.wait, self.usage, self.lost = wait, usage, lost


class Stopped(EngineError):
    """No more calls are sent: the run is stopping. Finished calls stay, and the same command resumes the run."""


class StoreError(WorkError):
    """The call store cannot be read or written."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...` with the closest known names, or the whole list when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else f"use one of {', '.join(known)}"
