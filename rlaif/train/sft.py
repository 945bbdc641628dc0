"""Supervised fine-tuning: the model learns the assistant's turns of conversations, each with its end token.

The loss is the mean negative log-likelihood of those tokens; everything else in a conversation is only read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.config import SFTSettings
from rlaif.errors import InputError
from rlaif.records import Message
from rlaif.train import trl
from rlaif.train.tokens import Chat, Counts, Segment
from rlaif.train.trl import OnStep, TrainResult


class Completed(NamedTuple):
    """A prompt, which may hold assistant turns of its own, and the completion that alone is learnt."""

    prompt: Sequence[Message]
    completion: str


SFTRow = Sequence[Message] | Completed  # a conversation ends with an assistant turn

NOT_LEARNT = -100


def train_sft(
    settings: SFTSettings,
    base: Path,
    rows: Sequence[SFTRow],
    validation: Sequence[SFTRow],
    out: Path,
    on_step: OnStep,
    template: str | None = None,
) -> TrainResult:
    """Fine-tune `base` on `rows` and save it in `out`, with `template` as its chat template where one is given.

    Called again with the same arguments after an interruption, it goes on from its last checkpoint, and steps since
    then are reported a second time.
    """
    began = time.monotonic()
    trl.refuse_existing(out)
    with trl.quietly():
        model, tokenizer = trl.load(base, template)
        chat = Chat(tokenizer, settings.template)
        chat.require_marks()
        train, counts = tokenize(chat, rows, settings.max_length)
        counts.check(len(rows), settings.max_length)
        held, held_counts = tokenize(chat, validation, settings.max_length)
        counts.add(held_counts)
        return trl.learn(settings, model, tokenizer, train, held, out, on_step, counts, began)


def tokenize(chat: Chat, rows: Sequence[SFTRow], max_length: int) -> tuple[dict[str, list[list[int]]], Counts]:
    """Each conversation as ids and labels. The first prompt may be cut from the left; nothing that is learnt is cut."""
    counts = Counts()
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for number, row in enumerate(rows, 1):
        opening, *rest = _segments(chat, row, number)
        if any(chat.broken(text) for text in _learnt(row)):
            counts.dropped["end-token-inside"] += 1
            continue
        prompt = chat.cut(opening.ids, max_length - sum(len(segment.ids) for segment in rest))
        if prompt is None:
            counts.dropped["too-long"] += 1
            continue
        counts.kept += 1
        counts.cut += prompt is not opening.ids
        labels = [NOT_LEARNT] * len(prompt)
        for ids, learnt in rest:
            labels += ids if learnt else [NOT_LEARNT] * len(ids)
        columns["input_ids"].append(prompt + [token for segment in rest for token in segment.ids])
        columns["labels"].append(labels)
    return columns, counts


def _segments(chat: Chat, row: SFTRow, number: int) -> list[Segment]:
    if isinstance(row, Completed):
        prompt, completion = chat.completion(row.prompt, row.completion)
        return [Segment(prompt, False), Segment(completion, True)]
    if not row or row[-1].role != "assistant":
        raise InputError(
            f"conversation {number} does not end with an assistant turn", fix="complete it or leave it out"
        )
    return chat.conversation(row)


def _learnt(row: SFTRow) -> list[str]:
    if isinstance(row, Completed):
        return [row.completion]
    return [message.content for message in row if message.role == "assistant"]
