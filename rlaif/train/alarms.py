"""What the figures of a training's steps warn of.

A training diverged when its loss ends far above where it began: such a model is worse than its base, however finite its
weights. One that rises and comes back did not, so the last steps decide, not the highest.

DPO raises the chosen completion's log-probability only relative to the rejected one's, and both often fall. A little is
usual. A fall of FALL nats per token over a whole window makes each chosen token 0.6 times as probable as under the base
model, and a completion of 200 tokens e^100 times less probable: the published replication of Constitutional AI that is
known for its collapse fell so far, from -195 to -295 nats (Hugging Face, mistral-7b-anthropic). By then a model that
should prefer the chosen completion has mostly learnt to write neither. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

COLLAPSE = "alarm/chosen_collapse"  # the figure of a step: the fall in nats per token, where it is an alarm
WINDOW = 10  # steps, whose mean counts: a batch of other rows has another mean
FALL = 0.5  # nats per token
RISE = 1.5  # times the first loss, above which the end of a training is told
LEAST_RISE = 0.5  # nats; a smaller one is not told
PADDED = 0.25  # share of padding above which grouping by length is advised

Figures = Sequence[Mapping[str, float]]


def fall(first: Figures, last: Figures) -> float | None:
    """How far the chosen completions fell, in nats per token, where that is an alarm.

    `first` and `last` are the figures of up to WINDOW steps, at the beginning and now. The fall is below the reference;
    for a loss without one, below the first steps.
    """
    if len(last) < WINDOW:
        return None
    if "logratios/chosen_per_token" in last[-1]:
        found = -_mean(last, "logratios/chosen_per_token")
    elif "logps/chosen_per_token" in last[-1]:
        found = _mean(first, "logps/chosen_per_token") - _mean(last, "logps/chosen_per_token")
    else:
        return None
    return found if found > FALL else None


class Rise(NamedTuple):
    """A loss that ended well above where it began. `diverged` says whether any data could explain it."""

    began: float
    ended: float
    steps: int  # whose mean the end is
    diverged: bool

    def __str__(self) -> str:
        over = f", the mean of the last {self.steps} steps" if self.steps > 1 else ""
        return f"the loss began at {self.began:.4g} and ended at {self.ended:.4g}{over}"


def rise(losses: Sequence[float], floor: float, kept: int | None = None) -> Rise | None:
    """The rise of a loss that ended RISE times as high as it began or higher; None of any other.

    `losses` are those of all steps. The first is that of the base. The end is the mean of up to WINDOW steps, at most
    half of all; without those after the step `kept`, by default the last, and the next one, whose loss is that of the
    weights that are kept. `floor` is a loss that no useful model has, whatever its data: only
    above it the training diverged, since below it the first batch may have been an easy one.
    """
    losses = losses[: len(losses) if kept is None else kept + 1]
    if len(losses) < 2:
        return None
    last = losses[-min(WINDOW, len(losses) // 2) :]
    ended = sum(last) / len(last)
    if ended <= RISE * losses[0] or ended - losses[0] < LEAST_RISE:
        return None
    return Rise(losses[0], ended, len(last), ended > floor)


def notes(steps: Figures, *, grouped: bool) -> list[str]:
    """What to tell of a whole training, from the figures of all its steps."""
    told = []
    for end in range(WINDOW, len(steps) + 1):
        if (found := fall(steps[:WINDOW], steps[end - WINDOW : end])) is not None:
            told.append(sentence(found, int(steps[end - 1]["step"])))
            break
    padded = [step["padding"] for step in steps if "padding" in step]
    if padded and not grouped and (share := sum(padded) / len(padded)) > PADDED:
        told.append(f"{share:.0%} of the tokens in batches were padding: `group_by_length: true` saves most of it")
    return told


def sentence(found: float, step: int) -> str:
    """The alarm in words."""
    return (
        f"at step {step} the chosen completions are {found:.2f} nats per token less probable than before the training: "
        "lower `learning_rate` or `epochs`, raise `beta`, or add an `sft_weight`"
    )


def _mean(steps: Figures, name: str) -> float:
    return sum(step[name] for step in steps) / len(steps)
