"""SFT packed against padded: tokens a second on the same rows, in one run.

    python benchmarks/packing.py [--rows 400] [--length 256] [--batch 8] [--hidden 128] [--repeats 3]

The rows are conversations of log-normal lengths, as those of chats are (median a fifth of `--length`), learnt by a
small random Llama on this machine's device. Padded, a batch holds `--batch` rows, drawn at random; packed, so many
sequences as have about as many tokens. Both train on every row once. Tokens are those of the rows, without padding;
seconds are of the steps alone, by the wall and by this process's processor time. Padded and packed take turns, and the
median of the repeats is told.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif.config import SFTSettings
from rlaif.train import packing, trl
from rlaif.train.tokens import Counts

VOCABULARY = 1000


class Speed(NamedTuple):
    """Tokens of the rows, in a second by the wall and by the processor."""

    wall: float
    processor: float


def lengths_of(rows: int, longest: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [min(longest, max(4, round(draw.lognormvariate(0, 0.8) * longest / 5))) for _ in range(rows)]


def columns_of(lengths: Sequence[int], seed: int = 0) -> dict[str, list[list[int]]]:
    """Random tokens, of which the second half of a row is learnt."""
    draw = random.Random(seed)
    ids = [[draw.randrange(2, VOCABULARY) for _ in range(length)] for length in lengths]
    return {"input_ids": ids, "labels": [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in ids]}


def tokenizer_of() -> PreTrainedTokenizerFast:
    vocabulary = {f"t{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="t2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t0", eos_token="t1")


def speed(columns: dict[str, Any], tokens: int, batch: int, length: int, hidden: int) -> Speed:
    """Train a new model on the columns once, and time the steps after the first, which warms up."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=4 * length, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    settings = SFTSettings(base="b", name="n", batch_size=batch, max_length=length, checkpoint_steps=10**6)
    marks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, trl.quietly():
        data = trl.TokenizedData(columns, {name: [] for name in columns}, Counts())
        trl.learn(
            settings, LlamaForCausalLM(config), tokenizer_of(), data, Path(folder),
            lambda _: marks.append((time.perf_counter(), time.process_time())), time.monotonic(),
        )  # fmt: skip
    timed = tokens * (len(marks) - 1) / len(marks)
    return Speed(timed / (marks[-1][0] - marks[0][0]), timed / (marks[-1][1] - marks[0][1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 400), ("length", 256), ("batch", 8), ("hidden", 128), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    lengths = lengths_of(given.rows, given.length)
    padded = columns_of(lengths)
    packed = packing.packed(padded, given.length)
    sequences = len(packed["input_ids"])
    # As many steps either way, so that a step has as many tokens of rows.
    per_step = max(1, round(given.batch * sequences / given.rows))
    tokens, speeds = sum(lengths), {"padded": list[Speed](), "packed": list[Speed]()}
    for _ in range(given.repeats):
        speeds["padded"].append(speed(padded, tokens, given.batch, given.length, given.hidden))
        speeds["packed"].append(speed(packed, tokens, per_step, given.length, given.hidden))
    filled = tokens / (sequences * given.length)
    print(f"{given.rows:,} rows of {tokens:,} tokens, median {statistics.median(lengths):.0f}, longest {max(lengths)}")
    print(f"packed into {sequences} sequences of {given.length}, {filled:.1%} full; {given.batch} rows or {per_step} "
          "sequences a step")  # fmt: skip
    for kind, measured in speeds.items():
        wall, processor = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{kind}: {wall:,.0f} tokens/s by the wall, {processor:,.0f} by the processor")
    ratios = [
        statistics.median(column) / statistics.median(other)
        for column, other in zip(zip(*speeds["packed"], strict=True), zip(*speeds["padded"], strict=True), strict=True)
    ]
    print(f"packed / padded: {ratios[0]:.2f} by the wall, {ratios[1]:.2f} by the processor")


if __name__ == "__main__":
    main()
