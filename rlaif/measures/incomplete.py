"""What is missing: completions that failed, that the reward model could not score, that the judge left unparsed."""

from __future__ import annotations

from typing import Any

from rlaif.measures.collecting import Measured, Setting
from rlaif.measures.lines import Figures, Line


async def figures(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    unrated = [s is None and not f for s, f in zip(model.scores, model.judge_failed, strict=True)]
    return {"failed": len(model.completions) - len(model.there), "unparsed": sum(unrated)}


def lines(summary: Figures) -> list[Line]:
    def unparsed(model: Figures, whole: Figures) -> str:
        return str(model["unparsed"]) if model["unparsed"] and model["unparsed"] < whole["prompts"] else ""

    return [
        Line("completions that failed", lambda model, _: str(model["failed"]) if model["failed"] else ""),
        Line("unscored by it", lambda model, _: str(model["unscored"]) if model.get("unscored") else ""),
        Line("unparsed", unparsed),
    ]
