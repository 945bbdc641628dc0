"""Demonstrations as token ids, with those that are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlaif.engines.chat import Chat
from rlaif.errors import InputError
from rlaif.train import tokenizing, tokens
from rlaif.train.examples import Demonstration
from rlaif.train.tokens import NOT_LEARNT, Counts, Excess, Segment, Talk

PART = "part"  # the column of the stage that a row is from


def tokenize(
    chat: Chat,
    examples: Iterable[Demonstration],
    max_length: int,
    excess: Excess = "truncate",
    system: str = "keep",
    kept: Path | None = None,
) -> tuple[dict[str, list[Any]], Counts]:
    """Each conversation as ids and labels. The first prompt may be truncated from the left; trained tokens never are.

    A plain text that is too long becomes several rows. `PART` names the stage that a row of a mixture is from.

    `excess` and `system` are the trainer's settings `excess_length` and `system`; `kept` is as in `tokenizing.read`.

    Raises InputError for a conversation that does not end with an assistant turn, or that the template refuses, and for
    one whose length is refused.
    """
    counts = Counts()
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], PART: []}
    numbered = tokens.numbered(examples, lambda example: example.messages, system, counts)
    for number, example, segments in read(chat, numbered, kept):
        if is_split(example, segments, max_length, excess):
            counts.kept += 1
            ids = segments[0].ids
            for start in range(0, len(ids), max_length):
                _add(columns, example, ids[start : start + max_length], ids[start : start + max_length])
            continue
        prompt, reason = fate(chat, example, segments, max_length, excess, number)
        if prompt is None:
            counts.dropped[reason] += 1
            continue
        opening, *rest = segments
        counts.kept += 1
        counts.cut += prompt is not opening.ids
        labels = [NOT_LEARNT] * len(prompt)
        for ids, learnt in rest:
            labels += ids if learnt else [NOT_LEARNT] * len(ids)
        _add(columns, example, prompt + [token for segment in rest for token in segment.ids], labels)
    return columns, counts


def is_split(example: Demonstration, segments: Sequence[Segment], max_length: int, excess: Excess) -> bool:
    """Whether it is a plain text, of which every token is learnt, in several rows where it is too long for one."""
    return example.turns == "text" and (excess == "truncate" or len(segments[0].ids) <= max_length)


def _add(columns: dict[str, list[Any]], example: Demonstration, ids: list[int], labels: list[int]) -> None:
    columns["input_ids"].append(ids)
    columns["labels"].append(labels)
    columns[PART].append(example.part)


def fate(
    chat: Chat,
    example: Demonstration,
    segments: Sequence[Segment],
    max_length: int,
    excess: Excess,
    number: int,
) -> tuple[list[int] | None, str]:
    """The first prompt as the conversation is trained on; None with the reason when it is dropped."""
    if any(tokens.broken(chat, text) for text in _learnt(example)):
        return None, "end-token-inside"
    opening, *rest = segments
    return tokens.fitted(chat, opening.ids, max_length - sum(len(s.ids) for s in rest), excess, number), "too-long"


def read(
    chat: Chat, examples: Iterable[tuple[int, Demonstration]], kept: Path | None = None
) -> Iterator[tuple[int, Demonstration, list[Segment]]]:
    """Each conversation with its number, as segments of tokens through the last turn that is trained on.

    `kept` is as in `tokenizing.read`.
    """
    for number, example, (ids,) in tokenizing.read(chat, _complete(examples), _talk, kept):
        if example.turns == "text":
            yield number, example, [Segment(ids[0], True)]
        else:
            segments = [Segment(each, i % 2 == 1) for i, each in enumerate(ids)]
            yield number, example, _masked(example, segments) if example.turns == "all" else segments


def _talk(example: Demonstration) -> list[Talk]:
    return [Talk(example.messages, example.turns)]


def _complete(examples: Iterable[tuple[int, Demonstration]]) -> Iterator[tuple[int, Demonstration]]:
    for number, example in examples:
        if not example.messages or example.messages[-1].role != "assistant":
            raise InputError(
                f"conversation {number} does not end with an assistant turn", fix="complete it or leave it out"
            )
        yield number, example


def _masked(example: Demonstration, segments: list[Segment]) -> list[Segment]:
    """The segments through the last turn that is trained on; the turns that are not are context."""
    if not example.masked:
        return segments
    turns = [i for i, message in enumerate(example.messages) if message.role == "assistant"]
    learnt = [segment.learnt and turns[i // 2] not in example.masked for i, segment in enumerate(segments)]
    through = max(i for i, is_learnt in enumerate(learnt) if is_learnt) + 1
    return [Segment(segment.ids, learnt[i]) for i, segment in enumerate(segments[:through])]


def _learnt(example: Demonstration) -> list[str]:
    """The words that the end token must not stand in. In a plain text it is text, as in messages that are read."""
    if example.turns == "text":
        return []
    if example.turns == "last":
        return [example.messages[-1].content]
    turns = enumerate(example.messages)
    return [message.content for i, message in turns if message.role == "assistant" and i not in example.masked]
