"""`rlaif batch`: a pipeline's calls in files, for a provider's batches or another program."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rlaif.cli import results as results_
from rlaif.cli import terminal
from rlaif.cli.options import AsJson, Out, Overrides, PipelinePath, RetryFailed
from rlaif.cli.runs import attended
from rlaif.resources import given_path
from rlaif.screen import Console, line

Results = Annotated[
    list[Path] | None,
    typer.Option(
        "--results",
        parser=given_path,
        metavar="<path>",
        help="A file of results, also .gz; may be given several times.",
    ),
]


def batch(
    pipeline: PipelinePath,
    overrides: Overrides = None,
    results: Results = None,
    submit: Annotated[
        bool, typer.Option("--submit", help="Send the files to the models' servers, as batches.")
    ] = False,
    out: Out = None,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline with its calls to servers in files, for half the price at many providers. Repeat until it is done.

    Each time, results that are there are taken in, and the calls that the run needs next are written.
    """
    from rlaif.config import read_pipeline
    from rlaif.pipeline.batch import Batching
    from rlaif.pipeline.loop import run_to_end
    from rlaif.pipeline.outcome import exit_code

    checked = read_pipeline(pipeline, overrides or [])
    console = terminal.console(stderr=as_json)
    progress = terminal.progress(console, f"rlaif batch {pipeline}", as_json=as_json)
    batching = Batching(checked, out, progress)
    if not as_json:
        terminal.print_shipped(console, checked.shipped)
    run = run_to_end(batching.begin(results or [], retry_failed=retry_failed))
    with attended(console, run, progress):
        told = run_to_end(batching.advance(run, submit=submit))
    if as_json:
        terminal.print_json(told)
    else:
        print_batch(console, told, pipeline)
        if told["state"] == "done":
            results_.print_result(console, run, run.folder.path)
    stopped = run.session.scheduler.stopped
    waits = stopped is not None and stopped.cause == "batch"
    if code := int(batching.failed) or (0 if waits else exit_code(told["state"], stopped)):
        sys.exit(code)


def print_batch(console: Console, told: Mapping[str, Any], pipeline: str) -> None:
    """What became of results, what is under way, what was written, and what comes next."""
    for text in _results(told["results"]):
        console.print(line(text))
    for one in told["under_way"]:
        done = "" if one["done"] is None else f", {one['done']:,} of {one['requests']:,} requests done"
        console.print(line(f"under way: {one['file']}, {one['calls']:,} calls: {one['status']}{done} ({one['batch']})"))
    for one in told["written"]:
        cost = "" if one["max_cost"] is None else f", at most {one['max_cost']:.4f} to pay"
        shared = f"{one['requests']:,} requests" + (
            f", {one['calls']:,} calls" if one["calls"] > one["requests"] else ""
        )
        console.print(line(f"written: {one['file']}, {shared}{cost}"), soft_wrap=True)
    again = f"rlaif batch {pipeline}"
    if told["written"]:
        next_ = (
            f"send them with `{again} --submit`, or have them answered and give the results: `{again} --results FILE`"
        )
        console.print(line(next_), soft_wrap=True)
    elif told["under_way"]:
        console.print(line(f"fetch their results later: `{again}`"), soft_wrap=True)
    elif told["state"] == "done":
        console.print(line(f"no call is left, and the run in {told['run']} is done", style="green"), soft_wrap=True)
    else:
        console.print(line(f"no call is left; the run in {told['run']} is {told['state']}"), soft_wrap=True)


def _results(told: Mapping[str, Any]) -> list[str]:
    """What became of results, in lines; none where there were none."""
    stored = [f"{told['stored']:,} calls stored"] if told["stored"] else []
    known = [f"{told['known']:,} were known"] if told["known"] else []
    lines = [f"results: {', '.join(stored + known)}"] if stored or known else []
    for what, said in (("failed", "failed for good, as in a run"), ("again", "are asked again")):
        if causes := told[what]:
            by_cause = ", ".join(f"{count:,} {cause}" for cause, count in sorted(causes.items()))
            lines.append(f"results: {sum(causes.values()):,} calls {said}: {by_cause}")
    if told["example"]:
        lines.append(f"         such as: {told['example']}")
    odd = {
        "missing": "requests without a result",
        "duplicate": "lines of a request that had one",
        "unknown": "lines of requests that this run did not write",
        "unreadable": "lines that are no result",
        "cut": "cut off at the end",
    }
    if found := [f"{told[name]:,} {words}" for name, words in odd.items() if told[name]]:
        lines.append(f"results: {', '.join(found)}")
    return lines
