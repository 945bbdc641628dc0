"""How fast, and in how much memory, one GPU trains models of several sizes, whole and by LoRA.

    python benchmarks/gpu/training.py [--sizes 0.5B 1.5B 7B] [--methods sft dpo] [--steps 12]

The weights are random, in the shapes of Qwen2.5 0.5B and 1.5B and of Mistral 7B, with the embedded world's tokenizer;
rows are as long as `max_length`. Each training is a job of `rlaif train`, in a process of its own, so that its peak
memory is its own. Of its `metrics.jsonl` the median step is taken, without the first two. Printed, a JSON line for
each: tokens a second (prompts included), the share of the GPU's dense bfloat16 peak that 6 FLOP a parameter and token
would be, 8 where activations are recomputed (MFU: Chowdhery et al. 2022, arXiv 2204.02311, appendix B), and peak memory
as torch counts it. `--sizes tiny` runs on a CPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, Qwen2Config

from rlaif.config import TRAINERS
from rlaif.engines.identity import weights_digest
from rlaif.records import Message
from rlaif.resources import find, read_text
from rlaif.train import job
from rlaif.train.examples import Demonstration, PreferencePair
from rlaif.train.job import Job

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16 FLOP a second, of the data sheets
SHAPES: dict[str, Any] = {
    "tiny": (Qwen2Config, {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                           "num_attention_heads": 2, "num_key_value_heads": 2}),
    "0.5B": (Qwen2Config, {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                           "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936}),
    "1.5B": (Qwen2Config, {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                           "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936}),
    "7B": (MistralConfig, {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}),
}  # fmt: skip
# Rows at once and tokens of a row; the whole 7B needs `weights: bfloat16`, for float32 with AdamW takes 116 GB.
TRAININGS: dict[str, dict[str, Any]] = {
    "whole": {"batch_size": 4},
    "LoRA": {"batch_size": 4, "lora": {"r": 16}},
}
MEASURED = """\
import json, sys, torch
from rlaif.train.__main__ import main
code = main([sys.argv[1], "--json"])
peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
print(json.dumps({"peak": peak, "code": code}))
"""


def random_model(size: str, folder: Path) -> Path:
    """A model of that shape with random weights, whose tokenizer is the embedded world's."""
    tokenizer = AutoTokenizer.from_pretrained(find("tiny/base"))
    kind, shape = SHAPES[size]
    config = kind(**{"vocab_size": len(tokenizer)} | shape, pad_token_id=tokenizer.pad_token_id,
                  eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
                  max_position_embeddings=4096)  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.chat_template = read_text(find("prompts/chat/tiny.jinja"))
    tokenizer.save_pretrained(folder)
    return folder


def rows(method: str, count: int, words: int) -> list[Any]:
    """Rows of about so many tokens: each of these words is one."""
    talks = [
        (Message(role="user", content=f"what is {n} ?"), "it is " + "one two " * (words // 2)) for n in range(count)
    ]
    if method == "sft":
        return [Demonstration((asked, Message(role="assistant", content=told))) for asked, told in talks]
    return [PreferencePair((asked,), told, told + "no") for asked, told in talks]


def trained(method: str, base: Path, folder: Path, steps: int, length: int, changed: dict[str, Any]) -> dict[str, Any]:
    """The figures of one training in a process of its own; the error, where it ended with one."""
    values = {"base": "base", "name": "out", "max_length": length, "max_steps": steps, "checkpoint_steps": 10**6}
    settings = TRAINERS[method].model_validate(values | changed)
    out = folder / "out"
    made = Job(settings, base, out, f"benchmark {weights_digest(base)}")
    job.write_job(made, rows(method, settings.batch_size * steps, length - 60))
    ran = subprocess.run([sys.executable, "-c", MEASURED, str(made.folder)], capture_output=True, text=True)
    told = json.loads(ran.stdout.splitlines()[-1]) if ran.stdout.strip() else {"code": ran.returncode}
    if told["code"]:
        return {"error": ran.stderr.strip().splitlines()[-1][:200]}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seconds = [after["time"] - before["time"] for before, after in pairwise(lines)][1:]
    tokens = [after["tokens"] - before["tokens"] for before, after in pairwise(lines)][1:]
    return {"tokens_per_second": statistics.median(map(float.__truediv__, map(float, tokens), seconds)),
            "step_seconds": statistics.median(seconds), "peak_gb": told["peak"] / 1e9}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.5B", "1.5B", "7B"], choices=SHAPES)
    parser.add_argument("--methods", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--length", type=int, default=1024)
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = next((flops for known, flops in PEAK.items() if known in name), None)
    print(json.dumps({"device": name, **job.versions("torch", "transformers", "trl", "peft")}), flush=True)
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            base = random_model(size, Path(folder) / "base")
            parameters = sum(
                p.numel() for p in AutoModelForCausalLM.from_pretrained(base, device_map="meta").parameters()
            )
            for method in given.methods:
                for how, changed in TRAININGS.items():
                    whole = {"weights": "bfloat16", "dtype": "bfloat16"} if size == "7B" and how == "whole" else {}
                    with tempfile.TemporaryDirectory() as out:
                        found = trained(method, base, Path(out), given.steps, given.length, changed | whole)
                    if peak is not None and "error" not in found:
                        flop = 8 if parameters >= 100_000_000 else 6
                        found["mfu"] = flop * parameters * found["tokens_per_second"] / peak
                    print(json.dumps({"size": size, "method": method, "how": how, **found}), flush=True)


if __name__ == "__main__":
    main()
