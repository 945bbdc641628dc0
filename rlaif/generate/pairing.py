"""The `pair` stage: preferences from the judgements of a prompt's candidates; prompts without one are counted.

Ratings, comparisons, rankings and scores each give the candidates of a prompt a number (`candidate_scores`), and a rule
picks the pairs:

- `zephyr` (arXiv 2310.16944, section 3.2): the best against a random one of the others, here drawn by hash; if that one
  scores as high as the best, the prompt gives no preference;
- `random-lower`: the same, drawn only among those that score lower;
- `best-worst`: the best against the lowest;
- `all`: every two that score differently, which suits a reward model (InstructGPT, arXiv 2203.02155, 3.5); a prompt
  with more than MOST_PAIRS of them is dropped;
- `k-wise`: as `all`, for prompts whose candidates all have a score, which also give rows of the `ranked` shape;
- `compared`: as a judge preferred one of two, with its probability.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, islice
from statistics import fmean, pstdev
from typing import NamedTuple

from rlaif.records import Comparison, Preference, Row, hashed_order, unit_interval

# Pairs of one prompt: every two of 140 candidates. Beyond, a prompt would fill the disk and outweigh all others.
MOST_PAIRS = 10_000


class Pairing(NamedTuple):
    """How preferences are made from rows.

    `basis` names the judgements behind the scores: ratings, comparisons, rankings or scores. `weights` are by aspect;
    `judge` names the one whose scores count. A stage with its own kind of judgement gives `scores_of`, which returns
    the scores of a row's candidates.
    """

    rule: str
    basis: str = "ratings"
    weights: Mapping[str, float] = {}
    min_margin: float = 0.0
    judge: str | None = None
    orders: str = "must_agree"  # of comparisons; or averaged
    scores_of: Callable[[Row], Mapping[int, float]] | None = None

    def scores(self, row: Row) -> Mapping[int, float]:
        """The score of each candidate; those without a readable judgement are left out."""
        if self.scores_of is not None:
            return self.scores_of(row)
        return candidate_scores(row, self.basis, self.weights, self.judge, averaged=self.orders == "averaged")


def preferences_of(
    row: Row, pairing: Pairing, dropped: Counter[str], keep: Callable[[Preference], bool] | None = None
) -> list[Preference]:
    """The preferences of one row that pass `keep`; a row without any is counted in `dropped`."""
    outcome = _pair_one(row, pairing)
    if isinstance(outcome, str):
        dropped[outcome] += 1
        return []
    kept = [preference for preference in outcome if keep is None or keep(preference)]
    if not kept:
        dropped["length balance"] += 1
    return kept


def length_balance(rows: Iterable[Row], pairing: Pairing) -> Callable[[Preference], bool]:
    """A filter that keeps as many preferences for the longer completion (in characters) as for the shorter one.

    The surplus is drawn by hash; pairs of equal length all stay.
    """
    draws: dict[bool, list[float]] = {True: [], False: []}
    for preference in (made for row in rows for made in preferences_of(row, pairing, Counter())):
        if longer := _longer(preference):
            draws[longer > 0].append(_draw(preference))
    size = min(map(len, draws.values()))
    limits = {side: sorted(values)[size - 1] if size else -1.0 for side, values in draws.items()}

    def keep(preference: Preference) -> bool:
        longer = _longer(preference)
        return longer == 0 or _draw(preference) <= limits[longer > 0]

    return keep


def _longer(preference: Preference) -> int:
    """Characters that chosen is longer than rejected."""
    return len(preference.chosen.completion.text) - len(preference.rejected.completion.text)


def _draw(preference: Preference) -> float:
    calls = (preference.chosen.completion.call, preference.rejected.completion.call)
    return unit_interval("length balance", preference.prompt.id, *calls)


def _pair_one(row: Row, pairing: Pairing) -> list[Preference] | str:
    """The row's preferences, at least one, or the drop reason."""
    if row.failure is not None:
        return "failed"
    if len(row.candidates) < 2:
        return "fewer than two candidates"
    # Training on a completion truncated at max_tokens would teach an end token where there was none.
    whole = [i for i, candidate in enumerate(row.candidates) if candidate.completion.finish_reason == "stop"]
    if len(whole) < 2:
        reasons = {candidate.completion.finish_reason for candidate in row.candidates}
        return "content filter" if "content_filter" in reasons else "cut at max_tokens"
    if pairing.rule == "compared":
        return _by_comparison(row, whole, pairing)
    return _by_scores(row, whole, pairing)


def _by_comparison(row: Row, whole: Sequence[int], pairing: Pairing) -> list[Preference] | str:
    """A preference for each comparison; its likelihood is the chosen one's score."""
    if not row.comparisons:
        return _uncompared(row, whole)
    reasons, preferences = [], []
    for comparison in _by_majority(row.comparisons):
        texts = {row.candidates[i].completion.text for i in (comparison.a, comparison.b)}
        if any(not text.strip() for text in texts) or len(texts) < 2:  # possible in a file
            reasons.append("identical texts" if len(texts) < 2 else "empty completion")
            continue
        likely = comparison.likelihood
        if likely is not None and pairing.orders == "must_agree" and comparison.contradicts:
            reasons.append("orders contradict")
            continue
        if likely is None or likely == 0.5 or 2.0 * max(likely, 1 - likely) - 1.0 < pairing.min_margin:
            reasons.append("unparsed" if likely is None else "tie" if likely == 0.5 else "margin too small")
            continue
        chosen, rejected = (comparison.a, comparison.b) if likely > 0.5 else (comparison.b, comparison.a)
        likely = max(likely, 1.0 - likely)
        preferences.append(
            Preference(
                prompt=row.prompt,
                chosen=row.candidates[chosen],
                rejected=row.candidates[rejected],
                score_chosen=likely,
                score_rejected=1.0 - likely,
                rule="compared",
                principle=comparison.principle,
                probability=None if comparison.probability is None else likely,
            )
        )
    return preferences or reasons[0]


def _uncompared(row: Row, whole: Sequence[int]) -> str:
    """The drop reason of a row without comparisons: nothing to compare, or a person has not compared it."""
    texts = {row.candidates[i].completion.text for i in whole}
    if any(not text.strip() for text in texts):
        return "empty completion"
    return "identical texts" if len(texts) < 2 else "no comparison"


def _by_majority(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """One comparison per pair and principle: the majority where a file has several."""
    groups: dict[tuple[int, int, str], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.a, comparison.b, comparison.principle), []).append(comparison)
    return [
        group[0] if len(group) == 1 else Comparison.of_jury(group, [1.0] * len(group), majority=True)
        for group in groups.values()
    ]


def _by_scores(row: Row, whole: Sequence[int], pairing: Pairing) -> list[Preference] | str:
    if pairing.basis == "comparisons" and not row.comparisons:
        return _uncompared(row, whole)
    rule, scores = pairing.rule, pairing.scores(row)
    texts = [candidate.completion.text for candidate in row.candidates]
    if rule == "k-wise" and {texts[i] for i in scores} != set(texts):
        return "unparsed"
    scored = _distinct(row, {i: scores[i] for i in whole if i in scores})
    if isinstance(scored, str):
        return scored
    picked = _picked(row, scored, rule, pairing.min_margin)
    if isinstance(picked, str):
        return picked
    return [
        Preference(
            prompt=row.prompt,
            chosen=row.candidates[chosen],
            rejected=row.candidates[rejected],
            score_chosen=scored[chosen],
            score_rejected=scored[rejected],
            rule=rule,
        )
        for chosen, rejected in picked
    ]


def _picked(row: Row, scored: Mapping[int, float], rule: str, min_margin: float) -> list[tuple[int, int]] | str:
    """The pairs of a higher and a lower score that the rule picks, at least one, or the drop reason."""
    ranked = sorted(scored, key=lambda i: (-scored[i], i))
    best, *others = ranked
    if scored[best] == scored[ranked[-1]]:
        return "tie"
    every = rule in ("all", "k-wise")
    pairs: Iterable[tuple[int, int]] = combinations(ranked, 2) if every else ((best, other) for other in others)
    if rule == "zephyr":
        others.sort()
        drawn = others[_drawn(row, others)]
        if scored[drawn] == scored[best]:
            return "tie"
        pairs = [(best, drawn)]
    apart = ((i, j) for i, j in pairs if scored[i] > scored[j] and scored[i] - scored[j] >= min_margin)
    picked = sorted(islice(apart, MOST_PAIRS + 1) if every else apart)
    if not picked:
        return "margin too small"
    if every and len(picked) > MOST_PAIRS:
        return f"more than {MOST_PAIRS:,} pairs"
    if rule == "best-worst":
        return [max(picked, key=lambda pair: (scored[best] - scored[pair[1]], -pair[1]))]
    if rule == "random-lower":
        return [picked[_drawn(row, [rejected for _, rejected in picked])]]
    return picked


def _drawn(row: Row, candidates: Sequence[int]) -> int:
    """The place of one of the candidates, drawn by hash."""
    calls = [row.candidates[i].completion.call for i in candidates]
    return hashed_order(calls, "zephyr", row.prompt.id)[0]


def noise(rows: Iterable[Row], pairing: Pairing) -> float | None:
    """The margin within the judge's own noise: what two equal candidates could differ by. None where unknown.

    For comparisons: the standard deviation over pairs of the difference between the two orders, whose mean is position
    bias and cancels. For ratings: one step of the aspect with the lowest weight.
    """
    if pairing.basis == "ratings" and pairing.weights:
        return min(pairing.weights.values()) / sum(pairing.weights.values())
    if pairing.basis != "comparisons":
        return None
    differences, compared, judged = [], 0, 0
    for row in rows:
        compared += len(row.comparisons)
        judged += len({index for comparison in row.comparisons for index in (comparison.a, comparison.b)})
        for member in (member for comparison in row.comparisons for member in comparison.members):
            if not any(order.calls for order in member.orders):  # a file's or a person's has no orders
                continue
            forward, backward = member.orders[0].likelihood, member.orders[1].swap().likelihood
            if forward is not None and backward is not None:
                differences.append(forward - backward)
    if len(differences) < 2:
        return None
    opponents = 2 * compared / judged if pairing.rule != "compared" else 1.0  # over which a score is a mean
    return pstdev(differences) / math.sqrt(opponents)


def candidate_scores(
    row: Row, basis: str, weights: Mapping[str, float], judge: str | None = None, *, averaged: bool = False
) -> dict[int, float]:
    """The score of each candidate by the row's judgements; those without a readable judgement are left out.

    Ratings and scores by aspect: the weighted mean; of scores only those of `judge`, if named. Comparisons: the mean
    likelihood of being better, which orders candidates like Bradley-Terry strengths if every two were compared; else
    there are no scores. A comparison whose orders name different winners is a tie, unless `averaged`. Rankings: the
    mean share of the others that are ranked lower, a tie counting one half.
    """
    indices = range(len(row.candidates))
    if basis == "ratings":
        scores = {i: row.score(i, dict(weights)) for i in indices}
    elif basis == "scores":
        scores = {i: _mean_score(row, i, weights, judge) for i in indices}
    elif basis == "comparisons":
        scores = {i: _mean_likelihood(row, i, averaged) for i in indices}
        scored = [i for i, value in scores.items() if value is not None]
        met = {frozenset((c.a, c.b)) for c in row.comparisons}
        if any(frozenset(pair) not in met for pair in combinations(scored, 2)):
            return {}
    else:
        scores = {i: _mean_share_below(row, i) for i in indices}
    return {i: value for i, value in scores.items() if value is not None}


def _mean_score(row: Row, candidate: int, weights: Mapping[str, float], judge: str | None) -> float | None:
    total, mass = 0.0, 0.0
    for score in row.scores:
        counts = judge in (None, score.judge) and (not weights or score.aspect in weights)
        if score.candidate == candidate and counts:
            if score.value is None:
                return None
            weight = weights.get(score.aspect or "", 1.0)
            total, mass = total + weight * score.value, mass + weight
    return round(total / mass, 9) if mass else None


def _mean_likelihood(row: Row, candidate: int, averaged: bool) -> float | None:
    own = [c for c in row.comparisons if candidate in (c.a, c.b)]
    likely = [
        0.5 if not averaged and c.contradicts else value if c.a == candidate else 1.0 - value
        for c in own
        if (value := c.likelihood) is not None
    ]
    # With a verdict missing, the mean would be over fewer opponents than the others': no score.
    return round(fmean(likely), 9) if likely and len(likely) == len(own) else None


def _mean_share_below(row: Row, candidate: int) -> float | None:
    shares = []
    for ranking in row.rankings:
        if ranking.order is None or candidate not in ranking.shown:
            return None
        level = next(k for k, tied in enumerate(ranking.order) if candidate in tied)
        below = sum(map(len, ranking.order[level + 1 :])) + (len(ranking.order[level]) - 1) / 2
        shares.append(below / max(len(ranking.shown) - 1, 1))
    return round(fmean(shares), 9) if shares else None


def _distinct(row: Row, scores: Mapping[int, float]) -> dict[int, float] | str:
    """The first candidate of each text with the mean score of its duplicates, or the drop reason."""
    if len(scores) < 2:
        return "unparsed"
    same: dict[str, list[int]] = {}
    for index in scores:
        same.setdefault(row.candidates[index].completion.text, []).append(index)
    if len(same) < 2:
        return "identical texts"
    # Rounded, so that equal means with different rounding errors tie.
    return {indices[0]: round(fmean(scores[i] for i in indices), 9) for indices in same.values()}
