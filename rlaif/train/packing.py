"""Several rows in one sequence, each kept from seeing the others, so that hardly any token is padding.

Rows are packed best-fit decreasing: the longest first, each into the sequence with the least room that still holds it.
That needs at most 11/9 of the fewest sequences and four more (Johnson et al. 1974). Rows are never split.

Attention stays inside a row since positions begin anew with each row: without a cache and an attention mask,
transformers makes its mask block-diagonal by them. Not every architecture does, so the first sequences are proved
before the first step: their losses must be those of their rows alone. Krell et al. 2021 (arXiv 2107.02027) show what
it costs where rows of a sequence see one another.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlaif.errors import WorkError
from rlaif.train.tokens import NOT_LEARNT

# The largest difference between a row's loss in a sequence and alone, in nats a token: rounding has a thousandth of it
# in float32, a row that sees another one a hundred times as much.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
PROVED = 4096  # tokens of the sequences that are proved, at least two rows

Columns = Mapping[str, Sequence[Any]]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The rows of each sequence, by their numbers, for rows of `lengths` and sequences of at most `capacity` tokens.

    Takes O(n log n) steps. Rows of equal length stay in their order. Raises ValueError for a row above `capacity`.
    """
    packed: list[list[int]] = []
    rooms: list[int] = []  # what is left in some sequence, ascending, each once
    with_room: dict[int, list[int]] = {}  # the sequences with so much room
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = lengths[row]
        if length > capacity:
            raise ValueError(f"a row of {length} tokens is longer than a sequence of {capacity}")
        at = bisect_left(rooms, length)
        if at == len(rooms):
            room, sequence = capacity, len(packed)
            packed.append([])
        else:
            room = rooms[at]
            sequence = with_room[room].pop()
            if not with_room[room]:
                del rooms[at], with_room[room]
        packed[sequence].append(row)
        if (left := room - length) not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(sequence)
    return packed


def packed(columns: Columns, capacity: int) -> dict[str, list[list[int]]]:
    """Rows of `input_ids` and `labels` as sequences of at most `capacity` tokens, with the `seq_lengths` of their rows.

    The first token of a row is predicted by nothing, so it is not learnt.
    """
    ids, labels = columns["input_ids"], columns["labels"]
    made: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for rows in pack([len(row) for row in ids], capacity):
        made["input_ids"].append([token for row in rows for token in ids[row]])
        made["labels"].append([label for row in rows for label in [NOT_LEARNT, *labels[row][1:]]])
        made["seq_lengths"].append([len(ids[row]) for row in rows])
    return made


def collated(sequences: Sequence[Mapping[str, Sequence[int]]], pad: int) -> dict[str, torch.Tensor]:
    """A batch of packed sequences, (B, T) each, padded on the right. The padding is one more row that is not learnt."""
    longest = max(len(sequence["input_ids"]) for sequence in sequences)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for sequence in sequences:
        spare = longest - len(sequence["input_ids"])
        batch["input_ids"].append([*sequence["input_ids"], *[pad] * spare])
        batch["labels"].append([*sequence["labels"], *[NOT_LEARNT] * spare])
        lengths = [*sequence["seq_lengths"], *([spare] if spare else [])]
        batch["position_ids"].append([position for length in lengths for position in range(length)])
    return {name: torch.tensor(rows) for name, rows in batch.items()}


def prove(model: Any, sequences: Columns, pad: int) -> None:
    """Raise WorkError unless the rows of the first sequences have the same losses together and alone.

    The sequences are those from the first with several rows on, at most PROVED tokens. Without such, nothing is packed.
    """
    chosen: list[dict[str, Sequence[int]]] = []
    for i, lengths in enumerate(sequences["seq_lengths"]):
        if len(lengths) > 1:
            chosen.append({name: column[i] for name, column in sequences.items()})
            if sum(len(each["input_ids"]) for each in chosen) >= PROVED:
                break
    if not chosen:
        return
    with torch.no_grad(), _evaluating(model):
        together = [loss for sequence in chosen for loss in _losses(model, sequence, pad)]
        alone = [loss for sequence in chosen for row in _rows(sequence) for loss in _losses(model, row, pad)]
    apart = max(abs(one - other) for one, other in zip(together, alone, strict=True))
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    if not apart <= TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]):
        raise WorkError(
            f"a row's loss differs by {apart:.3g} a token when it is packed with others: tokens of this architecture "
            "see the rows before their own, or count their positions from the first",
            fix="set `packing: false`",
        )


class _evaluating:
    """No dropout inside; the model's mode is restored."""

    def __init__(self, model: Any) -> None:
        self.model, self.training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.training)


def _rows(sequence: Mapping[str, Sequence[int]]) -> list[dict[str, Sequence[int]]]:
    """The rows of a sequence, each a sequence of its own."""
    made, start = [], 0
    for length in sequence["seq_lengths"]:
        part = slice(start, start + length)
        made.append({name: sequence[name][part] for name in ("input_ids", "labels")} | {"seq_lengths": [length]})
        start += length
    return made


def _losses(model: Any, sequence: Mapping[str, Sequence[int]], pad: int) -> list[float]:
    """The mean loss over all tokens of each row but its first, learnt or not."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collated([sequence], pad).items()}
    batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits, batch["input_ids"][0, 1:], reduction="none")
    means, start = [], 0
    for length in sequence["seq_lengths"]:
        own = losses[start : start + length - 1]
        means.append(float(own.mean()) if length > 1 else 0.0)
        start += length
    return means
