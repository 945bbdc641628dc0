"""Why a template could not be rendered, in words that stand after `the template cannot be rendered: `."""

from __future__ import annotations

import sys
import traceback

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.sandbox import MAX_RANGE

from rlaif.records import oneline

# What a template may cost. The longest prompts that models read (10 million tokens) are within the last two; a chat
# template renders in a millisecond.
MOST_SOURCE = 200_000  # characters of a template; the longest published chat templates have 30,000
MOST_SECONDS = 3.0  # of processor time for one rendering
MOST_MEMORY = 512  # MB for one rendering
MOST_WRITTEN = 32_000_000  # characters of one rendering
WORDS = 200  # of a template's own words that an error repeats

TOO_LONG = f"it takes more than {MOST_SECONDS:g} seconds"
TOO_LARGE = f"it needs more than {MOST_MEMORY} MB of memory"


class TemplateFailure(Exception):
    """A template that was not rendered. `exceeded`: it would have cost more than a template may."""

    def __init__(self, message: str, *, line: int | None = None, exceeded: bool = False) -> None:
        super().__init__(message)
        self.message, self.line, self.exceeded = message, line, exceeded


def failure(error: Exception) -> TemplateFailure:
    """What a template's own code raised, as a failure."""
    if isinstance(error, TemplateFailure):
        return error
    if isinstance(error, MemoryError):
        return TemplateFailure(TOO_LARGE, exceeded=True)
    return TemplateFailure(_words(error), line=_line(error))


def _words(error: Exception) -> str:
    if isinstance(error, SecurityError):
        return "it uses an attribute or a method that templates may not reach"
    if isinstance(error, RecursionError) or (isinstance(error, SyntaxError) and "too many" in str(error)):
        return "it is nested too deeply"
    if isinstance(error, OverflowError) and "Range too big" in str(error):
        return f"it makes a range of more than {MAX_RANGE:,} numbers"
    if isinstance(error, ValueError) and "digits" in str(error):
        return f"it makes a number of more than {sys.get_int_max_str_digits():,} digits"
    if isinstance(error, jinja2.TemplateSyntaxError):
        words = oneline(error.message or "")
    elif isinstance(error, jinja2.TemplateError):
        words = oneline(str(error))
    else:
        words = oneline(f"{error} ({type(error).__name__})")
    return words if len(words) <= WORDS else words[: WORDS - 3] + "..."


def _line(error: Exception) -> int | None:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return lines[-1] if lines else None
