"""A run's manifest: each stage's counts, digests, calls and cost, failures by cause."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from rlaif.config import Pipeline
from rlaif.pipeline import batched
from rlaif.pipeline.folder import RunFolder, made_before
from rlaif.pipeline.session import Session
from rlaif.records import Row
from rlaif.train import job
from rlaif.version import __version__


class RowCounts:
    """Counts of the rows of a row stage, which are not kept in memory."""

    def __init__(self, facts: Iterable[str]) -> None:
        self.rows = self.out = 0
        self.failed = self.failed_before = 0  # rows that failed, here or before; those that failed before
        self.models: set[str] = set()  # named in the rows
        self.dropped: Counter[str] = Counter()  # rows that did not fail and are dropped, by reason
        self.facts: Counter[str] = Counter(dict.fromkeys(facts, 0))

    def add(self, row: Row, failed_before: bool, reason: str | None) -> None:
        """Count a row; `reason` is the drop reason of a row that did not fail."""
        self.rows += 1
        self.failed += row.failure is not None
        self.failed_before += failed_before
        self.models.update(row.models())
        if reason is not None:
            self.dropped[reason] += 1
        else:
            self.out += row.failure is None


@dataclass
class StageRecord:
    """A stage's counts, in units of what it reads (prompts, conversations, preferences): in = out + dropped."""

    name: str
    kind: str
    reads: str | None
    given: int
    out: int
    dropped: Counter[str] = field(default_factory=Counter)
    seconds: float | None = 0.0  # None: counted with the stage that it streamed into
    file: str | None = None  # its file in the run folder
    streamed: bool = False  # a row stage
    facts: dict[str, Any] = field(default_factory=dict)

    def checked(self) -> StageRecord:
        """The record. Raises AssertionError unless in = out + dropped."""
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

    def outcome(self, facts: str = "") -> str:
        """The outcome in one line; `facts` is the stage's own addition."""
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items()))
        return f"{self.out:,}" + (f" (dropped: {dropped})" if dropped else "") + facts


class Manifest:
    """The record of one execution, written into the run folder after each stage."""

    def __init__(self, pipeline: Pipeline, folder: RunFolder, session: Session, notes: list[str]) -> None:
        self._pipeline, self._folder, self._session = pipeline, folder, session
        self.notes = notes
        self.records: list[StageRecord] = []
        self.digests: dict[str, str] = {}
        self.audits: dict[str, dict[str, Any]] = {}  # of judges with a gate, by stage
        self.failures: dict[str, dict[str, Any]] = {}  # rows, by cause
        self.state = "running"
        self.before = folder.manifest() or {}
        self.made = made_before(self.before)  # files and data sets made by runs of this pipeline
        self._started = time.time()
        self.prices, self._paid_before = count_spent(pipeline, session, folder, self.before)

    def fail(self, prompt_id: str, cause: str, message: str) -> None:
        """Count a failed row, or a failed prompt of a measure."""
        group = self.failures.setdefault(cause, {"count": 0, "example": message, "row": prompt_id})
        group["count"] += 1

    def calls(self, stage: str | None = None) -> dict[str, Any]:
        """Each model's calls. `cost` is of this run's calls, `cost_of_data` of all calls behind the data."""
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

    def _priced(self, record: StageRecord) -> dict[str, Any]:
        """A stage's record with its cost: in total, per row, and per preference of the whole run."""
        priced = record.as_dict()
        if record.streamed:
            calls = self.calls(record.name)
            priced["calls"] = {name: {"sent": call["sent"], "cached": call["cached"]} for name, call in calls.items()}
            costs = [call["cost_of_data"] for call in calls.values() if call["cost_of_data"] is not None]
            if costs:
                priced["cost"] = round(sum(costs), 6)
                priced["cost_per_row"] = round(sum(costs) / record.out, 6) if record.out else None
        if kept := record.facts.get("preferences"):
            costs = [c["cost_of_data"] for c in self.calls().values() if c["cost_of_data"] is not None]
            if costs:
                priced["cost_per_preference"] = round(sum(costs) / kept, 6)
        return priced

    def _paid(self) -> dict[str, tuple[int, int]]:
        """Tokens read and written that all executions paid for, by the model's identity: a store may be lost."""
        if self._pipeline.budget is None:  # nobody counts
            return _noted(self.before)
        paid = dict(self._paid_before)
        for name, tally in self._session.ledger.by_model().items():
            read, written = paid.get(identity := self._session.engines[name].identity, (0, 0))
            paid[identity] = (read + tally.prompt_tokens, written + tally.completion_tokens)
        return {identity: tokens for identity, tokens in sorted(paid.items()) if identity in self.prices}

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
                "stages": [self._priced(record) for record in self.records],
                "calls": self.calls(),
                "prices": self.prices,
                "paid": self._paid(),
                "notes": self.notes,
                "capabilities": self.before.get("capabilities", {}) | capabilities,
                "failures": self.failures,
            }
            | ({"audits": self.audits} if self.audits else {})
        )


def count_spent(
    pipeline: Pipeline, session: Session, folder: RunFolder, manifest: Mapping[str, Any]
) -> tuple[dict[str, dict[str, float]], dict[str, tuple[int, int]]]:
    """Give the session's ledger the cost of a run's earlier executions; returns prices and tokens by model identity.

    They include the prices of models in earlier versions of the pipeline, whose cost counts too. The tokens are those
    that the store knows under the run's name, or the manifest, whichever are more: each can be lost alone. What the
    folder knows to be paid in batches counts at their price.
    """
    known = {identity: price for identity, price in manifest.get("prices", {}).items() if _is_price(price)}
    prices: dict[str, dict[str, float]] = known | {
        session.engines[name].identity: price.model_dump() for name, price in session.prices.items()
    }
    if pipeline.budget is None:
        return prices, {}
    spent, noted = session.store.spent(pipeline.name), _noted(manifest)
    paid: dict[str, tuple[int, int]] = {}
    for identity in (spent.keys() | noted.keys()) & prices.keys():
        (read, written), (read_before, written_before) = spent.get(identity, (0, 0)), noted.get(identity, (0, 0))
        paid[identity] = (max(read, read_before), max(written, written_before))
    total = sum(
        read * prices[identity]["prompt"] + written * prices[identity]["completion"]
        for identity, (read, written) in paid.items()
    )
    for identity, (read, written) in batched.paid(folder.path).items():
        if (price := prices.get(identity)) is not None:
            all_read, all_written = paid.get(identity, (0, 0))
            full = min(read, all_read) * price["prompt"] + min(written, all_written) * price["completion"]
            total -= full * (1 - price.get("batch", 1))
    session.ledger.before(total / 1e6)
    return prices, paid


def _noted(manifest: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The tokens that a manifest says were paid for; what is none is left out."""
    return {
        identity: (tokens[0], tokens[1])
        for identity, tokens in manifest.get("paid", {}).items()
        if isinstance(tokens, list) and len(tokens) == 2 and all(type(count) is int and count >= 0 for count in tokens)
    }


def _is_price(price: object) -> bool:
    return (
        isinstance(price, dict)
        and all(isinstance(price.get(key), int | float) and 0 <= price[key] < inf for key in ("prompt", "completion"))
        and isinstance(share := price.get("batch", 1), int | float)
        and 0 <= share <= 1
    )


def _rounded(cost: float | None) -> float | None:
    return None if cost is None else round(cost, 6)
