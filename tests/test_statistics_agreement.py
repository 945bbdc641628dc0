"""Kappas and alpha: against published tables, against their definitions written out, and by coverage."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.statistics import (
    Interval,
    cohen_kappa,
    fleiss_kappa,
    fleiss_kappa_of_counts,
    krippendorff_alpha,
)

# Fleiss (1971) as it is usually taught: 10 items, 5 categories, 14 raters.
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
# Krippendorff (2011), section C: 4 observers, 12 units, with gaps.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
UNITS = [list(unit) for unit in zip(*OBSERVERS, strict=True)]


def mean(interval: Interval | None) -> float:
    assert interval is not None
    assert interval.low <= interval.mean <= interval.high
    return interval.mean


def test_fleiss_as_published() -> None:
    assert mean(fleiss_kappa_of_counts(FLEISS)) == pytest.approx(0.20993, abs=5e-6)
    ratings = [[label for label, n in enumerate(item) for _ in range(n)] for item in FLEISS]
    assert fleiss_kappa(ratings) == fleiss_kappa_of_counts(FLEISS)


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.7434), ("ordinal", 0.8154), ("interval", 0.8491), ("ratio", 0.7974)]
)
def test_krippendorff_as_published(level: Any, alpha: float) -> None:
    found = krippendorff_alpha(UNITS, level=level)
    assert mean(found) == pytest.approx(alpha, abs=5e-5)
    assert found is not None and found.n == 11  # the last unit has one rating


def table(counts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Two raters' labels from how often they gave each pair of them."""
    pairs = [(i, j) for i, row in enumerate(counts) for j, n in enumerate(row) for _ in range(n)]
    return [i for i, _ in pairs], [j for _, j in pairs]


def test_cohen_by_hand() -> None:
    # po = .7, pe = .5 * .6 + .5 * .4 = .5: kappa .4; the same agreement with other margins: .1304 and .2593
    assert mean(cohen_kappa(*table([[20, 5], [10, 15]]))) == pytest.approx(0.4)
    assert mean(cohen_kappa(*table([[45, 15], [25, 15]]))) == pytest.approx(0.06 / 0.46)
    assert mean(cohen_kappa(*table([[25, 35], [5, 35]]))) == pytest.approx(0.14 / 0.54)


def test_the_interval_of_kappa_is_that_of_its_standard_error() -> None:
    """Fleiss, Cohen and Everitt (1969) for two categories, on 50 items ten times over."""
    found = cohen_kappa(*table([[200, 50], [100, 150]]))
    assert found is not None and found.n == 500
    # po = .7, pe = .5, k = .4; the three terms of their variance, margins .5 .5 and .6 .4
    a = 0.4 * (1 - 1.1 * 0.6) ** 2 + 0.3 * (1 - 0.9 * 0.6) ** 2
    b = 0.6**2 * (0.1 * (0.6 + 0.5) ** 2 + 0.2 * (0.4 + 0.5) ** 2)
    error = (a + b - (0.4 - 0.5 * 0.6) ** 2) ** 0.5 / (0.5 * 500**0.5)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.02)


LABELS = st.sampled_from(["A", "B", "tie"])
PAIRS = st.lists(st.tuples(LABELS, LABELS), min_size=2, max_size=30)
GAPPY = st.lists(st.lists(st.sampled_from([1, 2, 3, 5, None]), min_size=3, max_size=3), min_size=2, max_size=12)


def cohen_written_out(pairs: Sequence[tuple[str, str]], weights: str | None) -> float | None:
    order = sorted({label for pair in pairs for label in pair})

    def distance(a: str, b: str) -> float:
        d = abs(order.index(a) - order.index(b))
        return float(d > 0) if weights is None else d if weights == "linear" else d**2

    observed = sum(distance(a, b) for a, b in pairs) / len(pairs)
    expected = sum(distance(a, b) for a, _ in pairs for _, b in pairs) / len(pairs) ** 2
    return None if expected == 0 else 1 - observed / expected


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
@given(pairs=PAIRS)
def test_cohen_is_its_definition(pairs: list[tuple[str, str]], weights: Any) -> None:
    first, second = [list(rater) for rater in zip(*pairs, strict=True)]
    found = cohen_kappa(first, second, weights=weights)
    expected = cohen_written_out(pairs, weights)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found.mean == pytest.approx(expected)
        back = cohen_kappa(second[::-1], first[::-1], weights=weights)  # neither items nor raters have an order
        assert back is not None and back.mean == pytest.approx(found.mean)
    same = cohen_kappa(first, first, weights=weights)
    assert same is None if len(set(first)) == 1 else same == (1.0, 1.0, 1.0, len(first))


def alpha_written_out(units: Sequence[Sequence[Any]], level: str) -> float | None:
    """Krippendorff's definition over pairs of values, without a coincidence matrix."""
    paired = [known for unit in units if len(known := [v for v in unit if v is not None]) > 1]
    values = [v for unit in paired for v in unit]

    def distance(a: float, b: float) -> float:
        if level == "nominal":
            return float(a != b)
        if level == "ordinal":
            low, high = min(a, b), max(a, b)
            return (sum(low <= v <= high for v in values) - (values.count(a) + values.count(b)) / 2) ** 2
        return (a - b) ** 2 if level == "interval" else ((a - b) / (a + b)) ** 2

    observed = sum(
        distance(a, b) / (len(unit) - 1) for unit in paired for a, b in itertools.permutations(unit, 2)
    ) / len(values)
    expected = sum(distance(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) * (len(values) - 1))
    return None if expected == 0 else 1 - observed / expected


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
@given(units=GAPPY)
def test_krippendorff_is_its_definition(units: list[list[int | None]], level: Any) -> None:
    paired = sum(sum(v is not None for v in unit) > 1 for unit in units)
    if not paired:
        with pytest.raises(ValueError, match="no item has two ratings"):
            krippendorff_alpha(units, level=level)
        return
    found = krippendorff_alpha(units, level=level)
    expected = alpha_written_out(units, level)
    assert (found is None) == (expected is None or paired < 2)
    if found is not None:
        assert found.mean == pytest.approx(expected) and found.n == paired
        moved = krippendorff_alpha([unit[::-1] for unit in reversed(units)], level=level)
        assert moved is not None and moved.mean == pytest.approx(found.mean)


@given(st.lists(st.lists(LABELS, min_size=3, max_size=3), min_size=2, max_size=20))
def test_fleiss_and_krippendorff_differ_by_the_correction_for_few_values(ratings: list[list[str]]) -> None:
    """Without gaps alpha = kappa + (1 - kappa) / (number of ratings), and neither knows who said what."""
    kappa, alpha = fleiss_kappa(ratings), krippendorff_alpha(ratings)
    assert (kappa is None) == (alpha is None)
    if kappa is not None and alpha is not None:
        assert alpha.mean == pytest.approx(kappa.mean + (1 - kappa.mean) / (3 * len(ratings)))
        other = fleiss_kappa([[b, c, a] for a, b, c in ratings])
        assert other is not None and other.mean == pytest.approx(kappa.mean)


def test_quadratic_weights_follow_the_order_that_is_given() -> None:
    first, second = ["low", "mid", "high"], ["low", "mid", "mid"]
    # observed 1/3; expected (0 + 1 + 1 + 1 + 0 + 0 + 4 + 1 + 1) / 9. As sorted, high < low < mid: 4/3 and 12/9.
    assert mean(cohen_kappa(first, second, weights="quadratic", order=["low", "mid", "high"])) == pytest.approx(2 / 3)
    assert mean(cohen_kappa(first, second, weights="quadratic")) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="'mid' is not in the order"):
        cohen_kappa(first, second, weights="linear", order=["low", "high"])
    with pytest.raises(ValueError, match="give their order"):
        cohen_kappa(["a", 1], [1, "a"], weights="linear")
    with pytest.raises(ValueError, match="twice"):
        krippendorff_alpha([["a", "b"]], level="ordinal", order=["a", "b", "a"])


def test_what_no_agreement_can_be_had_of() -> None:
    for found in (cohen_kappa(["A", "A"], ["A", "A"]), cohen_kappa(["A"], ["B"]), fleiss_kappa([["A", "A"]] * 3)):
        assert found is None
    for level in ("nominal", "ordinal"):
        assert krippendorff_alpha([["A", "A"], ["A", "A", None]], level=level) is None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 and 1 items"):
        cohen_kappa(["A", "B"], ["A"])
    for nothing in ([], [["A", None], [None, None]]):
        with pytest.raises(ValueError, match="no item has two ratings"):
            krippendorff_alpha(nothing)
    with pytest.raises(ValueError, match="no item has two ratings"):
        cohen_kappa([None, "A"], ["A", None])
    with pytest.raises(ValueError, match="no items"):
        fleiss_kappa([])
    with pytest.raises(ValueError, match="from 2 to 3 ratings"):
        fleiss_kappa([["A", "B"], ["A", "B", "B"]])
    with pytest.raises(ValueError, match="fewer than two"):
        fleiss_kappa([["A"], ["B"]])
    with pytest.raises(ValueError, match="item 1 has a missing rating"):
        fleiss_kappa([["A", "B"], ["A", None]])
    with pytest.raises(ValueError, match="must be numbers, not 'A'"):
        krippendorff_alpha([["A", "B"]], level="interval")
    with pytest.raises(ValueError, match="must not be negative"):
        krippendorff_alpha([[1, -1]], level="ratio")


def test_interval_alpha_is_not_lost_in_large_numbers() -> None:
    rng = np.random.default_rng(3)
    units = [[x, x + float(rng.normal(0, 0.1))] for x in rng.normal(0, 1, 50)]
    near, far = (
        krippendorff_alpha([[v + shift for v in unit] for unit in units], level="interval") for shift in (0, 1e7)
    )
    assert near is not None and far is not None and near.mean == pytest.approx(far.mean, abs=1e-6)
    same = [0.1, 1 / 3, 0.7, 1e6 / 7, 3e-9]
    found = [krippendorff_alpha([[x] * m] * n, level="interval") for x in same for m in (2, 3) for n in (5, 7, 11)]
    assert found == [None] * 30
    for x in same:  # a resample of the first item alone has one number: it is left out, and does not count as 1
        left = krippendorff_alpha([[x] * 3, [x + 0.7, x + 0.9, x + 1]], level="interval")
        assert left is not None and left.high == left.mean < 1


def test_kappa_intervals_cover_the_truth_about_95_times_in_100() -> None:
    """A second rater that repeats the first with probability .7 and else draws anew from the same margins: kappa .7."""
    rng = np.random.default_rng(4)
    covered = {"cohen": 0, "fleiss": 0, "krippendorff": 0}
    for _ in range(100):
        first = rng.integers(0, 3, 150)
        second = np.where(rng.random(150) < 0.7, first, rng.integers(0, 3, 150))
        pairs = np.stack([first, second], axis=1).tolist()
        found = {
            "cohen": cohen_kappa(first.tolist(), second.tolist()),
            "fleiss": fleiss_kappa(pairs),
            "krippendorff": krippendorff_alpha(pairs),
        }
        for name, interval in found.items():
            assert interval is not None
            covered[name] += interval.low <= 0.7 <= interval.high
    assert all(88 <= count <= 99 for count in covered.values()), covered
