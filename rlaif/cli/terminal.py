"""The console: JSON for scripts, progress, notes and errors for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from rlaif.screen import Console, Text, line, unguarded
from rlaif.visible import finite, visible, visible_json, visible_line

if TYPE_CHECKING:
    from rlaif.pipeline.progress import Silent


def console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr)


def say(text: str) -> None:
    """Print a line for a person; a long one is not wrapped."""
    console().print(line(text), soft_wrap=True)


def print_json(value: Any) -> None:
    out = unguarded(sys.stdout)
    encoding = getattr(out, "encoding", None) or "utf-8"
    ascii_only = not encoding.lower().startswith("utf")
    print(visible_json(finite(value), ascii_only=ascii_only), file=out, flush=True)


def progress(console: Console, title: str, *, as_json: bool) -> Silent:
    """A live screen on a terminal, plain lines elsewhere, nothing where the output is JSON."""
    from rlaif.pipeline.progress import Lines, Screen, Silent

    if as_json:
        return Silent()
    return Screen(console, title) if console.is_terminal else Lines(console)


def print_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(line(f"note: {note}", style="yellow"))


def print_shipped(console: Console, names: Sequence[str]) -> None:
    """The files of a pipeline that no project has: whoever edits one has to know which is used."""
    if names:
        console.print(line(f"from the package: {', '.join(names)}", style="dim"))


def brief(text: str, limit: int) -> str:
    """The beginning of a text in one line of at most `limit` characters."""
    text = visible_line(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def counted(count: int, what: str) -> str:
    """A number of things that make their plural with an s."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


INTERRUPTION = "interrupted; finished work is kept, run the same command again to continue"


def print_error(message: str) -> None:
    """Print an error in one line."""
    to = Console(stderr=True, soft_wrap=True, highlight=False)
    to.print(Text.assemble(("error: ", "bold red"), " ".join(visible(message).split("\n"))))


def fail(message: str, code: int) -> NoReturn:
    """Print an error in one line and exit."""
    print_error(message)
    sys.exit(code)
