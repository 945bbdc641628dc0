"""Model folders of strangers: each is refused in a sentence that names the file, or runs as any other model.

Most attempts end before anything is loaded, so they enter by the digest of a model's files, which a plan, a run and a
training ask for first. The others load the folder, sample from it, score with it and train it.
"""

# ruff: noqa: E501 - tables with one case a line

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_run import Cli, run_cli  # noqa: F401

pytest.importorskip("trl")

from rlaif.config import TRAINERS
from rlaif.engines import vllm
from rlaif.engines.identity import has_reward_head, weights_digest
from rlaif.engines.protocol import Reply, Request
from rlaif.engines.transformers import TransformersEngine
from rlaif.errors import EngineError, InputError, RlaifError
from rlaif.records import Message, Sampling
from rlaif.tiny.lexicon import Lexicon
from rlaif.train import job, models
from rlaif.train.__main__ import main as train
from rlaif.train.examples import Demonstration
from rlaif.train.merge import merge, merge_of

Edit = Callable[[Path], object]
WEIGHTS = "model.safetensors"
SECONDS = 5  # that a refusal may take on a busy machine; most take a thousandth
DEEP = "[" * 100_000 + "]" * 100_000
EVIL = "import pathlib; pathlib.Path('PWNED').touch()\nclass E: pass\n"

# ---------------------------------------------------------------- edits of a folder


def write(name: str, content: str | bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def keys(name: str, **values: Any) -> Edit:
    """Set keys of a JSON file; ... removes one."""

    def edit(folder: Path) -> None:
        read = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in read.items() if value is not ...}))

    return edit


def config(**values: Any) -> Edit:
    return keys("config.json", **values)


def generation(**values: Any) -> Edit:
    return keys("generation_config.json", **values)


def settings(**values: Any) -> Edit:
    return keys("tokenizer_config.json", **values)


def tokenizer(**values: Any) -> Edit:
    return keys("tokenizer.json", **values)


def inside(key: str, change: Callable[[Any], Any]) -> Edit:
    """Change what a key of tokenizer.json holds."""

    def edit(folder: Path) -> None:
        read = json.loads((folder / "tokenizer.json").read_text())
        tokenizer(**{key: change(read[key])})(folder)

    return edit


def vocabulary(change: Callable[[dict[str, int]], Any]) -> Edit:
    return inside("model", lambda model: model | {"vocab": change(model["vocab"])})


def added(**values: Any) -> Edit:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return inside("added_tokens", lambda tokens: [*tokens, {"id": 261, "content": "zz"} | plain | values])


def step(kind: str, **values: Any) -> dict[str, Any]:
    return {"type": kind, **values}


def several(key: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(steps)}


def replaced(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return step("Replace", pattern=pattern, content=content)


def split(regex: str) -> dict[str, Any]:
    return step("Split", pattern={"Regex": regex}, behavior="Isolated", invert=False)


def raw(change: Callable[[bytes], bytes]) -> Edit:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: bytes, tensors: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + tensors


def header(change: Callable[[dict[str, Any]], Any]) -> Edit:
    """Change the header of the weights: its object, or what bytes come in its place."""

    def edit(data: bytes) -> bytes:
        read, tensors = parts(data)
        made = change(read)
        return joined(made if isinstance(made, bytes) else json.dumps(made).encode(), tensors)

    return raw(edit)


def tensor(**values: Any) -> Edit:
    """Change what the header says of the embeddings."""
    return header(lambda read: read | {EMBEDDINGS: read[EMBEDDINGS] | values})


EMBEDDINGS = "model.embed_tokens.weight"


def filled(name: str, value: float, count: int | None = None) -> Edit:
    """Fill a tensor, or its first numbers."""

    def edit(data: bytes) -> bytes:
        read, tensors = parts(data)
        first, last = read[name]["data_offsets"]
        number = struct.pack("<f", value) * (count or (last - first) // 4)
        return joined(json.dumps(read).encode(), tensors[:first] + number + tensors[first + len(number) :])

    return raw(edit)


def indexed(weight_map: Callable[[list[str]], Any], **more: Any) -> Edit:
    """Name the weights as one part, with an index that says where each tensor is."""

    def edit(folder: Path) -> None:
        names = [name for name in parts((folder / WEIGHTS).read_bytes())[0] if name != "__metadata__"]
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": weight_map(names)} | more
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({k: v for k, v in index.items() if v is not ...}))

    return edit


def everywhere(file: str) -> Edit:
    return indexed(lambda names: dict.fromkeys(names, file))


def fifo(name: str) -> Edit:
    return both(removed(name), lambda folder: os.mkfifo(folder / name))


def link(name: str, target: str) -> Edit:
    return both(removed(name), lambda folder: (folder / name).symlink_to(target))


def sparse(name: str, size: int) -> Edit:
    def edit(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return edit


def removed(name: str) -> Edit:
    return lambda folder: (folder / name).unlink(missing_ok=True)


def folder_named(name: str) -> Edit:
    return both(removed(name), lambda folder: (folder / name).mkdir())


def renamed(old: str, new: str) -> Edit:
    return lambda folder: (folder / old).rename(folder / new)


def both(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for each in edits:
            each(folder)

    return edit


class Pickled:
    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


# ---------------------------------------------------------------- refused by its files

ST, CONFIG, INDEX, TOKENIZER = r"model\.safetensors: ", r"config\.json: ", r"index\.json: ", r"tokenizer\.json: "
SIZE = "expected a whole number from"
ENDS = "eos_token_id`: expected one of the model's 261 tokens"

REFUSED: dict[str, tuple[Edit, str]] = {
    # weights
    "weights-that-are-a-pickle": (raw(lambda _: pickle.dumps(Pickled())), ST + "it is a pickle"),
    "weights-that-are-a-torch-archive": (raw(lambda _: b"PK\3\4" + bytes(2000)), ST + "it is a torch archive"),
    "weights-that-are-a-gguf": (raw(lambda _: b"GGUF" + b"\xff" * 99), ST + "it is a GGUF file"),
    "weights-that-are-a-git-lfs-pointer": (raw(lambda _: b"version https://git-lfs.github.com/spec/v1\n"), ST + "it is a pointer of Git LFS"),
    "weights-that-are-a-web-page": (raw(lambda _: b"<!DOCTYPE html><html>"), ST + "it is a web page"),
    "weights-that-are-empty": (raw(lambda _: b""), ST + "it is empty"),
    "weights-of-four-bytes": (raw(lambda _: b"abcd"), ST + "it is no safetensors file"),
    "header-length-2-to-the-63": (raw(lambda d: struct.pack("<Q", 2**63) + d[8:]), ST + "it is no safetensors file, or one whose header has over 32 MB"),
    "header-length-2-to-the-40": (raw(lambda d: struct.pack("<Q", 2**40) + d[8:]), ST + "it is no safetensors file"),
    "header-length-beyond-the-file": (raw(lambda d: struct.pack("<Q", len(d)) + d[8:]), ST + "its header has .* it was cut short"),
    "header-length-0": (raw(lambda d: bytes(8) + d[8:]), ST + "its header is no JSON"),
    "header-of-200-MB": (both(raw(lambda d: struct.pack("<Q", 2 * 10**8)), lambda f: os.truncate(f / WEIGHTS, 3 * 10**8)), ST + "it is no safetensors file"),
    "header-that-is-deep": (header(lambda _: DEEP.encode()), ST + "its header is no JSON"),
    "header-of-10-million-lists": (header(lambda _: b'{"a": [' + b"[]," * 10_000_000 + b"[]]}"), ST + "it holds more than 4,000,000 lists"),
    "header-that-is-a-list": (header(lambda _: b"[]"), ST + "its header is not that"),
    "header-that-is-not-utf-8": (header(lambda _: b"\xff\xfe"), ST + "its header is no JSON"),
    "header-with-a-number-of-5000-digits": (header(lambda _: b'{"a": ' + b"9" * 5000 + b"}"), ST + "its header is no JSON"),
    "header-that-names-a-tensor-twice": (header(lambda h: (json.dumps(h)[:-1] + f', "{EMBEDDINGS}": {json.dumps(h[EMBEDDINGS])}}}').encode()), ST + "its header is no JSON that names each tensor once"),
    "header-without-tensors": (raw(lambda _: joined(b"{}", b"")), ST + "it holds no tensor"),
    "metadata-that-is-no-text": (header(lambda h: h | {"__metadata__": {"format": 3}}), ST + "its header is not that"),
    "metadata-that-is-a-list": (header(lambda h: h | {"__metadata__": []}), ST + "its header is not that"),
    "tensor-that-is-a-number": (header(lambda h: h | {EMBEDDINGS: 3}), ST + "the tensor 'model.embed_tokens.weight' has no dtype"),
    "tensor-without-a-place": (header(lambda h: h | {EMBEDDINGS: {"dtype": "F32", "shape": [1]}}), ST + ".* has no dtype, shape or place"),
    "offsets-beyond-the-file": (tensor(data_offsets=[0, 10**12]), ST + ".* which is not what its shape needs"),
    "offsets-below-zero": (tensor(data_offsets=[-5, 10]), ST + ".* impossible shape or place"),
    "offsets-swapped": (tensor(data_offsets=[100, 0]), ST + ".* not what its shape needs"),
    "offsets-that-are-text": (tensor(data_offsets=["0", "1"]), ST + ".* impossible shape or place"),
    "offsets-of-three": (tensor(data_offsets=[0, 1, 2]), ST + ".* has no dtype, shape or place"),
    "offsets-that-are-true": (tensor(data_offsets=[False, True]), ST + ".* impossible shape or place"),
    "tensors-that-overlap": (header(lambda h: h | {"copy": h[EMBEDDINGS]}), ST + "the tensor .* begins at byte"),
    "tensors-with-a-gap": (header(lambda h: {k: v for k, v in h.items() if k != EMBEDDINGS}), ST + "the tensor .* begins at byte"),
    "shape-below-zero": (tensor(shape=[-1, 64]), ST + ".* impossible shape or place"),
    "shape-that-overflows": (tensor(shape=[2**62, 4]), ST + ".* not what its shape needs"),
    "shape-that-is-text": (tensor(shape="261x64"), ST + ".* impossible shape or place"),
    "shape-of-100000-dimensions": (tensor(shape=[1] * 100_000), ST + ".* impossible shape or place"),
    "dtype-that-does-not-exist": (tensor(dtype="F99"), ST + ".* of the unknown kind 'F99'"),
    "dtype-that-is-a-list": (tensor(dtype=["F32"]), ST + ".* of the unknown kind"),
    "dtype-with-an-escape": (tensor(dtype="\x1b]0;x\x07"), ST + ".* of the unknown kind '\\\\x1b]0"),
    "weights-that-are-whole-numbers": (tensor(dtype="I32"), ST + ".* holds I32, which are no weights"),
    "download-cut-short": (raw(lambda d: d[: len(d) // 2]), ST + "its tensors take 346,624 bytes, and it has"),
    "download-cut-by-a-byte": (raw(lambda d: d[:-1]), ST + "its tensors take"),
    "bytes-after-the-tensors": (raw(lambda d: d + b"zz"), ST + "its tensors take"),
    "download-that-did-not-end": (renamed(WEIGHTS, f"{WEIGHTS}.incomplete"), "the folder holds no safetensors weights"),
    "weights-sparse-20-GB": (sparse(WEIGHTS, 20 << 30), ST + "its header is no JSON"),
    "weights-fifo": (fifo(WEIGHTS), ST + "it is no regular file"),
    "weights-dev-zero": (link(WEIGHTS, "/dev/zero"), ST + "it is no regular file"),
    "weights-link-to-itself": (link(WEIGHTS, WEIGHTS), "too many levels of symbolic links"),
    "weights-link-that-is-dead": (link(WEIGHTS, "../../blobs/0123"), ST + "the link leads nowhere"),
    "weights-link-to-passwd": (link(WEIGHTS, "/etc/passwd"), ST + "it is no safetensors file"),
    "weights-folder": (folder_named(WEIGHTS), "the folder holds no safetensors weights"),
    "second-weights-that-are-junk": (write("other.safetensors", "junk"), r"other\.safetensors: it is no safetensors file"),
    "only-a-bin": (both(removed(WEIGHTS), write("pytorch_model.bin", pickle.dumps(Pickled()))), "no safetensors weights, and no other format is read. Fix: save the model again"),
    "only-a-gguf": (both(removed(WEIGHTS), write("m.gguf", "GGUF")), "no other format is read"),
    "only-a-pt": (both(removed(WEIGHTS), write("model.pt", pickle.dumps(Pickled()))), "no other format is read"),
    "adapter-in-place-of-a-model": (both(renamed(WEIGHTS, "adapter_model.safetensors"), removed("config.json"), write("adapter_config.json", '{"base_model_name_or_path": "owner/repo"}')), "the folder holds an adapter, and its base model 'owner/repo' is no folder here.* Fix: give the base model too"),
    "adapter-beside-a-model": (write("adapter_config.json", '{"base_model_name_or_path": "owner/repo"}'), "the folder holds an adapter"),
    # the index
    "index-that-leaves-the-folder": (everywhere("../../../../etc/passwd"), INDEX + "`weight_map`: it names '../../../../etc/passwd'"),
    "index-with-an-absolute-path": (everywhere("/etc/passwd"), INDEX + ".* no weights file of this folder"),
    "index-to-another-folders-weights": (everywhere("../model/model-00001-of-00001.safetensors"), INDEX + ".* no weights file of this folder"),
    "index-to-a-bin": (everywhere("pytorch_model.bin"), INDEX + ".* no weights file of this folder"),
    "index-with-a-nul": (everywhere("a\0.safetensors"), INDEX + ".* no weights file of this folder"),
    "index-to-the-folder": (everywhere("."), INDEX + ".* no weights file of this folder"),
    "index-to-a-part-that-is-missing": (everywhere("model-00002-of-00002.safetensors"), "1 of 1 weights files are missing, .* it was cut short"),
    "index-that-is-a-list": (both(everywhere("x"), write(f"{WEIGHTS}.index.json", "[]")), INDEX + "it cannot be read"),
    "index-with-numbers": (indexed(lambda names: dict.fromkeys(names, 3)), INDEX + "it cannot be read"),
    "index-without-metadata": (indexed(lambda names: dict.fromkeys(names, "x"), metadata=...), INDEX + "it cannot be read: .*metadata"),
    "index-that-is-deep": (both(everywhere("x"), write(f"{WEIGHTS}.index.json", '{"metadata": {}, "x": ' + DEEP)), INDEX + "it cannot be read"),
    # config.json
    "config-list": (write("config.json", "[]"), CONFIG + "expected a JSON object"),
    "config-number": (write("config.json", "3"), CONFIG + "expected a JSON object"),
    "config-empty": (write("config.json", ""), r"config\.json:1: it is no JSON"),
    "config-deep": (write("config.json", '{"model_type": "llama", "x": ' + DEEP + "}"), CONFIG + "its JSON is nested too deeply"),
    "config-not-utf-8": (write("config.json", b"\xff\xfe{}"), CONFIG + "its JSON cannot be read"),
    "config-number-of-5000-digits": (write("config.json", '{"hidden_size": ' + "9" * 5000 + "}"), CONFIG + "its JSON cannot be read"),
    "config-sparse-1-GB": (sparse("config.json", 1 << 30), CONFIG + "cannot be read: it is larger than 16 MB"),
    "config-fifo": (fifo("config.json"), CONFIG + "it is no regular file"),
    "config-folder": (folder_named("config.json"), "config.json is missing"),
    "config-dev-zero": (link("config.json", "/dev/zero"), CONFIG + "it is no regular file"),
    "config-link-to-itself": (link("config.json", "config.json"), CONFIG + "cannot be read: too many levels"),
    "config-of-5000-keys": (config(**{f"k{i}": i for i in range(5000)}), CONFIG + "it has 5,02. keys"),
    "architectures-number": (config(architectures=3), CONFIG + "`architectures`: expected a list of names"),
    "architectures-of-null": (config(architectures=[None]), CONFIG + "`architectures`: expected a list of names"),
    "model-type-list": (config(model_type=["llama"]), CONFIG + "`model_type`: expected a name"),
    **{
        f"{key}-{value}": (config(**{key: value}), CONFIG + f"`{key}`: {SIZE}")
        for key, values in {
            "num_hidden_layers": (10**9, 0, -1, "2", 2.5, True),
            "hidden_size": (0, -64, "x", 10**9),
            "intermediate_size": (10**12, -1),
            "num_attention_heads": (0, -2, "x"),
            "head_dim": (10**9, -1),
            "vocab_size": (0, -1, 10**12, "x"),
            "max_position_embeddings": (10**12, 0, -1, "x"),
            "num_labels": (10**10, -1, "x"),
        }.items()
        for value in values
    },
    "layers-of-a-model-inside": (config(text_config={"num_hidden_layers": 10**9}), CONFIG + f"`num_hidden_layers`: {SIZE}"),
    "layers-two-models-inside": (config(thinker={"text_config": {"num_hidden_layers": 10**9}}), CONFIG + f"`num_hidden_layers`: {SIZE}"),
    "hidden-size-infinite": (write("config.json", '{"hidden_size": Infinity}'), CONFIG + f"`hidden_size`: {SIZE}"),
    "config-end-token-out-of-range": (
        both(config(eos_token_id=10**6), lambda folder: (folder / "generation_config.json").unlink()),
        CONFIG + f"`{ENDS}, found 1000000",
    ),
    # generation_config.json
    "generation-list": (write("generation_config.json", "[]"), CONFIG + "expected a JSON object"),
    "generation-deep": (write("generation_config.json", DEEP), CONFIG + "its JSON is nested too deeply"),
    "generation-fifo": (fifo("generation_config.json"), CONFIG + "it is no regular file"),
    "generation-sparse": (sparse("generation_config.json", 1 << 30), CONFIG + "cannot be read: it is larger"),
    **{
        f"end-token-{json.dumps(value)[:20]}": (generation(eos_token_id=value), rf"generation_config\.json: `{ENDS}")
        for value in (10**6, 2**70, -1, "x", ["a"], {"a": 1}, [[1]], 1.5, True, [1, 261])
    },
    # tokenizers
    "tokenizer-empty": (write("tokenizer.json", ""), TOKENIZER + "it cannot be read"),
    "tokenizer-list": (write("tokenizer.json", "[]"), TOKENIZER + "it cannot be read"),
    "tokenizer-deep": (write("tokenizer.json", '{"model": ' + DEEP), TOKENIZER + "it cannot be read"),
    "tokenizer-cut-short": (lambda f: os.truncate(f / "tokenizer.json", 500), TOKENIZER + "it cannot be read"),
    "tokenizer-fifo": (fifo("tokenizer.json"), TOKENIZER + "it is no regular file"),
    "tokenizer-dev-zero": (link("tokenizer.json", "/dev/zero"), TOKENIZER + "it is no regular file"),
    "tokenizer-sparse-1-GB": (sparse("tokenizer.json", 1 << 30), TOKENIZER + "cannot be read: it is larger than 64 MB"),
    "tokenizer-of-20-million-lists": (write("tokenizer.json", '{"model": {"vocab": {}}, "x": [' + "[]," * 20_000_000 + "[]]}"), TOKENIZER + "it holds more than 4,000,000 lists"),
    "tokenizer-without-a-model": (tokenizer(model=...), TOKENIZER + "it cannot be read: .*model"),
    "vocabulary-list": (vocabulary(lambda _: [1]), TOKENIZER + "it cannot be read"),
    "token-number-2-to-the-32": (vocabulary(lambda v: v | {"q": 2**32 - 1}), TOKENIZER + "it cannot be read"),
    "token-number-below-zero": (vocabulary(lambda v: v | {"a": -1}), TOKENIZER + "it cannot be read"),
    "token-number-that-is-text": (vocabulary(lambda v: v | {"a": "x"}), TOKENIZER + "it cannot be read"),
    "more-tokens-than-embeddings": (vocabulary(lambda v: v | {f"x{i}": 261 + i for i in range(100)}), TOKENIZER + "it has 361 tokens and the model 261. Fix: use the tokenizer"),
    "fewer-embeddings-than-tokens": (config(vocab_size=100), TOKENIZER + "it has 261 tokens and the model 100"),
    "fewer-embeddings-in-the-text-model": (config(text_config={"vocab_size": 5}), TOKENIZER + "it has 261 tokens and the model 5"),
    "added-token-beyond-the-embeddings": (added(id=300, content="hi"), TOKENIZER + "it has 301 tokens and the model 261"),
    "added-token-2-to-the-31": (added(id=2**31), TOKENIZER + "it cannot be read"),
    "added-tokens-that-are-text": (tokenizer(added_tokens="x"), TOKENIZER + "it cannot be read"),
    "added-tokens-100000": (inside("added_tokens", lambda a: [a[0] | {"content": f"<{i}>"} for i in range(100_000)]), TOKENIZER + "`added_tokens`: it adds 100,000 tokens"),
    "added-token-of-10-MB": (added(content="a" * 10_000_000), TOKENIZER + "`added_tokens`: it adds a token of 10,000,000 characters"),
    "normalizer-that-doubles-40-times": (tokenizer(normalizer=several("normalizers", *[replaced({"String": "h"}, "hh")] * 40)), TOKENIZER + "`normalizer`: it makes 1,099,511,627,776 characters of one"),
    "normalizer-that-grows-by-a-pattern": (tokenizer(normalizer=several("normalizers", *[replaced({"Regex": "."}, "a" * 10)] * 9)), TOKENIZER + "`normalizer`: it makes"),
    "normalizer-that-prepends-a-megabyte": (tokenizer(normalizer=step("Prepend", prepend="a" * 10**6)), TOKENIZER + "`normalizer`: it makes"),
    "normalizer-whose-table-ends-the-process": (tokenizer(normalizer=step("Precompiled", precompiled_charsmap="/////w==")), TOKENIZER + "`normalizer`: its compiled table"),
    "normalizer-whose-table-is-null": (tokenizer(normalizer=step("Precompiled", precompiled_charsmap=None)), TOKENIZER + "`normalizer`: its compiled table"),
    "normalizer-whose-table-is-cut-short": (tokenizer(normalizer=step("Precompiled", precompiled_charsmap="AAAA")), TOKENIZER + "`normalizer`: its compiled table"),
    "decoder-that-grows": (tokenizer(decoder=several("decoders", *[replaced({"Regex": "."}, "a" * 10)] * 9)), TOKENIZER + "`decoder`: it makes"),
    "pre-tokenizer-of-10000-steps": (tokenizer(pre_tokenizer=several("pretokenizers", *[step("Whitespace")] * 10_000)), TOKENIZER + "`pre_tokenizer`: it has 10,001 steps"),
    "pre-tokenizer-that-is-text": (tokenizer(pre_tokenizer="x"), TOKENIZER + "it cannot be read"),
    "tokenizer-settings-list": (write("tokenizer_config.json", "[]"), r"tokenizer_config\.json: expected a JSON object"),
    "tokenizer-settings-deep": (write("tokenizer_config.json", DEEP), r"tokenizer_config\.json: its JSON is nested"),
    "tokenizer-settings-not-utf-8": (write("tokenizer_config.json", b"\xff"), r"tokenizer_config\.json: its JSON cannot"),
    "tokenizer-settings-with-a-token-of-1-MB": (settings(added_tokens_decoder={"9": {"content": "a" * 10**6}}), r"tokenizer_config\.json: `added_tokens`"),
    "special-tokens-list": (write("special_tokens_map.json", "[]"), r"special_tokens_map\.json: expected a JSON object"),
    "added-tokens-file-list": (write("added_tokens.json", "[1]"), r"added_tokens\.json: expected a JSON object"),
    "vocab-fifo": (fifo("vocab.json"), r"vocab\.json: it is no regular file"),
    "merges-dev-zero": (link("merges.txt", "/dev/zero"), r"merges\.txt: it is no regular file"),
    "sentencepiece-fifo": (fifo("tokenizer.model"), r"tokenizer\.model: it is no regular file"),
    "processor-fifo": (fifo("processor_config.json"), r"processor_config\.json: it is no regular file"),
    "template-fifo": (fifo("chat_template.jinja"), r"chat_template\.jinja: it is no regular file"),
    "template-sparse": (sparse("chat_template.jinja", 1 << 30), r"chat_template\.jinja: it is larger than 64 MB"),
    "another-template-fifo": (both(folder_named("additional_chat_templates"), fifo("additional_chat_templates/x.jinja")), r"x\.jinja: it is no regular file"),
    "lexicon-fifo": (fifo("lexicon.json"), r"lexicon\.json: it is no regular file"),
}  # fmt: skip


@pytest.fixture
def stranger(random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a model that runs, for an attempt to change; the current folder is beside it."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(random_model, tmp_path / "model")


def is_a_sentence(error: RlaifError, expected: str) -> None:
    said = str(error)
    assert re.search(expected, said), said
    assert error.fix and said.isprintable() and len(said) < 600 and "Traceback" not in said, said
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_is_refused_by_its_files(name: str, stranger: Path) -> None:
    edit, expected = REFUSED[name]
    edit(stranger)
    began = time.process_time()
    with pytest.raises(InputError) as refused:
        weights_digest(stranger)
    assert time.process_time() - began < SECONDS
    is_a_sentence(refused.value, expected)
    assert str(stranger) in str(refused.value)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(config(eos_token_id=10**6), id="end token of the configuration, where another file decides"),
        pytest.param(config(max_position_embeddings=512.0), id="whole number with a point"),
    ],
)
def test_what_real_configurations_hold_is_taken(edit: Edit, stranger: Path) -> None:
    edit(stranger)
    assert weights_digest(stranger)


@pytest.mark.parametrize(
    "name", ["config-deep", "config-fifo", "config-sparse-1-GB", "config-list", "architectures-number"]
)
def test_the_kind_of_a_model_is_asked_of_its_configuration_alone(name: str, stranger: Path) -> None:
    edit, expected = REFUSED[name]
    edit(stranger)
    with pytest.raises(InputError) as refused:
        has_reward_head(stranger)
    is_a_sentence(refused.value, expected)


# ---------------------------------------------------------------- refused while it is loaded, or when it runs

HI = (Message(role="user", content="hi there " * 20),)
SHORT = (Message(role="user", content="a"),)  # in one batch with a longer one, it is padded
MANY_A = (Message(role="user", content="a" * 3000),)


def used(folder: Path, messages: tuple[Message, ...] = HI, **sampling: Any) -> Reply:
    """What the model in a folder answers. Raises what it raises, the failure of the one row too."""

    async def work() -> Reply:
        engine = TransformersEngine("m", str(folder), device="cpu")
        try:
            settings = Sampling(max_tokens=4, **sampling)
            asked = [Request(messages=m, sampling=settings, indices=(0,)) for m in (messages, SHORT)]
            [[reply], [other]] = await engine.sample(asked)
        finally:
            await engine.close()
        for failed in (reply, other):
            if isinstance(failed, EngineError):
                raise failed
        return reply

    return asyncio.run(work())


WRONG = "a value in it is not what the library expects"
NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"

TOLD: dict[str, tuple[Edit, str]] = {
    "nan-weights": (filled(EMBEDDINGS, float("nan")), "the weights hold NaN or infinity, first in model.embed_tokens.weight: the model diverged when it was trained. Fix: use an earlier checkpoint"),
    "nan-in-one-number": (filled(UP, float("nan"), 1), "the weights hold NaN or infinity, first in model.layers.1.mlp.up_proj"),
    "infinity-in-one-number": (filled(UP, float("-inf"), 1), "the weights hold NaN or infinity"),
    "infinite-norm": (filled(NORM, float("inf")), "the weights hold NaN or infinity, first in model.norm.weight"),
    "weights-that-overflow": (filled(NORM, 3e38), "the model computes probabilities that are no numbers. Fix: run it with `dtype: float32`"),
    "weights-of-another-shape": (tensor(shape=[64, 261]), "the model has weights of other sizes than its config.json says"),
    "weights-of-another-size": (config(intermediate_size=95), "the model has weights of other sizes"),
    "heads-that-do-not-fit": (config(num_key_value_heads=5), "the model has weights of other sizes|failed|cannot be loaded"),
    "tensor-of-another-name": (header(lambda h: {("model.norm.wait" if k == NORM else k): v for k, v in h.items()}), "the weights lack 1 tensors, the first is model.norm.weight"),
    "names-of-an-adapter": (header(lambda h: {("__metadata__" if k == "__metadata__" else f"base_model.{k}.lora_A"): v for k, v in h.items()}), "the weights lack .* tensors"),
    "more-layers-than-weights": (config(num_hidden_layers=3), "the weights lack 9 tensors"),
    "untied-embeddings-without-weights": (config(tie_word_embeddings=False), "the weights lack 1 tensors, the first is lm_head"),
    "weights-of-another-name": (renamed(WEIGHTS, "weights.safetensors"), "the model has neither model.safetensors nor an index"),
    "code-of-its-own": (both(config(model_type="zzz", auto_map={"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E"}), write("evil.py", EVIL)), "the configuration needs code of its own, which is never run"),
    "code-of-its-own-on-the-hub": (config(model_type="zzz", auto_map={"AutoConfig": "owner/repo--evil.E"}), "needs code of its own, which is never run"),
    "code-for-its-tokenizer": (both(settings(auto_map={"AutoTokenizer": ["evil.E", None]}, tokenizer_class="Zzz"), write("evil.py", EVIL)), "the tokenizer needs code of its own, which is never run"),
    "model-type-unknown": (config(model_type="zzz"), "of an architecture that this version of transformers does not have"),
    "model-type-with-a-path": (config(model_type="../x"), "of an architecture that this version of transformers does not have"),
    "model-type-missing": (config(model_type=...), "the configuration names no architecture. Fix: set `model_type`"),
    "model-type-of-images": (config(model_type="clip"), "the model is of an architecture that does not do this"),
    "model-type-encoder-decoder": (config(model_type="t5"), "the model is of an architecture that does not do this"),
    "labels-list": (config(id2label=[1]), f"the configuration cannot be loaded: {WRONG}"),
    "auto-map-of-numbers": (config(auto_map={"AutoConfig": 3}), f"the configuration cannot be loaded: {WRONG}"),
    "class-of-the-configuration": (config(__class__="x"), "the configuration cannot be loaded"),
    "method-of-the-configuration": (config(get_text_config="x"), "cannot be loaded"),
    "property-of-the-configuration": (config(use_return_dict=False), "the configuration cannot be loaded"),
    "dtype-of-another-module": (config(dtype="__import__"), "the configuration cannot be loaded"),
    "hidden-size-that-heads-do-not-divide": (config(hidden_size=63), "the configuration cannot be loaded"),
    "head-dim-0": (config(head_dim=0), "cannot be loaded"),
    "no-key-value-heads": (config(num_key_value_heads=0), "cannot be loaded"),
    "epsilon-text": (config(rms_norm_eps="x"), "the configuration cannot be loaded: .*rms_norm_eps"),
    "epsilon-below-zero": (config(rms_norm_eps=-100.0), "the model computes probabilities that are no numbers"),
    "vocabulary-null": (config(vocab_size=None), "the configuration cannot be loaded: .*vocab_size"),
    "activation-unknown": (config(hidden_act="owner/repo"), f"the model cannot be loaded: {WRONG}"),
    "rope-unknown": (config(rope_parameters={"rope_type": "zzz", "rope_theta": 1e4}), f"the model cannot be loaded: {WRONG}"),
    "rope-theta-0": (config(rope_parameters={"rope_type": "default", "rope_theta": 0}), "the model computes probabilities that are no numbers"),
    "rope-theta-text": (config(rope_parameters={"rope_type": "default", "rope_theta": "x"}), f"the model cannot be loaded: {WRONG}"),
    "rope-factor-0": (config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 0, "original_max_position_embeddings": 0}), "the configuration cannot be loaded"),
    "sliding-window-below-zero": (config(sliding_window=-1), "the model 'm' in .* failed"),
    "layer-types-unknown": (config(layer_types=["zzz", "zzz"]), "the configuration cannot be loaded"),
    "padding-token-out-of-range": (config(pad_token_id=10**6), "the model cannot be loaded: Padding_idx"),
    "outputs-as-tuples": (config(return_dict=False), "the model 'm' in .* failed"),
    "encoder-decoder": (config(is_encoder_decoder=True), "the model 'm' in .* failed|cannot be loaded"),
    "text-config-text": (config(text_config="x"), "cannot be loaded"),
    "quantised-bitsandbytes": (config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), "needs a package that is not installed"),
    "quantised-by-text": (config(quantization_config="x"), "the configuration cannot be loaded"),
    "quantised-by-nothing": (config(quantization_config={}), "cannot be loaded"),
    "generation-cache-unknown": (generation(cache_implementation="zzz"), "the model cannot be loaded: Invalid `cache_implementation`"),
    "generation-watermark": (generation(watermarking_config={"a": 1}), f"the model cannot be loaded: {WRONG}"),
    "tokenizer-missing": (removed("tokenizer.json"), "the tokenizer has no file that can be read. Fix: put its tokenizer.json"),
    "tokenizer-of-a-kind-unknown": (inside("model", lambda m: m | {"type": "zzz"}), "the tokenizer has a part of a kind that does not exist"),
    "pre-tokenizer-of-a-kind-unknown": (tokenizer(pre_tokenizer=step("zzz")), "the tokenizer has a part of a kind that does not exist"),
    "tokenizer-of-a-version-unknown": (tokenizer(version="9.9"), "the tokenizer cannot be loaded: Unknown tokenizer version"),
    "merge-of-unknown-tokens": (inside("model", lambda m: m | {"merges": [["zz", "yy"]]}), "the tokenizer cannot be loaded: Token `zz` out of vocabulary"),
    "merges-of-numbers": (inside("model", lambda m: m | {"merges": [1]}), "the tokenizer "),
    "pattern-that-is-open": (tokenizer(pre_tokenizer=split("(")), "the tokenizer cannot be loaded: Oniguruma error"),
    "pattern-of-100000-groups": (tokenizer(pre_tokenizer=split("(" * 100_000 + ")" * 100_000)), "the tokenizer cannot be loaded: Oniguruma error"),
    "pattern-that-is-catastrophic": (tokenizer(pre_tokenizer=split("(a+)+b")), "the model 'm' in .* failed: Onig: Regex search error|the tokenizer"),
    "words-without-an-unknown": (tokenizer(model=step("WordLevel", vocab={"a": 0}, unk_token="[UNK]")), "the model 'm' in .* failed: WordLevel error"),
    "pieces-without-a-vocabulary": (tokenizer(model=step("Unigram", vocab=[], unk_id=5)), "the tokenizer cannot be loaded"),
    "truncation-to-nothing": (tokenizer(truncation={"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5}), "the tokenizer cannot be loaded"),
    "end-token-of-the-tokenizer-beyond-the-model": (settings(eos_token="<new>"), "the end token is number 261, and the model has 261 tokens"),
    "end-token-of-the-tokenizer-number": (settings(eos_token=3), "the tokenizer cannot be loaded"),
    "end-token-of-the-tokenizer-list": (settings(eos_token=["a"]), "the tokenizer cannot be loaded"),
    "no-end-token": (both(settings(eos_token=...), generation(eos_token_id=None), config(eos_token_id=None)), "the model names no end token"),
    "added-token-in-the-settings-beyond-the-model": (settings(added_tokens_decoder={"99999": {"content": "hi", "special": False}}), "the model 'm' in .* failed: .*index out of range"),
    "added-tokens-in-the-settings-list": (settings(added_tokens_decoder=[1]), f"the tokenizer cannot be loaded: {WRONG}"),
    "tokenizer-class-number": (settings(tokenizer_class=3), f"the tokenizer cannot be loaded: {WRONG}"),
    "tokenizer-class-base": (settings(tokenizer_class="PreTrainedTokenizerBase"), "the tokenizer cannot be loaded"),
    "tokenizer-method-as-a-setting": (settings(encode="x"), "the tokenizer cannot be loaded"),
    "tokenizer-length-text": (settings(model_max_length="x"), "the model 'm' in .* failed"),
    "padding-side-unknown": (settings(padding_side="middle"), "the tokenizer cannot be loaded: Padding side"),
    "special-tokens-odd": (write("special_tokens_map.json", '{"eos_token": [1], "__class__": "x"}'), "the tokenizer cannot be loaded"),
    "added-tokens-file-text": (write("added_tokens.json", '{"q": "x"}'), "the tokenizer cannot be loaded"),
    "sentencepiece-junk": (both(removed("tokenizer.json"), write("tokenizer.model", "junk"), settings(tokenizer_class="LlamaTokenizer")), "the tokenizer cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["weights-that-are-a-pickle", "header-length-2-to-the-40", "header-that-names-a-tensor-twice", "config-fifo",
     "layers-of-a-model-inside", "tokenizer-cut-short", "token-number-2-to-the-32", "template-fifo"],
)  # fmt: skip
def test_a_parent_is_refused_before_anything_is_merged(name: str, stranger: Path, random_model: Path) -> None:
    edit, expected = REFUSED[name]
    edit(stranger)
    with pytest.raises(InputError) as refused:
        merge(merge_of("linear", [random_model, stranger], [], None), Path("out"))
    is_a_sentence(refused.value, expected)
    assert not any("out" in path.name for path in Path.cwd().iterdir())


STRANGE = "a\x1b[2J\n" * 1000
UNLIKE: dict[str, tuple[Edit, str]] = {
    "key-of-escapes": (both(config(**{STRANGE: 1}), config(rms_norm_eps=STRANGE)), r"differs .* `rms_norm_eps` is 'a\\x1b"),
    "token-of-escapes": (vocabulary(lambda v: {token: i for token, i in v.items() if token != "a"} | {"a\x1b[2J": v["a"]}), "vocabulary differs .* in 2 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_what_a_parent_differs_by_is_told_in_a_sentence(name: str, stranger: Path, random_model: Path) -> None:
    edit, expected = UNLIKE[name]
    edit(stranger)
    with pytest.raises(InputError) as refused:
        merge(merge_of("linear", [random_model, stranger], [], None), Path("out"))
    is_a_sentence(refused.value, expected)


@pytest.mark.parametrize("name", TOLD)
def test_what_a_library_stumbles_over_is_a_sentence(
    name: str, stranger: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit, expected = TOLD[name]
    edit(stranger)
    began = time.process_time()
    with pytest.raises((InputError, EngineError)) as told:
        used(stranger, MANY_A if "catastrophic" in name else HI)
    assert time.process_time() - began < SECONDS
    is_a_sentence(told.value, expected)
    assert not isinstance(told.value, InputError) or str(stranger) in str(told.value)
    assert "panicked" in (printed := capfd.readouterr().err) or "LOAD REPORT" not in printed


# ---------------------------------------------------------------- what runs as any other

RUNS: dict[str, Edit] = {
    "as-it-was-saved": lambda folder: None,
    "in-parts": everywhere("model-00001-of-00001.safetensors"),
    "weights-by-a-link": both(renamed(WEIGHTS, "../blob"), link(WEIGHTS, "../blob")),
    "links-that-are-dead": both(link("latest", "nowhere"), link("notes.md", "nowhere")),
    "sizes-of-a-part-that-is-not-there": config(vision={"num_hidden_layers": 0, "hidden_size": None}),
    "weights-without-metadata": header(lambda h: {k: v for k, v in h.items() if k != "__metadata__"}),
    "attention-from-the-hub": config(_attn_implementation="owner/repo"),
    "attention-from-the-hub-by-function": config(attn_implementation="owner/repo:function"),
    "attention-from-the-hub-in-an-object": config(attn_implementation={"": "owner/repo", "text_config": "owner/repo"}),
    "attention-from-the-hub-paged": config(attn_implementation="paged|owner/repo"),
    "attention-that-is-not-installed": config(_attn_implementation="flash_attention_3"),
    "attention-that-is-compiled": config(_attn_implementation="flex_attention"),
    "attention-number": config(attn_implementation=3),
    "experts-from-the-hub": config(experts_implementation="owner/repo"),
    "code-beside-an-architecture-that-ships": both(config(auto_map={"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E"}), write("evil.py", EVIL)),
    "code-that-generates": both(folder_named("custom_generate"), write("custom_generate/generate.py", EVIL), generation(custom_generate="owner/repo")),
    "generation-without-end": generation(max_length=10**9, max_new_tokens=10**9),
    "generation-with-a-million-beams": generation(num_beams=10**6, num_return_sequences=10**6),
    "generation-with-forced-tokens": generation(forced_bos_token_id=10**6, forced_eos_token_id=10**6),
    "generation-with-penalty-nan": write("generation_config.json", '{"repetition_penalty": NaN, "eos_token_id": 1, "top_p": 5}'),
    "generation-without-a-cache": both(generation(use_cache=False), config(use_cache=False)),
    "generation-with-methods": generation(validate="x", to_dict="y"),
    "positions-a-billion": config(max_position_embeddings=2**30),
    "special-token-beyond-the-embeddings": both(added(id=261, content="<pad>", special=True), settings(pad_token="<pad>")),
    "vocabulary-of-one-number": vocabulary(lambda v: dict.fromkeys(v, 5)),
    "numbers-in-a-buffer": header(lambda h: h | {"model.position_ids": {"dtype": "I64", "shape": [0, 4], "data_offsets": [0, 0]}}),
    "configuration-with-a-prompt-for-everything": config(task_specific_params="x", transformers_version=[1], tp_plan="auto"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_folder_runs_as_any_other_and_nothing_of_it_is_obeyed(name: str, stranger: Path) -> None:
    RUNS[name](stranger)
    reply = used(stranger, temperature=0)
    assert reply.usage.completion_tokens <= 4
    assert not (stranger.parent / "PWNED").exists()


# ---------------------------------------------------------------- rewards, trainings, commands


@pytest.fixture(scope="module")
def reward(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForSequenceClassification

    folder = shutil.copytree(random_model, tmp_path_factory.mktemp("reward") / "reward")
    AutoModelForSequenceClassification.from_pretrained(random_model, num_labels=1).save_pretrained(folder)
    return folder


SCORING: dict[str, tuple[Edit, str]] = {
    "nan-head": (filled("score.weight", float("nan")), "the weights hold NaN or infinity, first in score.weight"),
    "nan-body": (filled(UP, float("nan"), 1), "the weights hold NaN or infinity"),
    "overflow": (filled(NORM, 3e38), "the model computes scores that are no numbers"),
    "labels-many": (config(id2label={str(i): str(i) for i in range(9)}), "a reward model has one output, this classifier has 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORING)
def test_a_reward_that_is_no_number_is_told(name: str, reward: Path, tmp_path: Path) -> None:
    edit, expected = SCORING[name]
    folder = shutil.copytree(reward, tmp_path / "reward")
    edit(folder)

    async def score() -> float:
        engine = TransformersEngine("r", str(folder), device="cpu")
        try:
            [scored] = await engine.score([(HI, "yes")])
        finally:
            await engine.close()
        if isinstance(scored, EngineError):
            raise scored
        return scored

    with pytest.raises((InputError, EngineError)) as told:
        asyncio.run(score())
    is_a_sentence(told.value, expected)


def test_log_probabilities_that_are_no_numbers_are_told(stranger: Path) -> None:
    filled(NORM, 3e38)(stranger)
    engine = TransformersEngine("m", str(stranger), device="cpu")
    with pytest.raises(EngineError) as told:
        asyncio.run(engine.logprobs([(HI, "yes")]))
    is_a_sentence(told.value, "the model computes log-probabilities that are no numbers")


@pytest.mark.parametrize("name", ["nan-weights", "weights-of-another-size", "code-of-its-own", "tokenizer-missing"])
@pytest.mark.parametrize("role", ["policy", "reward", "value"])
def test_a_base_is_refused_before_a_step_is_trained(name: str, role: str, stranger: Path, reward: Path) -> None:
    edit, expected = TOLD[name]
    if role == "value":
        shutil.copytree(reward, stranger, dirs_exist_ok=True)
    edit(stranger)
    with pytest.raises(InputError) as told:
        if role == "policy":
            models.load(stranger)
        elif role == "reward":
            models.load_reward(stranger, 0)
        else:
            models.load_value_model(stranger, models.load_tokenizer(reward))
    is_a_sentence(told.value, expected)


DEMONSTRATIONS = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "yes"}]}) + "\n"
    for i in range(4)
)
SFT = ["train", "sft", "--base", "model", "--data", "demos.jsonl", "--out", "out", "epochs=1", "max_length=256"]
PIPELINE = """\
name: p
models:
  m: {engine: transformers, path: model, device: cpu, sampling: {max_tokens: 4}}
stages:
  - prompts: {path: demos.jsonl}
  - sample: {models: [m]}
"""
COMMANDS = {
    "run": ["run", "p.yaml"],
    "plan": ["plan", "p.yaml"],
    "audit": ["audit", "model", "--take", "2"],
    "sft": SFT,
}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("run", name) for name in ("weights-that-are-a-pickle", "config-deep", "tokenizer-fifo", "nan-weights", "code-of-its-own")),
        *(("plan", name) for name in ("header-length-2-to-the-63", "config-fifo", "index-that-leaves-the-folder", "more-tokens-than-embeddings")),
        *(("audit", name) for name in ("offsets-beyond-the-file", "num_hidden_layers-1000000000", "nan-weights", "epsilon-text")),
        *(("sft", name) for name in ("weights-that-are-a-pickle", "download-cut-short", "nan-weights", "code-of-its-own", "activation-unknown")),
    ],
)  # fmt: skip
def test_a_command_says_it_in_one_line(command: str, name: str, stranger: Path, run_cli: Cli) -> None:  # noqa: F811
    edit, expected = {**REFUSED, **TOLD}[name]
    edit(stranger)
    Path("demos.jsonl").write_text(DEMONSTRATIONS)
    Path("p.yaml").write_text(PIPELINE)
    code, out, err = run_cli(*COMMANDS[command])
    assert code == 2, (out, err)
    assert err.startswith("error: ") and err.count("\n") == 1 and re.search(expected, err), err
    assert not Path("PWNED").exists() and not Path("out").exists()


def test_nobody_is_asked_whether_code_may_run(
    stranger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    TOLD["code-of-its-own"][0](stranger)
    settings = TRAINERS["sft"].model_validate({"base": "base", "name": "trained"})
    written = job.Job(settings, stranger, stranger.parent / "trained", "key")
    job.write_job(written, [Demonstration((*HI, Message(role="assistant", content="yes")))])
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    assert train([str(written.folder)]) == 2
    printed = capsys.readouterr()
    assert "needs code of its own, which is never run" in printed.err and "Do you wish" not in printed.out
    assert not Path("PWNED").exists()
    assert "trust_remote_code" in vllm.OURS


def test_rows_that_fail_poison_neither_the_run_nor_the_next(stranger: Path, run_cli: Cli) -> None:  # noqa: F811
    whole = (stranger / WEIGHTS).read_bytes()
    Path("demos.jsonl").write_text(DEMONSTRATIONS)
    Path("p.yaml").write_text(PIPELINE)
    filled(NORM, 3e38)(stranger)
    for _ in range(2):  # the second finds the failures in the store
        code, out, err = run_cli("run", "p.yaml")
        assert code == 1 and "not-finite" in out + err and "Traceback" not in out + err, (out, err)
    (stranger / WEIGHTS).write_bytes(whole)
    code, out, err = run_cli("run", "p.yaml", "--out", "again")
    assert code == 1 and "every completion was cut" in out and "not-finite" not in out + err, (out, err)


def test_a_training_that_diverges_says_so_and_leaves_no_model(stranger: Path, run_cli: Cli) -> None:  # noqa: F811
    filled(NORM, 3e38)(stranger)
    Path("demos.jsonl").write_text(DEMONSTRATIONS)
    for _ in range(2):
        code, out, err = run_cli(*SFT)
        assert code == 1 and re.search("not finite|the loss is (nan|inf)", err), (out, err)
        assert err.count("\n") == 1 and not Path("out").exists()


CHECKPOINTS: dict[str, Edit] = {
    "empty": lambda folder: None,
    "pickled-weights": write("model.safetensors", pickle.dumps(Pickled())),
    "pickled-optimiser": both(write("trainer_state.json", "{}"), write("optimizer.pt", pickle.dumps(Pickled())), write("scheduler.pt", pickle.dumps(Pickled())), write("rng_state.pth", pickle.dumps(Pickled())), write("training_args.bin", pickle.dumps(Pickled()))),
    "deep-state": write("trainer_state.json", DEEP),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CHECKPOINTS, "without-a-number"])
def test_a_checkpoint_of_somebody_else_is_a_sentence(
    name: str, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TRAINERS["sft"].model_validate({"base": "base", "name": "trained"})
    written = job.Job(settings, stranger, stranger.parent / "trained", "key")
    job.write_job(written, [Demonstration((*SHORT, Message(role="assistant", content="yes")))])
    checkpoint = written.folder / ("checkpoint-x" if name == "without-a-number" else "checkpoint-1")
    checkpoint.mkdir()
    if name.startswith("pickled-o"):
        shutil.copy(stranger / WEIGHTS, checkpoint)
    CHECKPOINTS.get(name, CHECKPOINTS["empty"])(checkpoint)
    models.mark_complete(checkpoint)
    assert train([str(written.folder)]) in (1, 2)
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1, printed
    assert not Path("PWNED").exists() and not written.out.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", "not a lexicon"),
        (DEEP, "not a lexicon"),
        ('{"qualities": {"a": 3}, "negations": [], "words": []}', "not a lexicon"),
        ('{"qualities": {}, "negations": 3, "words": []}', "not a lexicon"),
        ("\xff", "not a lexicon"),
        (" " * 5_000_000, "larger than 4 MB"),
    ],
    ids=["list", "deep", "quality-number", "negations-number", "not-utf-8", "large"],
)
def test_a_lexicon_of_another_shape_is_a_sentence(content: str, expected: str, stranger: Path) -> None:
    (stranger / "lexicon.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=expected) as told:
        Lexicon.read(stranger)
    assert str(stranger) in str(told.value)


@pytest.mark.parametrize("content", ["[]", "3", DEEP, "{}", '{"weights": 3}', '{"weights": null, "steps": "x"}'])
def test_the_record_of_a_training_that_is_not_one_is_no_training(content: str, stranger: Path) -> None:
    (stranger / "training.json").write_text(content)
    (stranger / "key").write_text("key")
    assert job.finished(stranger, "key") is None
