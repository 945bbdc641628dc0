"""Which way of judging is the best of the embedded annotator's, and what does each cost? The table of docs/judges.md.

    python benchmarks/judges.py [--take 240] [--write]

Every method judges the same held-out pairs of the embedded world, in both orders, and is held against gold; methods
that read four candidates at once read two more beside the pair. `--write` puts the table into docs/judges.md. Calls go
to a store in memory, each method's to its own, so that everything is asked and paid for. A few minutes of one core.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import random
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlaif.audits.asking import WORLD_PAIRS
from rlaif.audits.figures import Decide, Ruling, figures, rule
from rlaif.audits.goldset import GoldPair, of_world, to_judge
from rlaif.config import (
    CompareStage,
    ModelSpec,
    RankStage,
    RateStage,
    SamplingSettings,
    TransformersModel,
    read_pipeline,
)
from rlaif.constitution import Constitution, Principle
from rlaif.engines.asking import Asking, together
from rlaif.judges.comparing import Comparer
from rlaif.judges.ranking import rank
from rlaif.pipeline.auditing import existing_judge, judging_step
from rlaif.pipeline.session import Session
from rlaif.pipeline.stages.compare import by_comparing, open_comparer
from rlaif.pipeline.stages.rank import open_ranker
from rlaif.pipeline.stages.rate import by_rating, open_judge
from rlaif.records import Choice, Comparison, Prompt, Ranking, Verdict, preferred
from rlaif.resources import find
from rlaif.statistics import mean_interval, share_interval
from rlaif.store import CallStore
from rlaif.tiny.lexicon import Lexicon
from rlaif.tiny.world import Content, Qualities, Question, compose, questions

DOC = Path("docs/judges.md")
Texts = tuple[str, str]
Stage = CompareStage | RateStage | RankStage


class Method(NamedTuple):
    """A way of judging. `four`: the pair is read with two more candidates; `drawn`: under a principle of the stage's
    constitution that is drawn for the prompt, and not under the one that makes the difference."""

    name: str
    stage: Stage
    models: Mapping[str, ModelSpec]
    four: bool = False
    drawn: bool = False
    aspect: str | None = None  # of the rubric, to rate by that one alone

    @property
    def preferences(self) -> int:
        """How many preferences the calls on one prompt give: one for every two candidates."""
        return 6 if self.four else 1


class Measured(NamedTuple):
    """What a method said of every pair, and what a preference of both orders takes."""

    method: Method
    rulings: Sequence[Ruling]
    calls: float
    tokens: float
    seconds: float  # of one core, for 100 preferences

    @property
    def points(self) -> list[float]:
        """Of each pair 1 for what gold says, one half for a tie, else 0."""
        said = [(r.better, None if r.comparison is None else r.comparison.verdict) for r in self.rulings]
        return [0.5 if verdict == "tie" else float(verdict == better) for better, verdict in said]


# ---------------------------------------------------------------- the methods


def methods() -> list[Method]:
    return [
        compared("compare, at a glance"),
        compared("compare, after reasons", reasons=True),
        compared("compare, after reasons, `clamp: [0.4, 0.6]`", reasons=True, clamp=(0.4, 0.6)),
        compared("compare, after reasons, `verdicts: hard`", reasons=True, verdicts="hard"),
        compared(
            "compare, after reasons, `votes: 3`",
            reasons=True,
            votes=3,
            sampling={"temperature": 0.7, "max_tokens": 192},
        ),
        jury("jury: the annotator three times, at temperature 0, 0.7 and 1", dict.fromkeys(WARMTH, "annotator")),
        jury(
            "jury: the annotator and the two policies, which are no judges",
            {name: name for name in ("annotator", "weak", "strong")},
        ),
        as_piped("compare, after reasons, under a drawn principle", "pipelines/constitutional_ai.yaml")._replace(
            drawn=True
        ),
        rated("rate, two together, the aspect `right` alone")._replace(aspect="right"),
        rated("rate, two together, the rubric `tiny`"),
        rated("rate, each by itself, the aspect `right` alone", shown="one")._replace(aspect="right"),
        rated("rate, each by itself, the rubric `tiny`", shown="one"),
        rated("rate, four together, the rubric `tiny`")._replace(four=True),
        as_piped("rate, each of four by itself, the rubric `tiny`", "pipelines/quickstart.yaml")._replace(four=True),
        rated("rate, `answers: expected`", shown="one", answers="expected"),
        Method("rank, four together", RankStage(model="annotator", **RANK), models(ONE), four=True),
    ]


WARMTH = {"annotator": 0.0, "annotator-warm": 0.7, "annotator-hot": 1.0}
ONE = {"annotator": "annotator"}
RANK: dict[str, Any] = {
    "constitution": "constitutions/tiny.yaml",
    "template": "prompts/rank-compact.jinja",
    "answers": "lines",
    "sampling": {"temperature": 0, "max_tokens": 192},
}


def models(folders: Mapping[str, str]) -> dict[str, ModelSpec]:
    """Models by name, each of its embedded folder and as warm as its name says."""
    return {
        name: TransformersModel(
            engine="transformers",
            path=f"tiny/{folder}",
            sampling=SamplingSettings(temperature=WARMTH.get(name, 0.0), max_tokens=192),
        )
        for name, folder in folders.items()
    }


def short_form(method: str) -> dict[str, Any]:
    """The settings with which the annotator says that it is asked."""
    lexicon = Lexicon.read(find("tiny/annotator"))
    assert lexicon is not None
    return lexicon.judging[method]


def compared(name: str, **settings: Any) -> Method:
    asked = short_form("compare") | {"reasons": False} | settings
    return Method(name, CompareStage(model="annotator", **asked), models(ONE))


def jury(name: str, folders: Mapping[str, str]) -> Method:
    return Method(name, CompareStage(jury=tuple(folders), **short_form("compare")), models(folders))


def rated(name: str, **settings: Any) -> Method:
    return Method(name, RateStage(model="annotator", **short_form("rate") | settings), models(ONE))


def as_piped(name: str, pipeline: str) -> Method:
    """The judging stage of a pipeline, as it stands there."""
    piped = read_pipeline(pipeline)
    stage = existing_judge(piped, judging_step(piped, None)).stage
    assert isinstance(stage, CompareStage | RateStage)
    named = {use.model for use in stage.models_used()}
    asked = {model: spec for model, spec in piped.models.items() if model in named}
    return Method(f"{name} (`{Path(pipeline).name}`)", stage, asked)


# ---------------------------------------------------------------- asking


def two_more(pair: GoldPair, question: Question) -> Texts:
    """Two further completions of the pair's prompt, drawn as its own are."""
    rng, found = random.Random(f"two more {pair.id}"), [pair.better, pair.worse]
    contents: tuple[Content, ...] = ("right", "wrong", "malformed", "refusal", "unknown")
    while len(found) < 4:
        content = rng.choices(contents, (50, 32, 8, 5, 5))[0]
        polite, rude, filler = (rng.choice((0, 0, 1, 2)) for _ in range(3))
        text = compose(question, rng, Qualities(content, polite, rude, filler))
        if text not in found:
            found.append(text)
    return found[2], found[3]


def decision(method: Method, asking: Asking, others: Mapping[str, Texts]) -> Decide:
    """The method as an audit asks a judge."""
    stage = method.stage
    if isinstance(stage, RankStage):
        decide = by_ranking(stage, open_ranker(stage), asking)
    elif isinstance(stage, RateStage):
        judge = open_judge(stage)
        kept = tuple(aspect for aspect in judge.rubric.aspects if method.aspect in (None, aspect.id))
        judge = judge._replace(rubric=judge.rubric.model_copy(update={"aspects": kept}))
        decide = by_rating(stage, judge, asking.asker(stage.model, stage.sampling))
    else:
        askers = [asking.asker(name, stage.sampling) for name in stage.judges]
        decide = by_comparing(stage, open_comparer(stage), askers)

    async def asked(prompt: Prompt, texts: Texts, principle: str | None) -> Comparison:
        shown: Any = (*texts, *others[prompt.id]) if method.four else texts
        return await decide(prompt, shown, None if method.drawn else principle)

    return asked


def by_ranking(stage: RankStage, ranker: Comparer, asking: Asking) -> Decide:
    """A judge as a rank stage asks it: what its two rankings say of the first two texts."""

    async def decide(prompt: Prompt, texts: Sequence[str], principle: str | None) -> Comparison:
        assert principle is not None
        only = Principle(id="gold", rule=principle, critique=principle, revision=principle, comparison=principle)
        asked = ranker._replace(constitution=Constitution(name="gold", principles=(only,)))
        row = await rank(to_judge(prompt, texts), stage, asked, asking.asker(stage.model, stage.sampling))
        forward, backward = sorted((of_first_two(ranking) for ranking in row.rankings), key=lambda found: found.a)
        return Comparison.merge(forward, backward, principle="gold", judge=stage.model)

    return decide


def of_first_two(ranking: Ranking) -> Verdict:
    """What a ranking says of candidates 0 and 1, A being the one that was read first."""
    a, b = sorted((0, 1), key=ranking.shown.index)
    verdict: Choice | None = None
    if ranking.order is not None:
        place = {candidate: place for place, tied in enumerate(ranking.order) for candidate in tied}
        verdict = preferred(0.5 if place[a] == place[b] else float(place[a] < place[b]))
    return Verdict(a=a, b=b, verdict=verdict, raw=ranking.raw, problem=ranking.problem, calls=ranking.calls)


async def measure(method: Method, pairs: Sequence[GoldPair], others: Mapping[str, Texts]) -> Measured:
    """The method's word on every pair, all of them asked at the same time."""
    async with Session(method.models, CallStore(Path(":memory:"))) as session:
        decide = decision(method, session.asking(), others)
        begun = time.process_time()  # of all threads; what else the machine does is not in it
        rulings = await together(*(rule(pair, decide) for pair in pairs))
        seconds = time.process_time() - begun
        tallies = session.ledger.by_model().values()
    preferences = method.preferences * len(pairs)
    return Measured(
        method,
        rulings,
        calls=sum(tally.sent for tally in tallies) / preferences,
        tokens=sum(tally.prompt_tokens + tally.completion_tokens for tally in tallies) / preferences,
        seconds=100 * seconds / preferences,
    )


# ---------------------------------------------------------------- the table

MARK = re.compile(r"(<!-- the table -->\n).*?(<!-- the end of the table -->)", re.DOTALL)
HEADS = (
    "method", "agrees with gold, %", "behind the best", "in one order, %", "same in both orders, %", "first slot, %",
    "unparsed, %", "calls", "tokens", "seconds",
)  # fmt: skip


def line(measured: Measured, best: Measured) -> tuple[str, ...]:
    found = figures(measured.rulings)
    agreement, position = found["agreement"], found["position"]
    behind = mean_interval([a - b for a, b in zip(measured.points, best.points, strict=True)])
    return (
        measured.method.name,
        share(agreement["both_orders"]),
        "the best" if measured is best else share(behind and behind.as_dict(), "+"),
        share(agreement["one_order"]),
        share(position["consistency"]),
        share(position["first_slot"]),
        f"{found['verdicts']['unparsed']['mean']:.0%}".rstrip("%"),
        f"{measured.calls:.2f}",
        f"{measured.tokens:.0f}",
        f"{measured.seconds:.1f}",
    )


def share(found: Mapping[str, float] | None, sign: str = "") -> str:
    """A share and its interval in percent; nothing where there was nothing to take it of."""
    if found is None:
        return ""
    mean, low, high = (100 * found[end] for end in ("mean", "low", "high"))
    return f"{mean:{sign}.1f} [{low:{sign}.0f}, {high:{sign}.0f}]"


def table(found: Sequence[Measured], pairs: int) -> str:
    best = max(found, key=lambda measured: sum(measured.points))
    rows = [HEADS, tuple("---" for _ in HEADS), *(line(measured, best) for measured in found)]
    said = f"`python benchmarks/judges.py`, {datetime.date.today().isoformat()}, {pairs} held-out pairs."
    juries = [(m.method.name, jury["fleiss_kappa"]) for m in found if (jury := figures(m.rulings).get("jury"))]
    kappas = [f'Fleiss\' kappa of the members of "{name}": {kappa["mean"]:.2f}.' for name, kappa in juries if kappa]
    drawn = [kept(m, 0.1) for m in found if m.method.drawn]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n\n".join([said, lines, *kappas, *drawn]) + "\n"


def kept(measured: Measured, margin: float) -> str:
    """What the margin of a pair stage leaves of soft verdicts, and how much of that agrees with gold."""
    asked = [(r.comparison, r.better) for r in measured.rulings if r.comparison is not None]
    sure = [(c, better) for c, better in asked if c.probability is not None and abs(2 * c.probability - 1) >= margin]
    found = share_interval([comparison.verdict == better for comparison, better in sure])
    agrees = share(found and found.as_dict())
    return (
        f"Of {measured.method.name}, `min_margin: {margin:g}` keeps {len(sure)}, which agree with gold in {agrees} %."
    )


async def measured_all(pairs: Sequence[GoldPair]) -> list[Measured]:
    by_text = {question.text: question for question in questions()}
    others = {pair.prompt.id: two_more(pair, by_text[pair.prompt.text]) for pair in pairs}
    found: list[Measured] = []
    await measure(methods()[0], pairs[:8], others)  # what is done once in a process is nobody's cost
    for method in methods():
        found.append(await measure(method, pairs, others))
        print(f"{method.name}: {sum(found[-1].points) / len(pairs):.3f}, {found[-1].seconds:.1f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", type=int, default=WORLD_PAIRS, help="so many pairs")
    parser.add_argument("--write", action="store_true", help=f"write the table into {DOC}")
    given = parser.parse_args()
    if given.write and not MARK.search(DOC.read_text(encoding="utf-8")):
        raise SystemExit(f"{DOC} has no place for the table")
    torch.set_num_threads(1)
    text = table(asyncio.run(measured_all(of_world(given.take, seed=0))), given.take)
    print(text)
    if given.write:
        before = DOC.read_text(encoding="utf-8")
        DOC.write_text(MARK.sub(lambda found: f"{found[1]}{text}{found[2]}", before), encoding="utf-8")


if __name__ == "__main__":
    main()
