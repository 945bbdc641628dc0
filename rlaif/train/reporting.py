"""Where the figures of a training go beside `metrics.jsonl`: trackers of others, by the base trainer's own reporters.

Nothing is reported that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlaif.config import Tracker
from rlaif.errors import InputError

TRACKED = "runs"  # TensorBoard's folder in a job's, and then in the model's
# Any of its packages will do.
PACKAGES: dict[Tracker, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}


def usable(trackers: Sequence[Tracker]) -> list[str]:
    """The trackers. Raises InputError naming the first whose package is not installed."""
    for tracker in trackers:
        if not any(map(find_spec, PACKAGES[tracker])):
            fix = f"`pip install {tracker}`, or leave it out: metrics.jsonl is always written"
            raise InputError(f"{tracker} is not installed", key="report_to", fix=fix)
    return list(trackers)


@contextmanager
def reporting(trackers: Sequence[Tracker], folder: Path, model: Any) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A function that reports the figures of a step, for a trainer that is not on the base trainer.

    `folder` is the job's. Raises InputError as `usable`.
    """
    if not trackers:
        yield lambda _: None
        return
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    arguments = TrainingArguments(output_dir=str(folder), report_to="none")
    state, control = TrainerState(), TrainerControl()
    reporters: list[Any] = [kind() for kind in get_reporting_integration_callbacks(usable(trackers))]
    for reporter in reporters:
        reporter.on_train_begin(arguments, state, control, model=model)

    def report(figures: Mapping[str, float]) -> None:
        state.global_step, state.max_steps = int(figures["step"]), int(figures["steps"])
        for reporter in reporters:
            logs = {name: value for name, value in figures.items() if name not in ("step", "steps")}
            reporter.on_log(arguments, state, control, logs=logs, model=model)

    try:
        yield report
    finally:
        for reporter in reporters:
            reporter.on_train_end(arguments, state, control, model=model)
