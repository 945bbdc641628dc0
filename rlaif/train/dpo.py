"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290), equation 7.

The loss of a pair is -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)), where a log-ratio is
log policy(completion | prompt) - log reference(completion | prompt), summed over the completion's tokens and its end
token. The reference is the base model, so the first loss is ln 2.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rlaif.config import DPOSettings
from rlaif.train import trl
from rlaif.train.pairs import PreferencePair, tokenize
from rlaif.train.tokens import Chat
from rlaif.train.trl import OnStep, TrainResult


def train_dpo(
    settings: DPOSettings,
    base: Path,
    pairs: Sequence[PreferencePair],
    validation: Sequence[PreferencePair],
    out: Path,
    on_step: OnStep,
) -> TrainResult:
    """Train `base` on `pairs` and save it in `out`.

    Called again with the same arguments after an interruption, it goes on from its last checkpoint, and steps since
    then are reported a second time.
    """
    began = time.monotonic()
    trl.refuse_existing(out)
    with trl.quietly():
        model, tokenizer = trl.load(base)
        chat = Chat(tokenizer)
        train, counts = tokenize(chat, pairs, settings.max_length)
        counts.check(len(pairs), settings.max_length)
        held, held_counts = tokenize(chat, validation, settings.max_length)
        counts.add(held_counts)
        return trl.learn(settings, model, tokenizer, train, held, out, on_step, counts, began)
