"""What a run was made with, kept in its folder: the resolved pipeline, constitutions, rubrics and templates.

They say what a run did after the files were edited or are gone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from rlaif.config import Pipeline
from rlaif.constitution import Constitution, read_constitution
from rlaif.errors import InputError
from rlaif.files import text_of, write_text
from rlaif.resources import find

FOLDER = "inputs"
SUFFIXES = (".yaml", ".yml", ".jinja")  # of texts; data files may be large, and are told by their digest
_COPY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.[a-z_]+\.(?:yaml|yml|jinja)")


def keep_inputs(folder: Path, pipeline: Pipeline, applied: Mapping[str, Constitution]) -> None:
    """Write the resolved pipeline into a run's folder, and copies of the texts that its stages name.

    `applied` are the constitutions as the stages read them, by the stage. Raises InputError for one that was changed
    since then.
    """
    write_text(folder / "pipeline.yaml", yaml.safe_dump(pipeline.resolved(folder), sort_keys=False))
    for earlier in (folder / FOLDER).glob("*.*.*"):
        if _COPY.fullmatch(earlier.name) and not earlier.is_symlink():
            earlier.unlink()  # of a stage that is gone, or a file with another suffix
    for step in pipeline.steps:
        for path, key in step.stage.named_files():
            if Path(path).suffix in SUFFIXES and (text := text_of(find(path))) is not None:
                write_text(_place(folder, step.name, str(key[-1]), Path(path).suffix), text)
        copy = kept_input(folder, step.name, "constitution")
        if copy is not None and step.name in applied and read_constitution(str(copy)) != applied[step.name]:
            problem = f"the constitution of {step.name!r} was changed while the run began"
            raise InputError(problem, fix="run it again")


def kept_input(folder: Path, stage: str, key: str) -> Path | None:
    """The copy of the text that a stage names under a key, such as `constitution`; None where there is none."""
    places = (_place(folder, stage, key, suffix) for suffix in SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def _place(folder: Path, stage: str, key: str, suffix: str) -> Path:
    return folder / FOLDER / f"{stage}.{key}{suffix}"
