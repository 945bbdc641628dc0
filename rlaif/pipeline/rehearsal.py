"""Templates are rendered on a sample row before anything is paid for: one that fails or omits a text is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rlaif.constitution import Asked, Principle
from rlaif.errors import InputError
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


def rehearse(
    principles: Iterable[Principle], asked: Callable[[Principle], Iterator[Asked]], **templates: Template
) -> None:
    """Make every request of these principles once; `templates` are those of each request.

    Raises InputError where one cannot be made, or where a template shows the rule of a principle that has none.
    """
    for principle in principles:
        list(asked(principle))
        if principle.rule:
            continue
        for each in asked(principle.model_copy(update={"rule": _STANDS})):
            if any(_STANDS in message.content for message in each.messages):
                raise InputError(
                    f"the template shows `principle.rule`, and the principle {principle.id!r} has none",
                    file=templates[each.request].path,
                    fix="give it a `rule`, or show the request instead",
                )


_STANDS = "the rule stands here"
