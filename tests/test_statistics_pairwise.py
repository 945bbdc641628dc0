"""Both orders of a comparison, and juries: by hand, and on judges whose bias is planted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.records import Choice, Comparison, Verdict
from rlaif.statistics import (
    Interval,
    both_orders,
    jury_weights,
    longer_rate,
    order_bias,
    share_interval,
)

CHOICES: list[Choice | None] = ["A", "B", "tie", None]
VERDICTS = st.lists(st.tuples(st.sampled_from(CHOICES), st.sampled_from(CHOICES)), max_size=30)


def mean(interval: Interval | None) -> float:
    assert interval is not None
    return interval.mean


def test_order_bias_by_hand() -> None:
    # A then B: the same candidate both times. A then A: the first slot both times; A then tie leans that way.
    forward: list[Choice | None] = ["A", "B", "tie", "A", "A", "B", "tie", "A", None, "A"]
    backward: list[Choice | None] = ["B", "A", "tie", "A", "tie", "B", "A", "A", "A", None]
    found = order_bias(forward, backward)
    assert found.unparsed == 2
    assert (mean(found.consistent), mean(found.toward_first), mean(found.toward_second)) == (3 / 8, 4 / 8, 1 / 8)
    assert found.consistent == share_interval([True] * 3 + [False] * 5)
    assert mean(found.first_slot) == 8 / 16 and mean(found.second_slot) == 4 / 16  # 16 verdicts, of which 4 tie
    assert found.first_slot is not None and found.first_slot.n == 8
    assert order_bias([None], ["A"]) == (None, None, None, None, None, 1)
    with pytest.raises(ValueError, match="unequal length: 1, 2"):
        order_bias(["A"], ["A", "B"])


@given(VERDICTS)
def test_a_pair_is_consistent_or_moves_one_way_and_the_orders_have_no_order(
    pairs: list[tuple[Choice | None, Choice | None]],
) -> None:
    forward, backward = [a for a, _ in pairs], [b for _, b in pairs]
    found = order_bias(forward, backward)
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    assert found.unparsed == len(pairs) - len(known)
    assert order_bias(backward, forward) == found
    if known:
        assert mean(found.consistent) + mean(found.toward_first) + mean(found.toward_second) == pytest.approx(1.0)
        assert mean(found.consistent) == sum(not disagree(a, b) for a, b in known) / len(known)


def disagree(forward: Choice | None, backward: Choice | None) -> bool:
    return merged(forward, backward).disagrees


def merged(
    forward: Choice | None, backward: Choice | None, probabilities: tuple[float, float] | None = None
) -> Comparison:
    verdicts = [
        Verdict(
            a=a,
            b=1 - a,
            verdict=choice,
            probability=None if probabilities is None else probabilities[a],
            problem="unread" if choice is None else None,
        )
        for a, choice in enumerate((forward, backward))
    ]
    return Comparison.merge(verdicts[0], verdicts[1], principle="p", judge="j")


def test_both_orders_by_hand() -> None:
    found = both_orders(["A", "A", "B", None], ["B", "A", "A", None], ["A", "A", "A", "B"])
    assert found is not None
    assert [share.mean for share in found] == [2 / 4, 1 / 4, 3 / 8, 1 / 4, 3 / 4]
    assert {share.n for share in found} == {4}
    assert both_orders(["A"], ["B"], ["A"]) is None


QUALITY = st.floats(-8, 8)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(QUALITY, QUALITY)
def test_averaging_both_orders_takes_the_slots_pull_away(quality: float, slot: float) -> None:
    def averaged(forward: float, backward: float) -> float:
        probability = merged("A", "B", (forward, backward)).probability
        assert probability is not None
        return probability

    average = averaged(logistic(quality + slot), logistic(-quality + slot))
    assert average == pytest.approx((logistic(quality + slot) + logistic(quality - slot)) / 2, abs=1e-9)
    assert average == averaged(logistic(quality - slot), logistic(-quality - slot))  # whichever slot pulls
    assert averaged(logistic(-quality + slot), logistic(quality + slot)) == pytest.approx(1 - average, abs=1e-9)
    assert averaged(logistic(slot), logistic(slot)) == 0.5  # equal candidates
    assert (average > 0.5) == (quality > 0) or average == 0.5  # what rounding leaves of a small quality


def test_a_planted_slot_bias_is_found() -> None:
    """A judge of known quality and slot bias: the logistic model's shares are within the intervals."""
    rng = np.random.default_rng(7)
    quality = rng.normal(0, 1, 2000)
    bias = 0.8
    first, second = logistic_of(quality + bias), logistic_of(-quality + bias)
    forward: list[Choice | None] = ["A" if x else "B" for x in rng.random(2000) < first]
    backward: list[Choice | None] = ["A" if x else "B" for x in rng.random(2000) < second]
    found = order_bias(forward, backward)
    for interval, truth in (
        (found.first_slot, (first + second).mean() / 2),
        (found.toward_first, (first * second).mean()),
        (found.toward_second, ((1 - first) * (1 - second)).mean()),
        (found.consistent, (first * (1 - second) + (1 - first) * second).mean()),
    ):
        assert interval is not None and interval.low <= truth <= interval.high and interval.high - interval.low < 0.05


def logistic_of(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def test_preferring_the_longer() -> None:
    found = longer_rate(["A", "B", "A", "tie", None, "A"], [9, 9, 1, 9, 9, 5], [1, 1, 9, 1, 1, 5])
    assert found == share_interval([True, False, False])  # equal lengths, ties and unparsed say nothing
    assert longer_rate(["tie"], [1], [2]) is None
    with pytest.raises(ValueError, match="unequal length: 1, 2, 1"):
        longer_rate(["A"], [1, 2], [1])


def test_jury_weights_by_hand() -> None:
    gold: list[Choice] = ["A", "B", "A", "B"]
    weights = jury_weights(
        {
            "sure": ["A", "B", "A", "B"],
            "wrong": ["B", "A", "B", "tie"],
            "even": ["A", "A", None, None],
            "mute": [None] * 4,
        },
        gold,
    )
    assert weights == pytest.approx({"sure": math.log(5), "wrong": -math.log(4), "even": 0.0, "mute": 0.0})
    with pytest.raises(ValueError, match="'short' has 1 verdicts on 4"):
        jury_weights({"short": ["A"]}, gold)
    with pytest.raises(ValueError, match="A or B, not 'tie'"):
        jury_weights({}, ["tie"])


def decided(choices: Mapping[str, Choice | None], weights: Mapping[str, float]) -> Choice | None:
    """What a jury of these judges decides by the weighted majority."""
    members = [
        Comparison(a=0, b=1, principle="p", judge=name, verdict=choice, probability=None, orders=())
        for name, choice in choices.items()
    ]
    return Comparison.of_jury(members, [weights[name] for name in choices], majority=True).verdict


def test_weighted_majority() -> None:
    equal = {"x": 1.0, "y": 1.0, "z": 1.0}
    assert decided({"x": "A", "y": "B", "z": "B"}, equal) == "B"
    assert decided({"x": "A", "y": "B", "z": "tie"}, equal) == "tie"
    assert decided({"x": None, "y": None}, equal) is None
    assert decided({"x": None, "y": "A", "z": "A"}, equal) == "A"
    # weights that cancel only on paper are a tie in every order of addition
    thirds = {"x": 0.1, "y": 0.2, "z": 0.3}
    for order in itertools.permutations(thirds):
        assert decided({name: "B" if name == "z" else "A" for name in order}, thirds) == "tie"


def test_fitted_weights_beat_the_plain_majority_and_recover_the_planted_accuracies() -> None:
    """One good judge among four poor ones, independent: the best rule is the log-odds one (Nitzan and Paroush 1982)."""
    rng = np.random.default_rng(8)
    accuracy = {"good": 0.9, "a": 0.55, "b": 0.55, "c": 0.55, "d": 0.55}

    def pairs(n: int) -> tuple[list[Choice], dict[str, list[Choice | None]]]:
        gold = rng.random(n) < 0.5
        verdicts = {name: np.where(rng.random(n) < p, gold, ~gold) for name, p in accuracy.items()}
        return ["A" if g else "B" for g in gold], {k: ["A" if x else "B" for x in v] for k, v in verdicts.items()}

    gold, verdicts = pairs(4000)
    weights = jury_weights(verdicts, gold)
    for name, p in accuracy.items():
        assert weights[name] == pytest.approx(math.log(p / (1 - p)), abs=4 / (4000 * p * (1 - p)) ** 0.5)
    gold, verdicts = pairs(4000)
    right = {
        rule: sum(decided({name: v[i] for name, v in verdicts.items()}, given) == true for i, true in enumerate(gold))
        for rule, given in {"fitted": weights, "plain": dict.fromkeys(accuracy, 1.0)}.items()
    }
    assert right["fitted"] / 4000 == pytest.approx(0.9, abs=0.02)
    assert right["plain"] / 4000 < 0.75
