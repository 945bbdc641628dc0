"""A model made of others by arithmetic on their weights, one tensor at a time.

- `linear`: the weighted mean of models (model soups: Wortsman et al. 2022, arXiv 2203.05482);
- `wise`: (1 - w) * base + w * model (WiSE-FT: Wortsman et al. 2022, arXiv 2109.01903);
- `task`: base + sum of w * (model - base) (task vectors: Ilharco et al. 2023, arXiv 2212.04089);
- `slerp`: spherical interpolation of two models (Shoemake 1985), tensor by tensor.

A model may be a base with LoRA adapters over it, and `linear` of such a one alone adds them to its weights.

Knows files and tensors, not architectures: at most one tensor of each model, and the result's, are in memory.

An adapter that is more than low-rank matrices over tensors of its base, such as a reward model's with its head, needs
the architecture. Its model is merged alone, and lies in memory whole.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from rlaif import files
from rlaif.engines import adapters
from rlaif.engines.adapters import Adapted, Source, layers, named
from rlaif.engines.identity import model_files, refuse_inside, weights_digest
from rlaif.engines.vetting import (
    CONFIG,
    GENERATION,
    INDEX,
    WHOLE,
    json_object,
    settings_of,
    shards_of,
    tensors_of,
    vocabulary_of,
)
from rlaif.errors import InputError, shortened, shown
from rlaif.files import write_json
from rlaif.version import __version__

METHODS = ("linear", "wise", "task", "slerp")
RECORD = "merge.json"
SHARD = 5_000_000_000  # bytes of a weights file, at most, unless one tensor is larger
PARALLEL = 0.9995  # cosine above which a spherical interpolation is a straight one
# What may differ between configurations of one architecture: where a file comes from, and what a chat ends with.
_FREE = {
    *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "tokenizer_class"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
_TIED = {"lm_head.weight", "embed_out.weight"}  # copies of the embedding, where the configuration ties them
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_PEFT, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # as peft names an adapter's tensors
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Merge(NamedTuple):
    """What is merged: the method, the models, and the base of `wise` and `task`; a weight for each model."""

    method: str
    models: tuple[Source, ...]
    weights: tuple[float, ...]
    base: Source | None = None

    @property
    def parents(self) -> tuple[Source, ...]:
        """The base, if any, and the models."""
        return (*(() if self.base is None else (self.base,)), *self.models)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """What each parent's weights are multiplied by in the sum; of `slerp` the shares of the way. They sum to 1."""
        return self.weights if self.base is None else (1 - math.fsum(self.weights), *self.weights)


def merge_of(method: str, models: Sequence[Source], weights: Sequence[float], base: Source | None) -> Merge:
    """The merge that a person asked for. One weight with two models, and no base, is that of the second.

    `linear` of one model with an adapter makes a plain model of it.

    Without weights, `linear` takes the mean, `wise` and `slerp` go half of the way, and `task` adds every whole vector.
    Raises InputError.
    """
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}", key="--method", fix=f"give one of {', '.join(METHODS)}")
    if bad := [weight for weight in weights if not math.isfinite(weight)]:
        raise InputError(f"the weight {bad[0]} is no number", key="--weight", fix="give a finite number")
    needed = {"linear": "two models or more", "slerp": "two models", "wise": "one model", "task": "one model or more"}
    based, count = method in ("wise", "task"), len(models)
    if method == "linear" and count == 1 and base is None:
        if not layers(models[0])[1]:
            fix = f"give {needed[method]}, or one with an adapter (its folder, or --adapter)"
            raise InputError("one model is given, and it has no adapter to merge into it", fix=fix)
    elif count < (1 if based else 2) or count > {"wise": 1, "slerp": 2}.get(method, count):
        raise InputError(f"`{method}` merges {needed[method]}, and {count} are given", fix=f"give {needed[method]}")
    if based != (base is not None):
        problem = f"`{method}` needs the model that the others started from" if based else f"`{method}` has no base"
        raise InputError(problem, key="--base", fix="give it with --base" if based else "remove --base")
    return Merge(method, tuple(models), _weights(method, count, weights), base)


def _weights(method: str, count: int, given: Sequence[float]) -> tuple[float, ...]:
    weights = tuple(given)
    if not weights:
        weights = {"linear": (1 / count,) * count, "task": (1.0,) * count, "wise": (0.5,)}.get(method, (0.5, 0.5))
    elif method != "task" and count == 2 and len(weights) == 1:
        weights = (1 - weights[0], weights[0])
    if len(weights) != count:
        fix = f"give --weight {count} times" if count > 1 else "give --weight once"
        raise InputError(f"{len(given)} weights are given for {count} models", key="--weight", fix=fix)
    if method in ("linear", "slerp") and abs(math.fsum(weights) - 1) > 1e-6:
        problem = f"the weights sum to {math.fsum(weights):g}: the result would not be a mean"
        raise InputError(problem, key="--weight", fix="give weights that sum to 1")
    if method == "slerp" and not 0 <= weights[1] <= 1:
        raise InputError("`slerp` goes from the first model to the second", key="--weight", fix="give 0 to 1")
    return weights


@dataclass
class Merged:
    """The record of a merge, and what a person should know of it."""

    record: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def merge(asked: Merge, out: Path) -> Merged:
    """Write the merged model into the new folder `out`, whole or not at all, with `merge.json` as its record.

    Configuration, tokenizer and template are those of the last model. A tensor has the widest of its parents' types.
    Raises InputError for models that do not fit together, and for a folder that exists.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InputError("the folder exists already", file=str(out), key="--out", fix="remove it, or name another")
    refuse_inside(out)
    others = _beside_weights(asked.parents[-1])
    notes = check_alike(asked.parents)
    record = _record(asked)
    with ExitStack() as opened:
        parents = [Weights(parent, opened) for parent in asked.parents]
        whole = _beyond_tensors(parents)
        layout = {} if whole else common_layout(parents)
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        temporary.mkdir(parents=True)
        try:
            if whole:
                from rlaif.train.models import write_whole

                write_whole(asked.parents[-1], temporary)
            else:
                write_weights(temporary, layout, lambda name: combined(asked, parents, name, layout[name].dtype))
                for path in others:
                    shutil.copyfile(path, temporary / path.name)
                _state_type(temporary / CONFIG, {shape.dtype for shape in layout.values()})
            write_json(temporary / RECORD, record)
            os.replace(temporary, out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return Merged(record, notes)


def _state_type(config: Path, types: set[torch.dtype]) -> None:
    """Let the configuration name the widest type of the tensors: transformers loads all of them in the one it names."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("torch_dtype", None)  # its older name
    settings.pop("auto_map", None)  # names code that is not copied
    widest = max((each for each in types if each.is_floating_point), key=lambda each: each.itemsize, default=None)
    if widest is not None:
        settings["dtype"] = str(widest).removeprefix("torch.")
    write_json(config, settings)


def _beyond_tensors(parents: Sequence[Weights]) -> bool:
    """Whether the one model needs its architecture to be merged. Raises InputError where one of several does."""
    beyond = next((parent.beyond for parent in parents if parent.beyond is not None), None)
    if beyond is not None and len(parents) > 1:
        problem = (
            "the adapter is more than low-rank matrices over tensors of its base, and is merged with no other model"
        )
        raise InputError(problem, file=str(beyond), fix="make one model of it first: `rlaif merge` with it alone")
    return beyond is not None


def _beside_weights(source: Source) -> list[Path]:
    """The files of a model beside its weights. Raises InputError for one that cannot be loaded."""
    found: dict[str, Path] = {}
    for path in model_files(source):  # those of an adapter come after its base's
        if not path.name.endswith((".safetensors", ".safetensors.index.json")) and (
            path.name in (CONFIG, GENERATION) or path.parent == _tokenizer_folder(source)
        ):
            found[path.name] = path
    return [*found.values()]


def _tokenizer_folder(source: Source) -> Path:
    """That of the last adapter with a tokenizer, or the base's, as `load_tokenizer` has it."""
    base, stacked = layers(source)
    return next((folder for folder in reversed(stacked) if (folder / "tokenizer_config.json").exists()), base)


def _record(asked: Merge) -> dict[str, Any]:
    parents = []
    for parent, coefficient in zip(asked.parents, asked.coefficients, strict=True):
        over = {"adapter": str(parent.adapter.absolute())} if isinstance(parent, Adapted) else {}
        folder = parent.base if isinstance(parent, Adapted) else parent
        of_parent = {"folder": str(folder.absolute()), **over, "weights": weights_digest(parent)}
        parents.append(of_parent | {"coefficient": coefficient})
    return {"method": asked.method, "parents": parents, "version": __version__}


# ---------------------------------------------------------------- whether they fit together


def check_alike(models: Sequence[Source]) -> list[str]:
    """What a person should know. Raises InputError for other configurations or vocabularies than the first one's."""
    first, notes = named(models[0]), []
    settings, reads = settings_of(layers(models[0])[0]), _tokenizer_folder(models[0])
    tokens = vocabulary(reads)
    for model in models[1:]:
        folder, theirs, tokenizer = named(model), settings_of(layers(model)[0]), _tokenizer_folder(model)
        for key in sorted((settings.keys() & theirs.keys()) - _FREE):
            if settings[key] != theirs[key]:
                apart = f"`{shortened(key)}` is {shown(theirs[key])}, not {shown(settings[key])}"
                problem = f"its configuration differs from that of {first}: {apart}"
                raise InputError(problem, file=str(folder), fix="merge models of one architecture")
        if alone := sorted((settings.keys() ^ theirs.keys()) - _FREE):
            keys = shortened(", ".join(alone), 200)
            notes.append(f"only one of {first.name} and {folder.name} states {keys} in its configuration")
        _check_vocabulary(first, tokens, folder, vocabulary(tokenizer))
        if _template(tokenizer) != _template(reads):
            notes.append(f"the chat templates of {first.name} and {folder.name} differ: kept is that of the last model")
    return notes


def vocabulary(folder: Path) -> dict[str, int] | None:
    """The number of each token of the model's tokenizer; None without `tokenizer.json`."""
    file = folder / "tokenizer.json"
    return vocabulary_of(file) if file.exists() else None


def _check_vocabulary(
    first: Path, ours: Mapping[str, int] | None, folder: Path, theirs: Mapping[str, int] | None
) -> None:
    if ours is None or theirs is None:
        if (ours is None) != (theirs is None):
            raise InputError(
                f"only one of it and {first} has a tokenizer.json, so their vocabularies cannot be compared",
                file=str(folder),
                fix="save the other's tokenizer again with `save_pretrained`",
            )
        return
    differing = [token for token in {**ours, **theirs} if ours.get(token) != theirs.get(token)]
    if differing:
        problem = (
            f"its vocabulary differs from that of {first} in {len(differing):,} tokens, such as {shown(differing[0])}"
        )
        raise InputError(problem, file=str(folder), fix="merge models with one tokenizer")


def _template(folder: Path) -> Any:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8", errors="replace")
    settings = folder / "tokenizer_config.json"
    return json_object(settings).get("chat_template") if settings.exists() else None


# ---------------------------------------------------------------- weights on disk


class Shape(NamedTuple):
    """The type and the shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors:
    """The tensors of some files, read one at a time; the files stay open until `opened` is closed."""

    def __init__(self, paths: Iterable[tuple[Path, set[str] | None]], opened: ExitStack) -> None:
        """Of each path the tensors that it is to give; None for all."""
        self.layout: dict[str, Shape] = {}
        self._places: dict[str, tuple[BinaryIO, int, Shape]] = {}  # of each tensor, its file and its first byte there
        for path, wanted in paths:
            file = opened.enter_context(files.opened(path))
            tensors, began = tensors_of(path)
            for name in tensors if wanted is None else wanted & tensors.keys():
                dtype = tensors[name]["dtype"]
                if dtype not in _DTYPES:
                    problem = f"the tensor {shown(name)} has the type {dtype}, which cannot be merged"
                    raise InputError(problem, file=str(path), fix="merge models that are not quantised")
                self.layout[name] = Shape(_DTYPES[dtype], tuple(tensors[name]["shape"]))
                self._places[name] = file, began + tensors[name]["data_offsets"][0], self.layout[name]

    def read(self, name: str) -> Tensor:
        """A tensor."""
        file, start, stored = self._places[name]
        dtype, shape = stored
        data = bytearray(stored.size)
        file.seek(start)
        file.readinto(data)  # type: ignore[attr-defined]
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.zeros(shape, dtype=dtype)


class LowRank(NamedTuple):
    """What an adapter adds to a tensor: scale * B A."""

    adapter: Tensors
    a: str
    b: str
    scale: float
    transposed: bool  # the tensor is stored so, as GPT-2's are

    def product(self) -> Tensor:
        """It in float32, as peft computes it."""
        made = (self.adapter.read(self.b).float() @ self.adapter.read(self.a).float()).mul_(self.scale)
        return made.T if self.transposed else made


class Weights(Tensors):
    """The tensors of a model, with the adapters over it added to them; those that an adapter changes are in float32.

    `beyond` is the first adapter that is more than that, whose weights are not added.
    """

    def __init__(self, source: Source, opened: ExitStack) -> None:
        self.folder = named(source)
        base, stacked = layers(source)
        super().__init__(_files_of(base), opened)
        self.ties = settings_of(base).get("tie_word_embeddings", True) is True
        self.beyond: Path | None = None
        self._added: dict[str, list[LowRank]] = {}  # of each tensor
        for adapter in stacked:
            found = low_rank(adapter, self.layout, opened)
            if found is None:
                self.beyond = adapter
                return
            for name, matrices in found.items():
                self._added.setdefault(name, []).append(matrices)
        for name in self._added:
            own = self.layout[name]
            self.layout[name] = own._replace(dtype=torch.promote_types(own.dtype, torch.float32))

    def read(self, name: str) -> Tensor:
        tensor = super().read(name)
        for matrices in self._added.get(name, ()):
            tensor = tensor.to(self.layout[name].dtype).add_(matrices.product())
        return tensor


def low_rank(adapter: Path, layout: Mapping[str, Shape], opened: ExitStack) -> dict[str, LowRank] | None:
    """What an adapter adds to the tensors of `layout`, by their names; None for one that is more than that.

    Such are a head that was trained whole, DoRA, biases, another alpha for some layers, layers that the base's files
    name otherwise than the architecture, and embeddings. One that lacks matrices of a layer that it names is left to
    the loader, which refuses it.
    """
    settings = adapters.settings(adapter)
    more = ("use_dora", "lora_bias", "modules_to_save", "exclude_modules", "alpha_pattern")
    if settings["bias"] != "none" or settings["task_type"] != "CAUSAL_LM" or any(settings[key] for key in more):
        return None
    tensors = Tensors([(adapter / adapters.WEIGHTS, None)], opened)
    found = {}
    for b in (name for name in tensors.layout if name.endswith(_B)):
        layer, a = b.removesuffix(_B), f"{b.removesuffix(_B)}{_A}"
        name = f"{layer.removeprefix(_PEFT)}.weight"
        if name not in layout or a not in tensors.layout:
            return None
        (rank, inputs), (outputs, _) = tensors.layout[a].shape, tensors.layout[b].shape
        if layout[name].shape != ((inputs, outputs) if settings["fan_in_fan_out"] else (outputs, inputs)):
            return None
        scale = settings["lora_alpha"] / (math.sqrt(rank) if settings["use_rslora"] else rank)
        found[name] = LowRank(tensors, a, b, scale, settings["fan_in_fan_out"])
    targets = tuple(f".{module}.weight" for module in settings["target_modules"])
    complete = found.keys() == {name for name in layout if f".{name}".endswith(targets)}
    return found if complete and 2 * len(found) == len(tensors.layout) else None


def _files_of(folder: Path) -> Iterator[tuple[Path, set[str] | None]]:
    """The files that transformers would load, each with the tensors that it is to give; None for all."""
    if (folder / WHOLE).exists():
        yield folder / WHOLE, None
        return
    if not (folder / INDEX).exists():
        raise InputError(
            f"there is neither {WHOLE} nor {INDEX}", file=str(folder), fix="save the model with `save_pretrained`"
        )
    wanted: dict[str, set[str]] = {}
    for name, file in shards_of(folder / INDEX).items():
        wanted.setdefault(file, set()).add(name)
    for file, names in sorted(wanted.items()):
        yield folder / file, names


def common_layout(parents: Sequence[Weights]) -> dict[str, Shape]:
    """The tensors of the result. Raises InputError, by name, for one that a parent lacks or has in another shape.

    An output embedding that some parents store and others tie to their input embedding is left out: it is tied.
    """
    tied = all(parent.ties for parent in parents)
    names = dict.fromkeys(name for parent in parents for name in parent.layout)
    layout = {}
    for name in names:
        holders = [parent for parent in parents if name in parent.layout]
        if len(holders) < len(parents):
            if tied and name in _TIED:
                continue
            lacking = next(parent for parent in parents if name not in parent.layout)
            problem = f"its weights lack the tensor {shown(name)}, which {holders[0].folder} has"
            raise InputError(problem, file=str(lacking.folder), fix="merge models of one architecture")
        shape, dtype = holders[0].layout[name].shape, holders[0].layout[name].dtype
        for parent in holders[1:]:
            own = parent.layout[name]
            if own.shape != shape:
                apart = f"has the shape {list(own.shape)}, and {list(shape)} in {parents[0].folder}"
                fix = "merge models of one architecture and vocabulary"
                raise InputError(f"the tensor {shown(name)} {apart}", file=str(parent.folder), fix=fix)
            dtype = torch.promote_types(dtype, own.dtype)
        layout[name] = Shape(dtype, shape)
    return layout


def write_weights(
    folder: Path, layout: Mapping[str, Shape], tensor: Callable[[str], Tensor], shard: int = SHARD
) -> None:
    """Write the tensors of `layout`, each asked of `tensor` when its turn comes, in files of at most `shard` bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(layout, key=lambda name: (-layout[name].dtype.itemsize, name)):  # so each lies aligned
        if shards[-1] and size + layout[name].size > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += layout[name].size
    if len(shards) == 1:
        _write_file(folder / WHOLE, shards[0], layout, tensor)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / file, names, layout, tensor)
        places |= dict.fromkeys(names, file)
    total = sum(each.size for each in layout.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_file(path: Path, names: Sequence[str], layout: Mapping[str, Shape], tensor: Callable[[str], Tensor]) -> None:
    """One file in the format of safetensors: the header's length and the header, then the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + layout[name].size
        each = layout[name]
        header[name] = {"dtype": _NAMES[each.dtype], "shape": list(each.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            data: Any = tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy()
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


# ---------------------------------------------------------------- the arithmetic


def combined(asked: Merge, parents: Sequence[Weights], name: str, dtype: torch.dtype) -> Tensor:
    """A tensor of the result. A parent whose coefficient is 1, beside zeros, gives its own bits.

    Raises InputError for one that is not finite: a parent diverged, or the sum is too large for its type.
    """
    if not dtype.is_floating_point:
        return _the_same(parents, name)
    tensor = _sum(asked, parents, name, torch.promote_types(dtype, torch.float32)).to(dtype)
    if tensor.numel() and not all(torch.isfinite(end) for end in torch.aminmax(tensor)):
        problem = f"the tensor {shown(name)} of the merged model holds NaN or infinity"
        raise InputError(
            problem, file=str(asked.parents[-1]), fix="merge models that did not diverge, or lower --weight"
        )
    return tensor


def _sum(asked: Merge, parents: Sequence[Weights], name: str, wide: torch.dtype) -> Tensor:
    used = [(parent, share) for parent, share in zip(parents, asked.coefficients, strict=True) if share]
    if len(used) == 1 and used[0][1] == 1:
        return used[0][0].read(name)
    if asked.method == "slerp":
        return slerp(parents[0].read(name).to(wide), parents[1].read(name).to(wide), asked.coefficients[1])
    total = torch.zeros(parents[0].layout[name].shape, dtype=wide)
    for parent, share in used:
        total.add_(parent.read(name).to(wide), alpha=share)
    return total


def _the_same(parents: Sequence[Weights], name: str) -> Tensor:
    """A tensor of integers, which all parents must share."""
    first = parents[0].read(name)
    for parent in parents[1:]:
        if not torch.equal(first, parent.read(name)):
            problem = f"the tensor {shown(name)} holds integers that differ from those in {parents[0].folder}"
            raise InputError(problem, file=str(parent.folder), fix="merge models that are not quantised")
    return first


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The tensor at `share` of the arc from `a` to `b`; of the straight line where they are parallel, or one is zero.

    sin((1 - t) w) / sin w * a + sin(t w) / sin w * b, where w is the angle between them.
    """
    norms = float(a.norm()) * float(b.norm())
    cosine = float(torch.dot(a.flatten(), b.flatten())) / norms if norms else 1.0
    if abs(cosine) > PARALLEL:
        return torch.lerp(a, b, share)
    angle = math.acos(cosine)
    here, there = (math.sin(part * angle) / math.sin(angle) for part in (1 - share, share))
    return (a * here).add_(b, alpha=there)
