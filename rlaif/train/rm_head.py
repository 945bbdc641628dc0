"""The score head after training: the scores of sequences, and a head whose scores have mean 0 and deviation 1.

Stiennon et al. 2020 (arXiv 2009.01325, section 3.4) and Ouyang et al. 2022 (arXiv 2203.02155, appendix C.2) shift a
reward model so that reference completions score 0 on average. Such a shift needs a bias, and the heads of transformers'
classifiers have none, so that a bias beside the weights would be lost on anybody who loads the model. Here it lies in
the weights: a direction u with u·h close to 1 for the end-token states h of all reference completions carries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlaif.errors import WorkError

RIDGE = 1e-3  # of the states' mean square: keeps u from fitting single completions
UNEVEN = 0.1  # deviations: the most that the shift may differ between completions


class Normalised(NamedTuple):
    """What normalising did: the reference completions' mean before, what it divided by, and how unevenly it shifts.

    `deviation`, which it divided by, is also the scale of the Bradley-Terry model: the probability that a completion is
    the better one is sigmoid(deviation * difference of the normalised scores). `uneven` is the deviation of the shift
    between completions that it was not fitted on, in the unit of the normalised scores. Only a `shifted` head has mean
    0.
    """

    mean: float
    deviation: float
    uneven: float
    shifted: bool
    completions: int


@torch.no_grad()
def states(model: Any, sequences: Sequence[Sequence[int]], batch_size: int) -> Tensor:
    """(N, D) the states that the score head reads: of the last token of each sequence, in float32.

    Batches hold sequences of similar length, padded on the right.
    """
    backbone = _classifier(model).base_model
    device, pad = model.device, model.config.get_text_config().pad_token_id
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
    found: dict[int, Tensor] = {}
    training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        rows = [torch.tensor(sequences[i], device=device) for i in places]
        ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        hidden = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B, T, D)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        found |= zip(places, hidden[torch.arange(len(rows), device=device), last].float().cpu(), strict=True)
    model.train(training)
    return torch.stack([found[i] for i in range(len(sequences))])


@torch.no_grad()
def scores(model: Any, hidden: Tensor) -> list[float]:
    """The head's scores of states (N, D)."""
    weight, bias = _head(model)
    return [float(score) for score in hidden.double() @ weight + bias]


@torch.no_grad()
def normalise(model: Any, hidden: Tensor) -> Normalised | None:
    """Give the scores of the states (N, D) mean 0 and deviation 1, and shift and scale every score of the model alike.

    The mean stays as it is where the shift would be more uneven than `UNEVEN`. None, and no change, where all score the
    same.
    """
    states, (weight, bias) = hidden.double(), _head(model)
    before = states @ weight + bias  # (N,)
    mean, deviation = float(before.mean()), float(before.std(unbiased=False))
    if deviation < 1e-6:
        return None
    uneven = 0.0
    head = _score(model)
    if head.bias is not None:
        bias = bias - mean
    else:
        apart = states[1::2] @ _direction(states[::2])  # of completions that it is not fitted on
        uneven = abs(mean) * float(apart.std(unbiased=False)) / deviation
    shifted = uneven <= UNEVEN
    if shifted and head.bias is None:
        weight = weight - mean * _direction(states)
    scale = float((states @ weight + bias).std(unbiased=False))
    head.weight.copy_(weight[None] / scale)
    if head.bias is not None:
        head.bias.fill_(float(bias) / scale)
    return Normalised(mean, scale, uneven, shifted, len(states))


@torch.no_grad()
def refuse_padded_otherwise(model: Any, tokenizer: Any, sequences: Sequence[Sequence[int]]) -> None:
    """Raise WorkError where the model, as anybody calls it, scores a sequence otherwise in a batch or alone.

    transformers reads a score at the last token that is not the configuration's padding token. Where the tokenizer pads
    with another, or the sequences end with it, that is another place than was trained.
    """
    net, training = _classifier(model), model.training
    hidden = states(model, sequences, len(sequences))
    read = scores(model, hidden)
    model.eval()
    alone = [float(net(input_ids=torch.tensor([ids], device=net.device)).logits[0, 0]) for ids in sequences]
    batch = tokenizer.pad({"input_ids": [list(ids) for ids in sequences]}, return_tensors="pt").to(net.device)
    padded = net(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0].float().tolist()
    model.train(training)
    exact = all(weight.dtype == torch.float32 for weight in net.parameters())
    # What rounding does goes by the sizes of the head and of the states, of which a score may be a small difference.
    size = float(_head(model)[0].norm() * hidden.norm(dim=1).max())
    tolerance = max(1e-5 * size, 1e-3 * max(map(abs, read))) if exact else max(0.02 * size, 0.5 * max(map(abs, read)))
    for score, one, of_batch in zip(read, alone, padded, strict=True):
        if not max(abs(one - score), abs(of_batch - score)) <= tolerance:
            raise WorkError(
                f"the trained reward model scores a completion {score:.4f} at its end token, {one:.4f} in the "
                f"classifier of transformers, and {of_batch:.4f} there in a padded batch",
                fix="give the base's tokenizer a padding token of its own, a special one that is no end token",
            )


def _classifier(model: Any) -> Any:
    """The classifier itself, without what peft wraps it in."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _score(model: Any) -> Any:
    """The head; of a model with adapters the one that is trained."""
    head = _classifier(model).score
    trained = getattr(head, "modules_to_save", None)
    return head if trained is None else trained[model.active_adapter]


def _head(model: Any) -> tuple[Tensor, Tensor]:
    """(D,) the head's weight and () its bias, 0 without one, in double precision."""
    head = _score(model)
    bias = torch.zeros(()) if head.bias is None else head.bias[0]
    return head.weight[0].double().cpu(), bias.double().cpu()


def _direction(states: Tensor) -> Tensor:
    """(D,) u with a mean of u·h of 1, and u·h as even as a ridge allows, over states h (N, D) in double precision."""
    n, width = states.shape
    ridge = RIDGE * float(states.pow(2).sum()) / n
    if n <= width:
        kernel = states @ states.T + ridge * torch.eye(n, dtype=states.dtype)
        u = states.T @ torch.linalg.solve(kernel, torch.ones(n, dtype=states.dtype))
    else:
        gram = states.T @ states + ridge * torch.eye(width, dtype=states.dtype)
        u = torch.linalg.solve(gram, states.sum(0))
    direction: Tensor = u / float((states @ u).mean())
    return direction
