"""Is a trained model better than the one before it, over several seeds of everything that trains and samples?

    python benchmarks/seeds.py pipelines/rlhf.yaml [--seeds 0 1 2] [--out runs] [--split validation]

Runs the pipeline once for each seed (run folder OUT/NAME-seed-N), on the embedded models, and reads the measured
completions back from the call store. For each two models of the measure that follow one another, the difference in gold
score on each prompt is averaged over the seeds, and the interval is a bootstrap over prompts. Shares are pooled over
the seeds, their intervals over prompts likewise. Nothing is chosen here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config import MeasureStage, TrainStage, read_pipeline
from rlaif.engines.open import trained_spec
from rlaif.measures.collecting import Setting, best_of
from rlaif.pipeline.folder import STORE
from rlaif.pipeline.progress import Lines
from rlaif.pipeline.run import Run, session_of
from rlaif.pipeline.stages.measure import Measuring
from rlaif.pipeline.stages.train import Train
from rlaif.pipeline.start import open_run
from rlaif.records import Row
from rlaif.statistics import mean_interval
from rlaif.store import CallStore
from rlaif.tiny.gold import gold

SHARES = {  # of the prompts of a kind, how many completions are so
    "harmful complied with": ("harmful", lambda truth: truth.complied),
    "harmful refused": ("harmful", lambda truth: truth.refused),
    "look-alikes answered": ("look-alike", lambda truth: truth.complied),
}


class Finished:
    """A run that has come to its end, whose models can be asked again: what was measured comes from the call store."""

    def __init__(self, ran: Run) -> None:
        self.pipeline, self.stages, self.folder, self._made = ran.pipeline, ran.stages, ran.folder, ran.work.made
        self.session = session_of(self.pipeline, CallStore(STORE))
        for stage in self.stages.values():
            if isinstance(stage, Train):
                spec = trained_spec(
                    self.folder.model(stage.trained),
                    self.session.specs[stage.settings.trainer.base],
                    scores=stage.trainer.scores,
                )
                self.session.add(stage.trained, spec, parent=stage.settings.trainer.base)
        measuring = next(stage for stage in self.stages.values() if isinstance(stage, Measuring))
        self.stage, self.prompts = measuring.settings, list(measuring.prompts)
        asking = self.session.asking(measuring.name)
        self.setting = Setting(self.stage, self.prompts, asking, self.session.engines, self.session.parents)

    @property
    def report(self) -> dict[str, Any]:
        """The figures of its measure."""
        report: dict[str, Any] = json.loads((self.folder.path / "report" / "summary.json").read_text())
        return report

    def rows(self, stage: str) -> Iterable[Row]:
        """The rows that a stage made."""
        rows = self._made[stage].rows
        assert rows is not None, f"{stage} makes no rows"
        return rows

    async def completions(self, name: str, n: int = 1) -> list[list[str]]:
        """Of each measured prompt, the model's n completions, sampled as the measure samples."""
        return [[c.text for c in await self.setting.several(name, prompt, n)] for prompt in self.prompts]

    async def close(self) -> None:
        await self.session.close()


async def finished(path: str, seed: int, out: Path, overrides: Sequence[str] = ()) -> Finished:
    """Run a pipeline with that seed for sampling and for every trainer, into OUT/NAME-seed-N."""
    from rich.console import Console

    seeds = [
        f"stages.{step.name}.train.{step.stage.method}.seed={seed}"
        for step in read_pipeline(path).steps
        if isinstance(step.stage, TrainStage)
    ]
    pipeline = read_pipeline(path, [f"seed={seed}", *seeds, *overrides])
    run = open_run(pipeline, out / f"{pipeline.name}-seed-{seed}", Lines(Console()))
    if (state := await run.execute()) != "done":
        raise SystemExit(f"the run in {run.folder.path} ended {state}: `rlaif status {run.folder.path}` says why")
    return Finished(run)


def measuring(path: str, **settings: Any) -> list[str]:
    """Overrides of the measure's settings."""
    step = next(step for step in read_pipeline(path).steps if isinstance(step.stage, MeasureStage))
    return [f"stages.{step.name}.measure.{key}={value}" for key, value in settings.items()]


async def measured(run: Finished) -> dict[str, list[tuple[Any, int]]]:
    """Of each measured model, gold's judgement and the number of words of its completion of each prompt."""
    found: dict[str, list[tuple[Any, int]]] = {}
    for name in run.stage.models:
        texts = await run.completions(name)
        found[name] = [
            (gold(prompt.text, text), len(text.split())) for prompt, (text,) in zip(run.prompts, texts, strict=True)
        ]
    return found


async def measured_best(run: Finished) -> list[float]:
    """Gold of what best-of-n picked for each prompt."""
    assert run.stage.best_of is not None and run.setting.reward is not None
    pick = await best_of(run.setting, run.setting.reward)
    return [gold(prompt.text, (await pick(prompt)).text).total for prompt in run.prompts]


class Line(NamedTuple):
    """One line of a table. `reached` is None where nothing was asked; `over` is what the figure was taken over."""

    what: str
    asked: str
    figure: str
    reached: bool | None
    over: str


def difference(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def interval(columns: list[list[float]]) -> dict[str, Any]:
    """The mean over seeds and prompts, its interval over prompts, and the mean of each seed; one column for a seed."""
    by_prompt = [sum(row) / len(row) for row in zip(*columns, strict=True)]
    found = mean_interval(by_prompt)
    assert found is not None
    return found.as_dict() | {"by_seed": [round(sum(column) / len(column), 4) for column in columns]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", nargs="?", default="pipelines/quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument(
        "--split", choices=["held-out", "validation"], default="held-out", help="validation: to choose settings"
    )
    given = parser.parse_args()

    async def one(seed: int) -> dict[str, list[tuple[Any, int]]]:
        run = await finished(given.pipeline, seed, given.out, measuring(given.pipeline, split=given.split))
        try:
            return await measured(run)
        finally:
            await run.close()

    runs = [asyncio.run(one(seed)) for seed in given.seeds]
    models = list(runs[0])
    report: dict[str, Any] = {"pipeline": given.pipeline, "seeds": given.seeds, "split": given.split}
    report["prompts"] = len(runs[0][models[0]])
    for before, after in pairwise(models):
        report[f"gold: {after} - {before}"] = interval(
            [[b[0].total - a[0].total for a, b in zip(run[before], run[after], strict=True)] for run in runs]
        )
    for model in models:
        report[f"{model}: gold"] = interval([[truth.total for truth, _ in run[model]] for run in runs])
        report[f"{model}: words"] = interval([[float(words) for _, words in run[model]] for run in runs])
        for name, (kind, is_so) in SHARES.items():
            report[f"{model}: {name}"] = interval(
                [[float(is_so(truth)) for truth, _ in run[model] if truth.kind == kind] for run in runs]
            )
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
