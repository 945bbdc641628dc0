"""The formulas of proximal policy optimisation on tensors, with their sources.

Per-token quantities are (B, T) tensors: one row for each of B completions, padded on the right to T tokens, the end
token included. `mask` is (B, T), true on tokens. Values where it is false are ignored, infinities included.
Log-probabilities and divergences are in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Advantages(NamedTuple):
    advantages: Tensor  # (B, T), zero off the mask
    returns: Tensor  # (B, T), zero off the mask: what the value model is fitted to


class PolicyLoss(NamedTuple):
    """Scalars. All but `loss` are without gradient."""

    loss: Tensor
    clip_fraction: Tensor  # share of tokens whose gradient is clipped to zero
    approx_kl: Tensor  # per token, KL(old policy, policy)
    ratio: Tensor  # mean


# ---------------------------------------------------------------- over the mask


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over all tokens of all rows: each token has the same weight. Scalar."""
    return x[mask].mean()


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """The population variance over all tokens of all rows. Scalar."""
    return x[mask].var(correction=0)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with mean 0 and variance 1 over the mask, zero off it (Ziegler et al. 2019, their released code). (B, T)"""
    whitened = (x - masked_mean(x, mask)) * torch.rsqrt(masked_variance(x, mask) + 1e-8)
    return whitened.masked_fill(~mask, 0.0)


# ---------------------------------------------------------------- probabilities


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p of each token, (B, T), from the logits that predict it, (B, T, V)."""
    # Unlike a log-softmax, this needs no second tensor of the size of the logits.
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)


def entropy(logits: Tensor) -> Tensor:
    """The entropy of each next-token distribution, (B, T), from its logits, (B, T, V)."""
    each: Tensor = torch.special.entr(logits.softmax(-1))
    return each.sum(-1)


def sequence_kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log policy(completion) - log reference(completion) of each completion, (B,).

    Over completions sampled from the policy its mean is an unbiased estimate of KL(policy, reference): k1 in Schulman
    2020, "Approximating KL divergence". One completion's may be negative.
    """
    return (logprobs - ref_logprobs).masked_fill(~mask, 0.0).sum(-1)


# ---------------------------------------------------------------- rewards, advantages


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The reward of each token, (B, T): -beta * (log policy - log reference), plus the row's score on the last one.

    `scores` is (B,). Summed over a row this is R(x, y) of Ziegler et al. 2019, equation 2. Every row needs a token.
    """
    rewards = (-beta * (logprobs - ref_logprobs)).masked_fill(~mask, 0.0)
    last = mask.sum(-1, keepdim=True) - 1  # (B, 1)
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equations 12 and 16).

        delta_t = r_t + gamma V_{t+1} - V_t            A_t = delta_t + gamma lambda A_{t+1}

    V_t is the value before token t was chosen; after the last token both V and A are 0. The returns are A + V.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # In the padding all three terms are 0, so a row's recursion starts at its own last token.
        advantages[:, t] = next_advantage = delta + gamma * gae_lambda * next_advantage
        next_value = values[:, t]
    return Advantages(advantages, advantages + values)


# ---------------------------------------------------------------- losses


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> PolicyLoss:
    """The clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, equation 7), as a loss: the mean over tokens of

        max(-A ratio, -A clamp(ratio, 1 - clip, 1 + clip))        ratio = policy / old policy

    `approx_kl` is the mean of (ratio - 1) - log ratio, never negative: k3 in Schulman 2020.
    """
    # Padding is removed first: masked later, an infinity there would give a NaN gradient.
    log_ratio, advantages = (logprobs - old_logprobs)[mask], advantages[mask]
    ratio = log_ratio.exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        clip_fraction = (clipped > unclipped).float().mean()
        approx_kl = (ratio - 1 - log_ratio).mean()
    return PolicyLoss(torch.max(unclipped, clipped).mean(), clip_fraction, approx_kl, ratio.detach().mean())


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Half the squared error, with the step away from the old value clipped (Ziegler et al. 2019, their released code).

    0.5 * mean of max((V - return)^2, (clamp(V, old - clip, old + clip) - return)^2)            scalar
    """
    values, old_values, returns = values[mask], old_values[mask], returns[mask]
    clipped = values.clamp(old_values - clip, old_values + clip)
    return 0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2).mean()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect value model, 0 as good as a constant. Scalar.

    0 where the returns do not vary.
    """
    total = masked_variance(returns, mask)
    left = masked_variance(returns - values, mask)
    return torch.where(total > 0, 1 - left / total, torch.zeros_like(total))
