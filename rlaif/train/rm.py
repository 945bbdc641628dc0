"""A pairwise reward model (Stiennon et al. 2020, arXiv 2009.01325, section 3.4): a score for a completion to a prompt.

The loss of a pair is -log sigmoid(score of chosen - score of rejected), plus `center` times the square of the two
scores' sum, which keeps scores around zero (Eisenstein et al. 2023, arXiv 2312.09244). The score is read at the
completion's end token, the last token of each sequence, in training as in use.

Labels are hard: a judge's probability decides which pairs exist, not their weight.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from rlaif.config import RMSettings
from rlaif.engines.adapters import Source
from rlaif.train import models, tokens, trl
from rlaif.train.examples import OnStep, PreferencePair
from rlaif.train.models import TrainResult
from rlaif.train.pairs import tokenize


def train_rm(
    settings: RMSettings,
    base: Source,
    pairs: Iterable[PreferencePair],
    validation: Iterable[PreferencePair],
    folder: Path,
    on_step: OnStep,
) -> TrainResult:
    """Train a reward model that starts from `base` on `pairs` in a job's `folder`.

    Its metrics include the accuracy on the validation pairs, if any. Called again with the same arguments after an
    interruption, it resumes from its last checkpoint, and reports steps since then a second time. Raises InputError for
    an unusable base model or template, WorkError when no pair fits or the loss is not finite.
    """
    began = time.monotonic()
    with trl.quietly():
        model, tokenizer = models.load_reward(base, settings.seed, settings)
        chat = tokens.trainable_chat(tokenizer)
        max_length = models.fitting(model, settings.max_length)
        train, counts = tokenize(chat, pairs, max_length)
        counts.check(max_length, settings.max_length)
        held, held_counts = tokenize(chat, validation, max_length)
        counts.add(held_counts)
        data = trl.TokenizedData(_whole(train), _whole(held), counts)
        return trl.learn(settings, model, tokenizer, data, folder, on_step, began)


def _whole(columns: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Each completion with its prompt before it: the score is of the whole sequence."""
    return {
        side: [prompt + ids for prompt, ids in zip(columns["prompt_ids"], columns[side], strict=True)]
        for side in ("chosen_ids", "rejected_ids")
    }
