"""What a run folder holds, for `status`, `show` and `export`. Reads, never changes the run.

The manifest says which stages and data sets are the run's own; whatever else lies in the folder is not shown.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from rlaif.errors import InputError, WorkError, nearest
from rlaif.formats import SHAPES, CardFacts, Shape, write_dataset, write_jsonl
from rlaif.pipeline.datasets import dataset_name
from rlaif.pipeline.folder import STORE, RunFolder, read_json, read_lines
from rlaif.pipeline.stages import STAGES
from rlaif.records import Preference, Row
from rlaif.store import CallStore

Kind = TypeVar("Kind", Row, Preference)


def status(folder: RunFolder) -> dict[str, Any]:
    """The manifest, with the rows of stages that are under way; `running` only while a process does."""
    manifest = _manifest(folder)
    if manifest["state"] == "running" and not folder.in_use():
        manifest["state"] = "killed"
    known = {stage["name"] for stage in manifest["stages"]}
    under_way = {}
    for path in sorted((folder.path / "stages").glob("[0-9][0-9]-*.partial.jsonl")):
        name = path.name.removesuffix(".partial.jsonl").split("-", 1)[1]
        if name not in known:
            under_way[name] = sum(1 for _ in read_lines(path.with_name(path.name.replace(".partial", ""))))
    return manifest | {"under_way": under_way}


def _manifest(folder: RunFolder) -> dict[str, Any]:
    manifest = folder.manifest()
    assert manifest is not None, "RunFolder.existing checked that there is one"
    return manifest


def _holding(stages: Iterable[Mapping[str, Any]], what: Literal["rows", "preferences"]) -> list[dict[str, Any]]:
    """The stages whose files hold rows, or preferences."""
    return [dict(stage) for stage in stages if stage["kind"] in STAGES and STAGES[stage["kind"]].holds == what]


def _row_files(folder: RunFolder) -> list[Path]:
    """The files of finished stages that hold rows; of stages under way while no such stage is finished."""
    finished = _holding(_manifest(folder)["stages"], "rows")
    partial = sorted((folder.path / "stages").glob("[0-9][0-9]-*.partial.jsonl"))
    under_way = [path.with_name(path.name.replace(".partial", "")) for path in partial]
    return [folder.path / stage["file"] for stage in finished if stage["file"]] or under_way


def _record(kind: type[Kind], line: bytes, path: Path) -> Kind:
    try:
        return kind.model_validate_json(line)
    except ValidationError:
        raise WorkError(
            "the file is damaged", file=str(path), fix="run the pipeline again: its calls are in the store"
        ) from None


def rows(folder: RunFolder, stage: str | None = None) -> Iterator[Row]:
    """The rows of a row stage: the one named, or the last that has any."""
    for part in _tables(folder, stage):
        found = False
        for row in part:
            found = True
            yield row
        if found:
            return


def _tables(folder: RunFolder, stage: str | None) -> Iterator[Iterator[Row]]:
    """The rows of each stage that has any, the last stage first; of the named one alone where one is."""
    files = {path.stem.split("-", 1)[1]: path for path in _row_files(folder)}
    if stage is not None and stage not in files:
        raise InputError(f"the run has no rows of a stage {stage!r}", fix=nearest(stage, files) if files else None)
    for name, path in reversed(files.items()):
        if stage in (None, name):
            yield (_record(Row, line, path) for line in read_lines(path))


def row(folder: RunFolder, wanted: str, stage: str | None = None) -> Row:
    """The row whose prompt id begins with `wanted`, or the wanted-th row, counted from 1.

    A prompt that several stages have rows of is shown as the last of them has it, unless `stage` names one.
    """
    matches: list[Row] = []
    for last, table in enumerate(_tables(folder, stage)):
        for number, candidate in enumerate(table, start=1):
            if wanted.isdecimal() and len(wanted) < 8 and int(wanted) == number and last == 0:
                return candidate
            if candidate.prompt.id.startswith(wanted):
                matches.append(candidate)
        if matches:
            break
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} rows begin with {wanted!r}" if matches else f"there is no row {wanted!r}"
    raise InputError(
        f"{problem} in {str(folder.path)!r}", fix="give a number from 1, or the first characters of a prompt id"
    )


def preferences(folder: RunFolder, row: Row) -> list[Preference]:
    """What was made of a row: its preferences, of every pair stage."""
    found, calls = [], {candidate.completion.call for candidate in row.candidates}
    for stage in _holding(_manifest(folder)["stages"], "preferences"):
        path = folder.path / stage["file"]
        for line in read_lines(path):
            preference = _record(Preference, line, path)
            if preference.prompt.id == row.prompt.id and preference.chosen.completion.call in calls:
                found.append(preference)
    return found


def all_preferences(folder: RunFolder) -> Iterator[Preference]:
    """The preferences of the last stage that made any."""
    for stage in reversed(_holding(_manifest(folder)["stages"], "preferences")):
        path = folder.path / stage["file"]
        if any(True for _ in read_lines(path)):
            yield from (_record(Preference, line, path) for line in read_lines(path))
            return


def summary(folder: RunFolder) -> dict[str, Any] | None:
    """The report of the last stage of this run that made one of models; None where there is none."""
    kinds = [stage["kind"] for stage in _manifest(folder)["stages"] if stage["kind"] in STAGES]
    files = [STAGES[kind].reports for kind in kinds]
    last = next((file for file in reversed(files) if file is not None), None)
    return None if last is None else read_json(folder.path / "report" / last)


def models(folder: RunFolder) -> dict[str, Path]:
    """The folders of the models that this run trained, by name."""
    names = (name.removeprefix("model ") for name in _manifest(folder)["digests"] if name.startswith("model "))
    return {name: folder.model(name) for name in names if (folder.model(name) / "training.json").is_file()}


def requests(row: Row) -> dict[str, Any]:
    """What was asked in each call behind a row, as far as this project's call store knows it."""
    store = CallStore(STORE, read_only=True)
    try:
        return {call: store.request(call) for call in sorted(row.calls())}
    finally:
        store.close()


def export(folder: RunFolder, form: str, target: Path, jsonl: bool) -> int:
    """Write one of the run's data sets to `target`, as a folder or one JSON Lines file; returns the rows.

    Those that the run wrote are copied; another shape is made of what a `pair` stage kept.
    """
    import pyarrow.parquet

    manifest = _manifest(folder)
    made = sorted(name.removeprefix("dataset ") for name in manifest["digests"] if name.startswith("dataset "))
    others = _made_when_exported(manifest["stages"])
    if form not in [*made, *others]:
        fix = f"it has {', '.join([*made, *others])}" if made else "`rlaif status` says how far it came"
        raise InputError(f"the run has no data set {form!r}", fix=fix)
    if os.path.exists(target) and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{str(target)!r} exists", fix="give a new path with --to")
    if form in others:
        return _made_over(folder, manifest, *others[form], target, jsonl)
    source = folder.path / "dataset" / form
    try:
        table = pyarrow.parquet.read_table(source / "data")
    except (OSError, pyarrow.ArrowException):
        fix = "run the pipeline again: its calls are in the store"
        raise WorkError("the data set is damaged", file=str(source), fix=fix) from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if jsonl:
            return write_jsonl(table.to_pylist(), target)
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        temporary.replace(target)
    except OSError as error:
        raise InputError(f"{str(target)!r} cannot be written: {error.strerror}", fix="give another path") from None
    return int(table.num_rows)


def _made_when_exported(stages: Iterable[Mapping[str, Any]]) -> dict[str, tuple[dict[str, Any], Shape]]:
    """The data sets that no run writes by itself, by name: the stage whose preferences they are made of, the shape."""
    return {
        dataset_name(stage["name"], shape.name): (stage, shape)
        for stage in _holding(stages, "preferences")
        for shape in SHAPES.values()
        if shape.name not in STAGES[stage["kind"]].writes
    }


def _made_over(
    folder: RunFolder, manifest: dict[str, Any], stage: dict[str, Any], shape: Shape, target: Path, jsonl: bool
) -> int:
    """A shape that no run writes by itself, made of the preferences of a `pair` stage or of the rows that it read."""
    dropped = Counter[str]()
    if shape.from_rows is not None:
        if all(other["name"] != stage["from"] or not other["file"] for other in manifest["stages"]):
            fix = "export what it made of them instead"
            raise InputError(f"the stage {stage['name']!r} reads a file, whose rows the run does not keep", fix=fix)
        made = shape.from_rows(_finished(rows(folder, stage["from"]), dropped), stage.get("weights") or {})
    else:
        assert shape.from_preferences is not None
        path = folder.path / stage["file"]
        made = shape.from_preferences((_record(Preference, line, path) for line in read_lines(path)), dropped)
        dropped.update(stage["dropped"])
    first = next(made, None)
    if first is None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise WorkError(f"nothing can be written in the shape {shape.name!r} ({reasons})", fix="export another shape")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        if jsonl:
            return write_jsonl(chain([first], made), target)
        shutil.rmtree(temporary, ignore_errors=True)
        card = CardFacts(target.name, stage["in"], dropped, {}, _digests(manifest))
        written = write_dataset(shape, chain([first], made), temporary, card)
        temporary.replace(target)
    except OSError as error:
        raise InputError(f"{str(target)!r} cannot be written: {error.strerror}", fix="give another path") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def _finished(rows: Iterable[Row], dropped: Counter[str]) -> Iterator[Row]:
    for row in rows:
        if row.failure is None:
            yield row
        else:
            dropped["failed"] += 1


def _digests(manifest: dict[str, Any]) -> dict[str, str]:
    made_with = ("constitution ", "rubric ", "rating template", "comparison template")
    return {name: value for name, value in manifest["digests"].items() if name.startswith(made_with)}
