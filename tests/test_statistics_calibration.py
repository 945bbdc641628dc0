"""Calibration: by hand, as an identity, and on verdicts whose true calibration error is planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.statistics import Bin, Calibration, calibration_of, soft_confidences


def of(confidence: list[float], correct: list[float], **settings: Any) -> Calibration:
    found = calibration_of(confidence, correct, **settings)
    assert found is not None
    return found


def test_soft_labels_become_confidences() -> None:
    found = soft_confidences([0.9, 0.2, 0.5, None, 0.7], [True, False, True, True, False])
    assert found.confidence == [0.9, 0.8, 0.5, 0.7] and found.correct == [1.0, 1.0, 0.5, 0.0]
    assert (found.ties, found.unparsed) == (1, 1)
    with pytest.raises(ValueError, match=r"1\.2 is not a probability"):
        soft_confidences([1.2], [True])
    with pytest.raises(ValueError, match="1 probabilities on 2"):
        soft_confidences([0.2], [True, False])


def test_the_table_by_hand() -> None:
    # (0.5, 0.6]: .55 and .6, one of two right; (0.8, 0.9]: .9, .9, .85, all right; (0.9, 1]: 1, wrong
    found = of([0.55, 0.6, 0.9, 0.9, 0.85, 1.0], [1, 0, 1, 1, 1, 0], bins=5, lowest=0.5)
    assert [b[:3] for b in found.bins] == [(0.5, 0.6, 2), (0.8, 0.9, 3), (0.9, 1.0, 1)]
    assert [b.confidence for b in found.bins] == pytest.approx([0.575, 2.65 / 3, 1.0])
    assert [b.accuracy for b in found.bins] == [0.5, 1.0, 0.0]
    assert found.ece.mean == pytest.approx((0.15 + 0.35 + 1) / 6) and found.ece.n == 6
    assert found.mce == pytest.approx(1.0)
    assert found.brier == pytest.approx((0.45**2 + 0.6**2 + 2 * 0.1**2 + 0.15**2 + 1) / 6)


def test_ends_of_bins_belong_to_the_bin_below() -> None:
    tenths = [i / 10 for i in range(11)]
    found = of(tenths, [1.0] * 11)
    assert [b.n for b in found.bins] == [2] + [1] * 9  # the first bin has its low end too
    assert [b.high for b in found.bins] == tenths[1:] and [b.low for b in found.bins] == tenths[:-1]


def test_bins_of_equal_mass_keep_equal_confidences_together() -> None:
    found = of([0.6] * 6 + [0.7, 0.8, 0.9, 0.95], [1.0] * 10, bins=5, by="mass", lowest=0.5)
    assert [(b.low, b.high, b.n) for b in found.bins] == [(0.5, 0.6, 6), (0.6, 0.8, 2), (0.8, 0.95, 2)]
    even = of(np.linspace(0.5, 1, 100).tolist(), [1.0] * 100, bins=10, by="mass", lowest=0.5)
    assert [b.n for b in even.bins] == [10] * 10
    assert of([0.5, 0.5], [0.5, 0.5], by="mass", lowest=0.5).bins == (Bin(0.5, 0.5, 2, 0.5, 0.5),)


def test_a_judge_that_always_ties_is_calibrated_and_knows_nothing() -> None:
    soft = soft_confidences([0.5] * 10, [True] * 7 + [False] * 3)
    found = of(soft.confidence, soft.correct, lowest=0.5)
    assert (found.ece.mean, found.resolution) == (0.0, 0.0)
    assert found.brier == pytest.approx(0.25) == found.uncertainty


UNIT = st.integers(0, 1000).map(lambda i: i / 1000)
VERDICTS = st.lists(st.tuples(UNIT, st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=40)


@given(VERDICTS, st.integers(1, 20), st.sampled_from(["width", "mass"]))
def test_the_brier_score_is_the_sum_of_its_parts(verdicts: list[tuple[float, float]], bins: int, by: Any) -> None:
    confidence, correct = [list(column) for column in zip(*verdicts, strict=True)]
    found = of(confidence, correct, bins=bins, by=by)
    assert found.brier == pytest.approx(found.reliability - found.resolution + found.uncertainty + found.within)
    # a tie is one verdict of each kind with half its weight
    assert found.brier == pytest.approx(
        np.mean([((c - 0) ** 2 + (c - 1) ** 2) / 2 if o == 0.5 else (c - o) ** 2 for c, o in verdicts])
    )
    assert sum(b.n for b in found.bins) == len(verdicts)
    assert found.ece.mean <= found.mce + 1e-12
    assert found.ece.mean == pytest.approx(
        sum(b.n * abs(b.accuracy - b.confidence) for b in found.bins) / len(verdicts)
    )
    other = of(confidence[::-1], correct[::-1], bins=bins, by=by)
    assert other.ece.mean == pytest.approx(found.ece.mean) and len(other.bins) == len(found.bins)


@pytest.mark.parametrize("gap", [0.0, 0.1])
@pytest.mark.parametrize("by", ["width", "mass"])
def test_the_planted_calibration_error_is_found(gap: float, by: Any) -> None:
    """Confidences of .55 to .95 that are right `gap` less often than they say.

    Chance never cancels in an ECE: of a calibrated judge it is above zero, and a percentile bootstrap would never reach
    down to it. The pivotal interval must, and for 1,000 verdicts does so in most samples.
    """
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(60):
        confidence = rng.choice([0.55, 0.65, 0.75, 0.85, 0.95], 1000)
        correct = rng.random(1000) < confidence - gap
        found = of(confidence.tolist(), correct.astype(float).tolist(), by=by, lowest=0.5).ece
        covered += found.low <= gap <= found.high
    assert 45 <= covered <= 60


def test_what_cannot_be_binned() -> None:
    assert calibration_of([0.7], [1.0]) is None
    with pytest.raises(ValueError, match="2 confidences on 1"):
        calibration_of([0.7, 0.8], [1.0])
    with pytest.raises(ValueError, match=r"a confidence of 0\.4 is not in \[0\.5, 1\]"):
        calibration_of([0.7, 0.4], [1.0, 1.0], lowest=0.5)
    with pytest.raises(ValueError, match="a correctness of 2"):
        calibration_of([0.7, 0.4], [1.0, 2])
    with pytest.raises(ValueError, match="at least one bin"):
        calibration_of([0.7, 0.4], [1.0, 1.0], bins=0)
