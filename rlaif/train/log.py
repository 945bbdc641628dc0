"""`metrics.jsonl`: the figures of every step of a training, a JSON object a line, in the order of the steps.

A line has `step`, `steps`, `time` (seconds since 1970) and what the trainer reports. What is not finite is null.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rlaif.files import write_text

METRICS = "metrics.jsonl"


class StepLog:
    """Appends to the file, one whole line a step.

    A training that resumes repeats the steps since its last checkpoint: its lines replace theirs.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._open: TextIO | None = None

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.close()

    def add(self, figures: Mapping[str, float]) -> None:
        """Append the figures of a step, which a kill of the process does not lose."""
        if self._open is None:
            _cut(self.file, figures["step"])
            self._open = self.file.open("a", encoding="utf-8")
        line = {"step": figures["step"], "steps": figures["steps"], "time": round(time.time(), 3), **figures}
        self._open.write(json.dumps({name: _finite(value) for name, value in line.items()}) + "\n")
        self._open.flush()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def steps_of(file: Path) -> Iterator[dict[str, Any]]:
    """The steps in a file, in order, up to a line that was not written to its end; none without a file."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                return


def _cut(file: Path, step: float) -> None:
    """Remove the lines of `step` and of those after it, and what a kill left of a line."""
    if file.exists():
        write_text(file, "".join(json.dumps(line) + "\n" for line in steps_of(file) if line["step"] < step))
