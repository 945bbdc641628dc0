"""Intervals: against closed forms and by coverage."""

from __future__ import annotations

import numpy as np
import pytest

from rlaif.statistics import best_of_n_kl, mean_interval, pair_accuracy, share_interval, win_rate
from rlaif.statistics.intervals import bootstrap_interval, resamples


@pytest.mark.parametrize(
    ("n", "nats"),
    [(1, 0.0), (2, 0.193147), (4, 0.636294), (8, 1.204442), (16, 1.835089), (64, 3.174508), (1024, 5.932448)],
)
def test_the_kl_of_best_of_n(n: int, nats: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(nats, abs=1e-6)


def test_the_kl_of_best_of_n_is_exact_on_a_policy_whose_samples_never_tie() -> None:
    """Two of K equally likely completions, the better kept: p(k-th) = (2k - 1) / K^2, against 1 / K, for large K."""
    size = 4000
    kept = (2 * np.arange(1, size + 1) - 1) / size**2
    assert kept.sum() == pytest.approx(1.0)
    assert float((kept * np.log(kept * size)).sum()) == pytest.approx(best_of_n_kl(2), abs=1e-3)


def test_the_bootstrap_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, 400).tolist()
    interval = mean_interval(values)
    assert interval is not None
    half = 1.96 * np.std(values, ddof=1) / 20
    assert interval.mean == pytest.approx(np.mean(values))
    assert interval.low == pytest.approx(interval.mean - half, abs=0.02)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.02)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        interval = mean_interval(rng.exponential(1.0, 60).tolist())
        assert interval is not None
        covered += interval.low <= 1.0 <= interval.high
    assert 178 <= covered <= 199


def test_no_values_no_interval_and_equal_values_no_width() -> None:
    assert mean_interval([]) is None and mean_interval([1.0]) is None and share_interval([]) is None
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0, 2.0, 2)


def test_wilson_by_hand() -> None:
    # 8 of 10: centre (0.8 + 1.9208 / 10) / 1.38416 = 0.71673, half 0.22677 (Wilson 1927, equation 1)
    interval = share_interval([True] * 8 + [False] * 2)
    assert interval is not None
    assert (interval.low, interval.high) == (pytest.approx(0.49016, abs=1e-4), pytest.approx(0.94331, abs=1e-4))
    sure = share_interval([True] * 30)
    assert sure is not None and sure.low < 0.9 and sure.high == pytest.approx(1.0)


def test_a_tie_is_half_a_win_and_unparsed_is_left_out() -> None:
    won = win_rate([3.0, 2.0, 1.0, None, 5.0], [2.0, 2.0, 2.0, 1.0, None])
    assert won is not None
    assert won.rate.mean == pytest.approx(0.5) and won.rate.n == 3 and won.ties == pytest.approx(1 / 3)
    assert win_rate([None], [1.0]) is None


def test_pair_accuracy_by_hand() -> None:
    # prompt 1: truth 1 > .5 > .1; the scores order (0,1) right, (0,2) right, (1,2) as a tie: (1 + 1 + .5) / 3
    # prompt 2: the truths are within the gap: not counted
    found = pair_accuracy([[5, 3, 3], [1, 2, None]], [[1.0, 0.5, 0.1], [0.5, 0.52, 0.9]])
    assert found is None  # one prompt is no sample
    found = pair_accuracy([[5, 3, 3], [1, 2, 4]], [[1.0, 0.5, 0.1], [0.5, 0.52, 0.9]])
    assert found is not None and found.mean == pytest.approx((2.5 / 3 + 1) / 2) and found.n == 2


@pytest.mark.parametrize("counts", [[40, 0, 25, 35], [1] * 60, [2, 1, 3]])  # drawn by kind, and item by item
def test_items_drawn_again_are_as_many_and_come_as_often_as_they_are(counts: list[int]) -> None:
    batches = list(resamples(counts, times=1_200))
    drawn = np.concatenate(batches)
    assert drawn.shape == (1_200, len(counts)) and len(batches) == 3
    assert (drawn.sum(axis=1) == sum(counts)).all()
    assert drawn.mean(axis=0) == pytest.approx(counts, abs=0.6)
    share = np.array(counts) / sum(counts)
    assert drawn.var(axis=0) == pytest.approx(sum(counts) * share * (1 - share), rel=0.25)


@pytest.mark.parametrize("kinds", [5, 300])
def test_a_bootstrap_over_kinds_is_the_bootstrap_over_items(kinds: int) -> None:
    values = np.round(np.random.default_rng(3).normal(size=300), 9)[:kinds]
    items = np.tile(values, 300 // kinds)
    found = bootstrap_interval([300 // kinds] * kinds, lambda drawn: drawn @ values / 300)
    expected = mean_interval(items.tolist())
    assert found is not None and expected is not None and found.n == 300
    assert found[:3] == pytest.approx(expected[:3], abs=0.01)


def test_what_a_statistic_is_undefined_on_is_left_out() -> None:
    def spread(drawn: np.ndarray) -> np.ndarray:  # undefined where only one kind is drawn
        return np.where((drawn > 0).all(axis=1), drawn[:, 0], np.nan)

    found = bootstrap_interval([1, 2], spread)
    assert found is not None and (found.mean, found.low, found.high, found.n) == (1, 1, 2, 3)
    assert bootstrap_interval([3, 0], spread) is None and bootstrap_interval([1], lambda drawn: drawn[:, 0]) is None
