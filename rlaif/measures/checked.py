"""Checks in code: the share that completions pass, and the difference from the baseline on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif.judges.verifiers import share_passed
from rlaif.judges.verifying import outcomes_of, own_checks
from rlaif.measures.collecting import Measured, Setting
from rlaif.measures.lines import Figures, Line, as_dict, count, shares, unless_baseline
from rlaif.statistics import mean_interval, share_interval
from rlaif.visible import visible_line

MOST_SOURCES = 30  # told apart in the table


async def figures(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    """`checks`: the mean over prompts of the share of checks that pass. `all_checks`: prompts on which all of them do.

    `checks_difference` is the mean of each prompt's share less the baseline's. `checks_by_source` has the mean share of
    each source of prompts, where there are several. A prompt without a check, or with one that does not apply to its
    completion, is left out, and counted in the second case.
    """
    if not setting.checks and not any(prompt.checks for prompt in setting.prompts):
        return {}
    own, whole = _passed(model, setting), _passed(baseline, setting)
    known = [share for share in own if share is not None]
    unchecked = sum(
        share is None and completion is not None and bool(setting.checks or prompt.checks)
        for share, completion, prompt in zip(own, model.completions, setting.prompts, strict=True)
    )
    differences = [a - b for a, b in zip(own, whole, strict=True) if a is not None and b is not None]
    return {
        "checks": as_dict(mean_interval(known)),
        "all_checks": as_dict(share_interval([share == 1.0 for share in known])),
        "checks_difference": as_dict(mean_interval(differences)),
        "unchecked": unchecked,
        **_by_source(own, setting),
    }


def _by_source(own: Sequence[float | None], setting: Setting) -> dict[str, Any]:
    """`own`, a share by prompt, as a mean for each source of prompts, where there are 2 to MOST_SOURCES of them."""
    sources = list(dict.fromkeys(prompt.source for prompt in setting.prompts if prompt.source is not None))
    if not 2 <= len(sources) <= MOST_SOURCES:
        return {}
    of = {
        source: [
            share
            for share, prompt in zip(own, setting.prompts, strict=True)
            if share is not None and prompt.source == source
        ]
        for source in sources
    }
    return {"checks_by_source": {source: as_dict(mean_interval(shares)) for source, shares in of.items()}}


def _passed(model: Measured, setting: Setting) -> list[float | None]:
    """The share of checks that pass, by prompt; None without a completion or a check, or where one does not apply."""
    return [
        None
        if completion is None
        else share_passed(outcomes_of((*setting.checks, *own_checks(prompt)), prompt, completion.text))
        for completion, prompt in zip(model.completions, setting.prompts, strict=True)
    ]


def lines(summary: Figures, baseline: str) -> list[Line]:
    difference = unless_baseline(lambda model, summary: _points(model.get("checks_difference")))
    return [
        shares("checks passed", "checks"),
        Line(f"  minus {baseline}'s", difference),
        shares("  all of a prompt's", "all_checks"),
        *(_of_source(source) for source in _sources(summary)),
        Line("  could not be checked", lambda model, summary: count(model.get("unchecked", 0))),
    ]


def _sources(summary: Figures) -> Sequence[str]:
    return list(summary["models"][0].get("checks_by_source", ()))


def _of_source(source: str) -> Line:
    """The mean share of one source of prompts; its interval, of few prompts, is in summary.json."""

    def cell(model: Figures, summary: Figures) -> str:
        value = model.get("checks_by_source", {}).get(source)
        return f"{value['mean'] * 100:.0f}% of {value['n']}" if value else ""

    return Line(f"  {visible_line(source)}", cell)


def _points(value: Figures | None) -> str:
    """A difference of shares in percentage points, with both ends of its interval."""
    if not value or "mean" not in value:
        return ""
    return f"{value['mean'] * 100:+.1f} [{value['low'] * 100:+.1f}, {value['high'] * 100:+.1f}]"
