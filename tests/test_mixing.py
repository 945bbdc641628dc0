"""Mixtures: exact shares at every moment, by rows and by tokens; a switch at the step where the rate begins to fall."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest

from rlaif.train.mixing import Mixture, Phase, apportioned, interleaved, phases, rows_of_epochs, shares


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (10, {"a": 0.7, "b": 0.3}, {"a": 7, "b": 3}),
        (10, {"a": 7, "b": 3}, {"a": 7, "b": 3}),
        (10, {"a": 1, "b": 1, "c": 1}, {"a": 4, "b": 3, "c": 3}),  # 3 1/3 each: the one left goes to the first
        (100, {"a": 0.335, "b": 0.335, "c": 0.33}, {"a": 34, "b": 33, "c": 33}),
        (7, {"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 3, "b": 2, "c": 2}),  # 3 1/2, 1 3/4, 1 3/4
        (5, {"a": 1, "b": 0}, {"a": 5}),
        (0, {"a": 1}, {"a": 0}),
    ],
)
def test_rows_are_apportioned_by_largest_remainder(
    total: int, weights: dict[str, float], expected: dict[str, int]
) -> None:
    assert apportioned(total, weights) == expected


def test_shares_are_what_is_written_not_what_a_float_holds() -> None:
    assert shares({"a": 0.1, "b": 0.2}) == {"a": Fraction(1, 3), "b": Fraction(2, 3)}
    assert apportioned(10, {"a": 0.1, "b": 0.2, "c": 0.7}) == {"a": 1, "b": 2, "c": 7}


def test_two_sources_in_turn_by_hand() -> None:
    assert "".join(interleaved({"a": 2, "b": 4})) == "babbab"
    assert "".join(interleaved({"a": 7, "b": 3})) == "aabaabaaab"


@pytest.mark.parametrize("seed", range(20))
def test_after_any_number_of_rows_each_source_is_within_one_row_of_its_share(seed: int) -> None:
    draw = random.Random(seed)
    counts = {name: draw.choice((1, 2, 3, draw.randint(1, 90))) for name in "abcdef"[: draw.randint(1, 6)]}
    total, done = sum(counts.values()), Counter[str]()
    for turn, name in enumerate(interleaved(counts), 1):
        done[name] += 1
        assert all(abs(done[each] - Fraction(count * turn, total)) < 1 for each, count in counts.items())
    assert done == counts


SOURCES = {"a": range(10), "b": range(10, 14), "c": range(14, 100)}


def test_a_mixture_is_the_same_for_the_same_seed_and_reads_each_source_in_passes() -> None:
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    drawn = Mixture(SOURCES, 0).draw(Phase(100, weights))
    assert drawn == Mixture(SOURCES, 0).draw(Phase(100, weights)) != Mixture(SOURCES, 1).draw(Phase(100, weights))
    counts = Counter(drawn)
    assert [sum(counts[row] for row in rows) for rows in SOURCES.values()] == [50, 30, 20]
    assert all(counts[row] == 5 for row in SOURCES["a"])  # five whole passes
    assert {counts[row] for row in SOURCES["b"]} == {7, 8} and max(counts[row] for row in SOURCES["c"]) == 1
    passes = [[row for row in drawn if row < 10][i : i + 10] for i in range(0, 50, 10)]
    assert all(sorted(each) == list(range(10)) for each in passes) and len(set(map(tuple, passes))) == 5


@pytest.mark.parametrize("seed", range(5))
def test_by_tokens_each_source_has_its_share_of_them_within_a_row(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 20) if row < 14 else draw.randint(50, 100) for row in range(100)]
    weights = {"a": 0.6, "c": 0.4}
    drawn = Mixture(SOURCES, seed, sizes).draw(Phase(400, weights))
    had = {name: 0 for name in weights}
    for row in drawn:
        had["a" if row < 10 else "c"] += sizes[row]
        total = sum(had.values())
        assert all(abs(had[name] - weight * total) <= 100 for name, weight in weights.items())
    by_rows = Mixture(SOURCES, seed).draw(Phase(400, weights))
    assert sum(sizes[row] for row in by_rows if row < 10) < 0.3 * sum(sizes[row] for row in by_rows)


def test_an_epoch_has_as_many_rows_or_tokens_as_the_sources() -> None:
    weights = {"a": 1, "b": 1}
    assert rows_of_epochs(SOURCES, weights, 1.5, None, 0) == 21
    sizes = [3 if row < 10 else 10 for row in range(100)]
    rows = rows_of_epochs(SOURCES, weights, 2, sizes, 0)
    drawn = Mixture(SOURCES, 0, sizes).draw(Phase(rows, weights))
    total = sum(sizes[row] for row in drawn)
    assert 140 <= total < 150 and total - sizes[drawn[-1]] < 140


@pytest.mark.parametrize(
    ("rows", "per_step", "decay", "expected"),
    [
        (100, 10, 0.2, [80, 20]),
        (101, 10, 0.1, [100, 1]),  # 11 steps, of which the last decays
        (20, 4, 0.01, [16, 4]),  # at least one step
        (20, 4, 1.0, [0, 20]),
    ],
)
def test_the_mixture_changes_at_the_step_in_which_the_rate_begins_to_fall(
    rows: int, per_step: int, decay: float, expected: list[int]
) -> None:
    weights, later = {"a": 1.0}, {"a": 1.0, "c": 1.0}
    made = phases(rows, per_step, weights, later, decay)
    assert [phase.rows for phase in made] == expected and [phase.weights for phase in made] == [weights, later]
    assert phases(rows, per_step, weights, None, decay) == [Phase(rows, weights)]


def test_the_passes_go_on_over_the_phases() -> None:
    mixture = Mixture(SOURCES, 3)
    first = mixture.draw(Phase(4, {"a": 1}))
    second = mixture.draw(Phase(12, {"a": 0.5, "b": 0.5}))
    assert sorted(first + [row for row in second if row < 10]) == list(range(10))
    assert mixture.passes() == {"a": 1.0, "b": 1.5, "c": 0.0}
