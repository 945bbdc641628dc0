"""`rlaif plan`, `run`, `status`, `show` and `export`: pipelines and their run folders."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif.cli import results, rows, terminal
from rlaif.cli.ending import Handled, leave_soon
from rlaif.cli.options import AsJson, Out, Overrides, PipelinePath, RetryFailed, RunPath
from rlaif.errors import InputError
from rlaif.resources import given_path
from rlaif.screen import Console, diverted, line, remove_empty

if TYPE_CHECKING:
    from rlaif.config import Pipeline
    from rlaif.pipeline.browse import Shown
    from rlaif.pipeline.progress import Silent
    from rlaif.pipeline.run import Run

FIRST_ROWS = 20  # that `rlaif show` lists


def plan(pipeline: PipelinePath, overrides: Overrides = None, out: Out = None, as_json: AsJson = False) -> None:
    """Show what a run would do: stages, calls by model, how many are cached, tokens and cost. Nothing is sent."""
    from rlaif.config import read_pipeline
    from rlaif.pipeline.loop import run_to_end
    from rlaif.pipeline.start import open_plan

    checked = read_pipeline(pipeline, overrides or [])
    planning = open_plan(checked, out)
    result = run_to_end(planning.make())
    if as_json:
        terminal.print_json(result | {"notes": planning.notes})
    else:
        console = terminal.console()
        results.print_plan(console, result)
        terminal.print_shipped(console, checked.shipped)
        terminal.print_notes(console, planning.notes)


def run(
    pipeline: PipelinePath,
    overrides: Overrides = None,
    out: Out = None,
    retry_failed: RetryFailed = False,
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
    dropped: Annotated[bool, typer.Option("--dropped", help="List only rows that gave no data.")] = False,
    tied: Annotated[bool, typer.Option("--tied", help="List only rows with a tie.")] = False,
    unparsed: Annotated[bool, typer.Option("--unparsed", help="List only rows with an unparsed judgement.")] = False,
    search: Annotated[
        str, typer.Option("--search", metavar="TEXT", help="List only rows in which this stands, whatever its case.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show one row with its whole lineage; without ROW, list the first rows."""
    from rlaif.pipeline import browse
    from rlaif.pipeline.folder import RunFolder

    folder, wanted = RunFolder.existing(run), browse.Wanted(dropped, tied, unparsed, search)
    if row is None:
        table = browse.listed(folder, stage, wanted)
        if as_json:
            terminal.print_json([_as_json(shown) for shown in table])
        else:
            first = list(islice(table, FIRST_ROWS))
            others = sum(1 for _ in table) if any(wanted) or not first else browse.rows_after(folder, first[-1])
            rows.print_rows(terminal.console(), first, others)
        return
    if any(wanted):
        raise InputError("--dropped, --tied, --unparsed and --search list rows", fix="leave out ROW, or the filters")
    shown = browse.row(folder, row, stage)
    preferences = browse.preferences(folder, shown)
    if as_json:
        made = [preference.model_dump(mode="json") for _, preference in preferences]
        terminal.print_json(_as_json(shown) | {"preferences": made, "requests": browse.requests(shown.row)})
    else:
        rows.print_row(terminal.console(), shown.row, preferences)


def _as_json(shown: Shown) -> dict[str, Any]:
    return shown.row.model_dump(mode="json") | {"row": shown.number, "stage": shown.stage, "why": list(shown.why)}


def export(
    run: RunPath,
    form: Annotated[
        str,
        typer.Option("--format", help="The shape of its rows, such as preference, sft or ultrafeedback."),
    ],
    to: Annotated[
        Path,
        typer.Option(
            "--to",
            parser=given_path,
            metavar="<path>",
            help="A new folder, or a file whose name ends in .jsonl, .jsonl.gz, .csv or .parquet.",
        ),
    ],
) -> None:
    """Write one of a run's data sets to another place: a `datasets` folder with its card, or one file."""
    from rlaif.pipeline import browse
    from rlaif.pipeline.folder import RunFolder

    folder = RunFolder.existing(run)
    count = browse.export(folder, form, to)
    state = browse.status(folder)["state"]
    terminal.say(f"{count} rows in {to}" + ("" if state == "done" else f"; the run is {state}, more rows may follow"))


@contextmanager
def attended(console: Console, run: Run, progress: Silent) -> Iterator[None]:
    """A run with its progress on the screen. What libraries print goes to a file; a second Ctrl-C ends it at once."""
    libraries = run.folder.libraries
    printed = size_of(libraries)

    def say() -> None:
        console.show_cursor()
        remove_empty(libraries)
        terminal.print_error(terminal.INTERRUPTION)

    def leave(*_: object) -> None:
        leave_soon(say)

    run.interrupts.hurry = leave
    try:
        with Handled({signal.SIGINT: leave}), progress, diverted(libraries):
            yield
    finally:
        if size_of(libraries) > printed:
            console.print(line(f"what libraries printed is in {libraries}", style="dim"))


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def execute(checked: Pipeline, out: Path | None, title: str, *, as_json: bool, retry_failed: bool) -> None:
    """Run a pipeline, show it, and exit with the code of its final state unless it is done."""
    from rlaif.pipeline.loop import run_to_end
    from rlaif.pipeline.outcome import exit_code
    from rlaif.pipeline.start import open_run

    console = terminal.console(stderr=as_json)
    progress = terminal.progress(console, title, as_json=as_json)
    run = open_run(checked, out, progress, retry_failed=retry_failed)
    with suppress(OSError):  # the run continues, and its outcome cannot be printed either, which says so
        if not as_json:
            terminal.print_shipped(console, checked.shipped)
        terminal.print_notes(console, run.manifest.notes)
    with attended(console, run, progress):
        state = run_to_end(run.execute())
    if as_json:
        terminal.print_json(run.folder.manifest())
    else:
        results.print_result(console, run, run.folder.path)
    if code := exit_code(state, run.session.scheduler.stopped):
        sys.exit(code)
