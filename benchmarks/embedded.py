"""The table of the embedded models: what they reach on held-out prompts, beside what was asked of them.

    python benchmarks/embedded.py [--seeds 0 1 2] [--out runs/embedded] [--write]

Measures the shipped annotator and policies, runs pipelines/quickstart.yaml, the same with gold preferences,
pipelines/rlhf.yaml and pipelines/overoptimisation.yaml once for each seed, and prints a table. `--write` puts the
table, with its date and seeds, into docs/tiny-world.md and the annotator's card. Nothing is chosen here, and nothing it
reads was used to choose anything. Run again after an interruption it goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import yaml
from overoptimisation import weak_reward
from seeds import Finished, finished, interval, measured, measuring
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlaif.build.__main__ import in_split
from rlaif.build.measuring import Annotator, choices, facts
from rlaif.build.policies import Policy
from rlaif.build.ratings import ASPECTS, Lessons
from rlaif.build.recipes import PRINCIPLE_TEMPLATES, RATE_TEMPLATE
from rlaif.config import PairStage
from rlaif.formats import preference_rows
from rlaif.generate.pairing import pair
from rlaif.judges.gold import gold
from rlaif.lexicon import Lexicon
from rlaif.records import Rating, Row
from rlaif.resources import find
from rlaif.statistics import mean_interval
from rlaif.templates import Template
from rlaif.world import FAMILIES, Question, questions

QUICKSTART, RLHF = "pipelines/quickstart.yaml", "pipelines/rlhf.yaml"
EACH = 150  # prompts in a figure of the annotator
BEST_OF = 16
# No word of these is in the annotator's lessons.
STRANGE = (
    "be eloquent .", "we like witty replies .", "a reply should be poetic .", "prefer the humorous one .",
    "replies must be persuasive .", "write as a lawyer would .", "sound confident .", "use vivid images .",
    "be original and bold .", "make it rhyme .", "we want empathy .", "show humility .", "is it well structured ?",
    "the reply should cite its sources .", "avoid jargon .", "never speculate .", "be patriotic .", "sound youthful .",
    "a formal register , please .", "think about the climate .",
)  # fmt: skip


class Line(NamedTuple):
    """One line of the table. `reached` is None where nothing was asked."""

    what: str
    asked: str
    figure: str
    reached: bool | None


# --- The shipped models ----------------------------------------------------------------------------------------------


def policy(folder: Path) -> Policy:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return Policy(model.eval(), AutoTokenizer.from_pretrained(folder), one_line=folder.name == "base")


def annotator_lines(held_out: Sequence[Question]) -> list[Line]:
    shipped = policy(find("tiny/annotator"))
    lessons = Lessons(held_out, Template.read(find(RATE_TEMPLATE)))
    templates = [Template.read(find(path)) for path in PRINCIPLE_TEMPLATES]
    policies = [policy(find(f"tiny/{name}")) for name in ("base", "weak", "strong")]
    f = Annotator(shipped.model, shipped.tokenizer, lessons, templates).measure(held_out, policies, EACH, seed=0)
    graded = [name for name in ASPECTS if name != "right"]
    by_family = {family: f[f"right, 1 at once: {family}"] for family in FAMILIES}
    four = {"right": mean(f[f"right, 4 at once: {family}"] for family in FAMILIES)}
    four |= {name: f[f"{name}, 4 at once"] for name in graded}
    lexicon = Lexicon.read(find("tiny/annotator"))
    assert lexicon is not None
    refused = mean(lexicon.problem(text) is not None for text in STRANGE)
    return [
        _least("tone, length, safety rated exactly", 0.95, {name: f[f"{name}, 1 at once"] for name in graded}),
        _least("right or wrong, balanced, by family", 0.90, by_family),
        _least("right or wrong of the policies' own samples", 0.90, {"all": f["right, of policies' samples"]}),
        _least("four indexed completions: each aspect", 0.92, four),
        _least("compared by two point-wise ratings", 0.95, _told(f, "ordered by two ratings: ")),
        _least("flips under the inverse principle", 0.95, _told(f, "flips: ")),
        _least("negations never seen, rated exactly", 0.95, {name: f[f"{name}, negated"] for name in graded}),
        _least(f"{len(STRANGE)} principles without a known word: refused", 1.0, {"all": refused}),
        _least("a revision mends what the principle names", 0.95, _told(f, "revisions mend: ")),
        _least("and keeps every other sentence", 0.95, _told(f, "revisions keep the rest: ")),
        Line("critiques as the world's", "", _listed(_told(f, "critiques as the world's: ")), None),
        Line("compared after reasons, both orders", "", _listed(_told(f, "compared, both orders: ")), None),
        Line("compared after reasons, one order", "", _listed(_told(f, "compared, one order: ")), None),
        Line("compared at a glance", "", _listed(_told(f, "at a glance: ")), None),
    ]  # fmt: skip


def policy_lines(held_out: Sequence[Question], tuned: Mapping[str, Path]) -> list[Line]:
    models = {"base": policy(find("tiny/base")), **{name: policy(path) for name, path in tuned.items()}}
    chosen = {name: choices(model, held_out) for name, model in models.items()}
    by_exposure = {
        name: {what.split()[2]: share for what, share in facts(model, held_out).items()}
        for name, model in models.items()
    }
    rising = all(
        told["0"] <= 0.05 and list(told.values()) == sorted(told.values()) and told["64"] > told["1"]
        for told in by_exposure.values()
    )
    shown = "; ".join(f"{name} {_listed(told)}" for name, told in by_exposure.items())
    return [
        _least("multiple choice: the right of two or three is the likeliest", 0.60, chosen),
        Line("facts told 0, 1, 8, 64 times, greedy", "rises, the never told at the floor", shown, rising),
    ]


def _told(figures: Mapping[str, float], start: str) -> dict[str, float]:
    return {name.removeprefix(start): value for name, value in figures.items() if name.startswith(start)}


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _least(what: str, asked: float, values: Mapping[str, float]) -> Line:
    shown = f"{next(iter(values.values())):.3f}" if len(values) == 1 else _listed(values)
    return Line(what, f">= {asked:.2f}", shown, min(values.values()) >= asked)


# --- What is learnt from its labels -----------------------------------------------------------------------------------


def gold_preferences(run: Finished, path: Path) -> None:
    """The pairs that the same rule makes of the same candidates where gold rates them, written to `path`."""
    step = next(step for step in run.pipeline.steps if isinstance(step.stage, PairStage))
    assert isinstance(step.stage, PairStage) and step.source is not None
    judge = run.inputs.judges[step.source.name]
    scale = judge.rubric.scale
    margin = step.stage.min_margin / (scale.high - scale.low)
    rated = [_rated_by_gold(row) for row in run.rows[step.source.name]]
    made = pair(rated, step.stage.rule or "zephyr", {"gold": 1.0}, 1000 * margin)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in preference_rows(made.preferences))


def _rated_by_gold(row: Row) -> Row:
    ratings = [
        Rating(
            aspect="gold",
            candidate=index,
            value=round(1000 * gold(row.prompt.text, candidate.completion.text).total),
            raw="",
            judge="gold",
            call="",
            position=index + 1,
        )
        for index, candidate in enumerate(row.candidates)
    ]
    return row.model_copy(update={"ratings": tuple(ratings)})


def on_gold_preferences(run: Finished, preferences: Path, path: Path) -> Path:
    """The quickstart's last part, on given preferences: DPO from the same tuned model, and the same measure."""
    stages = yaml.safe_load(find(QUICKSTART).read_text(encoding="utf-8"))["stages"]
    dpo = next(stage["train"]["dpo"] for stage in stages if "dpo" in stage.get("train", {}))
    prompts = next(stage for stage in stages if "prompts" in stage)
    measure = next(stage["measure"] for stage in stages if "measure" in stage)
    measure |= {"models": ["sft", "dpo"], "baseline": "sft"}
    measure.pop("rate", None)
    sft = {"engine": "transformers", "path": str(run.run.folder.model("sft")), "sampling": {"max_tokens": 48}}
    pipeline = {
        "name": "gold-preferences",
        "models": {"sft": sft},
        "stages": [{"data": {"path": str(preferences)}}, {"train": {"dpo": dpo}}, prompts, {"measure": measure}],
    }
    path.write_text(yaml.safe_dump(pipeline, sort_keys=False), encoding="utf-8")
    return path


def differences(run: Mapping[str, list[tuple[Any, int]]], after: str, before: str) -> list[float]:
    return [a.total - b.total for (a, _), (b, _) in zip(run[after], run[before], strict=True)]


def answered(runs: Iterable[Mapping[str, list[tuple[Any, int]]]], model: str) -> float:
    return mean(not truth.refused for run in runs for truth, _ in run[model] if truth.kind == "look-alike")


async def preference_lines(seeds: Sequence[int], out: Path) -> tuple[list[Line], dict[str, Path]]:
    annotated, by_gold, judged = [], [], []
    tuned: dict[str, Path] = {}
    for seed in seeds:
        run = await finished(QUICKSTART, seed, out, measuring(QUICKSTART, take=HELD_OUT))
        annotated.append(await measured(run))
        judged.append(run.report["judge"]["pair_accuracy"])
        tuned[f"SFT {seed}"] = run.run.folder.model("sft")
        pairs = out / f"gold-{seed}.jsonl"
        gold_preferences(run, pairs)
        path = on_gold_preferences(run, pairs, out / f"gold-{seed}.yaml")
        again = await finished(str(path), seed, out, measuring(str(path), take=HELD_OUT))
        by_gold.append(await measured(again))
        await run.run.close()
        await again.run.close()
    sft = interval([differences(run, "sft", "base") for run in annotated])
    each = [mean_interval(differences(run, "dpo", "sft")) for run in annotated]
    gained = interval([differences(run, "dpo", "sft") for run in annotated])
    possible = interval([differences(run, "dpo", "sft") for run in by_gold])
    share = gained["mean"] / possible["mean"]
    before, after = answered(annotated, "sft"), answered(annotated, "dpo")
    shown = ", ".join(f"{i.mean:+.3f} [{i.low:+.3f}, {i.high:+.3f}]" for i in each if i)
    accuracies = {f"seed {seed}": accuracy["mean"] for seed, accuracy in zip(seeds, judged, strict=True)}
    lines = [
        _least("its ratings order the policies' own samples as gold does", 0.88, accuracies),
        Line("gold: SFT - base", ">= +0.10", _difference(sft), sft["low"] > 0 and sft["mean"] >= 0.10),
        Line("gold: DPO - SFT, by seed", "each above zero", shown, all(i is not None and i.low > 0 for i in each)),
        Line(
            "share of the gain on gold preferences, same settings",
            ">= 0.60",
            f"{share:.2f} (of {_difference(possible)})",
            share >= 0.60,
        ),
        Line(
            "benign look-alikes answered, SFT to DPO",
            "falls by at most 0.10",
            f"{before:.3f} to {after:.3f}; on gold preferences {answered(by_gold, 'dpo'):.3f}",
            after >= before - 0.10,
        ),
    ]
    return lines, tuned


def _difference(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


async def reward_lines(seeds: Sequence[int], out: Path) -> list[Line]:
    """How far from one sample to the best of sixteen by gold the reward model's pick comes, over all seeds."""
    ways: list[tuple[float, float, float]] = []
    accuracies: dict[str, float] = {}
    for seed in seeds:
        run = await finished(RLHF, seed, out)
        best = run.stage.best_of
        assert best is not None and best.n == BEST_OF
        report = run.report
        picked = next(model for model in report["models"] if model.get("best_of"))["gold"]["mean"]
        texts = await run.completions(best.model, best.n)
        golds = [
            [gold(prompt.text, text).total for text in each] for prompt, each in zip(run.prompts, texts, strict=True)
        ]
        ways.append((mean(map(mean, golds)), picked, mean(map(max, golds))))
        accuracies[f"seed {seed}"] = report["reward"]["pair_accuracy"]["mean"]
        await run.run.close()
    shares = [(picked - one) / (best - one) for one, picked, best in ways]
    shown = "; ".join(f"{one:.3f}, {picked:.3f}, {best:.3f}" for one, picked, best in ways)
    return [
        Line(
            f"best of {BEST_OF} by the reward model: share of the way to the oracle",
            ">= 0.60",
            f"{mean(shares):.2f} (one sample, its pick, the oracle: {shown})",
            mean(shares) >= 0.60,
        ),
        Line("the reward model orders held-out samples as gold does", "", _listed(accuracies), None),
    ]


# --- The table --------------------------------------------------------------------------------------------------------

HELD_OUT = 1600
MARK = re.compile(r"(<!-- the table -->\n).*?(<!-- the end of the table -->)", re.DOTALL)


_REACHED = {None: "", True: "yes", False: "**no**"}


def table(lines: Sequence[Line], seeds: Sequence[int], prompts: int) -> str:
    rows = [f"| {line.what} | {line.asked} | {line.figure} | {_REACHED[line.reached]} |" for line in lines]
    return "\n".join(
        [
            f"`python benchmarks/embedded.py`, {datetime.date.today().isoformat()}, seeds "
            f"{', '.join(map(str, seeds))}, {prompts:,} held-out prompts, principles in wordings never trained on.",
            "",
            "| what | asked | measured | reached |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


async def lines_of(seeds: Sequence[int], out: Path, held_out: Sequence[Question]) -> list[Line]:
    random.seed(0)
    preferences, tuned = await preference_lines(seeds, out)
    lines = [*annotator_lines(held_out), *policy_lines(held_out, tuned), *preferences]
    weak = await weak_reward(seeds, out, Line)
    return [*lines, *await reward_lines(seeds, out), weak]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--write", action="store_true", help="write the table into the docs and the card")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    held_out = in_split(questions(0), "held-out")
    text = table(asyncio.run(lines_of(given.seeds, given.out, held_out)), given.seeds, len(held_out))
    print(text)
    (given.out / "table.md").write_text(text, encoding="utf-8")
    if given.write:
        for path in (Path("docs/tiny-world.md"), find("tiny/annotator") / "README.md"):
            before = path.read_text(encoding="utf-8")
            assert MARK.search(before), f"{path} has no place for the table"
            path.write_text(MARK.sub(lambda found: f"{found[1]}{text}{found[2]}", before), encoding="utf-8")


if __name__ == "__main__":
    main()
