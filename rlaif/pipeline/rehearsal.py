"""Templates are rehearsed before anything is paid for: one that cannot be rendered, or hides what must be seen, is
found at once."""

from __future__ import annotations

from rlaif.records import Candidate, Completion, Message, Prompt, Row
from rlaif.resources import find
from rlaif.templates import Template

# What a template is rendered with: several lines, so that one that makes lines of its own is seen.
REHEARSED = Row(
    prompt=Prompt(messages=(Message(role="user", content="A prompt\nof two lines?"),), reference=("A true\nanswer.",)),
    candidates=tuple(
        Candidate(sampler="s", completion=Completion(text=f"Completion\nnumber {n}.", model="m", call=str(n)))
        for n in (1, 2)
    ),
)


def read_template(path: str, offered: set[str], required: set[str]) -> Template:
    """The template at `path`. Raises InputError where it uses what nobody fills, or leaves out what must be shown."""
    template = Template.read(find(path))
    template.check(offered, required)
    return template
