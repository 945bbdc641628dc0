"""What happens around each step of a trainer on the base trainer: its report, validation, best weights, guard.

A step is reported once, with its validation if it has one, and before its checkpoint is marked complete: a training
that resumes from a checkpoint reports exactly the steps after it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from rlaif.config import TrainerSettings
from rlaif.engines.transformers import not_finite
from rlaif.errors import InputError, WorkError
from rlaif.files import json_of
from rlaif.train import alarms, models, ranks
from rlaif.train.examples import OnStep
from rlaif.train.log import METRICS

# Names of TRL that differ between trainers, or say less than ours.
RENAMED = {"num_tokens": "tokens"}
VALIDATED = {"rewards/accuracies": "accuracy", "rewards/margins": "margin"}
# Of a validation: how fast it was, and what it shares with its step.
_OF_NO_MODEL = {"runtime", "samples_per_second", "steps_per_second", "num_tokens", "epoch"}
RECORDED = ("validation_loss", "validation_accuracy", "validation_margin")  # in the record of a training


class Steps(transformers.TrainerCallback):
    """Reports each step, validates, keeps the best weights, marks complete checkpoints, stops what is not finite.

    `first` checks the loss of the first step, given what it must be. Of several processes the first one writes.
    """

    def __init__(
        self, trainer: Any, settings: TrainerSettings, on_step: OnStep, first: Callable[[float, float], None] | None
    ) -> None:
        self.trainer, self.settings, self.on_step, self.first = trainer, settings, on_step, first
        self.folder = Path(trainer.args.output_dir)
        self.figures: dict[str, float] | None = None  # of a step that is not reported yet
        self.validates = trainer.eval_dataset is not None
        if settings.keep == "best" and not self.validates:
            raise InputError(
                "there are no validation rows to choose the best step by",
                key="keep",
                fix="give more rows, of which some are validation's, or write `keep: last`",
            )

    # ------------------------------------------------------------ the base trainer's order: log, evaluate, save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.validates and is_validated(state.global_step, state.max_steps, self.settings.evaluate_every):
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        self._check(logs, state.global_step)
        if self.first is not None and state.global_step == 1:
            self.first(logs["loss"], logs.pop("expected_loss"))
        numbers = {RENAMED.get(name, name): value for name, value in logs.items() if isinstance(value, (int, float))}
        self.figures = {"step": state.global_step, "steps": state.max_steps, **numbers}

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.figures is not None:
            self.figures |= of_validation(given["metrics"])
        if (
            self.settings.keep == "best"
            and best_step(validations(state.log_history), self.settings) == state.global_step
        ):
            self._write_best(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report()
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        if ranks.in_any(bool(not_finite(self.trainer.model))):  # by now every process has saved its random state
            raise self._diverged(f"the weights are not finite after step {state.global_step}")
        if ranks.is_first():
            models.mark_complete(checkpoint)
            self._drop_old_best(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report()

    def _report(self) -> None:
        if self.figures is not None:
            figures, self.figures = self.figures, None
            self.on_step(figures)

    # ------------------------------------------------------------ the guard

    def _check(self, logs: Mapping[str, float], step: int) -> None:
        """Raise WorkError for a loss or a gradient that is not finite. The step's checkpoint is not written yet."""
        for name, words in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
            if not math.isfinite(logs.get(name, 0.0)):
                raise self._diverged(f"the {words} is {logs[name]} at step {step}")

    def _diverged(self, problem: str) -> WorkError:
        return models.with_checkpoint(WorkError(problem, fix="lower `learning_rate`"), self.folder)

    def risen(self, kept: Mapping[str, float]) -> str | None:
        """What to tell of a loss that ended well above where it began, at the step that is kept.

        `kept` is what `keep` returned. Raises WorkError for a training that diverged.
        """
        losses = [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]
        if getattr(self.settings, "loss", None) == "plackett_luce" or getattr(self.settings, "margin_scale", 0):
            floor = math.inf  # what a coin loses depends on the rankings, or on the margins
        elif self.settings.takes == "preferences":
            floor = 2 * math.log(2)  # twice the loss of a coin
        else:
            floor = math.log(self.trainer.model.config.get_text_config().vocab_size) / 2  # half of a blind guess's
        found = alarms.rise(losses, floor, int(kept["kept_step"]) if "kept_step" in kept else None)
        if found is not None and found.diverged:
            figures = self.folder / METRICS
            raise WorkError(
                f"the training diverged: {found}; its figures are in {figures}", fix="lower `learning_rate`"
            )
        return None if found is None else f"{found}: lower `learning_rate`, or look at {METRICS} to see where it rose"

    # ------------------------------------------------------------ the best step

    def _write_best(self, step: int) -> None:
        """Write the weights of `step`, whole or not at all."""
        whole, unfinished = self._best(step), self.folder / f"tmp-best-{step}"
        if ranks.is_first():
            shutil.rmtree(unfinished, ignore_errors=True)
        self.trainer.save_model(str(unfinished))  # of weights in shards, every process writes
        if ranks.in_any(True) and ranks.is_first():
            shutil.rmtree(whole, ignore_errors=True)  # of a training that was interrupted after it
            os.replace(unfinished, whole)

    def _drop_old_best(self, state: Any) -> None:
        """Remove the weights of steps that no complete checkpoint takes for the best any more."""
        if self.settings.keep == "best" and (found := validations(state.log_history)):
            for folder in self.folder.glob("best-*"):
                if folder != self._best(best_step(found, self.settings)):
                    shutil.rmtree(folder)

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step}"

    def keep(self) -> dict[str, float]:
        """Give the model the weights of the step that is kept; what to record of it: nothing for the last."""
        if self.settings.keep == "last":
            return {}
        found = validations(self.trainer.state.log_history)
        step = best_step(found, self.settings)
        if step != self.trainer.state.global_step:
            self.trainer.state.best_model_checkpoint = str(self._best(step))
            self.trainer._load_best_model()
        return {"kept_step": step, **found[step]}


def is_validated(step: int, steps: int, every: float) -> bool:
    """Whether there is a validation after `step`, counted from 1: each `every` steps or share, and at the end."""
    gap = int(every) if every >= 1 else max(1, math.ceil(every * steps))
    return step % gap == 0 or step == steps


def of_validation(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures of a validation under our names, from those of the base trainer."""
    named = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    return {f"validation_{VALIDATED.get(name, name)}": float(value) for name, value in named.items()
            if name not in _OF_NO_MODEL}  # fmt: skip


def validations(history: Sequence[Mapping[str, float]]) -> dict[int, dict[str, float]]:
    """By step what a training's record says of each validation, from the base trainer's history."""
    found = {int(entry["step"]): of_validation(entry) for entry in history if "eval_loss" in entry}
    return {step: {name: values[name] for name in RECORDED if name in values} for step, values in found.items()}


def best_step(found: Mapping[int, Mapping[str, float]], settings: TrainerSettings) -> int:
    """The step with the best validation by `settings.best_by`; of equal ones the earliest. NaN is the worst."""

    def badness(step: int) -> tuple[float, ...]:
        signed = (found[step][name] if less else -found[step][name] for name, less in settings.best_by)
        return tuple(math.inf if math.isnan(value) else value for value in signed)

    return min(sorted(found), key=badness)


def tokens_before(checkpoint: Path) -> int:
    """The tokens that were trained on before `checkpoint`."""
    history = (json_of(checkpoint / "trainer_state.json") or {}).get("log_history", [])
    return next((int(entry["num_tokens"]) for entry in reversed(history) if "num_tokens" in entry), 0)
