"""A number with its 95 % interval, and shares of comparisons in pairs.

Every interval holds its number of observations, so that a table can show n beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 9_999
_BATCH = 500  # resamples drawn at once: bounds memory at _BATCH x n floats
_CELLS = 4_000_000  # of one batch of counts, for the same reason


class Interval(NamedTuple):
    """A mean, or another estimate, the ends of its 95 % interval, and the number of observations."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        return {"mean": round(self.mean, 6), "low": round(self.low, 6), "high": round(self.high, 6), "n": self.n}


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Interval | None:
    """Mean of `values` with a percentile bootstrap interval over them (Efron 1979); None for fewer than two.

    The values must be independent: one for each prompt, never one for each completion of the same prompt.
    """
    import numpy as np
    from scipy import stats

    if len(values) < 2:
        return None
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if float(np.ptp(array)) == 0.0:
        return Interval(mean, mean, mean, len(array))
    result = stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high), len(array))


def share_interval(outcomes: Sequence[bool]) -> Interval | None:
    """Share of true outcomes with Wilson's interval, which keeps a width at 0 and 1 where a bootstrap has none."""
    from scipy import stats

    if not outcomes:
        return None
    test = stats.binomtest(sum(outcomes), len(outcomes))
    interval = test.proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Interval(sum(outcomes) / len(outcomes), float(interval.low), float(interval.high), len(outcomes))


def points_interval(points: Sequence[float], *, seed: int = 0) -> Interval | None:
    """Mean of points in [0, 1]: a share where all are 0 or 1, whose interval keeps a width; else bootstrapped."""
    whole = all(value in (0.0, 1.0) for value in points)
    return share_interval([value == 1.0 for value in points]) if whole else mean_interval(points, seed=seed)


def item_means(values: Iterable[tuple[Hashable, float]]) -> list[float]:
    """The mean of each item's values, in the order the items come in: values on one item are not independent."""
    by_item: dict[Hashable, list[float]] = {}
    for item, value in values:
        by_item.setdefault(item, []).append(value)
    return [sum(points) / len(points) for points in by_item.values()]


def resamples(counts: Sequence[int], *, times: int = RESAMPLES, seed: int = 0) -> Iterator[NDArray[Any]]:
    """How often each kind of item is drawn when sum(counts) items are drawn again with replacement (Efron 1979).

    `counts` (k) says how many items of each kind there are: items alike in all that matters are drawn as one number, so
    that the work follows their kinds and not the items. Yields batches (b, k) that add up to `times` resamples.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    n, kinds = sum(counts), len(counts)
    few = 4 * kinds < n
    kind_of = None if few else np.repeat(np.arange(kinds), counts)
    batch = max(1, min(_BATCH, _CELLS // max(kinds, 1 if few else n)))
    for start in range(0, times, batch):
        size = min(batch, times - start)
        if kind_of is None:
            yield rng.multinomial(n, np.asarray(counts) / n, size=size)
        else:  # the same distribution; a multinomial is slow where there are about as many kinds as items
            drawn = kind_of[rng.integers(0, n, size=(size, n))] + kinds * np.arange(size)[:, None]
            yield np.bincount(drawn.ravel(), minlength=size * kinds).reshape(size, kinds)


def bootstrap_interval(
    counts: Sequence[int], statistic: Callable[[NDArray[Any]], NDArray[Any]], *, seed: int = 0
) -> Interval | None:
    """A statistic of items with its percentile bootstrap interval over them.

    `statistic` takes counts (b, k), how often each of k kinds of item occurs in b samples, and gives b values, NaN
    where it is undefined. None for fewer than two items, and where it is undefined on the items themselves; resamples
    on which it is undefined are left out. Where all items agree the interval has no width, however few they are.
    """
    import numpy as np

    n = sum(counts)
    if n < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(np.asarray(counts)[None, :])[0])
        if math.isnan(value):
            return None
        drawn = np.concatenate([statistic(batch) for batch in resamples(counts, seed=seed)])
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high), n)


def best_of_n_kl(n: int) -> float:
    """KL(best of n || policy) in nats, log n - (n - 1) / n: exact without ties in the scores, else an upper bound.

    Stiennon et al. 2020 (arXiv 2009.01325), appendix G.3; the bound: Beirami et al. 2024 (arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


class WinRate(NamedTuple):
    """Share of prompts won against a baseline, a tie counting one half; the share of ties beside it."""

    rate: Interval
    ties: float


def win_rate(scores: Sequence[float | None], baseline: Sequence[float | None], *, seed: int = 0) -> WinRate | None:
    """Compare two models prompt by prompt; a prompt with an unparsed score on either side is left out.

    Raises ValueError for lists of unequal length.
    """
    pairs = [(a, b) for a, b in zip(scores, baseline, strict=True) if a is not None and b is not None]
    outcomes = [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in pairs]
    interval = points_interval(outcomes, seed=seed)
    return None if interval is None else WinRate(interval, outcomes.count(0.5) / len(outcomes))


def pair_accuracy(
    scores: Sequence[Sequence[float | None]], truths: Sequence[Sequence[float]], *, gap: float = 0.05, seed: int = 0
) -> Interval | None:
    """How often scores order two completions of a prompt as the truth does, a tie in the scores counting one half.

    Only pairs whose truths differ by more than `gap` count. The interval is over prompts, each with its mean accuracy.
    """
    by_prompt: list[float] = []
    for given, true in zip(scores, truths, strict=True):
        outcomes = [
            0.5 if given[i] == given[j] else float((given[i] > given[j]) == (true[i] > true[j]))  # type: ignore[operator]
            for i in range(len(true))
            for j in range(i)
            if abs(true[i] - true[j]) > gap and given[i] is not None and given[j] is not None
        ]
        if outcomes:
            by_prompt.append(sum(outcomes) / len(outcomes))
    return mean_interval(by_prompt, seed=seed)
