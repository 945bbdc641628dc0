"""The `rate` stage: a judge's ratings, or expected scores, under every aspect of a rubric."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rlaif.config import Rater, RateStage, Step, TextCheck, TransformersModel, unchecked
from rlaif.engines.asking import Asker, Asking, together
from rlaif.formats import rated_rows
from rlaif.generate.keeping import ALL, NONE, Choice, choose
from rlaif.generate.pairing import Pairing, candidate_scores
from rlaif.judges import rating
from rlaif.judges.rating import Judge, rate
from rlaif.pipeline.rehearsal import REHEARSED, read_template
from rlaif.pipeline.stages.judging import JudgingStage, RatedBy
from rlaif.pipeline.stages.keeping import Keeping
from rlaif.pipeline.stages.stage import Opening
from rlaif.records import Comparison, Prompt, Row, Verdict, preferred
from rlaif.rubric import read_rubric
from rlaif.version import install

if TYPE_CHECKING:
    from rlaif.audits.figures import Decide


class Rate(Keeping[RateStage], JudgingStage[RateStage]):
    facts = ("ratings", "unparsed", "not_applicable", "scores")

    def __init__(self, step: Step, settings: RateStage, opening: Opening) -> None:
        super().__init__(step, settings, opening)
        self._check_count(opening)
        check_schema(step, settings, opening)
        self.judge = open_judge(settings, opening.text_check(settings.model))
        self._aspects = frozenset(self.judge.rubric.weights())
        self._check_rubric(opening)
        self._check_keep(opening)
        if not self.is_judged:
            self.writes = (*self.writes, "rated")

    def _check_count(self, opening: Opening) -> None:
        """Raise InputError for more candidates than a tiny model was trained to rate at once."""
        lexicon, sampled = opening.lexicon(self.settings.model), self.step.sampled
        candidates = sampled.stage.candidates if sampled else None
        if lexicon is None or lexicon.completions is None or candidates is None or self.settings.shown != "all":
            return
        if candidates > lexicon.completions:
            problem = f"{self.settings.model!r} rates up to {lexicon.completions} at once, and there are {candidates}"
            fix = f"sample fewer, or `pick: {lexicon.completions}` of them"
            raise opening.pipeline.error(self.step, problem, ("model",), fix)

    def _check_rubric(self, opening: Opening) -> None:
        """Raise InputError for a rubric that does not fit `answers`, or repeats an aspect of an earlier stage."""
        scale = self.judge.rubric.scale
        if self.settings.basis == "scores" and not 0 <= scale.low < scale.high <= 9:
            problem = f"`answers: expected` needs numbers of one digit, and the scale is {scale.low} to {scale.high}"
            fix = "give the rubric a scale within 0 to 9"
            raise opening.pipeline.error(self.step, problem, ("rubric",), fix)
        for before in self.step.line():
            earlier = opening.stages[before.name]
            judged = earlier.judge.rubric.weights() if isinstance(earlier, Rate) else {}
            if aspect := next((aspect for aspect in self.judge.rubric.weights() if aspect in judged), None):
                problem = f"the stage {before.name!r} has judged the aspect {aspect!r} of these rows already"
                alone = self.step.sampled.name if self.step.sampled else "sample"
                fix = f"give it another `id` in one of the rubrics, or read the unrated candidates with `from: {alone}`"
                raise opening.pipeline.error(self.step, problem, ("rubric",), fix)

    def _check_keep(self, opening: Opening) -> None:
        """Raise InputError for a rating that no completion can reach."""
        scale, keep = self.judge.rubric.scale, self.settings.keep
        if keep is not None and keep.at_least is not None and keep.at_least > scale.high:
            problem = f"no completion is rated {keep.at_least:g}: the rubric's scale is {scale.low} to {scale.high}"
            raise opening.pipeline.error(self.step, problem, ("keep", "at_least"), "give a number on the scale")

    async def row(self, row: Row, asking: Asking) -> Row:
        asker = asking.asker(self.settings.model, self.settings.sampling)
        return await rate(row, self.settings, self.judge, asker)

    def score_of(self, row: Row) -> Mapping[int, float]:
        return self.pairing().scores(row)

    def choose(self, row: Row) -> Choice:
        return choose(row, scores=self.score_of(row), keep=self.settings.keep or ALL)

    def data(self, row: Row, shape: str) -> Iterable[dict[str, Any]] | str:
        if shape == "sft":
            return super().data(row, shape)
        return list(rated_rows([row], self.judge.rubric.weights())) or NONE

    def count(self, row: Row, facts: Counter[str]) -> str | None:
        ratings = [rating for rating in row.ratings if rating.aspect in self._aspects]  # without earlier stages' ones
        scores = [score for score in row.scores if score.aspect in self._aspects]
        facts["ratings"] += len(ratings)
        facts["not_applicable"] += sum(rating.na for rating in ratings)
        facts["scores"] += len(scores)
        problems = [*(rating.problem for rating in ratings), *(score.problem for score in scores)]
        facts["unparsed"] += sum(problem is not None for problem in problems)
        return self.unkept(row)

    def made_with(self) -> dict[str, str]:
        return self.judge.digests()

    def pairing(self) -> Pairing:
        basis = self.settings.basis
        judge = self.settings.model if basis == "scores" else None
        return Pairing("zephyr", basis, self.judge.rubric.weights(), judge=judge)

    # ------------------------------------------------------------ audited

    def decide(self, asking: Asking, gold: str | None) -> Decide:
        return by_rating(self.settings, self.judge, asking.asker(self.settings.model, self.settings.sampling))

    def how(self) -> str:
        shown = "one at a time" if self.settings.shown == "one" else "together, in both orders"
        rated = "scored by the expected rating" if self.settings.basis == "scores" else "rated"
        return f"Both completions {rated} {shown} under {self.judge.rubric.name}, the higher weighted mean preferred"

    @classmethod
    def scoring(cls, settings: RateStage) -> RatedBy:
        return RatedBy(settings.basis, read_rubric(settings.rubric).weights())


def check_schema(step: Step, rater: Rater, opening: Opening, *key: str) -> None:
    """Raise InputError when a model in this process has to answer in JSON and xgrammar is not installed."""
    if rater.answers != "json" or importlib.util.find_spec("xgrammar") is not None:
        return
    if isinstance(opening.pipeline.models.get(rater.model), TransformersModel):
        problem = f"the model {rater.model!r} needs xgrammar to answer in JSON, which is not installed"
        fix = f"{install('schema')}, or have it answer in lines (`answers: lines`)"
        raise opening.pipeline.error(step, problem, (*key, "answers"), fix)


def open_judge(rater: Rater, check: TextCheck = unchecked) -> Judge:
    """The rater's rubric and template, checked and rehearsed. Raises InputError."""
    template = read_template(rater.template, rating.OFFERED, rating.REQUIRED)
    judge = Judge(read_rubric(rater.rubric, check), template)
    for aspect in judge.rubric.aspects:
        rating.rating_prompts(REHEARSED.prompt, REHEARSED.candidates, aspect, judge, rater)
    return judge


def by_rating(rater: Rater, judge: Judge, asker: Asker) -> Decide:
    """A judge as a rate stage uses it: the higher weighted mean wins, rated in both orders.

    With `shown: one` there is no order, and each text is rated once.
    """
    from rlaif.audits.goldset import to_judge

    together_shown = rater.shown == "all"

    async def decide(prompt: Prompt, texts: tuple[str, str], _: str | None) -> Comparison:
        row = to_judge(prompt, texts)
        orders = (False, True) if together_shown else (False,)
        rated = await together(*(rate(row, rater, judge, asker, reverse=reverse) for reverse in orders))
        of_each = [_read_first(rated, candidate) for candidate in (0, 1)] if together_shown else rated * 2
        verdict = partial(_verdict, rater=rater, judge=judge)
        forward, backward = map(verdict, of_each)
        merged = Comparison.merge(forward, backward.swap(), principle=judge.rubric.name, judge=rater.model)
        return merged if together_shown else merged.model_copy(update={"orders": ()})

    return decide


def _read_first(rated: Sequence[Row], candidate: int) -> Row:
    """The ratings from the prompts that show `candidate` first; the order is drawn for each aspect."""
    one_order, other_order = rated
    ratings = []
    for own, other in zip(one_order.ratings, other_order.ratings, strict=True):
        positions = {r.candidate: r.position for r in one_order.ratings if r.aspect == own.aspect}
        ratings.append(own if positions[candidate] <= positions[1 - candidate] else other)
    return one_order.model_copy(update={"ratings": tuple(ratings)})


def _verdict(row: Row, rater: Rater, judge: Judge) -> Verdict:
    """The verdict by the scores of two candidates; A is the first of the row."""
    scores = candidate_scores(row, rater.basis, judge.rubric.weights())
    calls = (*(rating.call for rating in row.ratings), *(call for score in row.scores for call in score.calls))
    calls = tuple(dict.fromkeys(call for call in calls if call))
    raw = " against ".join(f"{scores[i]:g}" if i in scores else "unparsed" for i in (0, 1))
    if len(scores) < 2:
        problems = (*(rating.problem for rating in row.ratings), *(score.problem for score in row.scores))
        problem = next((problem for problem in problems if problem), "no aspect applies")
        return Verdict(a=0, b=1, verdict=None, raw=raw, problem=problem, calls=calls)
    verdict = preferred(0.5 if scores[0] == scores[1] else float(scores[0] > scores[1]))
    return Verdict(a=0, b=1, verdict=verdict, raw=raw, calls=calls)
