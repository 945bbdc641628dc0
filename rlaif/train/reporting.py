"""Where the figures of a training go beside `metrics.jsonl`: trackers of others, of which the base trainer knows how.

Nothing is reported that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

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
