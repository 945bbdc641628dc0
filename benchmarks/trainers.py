"""Steps of our trainers against a bare TRL script: the same model, token ids, batches and settings.

    python benchmarks/trainers.py [--rounds 5] [--steps 30] [--pairs 256] [--methods dpo sft]

Each round trains by TRL alone and by ours, in turn first, so that both meet the machine as it is then, and takes the
median CPU seconds of a step without the first. Printed is the ratio TRL / ours of each round and its median: above 1,
ours is faster. The model is the embedded base (a Llama of a million parameters) in float32 on one thread, so that what
surrounds the model weighs as much as it ever will.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from rlaif.config import TRAINERS
from rlaif.records import Message
from rlaif.resources import find
from rlaif.train import job, trl
from rlaif.train.examples import Demonstration, PreferencePair
from rlaif.train.job import Job
from rlaif.train.trl.settings import recompute

torch.set_num_threads(1)
BATCH, RATE = 16, 1e-4


def make_base(folder: Path) -> Path:
    """The embedded base model with a chat template."""
    shutil.copytree(find("tiny/base"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = find("prompts/chat/tiny.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    return folder


def make_pairs(count: int) -> list[PreferencePair]:
    """Pairs of two answers to a prompt of the embedded demonstrations, the second that of another prompt."""
    with find("tiny/demonstrations.jsonl").open(encoding="utf-8") as file:
        talks = [json.loads(line)["messages"] for line in itertools.islice(file, count + 1)]
    rows = itertools.pairwise(talks)
    return [
        PreferencePair(
            tuple(Message(**turn) for turn in talk[:-1]), talk[-1]["content"], other[-1]["content"] + " no ."
        )
        for talk, other in rows
    ]


def settings_of(method: str, **changed: Any) -> Any:
    values = {"base": "base", "name": method, "batch_size": BATCH, "learning_rate": RATE, "checkpoint_steps": 10**6}
    return TRAINERS[method].model_validate(values | changed)


class Timed(transformers.TrainerCallback):
    """CPU seconds at each step's end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.process_time())

    @property
    def step(self) -> float:
        """The median step without the first, in CPU seconds."""
        return median(after - before for before, after in itertools.pairwise(self.ends))


def by_ours(method: str, base: Path, examples: list[Any], out: Path, *, shared: Path | None = None,
            **changed: Any) -> tuple[Timed, float]:  # fmt: skip
    """The steps of our trainer, and its CPU seconds from the trainer's making to the last step."""
    timed, began = Timed(), [0.0]
    make = trl._trainer

    def made(*arguments: Any, **named: Any) -> Any:
        began[0] = time.process_time()
        trainer = make(*arguments, **named)
        trainer.add_callback(timed)
        return trainer

    training = Job(settings_of(method, **changed), base, out, "benchmark", references=shared)
    job.write_job(training, examples)
    trl._trainer = made
    try:
        job.train(training.folder, lambda _: None)
    finally:
        trl._trainer = make
    return timed, timed.ends[-1] - began[0]


def by_trl(kind: type, config: Any, base: Path, rows: dict[str, list[Any]], **named: Any) -> tuple[Timed, float]:
    """The steps of a bare TRL script on token ids, and its CPU seconds from the trainer's making to the last step."""

    class Prepared(kind):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    timed = Timed()
    with trl.quietly():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        began = time.process_time()
        trainer = Prepared(model=model, args=config, processing_class=AutoTokenizer.from_pretrained(base),
                           train_dataset=datasets.Dataset.from_dict(rows), callbacks=[timed], **named)  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return timed, timed.ends[-1] - began


def fields(out: Path, **own: Any) -> dict[str, Any]:
    """What a user of TRL sets for such a model on a CPU."""
    return {"output_dir": str(out), "per_device_train_batch_size": BATCH, "learning_rate": RATE, "use_cpu": True,
            "bf16": False, "save_strategy": "no", "report_to": "none", "logging_steps": 1,
            "disable_tqdm": True} | recompute(False) | own  # fmt: skip


def token_rows(method: str, base: Path, examples: list[Any]) -> dict[str, list[Any]]:
    """The token ids that our trainer makes of the examples."""
    from rlaif.train import pairs, sft
    from rlaif.train.tokens import trainable_chat

    chat = trainable_chat(AutoTokenizer.from_pretrained(base))
    if method == "sft":
        return sft.tokenize(chat, examples, 1024)[0]
    columns = pairs.tokenize(chat, examples, 1024)[0]
    return {name: columns[name] for name in pairs.IDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--methods", nargs="+", choices=("dpo", "sft"), default=("dpo", "sft"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base, pairs = make_base(work / "base"), make_pairs(asked.pairs)
        epochs = asked.steps * BATCH / len(pairs)
        told = [Demonstration((*pair.prompt, Message(role="assistant", content=pair.chosen))) for pair in pairs]
        for method in asked.methods:
            examples: list[Any] = told if method == "sft" else pairs
            rows = token_rows(method, base, examples)
            bare: Callable[[Path], Any] = {
                "sft": lambda out: (SFTTrainer, SFTConfig(**fields(out, num_train_epochs=epochs))),
                "dpo": lambda out: (
                    DPOTrainer, DPOConfig(**fields(out, num_train_epochs=epochs, precompute_ref_log_probs=True))
                ),
            }[method]  # fmt: skip
            ratios = []
            for number in range(asked.rounds):
                found = {}
                for who in ("TRL", "ours") if number % 2 else ("ours", "TRL"):  # the second has more to clean up
                    gc.collect()
                    out = work / f"{method}-{number}-{who}"
                    found[who], _ = (
                        by_trl(*bare(out), base, rows)
                        if who == "TRL"
                        else by_ours(method, base, examples, out, epochs=epochs)
                    )
                theirs, ours = found["TRL"].step, found["ours"].step
                ratios.append(theirs / ours)
                print(f"{method}: TRL {theirs * 1000:.1f} ms, ours {ours * 1000:.1f} ms, ratio {ratios[-1]:.3f}",
                      flush=True)  # fmt: skip
            print(f"{method}: median ratio {median(ratios):.3f}")


if __name__ == "__main__":
    main()
