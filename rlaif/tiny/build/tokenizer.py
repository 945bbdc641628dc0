"""One byte-level BPE for all embedded models: every word of the world is one token, and no text is unknown.

Knows words, not tasks. The chat marks are in the vocabulary from the start, so that a model can be tuned to a chat
format without growing, but the base never meets them before it is tuned.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, END, SYSTEM, USER, ASSISTANT)
VOCABULARY = 2048  # an upper bound: training stops by itself once every word is one token


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of a text, marks read as marks, with nothing added around it."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def build_tokenizer(words: Sequence[str], seed: int = 0) -> PreTrainedTokenizerFast:
    """Learn merges from evenly mixed words, so that a rare word becomes one token as surely as a frequent one."""
    rng = random.Random(f"tokenizer {seed}")
    known = sorted(set(words))
    lines = ("".join(f" {word}" for word in rng.sample(known, min(20, len(known)))) for _ in range(4000))
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=list(SPECIAL), show_progress=False
    )
    model.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        padding_side="left",  # what generation needs; the training here pads on the right by itself
    )
