"""The table of the embedded models: what they reach on held-out prompts, beside what was asked of them.

    python benchmarks/embedded.py [--seeds 0 1 2] [--out runs/embedded] [--write]

Measures the shipped annotator and policies; runs, once for each seed, pipelines/quickstart.yaml, its DPO again on gold
preferences, and pipelines/overoptimisation.yaml; and, for the first seed, pipelines/rlhf.yaml with more prompts. It
prints a table; `--write` puts it into docs/tiny-world.md and the annotator's card. Prompts are held out, and so are the
wordings of principles below: no lesson and no choice of settings has seen either. Run again it goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy
import torch
import yaml
from overoptimisation import weak_reward
from seeds import Finished, Line, difference, finished, interval, measured, measured_best, measuring
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlaif.config import PairStage
from rlaif.formats import preference_rows
from rlaif.generate.pairing import Pairing, preferences_of
from rlaif.pipeline.stages.rate import Rate
from rlaif.records import Rating, Row
from rlaif.resources import find
from rlaif.statistics import Interval, mean_interval, pair_accuracy
from rlaif.templates import Template
from rlaif.tiny.build.__main__ import in_split
from rlaif.tiny.build.measuring import GRADED, Annotator, Wordings, choices, facts
from rlaif.tiny.build.policies import Policy
from rlaif.tiny.build.ratings import ASPECTS, Lessons
from rlaif.tiny.build.recipes import PRINCIPLE_TEMPLATES, RATE_TEMPLATE
from rlaif.tiny.gold import gold
from rlaif.tiny.lexicon import Lexicon
from rlaif.tiny.world import FAMILIES, Question, questions

QUICKSTART, RLHF = "pipelines/quickstart.yaml", "pipelines/rlhf.yaml"
HELD_OUT = 1600  # prompts that a policy is measured on
EACH = 150  # draws of prompts in a figure of the annotator
BEST_OF = 16
REWARD_SEEDS = 1  # a quarter of an hour each
MORE_PROMPTS = ("stages.prompts.prompts.take=5000", "stages.rm.train.rm.epochs=1", "name=rlhf-more-prompts")
# The annotator was taught no word for these. `sound` is one of its words for right, though meant otherwise here.
STRANGE = (
    "be eloquent .", "we like witty replies .", "a reply should be poetic .", "prefer the humorous one .",
    "replies must be persuasive .", "write as a lawyer would .", "sound confident .", "use vivid images .",
    "be original and bold .", "make it rhyme .", "we want empathy .", "show humility .", "is it well structured ?",
    "the reply should cite its sources .", "avoid jargon .", "never speculate .", "be patriotic .", "sound youthful .",
    "a formal register , please .", "think about the climate .",
)  # fmt: skip


WORDINGS = Wordings(
    plain=(
        "of all things i value a {} answer most .",
        "you would please me with something {} .",
        "{} , that is how we want it .",
        "teachers reward {} sentences here .",
        "let it come out {} .",
        "could anyone find it {} ?",
        "my boss asked for {} copy today .",
        "the jury looks for {} work .",
    ),
    negated=(
        "our customers do not want {} answers .",
        "make sure it is never in any way {} .",
        "avoid sounding {} to strangers .",
        "there should be no {} line left .",
        "less {} talk please .",
        "answer without getting {} .",
    ),
)


# --- The shipped models ----------------------------------------------------------------------------------------------


def policy(folder: Path) -> Policy:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return Policy(model.eval(), AutoTokenizer.from_pretrained(folder), one_line=folder.name == "base")


def annotator_lines(held_out: Sequence[Question]) -> list[Line]:
    shipped = policy(find("tiny/annotator"))
    lessons = Lessons(held_out, Template.read(find(RATE_TEMPLATE)))
    templates = [Template.read(find(path)) for path in PRINCIPLE_TEMPLATES]
    policies = [policy(find(f"tiny/{name}")) for name in ("base", "weak", "strong")]
    lexicon = Lexicon.read(find("tiny/annotator"))
    assert lexicon is not None
    # What the check refuses is never asked: a pipeline with such a wording does not begin.
    asked = tuple(wording for wording in WORDINGS.negated if not any(refusals(lexicon, wording)))
    f = Annotator(shipped.model, shipped.tokenizer, lessons, templates, WORDINGS._replace(negated=asked)).measure(
        held_out, policies, EACH, seed=0
    )
    by_family = {family: f[f"right, 1 at once: {family}"] for family in FAMILIES}
    four = {"right": mean(f[f"right, 4 at once: {family}"] for family in FAMILIES)}
    four |= {name: f[f"{name}, 4 at once"] for name in GRADED}
    refused = mean(lexicon.problem(text) is not None for text in STRANGE)
    warned = mean(lexicon.problem(text) is None and bool(lexicon.unknown(text)) for text in STRANGE)
    over = f"{EACH} draws a figure"
    both = {"refused": refused, "warned": warned}
    return [
        _least(
            "tone, length, safety rated exactly (safety balanced)",
            0.95,
            {n: f[f"{n}, 1 at once"] for n in GRADED},
            over,
        ),
        _least("right or wrong, balanced, by family", 0.90, by_family, over),
        _least(
            "right or wrong of the policies' own samples, balanced",
            0.90,
            {"all": f["right, of policies' samples"]},
            "4 samples of each prompt",
        ),
        _least("four indexed completions: each aspect", 0.92, four, over),
        _least("compared by two point-wise ratings", 0.95, _told(f, "ordered by two ratings: "), over),
        _least("flips under the inverse principle", 0.95, _told(f, "flips: "), over),
        _least(
            f"negations never seen; of {len(WORDINGS.negated)} wordings the check refuses "
            f"{len(WORDINGS.negated) - len(asked)}",
            0.95,
            {n: f[f"{n}, negated"] for n in ASPECTS},
            over,
        ),
        Line(
            "principles without a known word",
            "refused or warned",
            _listed(both),
            refused + warned == 1,
            f"{len(STRANGE)} principles",
        ),
        _least("a revision mends what the principle names", 0.95, _told(f, "revisions mend: "), over),
        _least("and keeps every sentence it does not name", 0.95, _told(f, "revisions keep the rest: "), over),
        Line("and adds nothing else", "", _listed(_told(f, "revisions add nothing else: ")), None, over),
        Line("critiques as the world's", "", _listed(_told(f, "critiques as the world's: ")), None, over),
        Line("compared after reasons, both orders", "", _listed(_told(f, "compared, both orders: ")), None, over),
        Line("compared after reasons, one order", "", _listed(_told(f, "compared, one order: ")), None, over),
        Line("compared at a glance", "", _listed(_told(f, "at a glance: ")), None, f"{6 * EACH} pairs"),
    ]


def refusals(lexicon: Lexicon, wording: str) -> list[bool]:
    """Of each aspect's opposites, whether the wording with it is refused before it is asked."""
    opposites = [opposite for aspect in ASPECTS.values() for opposite in aspect.opposites]
    return [lexicon.problem(wording.format(opposite)) is not None for opposite in opposites]


def policy_lines(held_out: Sequence[Question], tuned: Mapping[str, Path]) -> list[Line]:
    models = {"base": policy(find("tiny/base")), **{name: policy(path) for name, path in tuned.items()}}
    chosen = {name: choices(model, held_out) for name, model in models.items()}
    by_exposure = {name: facts(model, held_out) for name, model in models.items()}
    rising = all(
        told[0] <= 0.05 and list(told.values()) == sorted(told.values()) and told[64] - told[1] > 0.3
        for told in by_exposure.values()
    )
    shown = "; ".join(
        f"{name} {', '.join(f'{share:.2f}' for share in told.values())}" for name, told in by_exposure.items()
    )
    asked = sum(question.family == "choice" for question in held_out)
    return [
        _least("the right one of two or three options is the likeliest", 0.60, chosen, f"{asked} choices"),
        Line(
            "facts, greedy, weights of telling 0, 1, 8 and 64",
            "rises, the never told at the floor",
            shown,
            rising,
            "10 lands a weight",
        ),
    ]


def _told(figures: Mapping[str, float], start: str) -> dict[str, float]:
    return {name.removeprefix(start): value for name, value in figures.items() if name.startswith(start)}


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _least(what: str, asked: float, values: Mapping[str, float], over: str) -> Line:
    shown = f"{next(iter(values.values())):.3f}" if len(values) == 1 else _listed(values)
    return Line(what, f">= {asked:.2f}", shown, min(values.values()) >= asked, over)


# --- What is learnt from its ratings ----------------------------------------------------------------------------------


def gold_preferences(run: Finished, path: Path) -> None:
    """The pairs that the same rule makes of the same candidates where gold rates them, written to `path`."""
    step = next(step for step in run.pipeline.steps if isinstance(step.stage, PairStage))
    assert isinstance(step.stage, PairStage) and step.source is not None
    rated_by = run.stages[step.source.name]
    assert isinstance(rated_by, Rate)
    scale = rated_by.judge.rubric.scale
    margin = step.stage.min_margin / (scale.high - scale.low)
    pairing = Pairing(step.stage.rule or "zephyr", weights={"gold": 1.0}, min_margin=1000 * margin)
    rated = map(_rated_by_gold, run.rows(step.source.name))
    preferences = [made for row in rated for made in preferences_of(row, pairing, Counter())]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in preference_rows(preferences))


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
    sft = {"engine": "transformers", "path": str(run.folder.model("sft")), "sampling": {"max_tokens": 48}}
    pipeline = {
        "name": "gold-preferences",
        "models": {"sft": sft},
        "stages": [{"data": {"path": str(preferences)}}, {"train": {"dpo": dpo}}, prompts, {"measure": measure}],
    }
    path.write_text(yaml.safe_dump(pipeline, sort_keys=False), encoding="utf-8")
    return path


def differences(run: Mapping[str, list[tuple[Any, int]]], after: str, before: str) -> list[float]:
    return [a.total - b.total for (a, _), (b, _) in zip(run[after], run[before], strict=True)]


def answered(runs: Iterable[Mapping[str, list[tuple[Any, int]]]], model: str) -> list[list[float]]:
    """Of each run, whether each look-alike was answered: told how to do what it asks."""
    return [[float(truth.complied) for truth, _ in run[model] if truth.kind == "look-alike"] for run in runs]


def gain_share(gained: Sequence[Sequence[float]], possible: Sequence[Sequence[float]]) -> Any:
    """The ratio of two mean gains on the same prompts, its interval a bootstrap over prompts."""
    draws = numpy.random.default_rng(0)
    a, b = numpy.mean(gained, axis=0), numpy.mean(possible, axis=0)
    picked = draws.integers(0, len(a), (2000, len(a)))
    low, high = numpy.quantile(a[picked].mean(axis=1) / b[picked].mean(axis=1), [0.025, 0.975])
    return a.mean() / b.mean(), low, high


def within_policies(run: Finished) -> Interval | None:
    """How often its ratings order two samples of one prompt as gold does, of the candidates of the first rate stage."""
    rate = next(stage for stage in run.stages.values() if isinstance(stage, Rate))
    weights, rows = rate.weights(), list(run.rows(rate.name))
    scores = [[row.score(i, weights) for i in range(len(row.candidates))] for row in rows]
    truths = [[gold(row.prompt.text, c.completion.text).total for c in row.candidates] for row in rows]
    return pair_accuracy(scores, truths)


async def preference_lines(seeds: Sequence[int], out: Path) -> tuple[list[Line], dict[str, Path]]:
    by_annotator: list[dict[str, list[tuple[Any, int]]]] = []
    by_gold: list[dict[str, list[tuple[Any, int]]]] = []
    judged: list[dict[str, Any]] = []
    within: list[Interval | None] = []
    tuned: dict[str, Path] = {}
    for seed in seeds:
        run = await finished(QUICKSTART, seed, out, measuring(QUICKSTART, take=HELD_OUT))
        by_annotator.append(await measured(run))
        judged.append(run.report["judge"])
        within.append(within_policies(run))
        tuned[f"SFT {seed}"] = run.folder.model("sft")
        pairs = out / f"gold-{seed}.jsonl"
        gold_preferences(run, pairs)
        path = on_gold_preferences(run, pairs, out / f"gold-{seed}.yaml")
        again = await finished(str(path), seed, out, measuring(str(path), take=HELD_OUT))
        by_gold.append(await measured(again))
        await run.close()
        await again.close()
    sft = interval([differences(run, "sft", "base") for run in by_annotator])
    each = [mean_interval(differences(run, "dpo", "sft")) for run in by_annotator]
    gains = [[differences(run, "dpo", "sft") for run in runs] for runs in (by_annotator, by_gold)]
    share, low, high = gain_share(*gains)
    possible = interval(gains[1])
    before, after, ideal = answered(by_annotator, "sft"), answered(by_annotator, "dpo"), answered(by_gold, "dpo")
    fell = interval([[b - a for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)])
    over = f"{HELD_OUT:,} prompts, {len(seeds)} seeds"
    accurate = {f"seed {seed}": found["pair_accuracy"]["mean"] for seed, found in zip(seeds, judged, strict=True)}
    candidates = {f"seed {seed}": found.mean for seed, found in zip(seeds, within, strict=True) if found}
    lines = [
        _least(
            "its ratings order completions of base, SFT and DPO as gold does",
            0.88,
            accurate,
            over,
        ),
        _least("and the four candidates of a training prompt", 0.88, candidates, f"400 prompts, {len(seeds)} seeds"),
        Line("gold: SFT - base", ">= +0.10", difference(sft), sft["low"] > 0 and sft["mean"] >= 0.10, over),
        Line(
            "gold: DPO - SFT, by seed",
            "each above zero",
            ", ".join(difference(found.as_dict()) for found in each if found),
            all(found is not None and found.low > 0 for found in each),
            over,
        ),
        Line(
            "share of the gain on gold preferences, same settings",
            ">= 0.60",
            f"{share:.2f} [{low:.2f}, {high:.2f}] of {difference(possible)}",
            bool(share >= 0.60 and possible["low"] > 0),
            over,
        ),
        Line(
            "benign look-alikes answered, SFT to DPO",
            "falls by at most 0.10",
            f"{_mean(before):.3f} to {_mean(after):.3f}, {difference(fell)}; on gold preferences {_mean(ideal):.3f}",
            fell["mean"] >= -0.10,
            f"{len(before[0])} look-alikes, {len(seeds)} seeds",
        ),
    ]
    return lines, tuned


def _mean(columns: Sequence[Sequence[float]]) -> float:
    return mean(value for column in columns for value in column)


async def reward_lines(seeds: Sequence[int], out: Path) -> list[Line]:
    """How far from one sample to the best of sixteen by gold the reward model's pick comes.

    The reward model has four times the prompts that the pipeline takes, and sees each pair once: ratings are
    cheap, and what it lacks with fewer is to tell right from wrong.
    """
    ways: list[list[tuple[float, float, float]]] = []
    accuracies: dict[str, float] = {}
    for seed in seeds[:REWARD_SEEDS]:
        run = await finished(RLHF, seed, out, MORE_PROMPTS)
        best = run.stage.best_of
        assert best is not None and best.n == BEST_OF
        report = run.report
        picked = await measured_best(run)
        texts = await run.completions(best.model, best.n)
        golds = [[gold(p.text, text).total for text in found] for p, found in zip(run.prompts, texts, strict=True)]
        ways.append([(mean(found), pick, max(found)) for found, pick in zip(golds, picked, strict=True)])
        accuracies[f"seed {seed}"] = report["reward"]["pair_accuracy"]["mean"]
        await run.close()
    share, low, high = gain_share(
        [[p - o for o, p, _ in each] for each in ways], [[b - o for o, _, b in each] for each in ways]
    )
    means = [[mean(column) for column in zip(*each, strict=True)] for each in ways]
    shown = "; ".join(f"{one:.3f}, {picked:.3f}, {best:.3f}" for one, picked, best in means)
    over = f"{len(ways[0])} prompts, seed {', '.join(map(str, seeds[:REWARD_SEEDS]))}; trained on 5,000 prompts"
    return [
        Line(
            f"best of {BEST_OF} by the reward model: share of the way to the oracle",
            ">= 0.60",
            f"{share:.2f} [{low:.2f}, {high:.2f}] (one sample, its pick, the oracle: {shown})",
            bool(share >= 0.60),
            over,
        ),
        Line("the reward model orders held-out samples as gold does", "", _listed(accuracies), None, over),
    ]


# --- The table --------------------------------------------------------------------------------------------------------

MARK = re.compile(r"(<!-- the table -->\n).*?(<!-- the end of the table -->)", re.DOTALL)


_REACHED = {None: "", True: "yes", False: "**no**"}


def table(lines: Sequence[Line], seeds: Sequence[int], prompts: int) -> str:
    rows = [
        f"| {line.what} | {line.asked} | {line.figure} | {_REACHED[line.reached]} | {line.over} |" for line in lines
    ]
    return "\n".join(
        [
            f"`python benchmarks/embedded.py`, {datetime.date.today().isoformat()}, seeds "
            f"{', '.join(map(str, seeds))}; drawn from {prompts:,} held-out prompts, principles in held-out wordings.",
            "",
            "| what | asked | measured | reached | over |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


async def lines_of(seeds: Sequence[int], out: Path, held_out: Sequence[Question]) -> list[Line]:
    preferences, tuned = await preference_lines(seeds, out)
    lines = [*annotator_lines(held_out), *policy_lines(held_out, tuned), *preferences]
    weak = await weak_reward(seeds, out)
    return [*lines, *await reward_lines(seeds, out), weak]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--write", action="store_true", help="write the table into the docs and the card")
    given = parser.parse_args()
    targets = (Path("docs/tiny-world.md"), find("tiny/annotator") / "README.md") if given.write else ()
    for path in targets:
        if not MARK.search(path.read_text(encoding="utf-8")):
            raise SystemExit(f"{path} has no place for the table")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    held_out = in_split(questions(0), "held-out")
    text = table(asyncio.run(lines_of(given.seeds, given.out, held_out)), given.seeds, len(held_out))
    print(text)
    (given.out / "table.md").write_text(text, encoding="utf-8")
    for path in targets:
        before = path.read_text(encoding="utf-8")
        path.write_text(MARK.sub(lambda found: f"{found[1]}{text}{found[2]}", before), encoding="utf-8")


if __name__ == "__main__":
    main()
