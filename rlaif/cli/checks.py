"""How `rlaif train --check` shows what a training would be trained on: rows token by token, and their lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from rlaif.cli import terminal
from rlaif.screen import Console, Text, line

if TYPE_CHECKING:
    from rlaif.pipeline.alone import Checked
    from rlaif.train.check import Check, Piece, Row

# The state of a token: a mark in the margin, and two styles in turn, so that tokens can be told apart.
LOOKS = {
    "context": (" ", ("grey50", "grey70")),
    "learnt": ("+", ("black on green3", "black on pale_green3")),
    "cut": ("-", ("white on red3", "white on indian_red")),
}
PURPOSES = {"train": "for training", "validation": "for validation"}
BETWEEN = "·"  # tokens, where there is no colour
LINE_END = "⏎"
KEPT, CUT = "trained on", "cut"  # as `train.check` says it
MOST = {"context": 80, "learnt": 240, "cut": 40}  # tokens shown of a piece: its two ends
BAR = 40  # characters of the longest bar


def show_check(checked: Checked, data: str, *, as_json: bool) -> None:
    if as_json:
        terminal.print_json(
            checked.made.as_dict() | {"read": checked.read, "withheld": checked.withheld, "notes": checked.notes}
        )
        return
    console = terminal.console()
    terminal.print_notes(console, checked.notes)
    print_check(console, checked, data)


def print_check(console: Console, checked: Checked, data: str) -> None:
    made = checked.made
    console.print(line((f"{made.method} on {data}", "bold"), f": {checked.read:,} rows"))
    console.print(_facts(checked))
    console.print()
    console.print(line(("lengths in tokens", "bold"), ("  before a cut, each row once", "dim")))
    console.print(_histogram(made))
    console.print()
    console.print(_legend())
    for row in made.rows:
        console.print()
        console.print(_row(row, coloured=console.color_system is not None))


def _facts(checked: Checked) -> Table:
    made = checked.made
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    how = "its assistant turns are marked" if made.marked else "no marks; turns by the prompts before them"
    if made.nearest is not None:
        how += f"; {made.nearest} marks a format like it"
    table.add_row("template", line(f"{made.template} ({how})"))
    table.add_row("a turn ends with", line(" or ".join(reversed(made.ends))))
    for split, fates in made.fates.items():
        table.add_row(PURPOSES[split], _fates(fates))
    if checked.withheld:
        table.add_row("not used", _counts(checked.withheld.items(), style="yellow"))
    share = f", {made.learnt / made.tokens:.0%} of them learnt" if made.learnt else ""
    table.add_row("tokens", line(f"{made.tokens:,}{share}"))
    if pairs := made.longer_chosen + made.longer_rejected:
        table.add_row(
            "longer", line(f"chosen in {made.longer_chosen / pairs:.0%} of {pairs:,} pairs of unequal length")
        )
    if note := made.contradictions.note:
        table.add_row("contradictions", line((note, "yellow")))
    limit = f"{made.max_length:,}" + (
        "" if made.max_length == made.asked else f", the model's context ({made.asked:,})"
    )
    kept_free = f", {made.reserved:,} of them for the completion" if made.reserved else ""
    table.add_row("max_length", line(limit + kept_free))
    if made.packed is not None:
        table.add_row("packed", line(f"into {made.packed:,} sequences"))
    if made.steps is not None:
        table.add_row("steps", line(f"{made.steps:,}"))
    return table


def _fates(fates: Counter[str]) -> Text:
    """How many rows are trained on, and how many are dropped and why."""
    dropped = [(reason, count) for reason, count in fates.items() if reason not in (KEPT, CUT)]
    told = f"{fates[KEPT] + fates[CUT]:,}" + (
        f", {fates[CUT]:,} of them with a prompt cut from the left" if fates[CUT] else ""
    )
    if not dropped:
        return line(told)
    return Text.assemble(f"{told}; dropped: ", _counts(dropped, style="red"))


def _counts(counts: Iterable[tuple[str, int]], style: str = "") -> Text:
    return line((", ".join(f"{count:,} {what}" for what, count in counts if count), style))


def _histogram(made: Check) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    bins = made.histogram()
    most = max((count for *_, count in bins), default=1)
    for first, last, count in bins:
        over = first >= made.room
        bar = "█" * round(BAR * count / most) or ("▏" if count else "")
        told = f"{count:,}" if count else ""
        if first < made.room <= last:
            told = f"{told}  room for {made.room:,}".strip()
        span = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        table.add_row(line(span, style="dim"), line((bar, "yellow" if over else "cyan")), line(told))
    return table


def _legend() -> Text:
    names = {"context": "read, not learnt", "learnt": "learnt", "cut": "cut"}
    parts: list[str | tuple[str, str]] = []
    for state, name in names.items():
        mark, (style, _) = LOOKS[state]
        parts += [f"{mark} " if mark.strip() else "", (f" {name} " if state != "context" else name, style), "   "]
    return line(*parts)


def _row(row: Row, *, coloured: bool) -> RenderableType:
    fate = row.fate if row.fate in (KEPT, CUT) else f"dropped, {row.fate}"
    head = line((f"row {row.number}", "bold"), f" {PURPOSES[row.split]}: ", (fate, _fate_style(row.fate)))
    if row.sides:
        head.append(f", {row.length:,} tokens", "dim")
    parts: list[RenderableType] = [head]
    for name, pieces in row.sides.items():
        if len(row.sides) > 1:
            parts.append(line(f"  {name}", style="dim"))
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=1)
        grid.add_column(overflow="fold")
        for piece in pieces:
            grid.add_row(LOOKS[piece.state][0], _piece(piece, coloured=coloured))
        parts.append(Padding(grid, (0, 0, 0, 2)))
    return Group(*parts)


def _fate_style(fate: str) -> str:
    return {KEPT: "green", CUT: "yellow"}.get(fate, "red")


def _piece(piece: Piece, *, coloured: bool) -> Text:
    """The tokens of a piece, in the middle only their number where they are many."""
    most, styles = MOST[piece.state], LOOKS[piece.state][1]
    count, text = len(piece.tokens), Text()
    head, tail = (count, 0) if count <= most else (most // 2, most // 2)
    for i in [*range(head), *range(count - tail, count)]:
        if tail and i == count - tail:
            text.append(f" … {count - head - tail:,} tokens … ", "dim italic")
        elif i and not coloured:
            text.append(BETWEEN)
        text.append(_shown(piece.tokens, i), styles[i % 2])
    return text


def _shown(tokens: Sequence[str], i: int) -> str:
    """A token as text; a line end is seen, and ends the line unless it is the last."""
    shown = tokens[i].replace("\n", f"{LINE_END}\n")
    return shown.rstrip("\n") if i == len(tokens) - 1 else shown
