"""What a run folder holds, for `status`, `show` and `export`. Reads, never changes the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlaif.errors import InputError
from rlaif.formats import write_jsonl
from rlaif.pipeline.folder import RunFolder, read_lines
from rlaif.records import Preference, Row


def status(folder: RunFolder) -> dict[str, Any]:
    """The manifest, with the rows of stages that are under way."""
    manifest = folder.manifest()
    assert manifest is not None
    known = {stage["name"] for stage in manifest["stages"]}
    under_way = {}
    for path in sorted((folder.path / "stages").glob("*.partial.jsonl")):
        name = path.name.removesuffix(".partial.jsonl").split("-", 1)[1]
        if name not in known:
            under_way[name] = sum(1 for _ in read_lines(path.with_name(path.name.replace(".partial", ""))))
    return manifest | {"under_way": under_way}


def _stage_files(folder: RunFolder) -> list[Path]:
    files = {path.with_name(path.name.replace(".partial", "")) for path in (folder.path / "stages").glob("*.jsonl")}
    return sorted(files)


def rows(folder: RunFolder) -> Iterator[Row]:
    """The rows of the last row stage that has any."""
    for path in reversed(_stage_files(folder)):
        found = False
        for line in read_lines(path):
            value = json.loads(line)
            if "candidates" in value or "failure" in value:
                found = True
                yield Row.model_validate(value)
        if found:
            return


def row(folder: RunFolder, wanted: str) -> Row:
    """The row whose prompt id begins with `wanted`, or the wanted-th row, counted from 1."""
    matches: list[Row] = []
    for number, candidate in enumerate(rows(folder), start=1):
        if wanted.isdigit() and len(wanted) < 8 and int(wanted) == number:
            return candidate
        if candidate.prompt.id.startswith(wanted):
            matches.append(candidate)
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} rows begin with {wanted!r}" if matches else f"there is no row {wanted!r}"
    raise InputError(
        f"{problem} in {str(folder.path)!r}", fix="give a number from 1, or the first characters of a prompt id"
    )


def preferences(folder: RunFolder, prompt_id: str) -> list[Preference]:
    """What was made of a prompt: its preferences, of every pair stage."""
    found = []
    for path in _stage_files(folder):
        for line in read_lines(path):
            value = json.loads(line)
            if "chosen" in value:
                preference = Preference.model_validate(value)
                if preference.prompt.id == prompt_id:
                    found.append(preference)
    return found


def export(folder: RunFolder, form: str, target: Path, jsonl: bool) -> int:
    """Copy one of the run's data sets to `target`: the folder as it is, or one JSON Lines file; returns the rows."""
    import pyarrow.parquet

    source = folder.path / "dataset" / form
    if not source.is_dir():
        made = sorted(p.name for p in (folder.path / "dataset").glob("*") if p.is_dir())
        raise InputError(
            f"the run has no data set {form!r}",
            fix=f"it has {', '.join(made)}" if made else "run a pipeline with a `pair` stage",
        )
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise InputError(f"{str(target)!r} exists", fix="give a new path with --to")
    if not jsonl:
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        temporary.replace(target)
    table = pyarrow.parquet.read_table(source / "data")
    return write_jsonl(table.to_pylist(), target) if jsonl else int(table.num_rows)
