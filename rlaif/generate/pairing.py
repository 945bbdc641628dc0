"""The `pair` stage: preferences from ratings or comparisons, with every prompt that gives none counted by reason.

Three rules. `zephyr` (arXiv 2310.16944, section 3.2): chosen is the best candidate, rejected a random one of the
others, here drawn by hash and only among those that score lower, so that a tie is never a preference. `best-worst`: the
best against the lowest. `compared`: as a judge preferred one of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlaif.records import Preference, Row, hashed_order


class Pairs(NamedTuple):
    """Preferences in the order of the rows, and the rows that gave none by reason: in = out + dropped."""

    preferences: list[Preference]
    dropped: Counter[str]


def pair(rows: Sequence[Row], rule: str, weights: Mapping[str, float], min_margin: float = 0.0) -> Pairs:
    """At most one preference for each row. `weights` are those of the rubric's aspects; `compared` needs none."""
    preferences: list[Preference] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        outcome = _pair_one(row, rule, weights, min_margin)
        if isinstance(outcome, Preference):
            preferences.append(outcome)
        else:
            dropped[outcome] += 1
    return Pairs(preferences, dropped)


def _pair_one(row: Row, rule: str, weights: Mapping[str, float], min_margin: float) -> Preference | str:
    """The row's preference, or the reason why it has none."""
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


def _by_comparison(row: Row, whole: Sequence[int], min_margin: float) -> Preference | str:
    if not row.comparisons:
        texts = {row.candidates[i].completion.text for i in whole}
        return "empty completion" if any(not text.strip() for text in texts) else "identical texts"
    comparison = row.comparisons[0]
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
    return Preference(
        prompt=row.prompt,
        chosen=row.candidates[chosen],
        rejected=row.candidates[rejected],
        score_chosen=likely,
        score_rejected=1.0 - likely,
        rule="compared",
        principle=comparison.principle,
        probability=None if comparison.probability is None else likely,
    )


def _by_ratings(
    row: Row, whole: Sequence[int], rule: str, weights: Mapping[str, float], min_margin: float
) -> Preference | str:
    scores = {i: row.score(i, dict(weights)) for i in whole}
    rated = {i: score for i, score in scores.items() if score is not None}
    if len(rated) < 2:
        return "unparsed"
    if len({row.candidates[i].completion.text for i in rated}) < 2:
        return "identical texts"
    best = max(rated, key=lambda i: (rated[i], -i))
    lower = [i for i in rated if rated[i] < rated[best]]
    if not lower:
        return "tie"
    lower = [i for i in lower if rated[best] - rated[i] >= min_margin]
    if not lower:
        return "margin too small"
    if rule == "best-worst":
        rejected = min(lower, key=lambda i: (rated[i], i))
    else:
        rejected = lower[hashed_order([row.candidates[i].completion.call for i in lower], "zephyr", row.prompt.id)[0]]
    return Preference(
        prompt=row.prompt,
        chosen=row.candidates[best],
        rejected=row.candidates[rejected],
        score_chosen=rated[best],
        score_rejected=rated[rejected],
        rule=rule,
    )
