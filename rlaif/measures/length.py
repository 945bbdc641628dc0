"""Length of completions in words."""

from __future__ import annotations

from typing import Any

from rlaif.measures.collecting import Measured, Setting
from rlaif.measures.lines import Figures, Line, as_dict, means
from rlaif.statistics import mean_interval


async def figures(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    return {"length": as_dict(mean_interval([len(c.text.split()) for c in model.there]))}


def lines(summary: Figures, baseline: str) -> list[Line]:
    return [means("words", "length", 1)]
