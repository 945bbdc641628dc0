"""Supervised fine-tuning: the loss is on the assistant's turns of conversations, each with its end token.

It is the mean negative log-likelihood of those tokens; all others are context.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlaif.config import SFTSettings
from rlaif.engines.adapters import Source
from rlaif.engines.chat import Chat
from rlaif.errors import InputError
from rlaif.train import models, tokens, trl
from rlaif.train.examples import Demonstration, OnStep
from rlaif.train.models import TrainResult
from rlaif.train.tokens import Counts, Segment

NOT_LEARNT = -100


def train_sft(
    settings: SFTSettings,
    base: Source,
    examples: Iterable[Demonstration],
    validation: Iterable[Demonstration],
    folder: Path,
    on_step: OnStep,
    template: str | None = None,
) -> TrainResult:
    """Fine-tune `base` on `examples` in a job's `folder`, with `template` as its chat template, if given.

    Called again with the same arguments after an interruption, it resumes from its last checkpoint, and reports steps
    since then a second time. Raises InputError for an unusable base model, template or conversation,
    WorkError when no example fits or the loss is not finite.
    """
    began = time.monotonic()
    with trl.quietly():
        model, tokenizer = models.load(base, template, settings)
        chat = tokens.trainable_chat(tokenizer, settings.template)
        tokens.require_marks(chat)
        max_length = models.fitting(model, settings.max_length)
        train, counts = tokenize(chat, examples, max_length)
        counts.check(max_length, settings.max_length)
        held, held_counts = tokenize(chat, validation, max_length)
        counts.add(held_counts)
        if template not in (None, tokenizer.chat_template):
            counts.notes.append(
                f"the chat template begins with {tokenizer.bos_token}, as the tokenizer begins its texts"
            )
        return trl.learn(settings, model, tokenizer, trl.TokenizedData(train, held, counts), folder, on_step, began)


def tokenize(
    chat: Chat, examples: Iterable[Demonstration], max_length: int
) -> tuple[dict[str, list[list[int]]], Counts]:
    """Each conversation as ids and labels. The first prompt may be truncated from the left; trained tokens never are.

    Raises InputError for a conversation that does not end with an assistant turn, or that the template refuses.
    """
    counts = Counts()
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for example, (opening, *rest) in _read(chat, examples):
        if any(tokens.broken(chat, text) for text in _learnt(example)):
            counts.dropped["end-token-inside"] += 1
            continue
        prompt = tokens.cut(chat, opening.ids, max_length - sum(len(segment.ids) for segment in rest))
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


def _read(chat: Chat, examples: Iterable[Demonstration]) -> Iterator[tuple[Demonstration, list[Segment]]]:
    for batch in tokens.batches(_complete(examples)):
        last = [example.messages for example in batch if example.turns == "last"]
        completions = iter(tokens.completions(chat, [(messages[:-1], messages[-1].content) for messages in last]))
        conversations = iter(tokens.conversations(chat, [each.messages for each in batch if each.turns == "all"]))
        for example in batch:
            yield example, _last_alone(*next(completions)) if example.turns == "last" else next(conversations)


def _complete(examples: Iterable[Demonstration]) -> Iterator[Demonstration]:
    for number, example in enumerate(examples, 1):
        if not example.messages or example.messages[-1].role != "assistant":
            raise InputError(
                f"conversation {number} does not end with an assistant turn", fix="complete it or leave it out"
            )
        yield example


def _last_alone(prompt: list[int], completion: list[int]) -> list[Segment]:
    return [Segment(prompt, False), Segment(completion, True)]


def _learnt(example: Demonstration) -> list[str]:
    if example.turns == "last":
        return [example.messages[-1].content]
    return [message.content for message in example.messages if message.role == "assistant"]
