"""The rows of a run, with their preferences and requests, and why a row gave no data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.errors import InputError, nearest
from rlaif.generate.pairing import Pairing, length_balance, preferences_of
from rlaif.judges.verifying import VERIFIER
from rlaif.pipeline.browse.status import holding, manifest_of
from rlaif.pipeline.folder import STORE, RunFolder, read_lines, read_records
from rlaif.records import Preference, Row
from rlaif.store import CallStore


def _row_files(folder: RunFolder) -> list[Path]:
    """The row files of finished stages, or of unfinished ones while none is finished."""
    finished = holding(manifest_of(folder)["stages"], "rows")
    partial = sorted((folder.path / "stages").glob("[0-9][0-9]-*.partial.jsonl"))
    under_way = [path.with_name(path.name.replace(".partial", "")) for path in partial]
    return [folder.path / stage["file"] for stage in finished] or under_way


class Shown(NamedTuple):
    """A row of a stage's file: its number from 1, the stage, and why it gave no data there."""

    number: int
    stage: str
    row: Row
    why: tuple[str, ...] = ()


class Wanted(NamedTuple):
    """Which rows are listed: those with all of these."""

    dropped: bool = False
    tied: bool = False
    unparsed: bool = False
    search: str = ""

    def has(self, shown: Shown) -> bool:
        row = shown.row
        tied = "tie" in shown.why or any(comparison.verdict == "tie" for comparison in row.comparisons)
        return (
            (not self.dropped or bool(shown.why))
            and (not self.tied or tied)
            and (not self.unparsed or _is_unparsed(row))
            and (not self.search or _says(row.model_dump(), self.search.casefold()))
        )


def _is_unparsed(row: Row) -> bool:
    """Whether a judge's reply could not be read. What a check in code cannot decide is no reply."""
    return any(one.unread() is not None for one in row.judgements() if VERIFIER not in one.models())


def _says(value: object, words: str) -> bool:
    """Whether the words, in small letters, stand in a text of a record: not in the names of its fields."""
    if isinstance(value, dict):
        return any(_says(item, words) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_says(item, words) for item in value)
    return isinstance(value, str) and words in value.casefold()


def rows(folder: RunFolder, stage: str | None = None) -> Iterator[Row]:
    """The rows of the named row stage, or of the last that has any."""
    return (shown.row for shown in _numbered(folder, stage))


def listed(folder: RunFolder, stage: str | None, wanted: Wanted) -> Iterator[Shown]:
    """The rows of a stage as `rows` has them, each with why it gave no data, that are wanted."""
    pairings: list[_Pairing] | None = None
    for shown in _numbered(folder, stage):
        if pairings is None:
            pairings = _pairings(folder, shown.stage)
        shown = shown._replace(why=tuple(_reasons(shown.row, pairings)))
        if wanted.has(shown):
            yield shown


_Pairing = tuple[Pairing, Callable[[Preference], bool] | None]


def _pairings(folder: RunFolder, stage: str) -> list[_Pairing]:
    """How the pair stages that read a stage make preferences of its rows."""
    found = []
    for one in holding(manifest_of(folder)["stages"], "preferences"):
        if one["from"] == stage and "rule" in one:
            margin, weights = float(one.get("min_margin", 0.0)), one.get("weights") or {}
            how = Pairing(one["rule"], one.get("basis", "ratings"), weights, margin, one.get("judge"))
            found.append((how, length_balance(rows(folder, stage), how) if one.get("balance") else None))
    return found


def _reasons(row: Row, pairings: Sequence[_Pairing]) -> list[str]:
    """Why a row gave no data; none where it did, or where no stage was to make any of it."""
    if row.failure is not None:
        return [f"failed ({row.cause})"]
    dropped = Counter(filter(None, [row.dropped]))
    for how, keep in pairings:
        preferences_of(row, how, dropped, keep)
    return list(dropped)


def _numbered(folder: RunFolder, stage: str | None) -> Iterator[Shown]:
    for name, table in _tables(folder, stage):
        empty = True
        for number, row in enumerate(table, start=1):
            empty = False
            yield Shown(number, name, row)
        if not empty:
            return


def _tables(folder: RunFolder, stage: str | None) -> Iterator[tuple[str, Iterator[Row]]]:
    """The rows of each row stage, the last one first; only of `stage`, if named."""
    files = {path.stem.split("-", 1)[1]: path for path in _row_files(folder)}
    if stage is not None and stage not in files:
        raise InputError(f"the run has no rows of a stage {stage!r}", fix=nearest(stage, files) if files else None)
    for name, path in reversed(files.items()):
        if stage in (None, name):
            yield name, read_records(Row, path)


def rows_after(folder: RunFolder, shown: Shown) -> int:
    """How many rows of its stage come after one, counted without reading them."""
    path = next(path for path in _row_files(folder) if path.stem.split("-", 1)[1] == shown.stage)
    return sum(1 for _ in read_lines(path)) - shown.number


def row(folder: RunFolder, wanted: str, stage: str | None = None) -> Shown:
    """The row whose prompt id begins with `wanted`, or the row with this number, with why it gave no data.

    It is taken from the last stage that has it, unless `stage` names one. Raises InputError.
    """
    shown = _found(folder, wanted, stage)
    return shown._replace(why=tuple(_reasons(shown.row, _pairings(folder, shown.stage))))


def _found(folder: RunFolder, wanted: str, stage: str | None) -> Shown:
    if wanted.isdecimal() and len(wanted) < 8:
        for shown in _numbered(folder, stage):
            if shown.number == int(wanted):
                return shown
    matches: list[Shown] = []
    for name, table in _tables(folder, stage):
        numbered = enumerate(table, start=1)
        matches = [Shown(number, name, one) for number, one in numbered if one.prompt.id.startswith(wanted)]
        if matches:
            break
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} rows begin with {wanted!r}" if matches else f"there is no row {wanted!r}"
    raise InputError(
        f"{problem} in {str(folder.path)!r}", fix="give a number from 1, or the first characters of a prompt id"
    )


def preferences(folder: RunFolder, shown: Shown) -> list[tuple[str, Preference]]:
    """A row's preferences, each with the stage that made it: of every pair stage whose rows come from the row's stage.

    Another branch of the pipeline may prefer another of the same candidates.
    """
    own, calls = [], {candidate.completion.call for candidate in shown.row.candidates}
    stages = manifest_of(folder)["stages"]
    reads = {stage["name"]: stage["from"] for stage in stages}
    for stage in holding(stages, "preferences"):
        if shown.stage not in _line(stage["name"], reads):
            continue
        for preference in read_records(Preference, folder.path / stage["file"]):
            if preference.prompt.id == shown.row.prompt.id and preference.chosen.completion.call in calls:
                own.append((str(stage["name"]), preference))
    return own


def _line(name: str, reads: Mapping[str, str | None]) -> list[str]:
    """The stages that a stage's rows went through, the nearest first."""
    line: list[str] = []
    above = reads.get(name)
    while above is not None and above not in line:  # a manifest may be edited into a circle
        line.append(above)
        above = reads.get(above)
    return line


def all_preferences(folder: RunFolder) -> Iterator[Preference]:
    """The preferences of the last stage that made any."""
    for stage in reversed(holding(manifest_of(folder)["stages"], "preferences")):
        path = folder.path / stage["file"]
        if any(True for _ in read_lines(path)):
            yield from read_records(Preference, path)
            return


def requests(row: Row) -> dict[str, Any]:
    """The request of each call behind a row, where this project's call store has it."""
    store = CallStore(STORE, read_only=True)
    try:
        return {call: store.request(call) for call in sorted(row.calls())}
    finally:
        store.close()
