"""A run as its manifest has it: how far it is, its stages by what they hold, its models and its report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rlaif.errors import StoreError, WorkError
from rlaif.files import json_of
from rlaif.pipeline import batched
from rlaif.pipeline.folder import STORE, RunFolder, read_lines
from rlaif.pipeline.recorded import cost_of, prices_of
from rlaif.store import CallStore


def status(folder: RunFolder) -> dict[str, Any]:
    """The manifest, with row counts of unfinished stages; its state is `running` only while a process runs."""
    manifest = manifest_of(folder)
    if manifest["state"] == "running":
        manifest["cost_of_all_starts"] = _cost_so_far(manifest, batched.paid(folder.path))
        if not folder.in_use():
            manifest["state"] = "killed"
    known = {stage["name"] for stage in manifest["stages"] if not stage.get("earlier")}
    under_way = {}
    for path in sorted((folder.path / "stages").glob("[0-9][0-9]-*.partial.jsonl")):
        name = path.name.removesuffix(".partial.jsonl").split("-", 1)[1]
        if name not in known:
            under_way[name] = sum(1 for _ in read_lines(path.with_name(path.name.replace(".partial", ""))))
    return manifest | {"under_way": under_way}


def _cost_so_far(manifest: Mapping[str, Any], in_batches: Mapping[str, tuple[int, int]]) -> float | None:
    """The cost of all starts by this project's call store, which knows of calls that the manifest does not yet."""
    written: float | None = manifest.get("cost_of_all_starts")
    if written is None:
        return None
    try:
        store = CallStore(STORE, read_only=True)
        try:
            known = cost_of(store.spent(manifest["name"]), prices_of(manifest), in_batches)
        finally:
            store.close()
    except StoreError:
        return written
    return max(written, round(known, 6))


def manifest_of(folder: RunFolder) -> dict[str, Any]:
    manifest = folder.manifest()
    if manifest is None:
        raise WorkError("manifest.json is gone", file=str(folder.path), fix="run the pipeline again: it resumes")
    return manifest


def holding(stages: Iterable[Mapping[str, Any]], what: Literal["rows", "preferences"]) -> list[dict[str, Any]]:
    """The stages with files that hold rows, or preferences."""
    from rlaif.pipeline.stages import STAGES  # late: `rlaif status` does without the stages

    held = {kind for kind, stage in STAGES.items() if stage.holds == what}
    return [dict(stage) for stage in stages if stage["kind"] in held and stage["file"]]


def summary(folder: RunFolder) -> dict[str, Any] | None:
    """The report of the last stage of this run that made one of models; None where there is none."""
    from rlaif.pipeline.stages import STAGES

    kinds = [stage["kind"] for stage in manifest_of(folder)["stages"] if stage["kind"] in STAGES]
    files = [STAGES[kind].reports for kind in kinds]
    last = next((file for file in reversed(files) if file is not None), None)
    return None if last is None else json_of(folder.path / "report" / last)


def models(folder: RunFolder) -> dict[str, Path]:
    """The folders of the models that this run trained, by name."""
    names = (name.removeprefix("model ") for name in manifest_of(folder)["digests"] if name.startswith("model "))
    return {name: folder.model(name) for name in names if (folder.model(name) / "training.json").is_file()}
