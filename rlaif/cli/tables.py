"""Tables that fit the terminal: no word or number is broken, and no cell loses its content.

A table takes the first layout that fits the width: all columns side by side; the first cell of each row on a line
above the others; turned, one block for each row. A column that is empty in every row is left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Group, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table

from rlaif.screen import Text

GAP = 2  # spaces between columns
INDENT = 2  # spaces before what belongs to the line above
READABLE = 20  # a column of text is at least this wide, or as wide as its content

Cell = str | Text


class Column(NamedTuple):
    """A column of figures is right-aligned and its cells are never wrapped; text wraps between words."""

    heading: str
    text: bool = False


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int, title: str = "", *, keep_empty: bool = False
) -> RenderableType:
    """The rows as a table of at most `width` characters; the first column names what a row is about."""
    kept = [i for i in range(len(columns)) if i == 0 or keep_empty or any(_plain(row[i]) for row in rows)]
    columns = [columns[i] for i in kept]
    cells = [[_as_text(row[i]) for i in kept] for row in rows]
    above = [Text(title, style="bold")] if title else []
    if widths := _widths(columns, cells, width):
        return Group(*above, _grid(columns, cells, widths))
    if len(columns) > 1 and (widths := _widths(columns[1:], [row[1:] for row in cells], width - INDENT)):
        return Group(*above, *_stacked(columns, cells, widths))
    return Group(*above, *_blocks(columns, cells))


def fits(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> bool:
    """Whether the rows fit as a table with all columns side by side."""
    return _widths(columns, [[_as_text(cell) for cell in row] for row in rows], width) is not None


def _stacked(columns: Sequence[Column], rows: Sequence[Sequence[Text]], widths: Sequence[int]) -> list[RenderableType]:
    """The headings, then each row as a line with its first cell above a line with the others."""
    parts: list[RenderableType] = [Text(columns[0].heading, style="dim")] if columns[0].heading else []
    parts.append(Padding(_grid(columns[1:], [], widths), (0, 0, 0, INDENT)))
    for name, *others in rows:
        parts.append(_name(name))
        parts.append(Padding(_grid(columns[1:], [others], widths, headings=False), (0, 0, 0, INDENT)))
    return parts


def _blocks(columns: Sequence[Column], rows: Sequence[Sequence[Text]]) -> list[RenderableType]:
    """Each row as a block: its first cell, then a line for each other cell that holds something."""
    parts: list[RenderableType] = []
    for name, *others in rows:
        block = Table.grid(padding=(0, GAP, 0, 0))
        block.add_column(style="dim", overflow="fold")
        block.add_column(overflow="fold")
        for column, cell in zip(columns[1:], others, strict=True):
            if cell.plain:
                block.add_row(column.heading, cell)
        parts.append(_name(name, columns[0].heading))
        parts.append(Padding(block, (0, 0, 0, INDENT)))
    return parts


def _grid(
    columns: Sequence[Column], rows: Sequence[Sequence[Text]], widths: Sequence[int], *, headings: bool = True
) -> Table:
    """The columns side by side in these widths, headings that take fewer lines moved down to the rows."""
    grid = Table(box=None, header_style="dim", pad_edge=False, show_header=headings)
    wrapped = [
        textwrap.wrap(column.heading, width, break_on_hyphens=False)
        for column, width in zip(columns, widths, strict=True)
    ]
    height = max(map(len, wrapped), default=0)
    for column, lines, width in zip(columns, wrapped, widths, strict=True):
        heading = "\n".join([""] * (height - len(lines)) + lines)
        justify: JustifyMethod = "left" if column.text else "right"
        grid.add_column(heading, justify=justify, width=width, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[int] | None:
    """A width for each column so that no word is broken; None where the columns do not fit side by side."""
    least, natural = [], []
    for i, column in enumerate(columns):
        lines = [line for row in rows for line in row[i].plain.split("\n")]
        widest = max(map(cell_len, lines), default=0)
        words = [word for line in lines for word in line.split()] if column.text else []
        needed = max([min(widest, READABLE), *map(cell_len, words)]) if column.text else widest
        least.append(max([needed, 1, *map(cell_len, column.heading.split())]))
        natural.append(max(least[-1], widest, cell_len(column.heading)))
    spare = width - GAP * (len(columns) - 1) - sum(least)
    if spare < 0:
        return None
    while spare and least != natural:
        narrowest = max(range(len(least)), key=lambda i: natural[i] - least[i])
        least[narrowest] += 1
        spare -= 1
    return least


def _as_text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _plain(cell: Cell) -> str:
    return cell.plain if isinstance(cell, Text) else cell


def _name(name: Text, heading: str = "") -> Text:
    """The line above what belongs to a row: its first cell, behind that cell's heading."""
    return Text.assemble((f"{heading} ", "dim") if heading else "", (name.plain, "bold"), overflow="fold")
