"""The `pair` stage: preferences from whatever a judge said of a prompt's candidates, prompts without one counted.

Ratings, comparisons, rankings and scores each give the candidates of a prompt a number (`candidate_scores`), and a rule
picks who is preferred to whom:

- `zephyr` (arXiv 2310.16944, section 3.2): the best against a random one of the others, here drawn by hash; where the
  one drawn scores as high as the best, the prompt gives no preference;
- `random-lower`: the same, drawn only among those that score lower;
- `best-worst`: the best against the lowest;
- `all`: every two that score differently, what a reward model learns most from (InstructGPT, arXiv 2203.02155, 3.5);
- `k-wise`: as `all`, of prompts whose candidates all have a score, which also give rows of the `ranked` shape;
- `compared`: as a judge preferred one of two, with the probability it gave.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean, pstdev
from typing import NamedTuple

from rlaif.records import Comparison, Preference, Row, hashed_order, unit_interval


class Pairing(NamedTuple):
    """How preferences are made of rows.

    `basis` says what judgements the scores come from: ratings, comparisons, rankings or scores; `weights` are those of
    the aspects rated or scored, `judge` whose scores count where there are several judges'.
    """

    rule: str
    basis: str = "ratings"
    weights: Mapping[str, float] = {}
    min_margin: float = 0.0
    judge: str | None = None


def preferences_of(
    row: Row, pairing: Pairing, dropped: Counter[str], keep: Callable[[Preference], bool] | None = None
) -> list[Preference]:
    """The preferences of one row; `dropped` counts it where it gives none. `keep` says which may stay."""
    outcome = _pair_one(row, pairing)
    if isinstance(outcome, str):
        dropped[outcome] += 1
        return []
    kept = [preference for preference in outcome if keep is None or keep(preference)]
    if not kept:
        dropped["length balance"] += 1
    return kept


def length_balance(rows: Iterable[Row], pairing: Pairing) -> Callable[[Preference], bool]:
    """Which preferences stay, so that as many prefer the longer completion (in characters) as the shorter one.

    Those to go are drawn by hash among the more numerous kind; of equal lengths all stay.
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
    """By how many characters chosen is longer than rejected."""
    return len(preference.chosen.completion.text) - len(preference.rejected.completion.text)


def _draw(preference: Preference) -> float:
    calls = (preference.chosen.completion.call, preference.rejected.completion.call)
    return unit_interval("length balance", preference.prompt.id, *calls)


def _pair_one(row: Row, pairing: Pairing) -> list[Preference] | str:
    """The row's preferences, at least one, or the reason why it has none."""
    if row.failure is not None:
        return "failed"
    if len(row.candidates) < 2:
        return "fewer than two candidates"
    # A completion cut at max_tokens never reached its end token; training would teach an end that was not there.
    whole = [i for i, candidate in enumerate(row.candidates) if candidate.completion.finish_reason == "stop"]
    if len(whole) < 2:
        reasons = {candidate.completion.finish_reason for candidate in row.candidates}
        return "content filter" if "content_filter" in reasons else "cut at max_tokens"
    if pairing.rule == "compared":
        return _by_comparison(row, whole, pairing.min_margin)
    return _by_scores(row, whole, pairing)


def _by_comparison(row: Row, whole: Sequence[int], min_margin: float) -> list[Preference] | str:
    """What each comparison prefers: its likelihood is the chosen one's score."""
    if not row.comparisons:
        return _uncompared(row, whole)
    reasons, found = [], []
    for comparison in _by_majority(row.comparisons):
        texts = {row.candidates[i].completion.text for i in (comparison.a, comparison.b)}
        if any(not text.strip() for text in texts) or len(texts) < 2:  # a file may have compared what no judge is shown
            reasons.append("identical texts" if len(texts) < 2 else "empty completion")
            continue
        likely = comparison.likelihood
        if likely is None or likely == 0.5 or 2.0 * max(likely, 1 - likely) - 1.0 < min_margin:
            reasons.append("unparsed" if likely is None else "tie" if likely == 0.5 else "margin too small")
            continue
        chosen, rejected = (comparison.a, comparison.b) if likely > 0.5 else (comparison.b, comparison.a)
        likely = max(likely, 1.0 - likely)
        found.append(
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
    return found or reasons[0]


def _uncompared(row: Row, whole: Sequence[int]) -> str:
    """Why nobody compared the candidates: there was nothing to compare, or no person came to it."""
    texts = {row.candidates[i].completion.text for i in whole}
    if any(not text.strip() for text in texts):
        return "empty completion"
    return "identical texts" if len(texts) < 2 else "no comparison"


def _by_majority(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """One comparison of each pair under each principle: what most judges say where a file has several."""
    groups: dict[tuple[int, int, str], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.a, comparison.b, comparison.principle), []).append(comparison)
    return [
        said[0] if len(said) == 1 else Comparison.of_jury(said, [1.0] * len(said), majority=True)
        for said in groups.values()
    ]


def _by_scores(row: Row, whole: Sequence[int], pairing: Pairing) -> list[Preference] | str:
    if pairing.basis == "comparisons" and not row.comparisons:
        return _uncompared(row, whole)
    rule, scores = pairing.rule, candidate_scores(row, pairing.basis, pairing.weights, pairing.judge)
    texts = [candidate.completion.text for candidate in row.candidates]
    if rule == "k-wise" and {texts[i] for i in scores} != set(texts):
        return "unparsed"
    scored = _distinct(row, {i: scores[i] for i in whole if i in scores})
    if isinstance(scored, str):
        return scored
    apart = {(i, j): scored[i] - scored[j] for i in scored for j in scored if scored[i] > scored[j]}
    if not apart:
        return "tie"
    best = max(scored, key=lambda i: (scored[i], -i))
    if rule == "zephyr":
        others = sorted(i for i in scored if i != best)
        calls = [row.candidates[i].completion.call for i in others]
        drawn = best, others[hashed_order(calls, "zephyr", row.prompt.id)[0]]
        if drawn not in apart:
            return "tie"
        apart = {drawn: apart[drawn]}
    elif rule not in ("all", "k-wise"):
        apart = {(i, j): margin for (i, j), margin in apart.items() if i == best}
    apart = {pair: margin for pair, margin in apart.items() if margin >= pairing.min_margin}
    if not apart:
        return "margin too small"
    picked = sorted(apart)
    if rule == "best-worst":
        picked = [max(apart, key=lambda pair: (apart[pair], -pair[1]))]
    elif rule == "random-lower":
        calls = [row.candidates[rejected].completion.call for _, rejected in picked]
        picked = [picked[hashed_order(calls, "zephyr", row.prompt.id)[0]]]
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


def noise(rows: Iterable[Row], pairing: Pairing) -> float | None:
    """The margin that says no more than chance: what the judge's own noise makes of two candidates that are alike.

    Of comparisons it is how much the difference between the two orders varies from pair to pair: what all pairs share
    is the liking for a place, which cancels in the average. Of ratings it is one step of the lightest aspect, for a
    judge that wavers wavers by one. None where nothing tells.
    """
    if pairing.basis == "ratings" and pairing.weights:
        return min(pairing.weights.values()) / sum(pairing.weights.values())
    if pairing.basis != "comparisons":
        return None
    apart, asked, judged = [], 0, 0
    for row in rows:
        asked += len(row.comparisons)
        judged += len({index for comparison in row.comparisons for index in (comparison.a, comparison.b)})
        for member in (member for comparison in row.comparisons for member in comparison.members):
            if not any(order.calls for order in member.orders):  # what a file or a person states was asked in no order
                continue
            forward, backward = member.orders[0].likelihood, member.orders[1].swap().likelihood
            if forward is not None and backward is not None:
                apart.append(forward - backward)
    if len(apart) < 2:
        return None
    opponents = 2 * asked / judged if pairing.rule != "compared" else 1.0  # a score is a mean over so many
    return pstdev(apart) / math.sqrt(opponents)


def candidate_scores(row: Row, basis: str, weights: Mapping[str, float], judge: str | None = None) -> dict[int, float]:
    """What each candidate is worth by the row's judgements; one without a readable judgement is left out.

    Ratings and scores by aspect: their weighted mean; of scores those of `judge` alone where one is named. Comparisons:
    the mean likelihood of being the better one, which orders candidates as Bradley-Terry strengths do, where every two
    were compared; else nothing can be said of two that met different opponents. Rankings: the mean share of the
    others that stand below, a tie counting one half.
    """
    indices = range(len(row.candidates))
    if basis == "ratings":
        found = {i: row.score(i, dict(weights)) for i in indices}
    elif basis == "scores":
        found = {i: _mean_score(row, i, weights, judge) for i in indices}
    elif basis == "comparisons":
        found = {i: _mean_likelihood(row, i) for i in indices}
        scored = [i for i, value in found.items() if value is not None]
        met = {frozenset((c.a, c.b)) for c in row.comparisons}
        if any(frozenset(pair) not in met for pair in combinations(scored, 2)):
            return {}
    else:
        found = {i: _mean_share_below(row, i) for i in indices}
    return {i: value for i, value in found.items() if value is not None}


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


def _mean_likelihood(row: Row, candidate: int) -> float | None:
    said = [c for c in row.comparisons if candidate in (c.a, c.b)]
    likely = [value if c.a == candidate else 1.0 - value for c in said if (value := c.likelihood) is not None]
    # One missing verdict makes the mean one over other opponents than the others': no candidate is scored by that.
    return round(fmean(likely), 9) if likely and len(likely) == len(said) else None


def _mean_share_below(row: Row, candidate: int) -> float | None:
    shares = []
    for ranking in row.rankings:
        if ranking.order is None or candidate not in ranking.shown:
            return None
        place = next(k for k, tied in enumerate(ranking.order) if candidate in tied)
        below = sum(map(len, ranking.order[place + 1 :])) + (len(ranking.order[place]) - 1) / 2
        shares.append(below / max(len(ranking.shown) - 1, 1))
    return round(fmean(shares), 9) if shares else None


def _distinct(row: Row, scores: Mapping[int, float]) -> dict[int, float] | str:
    """The first candidate of each text with the mean score of all that say the same, or why there are not two."""
    if len(scores) < 2:
        return "unparsed"
    same: dict[str, list[int]] = {}
    for index in scores:
        same.setdefault(row.candidates[index].completion.text, []).append(index)
    if len(same) < 2:
        return "identical texts"
    # Rounded, so that two ways of adding up the same mean are a tie and not a preference.
    return {indices[0]: round(fmean(scores[i] for i in indices), 9) for indices in same.values()}
