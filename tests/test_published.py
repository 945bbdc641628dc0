"""Published data sets in their own columns, and files as people have them: what they state is read, or counted."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hub_rows import ASKED, BAD, DOCS, GOOD, HUB, TABLE, WORSE, parts, put_right, said
from test_data_stage import project
from test_formats import facts, jsonl
from test_run import Cli, manifest, run_cli  # noqa: F401 - the fixture

from rlaif.config import read_pipeline
from rlaif.errors import InputError
from rlaif.formats import (
    SHAPES,
    Column,
    each_row,
    named,
    preference_rows,
    read_conversations,
    read_preferences,
    read_prompts,
    rows_of,
    write_dataset,
)
from rlaif.formats.published import CHOSEN_AND_REJECTED
from rlaif.generate.pairing import Pairing, preferences_of
from rlaif.pipeline.stages import open_stages
from rlaif.records import Candidate, Completion, Message, Preference, Prompt, Row

NAN = float("nan")
PLACES = ("first", "second", "third", "fourth")
TIMES = {1: "", 2: " twice", 3: " 3 times"}


def file(folder: Path, *rows: Mapping[str, Any]) -> Path:
    return jsonl(folder / "file.jsonl", rows)


def read(path: Path) -> tuple[list[Row], dict[str, int], dict[str, int]]:
    dropped, told = Counter[str](), Counter[str]()
    return list(each_row(path, dropped, told=told)), dict(dropped), dict(told)


def texts(row: Row) -> list[str]:
    return [candidate.completion.text for candidate in row.candidates]


def pairs(path: Path) -> list[tuple[str, str]]:
    return [(one.chosen, one.rejected) for one in read_preferences(path).items]


# ---------------------------------------------------------------- the hub


def summary(row: Row) -> str:
    """What was made of a row, in the words of the table in the docs."""
    parts = ["a completion" if len(row.candidates) == 1 else f"{len(row.candidates)} completions"]
    verdicts = Counter(
        "a tie" if one.verdict == "tie" else f"the {PLACES[one.a if one.verdict == 'A' else one.b]} preferred"
        for one in row.comparisons
    )
    parts += [f"{what}{TIMES[count]}" for what, count in verdicts.items()]
    if row.ratings:
        parts.append(f"ratings of {len({rating.aspect for rating in row.ratings})} aspects")
    for ranking in row.rankings:
        assert ranking.order is not None
        parts.append("ranked " + ", ".join(str(place) for place, tied in enumerate(ranking.order, 1) for _ in tied))
    values = [f"{score.value:g}" for score in row.scores]
    if values:
        kind = "labels" if row.scores[0].aspect == "label" else "scores"
        parts.append(f"{kind} {', '.join(values[:-1])} and {values[-1]}")
    return ", ".join(parts)


@pytest.mark.parametrize("name", HUB)
def test_a_data_set_of_the_hub_is_read_as_it_stands(name: str, tmp_path: Path) -> None:
    path = file(tmp_path, *HUB[name].rows)
    (row,), dropped, _ = read(path)
    assert (summary(row), dropped) == (HUB[name].read, {})
    (prompt,) = read_prompts(path).items
    asked = [message.content for message in row.prompt.messages]
    if "summarize" in name:
        assert asked == ["SUBREDDIT: r/pets\n\nTITLE: Horse\n\nPOST: My horse fell.\n\nTL;DR:"]
    elif "mt_bench" in name:
        assert asked == [ASKED, GOOD, "Why?"]
    elif "dolly" in name:
        assert asked == [f"{ASKED}\n\nA horse stands on all of them."]
    else:
        assert asked == (["Be brief."] if "rca" in name else []) + [ASKED]
    assert prompt.id == row.prompt.id
    if len(row.candidates) > 1 and "tie" not in HUB[name].read:
        assert pairs(path)[0] == (GOOD, BAD)
    elif len(row.candidates) == 1:
        assert read_conversations(path).items[0].messages[-1].content == GOOD


def test_the_table_of_the_docs_says_what_is_read() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert TABLE.search(text) and put_right(text) == text, "run `python tests/hub_rows.py`"


def test_a_line_of_the_table_that_is_wrong_would_be_put_right() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for wrong in (text.replace("ranked 1, 2, 3 |", "ranked 3, 2, 1 |"), re.sub(r"\| allenai/WildChat .*\n", "", text)):
        assert wrong != text and put_right(wrong) == text


MARGINS = {
    "HuggingFaceH4/ultrafeedback_binarized": 5.5,
    "nvidia/HelpSteer2 (preference)": 2.0,
    "nvidia/HelpSteer3 (preference)": 2.0,
    "stanfordnlp/SHP": 40.0,
    "trl-lib/kto-mix-14k": 1.0,
    "infly/INF-ORM-Preference-Magnitude-80K": 3.0,
    "Intel/orca_dpo_pairs": None,
}


@pytest.mark.parametrize(("name", "margin"), MARGINS.items())
def test_how_strongly_a_data_set_prefers_is_the_margin(name: str, margin: float | None, tmp_path: Path) -> None:
    assert [one.margin for one in read_preferences(file(tmp_path, *HUB[name].rows)).items] == [margin]


def test_the_arena_in_a_table_is_the_arena(tmp_path: Path) -> None:
    """Its turns are lists in JSON, in the cells of a CSV file."""
    (row,) = HUB["lmsys/lmsys-arena-human-preference-55k"].rows
    tie = row | {"winner_model_a": 0, "winner_tie": 1}
    turns = {"prompt": json.dumps([ASKED, "Why?"]), "winner_model_a": 0, "winner_model_b": 1}
    turns |= {"response_a": json.dumps([GOOD, "Who knows."]), "response_b": json.dumps([GOOD, "To stand."])}
    path = tmp_path / "train.csv"
    with path.open("w", newline="") as table:
        writer = csv.DictWriter(table, row)
        writer.writeheader()
        writer.writerows((row, tie | {"prompt": '["Tied?"]'}, row | turns))
    found, dropped, told = read(path)
    assert [[one.verdict for one in row.comparisons] for row in found] == [["A"], ["tie"], ["B"]]
    assert [message.content for message in found[2].prompt.messages] == [ASKED, GOOD, "Why?"]
    assert pairs(path) == [(GOOD, BAD), ("To stand.", "Who knows.")] and not dropped and not told


def test_two_judgements_of_a_row_that_conflict_are_no_preference(tmp_path: Path) -> None:
    (row,) = HUB["PKU-Alignment/PKU-SafeRLHF"].rows
    found = read_preferences(file(tmp_path, row, row | {"prompt": "Which?", "safer_response_id": 1}))
    assert [(one.chosen, one.rejected) for one in found.items] == [(GOOD, BAD)]
    assert found.dropped == {"its labels disagree": 1}


def test_each_of_several_right_completions_is_preferred(tmp_path: Path) -> None:
    ties = HUB["allenai/reward-bench-2"].rows[0] | {"chosen": [GOOD, "4."], "subset": "Ties", "num_correct": 2}
    assert pairs(file(tmp_path, ties)) == [(good, bad) for good in (GOOD, "4.") for bad in (BAD, WORSE, "Six.")]


def test_siblings_with_ranks_are_conversations_too(tmp_path: Path) -> None:
    learnt = read_conversations(file(tmp_path, *HUB["OpenAssistant/oasst2"].rows)).items
    assert [[m.content for m in one.messages] for one in learnt] == [[ASKED, GOOD], [ASKED, BAD]]


def test_what_data_sets_say_of_themselves_travels(tmp_path: Path) -> None:
    of_parts = {"allenai/reward-bench (filtered)": "farm-easy", "Skywork/Skywork-Reward-Preference-80K-v0.2": "farm"}
    for name, source in of_parts.items():
        assert read(file(tmp_path, *HUB[name].rows))[0][0].prompt.source == source
    (row,), _, told = read(file(tmp_path, *HUB["PKU-Alignment/PKU-SafeRLHF"].rows))
    assert [one.principle for one in row.comparisons] == ["better", "safer"]
    assert set(told) == {f"the column `is_response_{i}_safe` states a judgement and is not used" for i in (0, 1)}


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("nvidia/HelpSteer3 (preference)", {"overall_preference": 0}, "tie"),
        ("nvidia/HelpSteer3 (preference)", {"overall_preference": 1}, "B"),
        ("nvidia/HelpSteer3 (preference)", {"overall_preference": "-3"}, "A"),
        ("nvidia/HelpSteer2 (preference)", {"preference_strength": -100}, None),
        ("lmsys/chatbot_arena_conversations", {"winner": "tie (bothbad)"}, "tie"),
        ("argilla/distilabel-intel-orca-dpo-pairs", {"status": "tie"}, "tie"),
        ("stanfordnlp/SHP", {"labels": 0, "score_A": 1}, "B"),
        ("openai/summarize_from_feedback (comparisons)", {"choice": 1}, "B"),
        ("openai/webgpt_comparisons", {"score_0": 0, "score_1": 0}, "tie"),
        ("infly/INF-ORM-Preference-Magnitude-80K", {"magnitude": 0}, "tie"),
        ("prometheus-eval/Preference-Collection", {"orig_preference": "B", "orig_score_A": "1"}, "B"),
        ("tatsu-lab/alpaca_farm", {"preference": 2}, "B"),
    ],
)
def test_the_other_values_of_a_judgement(
    name: str, change: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    (row,), _, _ = read(file(tmp_path, HUB[name].rows[0] | change))
    assert [one.verdict for one in row.comparisons] == [expected]


def test_the_turn_that_was_judged_is_the_one_that_is_compared(tmp_path: Path) -> None:
    judged = HUB["lmsys/mt_bench_human_judgments"].rows[0]
    first = judged | {"turn": 1, "winner": "model_b", "conversation_b": said(ASKED, BAD, "Why?", "So.")}
    (row,), _, _ = read(file(tmp_path, first))
    assert (texts(row), [m.content for m in row.prompt.messages]) == ([GOOD, BAD], [ASKED])
    with pytest.raises(InputError, match="1 the two answer different prompts"):
        read(file(tmp_path, first | {"turn": 2}))
    votes = [judged | {"judge": f"expert_{i}"} for i in range(3)]  # who agree are no duplicates
    assert [row.comparisons[0].judge for row in read(file(tmp_path, *votes))[0]] == ["expert_0", "expert_1", "expert_2"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "completions": ["a", "b"], "labels": [True, False]},
        {"prompt": ASKED, "completions": '["a", "b"]', "labels": "[1, 0]"},
        {"question": {"problem": ASKED}, "label": {"steps": [{"completions": []}]}},
    ],
)
def test_steps_are_not_rival_completions(row: dict[str, Any], tmp_path: Path) -> None:
    for door in (read_preferences, read_prompts, read_conversations, read):
        with pytest.raises(InputError, match=r"steps are not rival completions. Fix: .*scores: labels"):
            door(file(tmp_path, row))


# ---------------------------------------------------------------- one completion in each row


def test_completions_that_are_labelled_alone_are_put_together(tmp_path: Path) -> None:
    rows = [
        {"prompt": ASKED, "completion": GOOD, "label": True},
        {"prompt": "Alone?", "completion": "Yes.", "label": "False"},
        {"prompt": ASKED, "completion": BAD, "label": 0},
        {"prompt": ASKED, "completion": GOOD, "label": True},
    ]
    path = file(tmp_path, *rows)
    found, dropped, told = read(path)
    assert [texts(row) for row in found] == [[GOOD, BAD], ["Yes."]]
    assert dropped == {"duplicate": 1} and sum(told.values()) == 1
    assert pairs(path) == [(GOOD, BAD)]
    assert read_preferences(path).dropped == {"duplicate": 1, "fewer than two candidates": 1}
    learnt = read_conversations(path)
    assert [c.messages[-1].content for c in learnt.items] == [GOOD]
    assert learnt.dropped == {"labelled as bad": 2, "duplicate": 1}


@pytest.mark.parametrize(("better", "worse"), CHOSEN_AND_REJECTED)
def test_chosen_and_rejected_by_other_names(better: str, worse: str, tmp_path: Path) -> None:
    assert pairs(file(tmp_path, {"prompt": ASKED, better: GOOD, worse: BAD})) == [(GOOD, BAD)]
    with pytest.raises(InputError, match=r"give `prompt` beside `chosen`, or name its column: `columns: \{prompt"):
        pairs(file(tmp_path, {"asked": ASKED, better: GOOD, worse: BAD}))


@pytest.mark.parametrize(
    ("good", "bad"), [(1, -1), ("Good", "bad"), ("thumbs_up", "thumbs_down"), ("chosen", "rejected"), (1.0, 0.0)]
)
def test_labels_by_other_words(good: object, bad: object, tmp_path: Path) -> None:
    rows = [
        {"prompt": ASKED, "response": BAD, "label": bad},
        {"prompt": ASKED, "response": GOOD, "label": good},
    ]
    assert pairs(file(tmp_path, *rows)) == [(GOOD, BAD)]
    assert read_conversations(file(tmp_path, *rows)).dropped == {"labelled as bad": 1}


@pytest.mark.parametrize("name", ["openbmb/UltraFeedback", "berkeley-nest/Nectar", "nvidia/HelpSteer2 (default)"])
def test_preferences_of_several_are_those_of_the_rule_all(name: str, tmp_path: Path) -> None:
    path = file(tmp_path, *HUB[name].rows)
    (row,), _, _ = read(path)
    weights = {rating.aspect: 1.0 for rating in row.ratings}
    pairing = Pairing("all", "ratings" if weights else "rankings", weights)
    made = [
        (one.chosen.completion.text, one.rejected.completion.text) for one in preferences_of(row, pairing, Counter())
    ]
    assert made and pairs(path) == made


# ---------------------------------------------------------------- null, numbers, messages as text


def test_nan_is_null_everywhere(tmp_path: Path) -> None:
    pair = {"prompt": ASKED, "completion_a": GOOD, "completion_b": BAD, "label": "a"}
    found, dropped, _ = read(file(tmp_path, pair | {"completion_b": NAN}, pair))
    assert [texts(row) for row in found] == [[GOOD, BAD]] and dropped == {"one of its two completions is missing": 1}
    assert read_preferences(file(tmp_path, pair | {"completion_b": NAN}, pair)).dropped == dropped
    (row,), _, _ = read(file(tmp_path, {"instruction": "Add.", "input": NAN, "output": "4"}))
    assert (row.prompt.text, texts(row)) == ("Add.", ["4"])
    listed = {"prompt": ASKED, "completions": [GOOD, NAN, None, BAD], "scores": [3, 1, 9, 2], "models": list("wxyz")}
    (row,), _, told = read(file(tmp_path, listed))
    assert texts(row) == [GOOD, BAD] and [score.value for score in row.scores] == [3, 2]
    assert [candidate.sampler for candidate in row.candidates] == ["w", "z"]
    assert told == {"a completion of a list is null and is left out": 2}


def test_two_tables_put_together_are_two_tables(tmp_path: Path) -> None:
    stated = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
    labelled = {"prompt": ASKED, "completion_a": WORSE, "completion_b": GOOD, "label": "b"}
    columns = dict.fromkeys([*stated, *labelled])
    path = file(tmp_path, columns | stated, columns | labelled)
    assert [one.verdict for row in read(path)[0] for one in row.comparisons] == ["A", "B"]
    assert pairs(path) == [(GOOD, BAD), (GOOD, WORSE)]
    with (tmp_path / "file.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows((stated, labelled))
    assert pairs(tmp_path / "file.csv") == [(GOOD, BAD), (GOOD, WORSE)]
    first = {"messages": None, "prompt": ASKED, "completion": GOOD}
    second = {"messages": said(ASKED, BAD), "prompt": None, "completion": None}
    assert len(read_conversations(file(tmp_path, first, second)).items) == 2


def test_numbers_are_texts_wherever_a_text_is_asked(tmp_path: Path) -> None:
    assert pairs(file(tmp_path, {"prompt": ASKED, "chosen": 2, "rejected": 3.5})) == [("2", "3.5")]
    labelled = {"prompt": ASKED, "completion_a": 2, "completion_b": 3.5, "label": "b"}
    assert pairs(file(tmp_path, labelled)) == [("3.5", "2")]
    assert texts(read(file(tmp_path, {"prompt": 7, "completions": [1, True, "x"]}))[0][0]) == ["1", "True", "x"]
    turns = [{"role": "user", "content": 7}, {"role": "assistant", "content": 4.5}]
    (conversation,) = read_conversations(file(tmp_path, {"messages": turns})).items
    assert [m.content for m in conversation.messages] == ["7", "4.5"]


def test_messages_as_text_are_messages(tmp_path: Path) -> None:
    sides = {"chosen": said(ASKED, GOOD), "rejected": said(ASKED, BAD)}
    written = {side: json.dumps(turns) for side, turns in sides.items()}
    assert pairs(file(tmp_path, {"prompt": json.dumps(said(ASKED))} | written)) == [(GOOD, BAD)]
    assert pairs(file(tmp_path, written)) == [(GOOD, BAD)]
    (prompt,) = read_prompts(file(tmp_path, {"prompt": json.dumps(said(ASKED))})).items
    assert prompt.text == ASKED
    for wrong in (str(sides["chosen"]), str(sides["chosen"][0])):
        with pytest.raises(
            InputError, match=r"file\.jsonl:1: `chosen` holds messages as Python shows them.*json\.dumps"
        ):
            read_preferences(file(tmp_path, {"prompt": ASKED, "chosen": wrong, "rejected": BAD}))
    quoted = '[{"role": "user"}] is what I sent, why the error?'
    assert read_prompts(file(tmp_path, {"prompt": quoted})).items[0].text == quoted


def test_parts_and_roles_by_any_name(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "How many legs "}, {"type": "text", "text": "has a horse?"}]
    messages = [
        {"role": "developer", "content": "Be brief."}, {"role": "User", "content": parts},
        {"role": "model", "content": [{"type": "output_text", "text": GOOD}]},
    ]  # fmt: skip
    (conversation,) = read_conversations(file(tmp_path, {"messages": messages})).items
    assert [(m.role, m.content) for m in conversation.messages] == [
        ("system", "Be brief."), ("user", ASKED), ("assistant", GOOD)
    ]  # fmt: skip
    image = {"messages": [{"role": "user", "content": [*parts, {"type": "image_url", "image_url": {"url": "x"}}]}]}
    assert read_prompts(file(tmp_path, image, {"messages": messages})).dropped == {
        "a turn with a part of the type 'image_url'": 1
    }


def test_a_prompt_of_parts_is_their_text_and_a_picture_drops_its_row(tmp_path: Path) -> None:
    pair = {"prompt": parts(ASKED), "chosen": GOOD, "rejected": BAD}
    picture = [{"role": "user", "content": [{"type": "image", "text": None, "image": "x"}]}]
    assert pairs(file(tmp_path, pair)) == [(GOOD, BAD)]
    (arena,) = HUB["lmarena-ai/arena-human-preference-140k"].rows
    seen = {side: picture + arena[side][1:] for side in ("conversation_a", "conversation_b")}
    for whole, with_a_picture in ((pair, {"prompt": picture}), (arena, seen)):
        (row,), dropped, _ = read(file(tmp_path, whole, whole | with_a_picture))
        assert row.prompt.text == ASKED and dropped == {"a turn with a part of the type 'image'": 1}


@pytest.mark.parametrize(
    ("row", "better"),
    [
        ({"response_1": GOOD, "response_2": BAD, "preference": "response_1"}, "A"),
        ({"response_1": GOOD, "response_2": BAD, "choice": 2}, "B"),
        ({"response_1": GOOD, "response_2": BAD, "better": "response_2"}, "B"),
        ({"completion_a": GOOD, "completion_b": BAD, "preferred": "a"}, "A"),
        ({"completion_a": GOOD, "completion_b": BAD, "winner": "tie", "choice": "x"}, "tie"),
    ],
)
def test_a_label_by_another_name(row: dict[str, Any], better: str, tmp_path: Path) -> None:
    (found,), _, _ = read(file(tmp_path, {"prompt": ASKED} | row))
    assert [one.verdict for one in found.comparisons] == [better]


@pytest.mark.parametrize("scores", ["scores", "ratings", "rewards"])
@pytest.mark.parametrize("completions", ["completions", "responses", "candidates", "answers"])
def test_lists_by_other_names(completions: str, scores: str, tmp_path: Path) -> None:
    for written in (lambda value: value, json.dumps):
        row = {"prompt": ASKED, completions: written([BAD, GOOD]), scores: written([1, 4.5])}
        assert pairs(file(tmp_path, row)) == [(GOOD, BAD)]


# ---------------------------------------------------------------- judgements that are not used


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({"prompt": ASKED, "completion": GOOD, "quality": 4}, ["quality"]),
        ({"messages": said(ASKED, GOOD), "score": 4}, ["score"]),
        ({"prompt": ASKED, "response": GOOD, "is_safe": True, "category": {"x": False}}, ["is_safe"]),
        ({"question": ASKED, "answers": [{"text": text, "likes": 3} for text in (GOOD, BAD)]}, ["answers.likes"]),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "votes_chosen": 4, "length": 7}, ["votes_chosen"]),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "score_chosen": 4, "score_rejected": 1}, []),
        ({"prompt": ASKED, "completion": GOOD, "label": "sports", "n": 3}, []),
    ],
)  # fmt: skip
def test_a_judgement_that_is_not_used_is_counted(row: dict[str, Any], unused: Sequence[str], tmp_path: Path) -> None:
    _, _, told = read(file(tmp_path, row))
    assert told == {f"the column `{name}` states a judgement and is not used": 1 for name in unused}


def test_a_run_tells_what_it_did_not_use(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    rows = [{"prompt": f"{ASKED} {i}", "chosen": GOOD, "rejected": BAD, "stars": 4} for i in range(9)]
    project(tmp_path, rows, "  - data: {path: rows.jsonl}\n  - pair: {}\n")
    opened = open_stages(read_pipeline(str(tmp_path / "data.yaml")))
    assert opened.notes == ["data: the column `stars` states a judgement and is not used (9 times)"]


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("best", "values", "expected"),
    [
        (0, {"a": (0,), "b": (1,)}, "A"),
        ("yes", {"a": ("No",), "b": (1, "Yes")}, "B"),
        (-0.5, "sign", "A"),
        ("-0.5", "-sign", "B"),
        (0, "sign", "tie"),
        ("a", {"a": (1,), "b": (0,)}, None),
        ("x", "sign", None),
    ],
)
@pytest.mark.parametrize("written", [lambda value: value, json.dumps])
def test_columns_take_paths_and_meanings(
    best: Any, values: Any, expected: str | None, written: Callable[[Any], Any], tmp_path: Path
) -> None:
    row = {"q": written({"text": ASKED}), "all": written([{"t": GOOD}, {"t": BAD}]), "best": best}
    paths = {"prompt": Column("q.text"), "completion_a": Column("all.0.t"), "completion_b": Column("all.1.t")}
    table = named(rows_of(file(tmp_path, row)), paths | {"label": Column("best", values)})
    (found,) = each_row(table, Counter())
    assert (found.prompt.text, texts(found)) == (ASKED, [GOOD, BAD])
    assert [one.verdict for one in found.comparisons] == [expected]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("q.txt", r"file\.jsonl:1: there is no column 'txt' in `q`, only `text`. Fix: did you mean `text`"),
        ("q.text.more", r"`q\.text` holds str, which has no part 'more'. Fix: end the path at `q\.text`"),
        ("all.first", r"`all` holds a list, which has no part 'first'. Fix: use a number, from 0"),
        ("quest", r"there is no column 'quest', only `q`, `all`"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(path: str, words: str, tmp_path: Path) -> None:
    table = named(rows_of(file(tmp_path, {"q": {"text": ASKED}, "all": [GOOD]})), {"prompt": Column(path)})
    with pytest.raises(InputError, match=words):
        list(each_row(table, Counter()))


def test_columns_and_meanings_in_a_pipeline(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    rows = [{"q": {"text": f"{ASKED} {i}"}, "good": GOOD, "bad": BAD, "better": 1 + i % 2} for i in range(12)]
    columns = "{prompt: q.text, completion_a: good, completion_b: bad, label: {column: better, values: {a: 1, b: 2}}}"
    project(tmp_path, rows, f"  - data: {{path: rows.jsonl, columns: {columns}}}\n  - pair: {{}}\n")
    code, _, err = run_cli("run", "data.yaml")
    assert code == 0, err
    (path,) = (tmp_path / "runs/data/stages").glob("*-pair.jsonl")
    assert {json.loads(line)["chosen"]["completion"]["text"] for line in path.read_text().splitlines()} == {GOOD, BAD}
    for wrong, words in (
        ("{column: better, values: {1: a}}", "a label says one of a, b, tie.*not '1'; write ours first"),
        ("{column: better, values: []}", r"`stages\.0\.data\.columns\.label"),
        ("{column: better}", "the key is missing"),
        ("[better]", "name a column, or give"),
    ):
        text = f"  - data: {{path: rows.jsonl, columns: {{prompt: q, label: {wrong}}}}}\n  - pair: {{}}\n"
        project(tmp_path, rows, text)
        code, _, err = run_cli("plan", "data.yaml")
        assert code == 2 and re.search(words, " ".join(err.split())), err


# ---------------------------------------------------------------- own columns


def test_own_columns_travel_to_every_export(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    rows = [
        {"id": f"row-{i}", "team": {"name": "farm"}, "prompt": f"{ASKED} {i}"}
        | {"completions": [GOOD, BAD], "ranks": [1, 2]}
        for i in range(12)
    ]
    project(tmp_path, rows, "  - data: {path: rows.jsonl, keep: team}\n  - pair: {rule: all}\n")
    code, _, err = run_cli("run", "data.yaml")
    assert code == 0, err
    kept = manifest(tmp_path / "runs/data")["stages"][1]["preferences"]
    for form in ("preference", "sft", "binarized", "hh", "rewardbench"):
        assert run_cli("export", "runs/data", "--format", form, "--to", f"{form}.jsonl")[0] == 0
        found = [json.loads(line) for line in (tmp_path / f"{form}.jsonl").read_text().splitlines()]
        assert len(found) == kept and {one["team"] for one in found} == {'{"name": "farm"}'}
        own = [one["own_id" if form == "rewardbench" else "id"] for one in found]
        assert len(set(own)) == kept and set(own) <= {row["id"] for row in rows}
        assert run_cli("export", "runs/data", "--format", form, "--to", form)[0] == 0
    stages = f"  - data: {{path: {tmp_path}/rows.jsonl, keep: teem}}\n  - pair: {{}}\n"
    with pytest.raises(InputError, match=r"rows\.jsonl:1: `keep`: there is no column 'teem'.*did you mean `team`"):
        open_stages(read_pipeline(project(tmp_path, rows, stages)))


def test_own_columns_travel_to_the_exports_of_rows(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    """Of ratings, of rankings and of soft labels."""
    attributes = HUB["nvidia/HelpSteer2 (default)"].rows
    rated = [
        row | {"prompt": f"{ASKED} {i}", "id": f"row-{i}", "team": "farm"} for i in range(12) for row in attributes
    ]
    labelled = [
        {"prompt": f"{ASKED} {i}", "id": f"row-{i}", "team": "farm", "probability": 0.9}
        | {"completion_a": GOOD, "completion_b": BAD}
        for i in range(12)
    ]
    for rows, forms in ((rated, ("ultrafeedback", "ranked", "rated")), (labelled, ("soft",))):
        project(tmp_path, rows, "  - data: {path: rows.jsonl, keep: team}\n  - pair: {}\n")
        code, _, err = run_cli("run", "data.yaml")
        assert code == 0, err
        for form in forms:
            assert run_cli("export", "runs/data", "--format", form, "--to", f"{form}.jsonl")[0] == 0
            found = [json.loads(line) for line in (tmp_path / f"{form}.jsonl").read_text().splitlines()]
            assert {one["team"] for one in found} == {"farm"}
            assert len({one["id"] for one in found}) > 6 and {one["id"] for one in found} <= {r["id"] for r in rows}
    code, _, err = run_cli("export", "runs/data", "--format", "rated", "--to", "none.jsonl")
    assert code == 1 and "no row can be written in the shape 'rated'. Fix: export another shape" in err


def test_a_column_of_its_own_may_come_late(tmp_path: Path) -> None:
    def preference(i: int) -> Preference:
        messages = (Message(role="user", content=f"{ASKED} {i}"),)
        prompt = Prompt(messages=messages, kept={"id": "late"} if i > 1100 else {})
        good, bad = (
            Candidate(sampler="x", completion=Completion(text=text, model="x", call=text)) for text in (GOOD, BAD)
        )
        return Preference(prompt=prompt, chosen=good, rejected=bad, score_chosen=1, score_rejected=0, rule="all")

    write_dataset(SHAPES["preference"], preference_rows(map(preference, range(1200))), tmp_path / "set", facts(1200))
    (path,) = (tmp_path / "set").rglob("*.parquet")
    own = pyarrow.parquet.read_table(path).column("id").to_pylist()
    assert own == [None] * 1101 + ["late"] * 99
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("x.ndjson", '{"prompt": "a"}\n{"prompt": "b"}\n', ["a", "b"]),
        ("x.txt", "a horse\n\n  b, \"c\" \r\n", ["a horse", '  b, "c" ']),
        ("x.csv", "prompt;team\n\"a; b\";1\nc, d;2\n", ["a; b", "c, d"]),
        ("x.csv", "prompt\tteam\na, b\t1\n", ["a, b"]),
        ("x.csv", "prompt|team\na, b|1\n", ["a, b"]),
        ("x.csv", "prompt\na; b\n", ["a; b"]),
        ("x.csv", "prompt,team\n" + "a" * 200_000 + ",1\n", ["a" * 200_000]),
        ("x.jsonl", '[{"prompt": "a"},\n {"prompt": "b"}]\n', ["a", "b"]),
        ("x.json", '{"prompt": "a"}\n{"prompt": "b"}\n', ["a", "b"]),
    ],
)  # fmt: skip
def test_files_as_people_have_them(name: str, text: str, prompts: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert [prompt.messages[0].content for prompt in read_prompts(tmp_path / name).items] == prompts


@pytest.mark.parametrize(
    ("name", "text", "problem", "fix"),
    [
        ("x.jsonl", '"a horse"\n', "x.jsonl:1: expected an object, found str", "is called .txt"),
        ("x.json", '["a horse"]', "row 1: expected an object, found str", "is called .txt"),
        ("x.json", '{"prompt": "a"}\n{"prompt": "b"}\n7\n', "row 3: expected an object, found int", "is called .txt"),
        ("x.json", '{"data": [{"prompt": "a"}]}', "found an object with `data`", "keep only the list of rows"),
    ],
)
def test_a_file_of_something_else_is_named_with_the_fix(
    name: str, text: str, problem: str, fix: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_prompts(tmp_path / name)
    assert problem in str(caught.value) and fix in str(caught.value.fix)


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.json", "x.csv", "x.tsv", "x.txt"])
def test_an_empty_file_is_named_with_the_fix(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=rf"{name}: there are no rows. Fix: the file is empty"):
        read_prompts(tmp_path / name)


# ---------------------------------------------------------------- look


def test_look_shows_what_a_data_set_is(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    rows = [HUB["stanfordnlp/SHP"].rows[0] | {"history": f"{ASKED} {i}"} for i in range(3)]
    stated = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
    rows += [stated | {"margin": 0, "length": 7}, stated | {"prompt": " "}]
    file(tmp_path, *rows)
    code, out, err = run_cli("look", "file.jsonl")
    assert code == 0, err
    shown = " ".join(out.split())
    for part in (
        "5 rows, 4 prompts, 8 completions, 4 comparisons, 8 scores",
        "shape two completions with a label (two comments with their votes): 3",
        "preferences 3",
        "no preference tie: 1",
        "dropped empty prompt: 1",
        "not used length: 1",
        "the first row, as it will be used:",
        f"{ASKED} 0",
    ):
        assert part in shown, out
    assert "[1] preferred" in shown and "said ''" not in shown  # a file's own judgement has no words
    code, out, err = run_cli("look", "file.jsonl", "--json")
    assert code == 0 and json.loads(out)["no_preference"] == {"tie": 1}
    assert json.loads(out)["example"]["candidates"][0]["completion"]["text"] == GOOD
    evil = "\x1b[31m\u202e\u200b"
    file(tmp_path, {"prompt": f"{ASKED}{evil}", "completion": evil + GOOD, f"rating{evil}": 3, evil: 1, "label": evil})
    code, out, err = run_cli("look", "file.jsonl")
    assert code == 0 and not {"\x1b", "\u202e", "\u200b"} & set(out + err) and out.count("\\x1b[31m") > 2
    code, _, err = run_cli("look", "fil.jsonl")
    assert code == 2 and "did you mean 'file.jsonl'" in err
