"""Where a model's files lie, and the digest that names exactly what they compute.

Reads bytes only: no model is loaded and torch is not imported, so that planning a run stays cheap.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlaif.engines import adapters, vetting
from rlaif.engines.adapters import Source
from rlaif.errors import InputError, WorkError, first_line, shown
from rlaif.files import json_of

# Every file that can change a model's answer. A trainer's state and arguments cannot.
ANSWER_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)


def model_folder(path: str, revision: str | None = None) -> Path:
    """The folder `path` names; a hub id of the form `owner/name` is fetched, its safetensors and text files only.

    Raises InputError where there is no such folder, and WorkError where the hub cannot give it.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise InputError(
            f"there is no model folder {path!r}", key="path", fix="give a folder with config.json and safetensors"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(ANSWER_FILES)))
    except (OSError, ValueError) as error:
        # The hub's messages run over many lines; the first holds the reason.
        raise WorkError(
            f"{path!r} is not a folder here and cannot be fetched from the hub: {first_line(error)}",
            fix="check the name and the network, or give a folder",
        ) from None


def model_files(source: Source) -> list[Path]:
    """The files that can change the model's answer. Raises InputError when they are no model that can be loaded."""
    base, stacked = adapters.layers(source)
    vetting.refuse_irregular(base)
    files = _files(base)
    names = {file.name for file in files}
    if "config.json" not in names:
        raise InputError(
            "config.json is missing, so this is no model", file=str(base), fix="give a saved model's folder"
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            "the folder holds no safetensors weights, and no other format is read",
            file=str(base),
            fix="save the model again with `save_pretrained`, which writes safetensors",
        )
    vetting.vet(files)
    return files + [file for adapter in stacked for file in _adapter_files(adapter, base)]


def _files(folder: Path) -> list[Path]:
    return sorted({file for pattern in ANSWER_FILES for file in folder.glob(pattern) if file.is_file()})


def _adapter_files(adapter: Path, base: Path) -> list[Path]:
    """An adapter's files, without its settings: these name a folder, and are digested by what they say."""
    vetting.refuse_irregular(adapter)
    files = [file for file in _files(adapter) if file.name != vetting.CONFIG]
    if [file.name for file in files if file.name.endswith(".safetensors")] != [adapters.WEIGHTS]:
        raise InputError(
            f"an adapter's weights are in one file, {adapters.WEIGHTS}, and no other is read",
            file=str(adapter),
            fix="save the adapter again with `save_pretrained`, which writes safetensors",
        )
    _refuse_edited(adapter)
    vetting.vet(files, base)
    return files


def adapter_record(adapter: Path) -> dict[str, Any]:
    """What a trained adapter's folder records of it: its settings, and the digest of its weights."""
    file = adapter / adapters.WEIGHTS
    state = file.stat()
    weights = _file_digest(file, state.st_size, state.st_mtime_ns)
    return {"settings": adapters.settings(adapter), "weights": weights}


def _refuse_edited(adapter: Path) -> None:
    """Raise InputError for an adapter that is not as it was trained, and for one whose settings are not LoRA's."""
    settings = adapters.settings(adapter)
    trained = (json_of(adapter / adapters.RECORD) or {}).get("adapter")
    if not isinstance(trained, dict) or not isinstance(before := trained.get("settings"), dict):
        return  # a stranger's, or an earlier version's
    for key in sorted(settings.keys() | before.keys()):
        if (now := settings.get(key)) != (then := before.get(key)):
            problem = f"the adapter was trained with {shown(then)}, and the file states {shown(now)}"
            fix = "put that back, or train an adapter with the other setting"
            raise InputError(problem, file=str(adapter / vetting.ADAPTER), key=key, fix=fix)
    if adapter_record(adapter)["weights"] != trained.get("weights"):
        problem = "the adapter's weights are not those that were trained"
        raise InputError(problem, file=str(adapter / adapters.WEIGHTS), fix="copy the trained file again")


def refuse_inside(folder: Path) -> None:
    """Raise InputError for a folder to be written that lies in a model's, or in one of an unfinished training.

    Who copies, moves or removes that model would take it along, and a training may replace the whole folder.
    """
    for parent in folder.resolve().parents:
        if os.path.isdir(parent) and (what := _made_of(parent)):  # unlike `is_dir`, no error for too long a name
            problem = f"it lies in the folder of {what}, {parent}"
            raise InputError(problem, file=str(folder), key="--out", fix="name a folder outside it")


def _made_of(folder: Path) -> str | None:
    """What a folder is where it holds a model, in whole or in part, or the job of one; None for any other."""
    if folder.name.endswith(".partial") and (folder / "key").is_file():
        return "an unfinished training"
    settings = json_of(folder / vetting.CONFIG) or {}  # other programs have files of this name, too
    weights = any(folder.glob("*.safetensors")) or (folder / vetting.INDEX).exists()
    if weights or (folder / vetting.ADAPTER).exists() or "model_type" in settings or "architectures" in settings:
        return "another model"
    return None


def has_reward_head(source: Source) -> bool:
    """Whether the model's configuration names a head that scores. Raises InputError when it cannot be read."""
    base, stacked = adapters.layers(source)
    vetting.refuse_irregular(base)
    if stacked:
        return adapters.scores(stacked[-1])
    named = vetting.settings_of(base).get("architectures") or [""]
    return str(named[0]).endswith("ForSequenceClassification")


def weights_digest(source: Source) -> str:
    """Hex digest over the names and bytes of the weights, configuration, tokenizer and chat template of a model.

    That of an adapter is over the digest of its base, and what the adapter's folder holds of these.

    Raises InputError as `model_files`, and for an adapter that was trained over other weights than its base has.
    """
    base, stacked = adapters.layers(source)
    model_files(source)  # refuses what cannot be loaded
    digest = _digest_of(_files(base))
    for adapter in stacked:
        if (stated := adapters.stated_weights(adapter)) not in (None, digest):
            raise InputError(
                f"the adapter was trained over other weights than those of {base}: their digest was "
                f"{str(stated)[:12]}, and is {digest[:12]}",
                file=str(adapter),
                fix="give the base model that it was trained on, unchanged",
            )
        digest = _digest_of(_adapter_files(adapter, base), f"{digest}\n{adapters.settings_text(adapter)}\n")
    return digest


def _digest_of(files: list[Path], beginning: str = "") -> str:
    total = hashlib.sha256(beginning.encode())
    for file in files:
        state = file.stat()
        total.update(f"{file.name}\0{_file_digest(file, state.st_size, state.st_mtime_ns)}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(file: Path, size: int, changed: int) -> str:
    """Digest of a file's bytes, cached by size and modification time: a run asks for it many times."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
