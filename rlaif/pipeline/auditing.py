"""Audits: a judge on gold pairs (`rlaif audit JUDGE`), a run's own comparisons (`rlaif audit RUN`), and the gate that
stops a run before money is spent on a judge that fails (`require:` on a judging stage).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config import CompareStage, ModelSpec, OpenAIModel, RateStage, SamplingSettings
from rlaif.constitution import Constitution, Principle, read_constitution
from rlaif.engines.scheduler import Sampler, together
from rlaif.errors import InputError, WorkError
from rlaif.judges.audit import Decide, Probed, Ruling, figures, findings, probe, probes_of, rule
from rlaif.judges.comparing import Comparer, compare
from rlaif.judges.goldset import GoldPair, read_gold, to_judge
from rlaif.judges.rating import Judge, rate
from rlaif.records import Comparison, Prompt, Row, Verdict, preferred
from rlaif.rubric import Aspect, Rubric

OVERALL = "constitutions/overall.yaml"


def by_comparing(
    stage: CompareStage, comparer: Comparer, models: Mapping[str, SamplingSettings], scheduler: Sampler, seed: int
) -> Decide:
    """A judge as a compare stage asks it, under the principle of each gold pair or else of the comparer."""

    async def decide(prompt: Prompt, texts: tuple[str, str]) -> Comparison:
        row = await compare(to_judge(prompt, texts), stage, comparer, models, scheduler, seed)
        return row.comparisons[0]

    return decide


def by_rating(
    stage: RateStage, judge: Judge, model: SamplingSettings, scheduler: Sampler, seed: int
) -> Decide:
    """A judge as a rate stage asks it: of two texts, in both orders, the one with the higher weighted mean."""

    async def decide(prompt: Prompt, texts: tuple[str, str]) -> Comparison:
        row = to_judge(prompt, texts)
        asked = await together(
            *(
                rate(row, stage, judge.rubric, judge.template, model, scheduler, seed, reverse=reverse)
                for reverse in (False, True)
            )
        )
        forward, backward = (_verdict(rated, judge.rubric) for rated in asked)
        first_read = asked[0].ratings[0].position
        # What a rating prompt showed first is drawn by hash; a verdict's A is what was read first.
        orders = (forward, backward.swap()) if first_read == 1 else (backward, forward.swap())
        return Comparison.merge(*orders, principle=judge.rubric.name, judge=stage.model)

    return decide
