"""How the evaluation of a reward model is printed for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlaif.cli.tables import Column, table
from rlaif.screen import Console, line

SHOWN = 8  # sources; training.json has all


def print_evaluation(console: Console, evaluation: Mapping[str, Any]) -> None:
    """The figures on validation pairs, where there were any."""
    if not (found := evaluation.get("validation")):
        return
    title = f"{found['pairs']:,} validation pairs of {found['prompts']:,} prompts; 95 % intervals over prompts"
    columns = (Column("", text=True), Column("pairs right"), Column("n"))
    console.print(table(columns, list(_shares(found)), console.width, title))
    console.print(line(_others(found), style="dim"))


def brief(evaluation: Mapping[str, Any]) -> str:
    """The figures on validation pairs in one line; empty without such pairs."""
    found = evaluation.get("validation")
    if not found or not found["accuracy"]:
        return ""
    return f"{_percent(found['accuracy'])} of {found['pairs']:,} validation pairs right, {_others(found)}"


def _shares(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "all", _percent(found["accuracy"]), f"{found['pairs']:,}"
    sources = sorted(found["by_source"].items(), key=lambda one: -(one[1] or {"n": 0})["n"])
    for name, share in sources[:SHOWN] if len(sources) > 1 else ():
        yield f"source {line(name).plain}", _percent(share), f"{share['n']:,}" if share else ""
    if len(sources) > SHOWN:
        yield f"and {len(sources) - SHOWN:,} more sources", "", ""
    for band in found["by_margin"]:
        low, high = (f"{band[end]:.3g}" for end in ("low", "high"))
        yield f"margin {low}" + (f" to {high}" if low != high else ""), _percent(band["accuracy"]), f"{band['pairs']:,}"


def _others(found: Mapping[str, Any]) -> str:
    length, told = found["length"], []
    if calibration := found["calibration"]:
        told.append(f"calibration error {calibration['ece']['mean']:.3f}")
    if length["correlation"]:
        told.append(f"correlation of score and length {length['correlation']['mean']:+.2f}")
    if length["longer_chosen"] and length["longer_preferred"]:
        told.append(
            f"the longer one is chosen in {length['longer_chosen']['mean']:.0%} of pairs "
            f"and preferred by the model in {length['longer_preferred']['mean']:.0%}"
        )
    return ", ".join(told)


def _percent(share: Mapping[str, Any] | None) -> str:
    if not share:
        return ""
    return f"{share['mean'] * 100:.0f}% [{share['low'] * 100:.0f}, {share['high'] * 100:.0f}]"
