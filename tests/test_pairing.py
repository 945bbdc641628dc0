"""Pairing: the rules by hand, and every prompt accounted for."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_records import ask, candidate, rating

from rlaif.generate.pairing import Pairing, candidate_scores, length_balance, noise, preferences_of
from rlaif.records import Comparison, Preference, Ranking, Row, Score, Verdict, preferred

WEIGHTS = {"right": 1.0}


class Paired(NamedTuple):
    """Preferences in the order of the rows, how many rows gave any, and how many gave none by reason."""

    preferences: list[Preference]
    rows: int
    dropped: Counter[str]


def pair_rows(rows: Sequence[Row], pairing: Pairing, *, length_balanced: bool = False) -> Paired:
    """What a pair stage makes of rows."""
    dropped: Counter[str] = Counter()
    keep = length_balance(rows, pairing) if length_balanced else None
    of_each = [preferences_of(row, pairing, dropped, keep) for row in rows]
    return Paired([made for of_row in of_each for made in of_row], sum(map(bool, of_each)), dropped)


def row(*scored: tuple[str, int | None], name: str = "q", cut: tuple[int, ...] = ()) -> Row:
    candidates = [candidate(text) for text, _ in scored]
    for i in cut:
        completion = candidates[i].completion.model_copy(update={"finish_reason": "length"})
        candidates[i] = candidates[i].model_copy(update={"completion": completion})
    ratings = tuple(rating("right", i, value) for i, (_, value) in enumerate(scored))
    return Row(prompt=ask(name), candidates=tuple(candidates), ratings=ratings)


def chosen_rejected(rule: str, given_row: Row, min_margin: float = 0.0) -> tuple[str, str] | str:
    result = pair_rows([given_row], Pairing(rule, weights=WEIGHTS, min_margin=min_margin))
    if result.preferences:
        only = result.preferences[0]
        return only.chosen.completion.text, only.rejected.completion.text
    return next(iter(result.dropped))


def test_best_against_worst() -> None:
    assert chosen_rejected("best-worst", row(("a", 3), ("b", 5), ("c", 1), ("d", 2))) == ("b", "c")


def test_the_rejected_is_drawn_among_all_that_score_lower() -> None:
    drawn = Counter(
        chosen_rejected("random-lower", row(("a", 3), ("b", 5), ("c", 1), ("d", 5), name=str(i))) for i in range(400)
    )
    assert set(drawn) == {("b", "a"), ("b", "c")}  # never d, which ties with the best
    assert min(drawn.values()) > 150


def test_zephyr_draws_the_rejected_among_all_others_and_a_tie_is_no_preference() -> None:
    scored = (("a", 3), ("b", 5), ("c", 1), ("d", 5))
    drawn = Counter(chosen_rejected("zephyr", row(*scored, name=str(i))) for i in range(600))
    assert set(drawn) == {("b", "a"), ("b", "c"), "tie"} and min(drawn.values()) > 150


def test_all_pairs_are_every_two_that_score_differently() -> None:
    result = pair_rows(
        [row(("a", 3), ("b", 5), ("c", 1), ("d", 5)), row(("a", 2), ("b", 2), name="r")],
        Pairing("all", weights=WEIGHTS),
    )
    texts = [(p.chosen.completion.text, p.rejected.completion.text) for p in result.preferences]
    assert texts == [("a", "c"), ("b", "a"), ("b", "c"), ("d", "a"), ("d", "c")]
    assert (result.rows, result.dropped) == (1, {"tie": 1})
    same = pair_rows([row(("a", 5), ("b", 4), ("a", 3), ("c", 1))], Pairing("all", weights=WEIGHTS)).preferences
    assert [(p.chosen.completion.text, p.rejected.completion.text) for p in same] == [("a", "c"), ("b", "c")]  # a is 4
    apart = pair_rows([row(("a", 3), ("b", 5), ("c", 1))], Pairing("all", weights=WEIGHTS, min_margin=3)).preferences
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


@pytest.mark.parametrize("count", [140, 2_000])
@pytest.mark.parametrize("rule", ["all", "k-wise", "best-worst", "zephyr"])
def test_many_candidates_are_paired_soon_up_to_a_bound(rule: str, count: int) -> None:
    many, began = row(*((f"text {i}", 5 if i == 7 else 1 + i % 4) for i in range(count))), time.process_time()
    result = pair_rows([many], Pairing(rule, weights=WEIGHTS))
    assert time.process_time() - began < 5
    if rule in ("best-worst", "zephyr"):
        assert [p.chosen.completion.text for p in result.preferences] == ["text 7"]
    elif count == 140:
        assert 7_000 < len(result.preferences) < 10_000 and not result.dropped
    else:
        assert result.dropped == {"more than 10,000 pairs": 1}


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
    result = pair_rows(rows, Pairing(rule, weights=WEIGHTS))
    with_any = {preference.prompt.id for preference in result.preferences}
    assert len(rows) == result.rows + result.dropped.total() and result.rows == len(with_any)
    assert rule == "all" or len(result.preferences) == result.rows
    for preference in result.preferences:
        assert preference.margin > 0
        assert preference.chosen.completion.text != preference.rejected.completion.text


# ---------------------------------------------------------------- other judgements


def likely(a: int, b: int, p: float | None) -> Comparison:
    verdict = None if p is None else preferred(p)
    return Comparison(a=a, b=b, principle="p", judge="j", verdict=verdict, probability=p, orders=())


def compared(name: str, *likelihoods: tuple[int, int, float | None], n: int = 3) -> Row:
    """A row whose candidates a, b, c, ... were compared: (i, j, how likely i is better, None for unparsed)."""
    given_row = row(*((text, None) for text in "abcdef"[:n]), name=name)
    return given_row.model_copy(update={"comparisons": tuple(likely(*one) for one in likelihoods)})


def test_comparisons_of_all_pairs_order_the_candidates() -> None:
    given_row = compared("q", (0, 1, 0.2), (0, 2, 0.6), (1, 2, 0.9))
    assert candidate_scores(given_row, "comparisons", {}) == {0: 0.4, 1: 0.85, 2: 0.25}
    (found,) = pair_rows([given_row], Pairing("best-worst", "comparisons")).preferences
    assert (found.chosen.completion.text, found.rejected.completion.text, found.margin) == (
        "b",
        "c",
        pytest.approx(0.6),
    )
    every = pair_rows([given_row], Pairing("compared")).preferences
    assert [p.chosen.completion.text + p.rejected.completion.text for p in every] == ["ba", "ac", "bc"]


def test_a_row_that_nobody_compared_says_why() -> None:
    for texts, why in (("ab", "no comparison"), ("aa", "identical texts"), ("a ", "empty completion")):
        uncompared = row(*((text, None) for text in texts))
        assert pair_rows([uncompared], Pairing("compared")).dropped == {why: 1}


def test_a_candidate_with_a_missing_verdict_has_no_score() -> None:
    given_row = compared("q", (0, 1, 0.2), (0, 2, None), (1, 2, 0.9))
    assert candidate_scores(given_row, "comparisons", {}) == {1: pytest.approx(0.85)}
    given_row = compared("q", (0, 1, 0.2), (0, 2, None), (1, 2, 0.9), (0, 3, 0.5), (1, 3, 0.5), (2, 3, None), n=4)
    assert candidate_scores(given_row, "comparisons", {}) == {1: pytest.approx((0.8 + 0.9 + 0.5) / 3)}
    assert pair_rows([given_row], Pairing("all", "comparisons")).dropped == {"unparsed": 1}


@given(st.lists(st.floats(-2, 2), min_size=3, max_size=6), st.randoms(use_true_random=False))
def test_the_mean_likelihood_orders_as_bradley_terry_does(abilities: list[float], rng: random.Random) -> None:
    n = len(abilities)
    pairs = [(i, j, 1 / (1 + math.exp(abilities[j] - abilities[i]))) for i in range(n) for j in range(i)]
    rng.shuffle(pairs)
    scores = candidate_scores(compared("q", *pairs, n=n), "comparisons", {})
    for i in range(n):
        for j in range(n):
            if abilities[i] > abilities[j] + 1e-6:
                assert scores[i] > scores[j]


def ranked(*orders: tuple[tuple[int, ...], ...] | None, n: int = 4) -> Row:
    rankings = tuple(
        Ranking(order=order, shown=tuple(range(n)), judge="j", problem=None if order else "cut") for order in orders
    )
    return row(*((text, None) for text in "abcdef"[:n])).model_copy(update={"rankings": rankings})


def test_rankings_in_two_orders_are_averaged() -> None:
    given_row = ranked(((1,), (0, 2), (3,)), ((0,), (1,), (2,), (3,)))
    expected = [(1.5 / 3 + 1) / 2, (1 + 2 / 3) / 2, (1.5 / 3 + 1 / 3) / 2, 0]
    assert candidate_scores(given_row, "rankings", {}) == {i: pytest.approx(x) for i, x in enumerate(expected)}
    assert len(pair_rows([given_row], Pairing("k-wise", "rankings")).preferences) == 6
    assert pair_rows([ranked(((1,), (0, 2), (3,)), None)], Pairing("all", "rankings")).dropped == {"unparsed": 1}


def test_k_wise_takes_whole_rankings_alone() -> None:
    whole, partial = row(("a", 3), ("b", 5), ("c", 1), ("a", 3), name="w"), row(("a", 3), ("b", None), ("c", 1))
    result = pair_rows([whole, partial], Pairing("k-wise", weights=WEIGHTS))
    assert len(result.preferences) == 3 and result.dropped == {"unparsed": 1}


def test_scores_are_weighted_by_aspect() -> None:
    def score(candidate: int, aspect: str, value: float | None) -> Score:
        return Score(
            candidate=candidate, value=value, judge="j", aspect=aspect, problem="no" if value is None else None
        )

    scores = (score(0, "x", 1), score(0, "y", 4), score(1, "x", 2), score(1, "y", 2), score(2, "x", None))
    given_row = row(("a", None), ("b", None), ("c", None)).model_copy(update={"scores": scores})
    assert candidate_scores(given_row, "scores", {"x": 2, "y": 1}) == {0: 2.0, 1: 2.0}
    assert candidate_scores(given_row, "scores", {"x": 1, "y": 2}) == {0: 3.0, 1: 2.0}


def test_length_balance_keeps_as_many_of_the_longer_as_of_the_shorter() -> None:
    rows = [row(("a" * (1 + i % 7), 5), ("b" * 3, 1), name=str(i)) for i in range(700)]
    assert len(pair_rows(rows, Pairing("all", weights=WEIGHTS)).preferences) == 700
    result = pair_rows(rows, Pairing("all", weights=WEIGHTS), length_balanced=True)
    differences = [len(p.chosen.completion.text) - len(p.rejected.completion.text) for p in result.preferences]
    assert [sum(d > 0 for d in differences), sum(d < 0 for d in differences), differences.count(0)] == [200, 200, 100]
    assert result.dropped == {"length balance": 200}


def test_length_balance_of_one_kind_alone_keeps_none_of_it() -> None:
    rows = [row(("aaaa", 5), ("b", 1), name=str(i)) for i in range(5)]
    assert pair_rows(rows, Pairing("all", weights=WEIGHTS), length_balanced=True).dropped == {"length balance": 5}


def test_noise_is_what_varies_between_the_orders_or_one_step_of_a_rating() -> None:
    def orders(forward: float, backward: float) -> Row:
        first = Verdict(a=0, b=1, verdict=preferred(forward), probability=forward, calls=("f",))
        second = Verdict(a=1, b=0, verdict=preferred(backward), probability=backward, calls=("b",))
        comparison = Comparison.merge(first, second, principle="p", judge="j")
        return compared("q").model_copy(update={"comparisons": (comparison,)})

    biased = [orders(0.8, 0.6), orders(0.5, 0.9), orders(0.6, 0.8)]  # each likes the first place by .4
    assert noise(biased, Pairing("compared", "comparisons")) == pytest.approx(0, abs=1e-9)
    assert noise([*biased, orders(0.6, 0.4)], Pairing("compared", "comparisons")) == pytest.approx(math.sqrt(0.03))
    assert noise(biased[:1], Pairing("compared", "comparisons")) is None
    assert noise([compared("q", (0, 1, 0.7)), compared("r", (0, 1, 0.2))], Pairing("compared", "comparisons")) is None
    assert noise(biased, Pairing("all", weights={"a": 3, "b": 1})) == 0.25
    assert noise(biased, Pairing("all", "rankings")) is None


def test_scores_of_another_judge_or_aspect_do_not_count() -> None:
    def score(candidate: int, judge: str, aspect: str | None, value: float) -> Score:
        return Score(candidate=candidate, value=value, judge=judge, aspect=aspect)

    scores = (
        score(0, "verifier", "1 length", 1), score(1, "verifier", "1 length", 0),
        score(0, "judge", "help", 3.0), score(1, "judge", "help", 3.4),
    )  # fmt: skip
    given_row = row(("a", None), ("b", None)).model_copy(update={"scores": scores})
    assert candidate_scores(given_row, "scores", {"help": 1.0}, "judge") == {0: 3.0, 1: 3.4}
    assert candidate_scores(given_row, "scores", {}, "verifier") == {0: 1.0, 1: 0.0}


def test_candidates_that_met_different_opponents_are_not_ordered() -> None:
    given_row = compared("q", (0, 1, 1.0), (2, 3, 1.0), n=4)
    assert candidate_scores(given_row, "comparisons", {}) == {}
    assert pair_rows([given_row], Pairing("all", "comparisons")).dropped == {"unparsed": 1}
    texts = [
        p.chosen.completion.text + p.rejected.completion.text
        for p in pair_rows([given_row], Pairing("compared")).preferences
    ]
    assert texts == ["ab", "cd"]


def test_several_judges_of_one_pair_make_one_preference() -> None:
    given_row = compared("q", (0, 1, 1.0), (0, 1, 0.0), (0, 1, 1.0), n=2)
    (found,) = pair_rows([given_row], Pairing("compared")).preferences
    assert (found.chosen.completion.text, found.probability) == ("a", None)
    even = compared("q", (0, 1, 1.0), (0, 1, 0.0), n=2)
    assert pair_rows([even], Pairing("compared")).dropped == {"tie": 1}


def test_means_of_the_same_text_are_equal_to_what_they_look_like() -> None:
    scores = tuple(Score(candidate=i, value=v, judge="j") for i, v in enumerate((0.1, 0.2, 0.15)))
    given_row = row(("a", None), ("a", None), ("b", None)).model_copy(update={"scores": scores})
    assert pair_rows([given_row], Pairing("all", "scores")).dropped == {"tie": 1}
