"""The judge's mean score, and the win rate against the baseline by pointwise scores."""

from __future__ import annotations

from typing import Any

from rlaif.measures.collecting import Measured, Setting
from rlaif.measures.lines import Figures, Line, as_dict, means, percent, unless_baseline
from rlaif.statistics import mean_interval, win_rate


async def figures(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    won = win_rate(model.scores, baseline.scores)
    if won is None:
        return {}
    return {
        "win_rate": won.rate.as_dict() | {"ties": round(won.ties, 6), "against": baseline.name},
        "score": as_dict(mean_interval([s for s in model.scores if s is not None])),
    }


def lines(summary: Figures, baseline: str) -> list[Line]:
    def ties(model: Figures, summary: Figures) -> str:
        return f"{model['win_rate']['ties'] * 100:.0f}%" if model.get("win_rate") else ""

    won = unless_baseline(lambda model, summary: percent(model.get("win_rate")))
    return [
        means("judge's score", "score", 2),
        Line(f"win rate against {baseline}", won),
        Line("  of which ties", unless_baseline(ties)),
    ]
