"""How constitutions, their edits and what their principles did are printed for a person."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rlaif.cli import terminal
from rlaif.cli.results import print_due
from rlaif.cli.tables import Column, table
from rlaif.screen import Console, Text, line

if TYPE_CHECKING:
    from rlaif.constitution import Change
    from rlaif.pipeline.applied import Shown


def print_shown(console: Console, found: Iterable[Shown]) -> None:
    for principle, of_one in groupby(found, key=lambda shown: shown.principle):
        console.print(line((principle, "bold")))
        for shown in of_one:
            console.print(line((f"{shown.stage}: {shown.asked.request}", "cyan")))
            for message in shown.asked.messages:
                console.print(line((f"{message.role}:", "dim")))
                console.print(Text(message.content), soft_wrap=True, highlight=False)
        console.print()


def print_changes(console: Console, edits: Sequence[Change]) -> None:
    if not edits:
        console.print("nothing differs that a model is asked, or that is drawn by")
    for edit in edits:
        console.print(line((edit.told, "bold")), highlight=False)
        if edit.what in ("critique", "revision", "comparison"):
            console.print(Text("  ").append(Text.assemble(*_words(edit.before, edit.after))), highlight=False)


def _words(before: str, after: str) -> Iterator[tuple[str, str]]:
    """The words of both texts: those that went in brackets and red, those that came in braces and green."""
    old, new = re.findall(r"\S+\s*", before), re.findall(r"\S+\s*", after)
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            yield "".join(old[a:b]), ""
            continue
        if a < b:
            yield f"[-{''.join(old[a:b]).strip()}-]", "red"
            yield " ", ""
        if c < d:
            yield f"{{+{''.join(new[c:d]).strip()}+}}", "green"
            yield " ", ""


def print_forecast(console: Console, plan: Mapping[str, Any]) -> None:
    due = [edit for edit in plan["changed"] if edit["calls"] or edit["at_most"]]
    console.print()
    if not due:
        console.print("no call is due for the edit")
        return
    console.print("calls due, by stage:", style="bold")
    print_due(console, due)
    for model, need in plan["calls"].items():
        if to_send := need["calls"] - need["paid"]:
            cost = "" if need["max_cost"] is None else f", at most {need['max_cost']:.4f} to pay"
            tokens = f"about {need['prompt_tokens']:,} prompt tokens, at most {need['max_completion_tokens']:,} written"
            told = f"the whole run, {model}: at most {to_send:,} calls, {tokens}{cost}"
            console.print(line(told), highlight=False, soft_wrap=True)
    if any(edit["at_most"] for edit in due):
        why = "at most: their prompts hold words that are not written yet, or that a model trained anew will write"
        console.print(line(why, style="dim"), soft_wrap=True)


REVISED = ("drawn", "found nothing", "changed", "share", "words before", "after", "broken")
COMPARED = ("asked", "decided", "share", "orders contradict", "tied", "unparsed", "longer wins")


def print_report(console: Console, stages: Mapping[str, Mapping[str, Any]]) -> None:
    for number, (name, stage) in enumerate(stages.items()):
        if number:
            console.print()
        revised = stage["of"] == "revisions"
        headings = REVISED if revised else COMPARED
        cells: list[tuple[str | Text, ...]] = [
            (Text(principle, "bold"), *(_revised(found) if revised else _compared(found)))
            for principle, found in stage["principles"].items()
        ]
        columns = (Column("principle", text=True), *map(Column, headings))
        console.print(table(columns, cells, console.width, f"{name}; 95 % intervals"))
        terminal.print_notes(console, stage["remarks"])


# A count of nothing is an empty cell, and a column of these is left out, so that a table fits a narrow screen.


def _revised(found: Mapping[str, Any]) -> tuple[str, ...]:
    from rlaif.measures.lines import count, percent  # where they are needed: `--help` does without the measures

    words = ["" if found[key] is None else f"{found[key]:.0f}" for key in ("words_before", "words_after")]
    counts = [count(found[key]) for key in ("drawn", "found_nothing", "changed")]
    return (*counts, percent(found["changed_share"]), *words, count(found["broken"]))


def _compared(found: Mapping[str, Any]) -> tuple[str, ...]:
    from rlaif.measures.lines import count, percent

    counts = [f"{found['orders_contradict']:,}", count(found["tied"]), count(found["unparsed"])]
    return (f"{found['asked']:,}", f"{found['decided']:,}", percent(found["decided_share"]), *counts,
            percent(found["longer"]))  # fmt: skip
