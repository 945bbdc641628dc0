"""Messages and completions as the columns of a data set hold them."""

from __future__ import annotations

from collections.abc import Iterable

from rlaif.records import Candidate, Message

_SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}


def turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def completion_turn(candidate: Candidate) -> dict[str, str]:
    return {"role": "assistant", "content": candidate.completion.text}


def transcript(messages: Iterable[Message]) -> str:
    """One text, in which each turn begins with its speaker's name, as Anthropic's HH data has it."""
    return "".join(f"\n\n{_SPEAKERS[message.role]}: {message.content}" for message in messages)
