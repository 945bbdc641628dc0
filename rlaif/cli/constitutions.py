"""`rlaif constitution`: what can be said of a constitution, and done with one, before anything is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli import terminal
from rlaif.cli.options import AsJson
from rlaif.screen import line

if TYPE_CHECKING:
    from rlaif.constitution.lint import Linted

app = typer.Typer(
    no_args_is_help=True,
    help="Work on constitutions: check one, read and write the public shapes.",
)

ConstitutionPath = Annotated[str, typer.Argument(metavar="FILE", help="A constitution, e.g. constitutions/tiny.yaml.")]


@app.command()
def lint(
    file: ConstitutionPath,
    pipeline: Annotated[
        str | None,
        typer.Option("--for", metavar="PIPELINE", help="Check it against the templates and stages of this pipeline."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what is likely wrong with a constitution, by line, each with its fix; exit code 1 if there is anything."""
    from rlaif.constitution.lint import lint as linted

    found = linted(file, pipeline)
    if as_json:
        terminal.print_json(found.as_dict())
    else:
        _print_linted(found)
    if found.findings:
        raise typer.Exit(1)


def _print_linted(found: Linted) -> None:
    console = terminal.console()
    for finding in found.findings:
        console.print(line(finding.text), soft_wrap=True)
    for note in found.notes:
        console.print(line(f"note: {note}", style="dim"), soft_wrap=True)
    count = terminal.counted(len(found.findings), "finding") if found.findings else "nothing found"
    console.print(line((f"{found.file}: {count}", "bold")), soft_wrap=True)
