"""The one door to the screen: whatever is printed is escaped where it does not come from us.

A console renders only visible text; `Text` becomes visible when it is made, so that tables know its width; and inside
`guarded` so does what others print, such as libraries' warnings and logs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO, TYPE_CHECKING, Any, cast

from rich import console, segment, text

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
