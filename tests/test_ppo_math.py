"""The formulas of PPO against numbers worked by hand, definitions written out, and an enumerable vocabulary."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from rlaif.train import ppo_math

GARBAGE = [float("nan"), float("inf"), -1e30]


def mask_of(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- over the mask


def test_whitening_is_over_the_tokens_of_all_rows() -> None:
    """The tokens are 1, 3 | 5: mean 3, population variance 8/3, so -2, 0, 2 over sqrt(8/3) = 1.632993."""
    x, mask = torch.tensor([[1.0, 3.0], [5.0, 100.0]]), mask_of(2, 1)
    assert ppo_math.masked_mean(x, mask).item() == 3
    assert ppo_math.masked_variance(x, mask).item() == pytest.approx(8 / 3)
    expected = torch.tensor([[-1.2247449, 0.0], [1.2247449, 0.0]])
    torch.testing.assert_close(ppo_math.whiten(x, mask), expected)


def test_whitening_what_does_not_vary_gives_zeros() -> None:
    assert ppo_math.whiten(torch.ones(2, 2), mask_of(2, 1)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_stands_in_the_padding_changes_nothing_nor_does_it_reach_a_gradient(garbage: float) -> None:
    mask = mask_of(3, 1, 2)

    def everything(padding: float) -> list[Tensor]:
        old, ref, new, values, moved = (
            normal(3, 3, seed=seed).masked_fill(~mask, padding).requires_grad_() for seed in range(5)
        )
        rewards = ppo_math.token_rewards(torch.tensor([1.0, 2.0, 3.0]), old, ref, mask, 0.1)
        advantages, returns = ppo_math.gae(rewards, values, mask, 0.9, 0.8)
        white = ppo_math.whiten(advantages, mask)
        policy = ppo_math.policy_loss(new, old, white.detach(), mask, 0.2)
        value = ppo_math.value_loss(moved, values.detach(), returns.detach(), mask, 0.2)
        (policy.loss + value).backward()
        explained = ppo_math.explained_variance(values, returns, mask)
        kl = ppo_math.sequence_kl(new, ref, mask)
        return [rewards, advantages, returns, white, *policy, value, explained, kl, new.grad, moved.grad]

    for clean, padded in zip(everything(0.0), everything(garbage), strict=True):
        assert torch.isfinite(padded).all()
        torch.testing.assert_close(padded, clean)


# ---------------------------------------------------------------- probabilities


def test_token_logprobs_and_entropy_are_those_of_the_softmax() -> None:
    logits, tokens = normal(2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
    distribution = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(ppo_math.token_logprobs(logits, tokens), distribution.log_prob(tokens))
    torch.testing.assert_close(ppo_math.entropy(logits), distribution.entropy())
    assert ppo_math.entropy(torch.zeros(1, 1, 8)).item() == pytest.approx(math.log(8))
    assert ppo_math.entropy(torch.tensor([[[0.0, -math.inf]]])).item() == 0  # a token that cannot come


def test_the_kl_of_sampled_completions_is_the_exact_kl_within_its_sampling_error() -> None:
    """Two tokens of a vocabulary of 5, the second depending on the first: 25 completions, each with its probability."""
    policy_first, ref_first = normal(5, seed=1).log_softmax(-1), normal(5, seed=2).log_softmax(-1)
    policy_then, ref_then = normal(5, 5, seed=3).log_softmax(-1), normal(5, 5, seed=4).log_softmax(-1)
    log_policy = policy_first[:, None] + policy_then
    exact = (log_policy.exp() * (log_policy - ref_first[:, None] - ref_then)).sum().item()
    n = 20_000
    drawn = torch.multinomial(log_policy.exp().flatten(), n, True, generator=torch.Generator().manual_seed(0))
    first, second = drawn // 5, drawn % 5
    logprobs = torch.stack([policy_first[first], policy_then[first, second]], -1)
    ref_logprobs = torch.stack([ref_first[first], ref_then[first, second]], -1)
    kl = ppo_math.sequence_kl(logprobs, ref_logprobs, mask_of(2).expand(n, 2))
    error = kl.std().item() / math.sqrt(n)
    assert exact > 1 and error < 0.02
    assert kl.mean().item() == pytest.approx(exact, abs=3 * error)


# ---------------------------------------------------------------- rewards, advantages


def test_the_score_falls_on_the_last_token_of_each_row_and_the_kl_on_every_one() -> None:
    """beta 0.5, log-ratios 0.2, -0.4, 0.6 and 1: rewards -0.1, 0.2, -0.3 + 7 and -0.5 + 9."""
    logprobs = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, 0.0, 0.0]])
    ref_logprobs = torch.tensor([[-1.2, -0.6, -1.6], [-3.0, 5.0, 5.0]])
    rewards = ppo_math.token_rewards(torch.tensor([7.0, 9.0]), logprobs, ref_logprobs, mask_of(3, 1), 0.5)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 0.2, 6.7], [8.5, 0.0, 0.0]]))


def test_gae_worked_by_hand() -> None:
    """gamma 0.5, lambda 0.5; rewards 0, 0, 1; values 1, 2, 4.

    Row 1:  delta_2 = 1 + 0 - 4       = -3      A_2 = -3
            delta_1 = 0 + 0.5 * 4 - 2 =  0      A_1 = 0 + 0.25 * -3     = -0.75
            delta_0 = 0 + 0.5 * 2 - 1 =  0      A_0 = 0 + 0.25 * -0.75  = -0.1875
    Row 2 ends after two tokens, rewards 0, 3:
            delta_1 = 3 + 0 - 2       =  1      A_1 = 1
            delta_0 = 0 + 0.5 * 2 - 1 =  0      A_0 = 0.25
    """
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 3.0, 50.0]])
    values = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 50.0]])
    advantages, returns = ppo_math.gae(rewards, values, mask_of(3, 2), 0.5, 0.5)
    assert advantages.tolist() == [[-0.1875, -0.75, -3.0], [0.25, 1.0, 0.0]]
    assert returns.tolist() == [[0.8125, 1.25, 1.0], [1.25, 3.0, 0.0]]


def test_gae_with_lambda_1_is_the_discounted_return_less_the_value() -> None:
    lengths, gamma = (6, 1, 4), 0.9
    rewards, values, mask = normal(3, 6), normal(3, 6, seed=1), mask_of(*lengths)
    advantages, returns = ppo_math.gae(rewards, values, mask, gamma, 1.0)
    for b, length in enumerate(lengths):
        for t in range(length):
            discounted = sum(gamma ** (s - t) * rewards[b, s].item() for s in range(t, length))
            assert returns[b, t].item() == pytest.approx(discounted, abs=1e-5)
            assert advantages[b, t].item() == pytest.approx(discounted - values[b, t].item(), abs=1e-5)


def test_gae_with_lambda_0_is_the_error_of_one_step() -> None:
    rewards, values = row(1.0, 2.0), row(3.0, 4.0)
    assert ppo_math.gae(rewards, values, mask_of(2), 1.0, 0.0).advantages.tolist() == [[1 + 4 - 3, 2 - 4]]


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.5, 2.0, -2.4, 0.0, 1.0),  # too likely already, and good: -2 * 1.2
        (0.5, 2.0, -1.0, -1.0, 0.0),  # too unlikely, and good: -2 * 0.5 leads back
        (1.5, -2.0, 3.0, 3.0, 0.0),  # too likely, and bad: 2 * 1.5 leads back
        (0.5, -2.0, 1.6, 0.0, 1.0),  # too unlikely already, and bad: 2 * 0.8
        (1.1, 2.0, -2.2, -2.2, 0.0),
        (0.9, -2.0, 1.8, 1.8, 0.0),
    ],
)
def test_the_clipped_policy_loss_worked_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: float
) -> None:
    """clip 0.2. d ratio / d log-probability is the ratio, so an unclipped token's gradient is its loss."""
    logprobs = row(math.log(ratio) - 3.0).requires_grad_()
    found = ppo_math.policy_loss(logprobs, row(-3.0), row(advantage), mask_of(1), 0.2)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(loss, rel=1e-5)
    assert logprobs.grad.item() == pytest.approx(gradient, rel=1e-5)
    assert found.clip_fraction.item() == clipped
    assert found.ratio.item() == pytest.approx(ratio, rel=1e-5)
    assert found.approx_kl.item() == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-4)


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        (1.5, 2.0, 0.32, 0.0),  # stepped 0.5 towards the return, of which 0.2 counts: 0.5 * 0.8^2
        (1.5, 0.0, 1.125, 1.5),  # stepped away from it: 0.5 * 1.5^2
        (0.5, 0.0, 0.32, 0.0),
        (0.5, 2.0, 1.125, -1.5),
        (1.1, 2.0, 0.405, -0.9),  # within the clip: 0.5 * 0.9^2
    ],
)
def test_the_clipped_value_loss_worked_by_hand(value: float, target: float, loss: float, gradient: float) -> None:
    """The old value is 1, the clip 0.2."""
    values = row(value).requires_grad_()
    found = ppo_math.value_loss(values, row(1.0), row(target), mask_of(1), 0.2)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert values.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_losses_are_means_over_tokens_and_not_over_rows() -> None:
    advantages, zeros = torch.tensor([[3.0, 3.0, 3.0], [7.0, 0.0, 0.0]]), torch.zeros(2, 3)
    assert ppo_math.policy_loss(zeros, zeros, advantages, mask_of(3, 1), 0.2).loss.item() == pytest.approx(-4.0)
    assert ppo_math.value_loss(zeros, zeros, advantages, mask_of(3, 1), 9.0).item() == pytest.approx(0.5 * 76 / 4)


def test_before_the_first_update_the_policy_gradient_is_that_of_reinforce() -> None:
    """At ratio 1 the gradient of the clipped surrogate is the gradient of -mean(A log p), weight by weight."""
    mask, tokens, inputs = mask_of(4, 2, 3), torch.randint(5, (3, 4)), normal(3, 4, 8)
    advantages = ppo_math.whiten(normal(3, 4, seed=1), mask)
    weight = normal(8, 5, seed=2).requires_grad_()
    logprobs = ppo_math.token_logprobs(inputs @ weight, tokens)
    (reinforce,) = torch.autograd.grad(-(advantages * logprobs)[mask].mean(), weight, retain_graph=True)
    found = ppo_math.policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2)
    (ppo,) = torch.autograd.grad(found.loss, weight)
    assert (found.ratio.item(), found.clip_fraction.item(), found.approx_kl.item()) == (1, 0, 0)
    assert reinforce.abs().max() > 0.05
    torch.testing.assert_close(ppo, reinforce)


def test_explained_variance() -> None:
    """Returns 1, 2, 3 vary by 2/3. Values 1, 2, 2 leave 0, 0, 1, which vary by 2/9: a third is left."""
    returns, mask = row(1.0, 2.0, 3.0), mask_of(3)
    assert ppo_math.explained_variance(row(1.0, 2.0, 2.0), returns, mask).item() == pytest.approx(2 / 3)
    assert ppo_math.explained_variance(returns + 5, returns, mask).item() == 1
    assert ppo_math.explained_variance(row(4.0, 4.0, 4.0), returns, mask).item() == pytest.approx(0)
    assert ppo_math.explained_variance(-returns, returns, mask).item() == pytest.approx(-3)
    assert ppo_math.explained_variance(returns, row(2.0, 2.0, 2.0), mask).item() == 0
