"""Numbers that no probability, score or rating is: the failure of that row, and no poison for the next run."""

from __future__ import annotations

import json
import math
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from echo import RUBRIC, write_prompts
from inside import Done, rlaif
from serving import Answer, completion, scripted, speaking, spoken
from test_engine_openai import ask, make, run

from rlaif.engines import traffic
from rlaif.engines.protocol import Reply
from rlaif.errors import EngineError
from rlaif.judges.comparing import read_probability
from rlaif.judges.rating import read_expectation
from rlaif.judges.replies import read_choice, read_json, read_lines, read_ranking, read_score


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.001)


def reported(*values: str) -> bytes:
    """An answer whose alternatives 1, 2, ... have these log-probabilities, as they are written."""
    entries = ", ".join(f'{{"token": "{number}", "logprob": {value}}}' for number, value in enumerate(values, 1))
    first = f'{{"token": "1", "logprob": {values[0]}, "top_logprobs": [{entries}]}}'
    choice = (
        f'{{"index": 0, "message": {{"content": "1"}}, "finish_reason": "stop", "logprobs": {{"content": [{first}]}}}}'
    )
    return f'{{"choices": [{choice}], "usage": {{"prompt_tokens": 7, "completion_tokens": 1}}}}'.encode()


# ---------------------------------------------------------------- log-probabilities on arrival

ABOVE = (
    "710",
    "1e308",
    "709.9",
    "1",
    "0.5",
    "0.0101",
    "7" * 300,
    "1e400",
    "Infinity",
    "NaN",
    "7" * 400,
    "7" * 5_000,
    "1e999999",
)
BELOW = {
    "0": 0.0,
    "-0.0": 0.0,
    "1e-7": 0.0,
    "0.0078125": 0.0,
    "-1e-320": -1e-320,
    "-0.5": -0.5,
    "-5": -5.0,
    "-9999": -9999.0,
    "-10000": -9999.0,
    "-1e308": -9999.0,
    "-Infinity": -9999.0,
    "-" + "7" * 300: -9999.0,
}
ASKED: dict[str, dict[str, Any]] = {"alternatives": {"alternatives": ("1", "2")}, "tokens": {"logprobs": True}}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("value", ABOVE, ids=lambda value: value[:12])
def test_a_log_probability_that_no_probability_has_fails_its_sample(value: str, asked: str) -> None:
    with speaking(spoken(reported(value, "-3"))) as speaker:
        [[error]] = run(make(speaker.base_url, retries=0, timeout=5), ask(**ASKED[asked]))
    assert isinstance(error, EngineError) and error.cause in ("bad-logprobs", "bad-body"), error
    assert "a log-probability of " in str(error) or "number" in str(error).lower()
    assert "Traceback" not in str(error) and "\n" not in str(error) and "int_max" not in str(error)
    if error.cause == "bad-logprobs":
        assert error.usage is not None and error.usage.completion_tokens == 1 and not error.retryable


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("value", BELOW, ids=lambda value: value[:12])
def test_a_log_probability_at_the_edge_is_kept_in_bounds(value: str, asked: str) -> None:
    with speaking(spoken(reported(value, "-20000"))) as speaker:
        [[reply]] = run(make(speaker.base_url, retries=0, timeout=5), ask(**ASKED[asked]))
    assert isinstance(reply, Reply)
    if asked == "tokens":
        assert reply.token_logprobs == (BELOW[value],)
    else:
        assert reply.alternatives == {"1": BELOW[value], "2": -9999.0}


@pytest.mark.parametrize("value", ['"-1"', "true", "null", "[-1]", '{"a": 1}'])
def test_a_log_probability_that_is_no_number_is_a_sentence(value: str) -> None:
    with speaking(spoken(reported(value))) as speaker:
        [[error]] = run(make(speaker.base_url, retries=0, timeout=5), ask(alternatives=("1", "2")))
    assert isinstance(error, EngineError) and error.cause == "bad-body" and "\n" not in str(error)


def test_a_wrong_one_that_was_not_asked_for_does_no_harm() -> None:
    with speaking(spoken(reported("710"))) as speaker:
        [[reply]] = run(make(speaker.base_url, retries=0, timeout=5), ask())
    assert isinstance(reply, Reply) and (reply.token_logprobs, reply.alternatives) == (None, None)


READ: dict[str, Callable[[Any], tuple[float | None, str | None]]] = {
    "compare": read_probability,
    "expected": read_expectation,
}
GIVEN = (710.0, 1e308, math.inf, math.nan, 10**400, 0.02, 1)


@pytest.mark.parametrize("reader", READ)
@pytest.mark.parametrize("value", GIVEN, ids=lambda value: f"{value!r:.10}")
def test_a_reader_makes_no_number_of_it(value: float, reader: str) -> None:
    for alternatives in ({"1": value, "2": -1.0}, {"1": -1.0, "2": value}, {"1": value, "2": None}):
        number, problem = READ[reader](alternatives)
        assert number is None and problem is not None and "a log-probability of" in problem


@pytest.mark.parametrize("reader", READ)
@pytest.mark.parametrize(
    "value", [-1e308, -math.inf, -(10**400), -1e-320, 0.0, 1e-7], ids=lambda value: f"{value!r:.10}"
)
def test_a_reader_reads_what_lies_at_the_edge(value: float, reader: str) -> None:
    number, problem = READ[reader]({"1": value, "2": 0.0})
    assert problem is None and number is not None and 0.0 <= number <= 2.0


# ---------------------------------------------------------------- a run, and the runs after it

PIPELINE = """\
name: soft
models:
  one: {{engine: openai, model: one, base_url: "{url}"}}
  judge: {{engine: openai, model: judge, base_url: "{url}"}}
stages:
  - prompts: {{path: prompts.jsonl, split: all}}
  - sample: {{models: [one], per_prompt: 2, sampling: {{max_tokens: 32}}}}
  - {judging}
"""
JUDGING = {
    "compare": "compare: {model: judge, constitution: constitutions/tiny.yaml}\n  - pair: {}",
    "expected": "rate: {model: judge, rubric: rubric.yaml, answers: expected}",
}
FOUR = 4


def project(folder: Path, url: str, judging: str) -> None:
    write_prompts(folder, FOUR)
    (folder / "rubric.yaml").write_text(RUBRIC)
    (folder / "soft.yaml").write_text(PIPELINE.format(url=url, judging=JUDGING[judging]))


def server(wrong: str | None) -> Answer:
    """Samples differ by their seeds; a judge is asked for alternatives, and reports `wrong` for prompt number 2."""

    def body(asked: dict[str, Any]) -> dict[str, Any]:
        if "top_logprobs" not in asked:
            return completion(*(f"words {asked['seed'] + i}" for i in range(asked.get("n", 1))))
        value = json.loads(wrong) if wrong and "number 2" in json.dumps(asked["messages"]) else -0.1
        top = [{"token": "1", "logprob": value}, {"token": "2", "logprob": -3.0}]
        return completion("1", logprobs={"content": [{**top[0], "top_logprobs": top}]})

    return Answer(body)


def rows(folder: Path) -> list[dict[str, Any]]:
    [file] = (folder / "runs/soft/stages").glob("03-*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def checked(done: Done, code: int) -> Done:
    assert done.code == code and "Traceback" not in done.err, done
    return done


@pytest.mark.parametrize("judging", JUDGING)
@pytest.mark.parametrize("wrong", ["710", "1e308", "0.5", "NaN", "7" * 300], ids=lambda value: value[:6])
def test_a_wrong_log_probability_fails_its_row_now_and_in_every_later_run(
    wrong: str, judging: str, tmp_path: Path
) -> None:
    with scripted([Answer({"data": []}), Answer({"data": []}), server(wrong)]) as script:
        project(tmp_path, script.base_url, judging)
        done = checked(rlaif(tmp_path, "run", "soft.yaml"), 1)
        assert "1 row failed (bad-logprobs)" in done.out.replace("\n", " ") and "a log-probability of " in done.out
        assert [row.get("failure") is not None for row in rows(tmp_path)].count(True) == 1
        asked = len(script.requests)
        checked(rlaif(tmp_path, "run", "soft.yaml"), 1)  # stored as that row's failure, and not paid for again
        assert len(script.requests) - asked <= 2
    checked(rlaif(tmp_path, "cache", "verify"), 0)
    for look in (
        ["status", "runs/soft"],
        ["show", "runs/soft", "1"],
        ["show", "runs/soft", "2"],
        ["status", "runs/soft", "--json"],
    ):
        checked(rlaif(tmp_path, *look), 0)


POISON: dict[str, Any] = {
    "710": 710.0,
    "1e308": 1e308,
    "true": True,
    "a text": "-1",
    "a list": [1],
    "10^30": 10**30,
    "0.5": 0.5,
}


def poisoned(folder: Path, value: Any) -> int:
    """Put `value` in place of every stored log-probability, as older versions stored what arrived; how many calls."""
    [file] = folder.rglob("*.sqlite")
    with sqlite3.connect(file) as db:
        changed = 0
        for key, blob in db.execute("SELECT key, answer FROM calls").fetchall():
            answer = json.loads(zlib.decompress(blob))
            if "alternatives" in answer:
                answer["alternatives"]["1"] = value
                db.execute(
                    "UPDATE calls SET answer = ? WHERE key = ?", [zlib.compress(json.dumps(answer).encode()), key]
                )
                changed += 1
    db.close()
    return changed


@pytest.mark.parametrize("judging", JUDGING)
@pytest.mark.parametrize("poison", POISON)
def test_a_store_that_holds_such_an_answer_is_found_out_and_asked_again(
    poison: str, judging: str, tmp_path: Path
) -> None:
    with scripted([Answer({"data": []}), Answer({"data": []}), server(None)]) as script:
        project(tmp_path, script.base_url, judging)
        came = int(judging == "compare")  # to ties alone, and so to no preference
        checked(rlaif(tmp_path, "run", "soft.yaml"), came)
        before, asked = rows(tmp_path), len(script.requests)
        count = poisoned(tmp_path, POISON[poison])
        found = rlaif(tmp_path, "cache", "verify")
        assert found.code == 1 and f"{count} of" in found.out + found.err, found
        checked(rlaif(tmp_path, "run", "soft.yaml", "--out", "runs/again"), came)
        assert len(script.requests) - asked in (count, count + 2)  # the list of models may be asked for too
        checked(rlaif(tmp_path, "cache", "verify"), 0)
    assert rows(tmp_path) == before


# ---------------------------------------------------------------- numbers in replies

WRITTEN = (
    "\u00b2",
    "\u0663",
    "\u2460",
    "\u00bd",
    "\U0001d7dc",
    "\u4e94",
    "\uff14",
    "1e999",
    "-1",
    "4.5",
    "9" * 5_000,
    "1" * 9 + "4",
    "0x4",
    "1_0",
    "NaN",
    "Infinity",
    "-0",
    "+4",
    "4e0",
    "4E400",
    "true",
    "null",
    "\ud800",
    "\0",
    "\u200b4",
    "[" * 5_000,
)
SHAPES = (
    '{"1": {"rationale": "x", "rating": %s}, "2": {"rating": 3}}',
    '{"1": {"rating": "%s"}, "2": {"rating": 3}}',
    '[{"completion": "%s", "rating": 4}, {"completion": 2, "rating": 3}]',
    '[{"completion": 1, "text": "%s", "rating": 4}, {"completion": 2, "rating": 3}]',
    '{"1": {"completion": "%s", "rating": 4}, "2": {"rating": 3}}',
    '[{"index": %s, "rating": 4}, {"completion": 2, "rating": 3}]',
    '{"%s": {"rating": 4}, "2": {"rating": 3}}',
    "[1]\nRating: %s\n[2]\nRating: 3",
    "[%s]\nRating: 3",
    "| completion | rating |\n|---|---|\n| %s | 4 |\n| 2 | 3 |",
    "| completion | rating |\n|---|---|\n| 1 | %s |\n| 2 | 3 |",
    "Rating: %s",
    "Overall score: %s",
    "Overall score: 4/%s",
    "score: 4 out of %s",
    "on a scale of 1 to %s: Overall score: 3",
    "on a scale of %s to 5: Overall score: 3",
    "%s > 1",
    "1 > %s = 2",
    "Ranking: %s, 1",
    '{"ranking": [%s, 1]}',
    '{"ranking": ["%s", 1]}',
    "%sst: 2",
    "Preferred: %s",
    "%s",
    "[[%s]]",
    '{"1": {"rating": 4, "types": [%s]}, "2": {"rating": 3}}',
    "Rating (1-%s): 4",
    "[1] Rating: 4 (rating of %s)\n[2] Rating: 3",
)


@pytest.mark.parametrize("written", WRITTEN, ids=lambda text: ascii(text)[1:13])
def test_no_number_in_a_reply_is_a_traceback_or_a_guess(written: str) -> None:
    for shape in SHAPES:
        reply = shape.replace("%s", written)
        readings = [
            *read_json(reply, 2, 1, 5),
            *read_lines(reply, 2, 1, 5, na=True, types=("1", "2")),
            read_score(reply, 1, 5),
        ]
        for reading in readings:
            assert reading.value is None or 1 <= reading.value <= 5
            assert "int_max" not in str(reading.problem) and "recursion" not in str(reading.problem)
        choice, problem = read_choice(reply)
        assert (choice is None) == (problem is not None)
        ranking, problem = read_ranking(reply, 2)
        assert (ranking is None) == (problem is not None) and "int_max" not in str(problem)
