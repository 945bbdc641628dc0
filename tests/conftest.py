"""Fixtures every test can use: one torch thread, no network hubs, and a small random model made on the spot."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

MARKED = (Path(__file__).parent.parent / "prompts/chat/tiny.jinja").read_text(encoding="utf-8")


SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def make_random_model(
    folder: Path,
    *,
    seed: int = 0,
    template: str | None = MARKED,
    special: Sequence[str] = SPECIAL,
    config: Any = None,
) -> Path:
    """A model of a few thousand random weights, a Llama without `config`, with a byte-level tokenizer.

    It has a marked chat template, and the tokens of `special` before those of the bytes.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = {"pad_token": "<|pad|>", "eos_token": "<|end|>", "bos_token": "<|begin|>"}
    named = {name: token for name, token in named.items() if token in special}
    others = [token for token in special if token not in named.values()]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=others, **named)
    if template is not None:
        fast.chat_template = template
    torch.manual_seed(seed)
    config = config or LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
        initializer_range=0.3,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("random") / "model")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


# The files that take longest, first: a file is one worker's, and the other would wait for one that begins last.
FIRST = ("test_quickstart.py", "test_faults.py", "test_train.py", "test_circle.py", "test_structured.py")
MANY = 8  # hostile attempts of one test, above which three of four are the lab's


@pytest.hookimpl(tryfirst=True)  # before those that are marked are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Three quarters of a large table of hostile attempts, chosen by their names, run in `make lab` alone.

    Such a table tries one guard in many ways: a quarter of it fails with the guard as the whole does. So do three
    quarters of the tests of the lean client that `client: sdk`, a transport below the same engine, repeats.
    """
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
    tables: dict[tuple[Path, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if "[sdk" in item.name and zlib.crc32(item.name.encode()) % 4:
            item.add_marker(pytest.mark.lab)
        if item.path.parent.name == "hostile":
            tables[item.path, getattr(item, "originalname", item.name)].append(item)
    for table in tables.values():
        for item in table if len(table) > MANY else ():
            if zlib.crc32(item.name.encode()) % 4:
                item.add_marker(pytest.mark.lab)
