"""Writes what a `pair` or a `revise` stage made as data sets, each with its card."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from rlaif.config import ModelSpec, OpenAIModel
from rlaif.formats import CardFacts, preference_rows, sft_rows, ultrafeedback_rows, write_dataset
from rlaif.formats.writing import Shape
from rlaif.generate.revising import unrevised
from rlaif.records import Preference, Row

SHAPES: dict[str, tuple[Shape, ...]] = {  # by the kind of stage that writes them
    "pair": ("ultrafeedback", "preference", "sft"),
    "revise": ("sft",),
}
PARQUET = "data/train-00000-of-00001.parquet"

Table = tuple[Shape, Iterable[dict[str, Any]], Mapping[str, int]]  # its rows, and the prompts dropped by reason


def preference_tables(
    rows: Iterable[Row], failed: int, preferences: Iterable[Preference], dropped: Mapping[str, int],
    weights: Mapping[str, float] | None,
) -> Iterator[Table]:  # fmt: skip
    """The preferences and their chosen completions as SFT data; where `weights` tell of ratings, all rated rows too.

    Ratings were paid for and are data whether or not they make a preference.
    """
    if weights is not None:
        finished = (row for row in rows if row.failure is None)
        yield "ultrafeedback", ultrafeedback_rows(finished, weights), {"failed": failed} if failed else {}
    yield "preference", preference_rows(preferences), dropped
    yield "sft", sft_rows(preferences), dropped


def revision_tables(rows: Iterable[Row], dropped: Mapping[str, int]) -> Iterator[Table]:
    """The last revision of every completion as SFT data."""
    yield "sft", sft_rows(row for row in rows if unrevised(row) is None), dropped


def write_datasets(
    folder: Path,
    name: str,
    kind: str,
    prompts: int,
    tables: Iterable[Table],
    models: Mapping[str, ModelSpec],
    digests: Mapping[str, str],
) -> dict[str, str]:
    """Write the data sets of the stage `name`; returns the digest of each file. One without a row is not there.

    `models` are those that the rows name, `digests` of what the rows were made with (a rubric, a constitution,
    templates); both stand in the cards.
    """
    stand_for = {model: _stands_for(spec) for model, spec in models.items()}
    written = {}
    left = set(SHAPES[kind])
    for shape, table, dropped in tables:
        lines = iter(table)
        first = next(lines, None)
        if first is None:
            continue
        left.discard(shape)
        target = folder / dataset_name(name, shape)
        write_dataset(
            shape, chain([first], lines), target, CardFacts(target.name, prompts, dropped, stand_for, digests)
        )
        with open(target / PARQUET, "rb") as file:
            written[f"dataset {target.name}"] = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    for shape in left:
        shutil.rmtree(folder / dataset_name(name, shape), ignore_errors=True)
    return written


def dataset_name(step: str, shape: str) -> str:
    """The only pair stage of most pipelines is called `pair`; others put their name before the shape."""
    return shape if step == "pair" else f"{step}-{shape}"


def remove_others(folder: Path, stages: Mapping[str, str]) -> None:
    """Remove the data sets that no stage of this pipeline writes; `stages` gives each stage's kind."""
    expected = {dataset_name(name, shape) for name, kind in stages.items() for shape in SHAPES.get(kind, ())}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in expected and path.is_dir() and not path.is_symlink():  # anything else is not ours
            shutil.rmtree(path)


def named_models(row: Row) -> Iterator[str]:
    yield from (candidate.completion.model for candidate in row.candidates)
    yield from (rating.judge for rating in row.ratings)
    yield from (revision.critique.model for revision in row.revisions)
    yield from (comparison.judge for comparison in row.comparisons)


def _stands_for(spec: ModelSpec) -> str:
    if isinstance(spec, OpenAIModel):
        return f"{spec.model}{f' at {spec.revision}' if spec.revision else ''}"
    return f"{spec.path or spec.hub}" if not spec.path or not Path(spec.path).is_absolute() else Path(spec.path).name
