"""How a measure is printed for a person: one column for each model, one row for each figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from rich.cells import cell_len

from rlaif.cli.tables import Column, fits, table
from rlaif.screen import Console, Text, line

Figures = dict[str, Any]  # of one model
Figure = tuple[str, Callable[[Figures], str]]  # its label, and how a model's value is printed


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    from rlaif.measures.lines import percent  # where it is needed: `--help` does without the measures

    called = _print_models(console, summary)
    parents = [f"{called[m['name']]} from {_called(kl, called)}" for m in summary["models"] if (kl := m.get("kl"))]
    if parents:
        console.print(f"KL: {', '.join(parents)}", style="dim", highlight=False)
    reward = summary.get("reward") or {}
    if accuracy := percent(reward.get("pair_accuracy")):
        console.print(f"reward model {reward['model']}: {ORDERS_PAIRS} {accuracy}", style="dim", highlight=False)
    if judge := summary.get("judge"):
        failed = f", {judge['failed']:,} failed" if judge["failed"] else ""
        counts = f"{judge['rated']:,} rated, {judge['unparsed']:,} unparsed{failed}"
        console.print(f"judge {judge['model']}: {counts}", style="dim", highlight=False)
        if accuracy := percent(judge.get("pair_accuracy")):
            console.print(f"judge {judge['model']}: {ORDERS_PAIRS} {accuracy}", style="dim", highlight=False)


ORDERS_PAIRS = "orders pairs as gold does in"


def _print_models(console: Console, summary: dict[str, Any]) -> dict[str, str]:
    """One table where it fits; else several, with numbers for models if their names are wider than the figures.

    Returns what each model is called.
    """
    models, baseline = summary["models"], summary["baseline"]
    called = {model["name"]: line(model["name"]).plain for model in models}
    title = f"{summary['prompts']:,} {summary['split']} prompts; 95 % intervals"
    figures = _figures(summary, baseline)
    if not fits(_columns(called), _cells(figures, models), console.width):
        widest = max((cell_len(cell) for row in _cells(figures, models) for cell in row[1:]), default=0)
        if max(map(cell_len, called)) > widest:
            called = {name: f"[{number}]" for number, name in enumerate(called, start=1)}
            console.print(title, style="bold", highlight=False)
            for name, number in called.items():
                console.print(f"{number} {name}", highlight=False)
            figures, title = _figures(summary, called[baseline]), ""
    names = list(called.values())
    for first, last in _shares(figures, models, names, console.width):
        shown = _cells(figures, models[first:last])
        columns = _columns(names[first:last])
        if first or not title:
            console.print()
        console.print(table(columns, shown, console.width, title if not first else "", keep_empty=True))
    return called


def _shares(
    figures: Sequence[Figure], models: Sequence[Figures], names: Sequence[str], width: int
) -> list[tuple[int, int]]:
    """The models of each table: as few tables as the width allows, of about as many models each."""
    shares = []
    for tables in range(1, len(models) + 1):
        size = -(-len(models) // tables)
        shares = [(first, min(first + size, len(models))) for first in range(0, len(models), size)]
        if all(fits(_columns(names[a:b]), _cells(figures, models[a:b]), width) for a, b in shares):
            break
    return shares


def _called(kl: dict[str, Any], called: dict[str, str]) -> str:
    against = str(kl["against"])  # a parent that is not measured itself has only its name
    return called.get(against, against)


def _columns(names: Iterable[str]) -> list[Column]:
    return [Column("", text=True), *map(Column, names)]


def _cells(figures: Sequence[Figure], models: Sequence[Figures]) -> list[list[Any]]:
    return [
        [Text(label, style="" if label.startswith(" ") else "bold"), *(printed(model) for model in models)]
        for label, printed in figures
    ]


def _figures(summary: dict[str, Any], baseline: str) -> list[Figure]:
    """The figures that any model has; in their labels the model that others are compared with is called `baseline`."""
    from rlaif.measures import MEASURES  # where their libraries are needed, and `--help` does without

    lines = [line for measure in MEASURES.values() for line in measure.lines(summary, baseline)]
    known: list[Figure] = [(line.label, partial(line.cell, summary=summary)) for line in lines]
    return [(label, printed) for label, printed in known if any(map(printed, summary["models"]))]
