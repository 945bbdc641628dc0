"""K-wise reward models against pairwise ones: sequences forwarded, time, and what is learnt.

    python benchmarks/kwise.py [--sizes 4 9] [--prompts 24] [--reps 3]
    python benchmarks/kwise.py --run runs/rlhf --data preference [--seeds 0 1 2]

The first trains one epoch on all pairs of K completions of each prompt, in as many steps both ways: in groups of a
prompt (`grouping: prompt`), and in as many pairs at a time. Both learn from the same pairs; they differ in how often a
completion is forwarded. The two alternate, and the ratio is of their medians.

The second trains on a data set of preferences of a run, at equal sequences forwarded: one epoch of pairs, and as
many epochs of groups as forward about as much, with either loss (`loss: pairs | plackett_luce`). It tells the accuracy
and the expected calibration error on the pairs of every fourth prompt, kept from training: of each seed, and of all
seeds together, with intervals over the prompts.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from rlaif.config import RMSettings
from rlaif.formats import read_preferences, read_prompts
from rlaif.resources import find
from rlaif.statistics import Interval, item_means, points_interval, soft_confidences
from rlaif.statistics.intervals import bootstrap_interval
from rlaif.train import job, rm
from rlaif.train.examples import PreferencePair, of_stated_preferences
from rlaif.train.job import Job
from rlaif.train.pair_evaluation import ScoredPair

AT_ONCE = 2  # prompts of a step
BINS = 10  # of confidences from 1/2 to 1


class Spent:
    """The sequences that a training forwards with a gradient, and the time from the first to the end of the steps.

    `validated` are its validation pairs, with scores whose differences are logits.
    """

    def __init__(self) -> None:
        self.sequences, self.began, self.cpu = 0, 0.0, 0.0
        self.wall, self.spent = 0.0, 0.0
        self.validated: list[ScoredPair] = []

    @contextmanager
    def counting(self) -> Iterator[None]:
        original, evaluated = PreTrainedModel.__call__, rm.evaluation

        def evaluate(pairs: Sequence[ScoredPair], scale: float) -> dict[str, Any]:
            self.validated += [
                pair._replace(chosen=scale * pair.chosen, rejected=scale * pair.rejected) for pair in pairs
            ]
            return evaluated(pairs, scale)

        def call(model: Any, *given: Any, **named: Any) -> Any:
            if torch.is_grad_enabled() and hasattr(model, "score"):
                if not self.sequences:
                    self.began, self.cpu = time.perf_counter(), time.process_time()
                self.sequences += len(named["input_ids"])
            return original(model, *given, **named)

        PreTrainedModel.__call__ = call  # type: ignore[method-assign]
        rm.evaluation = evaluate
        try:
            yield
        finally:
            PreTrainedModel.__call__ = original  # type: ignore[method-assign]
            rm.evaluation = evaluated

    def on_step(self, _: dict[str, float]) -> None:
        self.wall, self.spent = time.perf_counter() - self.began, time.process_time() - self.cpu


def trained(examples: Sequence[PreferencePair], base: Path, **settings: Any) -> tuple[dict[str, Any], Spent]:
    values: dict[str, Any] = {
        "base": "base",
        "name": "rm",
        "learning_rate": 1e-3,
        "checkpoint_steps": 10**6,
        "max_length": 256,
    }
    counter, folder = Spent(), Path(tempfile.mkdtemp())
    try:
        training = Job(RMSettings.model_validate(values | settings), base, folder / "rm", "benchmark")
        job.write_job(training, examples)
        with counter.counting():
            record = job.train(training.folder, counter.on_step)
    finally:
        shutil.rmtree(folder)
    return record, counter


def ranked(prompts: int, size: int) -> list[PreferencePair]:
    """All pairs of `size` completions of some 30 tokens of each prompt."""
    asked = [prompt.messages[0] for prompt in read_prompts(find("tiny/prompts.jsonl")).items[: prompts * (size + 1)]]
    made = []
    for number in range(prompts):
        texts = [f"{i} " + asked[prompts + number * size + i].content * 2 for i in range(size)]
        made += [PreferencePair((asked[number],), better, worse) for better, worse in combinations(texts, 2)]
    return made


def speed(sizes: Sequence[int], prompts: int, reps: int) -> None:
    base = find("tiny/annotator")
    print("| K | pairs | steps | sequences, pairs | groups | ratio | CPU s, pairs | groups | ratio | wall s | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for size in sizes:
        examples, pairs = ranked(prompts, size), math.comb(size, 2)
        ways = {
            "pair": {"grouping": "pair", "batch_size": AT_ONCE * pairs},
            "prompt": {"grouping": "prompt", "batch_size": AT_ONCE},
        }
        found: dict[str, list[Spent]] = {way: [] for way in ways}
        for _ in range(reps):
            for way, settings in ways.items():
                record, counter = trained(examples, base, normalize=False, **settings)
                found[way].append(counter)
                steps = record["steps"]
        (a, b), cpu, wall = (
            [found[way][0].sequences for way in ways],
            [median(one.spent for one in found[way]) for way in ways],
            [median(one.wall for one in found[way]) for way in ways],
        )
        print(
            f"| {size} | {len(examples)} | {steps} | {a} | {b} | {a / b:.2f} | {cpu[0]:.1f} | {cpu[1]:.1f} | "
            f"{cpu[0] / cpu[1]:.2f} | {wall[0]:.1f}, {wall[1]:.1f} | {wall[0] / wall[1]:.2f} |",
            flush=True,
        )


def effect(run: Path, name: str, seeds: Sequence[int]) -> None:
    files = sorted((run / "dataset" / name / "data").glob("*.parquet"))
    read = [pair for file in files for pair in of_stated_preferences(read_preferences(file).items)]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(pair.prompt for pair in read))}
    examples = [replace(pair, split="train" if numbers[pair.prompt] % 4 else "validation") for pair in read]
    train = [pair for pair in examples if pair.split == "train"]
    groups: dict[Any, set[str]] = {}
    for pair in train:
        groups.setdefault(pair.prompt, set()).update((pair.chosen, pair.rejected))
    ratio = 2 * len(train) / sum(map(len, groups.values()))
    per_prompt = len(train) / len(groups)
    print(f"{len(train)} training pairs of {len(groups)} prompts; a completion is in {ratio:.2f} pairs")
    grouped: dict[str, Any] = {"grouping": "prompt", "batch_size": max(1, round(32 / per_prompt))}
    ways: dict[str, dict[str, Any]] = {
        "pairs, one epoch": {"grouping": "pair", "batch_size": 32},
        "groups, one epoch": grouped,
        "groups, equal sequences": grouped | {"epochs": ratio},
        "groups, equal sequences, Plackett-Luce": grouped | {"epochs": ratio, "loss": "plackett_luce"},
    }
    for way, settings in ways.items():
        validated: list[ScoredPair] = []
        for seed in seeds:
            record, counter = trained(examples, find("tiny/annotator"), learning_rate=1.5e-3, seed=seed, **settings)
            found = record["evaluation"]["validation"]
            share, ece = found["accuracy"], found["calibration"]["ece"]["mean"]
            print(
                f"{way}, seed {seed}: {counter.sequences} sequences, {counter.spent:.0f} CPU s, accuracy "
                f"{share['mean']:.3f} [{share['low']:.3f}, {share['high']:.3f}], calibration error {ece:.3f}",
                flush=True,
            )
            validated += counter.validated
        accuracy, error = pooled(validated)
        print(f"{way}, all seeds: accuracy {_told(accuracy)}, calibration error {_told(error)}", flush=True)


def pooled(pairs: Sequence[ScoredPair]) -> tuple[Interval | None, Interval | None]:
    """Accuracy and expected calibration error on pairs whose score differences are logits, with intervals over prompts.

    The pairs of a prompt are not independent, in one seed or in several. The error has the bins of
    `statistics.calibration_of` and, as there, a pivotal interval.
    """
    accuracy = points_interval(item_means((pair.prompt, pair.points) for pair in pairs))
    confident, right, *_ = soft_confidences([_sigmoid(p.chosen - p.rejected) for p in pairs], [True] * len(pairs))
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(pair.prompt for pair in pairs))}
    gaps, counts = np.zeros((len(rows), BINS)), np.zeros(len(rows))
    for pair, confidence, correct in zip(pairs, confident, right, strict=True):
        bin_of = max(0, math.ceil(round((confidence - 0.5) * 2 * BINS, 9)) - 1)
        gaps[rows[pair.prompt], bin_of] += correct - confidence
        counts[rows[pair.prompt]] += 1
    error = bootstrap_interval([1] * len(rows), lambda drawn: np.abs(drawn @ gaps).sum(1) / (drawn @ counts))
    if error is not None:
        error = error._replace(low=max(0.0, 2 * error.mean - error.high), high=2 * error.mean - error.low)
    return accuracy, error


def _sigmoid(logit: float) -> float:
    return 0.5 + math.tanh(logit / 2) / 2


def _told(interval: Interval | None) -> str:
    return "unknown" if interval is None else f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 9])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", default="preference")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.run is None:
        speed(given.sizes, given.prompts, given.reps)
    else:
        effect(given.run, given.data, given.seeds)


if __name__ == "__main__":
    main()
