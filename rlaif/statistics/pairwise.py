"""What asking a judge in both orders shows: its biases, and measures of it against gold.

Verdicts are as the judge gave them, one list for each order: A is the candidate it read FIRST, so in the second list A
is the other candidate. `unswap` turns a verdict of the second list into the first one's terms; None is unparsed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from rlaif.records import Choice
from rlaif.statistics.intervals import Interval, bootstrap_interval, item_means, points_interval, share_interval

Verdicts = Sequence[Choice | None]
_SWAPPED: dict[Choice | None, Choice | None] = {"A": "B", "B": "A", "tie": "tie", None: None}
_SIGN: dict[Choice | None, int] = {"A": 1, "B": -1, "tie": 0, None: 0}


def unswap(verdict: Choice | None) -> Choice | None:
    """The same verdict with the two candidates named the other way round."""
    return _SWAPPED[verdict]


class OrderBias(NamedTuple):
    """What the order did, over pairs with a verdict in both orders. The last three shares add up to one.

    A rate counts both orders, a tie as neither slot; its interval is over pairs, since a pair's two verdicts are not
    independent. A pair that moves with the order moves towards the slot that its two verdicts favour on balance.
    """

    first_slot: Interval | None
    second_slot: Interval | None
    consistent: Interval | None  # the same candidate, or a tie, in both orders
    toward_first: Interval | None
    toward_second: Interval | None
    unparsed: int  # pairs left out


def order_bias(forward: Verdicts, backward: Verdicts) -> OrderBias:
    """Position consistency and bias (Zheng et al. 2023, section 4; arXiv 2306.05685). Raises ValueError."""
    _same_length(forward, backward)
    pairs = [(a, b) for a, b in zip(forward, backward, strict=True) if a is not None and b is not None]
    moved = [_SIGN[a] + _SIGN[b] for a, b in pairs]  # both in terms of slots: a consistent pair cancels
    return OrderBias(
        _mean([((a == "A") + (b == "A")) / 2 for a, b in pairs]),
        _mean([((a == "B") + (b == "B")) / 2 for a, b in pairs]),
        share_interval([m == 0 for m in moved]),
        share_interval([m > 0 for m in moved]),
        share_interval([m < 0 for m in moved]),
        len(forward) - len(pairs),
    )


def longer_rate(
    verdicts: Verdicts, lengths_a: Sequence[int], lengths_b: Sequence[int], items: Sequence[Hashable] | None = None
) -> Interval | None:
    """How often the longer candidate is preferred, of decided pairs of unequal length. Raises ValueError.

    `items` are what the pairs are about: several of one item count as their mean, and the interval is over items.
    """
    items = range(len(verdicts)) if items is None else items
    _same_length(verdicts, lengths_a, lengths_b, items)
    longer = (
        (item, float((verdict == "A") == (a > b)))
        for verdict, a, b, item in zip(verdicts, lengths_a, lengths_b, items, strict=True)
        if verdict in ("A", "B") and a != b
    )
    return points_interval(item_means(longer))


class BothOrders(NamedTuple):
    """LLMBar's measures (Zeng et al. 2024, arXiv 2310.07641): shares of all pairs, unparsed counted wrong."""

    forward: Interval  # accuracy in the first order
    backward: Interval
    average: Interval  # of the two; its interval is over pairs
    both: Interval  # right in both orders
    agreement: Interval  # the same in both orders; as published, two unparsed verdicts are the same


def both_orders(forward: Verdicts, backward: Verdicts, gold: Sequence[Choice]) -> BothOrders | None:
    """Accuracy in each order, their average, right in both, agreement. None for fewer than two pairs.

    Gold is A or B of the first order. Raises ValueError for unequal lengths.
    """
    _same_length(forward, backward, gold)
    there = [a == true for a, true in zip(forward, gold, strict=True)]
    back = [unswap(b) == true for b, true in zip(backward, gold, strict=True)]
    shares = (
        share_interval(there),
        share_interval(back),
        _mean([(a + b) / 2 for a, b in zip(there, back, strict=True)]),
        share_interval([a and b for a, b in zip(there, back, strict=True)]),
        share_interval([a == unswap(b) for a, b in zip(forward, backward, strict=True)]),
    )
    known = [share for share in shares if share is not None]
    return BothOrders(*known) if len(known) == len(shares) else None


def _mean(values: Sequence[float]) -> Interval | None:
    """The mean of a few distinct values, bootstrapped over them."""
    kinds = Counter(values)
    return bootstrap_interval(list(kinds.values()), lambda drawn: drawn @ list(kinds) / len(values))


def _same_length(*lists: Sequence[object]) -> None:
    if len({len(each) for each in lists}) > 1:
        raise ValueError(f"lists of unequal length: {', '.join(str(len(each)) for each in lists)}")
