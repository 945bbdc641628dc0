"""A model's reply is read in bounded time: no words of it, repeated, make a reader try exponentially many readings."""

from __future__ import annotations

import time

import pytest

from rlaif.judges.replies import read_choice, read_json, read_lines, read_ranking, read_score
from rlaif.judges.replies.words import MOST_CHARACTERS, MOST_MARKS, TOO_LONG

LONG = 10_000  # characters
SECONDS = (
    5.0  # of processor time, for all five readers: a thousand times what they need, and far less than 2^1000 steps
)

UNITS = [
    "overall ", "so, ", "the ", "my final ", "based on ", "based on the ", "in conclusion ",
    "so the my overall final, ", "better one ", "the better completion ", "i prefer ", "preferred one i prefer ",
    "verdict ", "verdict: ", "verdict is ", "Verdict: 1\n", "1\n", "2 ", "[[2]] ", "[[2]] verdict: ", "tie\n",
    "it is a tie ", "equally good ", "both are equal ", "1 is better. ", "therefore [[1]]", "1 > 2\n", "1 > 2 = 3 ",
    "> ", "1, 2, 3\n", "Ranking:\n", "Ranking: 1 > 2 > 3\n", "1st: 2\n", "first place - ", "1st ", "[1] ", "[1]\n",
    "[1] Rating: 4\n", "Completion 1: ", "output for text 1\n", "Rating: 4 ", "rating ", "rating 4 ", "rating (1-5) ",
    "my overall rating ", "4/5 ", "4 out of 5 ", "score ", "Overall Score: ", "Overall Score: 7\n",
    "overall score (of 10) ", "scale of 1 to 10 ", "scale ", "1 is best ", "0 means worst ", "n/a ", "four ",
    "| 1 | 4 |\n", "| ", "|---|---|\n| 1 | 4 |\n", "actually, ", "actually, 3. ", "wait ", "on reflection; ",
    "should be ", "i'd raise ", "swap the two ", "mixed a b up ", "disregard the ", "said ", "would say that ",
    "e.g. ", "in the requested requested ", "let me know ", "as asked ", "here is my json ", '"', '"a" ', "“", "`",
    "```\n", "```json\n", "> \n", "<think>", "</think>", "<think>\n</think>\n", "{", "}", '{"rating": 4}', '{"1": ',
    '{"ranking": [1, 2]}\n', "[", "]", "[[", "(", "((", "*", "**", "_*", "#", "- ", "\t", " ", "\n", "\r\n", "\x00",
    ".", ". ", "! ?", ": ", ":\n", "，", "４", "９" * 50, "9", "-", "— ", "½", "é", "\u202e", "\ud800", "🙂",
    "Type: A, B\n", "types: ", "types and ", "summary 4\n", "final ratings: ", "1. ", "1.\n2.\n", "4 because ",
    "4, for style 2 ", "completion 1 is better. ", "Therefore, completion 1 is better. ", "completion 1 ", "the first ",
    "so completion 2 is clearly much better than ", "completion 1 is, overall, the ", "I prefer ", "I would clearly ",
    "the better one is ", "neither ", "if completion 1 is better, ", "it says that completion 1 is better, ",
    "after the debate, ", "it is clear that ", "'a ' ", "‘a’ ", "1 = best, ", "best = 1 (5) ", "1 is the ",
    "out of 10 ", "ratings from 1 to 5 ", "scale ratings are given ", "minus 1 ", "so 3. ",
    "penalty: -1, ", "lower numbers are ",
    "\\boxed{1}\n", "\\boxed{", "[[A>>B]] ", "[[A>", "[RESULT] 1 ", "[RESULT] A\n", "</reasoning> ", "4.0 ", "4.0000 ",
    "from the worst to ", "more of this ", "x > y is ", "the verdict gives the worse ", "on a closer look ",
    "So 2 it is. ", "which means ", "not completion 1 is better in style ", "5 of ", "so 5 ", "9" * 3000,
]  # fmt: skip
INTRODUCED = ["", "Rating: ", "Verdict: ", "[1] Rating: 4\n", "7/10\n", '{"rating": ', "<think>"]


def read_all(text: str) -> None:
    """By every reader; none of them raises, or gives what is not on its scale."""
    ratings = [*read_lines(text, 3, 1, 5, na=True), *read_json(text, 3, 1, 5, na=True)]
    assert all(reading.value in {None, 1, 2, 3, 4, 5} for reading in ratings)
    assert read_score(text, 0, 10).value in {None, *range(11)}
    groups, _ = read_ranking(text, 3)
    assert groups is None or sorted(number for group in groups for number in group) == [1, 2, 3]
    assert read_choice(text)[0] in {None, "A", "B", "tie"}


@pytest.mark.parametrize("unit", UNITS, ids=[f"{n}-{unit.strip()[:20]!a}" for n, unit in enumerate(UNITS)])
def test_words_over_and_over_are_read_soon(unit: str) -> None:
    began = time.process_time()
    read_all(unit * (LONG // len(unit)))
    read_all(INTRODUCED[len(unit) % len(INTRODUCED)] + unit * (LONG // len(unit)) + "\nVerdict: 1")
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("mark", ["[[1]]", "Verdict: 1\n", "Rating: 4\n", "Score: 4\n", "1 > 2 > 3\n", "4/10\n"])
def test_an_answer_in_more_places_than_a_judge_gives_it_is_no_answer(mark: str) -> None:
    text = mark * (2 * MOST_MARKS)
    assert read_choice(text)[0] is None
    assert read_score(text, 0, 10).value is None
    assert read_ranking(text, 3)[0] is None
    assert {reading.value for reading in read_lines(f"[1]\n{text}", 1, 1, 5)} == {None}


def test_an_answer_repeated_a_few_times_is_still_read() -> None:
    assert read_choice("Verdict: 1\n" * 10)[0] == "A"
    assert read_score("Score: 4\n" * 10, 0, 10).value == 4
    assert read_ranking("Ranking: 2 > 1 > 3\n" * 10, 3)[0] == ((2,), (1,), (3,))


def test_a_reply_longer_than_any_judge_writes_is_unparsed_and_says_so() -> None:
    reasons = "It is clear. " * (MOST_CHARACTERS // 13 + 1)
    for text in (f"{reasons}\nVerdict: 1", f"{reasons}\nScore: 4", f"{reasons}\n[1] Rating: 4"):
        assert read_choice(text) == (None, TOO_LONG)
        assert read_score(text, 0, 10).problem == TOO_LONG
        assert read_ranking(text, 1) == (None, TOO_LONG)
        assert [reading.problem for reading in read_lines(text, 1, 1, 5)] == [TOO_LONG]
        assert [reading.problem for reading in read_json(text, 1, 1, 5)] == [TOO_LONG]


def test_thinking_may_be_as_long_as_it_likes() -> None:
    thinking = "It is clear. " * (MOST_CHARACTERS // 13 + 1)
    assert read_choice(f"<think>{thinking}</think>\nVerdict: 2")[0] == "B"
    assert read_score(f"<think>{thinking}</think>\nScore: 4", 0, 10).value == 4
