"""How long a training still takes."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

RECENT = 32  # steps whose median is the pace: one with a validation or a checkpoint does not move it
FEWEST = 3  # steps before there is a pace


class Pace:
    """The pace of the steps that were reported here; those of an earlier call do not count."""

    def __init__(self) -> None:
        self._took: deque[float] = deque(maxlen=RECENT)
        self._last: float | None = None

    def left(self, step: float, steps: float, now: float | None = None) -> float | None:
        """The seconds left after `step` of `steps`, by the median of the recent ones; None at first."""
        now = time.monotonic() if now is None else now
        if self._last is not None:
            self._took.append(now - self._last)
        self._last = now
        return median(self._took) * (steps - step) if len(self._took) >= FEWEST else None


def about(seconds: float) -> str:
    """A time that is left, as precise as it is known: `about 40 s left`, `about 12 min left`, `about 3.5 h left`."""
    if seconds < 100:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 6000 else f"about {seconds / 3600:.1f} h left"
