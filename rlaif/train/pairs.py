"""Preferences as token ids, for DPO and reward models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rlaif.engines.chat import Chat
from rlaif.train import tokens
from rlaif.train.examples import PreferencePair
from rlaif.train.tokens import Counts

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
KNOWN = ("margin", "probability", "source")
Ids = tuple[list[int], list[int]]


def tokenize(chat: Chat, pairs: Iterable[PreferencePair], max_length: int) -> tuple[dict[str, list[Any]], Counts]:
    """Each pair as ids, with its `margin`, `probability` and `source`, which may be None.

    The prompt may be truncated from the left, the same for both completions.

    Raises InputError for a template that refuses a pair's messages.
    """
    counts = Counts()
    columns: dict[str, list[Any]] = {name: [] for name in (*IDS, *KNOWN)}
    for pair, (whole, chosen), (_, rejected) in _read(chat, pairs):
        prompt = tokens.cut(chat, whole, max_length - max(len(chosen), len(rejected)))
        if tokens.broken(chat, pair.chosen) or tokens.broken(chat, pair.rejected):
            counts.dropped["end-token-inside"] += 1
        elif chosen == rejected:
            counts.dropped["identical"] += 1
        elif prompt is None:
            counts.dropped["too-long"] += 1
        else:
            counts.kept += 1
            counts.cut += prompt is not whole
            values = (prompt, chosen, rejected, *(getattr(pair, name) for name in KNOWN))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return columns, counts


def _read(chat: Chat, pairs: Iterable[PreferencePair]) -> Iterator[tuple[PreferencePair, Ids, Ids]]:
    """Each pair, and its prompt with the chosen and with the rejected completion as ids."""
    for batch in tokens.batches(pairs):
        items = [(pair.prompt, words) for pair in batch for words in (pair.chosen, pair.rejected)]
        read = iter(tokens.completions(chat, items))
        yield from zip(batch, read, read, strict=True)
