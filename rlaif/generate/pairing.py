"""The `pair` stage: preferences from ratings or comparisons, with every prompt that gives none counted by reason.

Four rules. `zephyr` (arXiv 2310.16944, section 3.2): chosen is the best candidate, rejected a random one of the
others, here drawn by hash and only among those that score lower, so that a tie is never a preference. `best-worst`: the
best against the lowest. `all`: every two that score differently, what a reward model learns most from (InstructGPT,
arXiv 2203.02155, section 3.5). `compared`: as a judge preferred one of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from rlaif.records import Preference, Row, hashed_order


class Pairs(NamedTuple):
    """Preferences in the order of the rows, and the rows that gave none by reason: in = paired + dropped."""

    preferences: list[Preference]
    paired: int
    dropped: Counter[str]


def pair(rows: Sequence[Row], rule: str, weights: Mapping[str, float], min_margin: float = 0.0) -> Pairs:
    """The rows' preferences. `weights` are those of the rubric's aspects; `compared` needs none."""
    dropped: Counter[str] = Counter()
    preferences = list(each_preference(rows, rule, weights, min_margin, dropped))
    return Pairs(preferences, len(rows) - dropped.total(), dropped)


def each_preference(
    rows: Iterable[Row], rule: str, weights: Mapping[str, float], min_margin: float, dropped: Counter[str]
) -> Iterator[Preference]:
    """As `pair`, one after the other; `dropped` is complete when the last has come."""
    for row in rows:
        outcome = _pair_one(row, rule, weights, min_margin)
        if isinstance(outcome, str):
            dropped[outcome] += 1
        else:
            yield from outcome


def _pair_one(row: Row, rule: str, weights: Mapping[str, float], min_margin: float) -> list[Preference] | str:
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
    if rule == "compared":
        return _by_comparison(row, whole, min_margin)
    return _by_ratings(row, whole, rule, weights, min_margin)


def _by_comparison(row: Row, whole: Sequence[int], min_margin: float) -> list[Preference] | str:
    if not row.comparisons:
        texts = {row.candidates[i].completion.text for i in whole}
        return "empty completion" if any(not text.strip() for text in texts) else "identical texts"
    comparison = row.comparisons[0]
    texts = {row.candidates[i].completion.text for i in (comparison.a, comparison.b)}
    if any(not text.strip() for text in texts):  # a file may have compared what no judge is shown
        return "empty completion"
    if len(texts) < 2:
        return "identical texts"
    if comparison.verdict is None:
        return "unparsed"
    probability = comparison.probability
    if probability is None:
        probability = {"A": 1.0, "B": 0.0, "tie": 0.5}[comparison.verdict]
    if probability == 0.5:
        return "tie"
    a_is_chosen = probability > 0.5
    chosen, rejected = (comparison.a, comparison.b) if a_is_chosen else (comparison.b, comparison.a)
    likely = probability if a_is_chosen else 1.0 - probability
    if 2.0 * likely - 1.0 < min_margin:
        return "margin too small"
    preference = Preference(
        prompt=row.prompt,
        chosen=row.candidates[chosen],
        rejected=row.candidates[rejected],
        score_chosen=likely,
        score_rejected=1.0 - likely,
        rule="compared",
        principle=comparison.principle,
        probability=None if comparison.probability is None else likely,
    )
    return [preference]


def _by_ratings(
    row: Row, whole: Sequence[int], rule: str, weights: Mapping[str, float], min_margin: float
) -> list[Preference] | str:
    rated = _distinct(row, {i: score for i in whole if (score := _score(row, i, weights)) is not None})
    if isinstance(rated, str):
        return rated
    apart = {(i, j): rated[i] - rated[j] for i in rated for j in rated if rated[i] > rated[j]}
    if not apart:
        return "tie"
    best = max(rated, key=lambda i: (rated[i], -i))
    if rule != "all":
        apart = {(i, j): margin for (i, j), margin in apart.items() if i == best}
    apart = {pair: margin for pair, margin in apart.items() if margin >= min_margin}
    if not apart:
        return "margin too small"
    if rule == "best-worst":
        chosen_rejected = [max(apart, key=lambda pair: (apart[pair], -pair[1]))]
    elif rule == "zephyr":
        lower = sorted(apart)
        calls = [row.candidates[rejected].completion.call for _, rejected in lower]
        chosen_rejected = [lower[hashed_order(calls, "zephyr", row.prompt.id)[0]]]
    else:
        chosen_rejected = sorted(apart)
    return [
        Preference(
            prompt=row.prompt,
            chosen=row.candidates[chosen],
            rejected=row.candidates[rejected],
            score_chosen=rated[chosen],
            score_rejected=rated[rejected],
            rule=rule,
        )
        for chosen, rejected in chosen_rejected
    ]


def _score(row: Row, candidate: int, weights: Mapping[str, float]) -> float | None:
    """A candidate's score of its ratings, or where no rating has a weight what a file states: scores, else a ranking.

    Of a ranking it is how many candidates stand below, in numbers that mean an order and no distance.
    """
    if weights:
        return row.score(candidate, dict(weights))
    if not row.candidates[candidate].completion.text.strip():
        return None
    stated = next((score for score in row.scores if score.candidate == candidate), None)
    if stated is not None:
        return stated.value
    order = next((ranking.order for ranking in row.rankings if ranking.order is not None), ())
    tier = next((tier for tier, tied in enumerate(order or ()) if candidate in tied), None)
    return None if tier is None else float(sum(map(len, (order or ())[tier + 1 :])))


def _distinct(row: Row, scores: Mapping[int, float]) -> dict[int, float] | str:
    """The first candidate of each text with the mean score of all that say the same, or why there are not two."""
    if len(scores) < 2:
        return "unparsed"
    same: dict[str, list[int]] = {}
    for index in scores:
        same.setdefault(row.candidates[index].completion.text, []).append(index)
    if len(same) < 2:
        return "identical texts"
    return {indices[0]: fmean(scores[i] for i in indices) for indices in same.values()}
