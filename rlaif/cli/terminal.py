"""The console: JSON for scripts, progress and notes for people, and other people's text made safe to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rlaif.pipeline.progress import Silent


def console(*, stderr: bool = False) -> Console:
    """No markup: what is printed holds other people's words. Styles are given as `Text`."""
    return Console(stderr=stderr, markup=False, emoji=False)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def progress(console: Console, title: str, *, as_json: bool) -> Silent:
    """A live screen on a terminal, plain lines elsewhere, nothing where the output is JSON."""
    from rlaif.pipeline.progress import Lines, Screen, Silent

    if as_json:
        return Silent()
    return Screen(console, title) if console.is_terminal else Lines(console)


def print_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(Text(f"note: {note}", style="yellow"))


def plain(text: str) -> str:
    """A model's words without characters that control the terminal: no escape sequence of theirs reaches it."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "\ufffd" for c in text)


def brief(text: str, limit: int) -> str:
    """The beginning of a text in one line of at most `limit` characters."""
    text = plain(" ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def fail(message: str, code: int) -> NoReturn:
    """Print an error in one line and exit."""
    to = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
    to.print(Text.assemble(("error: ", "bold red"), " ".join(plain(message).splitlines())))
    sys.exit(code)
