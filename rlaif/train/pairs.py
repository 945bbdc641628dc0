"""Preferences as token ids: what DPO and a reward model learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlaif.records import Message
from rlaif.train.tokens import Chat, Counts


class PreferencePair(NamedTuple):
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


def tokenize(chat: Chat, pairs: Sequence[PreferencePair], max_length: int) -> tuple[dict[str, list[list[int]]], Counts]:
    """Each pair as ids. The prompt may be cut from the left, alike for both completions; no completion is cut."""
    counts = Counts()
    columns: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for pair in pairs:
        whole, chosen = chat.completion(pair.prompt, pair.chosen)
        _, rejected = chat.completion(pair.prompt, pair.rejected)
        prompt = chat.cut(whole, max_length - max(len(chosen), len(rejected)))
        if chat.broken(pair.chosen) or chat.broken(pair.rejected):
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
