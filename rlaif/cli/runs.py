"""`rlaif plan`, `run`, `status`, `show` and `export`: pipelines and their run folders."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli import results, rows, terminal
from rlaif.cli.options import AsJson, Out, Overrides, PipelinePath, RunPath
from rlaif.resources import given_path

if TYPE_CHECKING:
    from rlaif.config import Pipeline

FIRST_ROWS = 20  # that `rlaif show` lists


def plan(pipeline: PipelinePath, overrides: Overrides = None, out: Out = None, as_json: AsJson = False) -> None:
    """Show what a run would do: stages, calls by model, how many are cached, tokens and cost. Nothing is sent."""
    from rlaif.config import read_pipeline
    from rlaif.pipeline.loop import run_to_end
    from rlaif.pipeline.start import open_plan

    planning = open_plan(read_pipeline(pipeline, overrides or []), out)
    result = run_to_end(planning.make())
    if as_json:
        terminal.print_json(result | {"notes": planning.notes})
    else:
        console = terminal.console()
        results.print_plan(console, result)
        terminal.print_notes(console, planning.notes)


def run(
    pipeline: PipelinePath,
    overrides: Overrides = None,
    out: Out = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Retry the calls that failed in an earlier run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline. Run it again after a crash, an edit or with more prompts: only what changed is computed."""
    from rlaif.config import read_pipeline

    checked = read_pipeline(pipeline, overrides or [])
    execute(checked, out, f"rlaif run {pipeline}", as_json=as_json, retry_failed=retry_failed)


def status(run: RunPath, as_json: AsJson = False) -> None:
    """Show how far a run is, its failures by cause, and its notes."""
    from rlaif.pipeline import browse
    from rlaif.pipeline.folder import RunFolder

    manifest = browse.status(RunFolder.existing(run))
    if as_json:
        terminal.print_json(manifest)
    else:
        console = terminal.console()
        results.print_status(console, manifest)
        terminal.print_notes(console, manifest.get("notes", []))


def show(
    run: RunPath,
    row: Annotated[
        str | None, typer.Argument(metavar="ROW", help="A row's number, or the start of its prompt id.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="A stage's name \\[default: the last with rows].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one row with its whole lineage; without ROW, list the first rows."""
    from rlaif.pipeline import browse
    from rlaif.pipeline.folder import RunFolder

    folder = RunFolder.existing(run)
    if row is None:
        table = browse.rows(folder, stage)
        if as_json:
            terminal.print_json([one.model_dump(mode="json") for one in table])
        else:
            rows.print_rows(terminal.console(), list(islice(table, FIRST_ROWS)))
        return
    chosen = browse.row(folder, row, stage)
    preferences = browse.preferences(folder, chosen)
    if as_json:
        made = [preference.model_dump(mode="json") for preference in preferences]
        lineage = {"preferences": made, "requests": browse.requests(chosen)}
        terminal.print_json(chosen.model_dump(mode="json") | lineage)
    else:
        rows.print_row(terminal.console(), chosen, preferences)


def export(
    run: RunPath,
    form: Annotated[
        str,
        typer.Option("--format", help="The shape of its rows, such as preference, sft or ultrafeedback."),
    ],
    to: Annotated[
        Path,
        typer.Option(
            "--to", parser=given_path, metavar="<path>", help="A new folder, or a file whose name ends in .jsonl."
        ),
    ],
) -> None:
    """Write one of a run's data sets to another place: a `datasets` folder with its card, or one JSON Lines file."""
    from rlaif.pipeline import browse
    from rlaif.pipeline.folder import RunFolder

    folder = RunFolder.existing(run)
    count = browse.export(folder, form, to, jsonl=to.suffix == ".jsonl")
    state = browse.status(folder)["state"]
    terminal.say(f"{count} rows in {to}" + ("" if state == "done" else f"; the run is {state}, more rows may follow"))


def execute(checked: Pipeline, out: Path | None, title: str, *, as_json: bool, retry_failed: bool) -> None:
    """Run a pipeline, show it, and exit with the code of its final state unless it is done."""
    from rlaif.pipeline.loop import run_to_end
    from rlaif.pipeline.outcome import exit_code
    from rlaif.pipeline.start import open_run

    console = terminal.console(stderr=as_json)
    progress = terminal.progress(console, title, as_json=as_json)
    run = open_run(checked, out, progress, retry_failed=retry_failed)
    terminal.print_notes(console, run.manifest.notes)
    with progress:
        state = run_to_end(run.execute())
    if as_json:
        terminal.print_json(run.folder.manifest())
    else:
        results.print_result(console, run, run.folder.path)
    if code := exit_code(state, run.session.scheduler.stopped):
        sys.exit(code)
