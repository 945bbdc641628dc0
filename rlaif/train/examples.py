"""The interface between a pipeline and a trainer: training examples, the reward function, the report of a step.

Imports no torch. Every function streams: one example at a time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.formats import Conversation, PlainText, StatedPreference
from rlaif.records import Kept, Message, Preference, Prompt, Split, canonical

# Called after each step with its metrics, `step` and `steps` included. An exception ends the training.
OnStep = Callable[[dict[str, float]], None]
# Prompts and their completions -> scores; None for a completion that cannot be scored.
RewardFunction = Callable[[Sequence[tuple[Message, ...]], Sequence[str]], list[float | None]]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation that ends with an assistant turn. `turns` are the assistant turns that are trained on.

    Of all of them, those at the places `masked` among the messages are context only. With `text`, the one message is
    plain text of no conversation, which is learnt whole.
    """

    messages: tuple[Message, ...]
    turns: Literal["all", "last", "text"] = "all"
    split: Split = "train"
    masked: tuple[int, ...] = ()
    part: str | None = None  # of a mixture: the stage that it is from


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with a chosen and a rejected completion, and what is known of how far they are apart."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    split: Split = "train"
    margin: float | None = None  # the chosen one's score less the rejected one's, in the unit of its judge
    probability: float | None = None  # that chosen is the better one
    source: str | None = None  # the data set, or the file, that its prompt is from


@dataclass(frozen=True, slots=True)
class PromptOnly:
    """A prompt for the policy to complete, with what checks in code need."""

    messages: tuple[Message, ...]
    split: Split = "train"
    reference: tuple[str, ...] = ()  # true answers, any of which is correct
    checks: tuple[dict[str, Any], ...] = ()  # the prompt's own, as `judges.verifiers` reads them

    @property
    def is_checked(self) -> bool:
        """Whether it has references or checks of its own."""
        return bool(self.reference or self.checks)


Example = Demonstration | PreferencePair | PromptOnly


def of_conversations(items: Iterable[Conversation]) -> Iterator[Demonstration]:
    """The conversations, in order."""
    for item in items:
        yield Demonstration(item.messages, item.turns, item.split, item.masked)


def of_texts(items: Iterable[PlainText]) -> Iterator[Demonstration]:
    """Plain texts, in order."""
    for item in items:
        yield Demonstration((Message(role="assistant", content=item.text),), "text", item.split)


def of_kept(items: Iterable[Kept]) -> Iterator[Demonstration]:
    """Each prompt with its completion, which alone is trained on: earlier turns are the prompt's."""
    for item in items:
        messages = item.prompt.messages
        answer = Message(role="assistant", content=item.candidate.completion.text)
        earlier = any(message.role == "assistant" for message in messages)
        yield Demonstration((*messages, answer), "last" if earlier else "all", item.prompt.split)


def of_preferences(items: Iterable[Preference]) -> Iterator[PreferencePair]:
    """Preferences that a pair stage made."""
    for item in items:
        texts = item.chosen.completion.text, item.rejected.completion.text
        yield PreferencePair(
            item.prompt.messages, *texts, item.prompt.split, item.margin, item.probability, item.prompt.source
        )


def of_stated_preferences(items: Iterable[StatedPreference]) -> Iterator[PreferencePair]:
    """Preferences that a file states."""
    for item in items:
        known = item.split, item.margin, item.probability, item.prompt.source
        yield PreferencePair(item.prompt.messages, item.chosen, item.rejected, *known)


def of_prompts(items: Iterable[Prompt]) -> Iterator[PromptOnly]:
    """Prompts, each with its references and checks."""
    for item in items:
        yield PromptOnly(item.messages, item.split, item.reference, item.checks)


class Survey:
    """Counts and digests the examples of one training as a stream.

    `unused` are the splits that the trainer does not use; their examples are counted, but not in the digest.
    """

    def __init__(self, unused: Sequence[Split]) -> None:
        self._unused = unused
        self._hash = hashlib.sha256(b"[")
        self._first = True
        self.given = 0
        self.left_out: Counter[str] = Counter()  # by split

    def add(self, examples: Iterable[Example]) -> int:
        """Add the examples of one source; returns their number."""
        before = self.given
        for example in examples:
            self.given += 1
            if example.split in self._unused:
                self.left_out[example.split] += 1
                continue
            piece = canonical([example.split, _plain(example)])
            self._hash.update(("" if self._first else ",").encode() + piece.encode("utf-8", "surrogatepass"))
            self._first = False
        return self.given - before

    @property
    def digest(self) -> str:
        """32 hex digits: `records.digest` of the JSON array of all training examples, in order."""
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()[:32]


def _plain(example: Example) -> list[Any]:
    """The part of an example that is trained on, as JSON. Its form enters the key of every trained model."""
    if isinstance(example, PreferencePair):
        known = {"margin": example.margin, "probability": example.probability}
        stated = {name: value for name, value in known.items() if value is not None}
        return [_turns(example.prompt), example.chosen, example.rejected, *([stated] if stated else [])]
    if isinstance(example, Demonstration):
        told: dict[str, Any] = {"masked": list(example.masked)} if example.masked else {}
        told |= {"part": example.part} if example.part is not None else {}
        told |= {"turns": "text"} if example.turns == "text" else {}
        if example.turns == "last":
            return [_turns(example.messages[:-1]), example.messages[-1].content, *([told] if told else [])]
        return [_turns(example.messages), told] if told else _turns(example.messages)
    return _turns(example.messages)


def _turns(messages: Sequence[Message]) -> list[Any]:
    return [[message.role, message.content] for message in messages]
