"""How plans, runs, trainings and the call store are printed for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from rlaif.cli import terminal
from rlaif.cli.checks import CUT, KEPT, PURPOSES
from rlaif.cli.evaluations import brief, print_evaluation
from rlaif.cli.summaries import print_summary
from rlaif.cli.tables import Column, table
from rlaif.pipeline.outcome import next_step
from rlaif.screen import Console, Text, line

if TYPE_CHECKING:
    from rlaif.pipeline.run import Run
    from rlaif.store import Holding


BARS = " ▁▂▃▄▅▆▇█"


def print_plan(console: Console, plan: dict[str, Any]) -> None:
    stages = []
    for stage in plan["stages"]:
        calls = [f"{m}: {n['calls']:,} calls, {n['paid']:,} cached" for m, n in stage.get("calls", {}).items()]
        work = stage.get("state") or "\n".join(calls)
        count = f"at most {stage['at_most']:,}" if "at_most" in stage else f"{stage['rows']:,}"
        stages.append((stage["stage"], stage["from"] or "", count, work, "\n".join(stage["makes"])))
    headings = (Column("rows"), Column("work", text=True), Column("makes", text=True))
    columns = (Column("stage", text=True), Column("reads", text=True), *headings)
    console.print(table(columns, stages, console.width, f"plan of {plan['name']}"))
    for stage in plan["stages"]:
        if "memory" in stage:
            console.print()
            console.print(_checked(stage), soft_wrap=True)
            print_memory(console, stage["memory"], f"memory of {stage['stage']}", short=stage["memory"]["fits"])
    if plan["calls"]:
        console.print()
        console.print(_planned_calls(plan["calls"], console.width))
    if costs := [need["max_cost"] for need in plan["calls"].values() if need["max_cost"] is not None]:
        unknown = [model for model, need in plan["calls"].items() if need["unpriced"] and need["calls"] > need["paid"]]
        without = f" and without the calls of {', '.join(unknown)} (no `price`)" if unknown else ""
        left = f"; the budget leaves {plan['budget_left']:.4f}" if plan["budget_left"] is not None else ""
        console.print(line(f"at most {sum(costs):.4f} to pay, without re-asks{without}{left}"), highlight=False)
    print_edits(console, plan["changed"])
    if plan["last_run_seconds"]:
        console.print(f"\nthe last run took {plan['last_run_seconds']:.0f} s", style="dim")
    console.print("nothing was sent", style="dim")


def _checked(stage: Mapping[str, Any]) -> Text:
    """What the rows of a training become, in one line, as `rlaif train --check` counts it."""
    title, checked = f"rows of {stage['stage']}", stage["check"]
    if checked is None:
        return line(f"{title}: not known yet")
    if "problem" in checked:
        return line(f"{title}: ", (checked["problem"], "red"))
    parts = []
    for split, fates in checked["rows"].items():
        rest = dict(fates)
        kept, cut = rest.pop(KEPT, 0) + rest.get(CUT, 0), rest.pop(CUT, 0)
        told = [f"{kept:,} {PURPOSES[split]}", *([f"{cut:,} of them cut"] if cut else [])]
        parts.append(", ".join([*told, *(f"{count:,} dropped as {reason}" for reason, count in rest.items())]))
    tokens = f"{checked['tokens']:,} tokens, {checked['learnt_tokens']:,} learnt"
    bins = checked["lengths"]["histogram"]
    if bins:
        most = max(count for *_, count in bins)
        bars = "".join(BARS[ceil((len(BARS) - 1) * count / most)] for *_, count in bins)
        tokens += f"; lengths {bins[0][0]:,} {bars} {bins[-1][1]:,}"
    sampled = f" (of a sample of {checked['sampled']:,})" if checked["sampled"] else ""
    steps = "" if checked["steps"] is None else f"; {terminal.counted(checked['steps'], 'step')}"
    return line(f"{title}{sampled}: {'; '.join([*parts, tokens])}{steps}")


def print_edits(console: Console, changed: Sequence[Mapping[str, Any]]) -> None:
    """What was edited in constitutions, and the calls that are due for it."""
    if changed:
        console.print("\nedited since the last run:", style="bold")
        print_due(console, changed)


def print_due(console: Console, changed: Sequence[Mapping[str, Any]]) -> None:
    """The calls that are due for each edit: their number, or a bound of those that follow others."""
    for edit in changed:
        calls = [terminal.counted(edit["calls"], "call")] if edit["calls"] or not edit["at_most"] else []
        calls += [f"{'then ' if calls else ''}at most {edit['at_most']:,}"] if edit["at_most"] else []
        due = f": {', '.join(calls)}" if edit["principle"] or edit["calls"] or edit["at_most"] else ""
        console.print(line(f"  {edit['stage']}: {edit['edit']}{due}"), highlight=False, soft_wrap=True)


def print_memory(console: Console, memory: dict[str, Any], title: str, *, short: bool = False) -> None:
    """The memory of a training, in parts, and what would take less where it does not fit; `short`, in one line."""
    if short:
        free = f"fits {memory['device']}, which has {_gigabytes(memory['room'])} GB free"
        console.print(line(f"{title}: {_gigabytes(memory['total'])} GB, {free}"), soft_wrap=True)
        return
    rows: list[tuple[str | Text, ...]] = [(p["name"], _gigabytes(p["size"]), p["meaning"]) for p in memory["parts"]]
    rows.append((Text("in all", "bold"), Text(_gigabytes(memory["total"]), "bold"), ""))
    columns = (Column("part", text=True), Column("GB"), Column("", text=True))
    console.print(table(columns, rows, console.width, title))
    share = f"{memory['trained']:,} of {memory['parameters']:,} parameters are trained"
    fits = ("fits", "green") if memory["fits"] else ("does not fit", "red")
    console.print(line(f"{share}; it ", fits, f" {memory['device']}, which has {_gigabytes(memory['room'])} GB free"))
    for words, size in memory["cheaper"].items():
        verdict = ("fits", "green") if size <= memory["room"] else ("does not", "dim")
        console.print(line(f"  {words}: {_gigabytes(size)} GB, ", verdict))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f}"


def _planned_calls(calls: Mapping[str, Mapping[str, Any]], width: int) -> RenderableType:
    rows: list[tuple[str | Text, ...]] = []
    for model, need in calls.items():
        to_send = need["calls"] - need["paid"]
        counts = (f"{need['calls']:,}", f"{need['paid']:,}", f"{to_send:,}")
        tokens = (f"about {need['prompt_tokens']:,}", f"{need['max_completion_tokens']:,}") if to_send else ("", "")
        cost = "" if need["max_cost"] is None or not to_send else f"{need['max_cost']:.4f}"
        rows.append((line(model), *counts, *tokens, cost))
    figures = ("calls", "cached", "to send", "prompt tokens", "completion tokens, at most", "cost, without re-asks")
    return table((Column("model", text=True), *map(Column, figures)), rows, width, "calls")


MADE = ("preferences", "demonstrations")  # by prompts that are not dropped


def print_status(console: Console, manifest: dict[str, Any]) -> None:
    style = {"done": "green", "running": "cyan"}.get(manifest["state"], "yellow")
    console.print(line(f"{manifest['name']}: ", (manifest["state"], style), f", {manifest['seconds']:.0f} s"))
    rows: list[tuple[str | Text, ...]] = []
    for stage in manifest["stages"]:
        lost = [f"{count:,} {reason}" for reason, count in stage["dropped"].items()]
        if (left_out := stage.get("left_out", {})) != stage["dropped"]:
            lost += [f"{terminal.counted(count, 'completion')}: {reason}" for reason, count in left_out.items()]
        dropped = "\n".join(line(each).plain for each in lost)
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:.1f}"
        made = [f"{stage[what]:,} {what}" for what in MADE if stage.get(what, stage["out"]) != stage["out"]]
        out = "\n".join([f"{stage['out']:,}", *made])
        name = line(stage["name"], (", of an earlier start", "dim") if stage.get("earlier") else "")
        rows.append((name, f"{stage['in']:,}", out, dropped, seconds))
    rows += [(line(name), "", f"{count:,} so far", "", "") for name, count in manifest["under_way"].items()]
    columns = (Column("stage", text=True), Column("in"), Column("out"), Column("dropped", text=True), Column("seconds"))
    console.print(table(columns, rows, console.width))
    if manifest["calls"]:
        console.print()
        console.print(_made_calls(manifest["calls"], console.width))
    if (cost := manifest.get("cost_of_all_starts")) is not None:
        console.print(f"cost of all starts: {cost:.4f}", highlight=False)
    for stage in manifest["stages"]:
        if told := brief(stage.get("evaluation", {})):
            console.print(line(f"{stage['name']}: {told}"))
        if seen := stage.get("seen"):
            told = ", ".join(f"{what}: {count:,}" for what, count in seen.items())
            console.print(line(f"{stage['name']}, seen in its revisions, kept or not: {told}"))
    print_shortfalls(console, manifest)


def _made_calls(calls: Mapping[str, Mapping[str, Any]], width: int) -> RenderableType:
    figures = ("calls made", "cached", "failed", "cut", "tokens read", "tokens written", "cost")
    keys = ("sent", "cached", "failed", "cut_at_max_tokens", "prompt_tokens", "completion_tokens")
    rows: list[tuple[str | Text, ...]] = [
        (line(model), *(f"{call[key]:,}" for key in keys), "" if call["cost"] is None else f"{call['cost']:.4f}")
        for model, call in calls.items()
    ]
    return table((Column("model", text=True), *map(Column, figures)), rows, width)


def print_result(console: Console, run: Run, path: Path) -> None:
    """The outcome of a run that has just ended."""
    console.print()
    if run.summary:
        print_summary(console, run.summary)
        console.print()
    tallies = run.session.ledger.by_model().values()
    sent, cached = sum(tally.sent for tally in tallies), sum(tally.cached for tally in tallies)
    manifest = run.folder.manifest() or {}
    cost = manifest.get("cost_of_all_starts")
    whole = "" if cost is None else f"; cost of all starts: {cost:.4f}"
    console.print(f"{sent:,} calls made, {cached:,} cached{whole}", style="dim", highlight=False)
    if (path / "dataset").is_dir():
        names = ", ".join(sorted(entry.name for entry in (path / "dataset").iterdir()))
        console.print(f"data sets in {path / 'dataset'}: {names}", style="dim", highlight=False, soft_wrap=True)
    print_shortfalls(console, manifest)
    if advice := next_step(run.manifest.failures, run.session.scheduler.stopped):
        console.print(Text(advice, style="yellow"))


def print_shortfalls(console: Console, manifest: dict[str, Any]) -> None:
    """Why a run is not done: its failed rows by cause, and whatever else is missing."""
    failures = manifest["failures"]
    for cause, group in sorted(failures.items()):
        rows = "row" if group["count"] == 1 else "rows"
        message = f"{group['count']} {rows} failed ({cause}), for example {group['row']}: {group['example']}"
        console.print(line(message, style="yellow"))
    for reason in manifest.get("reasons", ()):
        console.print(line(f"{manifest['state']}: {reason}", style="yellow"))


def print_training(console: Console, record: dict[str, Any], out: Path) -> None:
    metrics = [
        (name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else f"{value:,}")
        for name, value in record["metrics"].items()
    ]
    console.print(table((Column("metric", text=True), Column("value")), metrics, console.width))
    print_evaluation(console, record.get("evaluation", {}))
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in record["dropped"].items())
    used = f"{record['kept']:,} of {record['read']:,} rows used" + (f" (dropped: {reasons})" if reasons else "")
    made = f"{used}, {record['steps']:,} steps; the model is in {out}"
    console.print(made, style="dim", highlight=False, soft_wrap=True)


def print_holdings(console: Console, holdings: Sequence[Holding], path: Path) -> None:
    rows: list[tuple[str | Text, ...]] = []
    for held in holdings:
        counts = (held.calls, held.prompt_tokens, held.completion_tokens)
        last = _when(held.last)
        sizes = (*(f"{count:,}" for count in counts), f"{held.size / 2**20:.1f}")
        rows.append((line(_model_of(held.model)), line(held.run or "before format 3"), *sizes, last))
    figures = ("calls", "tokens read", "tokens written", "MB", "last call")
    columns = (Column("model", text=True), Column("run", text=True), *map(Column, figures))
    console.print(table(columns, rows, console.width))
    whole = path.stat().st_size / 2**20 if path.exists() else 0.0
    total = f"\n{sum(held.calls for held in holdings):,} calls in {path}, {whole:.1f} MB"
    console.print(total, style="dim", highlight=False)


def _when(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
    except (TypeError, ValueError, OverflowError, OSError):  # a damaged store
        return "unknown"


def _model_of(identity: str) -> str:
    """The part of a model's identity that a person knows it by: a name on a server, or the start of a digest."""
    kind, _, name = identity.partition(":")
    if kind == "server":
        return name.rpartition(":")[0] or name  # without the digest of the server's address
    return f"weights {name.partition(':')[0][:12]}" if kind == "weights" else identity
