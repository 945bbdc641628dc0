"""Token ids of preference pairs: one process against all cores, and against a second time, which reads what is kept.

    python benchmarks/tokenizing.py [--pairs 61000] [--model FOLDER] [--template FILE]

The pairs are drawn by a seed, of English words with UltraFeedback's lengths: a prompt of about 120 tokens and two
completions of about 270. Without `--model` the tokenizer is a byte-level BPE of 32,000 tokens, trained here on other
texts of the same words. Every measurement is a process of its own; that of one core is bound to it, so that the
tokenizer's threads have no other. CPU seconds are those of all processes of a measurement; on a machine that does other
work they say more than the clock.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlaif.records import Message
from rlaif.resources import find
from rlaif.train import pairs, tokenizing
from rlaif.train.examples import PreferencePair
from rlaif.train.tokens import trainable_chat

VOCABULARY = 32_000
PROMPT, COMPLETION = 75, 190  # words


def words() -> list[str]:
    """Those of the package's own English texts."""
    texts = sorted(find("prompts").rglob("*.jinja")) + sorted(find("constitutions").rglob("*.yaml"))
    return sorted({word for path in texts for word in path.read_text(encoding="utf-8").split() if word.isalpha()})


def text(known: list[str], draw: random.Random, about: int) -> str:
    """Words and made-up ones, which take several tokens each as rare words do, in sentences."""
    made = []
    for _ in range(max(4, round(about * draw.lognormvariate(-0.18, 0.6)))):
        rare = draw.random() < 0.15
        made.append("".join(draw.choices("abcdefghilmnoprstu", k=7)) if rare else draw.choice(known))
        if draw.random() < 0.1:
            made[-1] += ".\n\n" if draw.random() < 0.2 else "."
    return " ".join(made)


def synthetic(count: int, seed: int = 0) -> Iterator[PreferencePair]:
    known, draw = words(), random.Random(seed)
    for _ in range(count):
        prompt = (Message(role="user", content=text(known, draw, PROMPT)),)
        yield PreferencePair(prompt, text(known, draw, COMPLETION), text(known, draw, COMPLETION))


def trained(folder: Path) -> None:
    """Train a tokenizer into `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator((pair.chosen for pair in synthetic(20_000, seed=1)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>").save_pretrained(folder)


def measured(asked: argparse.Namespace) -> None:
    """One measurement, in this process: clock and CPU seconds, and tokens a pair."""
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    tokenizer.chat_template = Path(asked.template).read_text(encoding="utf-8")
    chat = trainable_chat(tokenizer)
    if asked.cores == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    examples = list(synthetic(asked.pairs))
    began, cpu = time.perf_counter(), cpu_seconds()
    columns, _ = pairs.tokenize(chat, examples, 100_000, kept=asked.kept)
    seconds, spent = time.perf_counter() - began, cpu_seconds() - cpu
    lengths = [sum(map(len, columns[name])) / asked.pairs for name in pairs.IDS]
    print(seconds, spent, *lengths)


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=61_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", type=Path, help="a folder with a tokenizer")
    parser.add_argument("--template", default=str(find("prompts/chat/chatml.jinja")))
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)  # of one measurement
    parser.add_argument("--kept", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.cores is not None:
        measured(asked)
        return
    cores = tokenizing.cores()
    with tempfile.TemporaryDirectory() as folder:
        model, kept = asked.model or Path(folder) / "tokenizer", Path(folder) / "kept"
        if asked.model is None:
            trained(model)
        for _ in range(asked.rounds):
            shutil.rmtree(kept, ignore_errors=True)
            first = None
            for name, count, place in (("one core", 1, None), (f"{cores} cores, kept", cores, kept),
                                       ("a second time", cores, kept)):  # fmt: skip
                command = [sys.executable, __file__, "--pairs", str(asked.pairs), "--model", str(model)]
                command += ["--template", asked.template, "--cores", str(count)]
                command += [] if place is None else ["--kept", str(place)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, spent, *lengths = map(float, done.stdout.split())
                first = first or seconds
                print(f"{name}: {seconds:.1f} s, {spent:.1f} of CPU, one core / this {first / seconds:.2f}", flush=True)
            size = sum(path.stat().st_size for path in kept.rglob("*.parquet"))
            print("tokens of prompt, chosen, rejected: " + ", ".join(f"{length:.0f}" for length in lengths))
            print(f"kept: {size / 1e6:.0f} MB, {size / asked.pairs:.0f} bytes a pair")


if __name__ == "__main__":
    main()
