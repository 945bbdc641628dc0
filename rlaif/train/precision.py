"""In which numbers a model computes, in which its weights are held, and AdamW for weights in bfloat16.

Two settings decide. `dtype` is what matrix products compute in: under `bfloat16` the forward pass runs under autocast,
and softmax, norms and losses stay in float32. `weights` is what the weights are held in:

- `float32` weights under `dtype: bfloat16` are the masters of mixed precision (Micikevicius et al. 2018, arXiv
  1710.03740). With gradients and AdamW's two moments they take 16 bytes a parameter.
- `bfloat16` weights, gradients and moments take 8. A bfloat16 has 8 bits of precision: near 0.02, a usual weight, its
  neighbours are 1e-4 apart, so a step of 2e-5 is lost when it is rounded to the nearest: `RoundedAdamW` rounds at
  random.
- Frozen weights, under an adapter, change by no step: they are held in what is computed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rlaif.config import Training


def computed_in(settings: Training) -> torch.dtype:
    """The numbers that the model computes in. `auto` is bfloat16 on a GPU that has it, and float32 anywhere else.

    Over a base in 4 bits it is bfloat16, which those are multiplied in.
    """
    if settings.lora is not None and settings.lora.quantized:
        return torch.bfloat16
    if settings.dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32


def held_in(settings: Training) -> torch.dtype:
    """The numbers that the base model's weights are held in.

    Those of an adapter over it are float32, or bfloat16 over a base in 4 bits, as TRL has it.

    `auto` is float32 for weights that are trained, and `computed_in` for those that are frozen.
    """
    stated = getattr(settings, "weights", "auto")
    if stated == "auto":
        return torch.float32 if getattr(settings, "lora", None) is None else computed_in(settings)
    return torch.bfloat16 if stated == "bfloat16" else torch.float32


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) of bfloat16 weights and moments, computed in float32.

    A result is rounded to one of its two bfloat16 neighbours, the nearer the likelier, so that its mean is exact and
    steps smaller than the neighbours' distance add up (Gupta et al. 2015, arXiv 1502.02551; for training in bfloat16
    Zamirai et al. 2020, arXiv 2010.06192). The second moment moves by 1 - beta2 = 0.1 % a step, which to the nearest
    would always be lost. What is drawn depends on the number of the step alone, so that a training resumes exactly, and
    every process of several draws the same.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every weight with a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        draws: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad.float(), group, draws)
        return loss

    def _update(
        self, weight: Tensor, slope: Tensor, group: dict[str, Any], draws: dict[torch.device, torch.Generator]
    ) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["first"], state["second"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        (beta1, beta2), taken = group["betas"], state["step"].item()
        first = state["first"].float().lerp_(slope, 1 - beta1)
        second = state["second"].float().mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        scale = (second / (1 - beta2**taken)).sqrt_().add_(group["eps"])
        moved = weight.float().mul_(1 - group["lr"] * group["weight_decay"])
        moved.addcdiv_(first, scale, value=-group["lr"] / (1 - beta1**taken))
        if weight.device not in draws:
            draws[weight.device] = torch.Generator(weight.device).manual_seed(int(taken))
        for kept, exact in ((weight, moved), (state["first"], first), (state["second"], second)):
            kept.copy_(rounded(exact, draws[weight.device]))


def rounded(exact: Tensor, draws: torch.Generator) -> Tensor:
    """A float32 tensor in bfloat16, each number at random one of its two neighbours, with the right mean.

    bfloat16 is the upper half of a float32's bits: a uniform number is added to the lower half, which is then cut.
    Infinity and NaN stay what they are.
    """
    bits = exact.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32, device=exact.device, generator=draws)
    near = ((bits + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(torch.isfinite(exact), near, exact).to(torch.bfloat16)
