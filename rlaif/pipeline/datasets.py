"""Writes what a `pair` stage made as data sets, each with its card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlaif.config import ModelSpec, OpenAIModel
from rlaif.formats import CardFacts, preference_rows, sft_rows, ultrafeedback_rows, write_dataset
from rlaif.formats.writing import Shape
from rlaif.generate.pairing import Pairs
from rlaif.measure import Judge
from rlaif.records import Row

PARQUET = "data/train-00000-of-00001.parquet"


def write_datasets(
    folder: Path, name: str, specs: Mapping[str, ModelSpec], rows: Sequence[Row], pairs: Pairs, judge: Judge
) -> dict[str, str]:
    """Preferences, their chosen completions as SFT data, and all rated rows; returns the digest of each file."""
    weights = judge.rubric.weights()
    used = {c.completion.model for row in rows for c in row.candidates} | {r.judge for row in rows for r in row.ratings}
    models = {model: _stands_for(specs[model]) for model in used}
    digests = {f"rubric {judge.rubric.name}": judge.rubric.digest, "rating template": judge.template.digest}
    finished = [row for row in rows if row.failure is None]
    failed = {"failed": len(rows) - len(finished)} if len(finished) < len(rows) else {}
    shapes: list[tuple[Shape, list[dict[str, object]], Mapping[str, int]]] = [
        ("preference", list(preference_rows(pairs.preferences)), pairs.dropped),
        ("sft", list(sft_rows(pairs.preferences)), pairs.dropped),
        ("ultrafeedback", list(ultrafeedback_rows(finished, weights)), failed),
    ]
    written = {}
    for shape, table, dropped in shapes:
        target = folder / (shape if name == "pair" else f"{name}-{shape}")
        write_dataset(shape, table, target, CardFacts(target.name, len(rows), dropped, models, digests))
        written[f"dataset {target.name}"] = hashlib.sha256((target / PARQUET).read_bytes()).hexdigest()[:32]
    return written


def _stands_for(spec: ModelSpec) -> str:
    if isinstance(spec, OpenAIModel):
        return f"{spec.model}{f' at {spec.revision}' if spec.revision else ''}"
    return f"{spec.path or spec.hub}" if not spec.path or not Path(spec.path).is_absolute() else Path(spec.path).name
