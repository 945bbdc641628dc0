"""What a row of a training file says of its turns: which are not learnt, and what stands beside their words.

`weight: 0` is OpenAI's and Mistral's way to keep a turn as context, `train: false` that of other trainers; either may
stand on a turn or on the whole row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlaif.formats.messages import Unusable, messages_in, number_of
from rlaif.records import Message

THINKING = ("reasoning_content", "reasoning", "thinking")  # of a turn, beside its `content`


def masked_turns(row: Mapping[str, Any], messages: Sequence[Message]) -> tuple[int, ...]:
    """The places of the assistant's turns in `messages`, made of the row, that are context only.

    Raises Unusable when nothing is left to learn.
    """
    if _is_masked(row):
        raise Unusable("not to be trained on")
    turns = list(_turns(row))
    before = len(messages) - len(turns)  # a system message of a column of its own, or a prompt
    masked = tuple(
        before + i
        for i, turn in enumerate(turns)
        if before + i >= 0 and messages[before + i].role == "assistant" and _is_masked(turn)
    )
    if len(masked) == sum(message.role == "assistant" for message in messages):
        raise Unusable("not to be trained on")
    return masked


def untaught(row: Mapping[str, Any]) -> set[str]:
    """What a row holds for training that is not used, as notes."""
    found = set()
    for turn in (row, *_turns(row)):
        for name in THINKING if turn is not row else ():
            if turn.get(name):
                found.add(f"the thinking of a turn (`{name}`) is not trained on")
        weight = number_of(turn.get("weight"))
        if weight is not None and weight not in (0, 1):
            found.add("a `weight` other than 0 and 1 is read as 1")
    return found


def _is_masked(part: Mapping[str, Any]) -> bool:
    return number_of(part.get("weight")) == 0 or part.get("train") is False


def _turns(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The turns of the conversation as the row has them."""
    for name in ("messages", "conversations", "completion"):
        value = row.get(name)
        if isinstance(value, str):
            value = messages_in(value, name)
        if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
            yield from value
            return
