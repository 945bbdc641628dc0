"""Whether a model's folder can be loaded: told from its files, before a library reads one of them.

A folder may come from a stranger. What would hang a library, take all memory, end the process or run code is refused
here, in milliseconds and once a file. Whatever else a library stumbles over while it loads is made a sentence by
`loading`.
"""

from __future__ import annotations

import base64
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from rlaif.errors import EngineError, InputError, RlaifError, WorkError, first_line, shortened, shown
from rlaif.files import opened, read_whole, why

CONFIG, INDEX, ADAPTER = "config.json", "model.safetensors.index.json", "adapter_config.json"
GENERATION = "generation_config.json"
WHOLE = "model.safetensors"

# Of a tokenizer's file or an index. The largest in use: a tokenizer of 34 MB, an index of 25 MB for 10^12 parameters.
MOST_TEXT = 64_000_000
MOST_SETTINGS = 16_000_000  # of any other JSON file; a configuration with 21,000 labels has 1 MB
MOST_KEYS = 4096  # of a configuration, where 200 are many; transformers takes 15 s for 100,000
MOST_NESTED = 4_000_000  # lists and objects, 100 bytes each in memory; a large tokenizer has one a merge, 10^6
MOST_HEADER = 32_000_000  # of a weights file: 100 bytes a tensor, and the most tensors in one file are some 50,000
MOST_DIMENSIONS = 64  # torch's own
MOST_ADDED = 50_000  # tokens beside a tokenizer's own: 15 s for 100,000; models of speech have 28,000
MOST_SPELLED = 1000  # characters of such a token
MOST_STEPS = 200  # of a tokenizer; the most in use have 20
MOST_GROWTH = 100  # how many characters a tokenizer may make of one; those in use make 3

# Numbers of a configuration that decide what is built, under the names that architectures have for them: lowest and
# highest. The highest in use: 126 layers, 53,248 wide, 262,208 tokens, 512 experts, a context of 10 million.
LAYERS, WIDTH, POSITIONS = (1, 1024), (1, 2**20), (1, 2**30)
SIZES = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "num_attention_heads", "n_head", "n_heads"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "num_key_value_heads", "head_dim"), (0, WIDTH[1])),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0, 2**14)),
    "vocab_size": (1, 2**24),
    "num_labels": (0, 2**20),
}

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
NO_WEIGHTS = {"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "C64"}  # unless the model is quantised
# What stands in the place of weights, by its first bytes.
DISGUISED = {
    b"\x80": "a pickle, which may run code when it is opened",
    b"PK\x03\x04": "a torch archive, which may run code when it is opened",
    b"version https://git-lfs": "a pointer of Git LFS to weights that were not fetched",
    b"GGUF": "a GGUF file",
    b"<": "a web page",
}
SAVE = "save the model again with `save_pretrained`, which writes safetensors"
FETCH = "download or copy it again"
MEND = "check that its configuration, weights and tokenizer are whole and belong together, or download the model again"
TRAINED_WITH = "use the tokenizer that the model was trained with"


class Stamp(NamedTuple):
    """One state of a file."""

    path: Path
    size: int
    changed: int

    def refused(self, problem: str, fix: str = FETCH, key: str | None = None, line: int | None = None) -> InputError:
        return InputError(problem, file=str(self.path), key=key, line=line, fix=fix)


def vet(files: list[Path], base: Path | None = None) -> None:
    """Raise InputError for a model that cannot or must not be loaded. `files` are those that decide its answers.

    `base` is the folder of the configuration, where it is another: of an adapter.
    """
    folder = base or files[0].parent
    config = settings_of(folder)
    quantised, rows = _is_quantised(config, folder), _rows(config)
    decides = GENERATION if GENERATION in {file.name for file in files} else CONFIG  # which end tokens there are
    for file in files:
        stamp = _stamp(file)
        if file.name.endswith(".safetensors"):
            _vet_weights(stamp, quantised)
        elif file.name == INDEX:
            _vet_index(stamp)
        elif file.name == "tokenizer.json":
            _vet_tokenizer(stamp, rows)
        elif file.name in (CONFIG, GENERATION):
            if file.name == decides:
                _vet_ends(stamp, rows)
        elif file.name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            _vet_tokenizer_settings(stamp)
        elif file.suffix == ".json" and not file.name.startswith("vocab") and not file.name.endswith(".index.json"):
            _json_object(stamp)
        elif stamp.size > MOST_TEXT:
            raise stamp.refused(f"it is larger than {MOST_TEXT // 1_000_000} MB")


def settings_of(folder: Path) -> dict[str, Any]:
    """The configuration of the model in `folder`. Raises InputError when it is none, or states absurd sizes."""
    return _config(_stamp(folder / CONFIG))


def json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError when it cannot be read, is too large or is none."""
    return _json_object(_stamp(file))


def tensors_of(file: Path) -> tuple[dict[str, Any], int]:
    """The dtype, shape and place of each tensor of a safetensors file, and where their bytes begin.

    Raises InputError when it is none.
    """
    return _tensors(_stamp(file))


def shards_of(index: Path) -> dict[str, str]:
    """The weights file of each tensor, by an index. Raises InputError when it cannot be read."""
    return dict(_decoded(_stamp(index), _Index).weight_map)


def vocabulary_of(tokenizer: Path) -> dict[str, int]:
    """The number of each token of a tokenizer.json, added ones included. Raises InputError when it cannot be read."""
    read: _Tokenizer = _decoded(_stamp(tokenizer), _Tokenizer)
    return dict(read.words) | {token.content: token.id for token in read.added_tokens or ()}


def refuse_irregular(folder: Path) -> None:
    """Raise InputError for a pipe, a device or a dead link, which a library would open."""
    try:
        found = [*os.scandir(folder)] if folder.is_dir() else []
        if (templates := folder / "additional_chat_templates").is_dir():
            found += os.scandir(templates)
    except OSError as error:
        raise _unreadable(error, folder) from None
    for entry in found:
        try:
            mode = os.stat(entry.path).st_mode
        except FileNotFoundError:  # a dead link
            if not entry.name.endswith((".safetensors", ".json")):
                continue
            raise InputError("the link leads nowhere", file=entry.path, fix=FETCH) from None
        except OSError as error:
            raise _unreadable(error, Path(entry.path)) from None
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise InputError("it is no regular file", file=entry.path, fix="move it away")


# ---------------------------------------------------------------- JSON files


@lru_cache(maxsize=256)
def _config(stamp: Stamp) -> dict[str, Any]:
    config = _json_object(stamp)
    if len(config) > MOST_KEYS:
        raise stamp.refused(f"it has {len(config):,} keys, and at most {MOST_KEYS:,} are read")
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise stamp.refused("expected a list of names", key="architectures", fix="name the model's class in a list")
    if "model_type" in config and not isinstance(config["model_type"], str):
        raise stamp.refused("expected a name", key="model_type", fix="name the architecture, such as llama")
    for part in _objects(config):
        for key, (low, high) in SIZES.items():
            least = low if part is config else 0  # which says that a part inside is not there
            for value in _listed(part.get(key)):
                whole = isinstance(value, float) and value.is_integer()  # as some configurations write it
                if value is not None and ((type(value) is not int and not whole) or not least <= value <= high):
                    problem = f"expected a whole number from {least} to {high:,}, found {shown(value)}"
                    raise stamp.refused(problem, key=key, fix="give the number that the weights were trained with")
    return config


def _objects(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A configuration and those inside it: of the text model in one of text and images, say."""
    yield value
    for inner in value.values():
        if isinstance(inner, dict):
            yield from _objects(inner)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_quantised(config: dict[str, Any], folder: Path) -> bool:
    """Whether the weights may be packed into whole numbers."""
    stated = any(part.get("quantization_config") or part.get("compression_config") for part in _objects(config))
    return stated or any(folder.glob("*quant*_config.json"))


def _rows(config: dict[str, Any]) -> int | None:
    """How many tokens the model reads and writes; None where its configuration leaves that to the architecture."""
    text = config.get("text_config")
    rows = (text if isinstance(text, dict) else config).get("vocab_size", config.get("vocab_size"))
    return rows if isinstance(rows, int) else None


@lru_cache(maxsize=256)
def _vet_ends(stamp: Stamp, rows: int | None) -> None:
    """Raise InputError for an end token that the model does not have."""
    tokens = rows or SIZES["vocab_size"][1]
    for end in _listed(_json_object(stamp).get("eos_token_id")):
        if end is not None and (type(end) is not int or not 0 <= end < tokens):
            problem = f"expected one of the model's {tokens:,} tokens, found {shown(end)}"
            raise stamp.refused(problem, key="eos_token_id", fix="give the id of the token that ends a completion")


@lru_cache(maxsize=1024)
def _json_object(stamp: Stamp) -> dict[str, Any]:
    try:
        value = json.loads(read_whole(stamp.path, MOST_SETTINGS).decode())
    except json.JSONDecodeError as error:
        raise stamp.refused("it is no JSON, or not all of it", line=error.lineno) from None
    except RecursionError:
        raise stamp.refused("its JSON is nested too deeply") from None
    except ValueError:  # not UTF-8, or a number of thousands of digits
        raise stamp.refused("its JSON cannot be read") from None
    except OSError as error:
        raise _unreadable(error, stamp.path) from None
    if not isinstance(value, dict):
        raise stamp.refused("expected a JSON object")
    return value


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: dict[str, Any]


@lru_cache(maxsize=256)
def _vet_index(stamp: Stamp) -> None:
    shards = sorted(set(_decoded(stamp, _Index).weight_map.values()))
    folder = stamp.path.parent
    for name in shards:
        if Path(name).name != name or "\0" in name or not name.endswith(".safetensors"):
            raise stamp.refused(f"it names {shown(name)}, which is no weights file of this folder", key="weight_map")
    missing = [name for name in shards if not (folder / name).exists()]
    if missing and not (folder / WHOLE).exists():
        problem = f"{len(missing)} of {len(shards)} weights files are missing, the first is {shown(missing[0])}"
        raise InputError(problem, file=str(folder), fix="download the model again: it was cut short")


def _decoded(stamp: Stamp, kind: Any) -> Any:
    """A large JSON file as `kind`."""
    try:
        _refuse_nested(stamp, data := read_whole(stamp.path, MOST_TEXT))
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise stamp.refused(f"it cannot be read: {first_line(error)}") from None
    except OSError as error:
        raise _unreadable(error, stamp.path) from None


def _refuse_nested(stamp: Stamp, data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") > MOST_NESTED:
        raise stamp.refused(f"it holds more than {MOST_NESTED:,} lists and objects")


# ---------------------------------------------------------------- tokenizers

_Id = Annotated[int, msgspec.Meta(ge=0, le=SIZES["vocab_size"][1])]


class _Model(msgspec.Struct):
    vocab: dict[str, _Id] | list[tuple[str, float]]  # a token's id, or its score at the place that is its id


class _Added(msgspec.Struct):
    id: _Id
    content: str
    special: bool = False


class _Tokenizer(msgspec.Struct):
    """What is read of a tokenizer.json; the rest is the library's to judge."""

    model: _Model
    added_tokens: list[_Added] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None

    @property
    def words(self) -> Iterable[tuple[str, int]]:
        """The tokens of its model with their ids."""
        vocab = self.model.vocab
        return vocab.items() if isinstance(vocab, dict) else ((word, id_) for id_, (word, _) in enumerate(vocab))

    @property
    def tokens(self) -> int:
        """One more than the highest id that a text can become; a special token is never made from text."""
        added = self.added_tokens or []
        special = {token.content for token in added if token.special}
        ids = [id_ for word, id_ in self.words if word not in special]
        return max([*ids, *(token.id for token in added if not token.special)], default=-1) + 1


@lru_cache(maxsize=256)
def _vet_tokenizer(stamp: Stamp, rows: int | None) -> None:
    """Raise InputError for a tokenizer that makes text endless, or tokens that the model does not have."""
    read: _Tokenizer = _decoded(stamp, _Tokenizer)
    _vet_added(stamp, [token.content for token in read.added_tokens or ()])
    for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if problem := _problem(list(_steps(getattr(read, key)))):
            raise stamp.refused(problem, key=key, fix=TRAINED_WITH)
    if rows is not None and read.tokens > rows:
        raise stamp.refused(f"it has {read.tokens:,} tokens and the model {rows:,}", fix=TRAINED_WITH)


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a part of a tokenizer, with their patterns."""
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _steps(inner)


def _problem(steps: list[dict[str, Any]]) -> str | None:
    """Why a part of a tokenizer, made of `steps`, cannot be used; None when it can."""
    if len(steps) > MOST_STEPS:
        return f"it has {len(steps):,} steps, and at most {MOST_STEPS} are taken"
    if (growth := math.prod(map(_growth, steps))) > MOST_GROWTH:
        return f"it makes {growth:,.0f} characters of one, and at most {MOST_GROWTH} are allowed"
    tables = [step.get("precompiled_charsmap") for step in steps if step.get("type") == "Precompiled"]
    return None if all(map(_is_charsmap, tables)) else "its compiled table of characters is damaged"


def _growth(step: Mapping[str, Any]) -> float:
    """How many characters a step of a tokenizer can make of one, about."""
    written, pattern = step.get("content") or step.get("prepend"), step.get("pattern")
    if not isinstance(written, str) or step.get("type") not in ("Replace", "Prepend"):
        return 1
    searched = pattern.get("String") if isinstance(pattern, dict) else None
    return max(1.0, len(written) / max(1, len(searched) if isinstance(searched, str) else 1))


def _is_charsmap(text: Any) -> bool:
    """Whether a compiled table of characters is whole: a false size in it ends the process that reads it."""
    try:
        table = base64.b64decode(text, validate=True)
        end = 4 + int.from_bytes(table[:4], "little")  # of its numbers; then comes text
        return len(table) >= end and end % 4 == 0 and table[end:].decode() is not None
    except (ValueError, TypeError):
        return False


def _vet_added(stamp: Stamp, words: list[Any]) -> None:
    if len(words) > MOST_ADDED:
        raise stamp.refused(f"it adds {len(words):,} tokens, and at most {MOST_ADDED:,} are read",
                            key="added_tokens", fix=TRAINED_WITH)  # fmt: skip
    longest = max((len(word) for word in words if isinstance(word, str)), default=0)
    if longest > MOST_SPELLED:
        raise stamp.refused(f"it adds a token of {longest:,} characters, and at most {MOST_SPELLED:,} are read",
                            key="added_tokens", fix=TRAINED_WITH)  # fmt: skip


def _vet_tokenizer_settings(stamp: Stamp) -> None:
    """Raise InputError for endless added tokens in the files beside tokenizer.json."""
    read = _json_object(stamp)
    decoder = read.get("added_tokens_decoder")
    described = decoder.values() if isinstance(decoder, dict) else ()
    words = [token.get("content") for token in described if isinstance(token, dict)]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        words += [*named.values()] if isinstance(named := read.get(key), dict) else _listed(named)
    _vet_added(stamp, [*read, *words, *(value for key, value in read.items() if key.endswith("_token"))])


# ---------------------------------------------------------------- weights


@lru_cache(maxsize=4096)
def _vet_weights(stamp: Stamp, quantised: bool) -> None:
    """Raise InputError for a file that is no safetensors file, whole and with nothing beside its tensors."""
    tensors, began = _tensors(stamp)
    if not tensors:
        raise stamp.refused("it holds no tensor")
    end = 0
    for first, last, name in sorted((*_place(stamp, name, tensor), name) for name, tensor in tensors.items()):
        dtype, shape = tensors[name]["dtype"], tensors[name]["shape"]
        if not quantised and dtype in NO_WEIGHTS and name.endswith(".weight") and len(shape) > 1:
            raise stamp.refused(f"the tensor {shown(name)} holds {dtype}, which are no weights", fix=SAVE)
        if first != end:
            raise stamp.refused(f"the tensor {shown(name)} begins at byte {first:,} of the data, and {end:,} is due")
        end = last
    if end != stamp.size - began:
        raise stamp.refused(f"its tensors take {end:,} bytes, and it has {max(0, stamp.size - began):,} for them")


def _tensors(stamp: Stamp) -> tuple[dict[str, Any], int]:
    header, began = _header(stamp)
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}, began


def _header(stamp: Stamp) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    try:
        with opened(stamp.path) as file:
            length = int.from_bytes(start := file.read(8), "little")
            if len(start) < 8 or length > min(stamp.size - 8, MOST_HEADER):
                raise _no_header(stamp, start + file.read(32), length)
            _refuse_nested(stamp, data := file.read(length))
            header = json.loads(data, object_pairs_hook=_without_repeats)
    except OSError as error:
        raise _unreadable(error, stamp.path) from None
    except (ValueError, RecursionError):
        raise stamp.refused("its header is no JSON that names each tensor once") from None
    if not isinstance(header, dict) or not _is_metadata(header.get("__metadata__", {})):
        raise stamp.refused("its header is not that of a safetensors file")
    return header, 8 + length


def _no_header(stamp: Stamp, start: bytes, length: int) -> InputError:
    for beginning, found in DISGUISED.items():
        if start.startswith(beginning):
            return stamp.refused(f"it is {found}, and no safetensors file")
    if len(start) >= 8 and length <= MOST_HEADER:
        return stamp.refused(f"its header has {length:,} bytes and the file {stamp.size:,}: it was cut short")
    if not stamp.size:
        return stamp.refused("it is empty")
    return stamp.refused(f"it is no safetensors file, or one whose header has over {MOST_HEADER // 1_000_000} MB")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError
    return made


def _is_metadata(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _place(stamp: Stamp, name: str, tensor: Any) -> tuple[int, int]:
    """Where a tensor's bytes begin and end. Raises InputError when they are not as many as its shape needs."""
    try:
        dtype, shape, (first, last) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise stamp.refused(f"the tensor {shown(name)} has no dtype, shape or place") from None
    if not isinstance(dtype, str) or dtype not in BITS:
        raise stamp.refused(f"the tensor {shown(name)} is of the unknown kind {shown(dtype)}")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS or not all(map(_is_count, (*shape, first, last))):
        raise stamp.refused(f"the tensor {shown(name)} has an impossible shape or place")
    if (last - first) * 8 != math.prod(shape) * BITS[dtype]:
        raise stamp.refused(f"the tensor {shown(name)} has {last - first:,} bytes, which is not what its shape needs")
    return first, last


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


# ---------------------------------------------------------------- what is raised


@contextmanager
def loading(file: Path, what: str = "the model") -> Iterator[None]:
    """Make one InputError of whatever a library raises while it loads `what` from `file`, a folder or a file."""
    try:
        yield
    except RlaifError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        if is_memory(error):
            raise WorkError(f"{what} does not fit into the memory", file=str(file), fix="use a smaller one") from error
        if isinstance(error, ImportError):
            raise InputError(f"{what} needs a package that is not installed: {reason(error)}", file=str(file),
                             fix="install it, or use a model that is saved without it") from error  # fmt: skip
        for words, (problem, fix) in KNOWN.items():
            if words in str(error):
                raise InputError(f"{what} {problem}", file=str(file), fix=fix) from error
        raise InputError(f"{what} cannot be loaded: {reason(error)}", file=str(file), fix=MEND) from error


@contextmanager
def failing(name: str, folder: Path, batch_size: int) -> Iterator[None]:
    """Make one EngineError of whatever a library raises while the model `name` runs."""
    try:
        yield
    except RlaifError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        if is_memory(error):
            raise EngineError(f"the model {name!r} ran out of memory", cause="memory",
                              fix=f"set its `batch_size` below {batch_size}") from None  # fmt: skip
        problem = f"the model {name!r} in {folder} failed: {reason(error)}"
        raise EngineError(problem, cause="model", fatal=True, fix=MEND) from error


def no_number(of: str) -> EngineError:
    """The failure of one completion or score, which the model computed as NaN or infinity."""
    return EngineError(
        f"the model computes {of} that are no numbers",
        cause="not-finite",
        fix="run it with `dtype: float32`, or use another checkpoint: this one may have diverged",
    )


# Words of the libraries' errors, and what they mean.
KNOWN = {
    "trust_remote_code": ("needs code of its own, which is never run: `auto_map` names it",
                          "use one whose architecture transformers has"),
    "does not recognize this architecture": ("is of an architecture that this version of transformers does not have",
                                             "install a newer one, or use another model"),
    "Unrecognized model in": ("names no architecture", "set `model_type` in config.json"),
    "Unrecognized configuration class": ("is of an architecture that does not do this", "use a causal language model"),
    "`ignore_mismatched_sizes`": ("has weights of other sizes than its config.json says", MEND),
    "no file named model.safetensors": ("has neither model.safetensors nor an index of its parts", MEND),
    "instantiate the backend tokenizer": ("has no file that can be read", "put its tokenizer.json into the folder"),
    "did not match any variant": ("has a part of a kind that does not exist", MEND),
}  # fmt: skip


def is_failure(error: BaseException) -> bool:
    """Whether `error` is a library's. A panic of Rust code is no Exception, so that nobody catches it by mistake."""
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, a device's, or torch's on the CPU."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or of_torch


def reason(error: BaseException) -> str:
    """A library's error in some words: the first line of its message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 1 + (bool(lines) and lines[0].endswith(":"))]).rstrip(".:, ")
    text = shortened(said, 160)
    kind = type(error).__name__
    if isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError | NotImplementedError):
        # It says what broke in the library, and not why.
        return f"a value in it is not what the library expects ({kind}{': ' if text else ''}{text})"
    return text or kind


def _unreadable(error: OSError, file: Path) -> InputError:
    return InputError(f"cannot be read: {why(error)}", file=str(file), fix=FETCH)


def _stamp(file: Path) -> Stamp:
    try:
        state = file.stat()
    except OSError as error:
        raise _unreadable(error, file) from None
    return Stamp(file, state.st_size, state.st_mtime_ns)
