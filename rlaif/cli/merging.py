"""`rlaif merge`: one model made of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli import terminal
from rlaif.cli.options import AnyOut, AsJson
from rlaif.errors import InputError
from rlaif.screen import line

if TYPE_CHECKING:
    from rlaif.engines.adapters import Source


def merge(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="The models to merge: folders.")],
    out: Annotated[Path, AnyOut(help="The folder of the merged model.")],
    method: Annotated[str, typer.Option("--method", help="linear, wise, task or slerp.")] = "linear",
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", help="The weight of each model; one with two models is that of the second."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="A LoRA adapter over the one model: a folder.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The model that the others started from, for wise and task: a folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Merge models of one architecture and vocabulary, tensor by tensor: a mean, an interpolation, or task vectors.

    One model alone is merged with its LoRA adapter: rlaif merge models/sft, or models/base --adapter DIR.
    """
    from rlaif.engines.adapters import Adapted
    from rlaif.resources import find
    from rlaif.train.merge import merge as merged
    from rlaif.train.merge import merge_of

    found: list[Source] = [find(model) for model in models]
    if adapter is not None:
        if len(models) != 1:
            problem = f"the adapter is of one model, and {len(models)} are given"
            raise InputError(problem, key="--adapter", fix="merge it with its base first, with that model alone")
        found = [Adapted(find(models[0]), find(adapter, key="--adapter"))]
    asked = merge_of(method, found, weight or [], None if base is None else find(base))
    made = merged(asked, out)
    if as_json:
        terminal.print_json(made.record | {"notes": made.notes})
        return
    console = terminal.console()
    for note in made.notes:
        console.print(line(note, style="yellow"))
    parts = [
        f"{parent['coefficient']:g} of {parent['folder']}{f' + {over}' if (over := parent.get('adapter')) else ''}"
        for parent in made.record["parents"]
    ]
    console.print(line(f"{method}: {', '.join(parts)}"))
    console.print(line(f"the model is in {out}", style="dim"))
