"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290), equation 7.

The loss of a pair is -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)), where a log-ratio is
log policy(completion | prompt) - log reference(completion | prompt), summed over the completion's tokens and its end
token. The reference is the base model, so the first loss is ln 2.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.config import DPOSettings
from rlaif.records import Message
from rlaif.train import trl
from rlaif.train.tokens import Chat, Counts
from rlaif.train.trl import OnStep, TrainResult


class PreferencePair(NamedTuple):
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


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
        trainer = trl.dpo_trainer(settings, model, tokenizer, train, held, out, on_step)
        trl.run(trainer)
        metrics = trl.evaluate(trainer)
        return trl.save(trainer, tokenizer, out, counts, metrics, began)


def tokenize(chat: Chat, pairs: Sequence[PreferencePair], max_length: int) -> tuple[dict[str, list[list[int]]], Counts]:
    """Each pair as ids. The prompt may be cut from the left, alike for both completions; no completion is cut."""
    counts = Counts()
    columns: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for pair in pairs:
        whole, chosen = chat.completion(pair.prompt, pair.chosen)
        _, rejected = chat.completion(pair.prompt, pair.rejected)
        prompt = chat.cut(whole, max_length - max(len(chosen), len(rejected)))
        if chat.broken(chosen) or chat.broken(rejected):
            counts.dropped["end-token-inside"] += 1
        elif chosen == rejected:
            counts.dropped["identical"] += 1
        elif prompt is None:
            counts.dropped["too-long"] += 1
        else:
            counts.kept += 1
            counts.cut += prompt is not whole
            for column, ids in zip(columns.values(), (prompt, chosen, rejected), strict=True):
                column.append(ids)
    return columns, counts
