"""Numbers of a training: what it computes in, what its weights are held in, and steps too small for bfloat16."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from conftest import make_random_model
from safetensors.torch import load_file
from test_train import METHODS, Steps, settings_of, train
from transformers import LlamaConfig

from rlaif.train import precision
from rlaif.train.precision import RoundedAdamW, rounded
from rlaif.train.trl import PRECISION

TINY: dict[str, Any] = {
    "vocab_size": 261, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "pad_token_id": 0, "eos_token_id": 1, "initializer_range": 0.1,
}  # fmt: skip
BOTH: dict[str, Any] = {"dtype": "bfloat16", "weights": "bfloat16"}
PRECISIONS: dict[str, dict[str, Any]] = {"float32": {}, "dtype": {"dtype": "bfloat16"}, "both": BOTH}


@METHODS
def test_the_first_loss_in_bfloat16_is_that_in_float32(method: str, tmp_path: Path) -> None:
    """Within 1e-2 of it, computed in bfloat16 and with weights held in it; each in one step of all rows."""
    base = make_random_model(tmp_path / "base", config=LlamaConfig(**TINY))
    losses = []
    for name, changed in PRECISIONS.items():
        steps: Steps = []
        train(method, base, tmp_path / name, steps.append, batch_size=24, **changed)
        losses.append(steps[0]["loss"])
        held = {tensor.dtype for tensor in load_file(tmp_path / name / "model.safetensors").values()}
        assert held == {torch.bfloat16 if name == "both" else torch.float32}
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-2)
    assert len(set(losses)) > 1 or method == "dpo"  # dpo's is ln 2 in any


def test_weights_held_in_bfloat16_learn_and_resume_to_the_byte(random_model: Path, tmp_path: Path) -> None:
    class Stop(Exception): ...

    def stop(figures: dict[str, float]) -> None:
        if figures["step"] == 3:
            raise Stop

    steps: Steps = []
    train("sft", random_model, tmp_path / "whole", steps.append, weights="bfloat16")
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    with pytest.raises(Stop):
        train("sft", random_model, tmp_path / "out", stop, weights="bfloat16")
    train("sft", random_model, tmp_path / "out", weights="bfloat16")
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_launchers_precision_changes_no_loss_and_stays_in_the_environment(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate reads the variable, in which `accelerate launch` says what its configuration has."""
    monkeypatch.delenv(PRECISION, raising=False)
    plain: Steps = []
    train("sft", random_model, tmp_path / "plain", plain.append, dtype="float32", max_steps=2)
    assert PRECISION not in os.environ
    launched: Steps = []
    monkeypatch.setenv(PRECISION, "bf16")
    train("sft", random_model, tmp_path / "launched", launched.append, dtype="float32", max_steps=2)
    assert os.environ[PRECISION] == "bf16"
    assert [step["loss"] for step in launched] == [step["loss"] for step in plain]


def test_auto_is_float32_without_a_gpu_and_frozen_weights_are_held_as_they_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full, frozen = settings_of("sft"), settings_of("sft", lora={})
    assert {precision.computed_in(full), precision.held_in(full), precision.held_in(frozen)} == {torch.float32}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert precision.computed_in(full) == torch.bfloat16
    assert precision.held_in(full) == torch.float32  # the masters
    assert precision.held_in(frozen) == torch.bfloat16
    assert precision.held_in(settings_of("sft", lora={}, weights="float32")) == torch.float32
    assert precision.computed_in(settings_of("sft", dtype="float32")) == torch.float32


# ---------------------------------------------------------------- rounding


def test_a_number_is_rounded_to_a_neighbour_with_the_right_mean() -> None:
    draws = torch.Generator().manual_seed(0)
    exact = torch.full((200_000,), 0.02 + 3e-5)
    drawn = rounded(exact, draws).float()
    low, high = sorted(set(drawn.tolist()))
    assert low < exact[0].item() < high and high - low == pytest.approx(2**-13)
    assert drawn.mean().item() == pytest.approx(exact[0].item(), abs=4 * (high - low) / 2 / 200_000**0.5)
    kept = torch.tensor([0.5, -0.5, 0.0, float("inf"), float("-inf")])
    assert torch.equal(rounded(kept, draws).float(), kept)
    assert rounded(torch.tensor([float("nan")]), draws).isnan().all()


def test_steps_too_small_for_bfloat16_add_up_and_to_the_nearest_are_lost() -> None:
    """200 steps of 5e-7, DPO's rate, from 0.02: together 1e-4, one distance of neighbours."""
    torch.manual_seed(0)
    moved = {}
    for name, kind in {"rounded": RoundedAdamW, "nearest": torch.optim.AdamW}.items():
        weight = torch.nn.Parameter(torch.full((10_000,), 0.02, dtype=torch.bfloat16))
        before = weight.detach().float().clone()
        optimizer = kind([weight], lr=5e-7, weight_decay=0.0)
        for _ in range(200):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[name] = (before - weight.detach().float()).mean().item()
    assert moved["nearest"] == 0
    assert moved["rounded"] == pytest.approx(1e-4, rel=0.05)


def test_in_numbers_that_need_no_rounding_it_is_adamw() -> None:
    """By float32 weights of the same start: the two differ by bfloat16's precision alone."""
    torch.manual_seed(0)
    start, slopes = torch.randn(2000), torch.randn(30, 2000)
    ours = torch.nn.Parameter(start.to(torch.bfloat16))
    theirs = torch.nn.Parameter(ours.detach().float())
    here, there = (
        RoundedAdamW([ours], lr=1e-2, weight_decay=0.1),
        torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1),
    )
    for slope in slopes:
        ours.grad, theirs.grad = slope.to(torch.bfloat16), slope.to(torch.bfloat16).float()
        here.step()
        there.step()
    gap = (ours.detach().float() - theirs.detach()).abs()
    assert gap.mean() < 0.01 and (theirs.detach() - start).abs().mean() > 0.03
    assert (ours.detach().float() - theirs.detach()).mean().abs() < 1e-3
