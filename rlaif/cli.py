"""The command line. Reads arguments, calls one function, prints; nothing is decided here.

Exit codes: 0 done, 1 the work failed or is incomplete, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import rlaif
from rlaif.errors import InputError, RlaifError

if TYPE_CHECKING:
    from rlaif.config import Pipeline
    from rlaif.pipeline.run import Run
    from rlaif.records import Comparison, Preference, Ranking, Rating, Revision, Row
    from rlaif.store import Holding

Result = TypeVar("Result")

INTERRUPTED = 130
LASTING = {"too-long", "template", "verb", "schema"}  # causes of failure that another try does not change
RETRY = "`rlaif run --retry-failed` asks again for the failed rows"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a constitution, rubric or judge to preference data, and from the data to a better model.\n\n"
    "Start with:  rlaif run pipelines/quickstart.yaml",
)

PipelinePath = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A pipeline file, e.g. pipelines/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. seed=1 or stages.prompts.prompts.take=50."),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder \\[default: runs/NAME of the pipeline].")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, e.g. runs/quickstart.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"rlaif {rlaif.__version__}")
        raise typer.Exit


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
) -> None:
    """Make a project to edit: pipelines, constitutions, prompt templates and rubrics."""
    from rlaif.resources import copy_out

    for path in copy_out(folder):
        typer.echo(str(path))
    typer.echo(f"edit them, then: cd {folder} && rlaif run pipelines/quickstart.yaml")


@app.command()
def plan(pipeline: PipelinePath, overrides: Overrides = None, out: Out = None, as_json: AsJson = False) -> None:
    """Show what would run: stages, calls by model, how many are paid for, tokens and cost. Nothing is sent."""
    from rlaif.config import read_pipeline
    from rlaif.pipeline.plan import plan as make_plan

    run, _ = _open(read_pipeline(pipeline, overrides or []), out, dry=True)

    async def planned() -> dict[str, Any]:
        try:
            return await make_plan(run)
        finally:
            await run.close()

    result = asyncio.run(planned())
    if as_json:
        _print_json(result | {"notes": run.inputs.notes})
    else:
        _print_plan(_console(), result)
        _print_notes(_console(), run)


@app.command()
def run(
    pipeline: PipelinePath,
    overrides: Overrides = None,
    out: Out = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again for what finally failed in an earlier run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline. Run it again after a crash, an edit or more prompts: only what changed is computed."""
    from rlaif.config import read_pipeline

    _execute(read_pipeline(pipeline, overrides or []), out, f"rlaif run {pipeline}", as_json, retry_failed=retry_failed)


@app.command()
def judge(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Completions that exist: pairs, rankings, UltraFeedback, transcripts, ..."),
    ],
    by: Annotated[str, typer.Option("--by", metavar="JUDGE", help="A server's address or a model's folder.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="How it is asked, e.g. reasons=true or rubric=FILE."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model's name on the server.")] = None,
    key_env: Annotated[
        str | None, typer.Option("--key-env", help="The environment variable that holds the server's key.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="compare or rate.")] = "compare",
    pair: Annotated[str | None, typer.Option("--pair", help="The rule preferences are made by.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The run folder.")] = Path("runs/judged"),
    as_json: AsJson = False,
) -> None:
    """Judge a data set that exists, in any published shape, and make preferences of it."""
    from rlaif.pipeline.judging import METHODS, judging

    if method not in METHODS:
        raise InputError(f"expected compare or rate, found {method!r}", key="--method")
    checked = judging(
        data, by, method, settings or [], model=model, key_variable=key_env, name=out.name, pair=pair
    )  # fmt: skip
    _execute(checked, out, f"rlaif judge {data}", as_json, retry_failed=False)


@app.command()
def audit(
    judge: Annotated[
        str,
        typer.Argument(
            metavar="JUDGE",
            help="A server's address, a model's folder, a pipeline file, or a run folder (of its data).",
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="How it is asked, e.g. reasons=true or verdicts=hard."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model's name on the server.")] = None,
    key_env: Annotated[
        str | None, typer.Option("--key-env", help="The environment variable that holds the server's key.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="compare or rate [default: compare].")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="The judging stage of a pipeline file or run.")] = None,
    gold: Annotated[
        str | None, typer.Option("--gold", help="A file of gold pairs or of preferences \\[default: those that ship].")
    ] = None,
    take: Annotated[int | None, typer.Option("--take", min=1, help="So many of the gold pairs.")] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Of a run: people's labels to hold its judgements against.")
    ] = None,
    probes: Annotated[bool, typer.Option(help="Ask the probes of bias and injection too.")] = True,
    out: Annotated[Path, typer.Option("--out", help="Where audit.md and audit.json are written.")] = Path("audit"),
    as_json: AsJson = False,
) -> None:
    """Audit a judge: how far it agrees with gold, what moves it that should not, and what to do about it."""
    from rich.markdown import Markdown

    from rlaif.config import judging_stage, read_pipeline
    from rlaif.pipeline import auditing
    from rlaif.pipeline.engines import keyless
    from rlaif.pipeline.folder import STORE, RunFolder
    from rlaif.pipeline.judging import METHODS, check_options, judge_document
    from rlaif.pipeline.progress import Lines, Screen, Silent

    if method not in (None, *METHODS):
        raise InputError(f"expected compare or rate, found {method!r}", key="--method")
    console = _console(stderr=as_json)
    path = Path(judge)
    is_run, is_pipeline = (path / "manifest.json").is_file(), path.suffix in (".yaml", ".yml")
    told = {"--model": model, "--key-env": key_env, "--method": method, "--stage": stage, "--labels": labels}
    told |= {"--gold": gold, "--take": None if take is None else str(take), "settings": " ".join(settings or [])}
    kind = "a run" if is_run else "a pipeline" if is_pipeline else "a server" if "://" in judge else "a model's folder"
    check_options(kind, told)
    if out.exists() and not out.is_dir():  # before anything is paid for
        raise InputError(f"{str(out)!r} is a file", key="--out", fix="name a folder")
    if is_run:
        found = auditing.audit_run(RunFolder(path), stage, labels)
    else:
        if is_pipeline:
            pipeline = read_pipeline(judge, settings or [])
            (models, asked), seed = auditing.stage_of(pipeline, stage), pipeline.seed
        else:
            document = judge_document(judge, method or "compare", settings or [], model=model, key_variable=key_env)
            (models, asked), seed = judging_stage(document), 0
        audited = auditing.open_audited(models, asked, gold, take, STORE, seed)
        for note in keyless(models.values()):
            console.print(Text(f"note: {note}", style="yellow"))
        progress = Silent() if as_json else Screen(console, "rlaif audit") if console.is_terminal else Lines(console)
        with progress:
            found = _run_async(auditing.audit_judge(audited, probes=probes, progress=progress))
    auditing.write_audit(found, out)
    if as_json:
        _print_json(found)
    else:
        console.print(Markdown((out / "audit.md").read_text(encoding="utf-8")))
        console.print(f"written to {out / 'audit.md'} and {out / 'audit.json'}", style="dim", highlight=False)


@app.command()
def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="sft, rm, dpo or ppo.")],
    base: Annotated[str, typer.Option("--base", help="The model to start from: a folder.")],
    data: Annotated[
        str,
        typer.Option("--data", help="A file of conversations (sft), of preferences (rm, dpo) or of prompts (ppo)."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder of the trained model.")],
    reward: Annotated[str | None, typer.Option("--reward", help="The reward model of ppo: a folder.")] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. epochs=2 learning_rate=1e-5.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train one model on data that exists. Run it again after an interruption and it goes on."""
    from rlaif.config import TRAINERS
    from rlaif.errors import InputError, nearest
    from rlaif.pipeline.alone import one_trainer, train_alone
    from rlaif.pipeline.progress import Lines, Screen, Silent

    if method not in TRAINERS:
        raise InputError(f"there is no trainer {method!r}", fix=nearest(method, TRAINERS))
    if method == "ppo" and reward is None and not any(setting.startswith("checks=") for setting in settings or []):
        fix = "give a reward model with --reward, or what code verifies, such as checks=[{length: {max_words: 20}}]"
        raise InputError("ppo needs a reward", fix=fix)
    if method != "ppo" and reward is not None:
        raise InputError(f"{method} takes no reward model", fix="take --reward out")
    pipeline = one_trainer(method, base, data, method, settings or [], reward)
    console = _console(stderr=as_json)
    progress = (
        Silent() if as_json else Screen(console, f"rlaif train {method}") if console.is_terminal else Lines(console)
    )
    with progress:
        record = asyncio.run(train_alone(pipeline, out, progress))
    if as_json:
        _print_json(record)
    else:
        _print_training(console, record, out)


@app.command("try")
def try_(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A question of the embedded models' world.")],
    principle: Annotated[
        str, typer.Argument(metavar="PRINCIPLE", help="What the completions are rated and revised by.")
    ],
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other completions.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Put a prompt and a principle of your own to the embedded models: completions, ratings, revisions."""
    from rlaif.pipeline.trial import put, understood

    quality, strangers = understood(prompt, principle)
    row = asyncio.run(put(prompt, principle, seed))
    if as_json:
        _print_json(row.model_dump(mode="json") | {"quality": quality, "never_taught": strangers})
        return
    console = _console()
    read = f"the annotator reads {quality!r} in it"
    passed = f"; {', '.join(map(repr, strangers))} says nothing to it" if strangers else ""
    console.print(Text.assemble((_plain(principle), "bold"), (f"   {read}{passed}", "dim")))
    _print_row(console, row, [])


@app.command()
def status(run: RunPath, as_json: AsJson = False) -> None:
    """Show where a run stands, and its failures grouped by cause."""
    from rlaif.pipeline import inspect
    from rlaif.pipeline.folder import RunFolder

    found = inspect.status(RunFolder.existing(run))
    if as_json:
        _print_json(found)
    else:
        _print_status(_console(), found)


@app.command()
def show(
    run: RunPath,
    row: Annotated[
        str | None, typer.Argument(metavar="[ROW]", help="A row's number, or the start of its prompt id.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="A stage's name \\[default: the last with rows].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one row with its whole lineage; without ROW, the first rows in short."""
    from rlaif.pipeline import inspect
    from rlaif.pipeline.folder import RunFolder

    folder = RunFolder.existing(run)
    if row is None:
        from itertools import islice

        if as_json:
            _print_json([r.model_dump(mode="json") for r in inspect.rows(folder, stage)])
        else:
            _print_rows(_console(), list(islice(inspect.rows(folder, stage), 20)))
        return
    found = inspect.row(folder, row, stage)
    preferences = inspect.preferences(folder, found)
    if as_json:
        chosen = [p.model_dump(mode="json") for p in preferences]
        _print_json(found.model_dump(mode="json") | {"preferences": chosen, "requests": inspect.requests(found)})
    else:
        _print_row(_console(), found, preferences)


@app.command()
def export(
    run: RunPath,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="A shape, e.g. preference, sft or hh; an unknown one is refused with a list of all."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Where to write: a new folder, or a file ending in .jsonl.")],
) -> None:
    """Write one of a run's data sets somewhere else: a `datasets` folder with its card, or one JSON Lines file."""
    from rlaif.pipeline import inspect
    from rlaif.pipeline.folder import RunFolder

    folder = RunFolder.existing(run)
    count = inspect.export(folder, form, to, jsonl=to.suffix == ".jsonl")
    state = inspect.status(folder)["state"]
    typer.echo(
        f"{count} rows in {to}" + ("" if state == "done" else f"; the run is {state}, so there may be more to come")
    )


@app.command()
def cache(
    action: Annotated[str, typer.Argument(metavar="[ACTION]", help="show, verify or prune.")] = "show",
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", help="prune: calls made more days ago than this.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME", help="prune: calls that this run paid for.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look after the calls that were paid for: what is stored, whether all of it can be read, what may go."""
    import time

    from rlaif.errors import InputError, WorkError, nearest
    from rlaif.pipeline.folder import STORE
    from rlaif.store import CallStore

    if action not in ("show", "verify", "prune"):
        raise InputError(f"there is no action {action!r}", fix=nearest(action, ("show", "verify", "prune")))
    if action == "prune" and older_than is None and run is None:
        raise InputError("prune would remove every call", fix="say which with --older-than or --run")
    if action != "prune" and (older_than is not None or run is not None):
        raise InputError("--older-than and --run belong to prune", fix="rlaif cache prune ...")
    if older_than is not None and not older_than >= 0:  # before a day to come lies every call
        raise InputError(f"--older-than {older_than:g} is no age in days", fix="give 0 or more")
    store = CallStore(STORE, read_only=action != "prune" or not STORE.exists())
    try:
        if action == "prune":
            before = None if older_than is None else time.time() - older_than * 86400
            count = store.prune(before=before, run=run)
            typer.echo(f"{count:,} calls removed, {len(store):,} left")
        elif action == "verify":
            if damaged := store.verify():
                raise WorkError(
                    f"{len(damaged):,} of {len(store):,} calls cannot be read, the first is {damaged[0]}",
                    file=str(STORE),
                    fix="restore the file from a copy, or go on: a run asks again for what it cannot read",
                )
            typer.echo(f"{len(store):,} calls, all of them can be read")
        elif as_json:
            _print_json([holding._asdict() for holding in store.holdings()])
        else:
            _print_holdings(_console(), store.holdings(), STORE)
    finally:
        store.close()


def _run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end on uvloop, with a collector that looks less often.

    Calls make many objects and next to no cycles of them, and modules need not be looked at again and again.
    At the end it is as it was, since libraries complain on leaving of what is still frozen.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        return _on_uvloop(work)
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def _on_uvloop(work: Coroutine[Any, Any, Result]) -> Result:
    try:
        import uvloop
    except ImportError:  # it does not exist for Windows
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


# ---------------------------------------------------------------- opening a run


def _execute(checked: Pipeline, out: Path | None, title: str, as_json: bool, *, retry_failed: bool) -> None:
    """Run a pipeline, show it, and exit with what came of it."""
    from rlaif.pipeline.progress import Lines, Screen, Silent

    console = _console(stderr=as_json)
    progress = Silent() if as_json else Screen(console, title) if console.is_terminal else Lines(console)
    execution, folder = _open(checked, out, progress=progress, retry_failed=retry_failed)
    _print_notes(console, execution)
    with progress:
        try:
            state = _run_async(execution.execute())
        except asyncio.CancelledError:  # the second Ctrl-C, or one where nothing can be waited for
            raise KeyboardInterrupt from None
    if as_json:
        _print_json(folder.manifest())
    else:
        _print_result(console, execution, folder.path)
    if state != "done":
        why = execution.scheduler.stopped
        sys.exit(INTERRUPTED if why is not None and why.cause == "interrupted" else 1)


def _open(
    checked: Pipeline,
    out: Path | None,
    *,
    dry: bool = False,
    progress: Any = None,
    retry_failed: bool = False,
) -> tuple[Run, Any]:
    from rlaif.pipeline.folder import STORE, RunFolder
    from rlaif.pipeline.inputs import Inputs
    from rlaif.pipeline.progress import Silent
    from rlaif.pipeline.run import Run
    from rlaif.store import CallStore

    inputs = Inputs(checked)  # before anything is made: wrong input leaves no trace
    path = out if out is not None else Path("runs") / checked.name
    folder = RunFolder(path) if dry else RunFolder.create(path, checked.name)
    with ExitStack() as opened:  # closed again where the run cannot even be put together
        opened.callback(folder.close)
        store = CallStore(STORE, read_only=dry, run=checked.name)
        opened.callback(store.close)
        run = Run(checked, inputs, folder, store, progress or Silent(), retry_failed=retry_failed)
        opened.pop_all()
    return run, folder


# ---------------------------------------------------------------- what a person sees


def _console(*, stderr: bool = False) -> Console:
    """No markup: what is printed holds other people's words. Styles are given as `Text`."""
    return Console(stderr=stderr, markup=False, emoji=False)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _print_notes(console: Console, run: Run) -> None:
    for note in run.inputs.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def _print_plan(console: Console, plan: dict[str, Any]) -> None:
    stages = Table(
        title=f"plan of {plan['name']}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
    )
    for column in ("stage", "reads", "rows", "what"):
        stages.add_column(column, justify="right" if column == "rows" else "left")
    for stage in plan["stages"]:
        calls = [f"{m}: {c['calls']:,} calls, {c['paid']:,} paid for" for m, c in stage.get("calls", {}).items()]
        what = stage.get("state") or "\n".join(calls) or ("at most that many" if "at_most" in stage else "")
        stages.add_row(stage["stage"], stage["from"] or "", f"{stage.get('at_most', stage['rows']):,}", what)
    console.print(stages)
    models = _table(
        "model",
        "calls",
        "paid for",
        "to send",
        "prompt tokens",
        "completion tokens, at most",
        "cost, without re-asks",
        title="\ncalls",
    )
    for model, need in plan["calls"].items():
        to_send = need["calls"] - need["paid"]
        cost = "" if need["max_cost"] is None else f"{need['max_cost']:.4f}"
        tokens = (f"about {need['prompt_tokens']:,}", f"{need['max_completion_tokens']:,}", cost)
        cells = (f"{need['calls']:,}", f"{need['paid']:,}", f"{to_send:,}", *(tokens if to_send else ("", "", "")))
        models.add_row(model, *cells)
    console.print(models)
    costs = [need["max_cost"] for need in plan["calls"].values() if need["max_cost"] is not None]
    if costs:
        said = f", the budget leaves {plan['budget_left']:.4f}" if plan["budget_left"] is not None else ""
        console.print(f"\nat most {sum(costs):.4f} to pay, without re-asks{said}", highlight=False)
    if plan["last_run_seconds"]:
        console.print(f"\nthe last run took {plan['last_run_seconds']:.0f} s", style="dim")
    console.print("nothing was sent", style="dim")


def _print_training(console: Console, record: dict[str, Any], out: Path) -> None:
    table = _table("", "")
    for name, value in record["metrics"].items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    console.print(table)
    dropped = [f"{count:,} {reason}" for reason, count in record["dropped"].items()]
    told = f"{record['kept']:,} of {record['read']:,} rows used" + (
        f" (dropped: {', '.join(dropped)})" if dropped else ""
    )
    console.print(
        f"{told}, {record['steps']:,} steps; the model is in {out}", style="dim", highlight=False, soft_wrap=True
    )


def _print_result(console: Console, run: Run, path: Path) -> None:
    console.print()
    if run.summary:
        _print_summary(console, run.summary)
    tallies = run.ledger.by_model().values()
    sent, cached = sum(tally.sent for tally in tallies), sum(tally.cached for tally in tallies)
    console.print(f"\n{sent:,} calls made, {cached:,} from the store", style="dim", highlight=False)
    if (path / "dataset").is_dir():
        names = ", ".join(sorted(p.name for p in (path / "dataset").iterdir()))
        console.print(f"data sets in {path / 'dataset'}: {names}", style="dim", highlight=False, soft_wrap=True)
    _print_failures(console, run.failures)
    if run.stopped:
        console.print(run.stopped, style="yellow")
    if why := run.scheduler.stopped:
        console.print(Text(f"stopped: {_plain(why.message)}", style="yellow"))
        fix = why.fix or "run the same command again to go on: nothing is paid for twice"
        console.print(Text(f"what is finished is kept; {fix}", style="yellow"))
        return
    if run.failures:
        again = "these rows fail again until their cause is mended" if set(run.failures) <= LASTING else RETRY
        console.print(f"the run is incomplete; {again}", style="yellow")


def _print_failures(console: Console, failures: dict[str, Any]) -> None:
    for cause, group in sorted(failures.items()):
        rows = "row" if group["count"] == 1 else "rows"
        told = f"{group['count']} {rows} failed ({cause}), for example {group['row']}: {group['example']}"
        console.print(Text(_plain(told), style="yellow"))


def _interval(value: dict[str, Any] | None, digits: int = 3) -> str:
    """A mean with half the width of its interval; the ends themselves are in report/summary.json."""
    if not value or "mean" not in value:
        return ""
    return f"{value['mean']:.{digits}f} ± {(value['high'] - value['low']) / 2:.{digits}f}"


def _percent(value: dict[str, Any] | None) -> str:
    """A share with both ends: near 0 and 1 its interval is lopsided."""
    if not value:
        return ""
    return f"{value['mean'] * 100:.0f}% [{value['low'] * 100:.0f}, {value['high'] * 100:.0f}]"


def _print_summary(console: Console, summary: dict[str, Any]) -> None:
    baseline = summary["baseline"]

    def against(cell: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
        return lambda m: cell(m) if m["name"] != baseline else ""

    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("gold", lambda m: _interval(m.get("gold"))),
        *((f"  {part}", _part(part)) for part in summary["models"][0].get("gold_parts", {})),
        (f"gold minus {baseline}'s", against(lambda m: _interval(m.get("gold_difference")))),
        ("judge's score", lambda m: _interval(m.get("score"), 2)),
        (f"win rate against {baseline}", against(lambda m: _percent(m.get("win_rate")))),
        ("  of which ties", against(lambda m: f"{m['win_rate']['ties'] * 100:.0f}%" if m.get("win_rate") else "")),
        ("words", lambda m: _interval(m.get("length"), 1)),
        ("ended by itself", lambda m: _percent(m.get("ended"))),
        ("reward's score", lambda m: _interval(m.get("reward"), 2)),
        ("harmful refused", lambda m: _percent(m.get("harmful_refused"))),
        ("harmful complied with", lambda m: _percent(m.get("harmful_complied"))),
        ("look-alikes answered", lambda m: _percent(m.get("look_alikes_answered"))),
        ("KL, nats", _divergence),
        ("completions that failed", lambda m: str(m["failed"]) if m["failed"] else ""),
        ("unscored by it", lambda m: str(m["unscored"]) if m.get("unscored") else ""),
        ("unparsed", lambda m: str(m["unparsed"]) if m["unparsed"] and m["unparsed"] < summary["prompts"] else ""),
    ]
    table = _table("", *(model["name"] for model in summary["models"]))
    table.title = f"{summary['prompts']:,} {summary['split']} prompts; 95 % intervals"
    for name, cell in rows:
        cells = [cell(model) for model in summary["models"]]
        if any(cells):
            table.add_row(Text(name, style="" if name.startswith(" ") else "bold"), *cells)
    console.print(table)
    parents = [f"{m['name']} from {kl['against']}" for m in summary["models"] if (kl := m.get("kl"))]
    if parents:
        console.print(f"KL: {', '.join(parents)}", style="dim", highlight=False)
    reward = summary.get("reward") or {}
    if accuracy := _percent(reward.get("pair_accuracy")):
        told = f"reward model {reward['model']}: orders pairs as gold does in {accuracy}"
        console.print(told, style="dim", highlight=False)
    judge = summary.get("judge") or {}
    if judge:
        accuracy = _percent(judge.get("pair_accuracy"))
        agreement = f"; orders pairs as gold does in {accuracy}" if accuracy else ""
        failed = f", {judge['failed']:,} failed" if judge["failed"] else ""
        counted = f"judge {judge['model']}: {judge['rated']:,} rated, {judge['unparsed']:,} unparsed{failed}{agreement}"
        console.print(counted, style="dim", highlight=False)


def _divergence(model: dict[str, Any]) -> str:
    kl = model.get("kl") or {}
    return f"at most {kl['at_most']:.2f}" if "at_most" in kl else _interval(kl, 2)


def _part(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda model: _interval(model.get("gold_parts", {}).get(name))


def _print_holdings(console: Console, holdings: Sequence[Holding], path: Path) -> None:
    table = _table("run", "model", "calls", "tokens read", "tokens written", "MB", "last")
    for held in holdings:
        when = datetime.fromtimestamp(held.last).strftime("%Y-%m-%d %H:%M")
        size, calls = f"{held.size / 2**20:.1f}", f"{held.calls:,}"
        tokens = (f"{held.prompt_tokens:,}", f"{held.completion_tokens:,}")
        model = ":".join(held.model.split(":")[:2])  # without the digest of a server's address
        table.add_row(_plain(held.run) or "before format 3", _brief(model, 24), calls, *tokens, size, when)
    console.print(table)
    whole = path.stat().st_size / 2**20 if path.exists() else 0.0
    told = f"\n{sum(held.calls for held in holdings):,} calls in {path}, {whole:.1f} MB"
    console.print(told, style="dim", highlight=False)


def _print_status(console: Console, manifest: dict[str, Any]) -> None:
    style = {"done": "green", "running": "cyan"}.get(manifest["state"], "yellow")
    heading = Text.assemble(f"{manifest['name']}: ", (manifest["state"], style), f", {manifest['seconds']:.0f} s")
    console.print(heading)
    table = _table("stage", "in", "out", "dropped", "seconds")
    for stage in manifest["stages"]:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in stage["dropped"].items())
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:.1f}"
        pairs = stage.get("preferences", stage["out"])
        out = f"{stage['out']:,}" + (f", {pairs:,} preferences" if pairs != stage["out"] else "")
        table.add_row(stage["name"], f"{stage['in']:,}", out, dropped, seconds)
    for name, count in manifest["under_way"].items():
        table.add_row(name, "", f"{count:,} so far", "", "")
    console.print(table)
    calls = _table("model", "calls made", "from the store", "failed", "cut", "tokens read", "tokens written", "cost")
    for model, call in manifest["calls"].items():
        cost = "" if call["cost"] is None else f"{call['cost']:.4f}"
        calls.add_row(
            model, f"{call['sent']:,}", f"{call['cached']:,}", f"{call['failed']:,}", f"{call['cut_at_max_tokens']:,}",
            f"{call['prompt_tokens']:,}", f"{call['completion_tokens']:,}", cost,
        )  # fmt: skip
    console.print()
    console.print(calls)
    _print_failures(console, manifest["failures"])


def _plain(text: str) -> str:
    """A model's words as a terminal may show them: no escape sequence of theirs reaches it."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "\ufffd" for c in text)


def _brief(text: str, limit: int) -> str:
    text = _plain(" ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _print_rows(console: Console, rows: list[Row]) -> None:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("row", "prompt id", "candidates", "prompt"):
        table.add_column(column, no_wrap=column != "prompt")
    for number, row in enumerate(rows, start=1):
        state = "failed" if row.failure else str(len(row.candidates))
        table.add_row(str(number), row.prompt.id, state, Text(_brief(row.prompt.text, 200)))
    console.print(table)


def _print_row(console: Console, row: Row, preferences: list[Preference]) -> None:
    about = "  " + ", ".join(filter(None, (row.prompt.split, row.prompt.source)))
    console.print(Text.assemble((f"prompt {row.prompt.id}", "bold"), (_plain(about), "dim")))
    console.print(Text(_plain(row.prompt.text)))
    chosen = {preference.chosen.completion.call for preference in preferences}
    rejected = {preference.rejected.completion.call for preference in preferences}
    for index, candidate in enumerate(row.candidates):
        completion = candidate.completion
        marks = [m for m, calls in (("chosen", chosen), ("rejected", rejected)) if completion.call in calls]
        role = " and ".join(marks)
        style = {"chosen": "green", "rejected": "red"}.get(role, "")
        console.print()
        by = f", by the principle {candidate.principle}" if candidate.principle else ""
        how = f"  {completion.finish_reason}, call {completion.call[:12]}{by}"
        console.print(Text.assemble((f"[{index + 1}] {candidate.sampler} ", "bold"), (role, style), (how, "dim")))
        console.print(Text(_plain(completion.text), style=style))
        for rating in row.ratings:
            if rating.candidate == index:
                _print_rating(console, rating)
        for score in row.scores:
            if score.candidate == index:
                value = f"none, {score.problem}" if score.value is None else f"{score.value:g}"
                told = f"    {score.aspect or 'score'} {_plain(value)}"
                console.print(Text.assemble(told, (f"   {score.judge}", "dim")))
        for revision in row.revisions:
            if revision.candidate == index:
                _print_revision(console, revision)
    for comparison in row.comparisons:
        _print_comparison(console, comparison)
    for ranking in row.rankings:
        _print_ranking(console, ranking)
    if row.failure:
        console.print(Text(f"\nfailed: {_plain(row.failure)}", style="yellow"))
    places = {candidate.completion.call: place for place, candidate in enumerate(row.candidates, start=1)}
    for preference in preferences:
        better, worse = (places.get(c.completion.call, "?") for c in (preference.chosen, preference.rejected))
        told = f"\n{preference.rule}: [{better}] preferred to [{worse}], margin {preference.margin:.2f}"
        console.print(Text(told, style="dim"))


def _print_rating(console: Console, rating: Rating) -> None:
    value = f"unparsed, {rating.problem}" if rating.problem else "N/A" if rating.na else str(rating.value)
    value += f" ({', '.join(rating.types)})" if rating.types else ""
    said = f"   {rating.judge}, place {rating.position}: {_brief(rating.raw, 160)}" if rating.raw else ""
    console.print(Text.assemble(f"    {rating.aspect} {_plain(value)}", (said, "dim")))


def _print_revision(console: Console, revision: Revision) -> None:
    heading = f"    revision {revision.number} under {_plain(revision.principle)}"
    console.print(Text.assemble((heading, "bold"), (f"  {revision.critique.model}", "dim")))
    console.print(Text(f"      critique  {_plain(revision.critique.text)}", style="dim"))
    if revision.completion is not None:
        console.print(Text(f"      revised   {_plain(revision.completion.text)}"))
    if revision.problem is not None:
        console.print(Text(f"      {revision.problem}", style="yellow"))


def _print_comparison(console: Console, comparison: Comparison, *, juror: bool = False) -> None:
    places = {"A": comparison.a + 1, "B": comparison.b + 1}
    verdict = comparison.verdict or "unparsed"
    told = f"[{places[verdict]}] preferred" if verdict in places else verdict
    if comparison.probability is not None:
        told += f", [{places['A']}] is better with probability {comparison.probability:.2f}"
    if comparison.disagrees:
        told += ", the two orders disagree"
    if not juror:
        console.print()
    under = (f"compared under {_plain(comparison.principle)}: ", "bold")
    about = ("  a member of the jury: ", "dim") if juror else under
    console.print(Text.assemble(about, told, (f"  {comparison.judge}", "dim")))
    for member in comparison.jury:
        _print_comparison(console, member, juror=True)
    for order in comparison.orders:
        said = f"said {_brief(order.raw, 40)!r}" if order.problem is None else order.problem
        chance = "" if order.probability is None else f", first with probability {order.probability:.2f}"
        console.print(Text(f"    [{order.a + 1}] before [{order.b + 1}]: {said}{chance}", style="dim"))
        for line in (order.reasons or "").splitlines():
            console.print(Text(f"      {_brief(line, 160)}", style="dim"))


def _print_ranking(console: Console, ranking: Ranking) -> None:
    order = ranking.problem
    if ranking.order is not None:
        order = " > ".join(" = ".join(f"[{index + 1}]" for index in tied) for tied in ranking.order)
    shown = " ".join(f"[{index + 1}]" for index in ranking.shown)
    about = (f"\nranked under {_plain(ranking.principle or '')}: ", "bold")
    console.print(Text.assemble(about, f"{order}", (f"  {ranking.judge}, read in the order {shown}", "dim")))


# ---------------------------------------------------------------- errors


def main() -> None:
    """Run the command line. Nothing a user can cause ends in a traceback."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character shows another
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
    except RlaifError as error:
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:  # the command line itself is wrong
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        _fail(f"{said.rstrip('.')}. Fix: see `rlaif --help`", 2)
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written
        _fail(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}; what was finished is kept", 1
        )
    if code == INTERRUPTED:  # what typer makes of Ctrl-C
        _fail("interrupted; what was finished is kept, run the same command again to go on", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), " ".join(_plain(message).splitlines())))
    sys.exit(code)


if __name__ == "__main__":
    main()
