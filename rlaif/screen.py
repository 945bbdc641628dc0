"""The one door to the screen: whatever is printed is escaped where it does not come from us.

A console renders only visible text; `Text` becomes visible when it is made, so that tables know its width; and inside
`guarded` so does what others print, such as libraries' warnings and logs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from rich import console, segment, text

from rlaif.files import regular
from rlaif.visible import visible

if TYPE_CHECKING:
    from rich.markdown import Markdown


class Text(text.Text):
    """Styled text, made visible."""

    def __init__(self, plain: str = "", style: Any = "", **settings: Any) -> None:
        super().__init__(visible(plain), style, **settings)

    def append(self, text: Any, style: Any = None) -> Any:
        return super().append(visible(text) if isinstance(text, str) else text, style)

    @classmethod
    def assemble(cls, *parts: Any, **settings: Any) -> Text:
        return cast(Text, super().assemble(*parts, **settings))


def line(*parts: str | tuple[str, str], style: str = "", **settings: Any) -> Text:
    """Text in one line, whatever names stand in it: a line end is shown as an escape."""
    texts = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((visible(text).replace("\n", r"\n"), look) for text, look in texts), style=style, **settings)


class Console(console.Console):
    """No markup: what is printed holds other people's words. Styles are given as `Text`."""

    def __init__(self, *, stderr: bool = False, **settings: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, **settings)

    @property
    def file(self) -> IO[str]:
        return unguarded(super().file)

    @file.setter
    def file(self, file: IO[str]) -> None:
        self._file = file

    @property
    def size(self) -> console.ConsoleDimensions:
        """The size of the terminal that it writes to, whatever the standard streams are."""
        if self._width is None and self.is_terminal:
            with suppress(OSError, ValueError):
                return console.ConsoleDimensions(*os.get_terminal_size(self.file.fileno()))
        return super().size

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size

    def render_str(self, text: str, **settings: Any) -> text.Text:
        return super().render_str(visible(text), **settings)

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[segment.Segment]:
        """The last look at what any renderable made: only rich's own control codes pass, and no link."""
        for part in super().render(renderable, options):
            if part.control:
                yield part
            else:
                style = part.style.update_link(None) if part.style and part.style.link else part.style
                yield segment.Segment(visible(part.text), style)


def markdown(source: str) -> Markdown:
    from rich.markdown import Markdown  # a run shows none, and its parser takes a tenth of a start

    return Markdown(visible(source), hyperlinks=False)


class Guard:
    """A standard stream to which others print: what they write is made visible. Consoles write to the stream itself."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.rich_proxied_file = unguarded(stream)  # where rich looks for the stream behind this one

    def write(self, written: str) -> int:
        bar = _BAR.match(written)
        moves = bar[0] if bar else ""
        self._stream.write(moves + visible(written[len(moves) :]))
        return len(written)

    def become(self, stream: IO[str]) -> None:
        """From now on, write to another stream."""
        self._stream = self.rich_proxied_file = stream

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_BAR = re.compile(r"(?:\r|\n|\x1b\[A)+")  # how a progress bar returns to its line, before what it says


def unguarded(stream: IO[str]) -> IO[str]:
    """The stream behind guards, and behind rich's own proxy while a live table is shown."""
    while (behind := getattr(stream, "rich_proxied_file", None)) is not None:
        stream = behind
    return stream


@contextmanager
def guarded() -> Iterator[None]:
    """Whatever is printed inside, by whomever, is made visible."""
    with redirect_stdout(Guard(sys.stdout)), redirect_stderr(Guard(sys.stderr)):
        yield


@contextmanager
def diverted(path: Path) -> Iterator[None]:
    """What others print inside, also processes that they start, is appended to a file, while consoles write on.

    A file that stays empty is removed again. Raises OSError.
    """
    descriptor = regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW)
    log = open(descriptor, "a", 1, "utf-8", "backslashreplace")  # noqa: SIM115 - closed below, where it may fail
    try:
        with _diverted("stdout", 1, log), _diverted("stderr", 2, log):
            yield
    finally:
        with suppress(OSError):  # its disk is full: what libraries print is no reason to fail
            log.close()
        remove_empty(path)


def remove_empty(log: Path) -> None:
    with suppress(OSError):  # it is gone already
        if log.stat().st_size == 0:
            log.unlink()


class _Log(Guard):
    """A standard stream whose text goes to a log; `rich_proxied_file` is where consoles write meanwhile."""

    def write(self, written: str) -> int:
        with suppress(OSError):
            super().write(written)
        return len(written)


@contextmanager
def _diverted(name: str, number: int, log: IO[str]) -> Iterator[None]:
    """A standard stream, in this program and with its number for the whole process, as the log."""
    before, diverting = getattr(sys, name), _Log(log)
    stream = unguarded(before)
    try:
        ours = stream.fileno() == number
    except (OSError, ValueError):  # a test's stream, or a notebook's, has no number
        ours = False
    kept = None
    if ours:
        stream.flush()
        encoding = cast(TextIO, stream).encoding
        kept = open(os.dup(number), "w", 1, encoding, "backslashreplace")  # noqa: SIM115 - closed below
        os.dup2(log.fileno(), number)
    diverting.rich_proxied_file = kept or stream
    setattr(sys, name, diverting)
    try:
        yield
    finally:
        setattr(sys, name, before)
        diverting.become(stream)  # a library's log handler may hold it
        if kept is not None:
            stream.flush()
            os.dup2(kept.fileno(), number)
            with suppress(OSError):  # the reader of a pipe is gone
                kept.close()
