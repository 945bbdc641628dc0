"""Writes the data sets of stages, each with its card."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config import ModelSpec
from rlaif.formats import CardFacts, preference_rows, sft_rows, ultrafeedback_rows, write
from rlaif.formats.write.dataset import PARQUET, DatasetWriter
from rlaif.pipeline.folder import remove_dataset
from rlaif.records import Preference, Row

Piece = tuple[str, Iterable[dict[str, Any]]]  # some rows of one data set


def preference_pieces(
    row: Row, preferences: Sequence[Preference], weights: Mapping[str, float] | None
) -> Iterator[Piece]:
    """A row's preferences, their chosen completions as SFT data, and with `weights` of ratings the rated row.

    Ratings are data whether or not they give a preference.
    """
    if weights is not None and row.failure is None:
        yield "ultrafeedback", ultrafeedback_rows([row], weights)
    yield "preference", preference_rows(preferences)
    yield "sft", sft_rows(preferences)


class DatasetOf(NamedTuple):
    """The data sets of one stage: their folder, the number of prompts, and the origins for their cards.

    `models` are those that the rows name. `digests` are of what made the rows (rubric, constitution, templates).
    """

    folder: Path
    stage: str
    shapes: Sequence[str]  # by name
    prompts: int
    models: Mapping[str, ModelSpec]
    digests: Mapping[str, str]
    made: set[str]  # the run's record of what it made, to which a data set is added before it is written
    record: Callable[[], None]  # makes the record durable


def write_datasets(
    of: DatasetOf,
    pieces: Iterable[Piece],
    dropped: Mapping[str, Mapping[str, int]],
    left_out: Mapping[str, Mapping[str, int]] | None = None,
    seen: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Write the data sets of a stage in one pass; returns the digest of each file. An empty one is not written.

    `dropped` counts for each the prompts without a row, by reason, and `left_out` the completions; `seen` counts what
    was seen in completions, kept or not. All are read after all pieces. Raises WorkError when the counts do not add up.
    """
    names = {shape: f"dataset/{dataset_name(of.stage, shape)}" for shape in of.shapes}
    folders = {shape: of.folder.parent / name for shape, name in names.items()}
    of.made.update(names.values())
    of.record()  # a kill must not leave a data set that nobody made
    stand_for = {model: spec.stands_for for model, spec in of.models.items()}
    written = {}
    with ExitStack() as stack:
        writers = {
            shape: stack.enter_context(DatasetWriter(write.SHAPES[shape], folder)) for shape, folder in folders.items()
        }
        for shape, rows in pieces:
            writers[shape].extend(rows)
        for shape, writer in writers.items():
            if writer.count:
                left = (left_out or {}).get(shape, {})
                name, lost = writer.folder.name, dropped[shape]
                writer.finish(CardFacts(name, of.prompts, lost, stand_for, of.digests, left, seen or {}))
                with open(writer.folder / PARQUET, "rb") as file:
                    written[f"dataset {writer.folder.name}"] = hashlib.file_digest(file, "sha256").hexdigest()[:32]
            else:
                remove_dataset(writer.folder)
                of.made.discard(names[shape])
    return written


def dataset_name(step: str, shape: str) -> str:
    """The shape's name, with the stage's in front unless that is `pair`, the default."""
    return shape if step == "pair" else f"{step}-{shape}"
