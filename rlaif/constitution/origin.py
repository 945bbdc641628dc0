"""Where an imported constitution came from: what its file's shape puts around each text, to write that file again.

No prompt holds any of it. Knows no shape: `shapes` fills it in and uses it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from rlaif.config import Name, Settings

Shape = Literal["anthropic", "llm-swarm"]
TEXT = "{text}"  # where the text stands in what is around it


def _holds_the_text(cue: str) -> str:
    if cue.count(TEXT) != 1:
        raise ValueError(f"write {TEXT} once, where the principle's own words stand")
    return cue


class Cues(Settings):
    """What stands around each request: cue words and white space."""

    critique: str = TEXT
    revision: str = TEXT
    comparison: str = TEXT

    _check = field_validator("*")(_holds_the_text)


class OddCues(Settings):
    """What stands around the requests of one principle, where that differs from the others."""

    critique: str | None = None
    revision: str | None = None
    comparison: str | None = None

    @field_validator("*")
    @classmethod
    def _check(cls, cue: str | None) -> str | None:
        return None if cue is None else _holds_the_text(cue)


class Frame(Settings):
    """What stands before the first message of an example, between two, and after the last."""

    file: str
    between: tuple[str, ...] = Field(min_length=3)
    incorrects: tuple[str, ...] = ()  # completions that the file calls wrong


class Layout(Settings):
    """How a file's JSON is set."""

    indent: int | str | None = None
    compact: bool = False  # no space behind `,` and `:`
    ascii: bool = True  # other characters as escapes
    end: str = ""  # behind the last bracket


class Frames(Settings):
    revision: tuple[Frame, ...] = ()  # of a critique's and a revision's examples, which are the same
    comparison: tuple[Frame, ...] = ()


class Origin(Settings):
    """The shape of the files that a constitution came from, and what they hold beside its words."""

    shape: Shape
    cues: Cues = Cues()
    odd: dict[Name, OddCues] = {}
    frames: Frames = Frames()
    layouts: dict[str, Layout] = {}
