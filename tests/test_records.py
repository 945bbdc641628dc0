"""Records: ids and splits depend on content alone, and records keep what their meaning requires."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.records import (
    HELD_OUT_SHARE,
    VALIDATION_SHARE,
    Candidate,
    Choice,
    Comparison,
    Completion,
    Message,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Row,
    Score,
    Verdict,
    digest,
    hashed_order,
    prompt_id,
    split_of,
    writable,
)


def ask(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),))


def candidate(text: str, sampler: str = "m") -> Candidate:
    return Candidate(sampler=sampler, completion=Completion(text=text, model=sampler, call=digest(text)))


def rating(aspect: str, index: int, value: int | None) -> Rating:
    problem = None if value is not None else "no rating"
    return Rating(aspect=aspect, candidate=index, value=value, raw="", problem=problem, judge="j", call="c", position=1)


def test_a_prompt_keeps_its_id_and_split_whatever_its_source() -> None:
    a, b = ask("hello"), Prompt(messages=(Message(role="user", content="hello"),), source="elsewhere")
    assert a.id == b.id == prompt_id(a.messages) and a.split == b.split
    assert a.id != ask("hello ").id


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.just("\0")), min_size=1, max_size=3))
def test_a_prompts_id_is_the_digest_of_its_messages_in_canonical_form(texts: list[str]) -> None:
    messages = [Message(role="user", content=text) for text in texts]
    assert prompt_id(messages) == digest([["user", text] for text in texts], length=16)


@given(st.text(st.sampled_from("a é\0\ud800\udfff")))
def test_text_becomes_writable_whatever_else_is_in_it(text: str) -> None:
    kept = writable(text)
    assert [c if c in "a é" else "\ufffd" for c in text] == list(kept)


def test_splits_have_their_shares() -> None:
    splits = [split_of(prompt_id([Message(role="user", content=str(i))])) for i in range(20_000)]
    for name, share in (("held-out", HELD_OUT_SHARE), ("validation", VALIDATION_SHARE)):
        assert splits.count(name) / len(splits) == pytest.approx(share, abs=0.01)  # type: ignore[arg-type]


@given(st.lists(st.text(min_size=1), min_size=2, max_size=8, unique=True))
def test_a_hashed_order_does_not_depend_on_the_given_order(names: list[str]) -> None:
    forward = [names[i] for i in hashed_order(names, "salt")]
    backward = [names[::-1][i] for i in hashed_order(names[::-1], "salt")]
    assert forward == backward and sorted(forward) == sorted(names)


@given(st.lists(st.text(min_size=1), min_size=3, max_size=8, unique=True))
def test_taking_a_name_out_moves_no_other(names: list[str]) -> None:
    whole = [names[i] for i in hashed_order(names, "salt")]
    rest = names[1:]
    assert [rest[i] for i in hashed_order(rest, "salt")] == [name for name in whole if name != names[0]]


def verdict(a: int, b: int, choice: Choice | None, probability: float | None = None) -> Verdict:
    return Verdict(
        a=a, b=b, verdict=choice, probability=probability, problem="mumbled" if choice is None else None, calls=("x",)
    )


def merged(forward: Verdict, backward: Verdict) -> Comparison:
    return Comparison.merge(forward, backward, principle="safety", judge="judge")


def test_a_verdict_swapped_twice_is_itself() -> None:
    one = verdict(0, 1, "A", 0.75)
    assert one.swap() == verdict(1, 0, "B", 0.25)
    assert one.swap().swap() == one
    assert verdict(0, 1, "tie").swap().verdict == "tie" and verdict(0, 1, None).swap().verdict is None


def test_a_judge_that_likes_the_first_place_prefers_nothing() -> None:
    """Hard verdicts disagree, so a tie; soft ones average to one half; and the disagreement shows."""
    found = merged(verdict(0, 1, "A", 0.75), verdict(1, 0, "A", 0.75))
    assert (found.a, found.b, found.verdict, found.probability, found.disagrees) == (0, 1, "tie", 0.5, True)


def test_both_orders_merge_into_one_comparison() -> None:
    agreeing = merged(verdict(0, 1, "A", 0.75), verdict(1, 0, "B", 0.5))
    assert (agreeing.verdict, agreeing.probability, agreeing.disagrees) == ("A", 0.625, False)
    hard = merged(verdict(0, 1, "B"), verdict(1, 0, "A"))
    assert (hard.verdict, hard.probability, hard.disagrees) == ("B", None, False)
    unreadable = merged(verdict(0, 1, "A", 0.75), verdict(1, 0, None))
    assert (unreadable.verdict, unreadable.probability, unreadable.disagrees) == (None, None, False)
    with pytest.raises(ValueError, match="in the other order"):
        merged(verdict(0, 1, "A"), verdict(0, 1, "A"))


@given(st.floats(-6, 6), st.floats(-6, 6))
def test_an_additive_liking_for_a_place_averages_out_as_in_theory(quality: float, liking: float) -> None:
    """(sigmoid(q + b) + sigmoid(q - b)) / 2: symmetric in b, one half at q = 0, and never on the wrong side of q."""

    def likely(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def soft(a: int, b: int, p: float) -> Verdict:
        return verdict(a, b, "A" if p > 0.5 else "B" if p < 0.5 else "tie", p)

    found = merged(soft(0, 1, likely(quality + liking)), soft(1, 0, likely(-quality + liking))).probability
    assert found == pytest.approx((likely(quality + liking) + likely(quality - liking)) / 2, abs=1e-8)
    if abs(quality) > 1e-6:
        assert (found >= 0.5) == (quality > 0) or found == 0.5


def test_a_verdict_is_a_choice_or_a_problem_never_both() -> None:
    with pytest.raises(ValidationError, match="either a choice or a problem"):
        Verdict(a=0, b=1, verdict="A", problem="x")
    with pytest.raises(ValidationError, match="either a choice or a problem"):
        Verdict(a=0, b=1, verdict=None)


@pytest.mark.parametrize(
    "value, na, problem", [(3, False, "x"), (None, False, None), (3, True, None), (None, True, "x")]
)
def test_a_rating_is_a_value_or_does_not_apply_or_is_a_problem(
    value: int | None, na: bool, problem: str | None
) -> None:
    with pytest.raises(ValidationError, match="one of the three"):
        Rating(aspect="a", candidate=0, value=value, na=na, raw="", problem=problem, judge="j", call="c", position=1)


def test_a_score_is_a_value_or_a_problem() -> None:
    for value, problem in ((1.0, "x"), (None, None)):
        with pytest.raises(ValidationError, match="either a value or a problem"):
            Score(candidate=0, value=value, judge="j", problem=problem)


@pytest.mark.parametrize("order", [((0,), (1,)), ((0, 1), (1, 2)), ((0, 1, 2, 3),), ()])
def test_a_ranking_holds_every_candidate_once(order: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValidationError, match="once"):
        Ranking(order=order, shown=(2, 0, 1), judge="j")
    assert Ranking(order=((1,), (0, 2)), shown=(2, 0, 1), judge="j").order == ((1,), (0, 2))


def test_an_aspect_that_does_not_apply_is_left_out_of_the_mean() -> None:
    def rating(aspect: str, value: int | None, na: bool = False) -> Rating:
        return Rating(aspect=aspect, candidate=0, value=value, na=na, raw="", judge="j", call="c", position=1)

    row = Row(prompt=Prompt(messages=(Message(role="user", content="p"),)), ratings=(rating("a", 2), rating("b", 5)))
    assert row.score(0, {"a": 1, "b": 2}) == 4
    row = row.model_copy(update={"ratings": (rating("a", 2), rating("b", None, na=True))})
    assert row.score(0, {"a": 1, "b": 2}) == 2
    assert row.score(0, {"b": 2}) is None


def test_a_score_is_the_weighted_mean_and_unknown_when_one_aspect_is() -> None:
    row = Row(
        prompt=ask("q"),
        candidates=(candidate("x"), candidate("y")),
        ratings=(rating("right", 0, 5), rating("tone", 0, 2), rating("right", 1, 4), rating("tone", 1, None)),
    )
    assert row.score(0, {"right": 2.0, "tone": 1.0}) == pytest.approx((2 * 5 + 2) / 3)
    assert row.score(1, {"right": 2.0, "tone": 1.0}) is None
    assert row.score(0, {"right": 1.0, "absent": 1.0}) is None


def test_two_ways_to_the_same_mean_are_a_tie() -> None:
    row = Row(
        prompt=ask("q"),
        candidates=(candidate("x"), candidate("y")),
        ratings=(
            *(rating(aspect, 0, value) for aspect, value in zip("abc", (1, 2, 2), strict=True)),
            *(rating(aspect, 1, value) for aspect, value in zip("abc", (2, 3, 1), strict=True)),
        ),
    )
    weights = {"a": 0.2, "b": 0.3, "c": 0.5}
    assert 0.2 * 1 + 0.3 * 2 + 0.5 * 2 != 0.2 * 2 + 0.3 * 3 + 0.5 * 1  # in floating point
    assert row.score(0, weights) == row.score(1, weights) == 1.8


def test_chosen_never_equals_rejected() -> None:
    same = {"prompt": ask("q"), "chosen": candidate("x"), "rejected": candidate("x", "other"), "rule": "r"}
    with pytest.raises(ValidationError, match="same text"):
        Preference(**same, score_chosen=2, score_rejected=1)  # type: ignore[arg-type]
    tied = same | {"rejected": candidate("y")}
    with pytest.raises(ValidationError, match="above"):
        Preference(**tied, score_chosen=2, score_rejected=2)  # type: ignore[arg-type]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValidationError, match="empty"):
        ask("  ")
    with pytest.raises(ValidationError, match="user turn"):
        Prompt(messages=(Message(role="assistant", content="hi"),))
