"""Templates are rendered on a sample row before anything is paid for: one that fails or omits a text is an error."""

from __future__ import annotations

from rlaif.records import Candidate, Completion, Message, Prompt, Row
from rlaif.resources import find
from rlaif.templates import Template

# Texts of several lines, so that a template that joins or splits lines is found.
REHEARSED = Row(
    prompt=Prompt(messages=(Message(role="user", content="A prompt\nof two lines?"),), reference=("A true\nanswer.",)),
    candidates=tuple(
        Candidate(sampler="s", completion=Completion(text=f"Completion\nnumber {n}.", model="m", call=str(n)))
        for n in (1, 2)
    ),
)


def read_template(path: str, offered: set[str], required: set[str]) -> Template:
    """The template at `path`. Raises InputError when it uses an unknown variable or omits a required one."""
    template = Template.read(find(path))
    template.check(offered, required)
    return template
