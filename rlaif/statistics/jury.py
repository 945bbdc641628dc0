"""Weights of several judges, fitted on gold. How a jury decides by them is `records.Comparison.of_jury`."""

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
