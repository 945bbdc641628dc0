"""Bradley-Terry, Elo and system-level correlations: published fits, planted abilities, and where no fit exists."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlaif.statistics import Game, bradley_terry, elo, system_correlations

# Stigler (1994), citations between statistics journals; a row is cited by its columns.
JOURNALS = ["Biometrika", "Comm Statist", "JASA", "JRSS-B"]
CITATIONS = [[714, 730, 498, 221], [33, 425, 68, 17], [320, 813, 1072, 142], [284, 276, 325, 188]]


def test_stigler_citations_as_published() -> None:
    """Against Biometrika, with the standard errors of Turner and Firth (2012), BradleyTerry2, section 2."""
    games = [
        Game(JOURNALS[i], JOURNALS[j], 1.0)
        for i, row in enumerate(CITATIONS)
        for j, n in enumerate(row)
        for _ in range(n)
        if i != j
    ]
    fitted = bradley_terry(games)
    assert fitted.names == tuple(JOURNALS) and fitted.unfitted == 0
    published = {"Comm Statist": (-2.9491, 0.10255), "JASA": (-0.4796, 0.06059), "JRSS-B": (0.2690, 0.07083)}
    for name, (ability, error) in published.items():
        difference, of_difference = fitted.difference(name, "Biometrika")
        assert difference == pytest.approx(ability, abs=5e-5)
        assert of_difference == pytest.approx(error, abs=5e-6)
    assert sum(a.mean for a in fitted.abilities) == pytest.approx(0.0, abs=1e-12)
    for ability, error in zip(fitted.abilities, fitted.errors(), strict=True):  # every game is an item of its own
        assert (ability.high - ability.low) / 2 == pytest.approx(1.96 * error, rel=0.12)


def play(abilities: dict[str, float], items: int, seed: int, *, ties: float = 0.0) -> list[Game]:
    """Every pair on every item."""
    rng = np.random.default_rng(seed)
    names = list(abilities)
    return [
        Game(
            a,
            b,
            0.5 if rng.random() < ties else float(rng.random() < 1 / (1 + math.exp(abilities[b] - abilities[a]))),
            n,
        )
        for n in range(items)
        for i, a in enumerate(names)
        for b in names[:i]
    ]


def test_two_models_have_a_closed_form() -> None:
    games = [Game("a", "b", 1.0)] * 30 + [Game("b", "a", 1.0)] * 10 + [Game("b", "a", 0.5)] * 4
    difference, error = bradley_terry(games).difference("a", "b")
    assert difference == pytest.approx(math.log(32 / 12))
    assert error == pytest.approx((1 / 32 + 1 / 12) ** 0.5)


def test_planted_abilities_are_in_their_intervals_about_95_times_in_100() -> None:
    truth = {"a": -1.0, "b": -0.25, "c": 0.25, "d": 1.0}
    inside = far = 0
    for seed in range(40):
        fitted = bradley_terry(play(truth, 60, seed))
        for name, ability in zip(fitted.names, fitted.abilities, strict=True):
            inside += ability.low <= truth[name] <= ability.high
            far += abs(ability.mean - truth[name]) > 0.6
    assert 0.89 * 160 <= inside < 160 and far == 0


def test_games_on_one_item_are_drawn_together() -> None:
    """Ten copies of each item's games: as many items, so the same intervals, which single games would narrow by ten."""
    games = play({"a": 0.0, "b": 0.5, "c": -0.5}, 80, 1)
    once, copied = bradley_terry(games), bradley_terry(games * 10)
    apart = bradley_terry([game._replace(item=None) for game in games * 10])
    for one, many, single in zip(once.abilities, copied.abilities, apart.abilities, strict=True):
        assert many.low == pytest.approx(one.low) and many.high == pytest.approx(one.high)
        assert single.high - single.low < 0.5 * (one.high - one.low)


@given(st.permutations(range(30)), st.lists(st.booleans(), min_size=30, max_size=30))
def test_neither_the_order_of_games_nor_of_the_two_matters(order: list[int], turned: list[bool]) -> None:
    games = play({"a": 0.0, "b": 0.3, "c": -0.3}, 10, 2, ties=0.3)
    other = [
        Game(g.second, g.first, 1 - g.points, g.item) if turn else g
        for g, turn in zip((games[i] for i in order), turned, strict=True)
    ]
    for one, two in zip(bradley_terry(games).abilities, bradley_terry(other).abilities, strict=True):
        assert one.mean == pytest.approx(two.mean, abs=1e-9) and one.n == two.n == 20


def test_where_no_maximum_exists_the_error_says_who() -> None:
    chain = [Game("a", "b", 1.0), Game("b", "c", 1.0), Game("c", "b", 1.0)]
    with pytest.raises(ValueError, match="^'a' never lost to any other"):
        bradley_terry(chain * 5)
    with pytest.raises(ValueError, match="^'a', 'b' never lost to any other"):
        bradley_terry([Game("a", "b", 0.5), Game("a", "c", 1.0)])
    with pytest.raises(ValueError, match=r"never compared with each other: 'a', 'b' \| 'c', 'd'"):
        bradley_terry([Game("a", "b", 0.5), Game("d", "c", 0.5)])
    for prior in (0.1, 1.0):
        fitted = bradley_terry(chain * 5, prior=prior)
        assert max(fitted.abilities, key=lambda ability: ability.mean) == fitted.abilities[0]
        assert all(math.isfinite(end) for ability in fitted.abilities for end in ability[:3])
    wide, narrow = (bradley_terry(chain * 5, prior=p).abilities[0].mean for p in (0.1, 1.0))
    assert wide > narrow > 0


def test_resamples_without_a_maximum_are_counted() -> None:
    """One loss in eight is missing from (7/8)^8 = 34 % of the resamples."""
    fitted = bradley_terry([Game("a", "b", 1.0)] * 7 + [Game("a", "b", 0.0)])
    assert fitted.unfitted / 999 == pytest.approx(0.3436, abs=0.05)
    assert bradley_terry([Game("a", "b", 1.0)] * 7 + [Game("a", "b", 0.0)], prior=0.5).unfitted == 0


def test_abilities_far_apart_still_arrive() -> None:
    games = [Game("a", "b", 1.0)] * 100_000 + [Game("b", "a", 1.0)] + [Game("b", "c", 1.0)] * 9 + [Game("c", "b", 1.0)]
    difference, _ = bradley_terry(games).difference("a", "b")
    assert difference == pytest.approx(math.log(100_000))


def test_games_that_are_none() -> None:
    with pytest.raises(ValueError, match="no games"):
        bradley_terry([])
    with pytest.raises(ValueError, match="'a' is compared with itself"):
        bradley_terry([Game("a", "a", 1.0)])
    with pytest.raises(ValueError, match="2 points of 'a' against 'b'"):
        bradley_terry([Game("a", "b", 2)])
    with pytest.raises(ValueError, match="negative"):
        bradley_terry([Game("a", "b", 0.5)], prior=-1)


def test_elo_is_logits_on_another_scale() -> None:
    assert elo(0) == 1000 and elo(math.log(10)) == pytest.approx(1400)


def test_system_correlations_by_hand() -> None:
    found = system_correlations([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    assert found.pearson is not None and found.spearman is not None and found.kendall is not None
    assert found.spearman.mean == pytest.approx(0.8) and found.pearson.mean == pytest.approx(0.8)
    assert found.kendall.mean == pytest.approx(0.6) and found.kendall.n == 5
    published = stats.pearsonr([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]).confidence_interval()
    assert found.pearson[1:3] == pytest.approx((published.low, published.high))
    # z -+ 1.96 times the root of 1.32 / 2 and of 0.437
    assert found.spearman[1:3] == pytest.approx((math.tanh(1.09861 - 1.59228), math.tanh(1.09861 + 1.59228)), abs=1e-5)
    assert found.kendall[1:3] == pytest.approx((math.tanh(0.69315 - 1.29566), math.tanh(0.69315 + 1.29566)), abs=1e-5)
    same = system_correlations([1, 2, 3, 4], [2, 4, 6, 8])
    assert same.pearson == (1.0, 1.0, 1.0, 4) and same.kendall is None
    with pytest.raises(ValueError, match="5 scores on 4"):
        system_correlations([1, 2, 3, 4, 5], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="all references are equal"):
        system_correlations([1, 2], [3, 3])


def test_their_intervals_cover_the_truth_about_95_times_in_100() -> None:
    """Normal pairs of correlation .7: Spearman (6/pi) asin(.35), Kendall (2/pi) asin(.7)."""
    rng = np.random.default_rng(6)
    truth = (0.7, 6 / math.pi * math.asin(0.35), 2 / math.pi * math.asin(0.7))
    covered = [0, 0, 0]
    for _ in range(300):
        x = rng.normal(size=30)
        y = 0.7 * x + math.sqrt(1 - 0.49) * rng.normal(size=30)
        for i, interval in enumerate(system_correlations(x.tolist(), y.tolist())):
            assert interval is not None
            covered[i] += interval.low <= truth[i] <= interval.high
    assert all(273 <= count <= 298 for count in covered), covered
