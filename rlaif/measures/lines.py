"""The table of a measure's figures: lines with a label and one cell for each model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

Figures = Mapping[str, Any]  # of one model, or of the whole measure, as summary.json holds them


class Cell(Protocol):
    """The text of a model's cell."""

    def __call__(self, model: Figures, summary: Figures) -> str: ...


class Line(NamedTuple):
    """One line of the table. `cell` gets a model's figures and the whole summary."""

    label: str
    cell: Cell


def interval(value: Figures | None, digits: int = 3) -> str:
    """A mean ± half the width of its 95 % interval; summary.json has both ends."""
    if not value or "mean" not in value:
        return ""
    return f"{value['mean']:.{digits}f} ± {(value['high'] - value['low']) / 2:.{digits}f}"


def percent(value: Figures | None) -> str:
    """A share with both ends of its interval, which is asymmetric near 0 and 1."""
    if not value:
        return ""
    return f"{value['mean'] * 100:.0f}% [{value['low'] * 100:.0f}, {value['high'] * 100:.0f}]"


def count(value: int) -> str:
    return f"{value:,}" if value else ""


def means(label: str, key: str, digits: int = 3) -> Line:
    return Line(label, lambda model, summary: interval(model.get(key), digits))


def shares(label: str, key: str) -> Line:
    return Line(label, lambda model, summary: percent(model.get(key)))


def unless_baseline(cell: Cell) -> Cell:
    return lambda model, summary: cell(model, summary) if model["name"] != summary["baseline"] else ""


def as_dict(interval: Any) -> dict[str, Any] | None:
    return None if interval is None else interval.as_dict()
