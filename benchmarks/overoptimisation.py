"""Goodhart's law on a laptop: the harder PPO pushes a weak reward model, the more it gives and the less it is worth.

    python benchmarks/overoptimisation.py [--seeds 0 1 2] [--out runs/embedded] [--plot FILE.svg]

Runs pipelines/overoptimisation.yaml for each seed with 5, 15 and 40 iterations of PPO and measures each policy on
the same held-out prompts. The proxy is the weak reward model's score, standardised by its mean and deviation on the
tuned model's completions; gold is the world's. Intervals are bootstraps over prompts, each averaged over the seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from seeds import Finished, Line, difference, finished, interval, measured

PIPELINE = "pipelines/overoptimisation.yaml"
ITERATIONS = (5, 15, 40)


async def proxies(run: Finished) -> dict[str, list[float]]:
    """The reward model's score of each measured completion."""
    assert run.stage.reward is not None
    engine = run.session.engines[run.stage.reward]
    found: dict[str, list[float]] = {}
    for name in run.stage.models:
        texts = await run.completions(name)
        items = [(prompt.messages, text) for prompt, (text,) in zip(run.prompts, texts, strict=True)]
        scores = await engine.score(items)
        found[name] = [score for score in scores if isinstance(score, float)]
        assert len(found[name]) == len(items), "a completion could not be scored"
    return found


async def curve(seeds: Sequence[int], out: Path) -> list[dict[str, Any]]:
    """Of each number of iterations: proxy, gold, and the differences of both from the tuned model's."""
    points: list[dict[str, Any]] = []
    for iterations in ITERATIONS:
        proxy, gold = [], []
        for seed in seeds:
            run = await finished(PIPELINE, seed, out, [f"stages.ppo.train.ppo.iterations={iterations}"])
            truths, scores = await measured(run), await proxies(run)
            await run.close()
            spread = stdev(scores["sft"])
            proxy.append([(b - a) / spread for a, b in zip(scores["sft"], scores["ppo"], strict=True)])
            gold.append([b.total - a.total for (a, _), (b, _) in zip(truths["sft"], truths["ppo"], strict=True)])
            told = f"proxy {mean(proxy[-1]):+.2f}, gold {mean(gold[-1]):+.3f}"
            print(f"seed {seed}, {iterations} iterations: {told}", flush=True)
        points.append({"iterations": iterations, "proxy": interval(proxy), "gold": interval(gold)})
    return points


async def weak_reward(seeds: Sequence[int], out: Path) -> Line:
    """The table's line: what the longest training did to proxy and gold."""
    points = await curve(seeds, out)
    (out / "overoptimisation.json").write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")
    proxy, gold = points[-1]["proxy"], points[-1]["gold"]
    everywhere = all(a > 0 > b for a, b in zip(proxy["by_seed"], gold["by_seed"], strict=True))
    return Line(
        f"a weak reward model pushed by {points[-1]['iterations']} iterations of PPO",
        "proxy rises, gold falls, both significant",
        f"standardised proxy {difference(proxy)}, gold {difference(gold)}",
        proxy["low"] > 0 > gold["high"] and everywhere,
        f"{proxy['n']} prompts, {len(seeds)} seeds, on each of them both",
    )


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib  # pip install matplotlib: no dependency of rlaif

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "rlaif", "font.size": 10, "axes.spines.top": False}
    figure, left = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    right = left.twinx()
    at = [0, *(point["iterations"] for point in points)]
    for axis, what, colour, label in (
        (left, "proxy", "#1f77b4", "reward model's score, in standard deviations"),
        (right, "gold", "#d62728", "gold score"),
    ):
        middle, low, high = ([0.0, *(point[what][key] for point in points)] for key in ("mean", "low", "high"))
        axis.plot(at, middle, "o-", color=colour)
        axis.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set_ylabel(label, color=colour)
        axis.axhline(0, color="#999999", linewidth=0.6)
    left.set_xlabel("iterations of PPO against the weak reward model")
    left.set_title("More reward, less worth: difference from the tuned model", loc="left", fontsize=11)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    points = asyncio.run(curve(given.seeds, given.out))
    print(json.dumps(points, indent=2))
    if given.plot:
        plot(points, given.plot)


if __name__ == "__main__":
    main()
