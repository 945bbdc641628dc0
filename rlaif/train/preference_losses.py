"""The losses of the DPO family, in plain torch.

y_w is the chosen completion to a prompt x, y_l the rejected one; |y| counts tokens, the end token included, and log
policy(y|x) is in nats, summed over them. The implicit reward r of a completion, and the margin m of a pair, are

    sigmoid, robust   r(y) = beta * log(policy(y|x) / reference(y|x))
    sigmoid_norm, ipo r(y) = beta * log(policy(y|x) / reference(y|x)) / |y|
    simpo             r(y) = beta * log(policy(y|x)) / |y|
                      m    = r(y_w) - r(y_l)

and the loss of a pair, with S = log sigmoid,

    sigmoid, sigmoid_norm   -p S(m) - (1 - p) S(-m)
    simpo                   -p S(m - gamma) - (1 - p) S(gamma - m), where gamma = beta * gamma_beta_ratio
    robust                  (-(1 - e) S(m) + e S(-m)) / (1 - 2e)
    ipo                     (m / beta - 1 / (2 beta))^2

where e is `label_smoothing`, and p is 1 - e, or with `soft_labels` the pair's own probability. Sources:

    sigmoid       DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7; with e, cDPO: Mitchell 2023, "A note on DPO
                  with noisy preferences". Soft labels are cDPO whose e is each pair's own.
    robust        Chowdhury et al. 2024, arXiv 2403.00409: unbiased where a share e of the pairs is the wrong way round
    ipo           Azar et al. 2023, arXiv 2310.12036, equation 17; log-ratios are averaged over tokens, as TRL does
                  after its authors confirmed that this is what they ran
    sigmoid_norm  length-normalised DPO: Lambert et al. 2024 (Tulu 3), arXiv 2411.15124, section 5
    simpo         Meng et al. 2024, arXiv 2405.14734, equation 6
    ld_alpha      LD-DPO: Liu et al. 2024, arXiv 2409.06411: of the log-probabilities of the longer completion, those of
                  the tokens beyond the shorter one's length count ld_alpha times
    sft_weight    adds sft_weight * -log(policy(y_w|x)) / |y_w|: Pang et al. 2024, arXiv 2404.19733, equation 1

TRL lacks simpo, the smoothing of sigmoid, and soft labels, and logs beta * log-ratio as the reward also where the loss
averages over tokens. So all are computed here; tests hold those that TRL has to TRL's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlaif.config import DPOSettings

AVERAGED = ("sigmoid_norm", "ipo", "simpo")  # losses on log-probabilities averaged over tokens
# What a step reports of its pairs, as means over them.
REPORTED = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",  # the share of pairs whose margin is above 0
    "logps/chosen",  # nats, summed over a completion's tokens
    "logps/rejected",
    "logps/chosen_per_token",
    "logps/rejected_per_token",
    "logratios/chosen_per_token",  # to the reference; what a loss without one does not have
    "logratios/rejected_per_token",
    "lengths/chosen",  # tokens
    "lengths/rejected",
)


class Completions(NamedTuple):
    """The completions of a batch, those chosen and then those rejected, in tensors of shape (2 * pairs,).

    Log-probabilities are in nats, summed over tokens; the `counted` ones as `ld_alpha` counts tokens. The reference's
    are None for a loss without one.
    """

    logps: Tensor
    counted: Tensor
    lengths: Tensor  # tokens
    reference: Tensor | None = None
    reference_counted: Tensor | None = None


class Scored(NamedTuple):
    """A batch by a loss, in tensors of shape (pairs,)."""

    losses: Tensor
    chosen: Tensor  # implicit rewards
    rejected: Tensor


def token_weights(mask: Tensor, ld_alpha: float | None) -> Tensor:
    """The weight of each token in the log-probability of its completion.

    `mask` has the shape (2 * pairs, positions), and 1 for the tokens of completions, those chosen in its first half.
    """
    if ld_alpha is None:
        return mask
    shared = torch.minimum(*mask.sum(1).chunk(2)).repeat(2).unsqueeze(1)
    return torch.where(mask.cumsum(1) <= shared, 1.0, ld_alpha) * mask


def scored(settings: DPOSettings, pairs: Completions, probability: Tensor | None) -> Scored:
    """The loss and the implicit rewards of each pair. `probability`, that chosen is better, is for soft labels."""
    chosen, rejected = _rewards(settings, pairs).chunk(2)
    losses = _losses(settings, chosen - rejected, probability) + settings.sft_weight * _nll(pairs.logps, pairs.lengths)
    return Scored(losses, chosen, rejected)


def first_losses(settings: DPOSettings, pairs: Completions, probability: Tensor | None) -> Tensor:
    """The loss of each pair where the policy is the reference: ln 2 for the logistic losses, (1 / (2 beta))^2 for ipo.

    The SFT term, where there is one, is that of the reference. Not for a loss without reference.
    """
    assert pairs.reference is not None, "only a loss with a reference has this value"
    same = torch.zeros_like(pairs.reference.chunk(2)[0])
    return _losses(settings, same, probability) + settings.sft_weight * _nll(pairs.reference, pairs.lengths)


def _rewards(settings: DPOSettings, pairs: Completions) -> Tensor:
    ratios = pairs.counted if pairs.reference_counted is None else pairs.counted - pairs.reference_counted
    return settings.beta * (ratios / pairs.lengths if settings.loss in AVERAGED else ratios)


def _losses(settings: DPOSettings, margins: Tensor, probability: Tensor | None) -> Tensor:
    smoothing = settings.label_smoothing
    if settings.loss == "ipo":
        return (margins / settings.beta - 1 / (2 * settings.beta)) ** 2
    if settings.loss == "robust":
        return ((smoothing - 1) * logsigmoid(margins) + smoothing * logsigmoid(-margins)) / (1 - 2 * smoothing)
    if settings.loss == "simpo":
        assert settings.gamma_beta_ratio is not None, "simpo has its default"
        margins = margins - settings.beta * settings.gamma_beta_ratio
    sure: Tensor | float = 1 - smoothing
    if settings.soft_labels:
        assert probability is not None, "soft labels come with their probabilities"
        sure = probability
    return -sure * logsigmoid(margins) - (1 - sure) * logsigmoid(-margins)


def _nll(logps: Tensor, lengths: Tensor) -> Tensor:
    """The negative log-likelihood per token of the chosen completions."""
    return -(logps / lengths).chunk(2)[0]


def figures(pairs: Completions, batch: Scored) -> dict[str, Tensor]:
    """What REPORTED names, for each pair. Detached, of shape (pairs,)."""
    margins = batch.chosen - batch.rejected
    per_token = pairs.logps / pairs.lengths
    sides = {"logps": pairs.logps, "lengths": pairs.lengths.float()}
    of_tokens = {"logps": per_token}
    if pairs.reference is not None:
        of_tokens["logratios"] = per_token - pairs.reference / pairs.lengths
    values = {"rewards/chosen": batch.chosen, "rewards/rejected": batch.rejected, "rewards/margins": margins}
    values["rewards/accuracies"] = (margins > 0).float()
    for suffix, both in (("", sides), ("_per_token", of_tokens)):
        for name, tensor in both.items():
            values[f"{name}/chosen{suffix}"], values[f"{name}/rejected{suffix}"] = tensor.chunk(2)
    return {name: value.detach() for name, value in values.items()}
