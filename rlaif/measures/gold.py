"""The gold score of the embedded world, in total and by part."""

from __future__ import annotations

from typing import Any

from rlaif.measures.collecting import Measured, Setting
from rlaif.measures.lines import Figures, Line, as_dict, interval, means, unless_baseline
from rlaif.statistics import mean_interval


async def figures(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    truths = [truth for truth in model.truths if truth is not None]
    if not truths:
        return {}
    paired = zip(model.truths, baseline.truths, strict=True)
    return {
        "gold": as_dict(mean_interval([truth.total for truth in truths])),
        "gold_parts": {part: as_dict(mean_interval([t.parts[part] for t in truths])) for part in truths[0].parts},
        "gold_difference": as_dict(mean_interval([own.total - base.total for own, base in paired if own and base])),
    }


def lines(summary: Figures, baseline: str) -> list[Line]:
    def part(name: str) -> Line:
        return Line(f"  {name}", lambda model, summary: interval(model.get("gold_parts", {}).get(name)))

    difference = unless_baseline(lambda model, summary: interval(model.get("gold_difference")))
    return [
        means("gold", "gold"),
        *(part(name) for name in summary["models"][0].get("gold_parts", {})),
        Line(f"gold minus {baseline}'s", difference),
    ]
