"""What the command line prints fits the terminal: no word or number is broken, and no content is lost.

Each table is printed with wide content at several widths, and its words are looked up in what was printed.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlaif.cli import results, rows, summaries
from rlaif.cli.options import AuditOptions, JudgeOptions, grouped
from rlaif.cli.tables import Column, table
from rlaif.pipeline.browse.rows import Shown
from rlaif.records import Candidate, Completion, Message, Prompt, Record, Row
from rlaif.screen import Text
from rlaif.store import Holding

WIDTHS = (60, 80, 100, 160)
MODELS = (
    "meta-llama/Llama-3.1-70B-Instruct-Turbo", "annotator", "Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8", "sl-cai",
    "mistralai/Mixtral-8x22B-Instruct-v0.1", "helpful-harmless-round-2", "google/gemma-2-27b-it",
)  # fmt: skip
DROPPED = {
    "critique: cut at max_tokens": 1_234_567, "not in the train split": 2_345_678, "unparsed": 345_678,
    "the two orders disagree": 45_678, "margin too small": 5_678,
}  # fmt: skip


def printed(show: Callable[[Console], object], width: int) -> str:
    file = io.StringIO()
    show(Console(file=file, width=width, markup=False, emoji=False, color_system=None, force_terminal=False))
    return file.getvalue()


def number(value: int | float, digits: int | None = None) -> str:
    return f"{value:,}" if digits is None else f"{value:.{digits}f}"


# ---------------------------------------------------------------- the tables, each with the words it has to show


Case = tuple[Callable[[Console], object], list[str]]


def a_plan() -> Case:
    calls = {name: {"calls": 1_000_003 + i, "paid": 1_000_001} for i, name in enumerate(MODELS[:3])}
    needs = {
        name: {**call, "prompt_tokens": 812_345_678 + i, "max_completion_tokens": 4_712_345_678, "max_cost": 12345.6789}
        | {"unpriced": False}
        for i, (name, call) in enumerate(calls.items())
    }
    stages: list[dict[str, Any]] = [
        {"stage": "red-team-and-benign-prompts", "from": None, "rows": 7_654_321, "makes": []},
        {"stage": "sample", "from": "red-team-and-benign-prompts", "rows": 7_654_321, "calls": calls, "makes": []},
        {"stage": "pair", "from": "sample", "rows": 7_654_321, "at_most": 7_654_321,
         "makes": ["dataset/preference", "dataset/sft"]},
        {"stage": "dpo", "from": "pair + demonstrations", "rows": 7_654_321, "makes": ["models/dpo"],
         "state": "to train, on rows that are not all known yet"},
    ]  # fmt: skip
    plan = {"name": "ultrafeedback", "stages": stages, "calls": needs, "budget_left": 99.5, "changed": [],
            "last_run_seconds": 4711.0}  # fmt: skip
    words = [word for need in needs.values() for word in map(number, list(need.values())[:4])]
    words += [stage["stage"] for stage in stages] + list(needs) + ["7,654,321"] * 4 + ["12345.6789"] * 3
    return lambda console: results.print_plan(console, plan), words + [
        "demonstrations",
        "known",
        "most",
        "99.5000",
        "dataset/preference",
        "models/dpo",
    ]


def a_status() -> Case:
    counts = ("sent", "cached", "failed", "cut_at_max_tokens", "prompt_tokens", "completion_tokens")
    calls: dict[str, dict[str, Any]] = {
        name: {key: 1_000_000 * (i + 1) + j for j, key in enumerate(counts)} | {"cost": 1234.5678}
        for i, name in enumerate(MODELS)
    }
    stages = [
        {"name": f"constitution-{i}", "in": 9_876_543, "out": 7_654_321, "preferences": 8_765_432, "dropped": DROPPED,
         "seconds": 123456.7}
        for i in range(3)
    ]  # fmt: skip
    stages[1]["evaluation"] = an_evaluation()
    manifest = {"name": "cai", "state": "killed", "seconds": 5.0, "stages": stages, "calls": calls,
                "under_way": {"compare": 6_543_210}, "failures": {}}  # fmt: skip
    words = [number(count) for call in calls.values() for count in list(call.values())[:-1]] + ["1234.5678"] * 7
    words += ["1,234,567", "0.125", "+0.25"]
    words += [*calls, *(stage["name"] for stage in stages), "6,543,210", *["9,876,543", "8,765,432", "123456.7"] * 3]
    words += [word for reason, count in DROPPED.items() for word in (number(count), *reason.split())] * 3
    return lambda console: results.print_status(console, manifest), words


def some_holdings() -> Case:
    holdings = [
        Holding(run, f"server:{model}:0123456789abcdef", 1_234_567 + i, 812_345_678, 712_345_678, 123_456_789, 0.0, 1e9)
        for i, model in enumerate(MODELS)
        for run in ("constitutional-ai-round-2", "audit")
    ]
    words = [word for held in holdings for word in (held.run, held.model.split(":")[1], number(held.calls))]
    words += ["812,345,678", "712,345,678", "117.7"] * len(holdings)
    return lambda console: results.print_holdings(console, holdings, Path("runs/calls.sqlite")), words


def a_summary(names: tuple[str, ...] = MODELS) -> Case:
    def share(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": 0.0, "high": 1.0}

    models: list[dict[str, Any]] = [
        {
            "name": name, "failed": 1_234_567, "unparsed": 2_345_678 + i, "unscored": 3_456_789,
            "length": share(1234.5), "ended": share(0.5 + i / 100), "win_rate": share(0.25) | {"ties": 0.125},
            "score": share(3.25), "reward": share(-7.25), "gold": share(0.625),
            "gold_parts": {"content": share(0.5), "concision": share(0.5)}, "gold_difference": share(-0.125),
            "harmful_refused": share(0.75), "kl": {"at_most": 3.14159, "against": names[0]},
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    judge = {"model": names[0], "rated": 7_654_321, "unparsed": 12, "failed": 3, "pair_accuracy": share(0.94)}
    summary = {"baseline": names[0], "prompts": 9_999_999, "split": "held-out", "models": models, "judge": judge,
               "reward": {"model": names[0], "pair_accuracy": share(0.91)}}  # fmt: skip
    words = ["0.625", "3.25", "-7.25", "1234.5", "75%", "3.14", "1,234,567", "3,456,789"] * len(names)
    words += ["-0.125", "25%", "12%"] * (len(names) - 1) + [f"{50 + i}%" for i in range(len(names))]
    words += [*names, *(number(2_345_678 + i) for i in range(len(names)))]
    return lambda console: summaries.print_summary(console, summary), words


def some_rows() -> Case:
    texts = [f"why does {model} answer question {i} so ?" for i, model in enumerate(MODELS)]
    made = [Row(prompt=Prompt(messages=(Message(role="user", content=text),))) for text in texts]
    words = [word for row, text in zip(made, texts, strict=True) for word in (row.prompt.id, *text.split())]
    shown = [Shown(number, "pair", row, ("tied", "unparsed")) for number, row in enumerate(made, 1)]
    return lambda console: rows.print_rows(console, shown, 7_654_321), [*words, "tied,", "unparsed", "7,654,328"]


def an_evaluation() -> dict[str, Any]:
    share = {"mean": 0.25, "low": 0.0, "high": 1.0, "n": 7}
    length = {"correlation": share, "longer_chosen": share, "longer_preferred": share}
    found = {
        "pairs": 1_234_567, "prompts": 345_678, "accuracy": share,
        "by_source": {"ultrafeedback-of-a-long-name": share, "of another kind": None},
        "by_margin": [{"low": 0.5, "high": 12.25, "pairs": 12, "accuracy": share}],
        "calibration": {"ece": share | {"mean": 0.125}}, "length": length,
    }  # fmt: skip
    return {"scale": 1.5, "validation": found}


def a_training() -> Case:
    metrics = {"validation_accuracy": 0.8125, "final_rewards/margins_of_validation_pairs": 12345.6789}
    record = {"metrics": metrics, "dropped": DROPPED, "kept": 7_654_321, "read": 9_876_543, "steps": 1_234_567}
    record["evaluation"] = an_evaluation()
    words = ["validation", "accuracy", "0.8125", "rewards/margins", "12345.6789", "7,654,321", "9,876,543"]
    words += ["1,234,567", "ultrafeedback-of-a-long-name", "25%", "[0,", "100]", "+0.25", "0.125"]
    return lambda console: results.print_training(console, record, Path("models/policy")), words


CASES = {
    "plan": a_plan, "status": a_status, "holdings": some_holdings, "summary": a_summary, "rows": some_rows,
    "training": a_training, "summary of few": lambda: a_summary(("base", "sft", "dpo")),
}  # fmt: skip


def missing(words: list[str], text: str) -> Counter[str]:
    """The words that the text does not hold whole, or less often; commas, colons and brackets end a word."""
    return Counter(words) - Counter(stripped for word in text.split() for stripped in {word, word.rstrip(",:;")})


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", CASES)
def test_no_word_is_broken_and_nothing_is_lost(case: str, width: int) -> None:
    show, words = CASES[case]()
    text = printed(show, width)
    assert len(words) >= 7
    assert not missing(words, text), text
    # What is printed at a great width is whole: each of its words stands in the narrow table too.
    wide = {word.rstrip(",") for word in printed(show, 400).split() if not word.endswith("'s")}
    assert not wide - {word.rstrip(",") for word in text.split()}, text
    table_lines = [line for line in text.splitlines() if "steps; the model is in" not in line]
    assert max(len(line.rstrip()) for line in table_lines) <= width, text


def test_a_broken_word_and_a_lost_one_would_be_seen() -> None:
    assert missing(["1,234,567", "annotator"], "1,234,567  annotator") == Counter()
    assert missing(["1,234,567", "annotator"], "1,234,5  annotat\n67       or") == Counter(["1,234,567", "annotator"])
    assert missing(["7", "7"], "7") == Counter(["7"])


def test_the_sweep_reaches_every_layout() -> None:
    columns = (Column("model", text=True), Column("calls"), Column("of which cached"), Column("empty"))
    made = [("meta-llama/Llama-3.1-70B", "1,234,567", Text("7"), ""), ("two", "8", "9", "")]

    def lines(width: int) -> list[str]:
        return [line.rstrip() for line in printed(lambda c: c.print(table(columns, made, width)), width).splitlines()]

    assert lines(60) == [
        "model                         calls  of which cached",
        "meta-llama/Llama-3.1-70B  1,234,567                7",
        "two                               8                9",
    ]
    assert lines(45)[:3] == [
        "                                     of which",
        "model                         calls    cached",
        "meta-llama/Llama-3.1-70B  1,234,567         7",
    ]
    assert lines(30) == [
        "model", "      calls  of which cached", "meta-llama/Llama-3.1-70B", "  1,234,567                7", "two",
        "          8                9",
    ]  # fmt: skip
    columns = (Column("model", text=True), Column("calls"), Column("cached"), Column("tokens read"))
    made = [("two", "1,234,567,890", "", "3,456,789,012"), ("three", "", "8", "9")]
    assert lines(30) == [
        "model two", "  calls        1,234,567,890", "  tokens read  3,456,789,012", "model three", "  cached       8",
        "  tokens read  9",
    ]  # fmt: skip


def test_models_of_a_summary_are_numbered_only_where_their_names_do_not_fit() -> None:
    few, _ = a_summary(("base", "sft", "dpo"))
    assert "[1]" not in printed(few, 80) and "win rate against base" in printed(few, 80)
    many, _ = a_summary()
    text = printed(many, 100)
    assert f"[1] {MODELS[0]}" in text and "win rate against [1]" in text
    headings = [line.split() for line in text.splitlines() if re.fullmatch(r"\s+(\[\d\]\s*)+", line)]
    assert headings == [["[1]", "[2]", "[3]", "[4]"], ["[5]", "[6]", "[7]"]]


# ---------------------------------------------------------------- rows and options


class Essay(Record):
    author: str
    stars: int
    note: str | None = None


class LaterRow(Row):
    essays_of_people: tuple[Essay, ...] = ()


def test_a_new_kind_of_judgement_is_shown_without_an_edit() -> None:
    prompt = Prompt(messages=(Message(role="user", content="why ?"),))
    candidate = Candidate(sampler="one", completion=Completion(text="because", model="one", call="c" * 32))
    essays = (Essay(author="ada", stars=4), Essay(author="bob\x1b[2J", stars=5, note="two\nlines"))
    row = LaterRow(prompt=prompt, candidates=(candidate,), essays_of_people=essays)
    lines = printed(lambda console: rows.print_row(console, row, []), 100).splitlines()
    place = lines.index("essays of people")
    assert lines[place + 1 :] == ["    author ada, stars 4", "    author bob\\x1b[2J, stars 5, note two lines"]
    assert set(Row.model_fields) > rows.KNOWN  # each name in it is a field


def test_options_of_a_group_reach_the_command_as_one_object() -> None:
    import inspect

    found = {}

    def command(judge: str, asked: JudgeOptions, scope: AuditOptions, loud: bool = False) -> None:
        found.update(judge=judge, asked=asked, scope=scope, loud=loud)

    flat = grouped(command)
    names = ["judge", "model", "key_env", "method", "stage", "gold", "take", "labels", "probes", "loud"]
    assert list(inspect.signature(flat).parameters) == names
    flat(**dict.fromkeys(names[1:-2]), judge="x", probes=False, loud=True)
    assert found == {"judge": "x", "asked": JudgeOptions(), "scope": AuditOptions(probes=False), "loud": True}
