"""The train stage: which inputs make a model, whether it is there already, and the training itself.

A model's folder holds the digest of its inputs in `key`, written with the weights and renamed with them, so that a
folder is a whole model with its key or is not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rlaif
from rlaif.config import TrainStage, TransformersModel
from rlaif.engines.identity import model_folder, weights_digest
from rlaif.errors import RlaifError
from rlaif.formats import Conversation
from rlaif.pipeline.folder import read_json, read_text, write_text
from rlaif.records import Message, Preference, Split, digest
from rlaif.resources import find

PACKAGES = ("torch", "transformers", "trl", "accelerate")  # a trained model depends on their versions
IRRELEVANT = {"name", "data", "checkpoint_steps"}  # settings that do not change the weights

Lesson = tuple[Message, ...] | tuple[tuple[Message, ...], str, str]  # a conversation; or prompt, chosen, rejected


def conversations(items: Iterable[Conversation]) -> list[tuple[Split, Lesson]]:
    return [(item.split, item.messages) for item in items]


def preferences(items: Iterable[Preference]) -> list[tuple[Split, Lesson]]:
    return [(p.prompt.split, (p.prompt.messages, p.chosen.completion.text, p.rejected.completion.text)) for p in items]


def training_key(stage: TrainStage, base: str, lessons: Sequence[tuple[Split, Lesson]], template: str | None) -> str:
    """The digest of all that determines the trained model. `base` is the base model's identity."""
    return digest(
        {
            "trainer": "sft" if stage.sft else "dpo",
            "settings": stage.trainer.model_dump(mode="json", exclude=IRRELEVANT),
            "base": base,
            "lessons": digest([[split, _plain(lesson)] for split, lesson in lessons]),
            "template": template,
            "versions": versions(*PACKAGES) | {"rlaif": rlaif.__version__},
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return [value.role, value.content]
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def finished(out: Path, key: str) -> dict[str, Any] | None:
    """What the training of `out` recorded, when it was made from the inputs of `key` and its files are as they were."""
    record = read_json(out / "training.json") if read_text(out / "key") == key else None
    if record is None:
        return None
    try:
        return record if record.get("weights") == weights_digest(out) else None
    except RlaifError:  # a file of the model is gone
        return None


def train(
    stage: TrainStage,
    base: TransformersModel,
    lessons: Sequence[tuple[Split, Lesson]],
    template: str | None,
    out: Path,
    key: str,
    on_step: Callable[[dict[str, float]], None],
) -> dict[str, Any]:
    """Train one model and return its record. An unfinished training of other inputs is thrown away; this one's goes on.

    Held-out lessons are left out and counted: a pipeline may sample on all prompts, but nothing trains on those.
    """
    partial = out.with_name(out.name + ".partial")
    if partial.exists() and read_text(partial / "key") != key:
        shutil.rmtree(partial)
    write_text(partial / "key", key)
    if out.exists():  # moved aside first: half of an old model must never stand under its name
        aside = out.with_name(out.name + ".old")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(out, aside)
        shutil.rmtree(aside)
    split: dict[Split, list[Any]] = {"train": [], "validation": [], "held-out": []}
    for of, lesson in lessons:
        split[of].append(lesson)
    folder = model_folder(base.hub, base.revision) if base.hub else find(str(base.path))
    if stage.sft:
        from rlaif.train.sft import train_sft

        train_sft(stage.sft, folder, split["train"], split["validation"], out, on_step, template)
    else:
        from rlaif.train.dpo import PreferencePair, train_dpo

        assert stage.dpo is not None
        pairs = {of: [PreferencePair(*lesson) for lesson in part] for of, part in split.items()}
        train_dpo(stage.dpo, folder, pairs["train"], pairs["validation"], out, on_step)
    record = finished(out, key)
    assert record is not None, f"{out} was trained but holds no record"
    return record


def held_out(lessons: Sequence[tuple[Split, Lesson]]) -> int:
    return sum(split == "held-out" for split, _ in lessons)


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of `packages`, those that are not installed left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
