"""The constitution: principles, each with the requests that put it to a model, and the draw of one for a prompt.

Knows the file, its checks and the draw. How a request is rendered is a template's business, how a reply is read the
stages'. After Constitutional AI (arXiv 2212.08073), where every critique and every comparison draws one principle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from pydantic import Field, field_validator, model_validator

from rlaif.config import Document, Name, Settings, Text, TextCheck, read_named_set, unchecked
from rlaif.constitution.origin import Origin
from rlaif.errors import InputError, nearest, raise_all
from rlaif.records import Message, digest, unit_interval

Request = Literal["critique", "revision", "comparison"]
REQUESTS: tuple[Request, ...] = get_args(Request)
RULE = "{rule}"  # where the rule stands in a request that is made of it


class Requests(Settings):
    """How a request is made of a principle's rule, where the principle has none of its own."""

    critique: Text = f"Name every part of the completion that breaks this rule: {RULE} If nothing in it does, say so."
    revision: Text = f"Rewrite the completion so that it keeps this rule: {RULE} Leave everything else as it is."
    comparison: Text = f"Prefer the completion that keeps this rule better: {RULE}"

    @field_validator(*REQUESTS)
    @classmethod
    def _holds_the_rule(cls, request: str) -> str:
        if RULE not in request:
            raise ValueError(f"write {RULE} where the principle's rule is to stand")
        return request


class Principle(Settings):
    """One rule, and the three requests made of it. A call's prompt holds only the request it makes.

    A request that the file does not give is made of the rule (`Requests`). Without a rule, a principle has only the
    requests that the file gives, the others are empty, and only the stages that make those draw it. Renaming a
    principle re-draws prompts; with its old id under `was` it does not.
    """

    id: Name
    rule: Text = ""
    critique: Text = ""
    revision: Text = ""
    comparison: Text = ""
    weight: float = Field(default=1.0, gt=0, le=1_000_000, strict=True)
    was: Name | None = None

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Principle:
        if not self.rule and not any(getattr(self, request) for request in REQUESTS):
            raise ValueError("there is no `rule`, and no request of its own; add a `rule`")
        if bool(self.critique) != bool(self.revision):
            given, missing = ("critique", "revision") if self.critique else ("revision", "critique")
            raise ValueError(f"a `{given}` needs a `{missing}`; add it, or a `rule` that it can be made of")
        return self

    @property
    def drawn_as(self) -> str:
        return self.was or self.id


Chat = tuple[Message, ...]


class Examples(Settings):
    """Chats that a model sees before a request of each kind: few-shot examples, as user and assistant."""

    critique: tuple[Chat, ...] = ()
    revision: tuple[Chat, ...] = ()
    comparison: tuple[Chat, ...] = ()

    @field_validator(*REQUESTS)
    @classmethod
    def _take_turns(cls, chats: tuple[Chat, ...]) -> tuple[Chat, ...]:
        for number, chat in enumerate(chats, 1):
            roles = [message.role for message in chat]
            if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
                raise ValueError(
                    f"chat {number}: an example is turns of `user` and `assistant`, and ends with the latter"
                )
        return chats


class Constitution(Settings):
    """A named set of principles, with what every request begins with: a preamble (the system message) and examples."""

    nowhere = {"version": "remove it: the run keeps the whole text, and its digest tells versions apart"}

    name: Name
    preamble: Text | None = None
    requests: Requests = Requests()
    examples: Examples = Examples()
    principles: tuple[Principle, ...] = Field(min_length=1)
    origin: Origin | None = None

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, read: Any) -> Any:
        """`- id: rule` as a principle of that id and rule; the requests that a principle does not give, of its rule."""
        if not isinstance(read, dict) or not isinstance(read.get("principles"), list | tuple):
            return read
        own = read.get("requests")
        templates = Requests().model_dump() | (own if isinstance(own, dict) else {})
        return read | {"principles": [_with_requests(_long(item), templates) for item in read["principles"]]}

    @property
    def digest(self) -> str:
        """Of what reaches a prompt or decides a draw."""
        return digest(self.model_dump(mode="json", exclude={"origin"}))

    def having(self, request: Request) -> tuple[Principle, ...]:
        """The principles that have this request."""
        return tuple(principle for principle in self.principles if getattr(principle, request))

    def before(self, request: Request) -> tuple[Message, ...]:
        """The messages that come before a request of this kind."""
        system = () if self.preamble is None else (Message(role="system", content=self.preamble),)
        return (*system, *(message for chat in getattr(self.examples, request) for message in chat))

    def draw(self, *salt: str, request: Request, position: int = 0) -> Principle:
        """The principle at `position`, from 0, of an order drawn for `salt`; a heavier principle is earlier more often.

        It is one of those that have `request`; there must be one. Weighted rendezvous hashing: the key of a principle
        depends on its own id and weight alone, so adding one re-draws only what it wins, and each principle is first in
        proportion to its weight. Places beyond the last principle start over.
        """

        def key(principle: Principle) -> tuple[float, str]:
            uniform = 1.0 - unit_interval("principle", *salt, principle.drawn_as)  # in (0, 1]
            return -math.log(uniform) / principle.weight, principle.drawn_as

        drawable = self.having(request)
        return sorted(drawable, key=key)[position % len(drawable)]


class Asked(NamedTuple):
    """A request as a model gets it."""

    request: Request
    messages: tuple[Message, ...]


def _long(item: Any) -> Any:
    """A principle in one line, `- tone: Be polite.`, as its id and rule."""
    if isinstance(item, dict) and len(item) == 1:
        ((key, rule),) = item.items()
        if key not in Principle.model_fields and isinstance(rule, str):
            return {"id": key, "rule": rule}
    return item


def _with_requests(item: Any, templates: dict[str, Any]) -> Any:
    if not isinstance(item, dict) or not isinstance(rule := item.get("rule"), str):
        return item
    # Not str.format: a rule may hold braces.
    made = {name: text.replace(RULE, rule.strip()) for name, text in templates.items() if isinstance(text, str)}
    return {name: made[name] for name in REQUESTS if name in made} | item


def read_constitution(path: str, requests: Sequence[Request] = (), check: TextCheck = unchecked) -> Constitution:
    """The constitution at `path`, in the current folder or among the bundled files.

    Raises InputErrors with all that is wrong, by line. Some principle must have each of the named `requests`, and
    `check` says what is wrong with them, for the model they are made of.
    """
    constitution, document = read_with_lines(path)
    errors = []
    for request in requests:
        if not constitution.having(request):
            fix = f"give one a `{request}`, or a `rule` that it can be made of"
            errors.append(document.error(f"no principle has a {request}", ("principles",), fix))
    for index, principle in enumerate(constitution.principles):
        for request in requests:
            text: str = getattr(principle, request)
            if text and (wrong := check(text)):
                errors.append(document.error(wrong[0], ("principles", index, request), wrong[1]))
    raise_all(errors)
    return constitution


def read_with_lines(path: str) -> tuple[Constitution, Document]:
    """The constitution at `path`, and its document. Raises InputErrors."""
    constitution, document = read_named_set(Constitution, path, "principles")
    raise_all([*_drawn_alike(constitution, document), *_of_nobody(constitution, document)])
    return constitution, document


def _drawn_alike(constitution: Constitution, document: Document) -> list[InputError]:
    """Errors of principles whose `was` is the id, or the `was`, of another one."""
    errors, names = [], {principle.id for principle in constitution.principles}
    for index, principle in enumerate(constitution.principles):
        if principle.was is not None and principle.was in names:
            problem = f"another principle is called {principle.was!r}, or was"
            errors.append(document.error(problem, ("principles", index, "was"), "give the id that only this one had"))
        names.add(principle.drawn_as)
    return errors


def _of_nobody(constitution: Constitution, document: Document) -> list[InputError]:
    """Errors of cues that `origin` gives for a principle that is not there."""
    ids = [principle.id for principle in constitution.principles]
    odd = {} if constitution.origin is None else constitution.origin.odd
    return [
        document.error("no principle has this id", ("origin", "odd", name), nearest(name, ids))
        for name in odd
        if name not in ids
    ]
