"""Every loss of `dpo` against the SFT model that it starts from, by gold on held-out prompts, over several seeds.

    python benchmarks/dpo_family.py [--seeds 0 1 2] [--take 800] [--out runs]

Runs the quickstart with one DPO training for each loss on the same preferences, and prints for each the difference in
gold from the SFT model, averaged over the seeds, with its interval over prompts, and the words of its completions.
Learning rate, epochs and batches are the quickstart's, which were chosen for `sigmoid`; the beta of the other losses is
scaled as their formulas ask. Nothing is chosen by these figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import yaml
from seeds import finished, interval, measured

QUICKSTART = Path(__file__).parents[1] / "pipelines" / "quickstart.yaml"
VARIANTS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "smoothed": {"label_smoothing": 0.1},
    "robust": {"loss": "robust", "label_smoothing": 0.1},
    "ipo": {"loss": "ipo", "beta": 0.1},
    "sigmoid-norm": {"loss": "sigmoid_norm", "beta": 5},
    "simpo": {"loss": "simpo", "beta": 2, "gamma_beta_ratio": 0.5},
    "sft-term": {"sft_weight": 0.1},
    "ld": {"ld_alpha": 0.5},
}


def pipeline(folder: Path, take: int) -> Path:
    """The quickstart with a training for each variant, and a measure of all of them."""
    read: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    *before, measure = read["stages"]
    (place,) = (i for i, stage in enumerate(before) if "dpo" in stage.get("train", {}))
    common = before.pop(place)["train"]["dpo"]
    before += [{"train": {"dpo": common | {"name": name} | changed}} for name, changed in VARIANTS.items()]
    asked = {"models": ["sft", *VARIANTS], "baseline": "sft", "take": take, "judge": "gold"}
    asked["sampling"] = measure["measure"]["sampling"]
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "dpo-family.yaml"
    written.write_text(
        yaml.safe_dump(read | {"name": "dpo-family", "stages": [*before, {"measure": asked}]}, sort_keys=False)
    )
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--take", type=int, default=800, help="held-out prompts")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args()
    path = str(pipeline(given.out, given.take))

    async def one(seed: int) -> dict[str, list[tuple[Any, int]]]:
        run = await finished(path, seed, given.out)
        try:
            return await measured(run)
        finally:
            await run.close()

    runs = [asyncio.run(one(seed)) for seed in given.seeds]
    for name in ("sft", *VARIANTS):
        gold = interval([[truth.total for truth, _ in run[name]] for run in runs])
        words = interval([[float(words) for _, words in run[name]] for run in runs])
        line: dict[str, Any] = {"loss": name, "gold": gold["mean"], "words": words["mean"]}
        if name != "sft":
            columns = [
                [own[0].total - base[0].total for base, own in zip(run["sft"], run[name], strict=True)] for run in runs
            ]
            line["gold minus sft's"] = interval(columns)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
