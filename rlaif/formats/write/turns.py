"""Messages and completions as the columns of a data set hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlaif.records import Candidate, Message, Prompt

_SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}


def kept(prompt: Prompt, row: dict[str, Any]) -> dict[str, Any]:
    """The row with the columns of the prompt's own file that travel with it; `own_...` where a name is taken."""
    if not prompt.kept:
        return row
    return row | {(f"own_{name}" if name in row else name): value for name, value in prompt.kept.items()}


def turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def completion_turn(candidate: Candidate) -> dict[str, str]:
    return {"role": "assistant", "content": candidate.completion.text}


def transcript(messages: Iterable[Message]) -> str:
    """One text, in which each turn begins with its speaker's name, as Anthropic's HH data has it."""
    return "".join(f"\n\n{_SPEAKERS[message.role]}: {message.content}" for message in messages)
