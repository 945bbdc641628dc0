"""Writes what a `pair` stage made as data sets, each with its card."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlaif.config import ModelSpec, OpenAIModel
from rlaif.formats import CardFacts, preference_rows, sft_rows, ultrafeedback_rows, write_dataset
from rlaif.formats.writing import Shape
from rlaif.generate.pairing import Pairs
from rlaif.judges.rating import Judge
from rlaif.records import Row

SHAPES: tuple[Shape, ...] = ("ultrafeedback", "preference", "sft")
PARQUET = "data/train-00000-of-00001.parquet"


def write_datasets(
    folder: Path, name: str, specs: Mapping[str, ModelSpec], rows: Sequence[Row], pairs: Pairs, judge: Judge
) -> dict[str, str]:
    """All rated rows, and the preferences with their chosen completions as SFT data; returns the digest of each file.

    Ratings were paid for and are data whether or not they make a preference. Without any preference the two data sets
    made of them are not there.
    """
    weights = judge.rubric.weights()
    used = {c.completion.model for row in rows for c in row.candidates} | {r.judge for row in rows for r in row.ratings}
    models = {model: _stands_for(specs[model]) for model in used}
    digests = {f"rubric {judge.rubric.name}": judge.rubric.digest, "rating template": judge.template.digest}
    finished = [row for row in rows if row.failure is None]
    failed = {"failed": len(rows) - len(finished)} if len(finished) < len(rows) else {}
    shapes: list[tuple[Shape, list[dict[str, object]], Mapping[str, int]]] = [
        ("ultrafeedback", list(ultrafeedback_rows(finished, weights)), failed),
        ("preference", list(preference_rows(pairs.preferences)), pairs.dropped),
        ("sft", list(sft_rows(pairs.preferences)), pairs.dropped),
    ]
    written = {}
    for shape, table, dropped in shapes:
        target = folder / dataset_name(name, shape)
        if not table:
            shutil.rmtree(target, ignore_errors=True)
            continue
        write_dataset(shape, table, target, CardFacts(target.name, len(rows), dropped, models, digests))
        written[f"dataset {target.name}"] = hashlib.sha256((target / PARQUET).read_bytes()).hexdigest()[:32]
    return written


def dataset_name(step: str, shape: str) -> str:
    """The only pair stage of most pipelines is called `pair`; others put their name before the shape."""
    return shape if step == "pair" else f"{step}-{shape}"


def remove_others(folder: Path, steps: Sequence[str]) -> None:
    """Remove the data sets that no pair stage of this pipeline writes."""
    expected = {dataset_name(step, shape) for step in steps for shape in SHAPES}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in expected:
            shutil.rmtree(path)


def _stands_for(spec: ModelSpec) -> str:
    if isinstance(spec, OpenAIModel):
        return f"{spec.model}{f' at {spec.revision}' if spec.revision else ''}"
    return f"{spec.path or spec.hub}" if not spec.path or not Path(spec.path).is_absolute() else Path(spec.path).name
