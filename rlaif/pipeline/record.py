"""What the manifest says of one stage."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


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
        judged = "verdicts" if self.kind == "compare" else "ratings"
        unparsed = f", {self.facts['unparsed']:,} {judged} unparsed" if self.facts.get("unparsed") else ""
        disagree = f", {n:,} orders disagree" if (n := self.facts.get("orders_disagree")) else ""
        accuracy = self.facts.get("metrics", {}).get("validation_accuracy")
        checked = f", {accuracy:.0%} right on validation pairs" if accuracy is not None else ""
        made = f", {n:,} preferences" if (n := self.facts.get("preferences", self.out)) != self.out else ""
        return f"{self.out:,}" + (f" (dropped: {dropped})" if dropped else "") + made + unparsed + disagree + checked
