"""Supervised fine-tuning: the loss is on the assistant's turns of conversations, each with its end token.

It is the mean negative log-likelihood of those tokens; all others are context.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from rlaif.config import SFTSettings
from rlaif.engines.adapters import Source
from rlaif.train import models, trl
from rlaif.train.arranging import arranged, validating
from rlaif.train.demonstrations import tokenize
from rlaif.train.examples import Demonstration, OnStep
from rlaif.train.kept_files import Place
from rlaif.train.models import TrainResult


def train_sft(
    settings: SFTSettings,
    base: Source,
    examples: Iterable[Demonstration],
    validation: Iterable[Demonstration],
    place: Place,
    on_step: OnStep,
    template: str | None = None,
) -> TrainResult:
    """Fine-tune `base` on `examples` in a job's folder, with `template` as its chat template, if given.

    Called again with the same arguments after an interruption, it resumes from its last checkpoint, and reports steps
    since then a second time. Raises InputError for an unusable base model, template or conversation,
    WorkError when no example fits or the loss is not finite.
    """
    began = time.monotonic()
    with trl.quietly():
        model, tokenizer = models.load(base, template, settings)
        begins = template not in (None, tokenizer.chat_template)
        chat = models.trained_chat(settings, model, tokenizer)
        max_length = models.fitting(model, settings.max_length)
        cut = settings.excess_length, settings.system
        train, counts = tokenize(chat, examples, max_length, *cut, place.tokens)
        counts.check(max_length, settings.max_length, chat, model.config)
        held, held_counts = tokenize(
            chat, validation, max_length, settings.excess_length, settings.system, place.tokens
        )
        counts.add(held_counts)
        if begins:
            counts.notes.append(
                f"the chat template begins with {tokenizer.bos_token}, as the tokenizer begins its texts"
            )
        train = arranged(settings, train, max_length, counts.notes)
        held = validating(settings, held, max_length)
        return trl.learn(
            settings, model, tokenizer, trl.TokenizedData(train, held, counts), place.folder, on_step, began
        )
