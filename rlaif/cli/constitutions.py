"""`rlaif constitution`: what can be said of a constitution, and done with one, before anything is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli import terminal
from rlaif.cli.options import AnyOut, AsJson, RunPath
from rlaif.errors import InputError
from rlaif.screen import line

if TYPE_CHECKING:
    from rlaif.constitution.lint import Linted

app = typer.Typer(
    no_args_is_help=True,
    help="Work on constitutions: check one, see its prompts, what an edit costs and what each principle did.",
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


PrincipleId = Annotated[str | None, typer.Option("--principle", metavar="ID", help="Of this principle alone.")]


@app.command()
def show(
    file: ConstitutionPath,
    pipeline: Annotated[
        str | None, typer.Option("--for", metavar="PIPELINE", help="By the templates of this pipeline's stages.")
    ] = None,
    principle: PrincipleId = None,
    as_json: AsJson = False,
) -> None:
    """Show every prompt as a model gets it, with (the prompt) and the like where a row's words will stand."""
    from rlaif.cli.principles import print_shown
    from rlaif.pipeline.applied import shown_by

    found = shown_by(file, pipeline, principle)
    if as_json:
        terminal.print_json([one.as_dict() for one in found])
    else:
        print_shown(terminal.console(), found)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="FILE", help="A constitution; with --run, the edited one.")],
    after: Annotated[str | None, typer.Argument(metavar="[FILE]", help="The edited constitution.")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Compare with what this run used, and count the calls.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what an edit changed, principle by principle; with --run, also the calls, tokens and cost that are due."""
    from rlaif.cli.principles import print_changes, print_forecast
    from rlaif.pipeline.applied import compared_files, compared_with_run
    from rlaif.pipeline.loop import run_to_end

    if run is not None:
        if after is not None:
            raise InputError("a run is compared with one file", key="--run", fix="give one FILE, or leave out --run")
        edits, plan = run_to_end(compared_with_run(before, run))
    elif after is None:
        raise InputError("there is nothing to compare with", fix="give a second file, or --run RUN")
    else:
        edits, plan = compared_files(before, after), None
    if as_json:
        due = {} if plan is None else {"due": plan["changed"], "calls": plan["calls"]}
        terminal.print_json({"changes": [edit.as_dict() for edit in edits]} | due)
        return
    print_changes(terminal.console(), edits)
    if plan is not None:
        print_forecast(terminal.console(), plan)


@app.command()
def report(run: RunPath, as_json: AsJson = False) -> None:
    """Show what each principle did in a run: how often it was drawn, what it changed and what it decided."""
    from rlaif.cli.principles import print_report
    from rlaif.pipeline import browse
    from rlaif.pipeline.folder import RunFolder

    found = browse.principles(RunFolder.existing(run))
    if as_json:
        terminal.print_json(found)
    else:
        print_report(terminal.console(), found)


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
