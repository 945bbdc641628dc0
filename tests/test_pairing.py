"""Pairing: the rules by hand, and every prompt accounted for."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_records import ask, candidate, rating

from rlaif.generate.pairing import pair
from rlaif.records import Row

WEIGHTS = {"right": 1.0}


def row(*scored: tuple[str, int | None], name: str = "q", cut: tuple[int, ...] = ()) -> Row:
    candidates = [candidate(text) for text, _ in scored]
    for i in cut:
        completion = candidates[i].completion.model_copy(update={"finish_reason": "length"})
        candidates[i] = candidates[i].model_copy(update={"completion": completion})
    ratings = tuple(rating("right", i, value) for i, (_, value) in enumerate(scored))
    return Row(prompt=ask(name), candidates=tuple(candidates), ratings=ratings)


def chosen_rejected(rule: str, given_row: Row, min_margin: float = 0.0) -> tuple[str, str] | str:
    result = pair([given_row], rule, WEIGHTS, min_margin)
    if result.preferences:
        only = result.preferences[0]
        return only.chosen.completion.text, only.rejected.completion.text
    return next(iter(result.dropped))


def test_best_against_worst() -> None:
    assert chosen_rejected("best-worst", row(("a", 3), ("b", 5), ("c", 1), ("d", 2))) == ("b", "c")


def test_zephyr_draws_the_rejected_among_all_that_score_lower() -> None:
    drawn = Counter(
        chosen_rejected("zephyr", row(("a", 3), ("b", 5), ("c", 1), ("d", 5), name=str(i))) for i in range(400)
    )
    assert set(drawn) == {("b", "a"), ("b", "c")}  # never d, which ties with the best
    assert min(drawn.values()) > 150


def test_all_pairs_are_every_two_that_score_differently() -> None:
    result = pair([row(("a", 3), ("b", 5), ("c", 1), ("d", 5)), row(("a", 2), ("b", 2), name="r")], "all", WEIGHTS)
    texts = [(p.chosen.completion.text, p.rejected.completion.text) for p in result.preferences]
    assert texts == [("a", "c"), ("b", "a"), ("b", "c"), ("d", "a"), ("d", "c")]
    assert (result.paired, result.dropped) == (1, {"tie": 1})
    same = pair([row(("a", 5), ("b", 4), ("a", 3), ("c", 1))], "all", WEIGHTS).preferences
    assert [(p.chosen.completion.text, p.rejected.completion.text) for p in same] == [("a", "c"), ("b", "c")]  # a is 4
    apart = pair([row(("a", 3), ("b", 5), ("c", 1))], "all", WEIGHTS, min_margin=3).preferences
    assert [p.margin for p in apart] == [4]


@pytest.mark.parametrize(
    ("given_row", "reason"),
    [
        (row(("a", 4), ("b", 4)), "tie"),
        (row(("a", None), ("b", 4)), "unparsed"),
        (row(("a", 4), ("a", 4)), "identical texts"),
        (row(("a", 4), ("b", 2), cut=(0,)), "cut at max_tokens"),
        (row(("a", 4)), "fewer than two candidates"),
        (row(("a", 4), ("b", 2)).model_copy(update={"failure": "server down"}), "failed"),
    ],
)
@pytest.mark.parametrize("rule", ["zephyr", "best-worst", "all"])
def test_what_gives_no_preference_is_counted_by_reason(rule: str, given_row: Row, reason: str) -> None:
    assert chosen_rejected(rule, given_row) == reason


def test_a_small_margin_is_its_own_reason() -> None:
    assert chosen_rejected("best-worst", row(("a", 4), ("b", 3)), min_margin=1.5) == "margin too small"
    assert chosen_rejected("best-worst", row(("a", 4), ("b", 3)), min_margin=1.0) == ("a", "b")


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(1, 5))), min_size=2, max_size=4),
        max_size=8,
    ),
    st.sampled_from(["zephyr", "best-worst", "all"]),
)
def test_in_is_out_plus_dropped_and_chosen_beats_rejected(table: list[list[tuple[str, int | None]]], rule: str) -> None:
    # The same text has the same rating: a judge prompt shows it once.
    rows = [row(*((text, dict(scored)[text]) for text, _ in scored), name=str(i)) for i, scored in enumerate(table)]
    result = pair(rows, rule, WEIGHTS)
    with_any = {preference.prompt.id for preference in result.preferences}
    assert len(rows) == result.paired + result.dropped.total() and result.paired == len(with_any)
    assert rule == "all" or len(result.preferences) == result.paired
    for preference in result.preferences:
        assert preference.margin > 0
        assert preference.chosen.completion.text != preference.rejected.completion.text
