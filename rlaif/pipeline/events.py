"""The events of a run in `events.jsonl`, one JSON object a line, and its current throughput.

Every line has `time` (seconds since 1970) and `event`. A resumed run appends to the same file.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.engines.ledger import Ledger
from rlaif.engines.traffic import Endpoint
from rlaif.files import new_file, opened, regular
from rlaif.visible import finite, visible_json

EVERY = 10.0  # seconds between two lines on a stage's progress
WINDOW, LONGEST = 10.0, 300.0  # seconds over which a rate is computed: of a fast server, and of a slow one
ENOUGH = 10  # calls
APPENDED = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW


class EventLog:
    """Appends to `events.jsonl`. A full disk loses a line, not the run."""

    def __init__(self, folder: Path) -> None:
        self._path, self._begun = folder / "events.jsonl", False

    def write(self, event: str, **facts: Any) -> None:
        line = visible_json(finite({"time": round(time.time(), 3), "event": event} | facts), indent=None)
        try:
            if not self._begun:
                self._make_own()
            with open(regular(self._path, APPENDED), "ab") as file:
                if not self._begun:
                    file.truncate(self._whole())
                    self._begun = True
                file.write(line.encode() + b"\n")
        except OSError:
            self._begun = False  # the line may be torn

    def _make_own(self) -> None:
        """A log that another name links to, such as a backup's, is copied first: that name keeps what it has."""
        if not self._path.exists() or self._path.stat().st_nlink == 1:
            return
        copy = self._path.with_name(f".{self._path.name}.tmp")
        with opened(self._path) as source, open(new_file(copy), "wb") as target:
            shutil.copyfileobj(source, target)
        os.replace(copy, self._path)

    def _whole(self) -> int:
        """Bytes through the last complete line: a kill may have torn the next one."""
        with open(self._path, "rb") as file:
            return sum(len(line) for line in file if line.endswith(b"\n"))


class Pulse(NamedTuple):
    """The current throughput, and what limits it."""

    calls_per_second: float
    tokens_per_second: float  # written
    in_flight: int
    limit: int
    why: str
    cached: int  # calls answered from the store
    sent_again: dict[str, int]  # retried requests, by cause
    cost: float | None
    budget: float | None

    def text(self) -> str:
        """One line of text."""
        calls = self.calls_per_second
        parts = [
            f"{calls * 60:.1f} calls/min" if 0 < calls < 1 else f"{calls:,.{0 if calls >= 10 else 1}f} calls/s",
            f"{self.tokens_per_second:,.0f} tokens/s",
            f"{self.in_flight} of {self.limit} in flight: {self.why}",
        ]
        if self.cached:
            parts.append(f"{self.cached:,} cached")
        if self.sent_again:
            parts.append("retried: " + ", ".join(f"{n:,} {cause}" for cause, n in sorted(self.sent_again.items())))
        if self.cost is not None:
            parts.append(f"cost {self.cost:.4f}" + (f" of {self.budget:g}" if self.budget is not None else ""))
        return "   ".join(parts)


class Meter:
    """Computes rates from the ledger and the endpoints, over the last seconds in which enough calls were answered."""

    def __init__(self, ledger: Ledger, budget: float | None, priced: bool) -> None:
        self._ledger, self._budget, self._priced = ledger, budget, priced
        self._reads: deque[tuple[float, int, int]] = deque([(time.monotonic(), 0, 0)])  # time, calls, tokens written

    def _rates(self, sent: int, tokens: int) -> tuple[float, float]:
        """Calls and tokens a second: over `WINDOW`, or longer where fewer than `ENOUGH` calls were answered in it."""
        now = time.monotonic()
        while len(self._reads) > 1 and now - self._reads[1][0] >= LONGEST:
            self._reads.popleft()
        since, sent_then, tokens_then = next(
            (read for read in reversed(self._reads) if now - read[0] >= WINDOW and sent - read[1] >= ENOUGH),
            self._reads[0],
        )
        self._reads.append((now, sent, tokens))
        elapsed = max(now - since, 1e-6)
        return (sent - sent_then) / elapsed, (tokens - tokens_then) / elapsed

    def read(self, endpoints: Sequence[Endpoint]) -> Pulse | None:
        """The current pulse; None when no server is used."""
        tallies = self._ledger.by_model().values()
        rates = self._rates(sum(t.sent for t in tallies), sum(t.completion_tokens for t in tallies))
        if not endpoints:
            return None
        busiest = max(endpoints, key=lambda endpoint: endpoint.load)
        down = [endpoint for endpoint in endpoints if endpoint.down_since is not None]
        why = f"{down[0].name} does not respond, retrying" if down else busiest.gate.why
        again: dict[str, int] = {}
        for tally in tallies:
            for cause, count in tally.retries.items():
                again[cause] = again.get(cause, 0) + count
        return Pulse(
            *rates,
            sum(endpoint.gate.in_flight for endpoint in endpoints),
            sum(int(endpoint.gate.limit) for endpoint in endpoints),
            why,
            sum(tally.cached for tally in tallies),
            again,
            self._ledger.spent if self._priced else None,
            self._budget,
        )
