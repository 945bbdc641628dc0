"""DPO with a kept reference against a live one: a first training, and one more with another beta.

    python benchmarks/dpo_reference.py [--epochs 3] [--pairs 256] [--rounds 3]

Each round makes, one after the other in this process: a bare TRL script with a live reference (a second model, which
every step forwards); our first training, which computes and keeps the reference; and a second one with another beta,
which reads it. Measured are CPU seconds on one thread, from the trainer's making to the last step, so with all that the
reference costs; the rows that it forwarded are counted. Three epochs are Zephyr's (arXiv 2310.16944).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from trainers import by_ours, by_trl, fields, make_base, make_pairs, token_rows  # first: it sets one thread

# isort: split
import torch
from transformers import AutoModelForCausalLM, LlamaModel
from trl import DPOConfig, DPOTrainer


@contextmanager
def forwards_counted() -> Iterator[list[int]]:
    """The rows of each forward that keeps nothing for gradients."""
    rows: list[int] = []
    plain = LlamaModel.forward

    def counted(self: Any, input_ids: Any = None, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            rows.append(len(input_ids))
        return plain(self, input_ids, *arguments, **named)

    LlamaModel.forward = counted  # type: ignore[method-assign]
    try:
        yield rows
    finally:
        LlamaModel.forward = plain  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    ratios: dict[str, list[float]] = {"first": [], "another beta": []}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base, pairs = make_base(work / "base"), make_pairs(asked.pairs)
        rows = token_rows("dpo", base, pairs)
        for number in range(asked.rounds):
            config = DPOConfig(**fields(work / "trl", num_train_epochs=asked.epochs))
            with forwards_counted() as forwarded:
                reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
                _, live = by_trl(DPOTrainer, config, base, rows, ref_model=reference)
            print(f"live: {live:.2f} s, {sum(forwarded):,} rows forwarded by the reference")
            for name, beta in (("first", 0.1), ("another beta", 0.5)):
                with forwards_counted() as forwarded:
                    _, kept = by_ours("dpo", base, pairs, work / f"{number}-{beta}", shared=work / f"shared-{number}",
                                      epochs=asked.epochs, beta=beta)  # fmt: skip
                ratios[name].append(live / kept)
                print(f"{name}: {kept:.2f} s, {sum(forwarded):,} rows, live / kept {live / kept:.2f}", flush=True)
    for name, values in ratios.items():
        print(f"{name}: median ratio {median(values):.2f}")


if __name__ == "__main__":
    main()
