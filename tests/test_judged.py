"""Published shapes of judged data: each as one record, its traps, and what we write read back as it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import BINARIZED, candidate, example_row, facts, jsonl, turns

from rlaif.errors import InputError
from rlaif.formats import (
    SHAPES,
    binarized_rows,
    each_row,
    hh_rows,
    named,
    preference_rows,
    ranked_rows,
    read_preferences,
    read_prompts,
    rewardbench_rows,
    rows_of,
    sft_rows,
    soft_rows,
    ultrafeedback_rows,
    write_dataset,
    write_file,
)
from rlaif.formats.judged import MISREAD
from rlaif.formats.write.dataset import PARQUET
from rlaif.records import (
    Candidate,
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
)


def one(tmp_path: Path, row: dict[str, Any]) -> Row:
    (read,) = each_row(jsonl(tmp_path / "file.jsonl", [row]), Counter())
    return read


def texts(row: Row) -> list[str]:
    return [candidate.completion.text for candidate in row.candidates]


def samplers(row: Row) -> list[str]:
    return [candidate.sampler for candidate in row.candidates]


def stated(row: Row) -> list[tuple[str | None, float | None]]:
    assert all((c.a, c.b) == (0, 1) and not c.disagrees for c in row.comparisons)
    return [(comparison.verdict, comparison.probability) for comparison in row.comparisons]


# ---------------------------------------------------------------- two completions

TWO = {"prompt": "Hi?", "response_a": "Good.", "response_b": "Bad."}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (BINARIZED, [("A", None)]),
        (BINARIZED | {"score_chosen": 8.5, "score_rejected": 6}, [("A", None)]),
        (BINARIZED | {"score_chosen": 8.0, "score_rejected": 8}, [("tie", 0.5)]),
        ({"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad.", "probability": 0.8}, [("A", 0.8)]),
        ({"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad.", "prob": "0.8"}, [("A", 0.8)]),
        ({"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad.", "label": 0.5}, [("tie", 0.5)]),
        ({"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad.", "prob": 1.5}, [(None, None)]),
        ({"instruction": "Hi?", "chosen_response": "Good.", "rejected_response": "Bad."}, [("A", None)]),
        (TWO | {"probability": 0.3}, [("B", 0.3)]),
        (TWO | {"label": 0.75}, [("A", 0.75)]),
        (TWO | {"label": "b"}, [("B", None)]),
        (TWO | {"winner": "model_b"}, [("B", None)]),
        (TWO | {"winner": "tie (bothbad)"}, [("tie", None)]),
        (TWO | {"winner": "garbage"}, [(None, None)]),
        (TWO | {"winner": None}, []),
        (TWO | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, [("tie", None)]),
        (TWO | {"winner_model_a": 1, "winner_model_b": 1, "winner_tie": 0}, [(None, None)]),
        (TWO, []),
        ({"input": "Hi?", "output_1": "Good.", "output_2": "Bad.", "label": 2}, [("B", None)]),
        ({"instruction": "Hi?", "output_1": "Good.", "output_2": "Bad.", "preference": 1.25}, [("A", 0.75)]),
        ({"instruction": "Hi?", "output_1": "Good.", "output_2": "Bad.", "preference": 0}, [("tie", None)]),
        ({"instruction": "Hi?", "output_1": "Good.", "output_2": "Bad.", "preference": 3}, [(None, None)]),
        (
            {"instruction": "Hi?", "input": "", "response1": "Good.", "response2": "Bad."}
            | {"annotator1": "1", "annotator2": 0, "annotator3": 2},
            [("A", None), ("tie", None), ("B", None)],
        ),
        (
            {"prompt": "Hi?", "response_0": "Good.", "response_1": "Bad."}
            | {"better_response_id": 0, "safer_response_id": 1},
            [("A", None), ("B", None)],
        ),
    ],
)  # fmt: skip
def test_two_completions_and_what_is_said_of_them(
    tmp_path: Path, row: dict[str, Any], expected: list[tuple[str | None, float | None]]
) -> None:
    found = one(tmp_path, row)
    assert (found.prompt.text, texts(found), stated(found)) == ("Hi?", ["Good.", "Bad."], expected)
    assert len({candidate.completion.call for candidate in found.candidates}) == 2
    assert one(tmp_path, row) == found  # the ids come from the content
    for comparison in found.comparisons:
        assert (comparison.verdict is None) == (comparison.orders[0].problem is not None)


def test_who_wrote_a_completion_is_who_the_file_names(tmp_path: Path) -> None:
    hi = {"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad."}
    assert samplers(one(tmp_path, hi)) == ["chosen", "rejected"]
    assert samplers(one(tmp_path, hi | {"chosen_model": "x", "rejected-model": "y"})) == ["x", "y"]
    assert samplers(one(tmp_path, TWO | {"model_a": "x", "model_b": "y"})) == ["x", "y"]
    assert samplers(one(tmp_path, TWO)) == ["completion-1", "completion-2"]
    panda = {"instruction": "Hi?", "response1": "a", "response2": "b", "cmp_key": "opt-7b_llama-7b", "annotator1": 1}
    found = one(tmp_path, panda)
    assert (samplers(found), found.comparisons[0].judge) == (["opt-7b", "llama-7b"], "annotator1")
    safe = {"prompt": "Hi?", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0}
    assert [c.principle for c in one(tmp_path, safe).comparisons] == ["better", "safer"]


def test_scores_beside_the_two_are_kept(tmp_path: Path) -> None:
    cleaned = {"prompt": "Hi?", "chosen": turns("Hi?", "a"), "rejected": turns("Hi?", "b")}
    for columns in ("chosen-rating", "rejected-rating"), ("chosen_avg_rating", "rejected_avg_rating"):
        found = one(tmp_path, cleaned | dict(zip(columns, (4.5, 3), strict=True)))
        assert [(s.candidate, s.value) for s in found.scores] == [(0, 4.5), (1, 3.0)]
    half = one(tmp_path, cleaned | {"score_chosen": 4, "score_rejected": None})
    assert [(s.value, s.problem) for s in half.scores] == [(4.0, None), (None, "no number: 'None'")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (BINARIZED | {"score_chosen": 3, "score_rejected": 8}, "its scores say the opposite"),
        ({"prompt": "Hi?", "chosen": "a", "rejected": "b", "probability": 0.2}, "its probability says the opposite"),
        ({"chosen": turns("Hi?", "a"), "rejected": turns("Ho?", "b")}, "chosen and rejected answer different prompts"),
        (
            {"prompt": [{"role": "system", "content": "One."}, *turns("q")]}
            | {s: [{"role": "system", "content": "Two."}, *turns("q", s)] for s in ("chosen", "rejected")},
            "the prompt is not how the two begin",
        ),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": "q", "completions": []}, "no completion"),
        ({"prompt": "q", "completions": ["half a pair \ud83d"]}, "not valid Unicode"),
    ],
)
def test_a_row_that_contradicts_itself_is_dropped_and_counted(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    dropped = Counter[str]()
    rows = list(each_row(jsonl(tmp_path / "file.jsonl", [row, BINARIZED]), dropped))
    assert (len(rows), dropped) == (1, {reason: 1})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (TWO | {"label": 1}, "`label` is 1, and nothing tells which of the two that is"),
        (TWO | {"label": "a", "winner": "model_b"}, "hold 2 labels of the two completions"),
        (TWO | {"chosen": "x", "rejected": "y"}, "can be read as chosen and rejected and as two completions"),
        (TWO | {"output_1": "x", "output_2": "y"}, "hold more than two completions"),
        ({"prompt": "q", "completions": ["a"], "answers": ["b"]}, "both `completions` and `answers` hold a list"),
        ({"prompt": "q", "completion": "a", "messages": turns("q", "b")}, "hold several conversations"),
        ({"prompt": "q", "completions": ["a", "b"], "ranks": [1]}, "`ranks` holds 1 for 2 completions"),
        ({"prompt": "q", "completions": [{"text": "a", "answer": "b"}]}, "`completions` holds `text`, `answer`"),
        ({"prompt": "q", "completions": [{"n": 7}]}, "`completions` holds `n`"),
        ({"text": "q", "n": 1}, "no known shape has the columns `text`, `n`. Fix: give `chosen`"),
        ({"instruction": "q", "completions": [{"response": "a", "annotations": [{"x": 1}]}]}, "an annotation holds"),
    ],
)
def test_a_row_that_can_be_read_in_two_ways_or_none_stops_the_reading(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        list(each_row(jsonl(tmp_path / "file.jsonl", [row]), Counter()))
    assert words in str(caught.value) and caught.value.line == 1 and caught.value.fix


def test_a_conversation_that_is_written_twice_alike_is_one(tmp_path: Path) -> None:
    row = one(tmp_path, {"prompt": "q", "completion": "a", "messages": turns("q", "a")})
    assert (row.prompt.text, texts(row)) == ("q", ["a"])


# ---------------------------------------------------------------- one completion, or none


def test_demonstrations_and_prompts_are_rows_too(tmp_path: Path) -> None:
    assert texts(one(tmp_path, {"instruction": "q", "input": "", "output": "a"})) == ["a"]
    written = one(tmp_path, {"instruction": "q", "output": "a", "generator": "model-x"})
    assert samplers(written) == ["model-x"]
    assert texts(one(tmp_path, {"prompt": "q"})) == []
    assert texts(one(tmp_path, {"messages": turns("q", "a", "r")})) == []


def test_of_a_conversation_the_last_turn_or_every_turn(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "file.jsonl", [{"messages": turns("q", "a", "r", "b"), "system": "Be kind."}])
    (last,) = each_row(path, Counter())
    assert ([m.content for m in last.prompt.messages], texts(last)) == (["Be kind.", "q", "a", "r"], ["b"])
    every = each_row(path, Counter(), turns="all")
    assert [(len(row.prompt.messages), texts(row)) for row in every] == [(2, ["a"]), (4, ["b"])]


# ---------------------------------------------------------------- several completions


def test_ranks_and_scores_of_several(tmp_path: Path) -> None:
    nectar = {"prompt": "\n\nHuman: Hi?\n\nAssistant: ", "answers": [
        {"answer": "a", "model": "x", "rank": 3.0},
        {"answer": "b", "model": "y", "rank": 1.0},
        {"answer": "c", "model": "z", "rank": 3.0},
    ]}  # fmt: skip
    row = one(tmp_path, nectar)
    assert (row.prompt.text, texts(row), samplers(row)) == ("Hi?", ["a", "b", "c"], ["x", "y", "z"])
    assert row.rankings[0].order == ((1,), (0, 2)) and not row.scores
    beside = one(tmp_path, {"prompt": "q", "completions": ["a", "b"], "ranks": [2, 1], "scores": [0.5, None]})
    assert beside.rankings[0].order == ((1,), (0,))
    assert [(s.candidate, s.value) for s in beside.scores] == [(0, 0.5)]
    broken = one(tmp_path, {"prompt": "q", "completions": ["a", "b"], "ranks": [2, None]})
    assert (broken.rankings[0].order, broken.rankings[0].problem) == (None, "no rank: 'None'")
    chat = [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]]
    assert texts(one(tmp_path, {"prompt": turns("q"), "completions": chat})) == ["a", "b"]


def ultrafeedback(*completions: dict[str, Any]) -> dict[str, Any]:
    return {"instruction": "q", "models": ["m"] * len(completions), "completions": list(completions)}


def noted(rating: Any, **more: Any) -> dict[str, Any]:
    return {"Rating": rating, "Rationale": "why"} | more


def completion(*ratings: Any, **more: Any) -> dict[str, Any]:
    annotations = {f"aspect-{i}": noted(rating) for i, rating in enumerate(ratings)}
    return {"model": "m", "response": "words", "annotations": annotations} | more


def test_ultrafeedback_as_published(tmp_path: Path) -> None:
    helpful = noted("4", Type=["1", "2"]) | {"Rationale For Rating": "because"}
    first = {"model": "x", "response": "a", "annotations": {"helpfulness": helpful, "honesty": noted("N/A")}}
    second = {
        "model": "y",
        "response": "b",
        "annotations": {"helpfulness": noted("3", Type=["None"]), "honesty": noted("2")},
    }
    row = one(tmp_path, ultrafeedback(first, second) | {"correct_answers": ["yes", "Yes."]})
    assert (texts(row), samplers(row), row.prompt.reference) == (["a", "b"], ["x", "y"], ("yes", "Yes."))
    found = {(r.candidate, r.aspect): (r.value, r.na, r.problem, r.types) for r in row.ratings}
    assert found == {
        (0, "helpfulness"): (4, False, None, ("1", "2")),
        (0, "honesty"): (None, True, None, ()),
        (1, "helpfulness"): (3, False, None, ()),
        (1, "honesty"): (2, False, None, ()),
    }
    assert row.ratings[0].raw == "why\nbecause"
    assert [row.score(i, {"helpfulness": 1.0, "honesty": 1.0}) for i in (0, 1)] == [4.0, 2.5]


@pytest.mark.parametrize(
    ("said", "value", "na"),
    [
        ("1", 1, False), ("5", 5, False), (" 3 ", 3, False), (4, 4, False), (4.0, 4, False), ("N/A", None, True),
        ("n/a", None, True), ("10", None, False), ("0", None, False), ("4/5", None, False), ("0.8", None, False),
        ("1/10", None, False), ("3.5", None, False), (3.5, None, False), ("", None, False), (None, None, False),
        ("four", None, False), (True, None, False), ("-1", None, False), ("\u0664", 4, False), ("4 or 5", None, False),
    ],
)  # fmt: skip
def test_a_rating_is_what_it_says_or_unparsed(tmp_path: Path, said: Any, value: int | None, na: bool) -> None:
    (rating,) = one(tmp_path, ultrafeedback(completion(said))).ratings
    assert (rating.value, rating.na) == (value, na)
    assert (rating.problem is None) == (value is not None or na)


@pytest.mark.parametrize(
    ("more", "ratings", "value"),
    [
        ({"overall_score": 10.0}, ("5", "5"), 10.0),  # good under every aspect: a 10 is believed
        ({"overall_score": 10.0}, ("1", "2"), 1.0),  # a 1 that was multiplied by 10
        ({"overall_score": 10.0}, ("3", "4"), None),  # nobody can tell
        ({"overall_score": 10}, (), None),
        ({"overall_score": "10"}, ("3",), None),
        ({"overall_score": 10.0, "fine-grained_score": 1.5}, (), 1.0),
        ({"overall_score": 10.0, "fine-grained_score": 4.5}, (), 10.0),
        ({"overall_score": 10.0, "critique": "Poor.\nOverall Score: 1"}, ("3", "3"), 1.0),
        ({"overall_score": 10.0, "critique": "Poor. Overall Score: 1/10"}, ("5", "5"), 1.0),
        ({"overall_score": 10.0, "critique": "Great. Overall Score: 10"}, ("3", "3"), 10.0),
        ({"overall_score": 10.0, "critique": "Overall score: 1. No: overall score: 9"}, ("3", "3"), None),
        ({"overall_score": 10.0, "critique": "Overall score: 100"}, ("3", "3"), None),
        ({"overall_score": 8.0}, ("1", "1"), 8.0),
        ({"overall_score": 7.5, "critique": "Good."}, ("3",), 7.5),
        ({"overall_score": 0.8}, ("1",), None),
        ({"overall_score": 80}, ("5",), None),
        ({"overall_score": "N/A"}, ("5",), None),
    ],
)
def test_a_one_is_never_read_as_ten(
    tmp_path: Path, more: dict[str, Any], ratings: tuple[str, ...], value: float | None
) -> None:
    """The published overall score was multiplied by 10 where it was at most 1 (2,628 completions)."""
    (score,) = one(tmp_path, ultrafeedback(completion(*ratings, **more))).scores
    assert (score.aspect, score.value) == ("overall", value)
    ten = more["overall_score"] in (10, "10")
    assert score.problem is None if value is not None else (score.problem == MISREAD) == ten


# ---------------------------------------------------------------- what is true of a prompt


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"prompt": "q", "reference": "yes"}, ("yes",)),
        ({"prompt": "q", "ground_truth": ["yes", " ", "no"]}, ("yes", "no")),
        ({"prompt": "q", "ground_truth": 42}, ("42",)),
        ({"question": "q", "answer": "#### 42"}, ("#### 42",)),
        ({"Question": "q", "Correct Answers": "yes; no;"}, ("yes", "no")),
        ({"prompt": "q", "reference": "a; b"}, ("a; b",)),
        ({"turns": ["q", "r"], "reference": ["one", "two"]}, ("one",)),
        ({"prompt": "q", "correct_answers": ["None"]}, ()),
        ({"prompt": "q"}, ()),
    ],
)
def test_true_answers_come_with_their_prompt(tmp_path: Path, row: dict[str, Any], reference: tuple[str, ...]) -> None:
    (prompt,) = read_prompts(jsonl(tmp_path / "file.jsonl", [row])).items
    assert (prompt.text, prompt.reference) == ("q", reference)


def test_instructions_that_code_can_check_come_with_their_prompt(tmp_path: Path) -> None:
    row = {"prompt": "q", "instruction_id_list": ["a:b", "c:d"], "kwargs": [{}, {"n": 3, "unused": None}]}
    expected = ({"ifeval": {"id": "a:b", "kwargs": {}}}, {"ifeval": {"id": "c:d", "kwargs": {"n": 3}}})
    for written in (row, row | {"kwargs": json.dumps(row["kwargs"])}):
        (prompt,) = read_prompts(jsonl(tmp_path / "file.jsonl", [written])).items
        assert prompt.checks == expected
    for wrong in ([{}], "broken", None, [1, 2]):
        with pytest.raises(InputError, match="`kwargs` does not fit"):
            read_prompts(jsonl(tmp_path / "file.jsonl", [row | {"kwargs": wrong}]))


# ---------------------------------------------------------------- columns of other names


def test_columns_by_any_name(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "file.jsonl", [{"q": "Hi?", "good": "a", "bad": "b", "prompt": "no", "how": "Be kind."}])
    table = named(rows_of(path), {"prompt": "q", "chosen": "good", "rejected": "bad", "system": "how"})
    (row,) = each_row(table, Counter())
    assert [(m.role, m.content) for m in row.prompt.messages] == [("system", "Be kind."), ("user", "Hi?")]
    assert (texts(row), stated(row)) == (["a", "b"], [("A", None)])
    with pytest.raises(InputError, match=r"file\.jsonl:1: there is no column 'godo'.*Fix: did you mean `good`"):
        list(each_row(named(rows_of(path), {"prompt": "q", "chosen": "godo"}), Counter()))


def test_a_system_message_is_put_where_none_stands(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "Own."}, *turns("q", "a")]
    rows = [{"messages": own}, {"messages": turns("q", "a")}, {"prompt": "q", "completion": "a", "system": "Column."}]
    found = list(each_row(named(rows_of(jsonl(tmp_path / "f.jsonl", rows)), {}, "Given."), Counter()))
    assert [row.prompt.messages[0].content for row in found] == ["Own.", "Given.", "Column."]


# ---------------------------------------------------------------- round trips


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(str.strip)
PLAIN = st.text("abc xyz\n:Human", min_size=1, max_size=30).filter(lambda text: text.strip())


def message(role: Any, text: str) -> Message:
    return Message(role=role, content=text)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    asked = [message("user", draw(WORDS))]
    for _ in range(draw(st.integers(0, 2))):
        asked += [message("assistant", draw(WORDS)), message("user", draw(WORDS))]
    if draw(st.booleans()):
        asked.insert(0, message("system", draw(WORDS)))
    answers = draw(st.lists(st.sampled_from(["yes", "no", "42"]), max_size=2, unique=True))
    return Prompt(messages=tuple(asked), source="made up", reference=tuple(answers))


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Rows with every kind of judgement that a shape can hold."""
    prompt, count = draw(prompts()), draw(st.integers(2, 4))
    candidates = tuple(
        Candidate(sampler=f"m{i}", completion=Completion(text=draw(WORDS), model=f"m{i}", call=f"call-{i}"))
        for i in range(count)
    )
    ratings, scores = [], []
    for aspect in draw(st.sampled_from([("help",), ("help", "truth")])):
        for i in range(count):
            kind = draw(st.sampled_from(["value", "na", "unparsed"]))
            ratings.append(
                Rating(
                    aspect=aspect,
                    candidate=i,
                    value=draw(st.integers(-3, 10)) if kind == "value" else None,
                    na=kind == "na",
                    types=tuple(draw(st.lists(st.sampled_from(["1", "2"]), max_size=2, unique=True))),
                    raw=draw(WORDS),
                    problem="no rating" if kind == "unparsed" else None,
                    judge="judge",
                    call=f"call-{aspect}",
                    position=draw(st.integers(1, 4)),
                )
            )
    for i in range(count):
        value = draw(st.none() | st.floats(0, 10, allow_nan=False))
        problem = "no score" if value is None else None
        scores.append(Score(candidate=i, value=value, judge="judge", aspect="overall", problem=problem))
    places = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    order = tuple(tuple(i for i in range(count) if places[i] == place) for place in sorted(set(places)))
    ranking = Ranking(order=order, shown=tuple(range(count)), judge="data")
    return Row(
        prompt=prompt, candidates=candidates, ratings=tuple(sorted(ratings, key=lambda r: r.candidate)),
        scores=tuple(scores), rankings=(ranking,),
    )  # fmt: skip


@st.composite
def preferences(draw: st.DrawFn) -> Preference:
    row = draw(rows().filter(lambda row: row.candidates[0].completion.text != row.candidates[1].completion.text))
    low, gap = draw(st.floats(0, 5)), draw(st.floats(0.5, 5))
    return Preference(
        prompt=row.prompt,
        chosen=row.candidates[0],
        rejected=row.candidates[1],
        score_chosen=low + gap,
        score_rejected=low,
        rule="zephyr",
        probability=draw(st.none() | st.floats(0.51, 1)),
    )


def written(made: Iterable[dict[str, Any]], shape: str, folder: Path, parquet: bool) -> Iterator[Row]:
    """Through a file and back."""
    listed = list(made)
    write_dataset(SHAPES[shape], listed, folder, facts(1))
    if parquet:
        return each_row(folder, Counter())
    write_file(folder / PARQUET, folder / "rows.jsonl", ".jsonl")
    return each_row(folder / "rows.jsonl", Counter())


THOROUGH = settings(max_examples=60, deadline=None)


@THOROUGH
@given(row=rows(), parquet=st.booleans())
def test_ultrafeedback_comes_back(tmp_path_factory: pytest.TempPathFactory, row: Row, parquet: bool) -> None:
    made = ultrafeedback_rows([row], {"help": 1.0})
    (back,) = written(made, "ultrafeedback", tmp_path_factory.mktemp("set"), parquet)
    assert back == row.model_copy(update={"rankings": ()})


@THOROUGH
@given(row=rows(), parquet=st.booleans())
def test_ranked_comes_back(tmp_path_factory: pytest.TempPathFactory, row: Row, parquet: bool) -> None:
    (back,) = written(ranked_rows([row], {}), "ranked", tmp_path_factory.mktemp("set"), parquet)
    assert (back.prompt.id, back.candidates, back.rankings) == (row.prompt.id, row.candidates, row.rankings)
    known = [(score.candidate, score.value) for score in row.scores if score.value is not None]
    assert [(score.candidate, score.value) for score in back.scores] == known


@THOROUGH
@given(preference=preferences(), parquet=st.booleans())
def test_preferences_come_back(tmp_path_factory: pytest.TempPathFactory, preference: Preference, parquet: bool) -> None:
    (back,) = written(preference_rows([preference]), "preference", tmp_path_factory.mktemp("set"), parquet)
    assert (back.prompt.id, back.candidates) == (preference.prompt.id, (preference.chosen, preference.rejected))
    assert stated(back) == [("A", preference.probability)]
    assert [score.value for score in back.scores] == [preference.score_chosen, preference.score_rejected]
    dropped: Counter[str] = Counter()
    soft = list(soft_rows([preference], dropped))
    assert (len(soft), dropped.total()) == ((0, 1) if preference.probability is None else (1, 0))
    if soft:
        (back,) = written(soft, "soft", tmp_path_factory.mktemp("set"), parquet)
        assert texts(back) == [preference.chosen.completion.text, preference.rejected.completion.text]
        assert stated(back) == [("A", preference.probability)] and back.prompt.id == preference.prompt.id
    (demonstration,) = written(sft_rows([preference]), "sft", tmp_path_factory.mktemp("set"), parquet)
    assert (demonstration.prompt.id, demonstration.candidates) == (preference.prompt.id, (preference.chosen,))


TEXTS = {"hh": hh_rows, "rewardbench": rewardbench_rows, "binarized": binarized_rows}


@pytest.mark.parametrize("shape", TEXTS)
@THOROUGH
@given(preference=preferences(), plain=st.lists(PLAIN, min_size=2, max_size=2, unique=True), parquet=st.booleans())
def test_a_shape_of_text_holds_a_preference_or_drops_it(
    tmp_path_factory: pytest.TempPathFactory, shape: str, preference: Preference, plain: list[str], parquet: bool
) -> None:
    """Whatever a transcript cannot hold is counted; what is written comes back as it was."""
    sides = ("chosen", "rejected")
    said = {
        side: getattr(preference, side).model_copy(
            update={"completion": getattr(preference, side).completion.model_copy(update={"text": text})}
        )
        for side, text in zip(sides, plain, strict=True)
    }
    for given_one in (preference, preference.model_copy(update=said)):
        dropped: Counter[str] = Counter()
        made = list(TEXTS[shape]([given_one], dropped))
        assert len(made) + dropped.total() == 1
        if made:
            (back,) = written(made, shape, tmp_path_factory.mktemp("set"), parquet)
            assert back.prompt.messages == given_one.prompt.messages
            assert texts(back) == [given_one.chosen.completion.text, given_one.rejected.completion.text]
            assert stated(back) == [("A", None)]
            if shape == "rewardbench":
                assert samplers(back) == ["m0", "m1"]
            if shape == "binarized":
                assert [score.value for score in back.scores] == [given_one.score_chosen, given_one.score_rejected]


def test_ordinary_text_is_held_by_every_shape() -> None:
    """The property above would also hold of exporters that drop everything."""
    row = example_row(0)
    asked = (message("user", "Hi?"), message("assistant", "Yes?"), message("user", "Bye."))
    for messages in (row.prompt.messages, asked):
        preference = Preference(
            prompt=Prompt(messages=messages), chosen=row.candidates[1], rejected=row.candidates[0], score_chosen=2,
            score_rejected=1, rule="zephyr",
        )  # fmt: skip
        for make in TEXTS.values():
            dropped: Counter[str] = Counter()
            assert len(list(make([preference, preference], dropped))) == 2 and not dropped
    systematic = preference.model_copy(update={"prompt": Prompt(messages=(message("system", "s"), *asked))})
    assert list(hh_rows([systematic], dropped)) == [] and dropped == {"text that the shape cannot hold": 1}
    assert len(list(binarized_rows([systematic], dropped))) == 1


def test_a_prompt_of_which_one_pair_cannot_be_held_is_dropped_whole() -> None:
    row = example_row(0)
    whole = Preference(
        prompt=row.prompt, chosen=row.candidates[1], rejected=row.candidates[0], score_chosen=2, score_rejected=1,
        rule="all",
    )  # fmt: skip
    marked = candidate("odd", "No.\n\nHuman: Why?\n\nAssistant: So.")
    broken = whole.model_copy(update={"rejected": marked})
    dropped: Counter[str] = Counter()
    assert list(hh_rows([whole, broken], dropped)) == [] and dropped.total() == 1


def test_what_labels_disagree_on_is_no_preference(tmp_path: Path) -> None:
    two = {"instruction": "Hi?", "response1": "Good.", "response2": "Bad."}
    rows = [
        two | {"annotator1": 1, "annotator2": 1},
        two | {"annotator1": 1, "annotator2": 2},
        two | {"annotator1": 0},
        two | {"annotator1": "garbage"},
        two,
    ]
    found = read_preferences(jsonl(tmp_path / "file.jsonl", rows))
    assert [(p.chosen, p.rejected) for p in found.items] == [("Good.", "Bad.")]
    assert found.dropped == {"its labels disagree": 1, "tie": 1, "unparsed": 2}


def test_a_stated_comparison_is_the_same_in_both_orders(tmp_path: Path) -> None:
    (comparison,) = one(tmp_path, TWO | {"probability": 0.3}).comparisons
    assert comparison == Comparison.merge(*comparison.orders, principle="as stated", judge="data")
    assert comparison.orders[1] == Verdict(a=1, b=0, verdict="A", probability=0.7)
