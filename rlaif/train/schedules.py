"""The learning rate over a training: a linear warm-up, then a schedule, as pure functions of the step.

`wsd` is warm-up, stable, decay (MiniCPM, arXiv 2404.06395): the rate stays at its peak and falls over the last share
of the steps, by 1 - sqrt(x), which Haegele et al. (arXiv 2405.18392) found better than a line, or by a line. A falling
schedule ends at `min_rate`: InstructGPT and Llama 2 fall to a tenth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rlaif.config import TrainerSettings


class Schedule(NamedTuple):
    """The share of the learning rate at each step of a training of `steps` steps, of which `warmup` warm up.

    Steps are counted from 0. No step stands at 0: the first of a warm-up of n has 1/n, and a rate of 0 would come after
    the last step.
    """

    kind: str
    steps: int
    warmup: int = 0
    decay: float = 0.1
    decay_shape: str = "1-sqrt"
    least: float = 0.0

    def share(self, step: int) -> float:
        """The share of the learning rate at `step`, between 0 and 1."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        falling = self.steps - self.warmup
        if self.kind == "wsd":
            falling = min(falling, max(1, round(self.decay * self.steps)))
        left = 1 - (step - (self.steps - falling)) / max(1, falling)  # 1 as it begins to fall, 0 after the last step
        return self.least + (1 - self.least) * self._height(min(1.0, max(0.0, left)))

    def _height(self, left: float) -> float:
        """The height of a fall from 1 to 0, of which the share `left` is still to come."""
        if self.kind == "cosine":
            return 0.5 * (1 - math.cos(math.pi * left))
        if self.kind == "constant":
            return 1.0
        return 1 - math.sqrt(1 - left) if self.kind == "wsd" and self.decay_shape == "1-sqrt" else left


def schedule_of(settings: TrainerSettings, steps: int) -> Schedule:
    """The schedule of `settings` over `steps` steps."""
    warmup = math.ceil(settings.warmup * steps)
    return Schedule(settings.schedule, steps, warmup, settings.decay, settings.decay_shape, settings.min_rate)
