"""Where a model's files lie, and the digest that names exactly what they compute.

Reads bytes only: no model is loaded and torch is not imported, so that planning a run stays cheap.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from rlaif.engines import vetting
from rlaif.errors import InputError, WorkError, first_line

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


def model_files(folder: Path) -> list[Path]:
    """The files in `folder` that can change an answer. Raises InputError when they are no model that can be loaded."""
    vetting.refuse_irregular(folder)
    files = sorted({file for pattern in ANSWER_FILES for file in folder.glob(pattern) if file.is_file()})
    names = {file.name for file in files}
    if "config.json" not in names:
        raise InputError(
            "config.json is missing, so this is no model", file=str(folder), fix="give a saved model's folder"
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            "the folder holds no safetensors weights, and no other format is read",
            file=str(folder),
            fix="save the model again with `save_pretrained`, which writes safetensors",
        )
    vetting.vet(files)
    return files


def has_reward_head(folder: Path) -> bool:
    """Whether the model's configuration names a head that scores. Raises InputError when it cannot be read."""
    vetting.refuse_irregular(folder)
    named = vetting.settings_of(folder).get("architectures") or [""]
    return str(named[0]).endswith("ForSequenceClassification")


def weights_digest(folder: Path) -> str:
    """Hex digest over the names and bytes of the weights, configuration, tokenizer and chat template in `folder`.

    Raises InputError as `model_files`.
    """
    total = hashlib.sha256()
    for file in model_files(folder):
        state = file.stat()
        total.update(f"{file.name}\0{_file_digest(file, state.st_size, state.st_mtime_ns)}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(file: Path, size: int, changed: int) -> str:
    """Digest of a file's bytes, cached by size and modification time: a run asks for it many times."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
