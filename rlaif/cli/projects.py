"""`rlaif init` and `rlaif try`: the first steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlaif.cli import rows, terminal
from rlaif.cli.options import AsJson
from rlaif.resources import given_path
from rlaif.screen import Text


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=given_path, help="A new or empty folder.")],
) -> None:
    """Make a project to edit: pipelines, constitutions, prompt templates and rubrics."""
    from rlaif.resources import copy_out

    for path in copy_out(folder):
        terminal.say(str(path))
    terminal.say(f"edit them, then: cd {folder} && rlaif run pipelines/quickstart.yaml")


def try_(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A question of the embedded models' world.")],
    principle: Annotated[
        str, typer.Argument(metavar="PRINCIPLE", help="The completions are rated and revised under it.")
    ],
    seed: Annotated[int, typer.Option("--seed", help="Another seed gives other completions.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Give the embedded models a prompt and a principle of your own: completions, ratings, revisions."""
    from rlaif.pipeline.loop import run_to_end
    from rlaif.pipeline.start import try_out
    from rlaif.tiny.trial import understood

    quality, unknown_words = understood(prompt, principle)
    row = run_to_end(try_out(prompt, principle, seed))
    if as_json:
        terminal.print_json(row.model_dump(mode="json") | {"quality": quality, "never_taught": unknown_words})
        return
    console = terminal.console()
    ignored = f"; it was never taught {', '.join(map(repr, unknown_words))}" if unknown_words else ""
    understanding = f"   the annotator reads {quality!r} in it{ignored}"
    console.print(Text.assemble((principle, "bold"), (understanding, "dim")))
    rows.print_row(console, row, [])
