"""Abilities of several models from their games, and how one order of whole systems correlates with another.

A system-level correlation compares one number a system with another: whether a judge would rank models as people do. It
is no per-item agreement: a judge that is wrong on every third item, but equally often for each model, ranks models
perfectly. Hence two names, `system_correlations` here and the kappas in `agreement`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rlaif.statistics.intervals import CONFIDENCE, Interval, resamples

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLED_FITS = 999  # each is a fit of its own
ELO_MEAN, ELO_SCALE = 1000.0, 400 / math.log(10)


class Game(NamedTuple):
    """Two models compared once: 1 point for the first when it was preferred, 0 when the second was, 1/2 for a tie."""

    first: str
    second: str
    points: float
    item: Hashable = None  # what they were compared on; games on one item are drawn together


class BradleyTerry(NamedTuple):
    """Abilities in logits that sum to zero, in the order of `names`: P(a beats b) = 1 / (1 + exp(b - a))."""

    names: tuple[str, ...]
    abilities: tuple[Interval, ...]  # bootstrap over items; n is the model's games
    covariance: tuple[tuple[float, ...], ...]  # inverse of the observed information on abilities that sum to zero
    unfitted: (
        int  # resamples, of RESAMPLED_FITS, that had no maximum and were left out; many, and the ends are too near
    )

    def errors(self) -> tuple[float, ...]:
        """Standard error of each ability, as if games were independent."""
        return tuple(math.sqrt(self.covariance[i][i]) for i in range(len(self.names)))

    def difference(self, first: str, second: str) -> tuple[float, float]:
        """How far the first is above the second, and its standard error, as if games were independent."""
        i, j = self.names.index(first), self.names.index(second)
        variance = self.covariance[i][i] + self.covariance[j][j] - 2 * self.covariance[i][j]
        return self.abilities[i].mean - self.abilities[j].mean, math.sqrt(max(variance, 0.0))


def bradley_terry(games: Sequence[Game], *, prior: float = 0.0, seed: int = 0) -> BradleyTerry:
    """Maximum likelihood of Bradley and Terry (1952), a tie as half a game won by each.

    Games that share an `item` are resampled together; an item of None is an item of its own. `prior` adds that many
    tied games between every two models, which draws abilities together and makes a maximum exist. Raises ValueError
    for no games, for a model against itself, for points outside [0, 1], and, without a prior, where the maximum does
    not exist (Ford 1957): when models fall into two groups of which one never took a point from the other.
    """
    import numpy as np

    _check_games(games, prior)
    names = tuple(sorted({name for game in games for name in game[:2]}))
    pairs, kinds = _kinds_of_items(games, names)
    table = np.array(list(kinds), dtype=float)  # kinds of item x pairs: points
    cells = np.array(pairs).T

    def points_of(drawn: NDArray[Any]) -> NDArray[Any]:
        won = np.zeros((len(drawn), len(names), len(names)))
        won[:, cells[0], cells[1]] = drawn @ table
        return won + prior / 2 * (1 - np.eye(len(names)))

    counts = list(kinds.values())
    won = points_of(np.array([counts]))
    if problem := _unconnected(won[0], names):
        raise ValueError(problem)
    fitted, covariance = _fit(won)
    if np.isnan(fitted).any():
        raise ValueError("the abilities are too far apart to be estimated: give a prior")
    drawn = [
        _fit(again[_connected(again)])[0]
        for batch in resamples(counts, times=RESAMPLED_FITS, seed=seed)
        for again in [points_of(batch)]
    ]
    abilities = np.concatenate(drawn)
    abilities = abilities[~np.isnan(abilities).any(axis=1)]
    if not len(abilities):
        raise ValueError("no resample of the items could be fitted: too few items, or give a prior")
    low, high = np.quantile(abilities, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    played = Counter(name for game in games for name in game[:2])
    return BradleyTerry(
        names,
        tuple(
            Interval(float(ability), float(low[i]), float(high[i]), played[names[i]])
            for i, ability in enumerate(fitted[0])
        ),
        tuple(tuple(float(cell) for cell in row) for row in covariance[0]),
        RESAMPLED_FITS - len(abilities),
    )


def _check_games(games: Sequence[Game], prior: float) -> None:
    if not games:
        raise ValueError("no games")
    for game in games:
        if game.first == game.second:
            raise ValueError(f"{game.first!r} is compared with itself")
        if not 0 <= game.points <= 1:
            raise ValueError(f"{game.points} points of {game.first!r} against {game.second!r} are not in [0, 1]")
    if prior < 0:
        raise ValueError("the prior must not be negative")


def _kinds_of_items(
    games: Sequence[Game], names: Sequence[str]
) -> tuple[list[tuple[int, int]], Counter[tuple[float, ...]]]:
    """The pairs of models that met, and how many items gave each kind of points: one number for each pair."""
    index = {name: i for i, name in enumerate(names)}
    by_item: dict[Hashable, Counter[tuple[int, int]]] = {}
    for number, game in enumerate(games):
        item = (number,) if game.item is None else ("item", game.item)
        i, j = index[game.first], index[game.second]
        by_item.setdefault(item, Counter()).update({(i, j): game.points, (j, i): 1 - game.points})
    pairs = sorted({pair for points in by_item.values() for pair in points})
    return pairs, Counter(tuple(points[pair] for pair in pairs) for points in by_item.values())


_STEPS = 200
_LONGEST_STEP = 1.0  # logits: a whole Newton step may leap past where the logistic curve is flat


def _fit(won: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Abilities (b, k), NaN where Newton's method did not arrive, and covariances (b, k, k) for points (b, k, k)."""
    import numpy as np

    size, k, _ = won.shape
    games = won + won.transpose(0, 2, 1)
    ability = np.zeros((size, k))
    arrived = np.zeros(size, dtype=bool)
    # The information is blind to a shift of all abilities; this adds that direction and changes no other.
    shift = np.full((k, k), 1 / k)
    inverse = np.zeros((size, k, k))
    for _ in range(_STEPS):
        if arrived.all():
            break
        expected = 1 / (1 + np.exp(ability[:, None, :] - ability[:, :, None]))
        gradient = (won - games * expected).sum(axis=2)
        off = games * expected * (1 - expected)
        information = np.eye(k) * off.sum(axis=2)[:, :, None] - off
        inverse = np.linalg.inv(information + shift) - shift
        step = (inverse @ gradient[:, :, None])[:, :, 0]
        longest = np.abs(step).max(axis=1)
        arrived = longest < 1e-10
        ability = ability + step * np.minimum(1, _LONGEST_STEP / np.maximum(longest, 1e-300))[:, None]
    ability[~arrived] = np.nan
    return ability, inverse


def _connected(won: NDArray[Any]) -> NDArray[Any]:
    """Which of (b, k, k) points lead from every model to every other."""
    import numpy as np

    k = won.shape[1]
    reach = ((won > 0) | np.eye(k, dtype=bool)).astype(np.float32)
    for _ in range(max(1, (k - 1).bit_length())):
        reach = np.minimum(reach @ reach, 1)
    return np.asarray(reach.all(axis=(1, 2)))


def _unconnected(won: NDArray[Any], names: Sequence[str]) -> str | None:
    """Why points (k, k) have no maximum, naming the group at fault; None where they have one."""
    from scipy.sparse.csgraph import connected_components

    met, group_of = connected_components(won + won.T > 0, directed=False)
    if met > 1:
        apart = [_listed([n for n, g in zip(names, group_of, strict=True) if g == group]) for group in range(met)]
        return f"never compared with each other: {' | '.join(apart)}; compare across them or give a prior"
    strong, group_of = connected_components(won > 0, directed=True, connection="strong")
    for group in range(strong if strong > 1 else 0):
        inside = group_of == group
        who = _listed([name for name, i in zip(names, inside, strict=True) if i])
        if not won[~inside][:, inside].any():
            return f"{who} never lost to any other, so no ability is large enough; compare more or give a prior"
    return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def elo(ability: float) -> float:
    """An ability in logits on the Elo scale: mean 1000, and ten times the odds for every 400 points."""
    return ELO_MEAN + ELO_SCALE * ability


class SystemCorrelations(NamedTuple):
    """How one number for each system follows another: n systems, not items. None where n is too small for the ends."""

    pearson: Interval | None
    spearman: Interval | None
    kendall: Interval | None  # tau-b


def system_correlations(scores: Sequence[float], references: Sequence[float]) -> SystemCorrelations:
    """Correlations over systems, such as a judge's win rates against people's; never over items.

    The intervals are Fisher's z with the variances of Bonett and Wright (2000): 1 / (n - 3) for Pearson,
    (1 + r^2 / 2) / (n - 3) for Spearman, 0.437 / (n - 4) for Kendall. They hold for independent systems only, and have
    no width at 1 and -1. Raises ValueError for unequal lengths and where all scores or all references are equal.
    """
    from scipy import stats

    n = len(scores)
    if n != len(references):
        raise ValueError(f"{n} scores on {len(references)} references")
    if len(set(scores)) < 2 or len(set(references)) < 2:
        raise ValueError("all scores or all references are equal: nothing varies that could go together")
    pearson = float(stats.pearsonr(scores, references).statistic)
    spearman = float(stats.spearmanr(scores, references).statistic)
    kendall = float(stats.kendalltau(scores, references).statistic)
    return SystemCorrelations(
        _fisher(pearson, 1.0, n - 3, n),
        _fisher(spearman, 1 + spearman**2 / 2, n - 3, n),
        _fisher(kendall, 0.437, n - 4, n),
    )


def _fisher(r: float, numerator: float, denominator: int, n: int) -> Interval | None:
    from scipy import stats

    if denominator < 1:
        return None
    if abs(r) > 1 - 1e-12:
        return Interval(r, r, r, n)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(numerator / denominator)
    return Interval(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n)
