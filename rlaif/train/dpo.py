"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290), equation 7.

The loss of a pair is -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)), where a log-ratio is
log policy(completion | prompt) - log reference(completion | prompt), summed over the completion's tokens and its end
token. The reference is the base model, so the first loss is ln 2.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlaif.config import DPOSettings
from rlaif.engines.adapters import Source
from rlaif.train import models, tokens, trl
from rlaif.train.examples import OnStep, PreferencePair
from rlaif.train.models import TrainResult
from rlaif.train.pairs import IDS, tokenize


def train_dpo(
    settings: DPOSettings,
    base: Source,
    pairs: Iterable[PreferencePair],
    validation: Iterable[PreferencePair],
    folder: Path,
    on_step: OnStep,
) -> TrainResult:
    """Train `base` on `pairs` in a job's `folder`.

    Called again with the same arguments after an interruption, it resumes from its last checkpoint, and reports steps
    since then a second time. Raises InputError for an unusable base model or template, WorkError when no pair
    fits or the loss is not finite.
    """
    began = time.monotonic()
    with trl.quietly():
        model, tokenizer = models.load(base, settings=settings)
        chat = tokens.trainable_chat(tokenizer)
        max_length = models.fitting(model, settings.max_length)
        train, counts = tokenize(chat, pairs, max_length)
        counts.check(max_length, settings.max_length)
        held, held_counts = tokenize(chat, validation, max_length)
        counts.add(held_counts)
        data = trl.TokenizedData(_ids(train), _ids(held), counts)
        return trl.learn(settings, model, tokenizer, data, folder, on_step, began)


def _ids(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: columns[name] for name in IDS}
