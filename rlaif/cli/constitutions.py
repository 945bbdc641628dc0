"""`rlaif constitution`: what can be said of a constitution, and done with one, before anything is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli import terminal
from rlaif.cli.options import AnyOut, AsJson
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


@app.command("import")
def import_(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Constitutional AI's files, or the one of llm-swarm; known by content."),
    ],
    out: Annotated[Path, AnyOut(help="The constitution to write, a YAML file that is not there yet.")],
) -> None:
    """Make a constitution of published files: critiques and revisions, comparisons, few-shot examples."""
    from rlaif.constitution.writing import import_to

    imported = import_to(files, out)
    terminal.print_notes(terminal.console(), imported.notes)
    for read in imported.read:
        terminal.say(read)
    terminal.say(f"written to {out}; now: rlaif constitution lint {out}")


@app.command()
def export(
    file: ConstitutionPath,
    shape: Annotated[str, typer.Option("--format", help="anthropic or llm-swarm.")],
    out: Annotated[Path, AnyOut(help="A folder for the files, or a .json file where the format has one.")],
) -> None:
    """Write a constitution in a published shape; what came from an import has the bytes of the original."""
    from rlaif.constitution.writing import export_to

    written, left_out = export_to(file, shape, out)
    terminal.print_notes(terminal.console(), [f"the format has no place for {what}" for what in left_out])
    for path in written:
        terminal.say(str(path))


@app.command()
def schema() -> None:
    """Print the JSON schema of a constitution, with which an editor completes and checks one."""
    from rlaif.constitution.schema import schema as json_schema

    terminal.print_json(json_schema())


def _print_linted(found: Linted) -> None:
    console = terminal.console()
    for finding in found.findings:
        console.print(line(finding.text), soft_wrap=True)
    for note in found.notes:
        console.print(line(f"note: {note}", style="dim"), soft_wrap=True)
    count = terminal.counted(len(found.findings), "finding") if found.findings else "nothing found"
    console.print(line((f"{found.file}: {count}", "bold")), soft_wrap=True)
