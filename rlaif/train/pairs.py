"""Preferences as token ids, for DPO and reward models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlaif.engines.chat import Chat
from rlaif.records import Message
from rlaif.train import tokenizing, tokens
from rlaif.train.examples import PreferencePair
from rlaif.train.tokens import Counts, Excess, Talk

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
KNOWN = ("margin", "probability", "source")
Ids = tuple[list[int], list[int]]


def tokenize(
    chat: Chat,
    pairs: Iterable[PreferencePair],
    max_length: int,
    excess: Excess = "truncate",
    system: str = "keep",
    kept: Path | None = None,
) -> tuple[dict[str, list[Any]], Counts]:
    """Each pair as ids, with its `margin`, `probability` and `source`, which may be None.

    The prompt may be truncated from the left, the same for both completions; `excess` and `system` are the trainer's
    settings `excess_length` and `system`, `kept` is as in `tokenizing.read`.

    Raises InputError for a template that refuses a pair's messages, and for a pair whose length is refused.
    """
    counts = Counts()
    columns: dict[str, list[Any]] = {name: [] for name in (*IDS, *KNOWN)}
    numbered = tokens.numbered(pairs, lambda pair: pair.prompt, system, counts)
    for number, pair, (whole, chosen), (_, rejected) in read(chat, numbered, kept):
        prompt, reason = fate(chat, pair, whole, chosen, rejected, max_length, excess, number)
        if prompt is None:
            counts.dropped[reason] += 1
        else:
            counts.kept += 1
            counts.cut += prompt is not whole
            values = (prompt, chosen, rejected, *(getattr(pair, name) for name in KNOWN))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return columns, counts


def fate(
    chat: Chat,
    pair: PreferencePair,
    whole: list[int],
    chosen: list[int],
    rejected: list[int],
    max_length: int,
    excess: Excess,
    number: int,
) -> tuple[list[int] | None, str]:
    """The prompt as the pair is trained on; None with the reason when it is dropped."""
    if tokens.broken(chat, pair.chosen) or tokens.broken(chat, pair.rejected):
        return None, "end-token-inside"
    if chosen == rejected:
        return None, "identical"
    return tokens.fitted(chat, whole, max_length - max(len(chosen), len(rejected)), excess, number), "too-long"


def read(
    chat: Chat, pairs: Iterable[tuple[int, PreferencePair]], kept: Path | None = None
) -> Iterator[tuple[int, PreferencePair, Ids, Ids]]:
    """Each pair with its number, and its prompt with the chosen and with the rejected completion as ids.

    `kept` is as in `tokenizing.read`.
    """
    for number, pair, ((prompt, chosen), (again, rejected)) in tokenizing.read(chat, pairs, _talks, kept):
        yield number, pair, (prompt, chosen), (again, rejected)


def _talks(pair: PreferencePair) -> list[Talk]:
    both = (Message(role="assistant", content=words) for words in (pair.chosen, pair.rejected))
    return [Talk((*pair.prompt, words), "last") for words in both]
