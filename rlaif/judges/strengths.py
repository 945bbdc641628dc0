"""Strengths of the samplers by comparisons of their candidates: Bradley-Terry on the Elo scale.

They describe whole systems, not whether the judge is right on any one pair; see `statistics.ranking`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from rlaif.errors import WorkError
from rlaif.records import Row
from rlaif.statistics import Game, bradley_terry, elo


class Strengths(NamedTuple):
    """The facts by sampler, strongest first, and the number of rows with a readable comparison."""

    rows: int
    facts: dict[str, Any]


def strengths(rows: Iterable[Row], prior: float) -> Strengths:
    """Elo of every sampler with its 95 % interval, bootstrapped over prompts. A soft verdict gives part of a point.

    Comparisons within one sampler are left out. Raises WorkError when the comparisons do not determine strengths.
    """
    games: list[Game] = []
    used = 0
    for row in rows:
        before = len(games)
        for comparison in row.comparisons:
            first, second = (row.candidates[i].sampler for i in (comparison.a, comparison.b))
            if (points := comparison.likelihood) is not None and first != second:
                games.append(Game(first, second, points, row.prompt.id))
        used += len(games) > before
    try:
        fitted = bradley_terry(games, prior=prior)
    except ValueError as error:
        fix = "compare more prompts, or set `prior: 1`, which adds a tie between every two samplers"
        raise WorkError(f"the samplers' strengths cannot be estimated: {error}", fix=fix) from None
    table = {
        name: {
            "elo": round(elo(ability.mean)),
            "low": round(elo(ability.low)),
            "high": round(elo(ability.high)),
            "games": ability.n,
        }
        for name, ability in zip(fitted.names, fitted.abilities, strict=True)
    }
    ordered = sorted(table.items(), key=lambda item: -item[1]["elo"])
    return Strengths(used, {"games": len(games), "elo": dict(ordered)})
