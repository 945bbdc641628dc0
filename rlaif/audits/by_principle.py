"""What each principle of a constitution did in a run: how often it was drawn, what it changed, what it decided.

Counts alone, from the rows of the stages; no model is asked. A share is over steps of revision, or comparisons, of
different prompts; two candidates of one prompt count twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from rlaif.records import Comparison, Revision, Row, oneline
from rlaif.statistics import Interval, share_interval

FEW = 20  # draws of a principle below which nothing is said of it
SELDOM = 0.1  # of its draws, below which a principle that changes or decides so few does not matter


def of_revisions(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """By principle: steps drawn, broken, without anything found, and those that changed the draft, with its words.

    `changed_share` is of the steps drawn.
    """
    steps: dict[str, list[tuple[Revision, str]]] = defaultdict(list)
    for row in rows:
        drafts = {index: candidate.completion.text for index, candidate in enumerate(row.candidates)}
        for step in sorted(row.revisions, key=lambda step: (step.candidate, step.number)):
            steps[step.principle].append((step, drafts[step.candidate]))
            if step.problem is None and step.completion is not None:
                drafts[step.candidate] = step.completion.text
    return {principle: _revised(found) for principle, found in sorted(steps.items())}


def _revised(steps: list[tuple[Revision, str]]) -> dict[str, Any]:
    changed = [pair for step, draft in steps if (pair := _change(step, draft)) is not None]
    return {
        "drawn": len(steps),
        "broken": sum(step.problem is not None for step, _ in steps),
        "found_nothing": sum(step.found_nothing for step, _ in steps),
        "changed": len(changed),
        "changed_share": _told(share_interval([_change(step, draft) is not None for step, draft in steps])),
        "words_before": round(fmean(len(draft.split()) for draft, _ in changed), 1) if changed else None,
        "words_after": round(fmean(len(text.split()) for _, text in changed), 1) if changed else None,
    }


def _change(step: Revision, draft: str) -> tuple[str, str] | None:
    """The draft and its revision, where that is usable and another text."""
    if step.problem is not None or step.completion is None or oneline(draft) == oneline(step.completion.text):
        return None
    return draft, step.completion.text


def of_comparisons(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """By principle: comparisons asked, decided, tied, unparsed, and those whose orders name different winners.

    `longer` is the share of decided ones, of different lengths, that the longer completion won.
    """
    asked: dict[str, list[tuple[Comparison, int]]] = defaultdict(list)
    for row in rows:
        for comparison in row.comparisons:
            lengths = [len(row.candidates[index].completion.text) for index in (comparison.a, comparison.b)]
            asked[comparison.principle].append((comparison, lengths[0] - lengths[1]))
    return {principle: _compared(found) for principle, found in sorted(asked.items())}


def _compared(asked: list[tuple[Comparison, int]]) -> dict[str, Any]:
    outcomes = [(_outcome(comparison), comparison, longer) for comparison, longer in asked]
    counts = Counter(outcome for outcome, *_ in outcomes)
    won = [(c.verdict == "A") == (longer > 0) for outcome, c, longer in outcomes if outcome == "decided" and longer]
    return {
        "asked": len(asked),
        **{outcome: counts[outcome] for outcome in ("decided", "orders_contradict", "tied", "unparsed")},
        "decided_share": _told(share_interval([outcome == "decided" for outcome, *_ in outcomes])),
        "longer": _told(share_interval(won)),
    }


def _outcome(comparison: Comparison) -> str:
    if comparison.verdict is None:
        return "unparsed"
    if comparison.contradicts:
        return "orders_contradict"
    return "tied" if comparison.verdict == "tie" else "decided"


def _told(interval: Interval | None) -> dict[str, float | int] | None:
    return None if interval is None else interval.as_dict()


def on_revisions(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What an editor should know of the principles that drafts were revised under."""
    return [
        f"`{name}` changed {one['changed']:,} of {one['drawn']:,} drafts: reword its requests, or give it less `weight`"
        for name, one in found.items()
        if (asked := one["drawn"] - one["found_nothing"]) >= FEW and one["changed"] < SELDOM * asked
    ]


def on_comparisons(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What an editor should know of the principles that completions were compared under."""
    said = []
    for name, one in found.items():
        asked, disagree = one["asked"], one["orders_contradict"]
        if asked >= FEW and one["decided"] < SELDOM * asked:
            decided = f"decided {one['decided']:,} of {asked:,} comparisons"
            way = "reword it, or let only `revise` draw it (its `critique` and `revision`, without a rule)"
            said.append(f"`{name}` {decided}: {way}")
        elif asked >= FEW and 2 * disagree > one["decided"]:
            way = "state it more plainly, or take a stronger judge"
            said.append(f"`{name}`: the order decided {disagree:,} of {asked:,}, which give no preference: {way}")
    longer = {name: one["longer"] for name, one in found.items() if one["longer"] is not None}
    short = [name for name, share in longer.items() if share["n"] >= FEW and share["high"] < 0.5]
    long = [name for name, share in longer.items() if share["n"] >= FEW and share["low"] > 0.5]
    if short and long:
        said.append(f"{_names(short)} prefer the shorter completion and {_names(long)} the longer: they pull apart")
    return said


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
