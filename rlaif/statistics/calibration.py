"""Whether a judge is right as often as it is confident: ECE, MCE, the Brier score and its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlaif.statistics.intervals import Interval, bootstrap_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Bin(NamedTuple):
    """One row of the reliability table: verdicts with a confidence in (low, high], the first bin with its low end."""

    low: float
    high: float
    n: int
    confidence: float  # mean
    accuracy: float


class Calibration(NamedTuple):
    """How confidence and correctness go together, over the bins that hold a verdict.

    brier = reliability - resolution + uncertainty + within, exactly (Murphy 1973; `within`, Stephenson et al. 2008, is
    what binning leaves: the confidences' variance less twice their covariance with correctness, inside the bins).
    """

    ece: Interval  # sum over bins of n / N |accuracy - confidence|
    mce: float  # the largest |accuracy - confidence| of a bin, however few verdicts it holds
    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float
    bins: tuple[Bin, ...]


class Confidences(NamedTuple):
    """Parsed verdicts' confidence, how correct each is (1, 0; a tie one half), and what they were made from."""

    confidence: list[float]
    correct: list[float]
    ties: int
    unparsed: int


def soft_confidences(probabilities: Sequence[float | None], gold: Sequence[bool]) -> Confidences:
    """A binary soft label as confidence max(p, 1 - p) and correctness: whether the preferred one is gold's.

    `probabilities` are of the first of two, `gold` says whether the first is the better. p = 1/2 prefers neither: it is
    half correct, and counts as one verdict of each kind with half its weight. None is unparsed and left out.
    Raises ValueError for unequal lengths and for what is no probability.
    """
    if len(probabilities) != len(gold):
        raise ValueError(f"{len(probabilities)} probabilities on {len(gold)} gold labels")
    known = [(p, first) for p, first in zip(probabilities, gold, strict=True) if p is not None]
    for p, _ in known:
        if not 0 <= p <= 1:
            raise ValueError(f"{p} is not a probability")
    return Confidences(
        [max(p, 1 - p) for p, _ in known],
        [0.5 if p == 0.5 else float((p > 0.5) == first) for p, first in known],
        sum(p == 0.5 for p, _ in known),
        len(probabilities) - len(known),
    )


def calibration_of(
    confidence: Sequence[float],
    correct: Sequence[float],
    *,
    bins: int = 10,
    by: Literal["width", "mass"] = "width",
    lowest: float = 0.0,
    seed: int = 0,
) -> Calibration | None:
    """Confidences in [lowest, 1] against correctness in [0, 1], in bins (Guo et al. 2017, section 2; arXiv 1706.04599).

    `by` width cuts [lowest, 1] evenly; binary soft labels start at `lowest` 0.5. By mass, bins hold about equally many
    verdicts; equal confidences share a bin, so there may be fewer. None for fewer than two verdicts. Raises ValueError
    for unequal lengths and values out of range.

    The ECE of few verdicts is too large, since chance does not cancel in an absolute value, and that of a resample has
    this bias twice. So its interval is the pivotal bootstrap over verdicts with fixed bins: resamples reflected at the
    estimate, which removes the excess and may leave the estimate near or beyond the interval's upper end.
    """
    import numpy as np

    _check_outcomes(confidence, correct, bins, lowest)
    if len(confidence) < 2:
        return None
    kinds = Counter(zip(map(float, confidence), map(float, correct), strict=True))
    weight = np.array(list(kinds.values()))
    confident, right = np.array(list(kinds)).T
    ends = _ends(np.asarray(confidence, dtype=float), bins, by, lowest)
    edges = list(zip([lowest, *ends[:-1]], ends, strict=True))
    member = np.eye(len(ends))[np.searchsorted(ends, confident, side="left")]
    held = np.flatnonzero(weight @ member)
    member = member[:, held]
    n, total = weight @ member, len(confidence)
    mean, accuracy = (weight * confident) @ member / n, (weight * right) @ member / n
    overall = float(weight @ right) / total
    reliability = float(n @ (mean - accuracy) ** 2) / total
    resolution = float(n @ (accuracy - overall) ** 2) / total
    # Of an outcome that is 1 with weight o and 0 with 1 - o, (confidence - outcome)^2 is on average c^2 - 2 c o + o.
    brier = float(weight @ (confident**2 - 2 * confident * right + right)) / total
    gaps = member * (right - confident)[:, None]
    ece = bootstrap_interval(
        list(kinds.values()), lambda drawn: np.asarray(np.abs(drawn @ gaps).sum(axis=1) / total), seed=seed
    )
    assert ece is not None
    return Calibration(
        Interval(ece.mean, max(0.0, 2 * ece.mean - ece.high), 2 * ece.mean - ece.low, ece.n),
        float(np.abs(mean - accuracy).max()),
        brier,
        reliability,
        resolution,
        overall * (1 - overall),
        float(weight @ (confident**2 - 2 * confident * right)) / total
        - float(n @ (mean**2 - 2 * mean * accuracy)) / total,
        tuple(
            Bin(float(edges[index][0]), float(edges[index][1]), int(count), float(c), float(a))
            for index, count, c, a in zip(held, n, mean, accuracy, strict=True)
        ),
    )


def _check_outcomes(confidence: Sequence[float], correct: Sequence[float], bins: int, lowest: float) -> None:
    if len(confidence) != len(correct):
        raise ValueError(f"{len(confidence)} confidences on {len(correct)} outcomes")
    if bins < 1:
        raise ValueError("there must be at least one bin")
    for name, low, values in (("confidence", lowest, confidence), ("correctness", 0.0, correct)):
        if outside := [value for value in values if not low <= value <= 1]:
            raise ValueError(f"a {name} of {outside[0]} is not in [{low}, 1]")


def _ends(confidence: NDArray[Any], bins: int, by: Literal["width", "mass"], lowest: float) -> NDArray[Any]:
    """The upper ends of the bins, ascending. By mass some may be equal: then only the first of them holds a verdict."""
    import numpy as np

    shares = np.linspace(0.0, 1.0, bins + 1)[1:]
    if by == "width":
        return np.round(lowest + (1 - lowest) * shares, 12)  # 0.3, not 0.30000000000000004
    return np.asarray(np.quantile(confidence, np.round(shares, 12), method="inverted_cdf"))
