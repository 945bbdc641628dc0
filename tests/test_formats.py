"""Data shapes: every file type and column set that is read, every error a file can cause, and what is written."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import yaml

from rlaif.errors import InputError, WorkError
from rlaif.formats import (
    SHAPES,
    CardFacts,
    preference_rows,
    read_conversations,
    read_hub,
    read_preferences,
    read_prompts,
    sft_rows,
    ultrafeedback_rows,
    write_dataset,
    write_file,
)
from rlaif.formats.reading import Conversation
from rlaif.formats.write.dataset import PARQUET
from rlaif.formats.write.files import FORMS
from rlaif.generate.revising import revised
from rlaif.records import Candidate, Completion, Message, Preference, Prompt, Rating, Revision, Row, Score

Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def texts(messages: Iterable[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


# ---------------------------------------------------------------- shapes


BINARIZED = {
    "prompt": "Hi?",
    "messages": turns("Hi?", "Good."),
    "chosen": turns("Hi?", "Good."),
    "rejected": turns("Hi?", "Bad."),
}


@pytest.mark.parametrize(
    "row",
    [
        BINARIZED,
        {"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad."},
        {"prompt": turns("Hi?"), "chosen": turns("x", "Good.")[1:], "rejected": turns("x", "Bad.")[1:]},
        {"instruction": "Hi?", "chosen": "Good.", "rejected": "Bad."},
        {"chosen": "\n\nHuman: Hi?\n\nAssistant: Good.", "rejected": "\n\nHuman: Hi?\n\nAssistant: Bad."},
        {
            "conversations": [{"from": "human", "value": "Hi?"}],
            "chosen": {"from": "gpt", "value": "Good."},
            "rejected": {"from": "gpt", "value": "Bad."},
        },
    ],
)
def test_preferences_in_the_shapes_people_have(tmp_path: Path, row: dict[str, Any]) -> None:
    (found,) = read_preferences(jsonl(tmp_path / "p.jsonl", [row])).items
    assert texts(found.prompt.messages) == [("user", "Hi?")]
    assert (found.chosen, found.rejected) == ("Good.", "Bad.")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi?", "chosen": "Good.", "rejected": "Good."}, "identical texts"),
        ({"prompt": "Hi?", "chosen": " ", "rejected": "Good."}, "empty completion"),
        ({"prompt": "", "chosen": "Good.", "rejected": "Bad."}, "empty prompt"),
        ({"chosen": turns("Hi?", "a"), "rejected": turns("Ho?", "b")}, "chosen and rejected answer different prompts"),
        ({"chosen": turns("Hi?"), "rejected": turns("Hi?", "b")}, "no assistant turn at the end"),
    ],
)
def test_a_pair_that_states_no_preference_is_dropped_and_counted(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    found = read_preferences(jsonl(tmp_path / "p.jsonl", [row, BINARIZED]))
    assert (len(found.items), found.dropped) == (1, {reason: 1})


def test_a_file_of_another_shape_is_no_preferences(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"p\.jsonl:1: no known shape has the columns `prompt`.*`chosen` and `rejected`"
    ):
        read_preferences(jsonl(tmp_path / "p.jsonl", [{"prompt": "Hi?"}]))


def test_what_a_run_writes_is_read_as_preferences(tmp_path: Path) -> None:
    write_dataset(SHAPES["preference"], preference_rows([example_preference(0)]), tmp_path / "set", facts(1))
    (found,) = read_preferences(tmp_path / "set").items
    assert (found.prompt.id, found.chosen, found.rejected) == (example_row(0).prompt.id, "Yes 0.", "No 0.")


def test_margins_that_are_no_finite_numbers_are_told(tmp_path: Path) -> None:
    both = {"prompt": "Hi?", "chosen": "a", "rejected": "b"}
    stated = [{"margin": 2}, {"margin": float("inf")}, {"margin": "1e300"}, {"score_chosen": 3, "score_rejected": "x"}]
    rows = [both | {"chosen": f"a{i}"} | known for i, known in enumerate([*stated, {}])]
    read = read_preferences(jsonl(tmp_path / "p.jsonl", rows))
    assert [one.margin for one in read.items] == [2, None, None, None, None]
    assert read.told == {"a margin, or one of two scores, is no finite number of at most 1e+100, and is not used": 3}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": turns("Hi?")}, [("user", "Hi?")]),
        ({"messages": turns("Hi?", "Hello.")}, [("user", "Hi?")]),
        ({"messages": turns("a", "b", "c", "d")}, [("user", "a"), ("assistant", "b"), ("user", "c")]),
        (
            {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}]},
            [("system", "s"), ("user", "q")],
        ),
        ({"prompt": "Hi?", "completion": "Hello."}, [("user", "Hi?")]),
        ({"prompt": turns("Hi?")}, [("user", "Hi?")]),
        ({"prompt": "Hi?", "messages": turns("Hi!", "Hello.")}, [("user", "Hi!")]),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, [("user", "Add.\n\n1 2")]),
        ({"instruction": "Add.", "input": ""}, [("user", "Add.")]),
        ({"instruction": "Add.", "input": None}, [("user", "Add.")]),
        ({"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}]}, [("user", "Add.\n\n1 2")]),
        ({"question": "Why?", "answer": "So."}, [("user", "Why?")]),
    ],
)
def test_prompt_shapes(tmp_path: Path, row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    (prompt,) = read_prompts(jsonl(tmp_path / "file.jsonl", [row])).items
    assert texts(prompt.messages) == expected
    assert prompt.source == "file.jsonl"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns("q", "a")},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": turns("q"), "completion": turns("", "a")[1:]},
        {"prompt": "q", "completion": "a<|endoftext|>"},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
        {"question": "q", "answer": "a"},
    ],
)
def test_conversation_shapes(tmp_path: Path, row: dict[str, Any]) -> None:
    (conversation,) = read_conversations(jsonl(tmp_path / "file.jsonl", [row])).items
    assert texts(conversation.messages) == [("user", "q"), ("assistant", "a")]


def test_a_conversation_falls_into_the_split_of_its_prompt(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "file.jsonl", [{"prompt": f"question {i}", "completion": "a"} for i in range(50)])
    prompts, conversations = read_prompts(path).items, read_conversations(path).items
    assert [c.prompt.id for c in conversations] == [p.id for p in prompts]
    assert [c.split for c in conversations] == [p.split for p in prompts]
    assert len({p.split for p in prompts}) > 1


@pytest.mark.parametrize(("system", "answers"), [(None, 1), (None, 2), ("Be kind.", 1), ("Be kind.", 2)])
def test_no_turn_of_a_training_conversation_answers_a_held_out_prompt(system: str | None, answers: int) -> None:
    """A sweep: every assistant turn is trained on, so every one counts, with the system message and without it."""
    counts: Counter[str] = Counter()
    leaks_of_the_last_turn_alone = 0
    for i in range(2000):
        said = [Message(**turn) for turn in turns(f"ask {i}", "a", f"and {i}", "b")[: 2 * answers]]
        head = [Message(role="system", content=system)] if system else []
        conversation = Conversation(messages=(*head, *said))
        asked = {
            Prompt(messages=(*start, *said[:end])).split for start in ([], head) for end in range(1, 2 * answers, 2)
        }
        expected = "held-out" if "held-out" in asked else "validation" if "validation" in asked else "train"
        assert conversation.split == expected
        counts[conversation.split] += 1
        leaks_of_the_last_turn_alone += "held-out" in asked and conversation.prompt.split != "held-out"
    prompts = answers * (2 if system else 1)  # independent draws of 75, 5 and 20 %
    assert counts["train"] / 2000 == pytest.approx(0.75**prompts, abs=0.04)
    assert counts["held-out"] / 2000 == pytest.approx(1 - 0.8**prompts, abs=0.04)
    assert (leaks_of_the_last_turn_alone > 200) == (prompts > 1)


def test_a_conversation_that_opens_with_the_assistant_has_the_split_of_what_was_asked() -> None:
    greeting, ask, reply = (Message(role=r, content="x") for r in ("assistant", "user", "assistant"))
    splits = {
        Conversation(messages=(greeting, ask.model_copy(update={"content": str(i)}), reply)).split for i in range(99)
    }
    assert splits == {"train", "validation", "held-out"}


def test_every_self_instruct_instance_counts(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}]}
    path = jsonl(tmp_path / "seeds.jsonl", [row])
    assert [c.messages[-1].content for c in read_conversations(path).items] == ["3", "4"]
    assert len(read_prompts(path).items) == 2


def test_open_assistant_messages_become_threads(tmp_path: Path) -> None:
    rows = [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q"},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a"},
        {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "b"},
        {"message_id": "4", "parent_id": "3", "role": "prompter", "text": "r"},
        {"message_id": "5", "parent_id": "4", "role": "assistant", "text": "c"},
    ]
    found = read_conversations(jsonl(tmp_path / "oasst.jsonl", rows)).items
    assert [[m.content for m in c.messages] for c in found] == [["q", "a"], ["q", "b", "r", "c"]]
    with pytest.raises(InputError, match="does not lead to a root"):
        read_prompts(jsonl(tmp_path / "broken.jsonl", rows[2:]))
    ring = [{**rows[0], "parent_id": "2"}, rows[1], {**rows[2], "parent_id": "2"}]
    with pytest.raises(InputError, match="does not lead to a root"):
        read_prompts(jsonl(tmp_path / "ring.jsonl", ring))


def test_a_named_column_and_a_source_column(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "file.jsonl", [{"goal": "Do it.", "prompt": "Not this.", "source": "elsewhere"}])
    (prompt,) = read_prompts(path, column="goal").items
    assert (prompt.text, prompt.source) == ("Do it.", "elsewhere")


def test_rows_are_items_or_counted_drops(tmp_path: Path) -> None:
    rows = [
        {"messages": turns("q", "a")},
        {"messages": turns("q", "b")},
        {"messages": turns("  ")},
        {"messages": []},
        {"messages": None},
        {"messages": [{"role": "system", "content": "s"}]},
        {"messages": [{"role": "tool", "content": "t"}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"messages": turns("half a pair \ud83d")},
    ]
    found = read_prompts(jsonl(tmp_path / "file.jsonl", rows))
    assert len(found.items) == 1
    assert found.dropped == {
        "duplicate": 1,
        "empty prompt": 3,
        "no user turn to answer": 1,
        "a turn by 'tool'": 1,
        "a turn with a part of the type 'image'": 1,
        "not valid Unicode": 1,
    }
    rows += [{"messages": turns("q", " ")}, {"messages": turns("q", "a", "r")}]
    found_conversations = read_conversations(jsonl(tmp_path / "file.jsonl", rows))
    assert len(found_conversations.items) == 2
    assert found_conversations.dropped["empty completion"] == 1
    assert len(rows) == len(found_conversations.items) + sum(found_conversations.dropped.values())


# ---------------------------------------------------------------- file types

PROMPTS = [{"prompt": "Name a fish."}, {"prompt": 'Say "no",\nthen leave.'}, {"prompt": "Größe? 鱼"}]


def saved(path: Path, rows: Rows) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def test_every_file_type_reads_alike(tmp_path: Path) -> None:
    expected = [row["prompt"] for row in PROMPTS]
    table = datasets.Dataset.from_list(PROMPTS)
    (tmp_path / "a.json").write_text(json.dumps(PROMPTS), encoding="utf-8-sig")
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["prompt"])
        writer.writeheader()
        writer.writerows(PROMPTS)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    table.to_parquet(tmp_path / "a.parquet")
    for shard in range(2):
        part = table.shard(2, shard, contiguous=True)
        part.to_parquet(tmp_path / "folder" / f"train-0000{shard}-of-00002.parquet")
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "dict")
    paths = [
        jsonl(tmp_path / "a.jsonl", PROMPTS),
        jsonl(tmp_path / "a.jsonl.gz", PROMPTS),
        *(tmp_path / name for name in ("a.json", "a.csv", "a.csv.gz", "a.parquet", "folder", "dict")),
        saved(tmp_path / "saved", PROMPTS),
    ]
    for path in paths:
        assert [prompt.text for prompt in read_prompts(path).items] == expected, path.name


def test_tab_separated_text_has_no_quoting_and_may_have_no_header(tmp_path: Path) -> None:
    path = tmp_path / "cot.tsv"
    path.write_text('Who said\\n"no"?\tshe\tShe did.\n"Why" is what?\ta word\tIt is.\n', encoding="utf-8")
    assert [p.text for p in read_prompts(path).items] == ['Who said\n"no"?', '"Why" is what?']
    assert [c.messages[-1].content for c in read_conversations(path).items] == ["she", "a word"]
    path.write_text("prompt\tnote\nA \\n B\t1\n", encoding="utf-8")
    assert [p.text for p in read_prompts(path).items] == ["A \\n B"]


def test_messages_survive_parquet(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"messages": turns("q", "a")}]).to_parquet(tmp_path / "a.parquet")
    assert texts(read_conversations(tmp_path / "a.parquet").items[0].messages) == [("user", "q"), ("assistant", "a")]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.jsonl", '{"prompt": "q"}\n{"prompt": \n', 2, "not valid JSON: Expecting value"),
        (
            "a.jsonl",
            '{"prompt": "q\n',
            1,
            "JSON: Invalid control character at column 14. Fix: put one object on each",
        ),
        (
            "a.jsonl",
            '{"prompt": "q"}\n{"prompt":',
            2,
            "Expecting value at column 11. Fix: the last line is unfinished",
        ),
        ("a.jsonl", '{"prompt": "q"}\n{prompt: 1}', 2, "at column 2. Fix: put one object on each line"),
        ("a.json", '[{"prompt": "q\n"}]', 1, "JSON: Invalid control character at column 15"),
        ("a.jsonl", '{"prompt": "q"}\n["q"]\n', 2, "expected an object, found list"),
        ("a.jsonl", '{"prompt": "q"}\n\n{"text": "q", "n": 1}\n', 3, "the columns `text`, `n`"),
        ("a.jsonl", '{"prompt": {"a": 7}}\n', 1, "`prompt` holds keys and values"),
        ("a.jsonl", '{"messages": ["q"]}\n', 1, "`messages` holds a message with 'q'"),
        ("a.jsonl", '{"messages": [{"author": "me"}]}\n', 1, "`messages` holds a message with `author`"),
        ("a.jsonl", '{"instruction": "q", "instances": ["i"]}\n', 1, "other than objects"),
        ("a.jsonl", "[" * 100_000, 1, "not valid JSON"),
        ("a.jsonl", "", None, "there are no rows"),
        ("a.jsonl", '{"prompt": ""}\n{"prompt": " "}\n', None, "no row could be used (2 empty prompt)"),
        ("a.json", "", None, "there are no rows"),
        ("a.json", '{"prompt": "q"} {"prompt": "r"}', 1, "is called .jsonl"),
        ("a.json", '{"data": []}', None, "expected a list of objects, found an object with `data`"),
        ("a.json", '[{"prompt": "q"}, 1]', None, "row 2: expected an object, found int"),
        ("a.json", '[{"prompt": "q"}, {"a": 1}]', None, "row 2: no known shape has the columns `a`"),
        ("a.csv", 'prompt,note\n"two\nlines",1\nonly\n', 4, "the row has 1 cells, the first row has 2"),
        ("a.csv", 'prompt\n"never closed\n', 2, "not readable: unexpected end of data"),
        ("a.csv", "prompt,prompt\nq,r\n", 1, "two columns are called 'prompt'"),
        ("a.csv", "prompt\n", None, "there are no rows"),
        ("a.tsv", "one\ttwo\nq\tr\n", 2, "the columns `one`, `two`"),
        ("a.jsonl.gz", "plain", None, "not a whole gzip file"),
        ("a.parquet", "plain", None, "not readable as Parquet"),
        ("a.doc", "q", None, "unknown type of file"),
    ],
)
def test_a_broken_file_is_named_with_its_line(
    tmp_path: Path, name: str, content: str, line: int | None, words: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert words in str(caught.value)
    assert (caught.value.file, caught.value.line) == (str(path), line)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"prompt": "Größe"}'.encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(tmp_path / "a.jsonl")
    whole = gzip.compress(b'{"prompt": "q"}\n' * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole gzip file"):
        read_prompts(tmp_path / "a.jsonl.gz")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "missing.jsonl")


def test_a_mistyped_column_is_met_with_the_nearest(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"question": "q", "goal": "g"}])
    with pytest.raises(InputError, match="did you mean `goal`"):
        read_prompts(path, column="gaol")


def test_two_splits_are_never_mixed_unasked(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(PROMPTS)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "dict")
    for split in ("train", "test"):
        table.to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
    for folder in ("dict", "parquet"):
        with pytest.raises(InputError, match="holds 2 splits: test, train"):
            read_prompts(tmp_path / folder)
    assert len(read_prompts(tmp_path / "dict" / "test").items) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no data set"):
        read_prompts(tmp_path / "empty")
    (tmp_path / "dict" / "train" / "dataset_info.json").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        read_prompts(tmp_path / "dict" / "train")


def test_the_hub_out_of_reach_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkError) as caught:
        read_hub("someone/some-data")
    assert str(caught.value) == (
        "`hub`: the hub could not be reached for the data set 'someone/some-data'. "
        "Fix: check the network and HF_HUB_OFFLINE, or download the data set and name it with `path`"
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="name it with `path`"):
        read_hub("here")
    with pytest.raises(InputError, match=r"'a/b/c/d' .* cannot be loaded"):
        read_hub("a/b/c/d")


# ---------------------------------------------------------------- writing


def candidate(sampler: str, text: str) -> Candidate:
    return Candidate(sampler=sampler, completion=Completion(text=text, model=sampler, call=f"call-{sampler}-{text}"))


def rating(aspect: str, index: int, value: int | None) -> Rating:
    return Rating(
        aspect=aspect,
        candidate=index,
        value=value,
        raw=f"rating {value}",
        problem=None if value is not None else "no rating",
        judge="judge",
        call=f"call-{aspect}",
        position=index + 1,
    )


def example_row(i: int, *, unparsed: bool = False) -> Row:
    return Row(
        prompt=Prompt(messages=(Message(role="user", content=f"Question {i}?"),), source="made up"),
        candidates=(candidate("small", f"No {i}."), candidate("large", f"Yes {i}.")),
        ratings=(
            rating("right", 0, 2),
            rating("right", 1, 5),
            rating("short", 0, 3),
            rating("short", 1, None if unparsed else 4),
        ),
    )


def example_preference(i: int) -> Preference:
    row = example_row(i)
    return Preference(
        prompt=row.prompt,
        chosen=row.candidates[1],
        rejected=row.candidates[0],
        score_chosen=4.5,
        score_rejected=2.5,
        rule="zephyr",
    )


WEIGHTS = {"right": 1.0, "short": 1.0}


def shapes(n: int) -> dict[str, Rows]:
    rows, preferences = [example_row(i) for i in range(n)], [example_preference(i) for i in range(n)]
    return {
        "sft": list(sft_rows(preferences)),
        "preference": list(preference_rows(preferences)),
        "ultrafeedback": list(ultrafeedback_rows(rows, WEIGHTS)),
    }


def facts(n: int, **dropped: int) -> CardFacts:
    return CardFacts(
        name="An example",
        prompts_in=n + sum(dropped.values()),
        dropped=dropped,
        models={"small": "weights 00ff", "large": "weights 11ee"},
        digests={"rubric small": "22dd"},
    )


def test_preference_rows_keep_their_lineage() -> None:
    (row,) = preference_rows([example_preference(0)])
    assert row == {
        "prompt": [{"role": "user", "content": "Question 0?"}],
        "chosen": [{"role": "assistant", "content": "Yes 0."}],
        "rejected": [{"role": "assistant", "content": "No 0."}],
        "score_chosen": 4.5,
        "score_rejected": 2.5,
        "margin": 2.0,
        "probability": None,
        "prompt_id": example_row(0).prompt.id,
        "split": example_row(0).prompt.split,
        "source": "made up",
        "rule": "zephyr",
        "principle": None,
        "chosen_model": "large",
        "rejected_model": "small",
        "chosen_call": "call-large-Yes 0.",
        "rejected_call": "call-small-No 0.",
    }


def revised_row(*texts: str) -> Row:
    """A row whose first candidate was revised once for each of `texts`."""
    said = Completion(text="Be brief.", model="reviser", call="critique")
    revisions = tuple(
        Revision(
            candidate=0,
            number=number,
            principle="length",
            critique=said,
            completion=Completion(text=text, model="reviser", call=f"call-{text}"),
        )
        for number, text in enumerate(texts, 1)
    )
    return example_row(0).model_copy(update={"revisions": revisions})


def test_sft_rows_of_preferences_and_of_revisions() -> None:
    (once,) = sft_rows([example_preference(0), example_preference(0)])
    assert [m["content"] for m in once["messages"]] == ["Question 0?", "Yes 0."]
    assert (once["model"], once["call"], once["score"]) == ("large", "call-large-Yes 0.", 4.5)
    (last,) = sft_rows(revised(revised_row("No.", "Never.")))
    assert [m["content"] for m in last["messages"]] == ["Question 0?", "Never."]
    assert (last["model"], last["call"], last["score"]) == ("reviser", "call-Never.", None)
    assert list(revised(example_row(0))) == []


def test_ultrafeedback_rows_say_what_is_unparsed() -> None:
    (row,) = ultrafeedback_rows([example_row(0, unparsed=True)], WEIGHTS)
    assert row["models"] == ["small", "large"]
    first, second = row["completions"]
    assert (first["response"], first["fine-grained_score"], first["overall_score"]) == ("No 0.", 2.5, None)
    assert [(a["aspect"], a["Rating"]) for a in first["annotations"]] == [("right", "2"), ("short", "3")]
    assert second["fine-grained_score"] is None
    assert second["annotations"][1] == {
        "aspect": "short",
        "Rating": None,
        "types": [],
        "Rationale": "rating None",
        "problem": "no rating",
        "judge": "judge",
        "call": "call-short",
        "position": 2,
    }


def test_ultrafeedback_rows_hold_the_critique_and_its_score_apart() -> None:
    """What is rated as `overall` is the critique: no annotation, and no part of a mean."""
    plain = example_row(0)
    unread = rating("overall", 1, None)
    row = plain.model_copy(update={"ratings": (*plain.ratings, rating("overall", 0, 7), unread)})
    first, second = next(ultrafeedback_rows([row], WEIGHTS))["completions"]
    assert (first["critique"], first["overall_score"]) == ("rating 7", 7)
    assert (second["critique"], second["overall_score"]) == ("rating None", None)  # not the mean in its place
    assert [a["aspect"] for a in first["annotations"]] == ["right", "short"]


def test_ultrafeedback_rows_keep_what_does_not_apply_apart_from_what_is_unparsed() -> None:
    row = example_row(0, unparsed=True)
    apart = row.ratings[0].model_copy(update={"value": None, "na": True, "types": ("1", "3")})
    overall = rating("overall", 1, 4)
    score = Score(candidate=0, value=7.5, judge="critic", aspect="overall")
    row = row.model_copy(update={"ratings": (apart, *row.ratings[1:], overall), "scores": (score,)})
    (made,) = ultrafeedback_rows([row], WEIGHTS)
    first, second = made["completions"]
    assert [(a["Rating"], a["types"], a["problem"]) for a in first["annotations"]] == [
        ("N/A", ["1", "3"], None),
        ("3", [], None),
    ]
    assert (first["overall_score"], first["overall_judge"], first["critique"]) == (7.5, "critic", None)
    assert (second["overall_score"], second["critique"]) == (4.0, "rating 4")
    assert first["fine-grained_score"] == 3.0  # of what applies


@pytest.mark.parametrize("shape", ["sft", "preference", "ultrafeedback"])
def test_a_written_data_set_loads_as_it_was(tmp_path: Path, shape: str) -> None:
    rows = shapes(3)[shape]
    assert write_dataset(SHAPES[shape], rows, tmp_path / "set", facts(3, tie=2)) == 3
    cache = str(tmp_path / "cache")
    by_folder = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=cache)
    by_file = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "set" / "data" / "*.parquet"), split="train", cache_dir=cache
    )
    assert by_folder.to_list() == by_file.to_list() == rows
    assert [p.name for p in sorted((tmp_path / "set").rglob("*")) if p.is_file()] == [
        "README.md",
        "train-00000-of-00001.parquet",
    ]


def test_the_schema_does_not_depend_on_the_rows(tmp_path: Path) -> None:
    """A column that happens to hold only None keeps its type, so two runs' data sets can be joined."""
    (kept,) = revised(revised_row("No."))
    bare = kept.model_copy(update={"prompt": kept.prompt.model_copy(update={"source": None})})
    for name, one in (("full", example_preference(0)), ("bare", bare)):
        write_dataset(SHAPES["sft"], sft_rows([one]), tmp_path / name, facts(1))
    parts = [datasets.Dataset.from_parquet(str(p), cache_dir=str(tmp_path)) for p in tmp_path.glob("*/data/*.parquet")]
    assert parts[0].features == parts[1].features
    assert len(datasets.concatenate_datasets(parts)) == 2


@pytest.mark.parametrize("shape", ["sft", "preference", "ultrafeedback"])
def test_equal_rows_give_equal_bytes(tmp_path: Path, shape: str) -> None:
    def digests(folder: Path) -> dict[str, str]:
        write_dataset(SHAPES[shape], iter(shapes(3)[shape]), folder, facts(3, tie=2))
        for form in FORMS:
            write_file(folder / PARQUET, folder / f"rows{form}", form)
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    first, second = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert len(first) == 2 + len(FORMS) == 6
    assert first == second


def test_written_files_read_back_as_prompts_and_conversations(tmp_path: Path) -> None:
    write_dataset(SHAPES["sft"], shapes(3)["sft"], tmp_path / "sft", facts(3))
    write_dataset(SHAPES["preference"], shapes(3)["preference"], tmp_path / "preference", facts(3))
    prompts = [example_row(i).prompt for i in range(3)]
    assert read_prompts(tmp_path / "preference").items == prompts
    assert [c.prompt for c in read_conversations(tmp_path / "sft").items] == prompts


def test_the_card_counts_and_cannot_be_broken_by_a_name(tmp_path: Path) -> None:
    card = facts(3, tie=2)._replace(name="odd: name\n# heading", models={"m`": "line\nline"})
    write_dataset(SHAPES["preference"], shapes(3)["preference"], tmp_path, card)
    _, header, body = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(header)["pretty_name"] == "odd: name # heading"
    assert "- rows: 3\n- prompts in: 5\n- prompts out: 3\n- prompts dropped: 2\n  - tie: 2\n" in body
    assert "- `` m` ``: `line line`\n" in body
    assert "\n# heading" not in body


def test_counts_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="4 prompts in, 3 out, 0 dropped"):
        write_dataset(SHAPES["sft"], shapes(3)["sft"], tmp_path, facts(4)._replace(dropped={}))
    with pytest.raises(WorkError, match=r"nothing to write: of 2 prompts were dropped 2 \(tie\)"):
        write_dataset(SHAPES["sft"], [], tmp_path, facts(0, tie=2))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_dataset(SHAPES["sft"], shapes(3)["sft"], tmp_path / "sft", facts(3))
    (tmp_path / "damaged").write_bytes((tmp_path / "sft" / PARQUET).read_bytes()[:-100])
    for form in FORMS[:3]:
        write_file(tmp_path / "sft" / PARQUET, tmp_path / f"rows{form}", form)
        before = (tmp_path / f"rows{form}").read_bytes()
        with pytest.raises(pyarrow.ArrowException):
            write_file(tmp_path / "damaged", tmp_path / f"rows{form}", form)
        assert (tmp_path / f"rows{form}").read_bytes() == before and before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "damaged",
        *(f"rows{f}" for f in sorted(FORMS[:3])),
        "sft",
    ]


def test_half_a_surrogate_pair_can_be_written(tmp_path: Path) -> None:
    kept = [*revised(revised_row("cut \ud83d"))]
    write_dataset(SHAPES["sft"], sft_rows(kept), tmp_path, facts(1))
    for form in FORMS:
        write_file(tmp_path / PARQUET, tmp_path / f"rows{form}", form)
    for path in (tmp_path / PARQUET, *(tmp_path / f"rows{form}" for form in FORMS)):
        assert read_conversations(path).items[0].messages[-1].content == "cut \ufffd"


@pytest.mark.filterwarnings("ignore")  # the trainers' own
@pytest.mark.parametrize("name", ["SFT", "DPO", "Reward"])
def test_trainers_take_the_data_unedited(tmp_path: Path, random_model: Path, name: str) -> None:
    import trl

    shape: str = "sft" if name == "SFT" else "preference"
    write_dataset(SHAPES[shape], shapes(4)[shape], tmp_path / "set", facts(4))
    data = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    options: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
    }
    config = getattr(trl, f"{name}Config")(**options)
    trainer = getattr(trl, f"{name}Trainer")(model=str(random_model), args=config, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(loss == loss for loss in losses)
