"""A reward model's score of every completion."""

from __future__ import annotations

from typing import Any

from rlaif.measures.collecting import Measured, Setting
from rlaif.measures.lines import Figures, Line, as_dict, means
from rlaif.statistics import mean_interval


async def figures(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    rewards = [reward for reward in model.rewards if reward is not None]
    if not rewards:
        return {}
    return {"reward": as_dict(mean_interval(rewards)), "unscored": len(model.there) - len(rewards)}


def lines(summary: Figures, baseline: str) -> list[Line]:
    return [means("reward's score", "reward", 2)]
