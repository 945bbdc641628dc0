"""LoRA adapters: the folder of one, told from its files, and the base model that it belongs to.

A model is a folder, or a base with an adapter over it. An adapter that a trainer made records its base, with the digest
of its weights: its folder alone names the whole model. Imports no torch: a plan reads this.

A folder may come from a stranger: of its settings only those are taken that change weights of the base, checked, and
nothing that it names is fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.engines.vetting import ADAPTER, INDEX, WHOLE, json_object
from rlaif.errors import InputError, shown
from rlaif.files import json_of
from rlaif.records import canonical

WEIGHTS = "adapter_model.safetensors"
RECORD = "training.json"
MOST_STACKED = 64  # adapters over one base, each trained on those before it
MOST_RANK = 8192
MOST_NAMED = 1000  # modules


class Adapted(NamedTuple):
    """A model that is the folder of a base, itself a model or an adapter, and the folder of an adapter over it."""

    base: Path
    adapter: Path


Source = Path | Adapted  # of a model: its folder, an adapter's folder that records its base, or both


class Recorded(NamedTuple):
    """What an adapter's folder says of its base; `weights` is its digest, None where a stranger made the adapter."""

    source: Source
    weights: str | None


def layers(source: Source) -> tuple[Path, tuple[Path, ...]]:
    """The folder of the whole model, and those of the adapters over it, in the order in which they were trained.

    Raises InputError for an adapter whose base is not here.
    """
    stacked: list[Path] = []
    while True:
        if isinstance(source, Adapted):
            if not _is_adapter(source.adapter):
                raise InputError(f"the folder holds no adapter: it has no {ADAPTER}", file=str(source.adapter),
                                 fix="give the folder that peft or `rlaif train` saved")  # fmt: skip
            stacked.append(source.adapter)
            source = source.base
        elif _is_adapter(source):
            stacked.append(source)
            source = recorded(source).source
        else:
            return source, tuple(reversed(stacked))
        if len(stacked) > MOST_STACKED:
            raise InputError(f"more than {MOST_STACKED} adapters lie over each other", file=str(stacked[0]),
                             fix="merge some of them into their base model")  # fmt: skip


def named(source: Source) -> Path:
    """The folder by which a person knows the model: its adapter's, where it has one."""
    return source.adapter if isinstance(source, Adapted) else source


def _is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter. Raises InputError where a whole model lies beside it."""
    if not (folder / ADAPTER).exists():
        return False
    if (folder / WHOLE).exists() or (folder / INDEX).exists():
        raise InputError("the folder holds an adapter beside a whole model", file=str(folder),
                         fix=f"move {ADAPTER} and {WEIGHTS} to a folder of their own")  # fmt: skip
    return True


# ---------------------------------------------------------------- the base


def recorded(adapter: Path) -> Recorded:
    """The base that an adapter's folder names. Raises InputError when it is not here."""
    record = (json_of(adapter / RECORD) or {}).get("base")
    if isinstance(record, dict) and isinstance(record.get("folder"), str):
        found = [path for path in (Path(record["folder"]), adapter / str(record.get("beside"))) if path.is_dir()]
        over, weights = record.get("adapter"), record.get("weights")
        if found and (over is None or Path(over).is_dir()):
            source = found[0] if over is None else Adapted(found[0], Path(over))
            return Recorded(source, weights if isinstance(weights, str) else None)
        name = over if found else record["folder"]
    else:
        name = json_object(adapter / ADAPTER).get("base_model_name_or_path")
        if isinstance(name, str) and os.path.isabs(name) and os.path.isdir(name):
            return Recorded(Path(name), None)
    raise InputError(
        f"the folder holds an adapter, and its base model {shown(name)} is no folder here",
        file=str(adapter),
        fix="give the base model too: its folder as `path`, and this one as `adapter` (`--base` and `--adapter`)",
    )


def stated_weights(adapter: Path) -> str | None:
    """The digest of the weights that the adapter was trained over; None where its folder does not say."""
    record = (json_of(adapter / RECORD) or {}).get("base")
    stated = record.get("weights") if isinstance(record, dict) else None
    return stated if isinstance(stated, str) else None


def record_of(source: Source, weights: str, beside: Path) -> dict[str, Any]:
    """What the folder `beside` records of the base of the adapter in it; `weights` is the base's digest."""
    base, over = source if isinstance(source, Adapted) else (source, None)
    return {
        "folder": str(base.absolute()),
        "beside": os.path.relpath(base.absolute(), beside.absolute()),  # both may have moved together
        "adapter": None if over is None else str(over.absolute()),
        "weights": weights,
    }


# ---------------------------------------------------------------- its settings

_PLAIN = re.compile(r"\^?[A-Za-z0-9_.]{1,200}")  # peft reads them as patterns, and one may take for ever
_ZERO: tuple[Any, ...] = (None, False, "", [], {})
# Of those that peft has and that change what an adapter does; those that it only starts from, or runs by, are ignored.
_REFUSED = (
    "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "arrow_config",
    "megatron_config", "lora_ga_config", "eva_config", "corda_config", "layers_to_transform", "use_qalora",
    "use_bdlora", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
_STARTS = (True, False, "gaussian", "orthogonal", None)  # others change the base's weights as well


def settings(adapter: Path) -> dict[str, Any]:
    """What `peft.LoraConfig` takes of the adapter's configuration. Raises InputError for what is not LoRA alone."""
    file = adapter / ADAPTER
    read = json_object(file)

    def refused(problem: str, key: str) -> InputError:
        return InputError(problem, file=str(file), key=key, fix="merge it into its base model where it was made")

    if read.get("peft_type") != "LORA":
        raise refused(f"expected an adapter of the type LORA, found {shown(read.get('peft_type'))}", "peft_type")
    for key in _REFUSED:
        if read.get(key) not in _ZERO:
            raise refused("adapters that use it are not loaded", key)
    if read.get("init_lora_weights") not in _STARTS:
        raise refused(f"the start {shown(read['init_lora_weights'])} changes the base model", "init_lora_weights")
    if type(rank := read.get("r")) is not int or not 0 < rank <= MOST_RANK:
        raise refused(f"expected a whole number from 1 to {MOST_RANK:,}, found {shown(rank)}", "r")
    alpha = read.get("lora_alpha", 8)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e6:
        raise refused(f"expected a number, found {shown(alpha)}", "lora_alpha")
    taken: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "task_type": "SEQ_CLS" if scores(adapter) else "CAUSAL_LM"}
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        names = read.get(key) or []
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or len(names) > MOST_NAMED or not all(map(_is_plain, names)):
            raise refused(f"expected at most {MOST_NAMED:,} plain names of modules", key)
        taken[key] = sorted(names) or None
    if taken["target_modules"] is None:
        raise refused("expected the names of the modules that it changes", "target_modules")
    for key in ("rank_pattern", "alpha_pattern"):
        by_name = read.get(key) or {}
        if not isinstance(by_name, dict) or len(by_name) > MOST_NAMED or not all(map(_is_plain, by_name)):
            raise refused(f"expected at most {MOST_NAMED:,} plain names of modules, each with a number", key)
        if not all(type(n) in (int, float) and 0 < n <= MOST_RANK for n in by_name.values()):
            raise refused("expected a number above 0 for each name", key)
        taken[key] = dict(sorted(by_name.items()))
    for key in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"):
        taken[key] = bool(read.get(key))
    if (bias := read.get("bias") or "none") not in ("none", "all", "lora_only"):
        raise refused(f"expected none, all or lora_only, found {shown(bias)}", "bias")
    return taken | {"bias": bias}


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and bool(_PLAIN.fullmatch(name))


def settings_text(adapter: Path) -> str:
    """The settings as a text that two adapters share only if they compute the same; no path is in it."""
    return canonical(settings(adapter))


def scores(adapter: Path) -> bool:
    """Whether the adapter is a reward model's. Raises InputError when its configuration cannot be read."""
    kind: Mapping[str, Any] = json_object(adapter / ADAPTER)
    return kind.get("task_type") == "SEQ_CLS"
