"""`rlaif look`: what a data set is, before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli import rows, terminal
from rlaif.cli.options import AsJson
from rlaif.screen import Console, line

if TYPE_CHECKING:
    from rlaif.formats.looking import Look


def look(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder, or an id on the Hugging Face hub.")],
    split: Annotated[str, typer.Option("--split", help="The split on the hub.")] = "train",
    revision: Annotated[str | None, typer.Option("--revision", help="The revision on the hub.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a data set is: the shape found, one row as it will be used, ties, drops and unused columns."""
    from rlaif.formats.looking import look as looked_at
    from rlaif.pipeline.stages.files import named_on_the_command_line

    found = looked_at(named_on_the_command_line(data, split, revision))
    if as_json:
        terminal.print_json(found.as_dict())
        return
    _print(terminal.console(), found)


def _print(console: Console, found: Look) -> None:
    console.print(line((found.name, "bold")))
    counts = [terminal.counted(found.rows, "row"), terminal.counted(found.prompts, "prompt")]
    counts += [terminal.counted(found.completions, "completion")]
    counts += [f"{count:,} {kind}" for kind, count in found.judgements.items()]
    console.print(line(", ".join(counts)))
    _print_counts(console, "shape", found.shapes)
    if found.judgements:
        console.print(line(("preferences  ", "dim"), f"{found.preferences:,}"))
    _print_counts(console, "no preference", found.no_preference)
    _print_counts(console, "dropped", found.dropped)
    _print_counts(console, "told", found.told, style="yellow")
    _print_counts(console, "not used", found.unused)
    if found.example is not None:
        console.print()
        console.print(line("the first row, as it will be used:", style="dim"))
        rows.print_row(console, found.example, [])


SHOWN = 12  # of each kind


def _print_counts(console: Console, what: str, counts: Mapping[str, int], style: str = "") -> None:
    listed = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    for name, count in listed[:SHOWN]:
        console.print(line((f"{what}  ", "dim"), (f"{terminal.brief(name, 160)}: {count:,}", style)))
    if len(listed) > SHOWN:
        console.print(line((f"{what}  ", "dim"), f"and {len(listed) - SHOWN:,} more"))
