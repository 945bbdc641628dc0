"""The losses of the DPO family against numbers worked by hand, against each other, and against TRL's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

pytest.importorskip("trl")

import torch
from torch import tensor
from trl import DPOTrainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.utils import add_fused_lm_head

from rlaif.config import DPOSettings
from rlaif.train import models, preference_losses, trl
from rlaif.train.preference_losses import Completions, scored, token_weights
from rlaif.train.references import References
from rlaif.train.tokens import Counts

LN2 = math.log(2)


def settings(**changed: Any) -> DPOSettings:
    return DPOSettings.model_validate({"base": "base", "name": "name"} | changed)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pair(
    chosen: float, rejected: float, references: tuple[float, float] | None, lengths: tuple[int, int]
) -> Completions:
    """One pair, by its log-probabilities in nats."""
    logps, counted = tensor([chosen, rejected]), tensor(lengths)
    reference = None if references is None else tensor(references)
    return Completions(logps, logps, counted, reference, reference)


# A pair whose log-ratios are 2 and -1, summed, and so .5 and -.5 per token.
KNOWN = pair(-10.0, -6.0, (-12.0, -5.0), (4, 2))


@pytest.mark.parametrize(
    ("changed", "loss", "rewards"),
    [
        # m = .1 * 2 - .1 * -1 = .3
        ({}, -math.log(sigma(0.3)), (0.2, -0.1)),
        ({"beta": 0.5}, -math.log(sigma(1.5)), (1.0, -0.5)),
        # cDPO: of ten pairs one is the wrong way round
        ({"label_smoothing": 0.1}, -0.9 * math.log(sigma(0.3)) - 0.1 * math.log(sigma(-0.3)), (0.2, -0.1)),
        (
            {"loss": "robust", "label_smoothing": 0.1},
            (-0.9 * math.log(sigma(0.3)) + 0.1 * math.log(sigma(-0.3))) / 0.8,
            (0.2, -0.1),
        ),
        # m = 5 * (.5 + .5) = 5
        ({"loss": "sigmoid_norm"}, -math.log(sigma(5)), (2.5, -2.5)),
        # (1 - 1 / .2)^2 = 16
        ({"loss": "ipo"}, 16.0, (0.05, -0.05)),
        # Log-probabilities per token are -2.5 and -3: m = 2 * .5 = 1, and gamma = 2 * .5 = 1.
        ({"loss": "simpo"}, LN2, (-5.0, -6.0)),
        ({"loss": "simpo", "beta": 4, "gamma_beta_ratio": 0.25}, -math.log(sigma(1)), (-10.0, -12.0)),
        # The chosen one's -2.5 nats per token
        ({"sft_weight": 0.2}, -math.log(sigma(0.3)) + 0.2 * 2.5, (0.2, -0.1)),
    ],
    ids=str,
)
def test_the_loss_of_a_pair_by_hand(changed: dict[str, Any], loss: float, rewards: tuple[float, float]) -> None:
    asked = settings(**changed)
    given = KNOWN._replace(reference=None, reference_counted=None) if asked.reference_free else KNOWN
    found = scored(asked, given, None)
    assert found.losses.tolist() == pytest.approx([loss], rel=1e-5)
    assert [*found.chosen.tolist(), *found.rejected.tolist()] == pytest.approx(rewards, rel=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "simpo"])
def test_a_soft_label_is_the_cross_entropy_with_its_probability(loss: str) -> None:
    """p = 1 is the hard label, p = 1/2 prefers neither, and p = .9 is smoothing by .1, for each pair its own."""
    given = Completions(*(torch.cat([each[:1].expand(3), each[1:].expand(3)]) for each in KNOWN))  # type: ignore[arg-type]
    soft = scored(settings(loss=loss, soft_labels=True), given, tensor([1.0, 0.9, 0.5])).losses
    hard = scored(settings(loss=loss), given, None).losses
    smoothed = scored(settings(loss=loss, label_smoothing=0.1), given, None).losses
    assert soft[:2].tolist() == pytest.approx([hard[0].item(), smoothed[0].item()], rel=1e-6)
    even = scored(settings(loss=loss, soft_labels=True), given, tensor([0.5] * 3)).losses
    swapped = Completions(*(each.roll(3) for each in given))  # type: ignore[union-attr]
    if loss != "simpo":  # whose gamma prefers the chosen one still
        assert even.tolist() == pytest.approx(
            scored(settings(loss=loss, soft_labels=True), swapped, tensor([0.5] * 3)).losses.tolist()
        )


def test_the_gradient_of_dpo_weighs_a_pair_by_how_wrong_its_margin_is() -> None:
    """Rafailov et al., section 4: beta * sigmoid(-m), up on the chosen one and down on the rejected one."""
    logps = tensor([-10.0, -6.0], requires_grad=True)
    scored(settings(), KNOWN._replace(logps=logps, counted=logps), None).losses.backward()
    weight = 0.1 * sigma(-0.3)
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([-weight, weight], rel=1e-6)


def test_length_normalised_dpo_is_dpo_at_beta_over_length_for_equal_lengths() -> None:
    given = pair(-10.0, -6.0, (-12.0, -5.0), (8, 8))
    normalised = scored(settings(loss="sigmoid_norm", beta=5), given, None)
    summed = scored(settings(beta=5 / 8), given, None)
    for one, other in zip(normalised, summed, strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), rel=1e-6)


def test_robust_dpo_is_unbiased_where_its_share_of_the_pairs_is_the_wrong_way_round() -> None:
    """Where one in five pairs is swapped, the mean of its losses is DPO's mean loss of the pairs as they should be."""
    swapped = Completions(*(each.flip(0) for each in KNOWN))  # type: ignore[union-attr]
    robust = settings(loss="robust", label_smoothing=0.2)
    right, wrong = (scored(robust, each, None).losses.item() for each in (KNOWN, swapped))
    assert 0.8 * right + 0.2 * wrong == pytest.approx(scored(settings(), KNOWN, None).losses.item(), rel=1e-6)


def test_ipo_has_its_least_loss_at_half_over_beta_and_no_slope_there() -> None:
    logps = tensor(
        [-10.0, -6.0], requires_grad=True
    )  # log-ratios per token .5 and -.5, whose difference is 1 / (2 * .5)
    losses = scored(settings(loss="ipo", beta=0.5), KNOWN._replace(logps=logps, counted=logps), None).losses
    losses.backward()
    assert logps.grad is not None
    assert losses.item() == pytest.approx(0, abs=1e-10) and logps.grad.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_ld_alpha_weighs_the_tokens_beyond_the_shorter_completion() -> None:
    mask = tensor([[0, 1, 1, 1, 1], [0, 0, 1, 1, 0]])
    assert token_weights(mask, 0.5).tolist() == [[0, 1, 1, 0.5, 0.5], [0, 0, 1, 1, 0]]
    assert token_weights(mask, 1).tolist() == token_weights(mask, None).tolist() == mask.tolist()
    assert token_weights(mask.flip(0), 0).tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, LN2),
        ({"label_smoothing": 0.3}, LN2),
        ({"loss": "robust", "label_smoothing": 0.3}, LN2),
        ({"loss": "sigmoid_norm"}, LN2),
        ({"soft_labels": True}, LN2),
        ({"loss": "ipo"}, 25.0),
        ({"loss": "ipo", "beta": 0.5}, 1.0),
        ({"sft_weight": 2}, LN2 + 2 * 12 / 4),
    ],
    ids=str,
)
def test_the_first_loss_in_closed_form(changed: dict[str, Any], expected: float) -> None:
    found = preference_losses.first_losses(settings(**changed), KNOWN, tensor([0.8]))
    assert found.tolist() == pytest.approx([expected], rel=1e-6)


# ---------------------------------------------------------------- TRL


@pytest.mark.parametrize(
    ("changed", "theirs"),
    [
        ({}, "sigmoid"),
        ({"loss": "ipo"}, "ipo"),
        ({"loss": "robust", "label_smoothing": 0.1}, "robust"),
        ({"loss": "sigmoid_norm"}, "sigmoid_norm"),
        ({"ld_alpha": 0.3}, "sigmoid"),
    ],
    ids=str,
)
def test_what_trl_has_is_trls(random_model: Path, tmp_path: Path, changed: dict[str, Any], theirs: str) -> None:
    """On a model that has moved from its reference, on pairs of unequal lengths, by TRL's own function."""
    asked = settings(batch_size=3, **changed)
    model, tokenizer = models.load(random_model)
    config = trl.configured(DPOConfig, trl.common_fields(asked, tmp_path, 0) | trl.dpo_fields(asked))
    rows = {"prompt_ids": [[7, 8, 9], [7, 8], [20]], "chosen_ids": [[30, 31, 1], [40, 1], [50, 51, 52, 53, 1]],
            "rejected_ids": [[60, 1], [61, 62, 63, 1], [64, 65, 1]], "row": [0, 1, 2]}  # fmt: skip
    own = {"preferences": asked, "references": References("0" * 32, tmp_path), "evaluated": {}, "notes": []}
    with trl.quietly():
        data = trl.TokenizedData(rows, {}, Counts(), own)
        trainer = trl._trainer(trl.DPO, config, asked, model, tokenizer, data)
    trainer.loss_types, trainer.label_smoothing, trainer.ld_alpha = [theirs], asked.label_smoothing, asked.ld_alpha
    inputs = next(iter(trainer.get_train_dataloader()))
    read = {name: inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")}
    with trl.quietly():
        reference = trainer.compute_ref_log_probs(model, read)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    ours = trainer._compute_loss(model, inputs, False).item()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    inputs |= zip(("ref_chosen_logps", "ref_rejected_logps"), reference, strict=True)
    expected = DPOTrainer._compute_loss(trainer, model, inputs, False).item()
    assert ours == pytest.approx(expected, rel=1e-5)
    assert abs(expected - preference_losses.first_losses(asked, KNOWN, None).item()) > 1e-3  # it has moved


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"loss": "robust"}, "is `sigmoid` without a `label_smoothing`"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "`loss: ipo` is a square"),
        ({"loss": "ipo", "soft_labels": True}, "`loss: ipo` takes no `soft_labels`"),
        ({"loss": "robust", "label_smoothing": 0.1, "soft_labels": True}, "both say how sure the labels are"),
        ({"soft_labels": True, "label_smoothing": 0.1}, "both say how sure the labels are"),
        ({"gamma_beta_ratio": 0.3}, "is of `loss: simpo`, and the loss is sigmoid"),
        ({"loss": "sigmoid_norm", "ld_alpha": 0.5}, "length-averaged already"),
        ({"loss": "simpo", "ld_alpha": 0.5}, "length-averaged already"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"ld_alpha": 1.5}, "less than or equal to 1"),
        ({"loss": "dpo"}, "sigmoid"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        settings(**changed)


def test_beta_is_by_default_that_of_the_loss() -> None:
    assert [settings(loss=loss).beta for loss in ("sigmoid", "ipo", "sigmoid_norm", "simpo")] == [0.1, 0.1, 5.0, 2.0]
    assert settings(loss="simpo", beta=10).beta == 10
    ratios = [settings(loss="simpo", **given).gamma_beta_ratio for given in ({}, {"gamma_beta_ratio": None})]
    assert ratios == [0.5, 0.5]
    assert settings(loss="simpo", gamma_beta_ratio=0).gamma_beta_ratio == 0
    again = DPOSettings.model_validate(settings(loss="simpo", gamma_beta_ratio=0.3).model_dump(mode="json"))
    assert (again.beta, again.gamma_beta_ratio) == (2.0, 0.3)


def test_figures_are_those_of_the_loss_and_of_plain_sums() -> None:
    """The rewards of a loss that averages are averages; TRL's are beta times the sum for every loss."""
    asked = settings(loss="sigmoid_norm")
    noted = preference_losses.figures(KNOWN, scored(asked, KNOWN, None))
    assert set(noted) == set(preference_losses.REPORTED)
    found: dict[str, list[float]] = {name: values.tolist() for name, values in noted.items()}
    assert found == {
        "rewards/chosen": [2.5], "rewards/rejected": [-2.5], "rewards/margins": [5.0], "rewards/accuracies": [1.0],
        "logps/chosen": [-10.0], "logps/rejected": [-6.0], "lengths/chosen": [4.0], "lengths/rejected": [2.0],
        "logps/chosen_per_token": [-2.5], "logps/rejected_per_token": [-3.0],
        "logratios/chosen_per_token": [0.5], "logratios/rejected_per_token": [-0.5],
    }  # fmt: skip
