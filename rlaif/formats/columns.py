"""Columns that a person names: by a path into what they hold, and with the meaning of their values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from rlaif.errors import nearest
from rlaif.formats.files import Table, names
from rlaif.formats.messages import UnknownShape, number_of
from rlaif.records import writable

# What the sign of a number says of the first and the second completion.
SIGNS = {"sign": {-1: "a", 0: "tie", 1: "b"}, "-sign": {-1: "b", 0: "tie", 1: "a"}}
Values = str | Mapping[str, tuple[Any, ...]]


class Column(NamedTuple):
    """A column of the file, or a path such as `question.full_text` or `summaries.0.text`.

    `values` gives for each of our values those of the file that mean it, or names one of SIGNS.
    """

    path: str
    values: Values | None = None

    def of(self, row: Mapping[str, Any], number: int, table: Table) -> Any:
        """Its value in a row; None where a part on the way is null. Raises InputError where there is no such part."""
        try:
            value = _at(row, self.path)
        except UnknownShape as problem:
            raise table.error(number, str(problem), problem.fix) from None
        return value if self.values is None or value is None else _meaning(value, self.values)


def _at(row: Mapping[str, Any], path: str) -> Any:
    if path in row or "." not in path:
        return _part(row, path, "")
    value: Any = row
    way = ""
    for name in path.split("."):
        value = _part(value, name, way)
        if value is None:
            return None
        way = f"{way}.{name}" if way else name
    return value


def _part(value: Any, name: str, way: str) -> Any:
    """What a name or a number leads to."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):  # a CSV file holds them as JSON
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, list) and name.isdecimal() and len(name) < 10:
        return value[int(name)] if int(name) < len(value) else None
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
        where = f" in `{way}`" if way else ""
        raise UnknownShape(f"there is no column {name!r}{where}, only {names(value)}", nearest(name, map(str, value)))
    held = "a list" if isinstance(value, list) else type(value).__name__
    fix = "use a number, from 0" if isinstance(value, list) else f"end the path at `{way}`"
    raise UnknownShape(f"`{way}` holds {held}, which has no part {name[:40]!r}", fix)


def _meaning(value: Any, values: Values) -> str:
    """Our word for a value of the file; one that nothing is said of is no label, with its words."""
    if isinstance(values, str):
        number = number_of(value)
        if number is not None:
            return SIGNS[values][(number > 0) - (number < 0)]
    else:
        for ours, theirs in values.items():
            if any(_alike(value, one) for one in theirs):
                return ours
    return f"{writable(str(value)[:40])}, of which `columns` says nothing"


def _alike(value: Any, named: Any) -> bool:
    """Whether a value is the named one, as a spreadsheet may spell it."""
    left, right = number_of(value), number_of(named)
    if left is not None and right is not None:
        return left == right
    return str(value).strip().lower() == str(named).strip().lower()


def named(
    table: Table, columns: Mapping[str, Column | str], system: str | None = None, keep: Sequence[str] = ()
) -> Table:
    """The rows under our names: with `columns` (ours to the file's) those alone; `system` where a row has none.

    What a person keeps, and the row's own `id`, stay. Raises InputError, once it reads that far, for a row without one
    of the `columns`.
    """

    wanted = {ours: Column(theirs) if isinstance(theirs, str) else theirs for ours, theirs in columns.items()}

    def renamed(number: int, row: dict[str, Any]) -> dict[str, Any]:
        if wanted:
            found = {ours: theirs.of(row, number, table) for ours, theirs in wanted.items()}
            row = {name: row[name] for name in ("id", *keep) if name in row and name not in found} | found
        return row if system is None or row.get("system") else row | {"system": system}

    if not columns and system is None:
        return table
    return table._replace(rows=((number, renamed(number, row)) for number, row in table.rows))
