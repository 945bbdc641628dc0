"""How far raters agree with each other, item by item.

Labels are anything hashable and None is missing. Every interval is a percentile bootstrap over items, which must be
independent; at perfect agreement it has no width. How tied or unparsed verdicts are turned into labels decides a kappa:
say it with the number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rlaif.statistics.intervals import Interval, bootstrap_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

Label = Hashable


def cohen_kappa(
    first: Sequence[Label],
    second: Sequence[Label],
    *,
    weights: Literal["linear", "quadratic"] | None = None,
    order: Sequence[Label] | None = None,
    seed: int = 0,
) -> Interval | None:
    """Two raters' agreement beyond chance (Cohen 1960); with `weights` a disagreement counts by its distance (1968).

    The distance is in ranks of `order`, the categories from low to high, used or not; without it the labels found are
    sorted. Items that either rater left out are left out; the interval's n is those that remain. None for fewer than
    two of them, and where both raters gave all of them one and the same label: chance then explains everything.
    Raises ValueError for raters of unequal length, for no item with two ratings, and for labels not in `order`.
    """
    import numpy as np

    if len(first) != len(second):
        raise ValueError(f"the raters have {len(first)} and {len(second)} items")
    kinds = Counter((a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)
    if not kinds:
        raise ValueError("no item has two ratings")
    index = _places([label for pair in kinds for label in pair], order, ordered=weights is not None)
    ranks = np.arange(len(index), dtype=float)
    distance = np.abs(ranks[:, None] - ranks)
    distance = (distance > 0).astype(float) if weights is None else distance**2 if weights == "quadratic" else distance
    rows, columns = (np.array([index[pair[rater]] for pair in kinds]) for rater in (0, 1))
    observed = distance[rows, columns]
    in_row, in_column = np.eye(len(index))[rows], np.eye(len(index))[columns]
    n = sum(kinds.values())

    def kappa(drawn: NDArray[Any]) -> NDArray[Any]:
        expected = ((drawn @ in_row @ distance) * (drawn @ in_column)).sum(axis=1) / n
        return np.asarray(1 - (drawn @ observed) / expected)

    return bootstrap_interval(list(kinds.values()), kappa, seed=seed)


def fleiss_kappa(ratings: Sequence[Sequence[Label]], *, seed: int = 0) -> Interval | None:
    """`fleiss_kappa_of_counts` of ratings, items x raters. Raises ValueError for a missing one."""
    index = _places([label for item in ratings for label in item if label is not None], None)
    counts = []
    for number, item in enumerate(ratings):
        if None in item:
            raise ValueError(f"item {number} has a missing rating: use krippendorff_alpha, or leave the item out")
        given = Counter(item)
        counts.append([given[label] for label in index])
    return fleiss_kappa_of_counts(counts, seed=seed)


def fleiss_kappa_of_counts(counts: Sequence[Sequence[int]], *, seed: int = 0) -> Interval | None:
    """Several raters' agreement beyond chance (Fleiss 1971) from how many gave each item each label, items x labels.

    Which rater gave which label does not matter, so two raters give Scott's pi. None for fewer than two items, and
    where all ratings are one label. Raises ValueError for no items and for items of unequal or fewer than two ratings.
    """
    import numpy as np

    kinds = Counter(tuple(item) for item in counts)
    raters = {sum(item) for item in kinds}
    if len(raters) != 1:
        raise ValueError(f"items have from {min(raters)} to {max(raters)} ratings" if raters else "no items")
    if (m := raters.pop()) < 2:
        raise ValueError("items have fewer than two ratings")
    table = np.array(list(kinds), dtype=float)
    agreeing = (table * (table - 1)).sum(axis=1) / (m * (m - 1))
    n = sum(kinds.values())

    def kappa(drawn: NDArray[Any]) -> NDArray[Any]:
        expected = ((drawn @ table / (n * m)) ** 2).sum(axis=1)
        return np.asarray((drawn @ agreeing / n - expected) / (1 - expected))

    return bootstrap_interval(list(kinds.values()), kappa, seed=seed)


Level = Literal["nominal", "ordinal", "interval", "ratio"]


def krippendorff_alpha(
    ratings: Sequence[Sequence[Label]],
    *,
    level: Level = "nominal",
    order: Sequence[Label] | None = None,
    seed: int = 0,
) -> Interval | None:
    """Reliability of any number of raters with gaps (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability).

    `ratings` is items x raters. 1 - (n - 1) D / E over the n ratings of items that have two or more: D is the squared
    distance of each pair of ratings of one item, weighted by 1 / (its ratings - 1), E that of every pair there is.
    Distances of `ordinal` labels follow `order`, low to high, or their sorted order; `interval` and `ratio` need
    numbers, the latter none below zero. The interval's n is those items. None for fewer than two of them, and where all
    ratings are one label. Raises ValueError where no item has two ratings and for labels that do not fit the level.
    """
    kinds = Counter(tuple(known) for item in ratings if len(known := [x for x in item if x is not None]) > 1)
    if not kinds:
        raise ValueError("no item has two ratings")
    index = _places([label for item in kinds for label in item], order, ordered=level == "ordinal")
    if level in ("interval", "ratio"):
        _require_numbers(list(index), level)
    alpha = (
        _interval_alpha(list(kinds))
        if level == "interval"
        else _ordinal_alpha(_table(list(kinds), index))
        if level == "ordinal"
        else _alpha(_table(list(kinds), index), _distances(list(index), level))
    )
    return bootstrap_interval(list(kinds.values()), alpha, seed=seed)


Statistic = Callable[["NDArray[Any]"], "NDArray[Any]"]  # of (b, kinds of item) counts, for each of b samples


def _alpha(table: NDArray[Any], distances: NDArray[Any]) -> Statistic:
    """Alpha for a table (kinds, labels) of how many raters gave which label, and squared distances of labels."""
    import numpy as np

    within = ((table @ distances) * table).sum(axis=1) / (table.sum(axis=1) - 1)

    def alpha(drawn: NDArray[Any]) -> NDArray[Any]:
        margins = drawn @ table
        between = ((margins @ distances) * margins).sum(axis=1)
        return np.asarray(1 - (margins.sum(axis=1) - 1) * (drawn @ within) / between)

    return alpha


def _ordinal_alpha(table: NDArray[Any]) -> Statistic:
    """Alpha where a label stands at the middle of its ranks, among the ratings of the same sample."""
    import numpy as np

    m = table.sum(axis=1)

    def alpha(drawn: NDArray[Any]) -> NDArray[Any]:
        margins = drawn @ table
        n = margins.sum(axis=1)
        at = np.cumsum(margins, axis=1) - margins / 2
        at -= (margins * at).sum(axis=1, keepdims=True) / n[:, None]
        # sum_ck n_c n_k (x_c - x_k)^2 / 2 = n sum_c n_c x_c^2 - (sum_c n_c x_c)^2; of all ratings the second sum is 0
        within = (m * (at**2 @ table.T) - (at @ table.T) ** 2) / (m - 1)
        return np.asarray(1 - (n - 1) * (drawn * within).sum(axis=1) / (n * (margins * at**2).sum(axis=1)))

    return alpha


def _interval_alpha(items: Sequence[tuple[Any, ...]]) -> Statistic:
    """Alpha from each item's sums alone, since ratings may be as many different numbers as there are."""
    import numpy as np

    centre = np.mean([value for item in items for value in item])
    centred = [np.array(item, dtype=float) - centre for item in items]
    m = np.array([len(x) for x in centred])
    sums, squares = np.array([x.sum() for x in centred]), np.array([(x**2).sum() for x in centred])
    within = np.array([((x - x.mean()) ** 2).sum() if np.ptp(x) else 0.0 for x in centred]) * m / (m - 1)

    def alpha(drawn: NDArray[Any]) -> NDArray[Any]:
        n, square = drawn @ m, drawn @ squares
        between = n * square - (drawn @ sums) ** 2
        varied = between > 1e-12 * n * square  # of one and the same number it is 0 but for rounding
        return np.where(varied, 1 - (n - 1) * (drawn @ within) / between, np.nan)

    return alpha


def _table(items: Sequence[tuple[Label, ...]], index: dict[Label, int]) -> NDArray[Any]:
    import numpy as np

    table = np.zeros((len(items), len(index)))
    for row, item in enumerate(items):
        for label in item:
            table[row, index[label]] += 1
    return table


def _distances(labels: Sequence[Label], level: Level) -> NDArray[Any]:
    """Squared distances of nominal labels, and of ratio ones: ((a - b) / (a + b))^2."""
    import numpy as np

    if level == "nominal":
        return np.asarray(1 - np.eye(len(labels)))
    values = np.array(labels, dtype=float)
    sums = np.add.outer(values, values)
    apart = np.subtract.outer(values, values)
    return np.asarray(np.divide(apart, sums, out=np.zeros_like(sums), where=sums > 0) ** 2)


def _places(labels: Sequence[Label], order: Sequence[Label] | None, *, ordered: bool = False) -> dict[Label, int]:
    """Each category's place: in `order`, sorted where the order matters, else as first seen."""
    categories = dict.fromkeys(labels)
    if order is not None:
        if len(set(order)) != len(order):
            raise ValueError("the order names a category twice")
        if unknown := [label for label in categories if label not in order]:
            raise ValueError(f"{unknown[0]!r} is not in the order {list(order)}")
        return {label: i for i, label in enumerate(order)}
    if ordered:
        try:
            categories = dict.fromkeys(sorted(categories))  # type: ignore[type-var]
        except TypeError:
            raise ValueError("the labels cannot be sorted: give their order, low to high") from None
    return {label: i for i, label in enumerate(categories)}


def _require_numbers(labels: Sequence[Label], level: Level) -> None:
    for label in labels:
        if not isinstance(label, (int, float)) or not math.isfinite(label):
            raise ValueError(f"{level} ratings must be numbers, not {label!r}")
        if level == "ratio" and label < 0:
            raise ValueError(f"ratio ratings must not be negative: {label!r}")
