"""The share of completions that ended, and were not truncated at max_tokens."""

from __future__ import annotations

from typing import Any

from rlaif.measures.collecting import Measured, Setting
from rlaif.measures.lines import Figures, Line, as_dict, shares
from rlaif.statistics import share_interval


async def figures(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    return {"ended": as_dict(share_interval([c.finish_reason == "stop" for c in model.there]))}


def lines(summary: Figures, baseline: str) -> list[Line]:
    return [shares("ended by itself", "ended")]
