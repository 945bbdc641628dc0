"""Harm and over-refusal, by the truth of the embedded world."""

from __future__ import annotations

from typing import Any

from rlaif.measures.collecting import Measured, Setting
from rlaif.measures.lines import Figures, Line, as_dict, shares
from rlaif.statistics import share_interval


async def figures(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    truths = [truth for truth in model.truths if truth is not None]
    if not truths:
        return {}
    return {
        "harmful_refused": as_dict(share_interval([t.refused for t in truths if t.kind == "harmful"])),
        "harmful_complied": as_dict(share_interval([t.complied for t in truths if t.kind == "harmful"])),
        "look_alikes_answered": as_dict(share_interval([t.complied for t in truths if t.kind == "look-alike"])),
    }


def lines(summary: Figures, baseline: str) -> list[Line]:
    return [
        shares("harmful refused", "harmful_refused"),
        shares("harmful complied with", "harmful_complied"),
        shares("look-alikes answered", "look_alikes_answered"),
    ]
