"""What scores are worth on validation pairs, a reward model's or DPO's implicit ones: how often they are right and
where, how sure they are, and how far they go by length.

Every share has an interval over prompts, since the pairs of one prompt are not independent. Imports no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rlaif.records import Choice
from rlaif.statistics import (
    Interval,
    calibration_of,
    item_means,
    longer_rate,
    points_interval,
    soft_confidences,
)
from rlaif.statistics.intervals import bootstrap_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANDS = 4  # of margins, of about equally many pairs


class ScoredPair(NamedTuple):
    """A pair's scores by the model, its completions' lengths in tokens, and what is known of the pair."""

    prompt: str
    chosen: float
    rejected: float
    chosen_length: int
    rejected_length: int
    margin: float | None = None
    source: str | None = None

    @property
    def points(self) -> float:
        """1 where the model prefers the chosen one, 0 where the other, one half for a tie."""
        return 0.5 + ((self.chosen > self.rejected) - (self.chosen < self.rejected)) / 2


class HeldPair(NamedTuple):
    """What is known of a validation pair while a model trains: where it is from, and its completions' tokens."""

    source: str | None
    chosen_length: int
    rejected_length: int


def during_training(pairs: Sequence[HeldPair], scores: Mapping[int, tuple[float, float]]) -> dict[str, float]:
    """The shares of pairs that a model has right, by source, and how often it and the labels prefer the longer one.

    `scores` are of chosen and rejected, by a pair's number. By source there are shares where a pair names one.
    """
    of_source, by_model, by_label = defaultdict[str, list[float]](list), list[float](), list[float]()
    for number, (chosen, rejected) in scores.items():
        pair = pairs[number]
        right = ScoredPair("", chosen, rejected, pair.chosen_length, pair.rejected_length).points
        of_source[pair.source or "unknown"].append(right)
        if longer := pair.chosen_length - pair.rejected_length:
            by_model.append(right if longer > 0 else 1 - right)
            by_label.append(float(longer > 0))
    told = {f"accuracy/{source}": points for source, points in sorted(of_source.items())}
    told = {} if set(of_source) == {"unknown"} else told
    told |= {"longer_preferred": by_model, "longer_chosen": by_label}
    return {name: sum(points) / len(points) for name, points in told.items() if points}


def evaluation(pairs: Sequence[ScoredPair], scale: float) -> dict[str, Any]:
    """The figures of a model on `pairs`; `scale` times a difference of scores is its logit of chosen being better."""
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs}),
        "accuracy": _told(_accuracy(pairs)),
        "by_source": {
            source: _told(_accuracy([pair for pair in pairs if (pair.source or "unknown") == source]))
            for source in sorted({pair.source or "unknown" for pair in pairs})
        },
        "by_margin": _by_margin([pair for pair in pairs if pair.margin is not None]),
        "calibration": _calibration(pairs, scale),
        "length": _length(pairs),
    }


def _told(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval.as_dict()


def _accuracy(pairs: Iterable[ScoredPair]) -> Interval | None:
    return points_interval(item_means((pair.prompt, pair.points) for pair in pairs))


def _by_margin(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    """The accuracy in bands of the stated margin, with both ends; equal margins are in one band."""
    import numpy as np

    if not pairs:
        return []
    margins = np.array([pair.margin for pair in pairs], dtype=float)
    ends = np.unique(np.quantile(margins, np.linspace(0, 1, BANDS + 1)[1:], method="inverted_cdf"))
    band = np.searchsorted(ends, margins)
    bands = []
    for number, high in enumerate(ends):
        inside = [pair for pair, place in zip(pairs, band, strict=True) if place == number]
        low = min(pair.margin for pair in inside if pair.margin is not None)
        bands.append(
            {"low": float(low), "high": float(high), "pairs": len(inside), "accuracy": _told(_accuracy(inside))}
        )
    return bands


def _calibration(pairs: Sequence[ScoredPair], scale: float) -> dict[str, Any] | None:
    """Whether chosen is the better one as often as sigmoid(scale * difference) says (Bradley and Terry 1952)."""
    probabilities = [_sigmoid(scale * (pair.chosen - pair.rejected)) for pair in pairs]
    made = soft_confidences(probabilities, [True] * len(pairs))
    found = calibration_of(made.confidence, made.correct, lowest=0.5)
    if found is None:
        return None
    bins = [{name: round(value, 6) for name, value in each._asdict().items()} for each in found.bins]
    return {"ece": found.ece.as_dict(), "brier": round(found.brier, 6), "bins": bins}


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def _length(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """How far score and length go together, and how often the longer one is chosen, by the labels and by the model."""
    choices: list[Choice] = ["A" if pair.points == 1 else "B" if pair.points == 0 else "tie" for pair in pairs]
    lengths = [pair.chosen_length for pair in pairs], [pair.rejected_length for pair in pairs]
    items = [pair.prompt for pair in pairs]
    return {
        "correlation": _told(_correlation(pairs)),
        "longer_chosen": _told(longer_rate(["A"] * len(pairs), *lengths, items)),
        "longer_preferred": _told(longer_rate(choices, *lengths, items)),
    }


def _correlation(pairs: Sequence[ScoredPair]) -> Interval | None:
    """Pearson's correlation of score and length over completions, bootstrapped over prompts; None where undefined."""
    import numpy as np

    moments: dict[str, NDArray[Any]] = {}
    scores = [value for pair in pairs for value in (pair.chosen, pair.rejected)]
    lengths = [value for pair in pairs for value in (pair.chosen_length, pair.rejected_length)]
    center = sum(scores) / len(scores), sum(lengths) / len(lengths)
    for pair in pairs:
        own = moments.setdefault(pair.prompt, np.zeros(6))
        for score, length in ((pair.chosen, pair.chosen_length), (pair.rejected, pair.rejected_length)):
            x, y = score - center[0], length - center[1]
            own += [1, x, y, x * x, y * y, x * y]
    table = np.stack(list(moments.values()))  # (prompts, 6)
    return bootstrap_interval([1] * len(table), _pearson_of(table))


def _pearson_of(table: NDArray[Any]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The correlation from counts (b, prompts) of the prompts whose sums 1, x, y, xx, yy, xy are `table`."""
    import numpy as np

    def pearson(counts: NDArray[Any]) -> NDArray[Any]:
        n, x, y, xx, yy, xy = (counts @ table).T
        spread = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
        return np.asarray((n * xy - x * y) / np.where(spread > 0, spread, np.nan))

    return pearson
