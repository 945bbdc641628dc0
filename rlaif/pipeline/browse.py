"""Reads run folders, for `status`, `show` and `export`. Never changes a run.

Only stages and data sets in the manifest are shown, and no other files in the folder.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from rlaif.errors import InputError, WorkError, nearest
from rlaif.files import FULL, json_of, why
from rlaif.formats import SHAPES, CardFacts, Shape, write_dataset, write_jsonl
from rlaif.formats.write.dataset import PARQUET
from rlaif.pipeline.datasets import dataset_name
from rlaif.pipeline.folder import STORE, RunFolder, read_lines, read_records, short
from rlaif.records import Preference, Row
from rlaif.store import CallStore


def status(folder: RunFolder) -> dict[str, Any]:
    """The manifest, with row counts of unfinished stages; its state is `running` only while a process runs."""
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
    if manifest is None:
        raise WorkError("manifest.json is gone", file=str(folder.path), fix="run the pipeline again: it resumes")
    return manifest


def _holding(stages: Iterable[Mapping[str, Any]], what: Literal["rows", "preferences"]) -> list[dict[str, Any]]:
    """The stages with files that hold rows, or preferences."""
    from rlaif.pipeline.stages import STAGES  # late: `rlaif status` does without the stages

    held = {kind for kind, stage in STAGES.items() if stage.holds == what}
    return [dict(stage) for stage in stages if stage["kind"] in held and stage["file"]]


def _row_files(folder: RunFolder) -> list[Path]:
    """The row files of finished stages, or of unfinished ones while none is finished."""
    finished = _holding(_manifest(folder)["stages"], "rows")
    partial = sorted((folder.path / "stages").glob("[0-9][0-9]-*.partial.jsonl"))
    under_way = [path.with_name(path.name.replace(".partial", "")) for path in partial]
    return [folder.path / stage["file"] for stage in finished] or under_way


def rows(folder: RunFolder, stage: str | None = None) -> Iterator[Row]:
    """The rows of the named row stage, or of the last that has any."""
    for table in _tables(folder, stage):
        empty = True
        for row in table:
            empty = False
            yield row
        if not empty:
            return


def _tables(folder: RunFolder, stage: str | None) -> Iterator[Iterator[Row]]:
    """The rows of each row stage, the last one first; only of `stage`, if named."""
    files = {path.stem.split("-", 1)[1]: path for path in _row_files(folder)}
    if stage is not None and stage not in files:
        raise InputError(f"the run has no rows of a stage {stage!r}", fix=nearest(stage, files) if files else None)
    for name, path in reversed(files.items()):
        if stage in (None, name):
            yield read_records(Row, path)


def row(folder: RunFolder, wanted: str, stage: str | None = None) -> Row:
    """The row whose prompt id begins with `wanted`, or the wanted-th row, counted from 1.

    It is taken from the last stage that has it, unless `stage` names one. Raises InputError.
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
    """A row's preferences, from every pair stage."""
    own, calls = [], {candidate.completion.call for candidate in row.candidates}
    for stage in _holding(_manifest(folder)["stages"], "preferences"):
        path = folder.path / stage["file"]
        for preference in read_records(Preference, path):
            if preference.prompt.id == row.prompt.id and preference.chosen.completion.call in calls:
                own.append(preference)
    return own


def all_preferences(folder: RunFolder) -> Iterator[Preference]:
    """The preferences of the last stage that made any."""
    for stage in reversed(_holding(_manifest(folder)["stages"], "preferences")):
        path = folder.path / stage["file"]
        if any(True for _ in read_lines(path)):
            yield from read_records(Preference, path)
            return


def summary(folder: RunFolder) -> dict[str, Any] | None:
    """The report of the last stage of this run that made one of models; None where there is none."""
    from rlaif.pipeline.stages import STAGES

    kinds = [stage["kind"] for stage in _manifest(folder)["stages"] if stage["kind"] in STAGES]
    files = [STAGES[kind].reports for kind in kinds]
    last = next((file for file in reversed(files) if file is not None), None)
    return None if last is None else json_of(folder.path / "report" / last)


def models(folder: RunFolder) -> dict[str, Path]:
    """The folders of the models that this run trained, by name."""
    names = (name.removeprefix("model ") for name in _manifest(folder)["digests"] if name.startswith("model "))
    return {name: folder.model(name) for name in names if (folder.model(name) / "training.json").is_file()}


def requests(row: Row) -> dict[str, Any]:
    """The request of each call behind a row, where this project's call store has it."""
    store = CallStore(STORE, read_only=True)
    try:
        return {call: store.request(call) for call in sorted(row.calls())}
    finally:
        store.close()


def export(folder: RunFolder, form: str, target: Path, jsonl: bool) -> int:
    """Write one of the run's data sets to `target`, as a folder or one JSON Lines file; returns its number of rows.

    A data set that the run wrote is copied; other shapes are made from the preferences of a `pair` stage. `form` is a
    data set's name, or its shape where the run has one of that shape. Raises InputError or WorkError.
    """
    import pyarrow.parquet

    manifest = _manifest(folder)
    made = sorted(name.removeprefix("dataset ") for name in manifest["digests"] if name.startswith("dataset "))
    others = _made_when_exported(manifest["stages"])
    if form not in [*made, *others]:
        of_shape = [name for name in [*made, *others] if form in SHAPES and name.endswith(f"-{form}")]
        form = of_shape[0] if len(of_shape) == 1 else form
    if form not in [*made, *others]:
        fix = f"it has {', '.join([*made, *others])}" if made else "`rlaif status` shows its progress"
        raise InputError(f"the run has no data set {form!r}", fix=fix)
    with _written(target):
        if os.path.lexists(target) and (target.is_symlink() or not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{short(target)} exists", fix="give a new path with --to")
        if form in others:
            return _made_over(folder, manifest, *others[form], target, jsonl)
    source = folder.path / "dataset" / form
    try:
        table = pyarrow.parquet.ParquetFile(source / PARQUET).read()
    except (OSError, pyarrow.ArrowException):
        fix = "run the pipeline again: its calls are cached"
        raise WorkError("the data set is damaged", file=str(source), fix=fix) from None
    with _written(target):
        if jsonl:
            return write_jsonl(table.to_pylist(), target)
        with _new_folder(target) as temporary:
            (temporary / PARQUET).parent.mkdir()
            for name in ("README.md", PARQUET):  # and no other file that lies there
                shutil.copy2(source / name, temporary / name)
    return int(table.num_rows)


@contextmanager
def _written(target: Path) -> Iterator[None]:
    """Raises InputError, or WorkError for a full disk, where `target` cannot be written."""
    try:
        yield
    except OSError as error:
        problem = f"{short(target)} cannot be written: {why(error)}"
        if error.errno in FULL:
            raise WorkError(problem, fix="free some space, then run the same command again") from None
        raise InputError(problem, fix="give another path") from None


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`: renamed to it when the block succeeds, removed when the block raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{time.time_ns()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _made_when_exported(stages: Iterable[Mapping[str, Any]]) -> dict[str, tuple[dict[str, Any], Shape]]:
    """The data sets that are made only on export, by name: the pair stage and the shape."""
    from rlaif.pipeline.stages import STAGES

    return {
        dataset_name(stage["name"], shape.name): (stage, shape)
        for stage in _holding(stages, "preferences")
        for shape in SHAPES.values()
        if shape.name not in STAGES[stage["kind"]].writes
    }


def _made_over(
    folder: RunFolder, manifest: dict[str, Any], stage: dict[str, Any], shape: Shape, target: Path, jsonl: bool
) -> int:
    """Export a shape that no run writes, made from the preferences of a `pair` stage or from its rows."""
    dropped = Counter[str]()
    if shape.from_rows is not None:
        if all(other["name"] != stage["from"] or not other["file"] for other in manifest["stages"]):
            fix = "export another shape"
            raise InputError(f"the stage {stage['name']!r} reads a file, whose rows the run does not keep", fix=fix)
        made = shape.from_rows(_finished(rows(folder, stage["from"]), dropped), stage.get("weights") or {})
    else:
        assert shape.from_preferences is not None
        path = folder.path / stage["file"]
        made = shape.from_preferences(read_records(Preference, path), dropped)
        dropped.update(stage["dropped"])
    first = next(made, None)
    if first is None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise WorkError(f"no row can be written in the shape {shape.name!r} ({reasons})", fix="export another shape")
    if jsonl:
        return write_jsonl(chain([first], made), target)
    with _new_folder(target) as temporary:
        card = CardFacts(target.name, stage["in"], dropped, {}, _digests(manifest))
        return write_dataset(shape, chain([first], made), temporary, card)


def _finished(rows: Iterable[Row], dropped: Counter[str]) -> Iterator[Row]:
    for row in rows:
        if row.failure is None:
            yield row
        else:
            dropped["failed"] += 1


def _digests(manifest: dict[str, Any]) -> dict[str, str]:
    made_with = ("constitution ", "rubric ", "rating template", "comparison template")
    return {name: str(value) for name, value in manifest["digests"].items() if name.startswith(made_with)}
