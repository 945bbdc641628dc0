"""Several judges' verdicts on one pair: weights fitted on gold, and the weighted majority."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlaif.records import Choice


def jury_weights(verdicts: Mapping[str, Sequence[Choice | None]], gold: Sequence[Choice]) -> dict[str, float]:
    """Each judge's weight, the log-odds of its accuracy on gold pairs: naive Bayes, were the judges independent.

    Nitzan and Paroush (1982): no other weights decide better then. One right and one wrong verdict are added (Laplace),
    so a judge that never erred does not rule alone, and one without verdicts weighs nothing; one that errs more often
    than not gets a negative weight. Ties and unparsed verdicts say nothing about accuracy and are left out. Judges that
    share their errors get too much weight together. Raises ValueError for unequal lengths and for gold not A or B.
    """
    if unknown := [true for true in gold if true not in ("A", "B")]:
        raise ValueError(f"gold must be A or B, not {unknown[0]!r}")
    weights = {}
    for judge, given in verdicts.items():
        if len(given) != len(gold):
            raise ValueError(f"judge {judge!r} has {len(given)} verdicts on {len(gold)} gold pairs")
        decided = [verdict == true for verdict, true in zip(given, gold, strict=True) if verdict in ("A", "B")]
        weights[judge] = math.log((sum(decided) + 1) / (len(decided) - sum(decided) + 1))
    return weights


def weighted_majority(verdicts: Mapping[str, Choice | None], weights: Mapping[str, float]) -> Choice | None:
    """What the judges of one pair prefer, each with its weight; a tied vote adds to neither side.

    None where none is parsed. With all weights 1 it is the plain majority. Raises ValueError for a judge without one.
    """
    if missing := sorted(verdicts.keys() - weights.keys()):
        raise ValueError(f"judge {missing[0]!r} has no weight")
    if all(verdict is None for verdict in verdicts.values()):
        return None
    sides = {"A": 1, "B": -1}
    # Rounded, so that weights which cancel are a tie whatever order they are added in.
    total = round(math.fsum(weights[judge] * sides.get(v, 0) for judge, v in verdicts.items() if v is not None), 9)
    return "A" if total > 0 else "B" if total < 0 else "tie"
