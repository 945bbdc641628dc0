"""Missing values: completions that failed, have no reward, or whose rating is unparsed."""

from __future__ import annotations

from typing import Any

from rlaif.measures.collecting import Measured, Setting
from rlaif.measures.lines import Figures, Line, count


async def figures(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    unrated = [s is None and not f for s, f in zip(model.scores, model.judge_failed, strict=True)]
    return {"failed": len(model.completions) - len(model.there), "unparsed": sum(unrated)}


def lines(summary: Figures, baseline: str) -> list[Line]:
    def unparsed(model: Figures, summary: Figures) -> str:
        return count(model["unparsed"]) if model["unparsed"] < summary["prompts"] else ""

    return [
        Line("completions that failed", lambda model, summary: count(model["failed"])),
        Line("without a reward", lambda model, summary: count(model.get("unscored", 0))),
        Line("unparsed", unparsed),
    ]
