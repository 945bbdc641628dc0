"""The arithmetic of reward models on tensors: losses of groups of completions, and the batches that they read.

Knows no models and no TRL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

COLUMNS = ["sequences", "better", "worse", "margins", "targets", "numbers", "order"]


class Collator:
    """Rows of `COLUMNS`, one for each group, as the tensors of a batch of N sequences, P pairs and G groups.

    `input_ids` and `attention_mask` (N, T), padded on the right; `better`, `worse`, `margins`, `targets` and `weights`
    (P,), where a pair's weight is 1 / pairs of its group; `numbers`, those of the pairs; `orders`, for each group the
    places of its sequences from best to worst, or None where the loss is that of its pairs; `groups`, G.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        sequences = [torch.tensor(ids) for row in rows for ids in row["sequences"]]
        first, firsts = 0, []  # of each group's sequences
        for row in rows:
            firsts.append(first)
            first += len(row["sequences"])
        orders = [[start + place for place in row.get("order", ())] for start, row in zip(firsts, rows, strict=True)]
        counts = [len(row["better"]) for row in rows]
        return {
            "input_ids": pad_sequence(sequences, batch_first=True, padding_value=self.pad),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True),
            "better": torch.tensor([start + i for start, row in zip(firsts, rows, strict=True) for i in row["better"]]),
            "worse": torch.tensor([start + i for start, row in zip(firsts, rows, strict=True) for i in row["worse"]]),
            "margins": torch.tensor([margin for row in rows for margin in row["margins"]]),
            "targets": torch.tensor([target for row in rows for target in row["targets"]]),
            "numbers": [number for row in rows for number in row["numbers"]],
            "weights": torch.tensor([1 / n for n in counts for _ in range(n)]),
            "orders": [torch.tensor(order) if order else None for order in orders],
            "groups": len(rows),
        }


def group_loss(scores: Tensor, batch: Mapping[str, Any], center: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of `Collator` by the scores (N,) of its sequences, and its figures without a gradient.

    The mean over the groups: of a group the mean of its pairs' losses, or its Plackett-Luce loss where it has an order.
    `center` weights the square of the sum of a pair's scores (Eisenstein et al. 2023, arXiv 2312.09244), averaged
    alike.
    """
    better, worse = scores[batch["better"]], scores[batch["worse"]]

    def mean(values: Tensor) -> Tensor:  # over the groups, of each group's mean over its pairs
        weights: Tensor = batch["weights"]
        return (weights * values).sum() / int(batch["groups"])

    losses = pair_losses(better - worse - batch["margins"], batch["targets"])
    if ranked := [order for order in batch["orders"] if order is not None]:
        whole = torch.stack([plackett_luce(scores[order]) for order in ranked]).sum() / batch["groups"]
        loss = whole + mean(losses * ~torch.isin(batch["better"], torch.cat(ranked)))
    else:
        loss = mean(losses)
    loss = loss + center * mean((better + worse) ** 2)
    with torch.no_grad():
        figures = {
            "accuracy": mean((better > worse).float()),
            "margin": mean(better - worse),
            "mean_reward": mean(better + worse) / 2,
        }
    return loss, figures


def pair_losses(gaps: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of sigmoid(gap) with the probability that the first is the better one, for each pair.

    Gaps are score of chosen - score of rejected - margin. A target of 1 gives -log sigmoid(gap) (Stiennon et al. 2020,
    arXiv 2009.01325, section 3.4; with margins, Llama 2: Touvron et al. 2023, arXiv 2307.09288, equation 2).
    """
    return -(targets * logsigmoid(gaps) + (1 - targets) * logsigmoid(-gaps))


def plackett_luce(scores: Tensor) -> Tensor:
    """The mean over the K - 1 choices of -log probability that the best of those left is chosen, in order.

    `scores` (K,) are from best to worst. The sum would be the negative log-likelihood of the ranking (Plackett 1975;
    Luce 1959); the mean makes it that of the pair for K = 2, and weighs prompts alike.
    """
    left = scores.flip(0).logcumsumexp(0).flip(0)  # of each place, over itself and those after it
    return (left - scores)[:-1].mean()
