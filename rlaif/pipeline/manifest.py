"""What a run's manifest says: each stage's counts, digests, calls and cost, failures by cause."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlaif.config import Pipeline
from rlaif.pipeline.folder import RunFolder
from rlaif.pipeline.session import Session
from rlaif.records import Row
from rlaif.train import job
from rlaif.version import __version__


class RowCounts:
    """What is counted of the rows of a row stage as they pass: nothing else of them is kept in memory."""

    def __init__(self, facts: Iterable[str]) -> None:
        self.rows = self.out = 0
        self.failed = self.failed_before = 0  # rows that failed, here or before; and those that failed before
        self.models: set[str] = set()  # that the rows name
        self.dropped: Counter[str] = Counter()  # rows that are of no use though they did not fail, by reason
        self.facts: Counter[str] = Counter(dict.fromkeys(facts, 0))

    def add(self, row: Row, failed_before: bool, useless: str | None) -> None:
        """Count a row; `useless` says why a row that did not fail is of no use."""
        self.rows += 1
        self.failed += row.failure is not None
        self.failed_before += failed_before
        self.models.update(row.models())
        if useless is not None:
            self.dropped[useless] += 1
        else:
            self.out += row.failure is None


@dataclass
class StageRecord:
    """Counts are in what the stage reads (prompts, conversations, preferences): in = out + dropped, checked."""

    name: str
    kind: str
    reads: str | None
    given: int
    out: int
    dropped: Counter[str] = field(default_factory=Counter)
    seconds: float | None = 0.0  # None: its time is counted with the stage it streamed into
    file: str | None = None  # of what it made, inside the run folder
    streamed: bool = False  # a row stage
    facts: dict[str, Any] = field(default_factory=dict)

    def checked(self) -> StageRecord:
        if self.given != self.out + self.dropped.total():
            raise AssertionError(f"stage {self.name}: {self.given} in, {self.out} out, {dict(self.dropped)} dropped")
        return self

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "from": self.reads,
            "in": self.given,
            "out": self.out,
            "dropped": dict(sorted(self.dropped.items())),
            "seconds": None if self.seconds is None else round(self.seconds, 2),
            "file": self.file,
        } | self.facts

    def outcome(self, told: str = "") -> str:
        """What came out, in one line for a person; `told` is what the stage says of its facts."""
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items()))
        return f"{self.out:,}" + (f" (dropped: {dropped})" if dropped else "") + told


class Manifest:
    """The record of one execution, written into the run folder whenever a stage ends."""

    def __init__(self, pipeline: Pipeline, folder: RunFolder, session: Session, notes: list[str]) -> None:
        self._pipeline, self._folder, self._session = pipeline, folder, session
        self.notes = notes
        self.records: list[StageRecord] = []
        self.digests: dict[str, str] = {}
        self.audits: dict[str, dict[str, Any]] = {}  # of judges that had to pass one, by stage
        self.failures: dict[str, dict[str, Any]] = {}  # rows, by cause
        self.state = "running"
        self.before = folder.manifest() or {}
        self.made: set[str] = set()  # files and data sets in the folder that runs of this pipeline made
        self._started = time.time()
        self.prices = count_spent(pipeline, session, self.before)

    def fail(self, prompt_id: str, cause: str, message: str) -> None:
        """Count a row, or a prompt of a measure, that failed."""
        group = self.failures.setdefault(cause, {"count": 0, "example": message, "row": prompt_id})
        group["count"] += 1

    def calls(self, stage: str | None = None) -> dict[str, Any]:
        """What each model was asked. `cost` is of this run's calls, `cost_of_data` of all calls the data rests on."""
        ledger = self._session.ledger
        calls: dict[str, Any] = {}
        for name, tally in ledger.by_model(stage).items():
            read, written = tally.prompt_tokens, tally.completion_tokens
            all_read, all_written = read + tally.cached_prompt_tokens, written + tally.cached_completion_tokens
            calls[name] = {
                "sent": tally.sent,
                "cached": tally.cached,
                "failed": tally.failed,
                "causes": dict(tally.causes),
                "retries": dict(tally.retries),
                "cut_at_max_tokens": tally.cut,
                "prompt_tokens": read,
                "completion_tokens": written,
                "cost": _rounded(ledger.cost(name, read, written)),
                "cost_of_data": _rounded(ledger.cost(name, all_read, all_written)),
            }
        return calls

    def _told(self, record: StageRecord) -> dict[str, Any]:
        """A stage's record with what its calls cost: the stage, a row of it, and a preference that was kept of all."""
        told = record.as_dict()
        if record.streamed:
            calls = self.calls(record.name)
            told["calls"] = {name: {"sent": call["sent"], "cached": call["cached"]} for name, call in calls.items()}
            costs = [call["cost_of_data"] for call in calls.values() if call["cost_of_data"] is not None]
            if costs:
                told["cost"] = round(sum(costs), 6)
                told["cost_per_row"] = round(sum(costs) / record.out, 6) if record.out else None
        if kept := record.facts.get("preferences"):
            costs = [c["cost_of_data"] for c in self.calls().values() if c["cost_of_data"] is not None]
            if costs:
                told["cost_per_preference"] = round(sum(costs) / kept, 6)
        return told

    def write(self, state: str) -> None:
        self.state = state
        engines = self._session.engines.items()
        capabilities = {name: learnt for name, engine in engines if (learnt := getattr(engine, "capabilities", None))}
        self._folder.write_manifest(
            {
                "name": self._pipeline.name,
                "pipeline": self._pipeline.document.path,
                "state": state,
                "started": self._started,
                "seconds": round(time.time() - self._started, 2),
                "versions": {"rlaif": __version__, **job.versions("datasets", "pyreqwest", *job.PACKAGES)},
                "made": sorted(self.made),
                "digests": dict(sorted(self.digests.items())),
                "stages": [self._told(record) for record in self.records],
                "calls": self.calls(),
                "prices": self.prices,
                "notes": self.notes,
                "capabilities": self.before.get("capabilities", {}) | capabilities,
                "failures": self.failures,
            }
            | ({"audits": self.audits} if self.audits else {})
        )


def count_spent(pipeline: Pipeline, session: Session, manifest: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Tell the session's ledger what earlier executions of a run cost; returns the prices by the models' identity.

    Prices are known too of models that an earlier form of the pipeline paid: what they cost is spent.
    """
    prices: dict[str, dict[str, float]] = manifest.get("prices", {}) | {
        session.engines[name].identity: price.model_dump() for name, price in session.prices.items()
    }
    if pipeline.budget is not None:
        spent = session.store.spent(pipeline.name)
        paid = [(prices[one], *tokens) for one, tokens in spent.items() if one in prices]
        total = sum(read * price["prompt"] + written * price["completion"] for price, read, written in paid)
        session.ledger.before(total / 1e6)
    return prices


def _rounded(cost: float | None) -> float | None:
    return None if cost is None else round(cost, 6)
