"""Does DPO beat SFT in the quickstart, over three seeds of everything that trains and samples?

    python benchmarks/quickstart_seeds.py [--seeds 0 1 2] [--out runs]

Runs pipelines/quickstart.yaml once for each seed (run folder OUT/quickstart-seed-N) and compares the gold score of
`dpo` and `sft` on the same held-out prompts: the difference on each prompt is averaged over the seeds, and the
interval is a bootstrap over prompts. The quickstart's settings were chosen on validation prompts; nothing is chosen
here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from rlaif.config import MeasureStage, TrainStage, read_pipeline
from rlaif.judges.gold import gold
from rlaif.measure import resolved
from rlaif.pipeline.folder import STORE, RunFolder
from rlaif.pipeline.inputs import Inputs
from rlaif.pipeline.progress import Lines, Silent
from rlaif.pipeline.run import Run
from rlaif.statistics import mean_interval
from rlaif.store import CallStore

MODELS = ("base", "sft", "dpo")


def seeded(seed: int) -> list[str]:
    """Overrides that give sampling and both trainers the seed."""
    return [f"seed={seed}", f"stages.sft.train.sft.seed={seed}", f"stages.dpo.train.dpo.seed={seed}"]


async def gold_of_one_run(seed: int, out: Path, split: str) -> dict[str, list[float]]:
    """Each model's gold score on each measured prompt, read back from the calls of a finished run."""
    from rich.console import Console

    pipeline = read_pipeline("pipelines/quickstart.yaml", [*seeded(seed), f"stages.measure.measure.split={split}"])
    inputs = Inputs(pipeline)
    folder = RunFolder.create(out / f"quickstart-seed-{seed}", pipeline.name)
    await Run(pipeline, inputs, folder, CallStore(STORE), Lines(Console())).execute()

    again = Run(pipeline, inputs, RunFolder.create(folder.path, pipeline.name), CallStore(STORE), Silent())
    step = next(s for s in pipeline.steps if isinstance(s.stage, MeasureStage))
    stage = step.stage
    assert isinstance(stage, MeasureStage)
    for trained in pipeline.steps:
        if isinstance(trained.stage, TrainStage):
            again.use_trained(trained.stage)
    prompts = inputs.prompts[step.name]
    scores: dict[str, list[float]] = {}
    for name in MODELS:
        sampling = resolved(stage.sampling, again.settings[name], seed)
        completions = [(await again.scheduler.sample(name, p.messages, sampling))[0].text for p in prompts]
        scores[name] = [gold(p.text, text).total for p, text in zip(prompts, completions, strict=True)]
    await again.close()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument(
        "--split", choices=["held-out", "validation"], default="held-out", help="validation: to choose settings"
    )
    arguments = parser.parse_args()
    by_seed = [asyncio.run(gold_of_one_run(seed, arguments.out, arguments.split)) for seed in arguments.seeds]
    report: dict[str, object] = {"seeds": arguments.seeds, "split": arguments.split, "prompts": len(by_seed[0]["sft"])}
    for better, worse in (("sft", "base"), ("dpo", "sft")):
        differences = [[b - a for a, b in zip(run[worse], run[better], strict=True)] for run in by_seed]
        means = [sum(one) / len(one) for one in differences]
        by_prompt = [sum(column) / len(column) for column in zip(*differences, strict=True)]
        interval = mean_interval(by_prompt)
        assert interval is not None
        report[f"{better} - {worse}"] = interval.as_dict() | {"by_seed": [round(mean, 4) for mean in means]}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
