"""Writes a run's data sets to another place."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from rlaif.errors import InputError, WorkError
from rlaif.files import FULL, why
from rlaif.formats import SHAPES, CardFacts, Shape, file_form, write_dataset, write_file
from rlaif.formats.write.dataset import PARQUET
from rlaif.pipeline.browse.rows import rows
from rlaif.pipeline.browse.status import holding, manifest_of
from rlaif.pipeline.datasets import dataset_name
from rlaif.pipeline.folder import RunFolder, read_records, short
from rlaif.records import Preference, Row


def export(folder: RunFolder, form: str, target: Path) -> int:
    """Write one of the run's data sets to `target`, a folder or the file that its name ends like; returns its rows.

    A data set that the run wrote is copied; other shapes are made from the preferences of a `pair` stage. `form`
    is a data set's name, or its shape where the run has one of that shape. Raises InputError or WorkError.
    """
    manifest = manifest_of(folder)
    made = sorted(name.removeprefix("dataset ") for name in manifest["digests"] if name.startswith("dataset "))
    others = _made_when_exported(manifest["stages"])
    if form not in [*made, *others]:
        of_shape = [name for name in [*made, *others] if form in SHAPES and name.endswith(f"-{form}")]
        form = of_shape[0] if len(of_shape) == 1 else form
    if form not in [*made, *others]:
        fix = f"it has {', '.join([*made, *others])}" if made else "`rlaif status` shows its progress"
        raise InputError(f"the run has no data set {form!r}", fix=fix)
    form_of_file = file_form(target)
    with _written(target):
        if os.path.lexists(target) and (target.is_symlink() or not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{short(target)} exists", fix="give a new path with --to")
        with _new_folder(target) as data:
            if form in others:
                count = _made_over(folder, manifest, *others[form], data)
            else:
                count = _copied(folder.path / "dataset" / form, data)
            if form_of_file is None:
                data.replace(target)
            else:
                write_file(data / PARQUET, target, form_of_file)
    return count


def _copied(source: Path, data: Path) -> int:
    """Copy a data set into the folder `data`, and no other file that lies there. Raises WorkError for a damaged one."""
    import pyarrow.parquet

    try:
        count = pyarrow.parquet.ParquetFile(source / PARQUET).read().num_rows
    except (OSError, pyarrow.ArrowException):
        fix = "run the pipeline again: its calls are cached"
        raise WorkError("the data set is damaged", file=str(source), fix=fix) from None
    (data / PARQUET).parent.mkdir()
    for name in ("README.md", PARQUET):
        shutil.copy2(source / name, data / name)
    return int(count)


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
    """A new folder beside `target`, which the block may rename to it; removed at its end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{time.time_ns()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _made_when_exported(stages: Iterable[Mapping[str, Any]]) -> dict[str, tuple[dict[str, Any], Shape]]:
    """The data sets that are made only on export, by name: the pair stage and the shape."""
    from rlaif.pipeline.stages import STAGES

    return {
        dataset_name(stage["name"], shape.name): (stage, shape)
        for stage in holding(stages, "preferences")
        for shape in SHAPES.values()
        if shape.name not in STAGES[stage["kind"]].writes
    }


def _made_over(folder: RunFolder, manifest: dict[str, Any], stage: dict[str, Any], shape: Shape, data: Path) -> int:
    """Write a shape that no run writes into `data`, made from the preferences of a `pair` stage or from its rows."""
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
        told = f" ({reasons})" if reasons else ""
        raise WorkError(f"no row can be written in the shape {shape.name!r}{told}", fix="export another shape")
    card = CardFacts(data.name, stage["in"], dropped, {}, _digests(manifest))
    return write_dataset(shape, chain([first], made), data, card)


def _finished(rows: Iterable[Row], dropped: Counter[str]) -> Iterator[Row]:
    for row in rows:
        if row.failure is None:
            yield row
        else:
            dropped["failed"] += 1


def _digests(manifest: dict[str, Any]) -> dict[str, str]:
    made_with = ("constitution ", "rubric ", "rating template", "comparison template")
    return {name: str(value) for name, value in manifest["digests"].items() if name.startswith(made_with)}
