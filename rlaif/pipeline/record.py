"""What the manifest says of one stage, and how its rows are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlaif.generate.revising import unrevised
from rlaif.pipeline.datasets import named_models
from rlaif.records import Row


class RowCounts:
    """What is counted of the rows of a row stage as they pass: nothing else of them is kept in memory.

    Of ratings and scores only those of `aspects`: others came with the rows.
    """

    def __init__(self, kind: str, aspects: Sequence[str] = ()) -> None:
        self.kind, self.aspects = kind, frozenset(aspects)
        self.rows = self.out = 0
        self.failed = self.failed_before = 0  # rows that failed, here or before; and those that failed before
        self.models: set[str] = set()  # that the rows name
        self.dropped: Counter[str] = Counter()  # rows that are of no use though they did not fail, by reason
        self._facts: Counter[str] = Counter(dict.fromkeys(_FACTS[kind], 0))

    def add(self, row: Row, failed_before: bool) -> None:
        self.rows += 1
        self.failed += row.failure is not None
        self.failed_before += failed_before
        self.models.update(named_models(row))
        facts = self._facts
        if self.kind == "sample":
            facts["candidates"] += len(row.candidates)
        elif self.kind == "revise":
            facts["revisions"] += len(row.revisions)
            facts["broken_off"] += sum(revision.problem is not None for revision in row.revisions)
            if row.failure is None and (reason := unrevised(row)) is not None:  # what it is for is demonstrations
                self.dropped[reason] += 1
                return
        elif self.kind == "compare":
            facts["comparisons"] += len(row.comparisons)
            facts["unparsed"] += sum(comparison.verdict is None for comparison in row.comparisons)
            asked = [member for comparison in row.comparisons for member in comparison.members]
            facts["orders_disagree"] += sum(comparison.disagrees for comparison in asked)
        elif self.kind == "person":
            facts["comparisons"] += len(row.comparisons)
            facts["ratings"] += len(row.ratings)
        elif self.kind == "verify":
            facts["candidates"] += len(row.candidates)
            facts["passed"] += sum(score.value == 1.0 for score in row.scores)
            facts["failed_checks"] += sum(score.value == 0.0 for score in row.scores)
            facts["not_checkable"] += sum(score.value is None for score in row.scores)
        elif self.kind == "score":
            facts["scores"] += sum(score.value is not None for score in row.scores)
            facts["without_a_score"] += sum(score.value is None for score in row.scores)
        elif self.kind == "rank":
            facts["rankings"] += len(row.rankings)
            facts["unparsed"] += sum(ranking.order is None for ranking in row.rankings)
            facts["orders_disagree"] += len({r.order for r in row.rankings if r.order is not None}) > 1
        else:
            ratings = [rating for rating in row.ratings if rating.aspect in self.aspects]
            scores = [score for score in row.scores if score.aspect in self.aspects]
            facts["ratings"] += len(ratings)
            facts["not_applicable"] += sum(rating.na for rating in ratings)
            facts["scores"] += len(scores)
            facts["unparsed"] += sum(rating.problem is not None for rating in ratings)
            facts["unparsed"] += sum(score.problem is not None for score in scores)
        self.out += row.failure is None

    def facts(self) -> dict[str, int]:
        return dict(self._facts)


_FACTS = {
    "sample": ("candidates",),
    "revise": ("revisions", "broken_off"),
    "compare": ("comparisons", "unparsed", "orders_disagree"),
    "score": ("scores", "without_a_score"),
    "verify": ("candidates", "passed", "failed_checks", "not_checkable"),
    "person": ("comparisons", "ratings"),
    "rank": ("rankings", "unparsed", "orders_disagree"),
    "rate": ("ratings", "unparsed", "not_applicable", "scores"),
}


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
    file: str | None = None  # of its rows, inside the run folder
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

    def outcome(self) -> str:
        """What came out, in one line for a person."""
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items()))
        judged = {"compare": "verdicts", "rank": "rankings"}.get(self.kind, "ratings")
        unparsed = f", {self.facts['unparsed']:,} {judged} unparsed" if self.facts.get("unparsed") else ""
        disagree = f", {n:,} orders disagree" if (n := self.facts.get("orders_disagree")) else ""
        accuracy = self.facts.get("metrics", {}).get("validation_accuracy")
        checked = f", {accuracy:.0%} right on validation pairs" if accuracy is not None else ""
        if failed := self.facts.get("failed_checks"):
            checked += f", {failed:,} checks failed"
        for name, found in self.facts.get("elo", {}).items():
            checked += f", {name} {found['elo']:,} ({found['low']:,} to {found['high']:,})"
        made = f", {n:,} preferences" if (n := self.facts.get("preferences", self.out)) != self.out else ""
        return f"{self.out:,}" + (f" (dropped: {dropped})" if dropped else "") + made + unparsed + disagree + checked
