"""A run's manifest: each stage's counts, digests, calls and cost, failures by cause."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlaif.config import Pipeline
from rlaif.pipeline import batched
from rlaif.pipeline.folder import RunFolder, made_before
from rlaif.pipeline.recorded import cost_of, paid_of, prices_of
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
        self.problems: Counter[str] = Counter()  # why judgements are unparsed, of the first rows that have any
        self.unparsed_row = ""  # the first of them
        self._unparsed = 0

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
        if self.facts["unparsed"] > self._unparsed and len(self.problems) < MOST_PROBLEMS:
            self._unparsed = self.facts["unparsed"]
            self.problems.update(row.unparsed()[-1:])
            self.unparsed_row = self.unparsed_row or row.prompt.id

    def example(self) -> str:
        """The commonest problem of the unparsed judgements, with a row that has one, and what can be done."""
        if not self.problems:
            return ""
        problem, _ = self.problems.most_common(1)[0]
        next_step = "`rlaif show RUN --unparsed` lists such rows, and `--retry-failed` asks once more"
        return f", most often: {problem}; for example in row {self.unparsed_row}. {next_step}"


MOST_PROBLEMS = 1000
JUDGED = ("ratings", "scores", "comparisons", "rankings")  # the facts that count a stage's judgements


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

    def shortfall(self, example: str = "") -> str | None:
        """Why nothing, or next to nothing, came of the stage; None where that is not so."""
        facts = self.facts
        judged, unparsed = sum(facts.get(what, 0) for what in JUDGED), facts.get("unparsed", 0)
        if 2 * unparsed > judged > 0:
            return f"{self.name}: {unparsed:,} of {judged:,} judgements are unparsed{example}"
        if facts.get("candidates") and facts.get("cut") == facts["candidates"]:
            return f"{self.name}: every completion was cut at `max_tokens`: raise it"
        reached = self.given - self.dropped["not reached"]
        for what, made in (("preferences", "preference"), ("demonstrations", "SFT data")):
            if reached and facts.get(what) == 0:
                lost = self.dropped or Counter(facts.get("left_out", {}))
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in lost.most_common())
                return f"{self.name}: no {made} was made of {reached:,} rows ({reasons})"
        return None

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
        kept = self.facts.get("demonstrations", self.out)
        return (
            f"{self.out:,}"
            + (f" (dropped: {dropped})" if dropped else "")
            + facts
            + (f", {kept:,} demonstrations" if kept != self.out else "")
        )


class Earlier(NamedTuple):
    """A stage of an earlier start: its record, and the digests of the data sets and the model that it made."""

    record: dict[str, Any]
    digests: dict[str, str]


class Manifest:
    """The record of one execution, written into the run folder after each stage."""

    def __init__(self, pipeline: Pipeline, folder: RunFolder, session: Session, notes: list[str]) -> None:
        self._pipeline, self._folder, self._session = pipeline, folder, session
        self.notes = notes
        self.records: list[StageRecord] = []
        self.digests: dict[str, str] = {}
        self.audits: dict[str, dict[str, Any]] = {}  # of judges with a gate, by stage
        self.failures: dict[str, dict[str, Any]] = {}  # rows, by cause
        self.reasons: list[str] = []  # why the run is not done, apart from failed rows
        self.earlier: dict[str, Earlier] = {}  # of earlier starts, by the stage's name: what this one has not reached
        self.state = "running"
        self.before = folder.manifest() or {}
        self.made = made_before(self.before)  # files and data sets made by runs of this pipeline
        self._started = time.time()
        self.prices, self._paid_before = count_spent(pipeline, session, folder, self.before)

    def fail(self, prompt_id: str, cause: str, message: str) -> None:
        """Count a failed row, or a failed prompt of a measure."""
        group = self.failures.setdefault(cause, {"count": 0, "example": message, "row": prompt_id})
        group["count"] += 1

    def keep_earlier(self, name: str, kind: str, made: set[str]) -> None:
        """Keep what earlier starts recorded of a stage, and the digests of what it `made`, until this one reaches it.

        So a start that fails hides nothing that is finished.
        """
        digests = self.before.get("digests", {})
        for record in self.before.get("stages", ()):
            if (record["name"], record["kind"]) == (name, kind):
                self.earlier[name] = Earlier(record, {one: digests[one] for one in made & digests.keys()})

    def reached(self, record: StageRecord, example: str = "") -> None:
        """Add a stage's record, in place of that of an earlier start; `example` is of an unparsed judgement."""
        self.records.append(record.checked())
        self.earlier.pop(record.name, None)
        if shortfall := record.shortfall(example):
            self.reasons.append(shortfall)

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
        paid = dict(self._paid_before)
        for name, tally in self._session.ledger.by_model().items():
            read, written = paid.get(identity := self._session.engines[name].identity, (0, 0))
            paid[identity] = (read + tally.prompt_tokens, written + tally.completion_tokens)
        return {identity: tokens for identity, tokens in sorted(paid.items()) if identity in self.prices}

    def write(self, state: str) -> None:
        self.state = state
        digests = {name: value for earlier in self.earlier.values() for name, value in earlier.digests.items()}
        ledger = self._session.ledger
        engines = self._session.engines.items()
        capabilities = {name: learnt for name, engine in engines if (learnt := getattr(engine, "capabilities", None))}
        self._folder.write_manifest(
            {
                "name": self._pipeline.name,
                "pipeline": self._pipeline.document.path,
                "origin": self._folder.origin_of(self._pipeline.origin(self._folder.path), self.before),
                "from_package": self._pipeline.shipped,
                "state": state,
                "started": self._started,
                "seconds": round(time.time() - self._started, 2),
                "versions": {"rlaif": __version__, **job.versions("datasets", "pyreqwest", *job.PACKAGES)},
                "made": sorted(self.made),
                "digests": dict(sorted((digests | self.digests).items())),
                "stages": [
                    *(self._priced(record) for record in self.records),
                    *(earlier.record | {"earlier": True} for earlier in self.earlier.values()),
                ],
                "calls": self.calls(),
                "cost_of_all_starts": _rounded(ledger.spent) if self.prices else None,
                "prices": self.prices,
                "paid": self._paid(),
                "notes": self.notes,
                "capabilities": self.before.get("capabilities", {}) | capabilities,
                "failures": self.failures,
                "reasons": self.reasons,
            }
            | ({"audits": self.audits} if self.audits else {})
        )


def count_spent(
    pipeline: Pipeline, session: Session, folder: RunFolder, manifest: Mapping[str, Any]
) -> tuple[dict[str, dict[str, float]], dict[str, tuple[int, int]]]:
    """Give the session's ledger the cost of a run's earlier starts; returns prices and tokens by model identity.

    They include the prices of models in earlier versions of the pipeline, whose cost counts too. The tokens are those
    of the manifest; with a budget, after a kill, which the manifest has not seen, or after batches, those that the
    store knows under the run's name where they are more: each can be lost alone.
    """
    prices = prices_of(manifest) | {
        session.engines[name].identity: price.model_dump() for name, price in session.prices.items()
    }
    noted, in_batches = paid_of(manifest), batched.paid(folder.path)
    exact = prices and (pipeline.budget is not None or manifest.get("state") == "running" or in_batches)
    spent = session.store.spent(pipeline.name) if exact else {}
    paid: dict[str, tuple[int, int]] = {}
    for identity in (spent.keys() | noted.keys()) & prices.keys():
        (read, written), (read_before, written_before) = spent.get(identity, (0, 0)), noted.get(identity, (0, 0))
        paid[identity] = (max(read, read_before), max(written, written_before))
    session.ledger.before(cost_of(paid, prices, in_batches))
    return prices, paid


def _rounded(cost: float | None) -> float | None:
    return None if cost is None else round(cost, 6)
