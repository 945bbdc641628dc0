"""The `data:` stage as every reader takes it: trainers, judges and pairs, under any column names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from echo import RUBRIC, Echo
from test_formats import facts, jsonl, turns
from test_pairing import pair_rows
from test_run import Cli, asked, manifest, models, run_cli, url  # noqa: F401 - the fixtures

from rlaif.config import read_pipeline
from rlaif.errors import InputError
from rlaif.formats import (
    SHAPES,
    each_row,
    preference_rows,
    read_preferences,
    sft_rows,
    write_dataset,
)
from rlaif.generate.pairing import Pairing
from rlaif.pipeline.stages import open_stages
from rlaif.pipeline.stages.data import StatedJudgements
from rlaif.pipeline.stages.train import Train
from rlaif.records import Message

MODELS = """\
name: data
models:
  judge: {{engine: openai, model: judge, base_url: "{url}"}}
  mine: {{engine: transformers, path: tiny/base}}
stages:
"""
ANYWHERE = "http://127.0.0.1:9/v1"


def project(folder: Path, rows: Iterable[dict[str, Any]], stages: str, at: str = ANYWHERE) -> str:
    jsonl(folder / "rows.jsonl", rows)
    (folder / "rubric.yaml").write_text(RUBRIC)
    (folder / "data.yaml").write_text(MODELS.format(url=at) + stages)
    return str(folder / "data.yaml")


def stated(i: int) -> dict[str, Any]:
    return {"prompt": f"question {i}?", "response_a": "one two three", "response_b": "one", "winner": "model_b"}


def preferences(folder: Path) -> list[dict[str, Any]]:
    (path,) = (folder / "stages").glob("*-pair.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------- judged


def test_completions_of_a_file_are_judged_and_paired(
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
    models: dict[str, Echo],  # noqa: F811
    url: str,  # noqa: F811
) -> None:
    stages = "  - data: {path: rows.jsonl}\n  - rate: {model: judge, rubric: rubric.yaml}\n  - pair: {}\n"
    project(tmp_path, map(stated, range(40)), stages, url)
    code, out, err = run_cli("plan", "data.yaml", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert run_cli("run", "data.yaml")[0] == 0
    read, rated, paired = manifest(tmp_path / "runs/data")["stages"]
    assert read["in"] == 40 == read["out"] + read["dropped"]["held-out"] and 2 <= read["dropped"]["held-out"] <= 16
    assert (read["candidates"], read["comparisons"]) == (2 * read["out"], read["out"])
    assert rated["in"] == rated["out"] == paired["preferences"] == read["out"]
    assert planned["calls"]["judge"]["calls"] == 2 * read["out"] == asked(models)["judge"]
    for preference in preferences(tmp_path / "runs/data"):  # the judge counts words, whatever the file says
        assert preference["chosen"]["completion"]["text"] == "one two three"
    assert run_cli("run", "data.yaml")[0] == 0
    assert sum(asked(models).values()) == 0


def test_the_judgement_of_a_file_is_paired_as_it_stands(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    project(tmp_path, map(stated, range(20)), "  - data: {path: rows.jsonl}\n  - pair: {}\n")
    code, _, err = run_cli("run", "data.yaml")
    assert code == 0, err
    made = preferences(tmp_path / "runs/data")
    assert len(made) > 4 and {p["chosen"]["completion"]["text"] for p in made} == {"one"}
    assert {p["rule"] for p in made} == {"compared"}
    sources = {p["chosen"]["completion"]["call"] for p in made}
    assert len(sources) == len(made)
    assert run_cli("export", "runs/data", "--format", "rewardbench", "--to", "bench.jsonl")[0] == 0
    back = list(each_row(tmp_path / "bench.jsonl", Counter()))
    assert [row.candidates[0].sampler for row in back] == ["completion-2"] * len(made)


ULTRAFEEDBACK = {
    "models": ["x", "y", "z"],
    "completions": [
        {"model": m, "response": m * 3, "annotations": {"help": {"Rating": r}, "truth": {"Rating": s}}}
        for m, r, s in (("x", "2", "3"), ("y", "5", "N/A"), ("z", "5", "one"))
    ],
}
RANKED = {"completions": ["a", "b", "c"], "ranks": [2, 1, 2]}
SCORED = {"completions": ["a", "b", "c"], "scores": [0.5, -1, None]}


@pytest.mark.parametrize(
    ("judged", "rule", "expected"),
    [
        (ULTRAFEEDBACK, "", [("yyy", "xxx", 5.0, 2.5)]),  # z is unparsed, and truth does not apply to y
        (RANKED, "", None),
        (RANKED, "all", [("b", "a", 1.0, 0.25), ("b", "c", 1.0, 0.25)]),
        (SCORED, "best-worst", [("a", "b", 0.5, -1.0)]),
    ],
)
def test_ratings_rankings_and_scores_of_a_file_make_preferences(
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
    judged: dict[str, Any],
    rule: str,
    expected: Any,
) -> None:
    stages = f"  - data: {{path: rows.jsonl}}\n  - pair: {{{f'rule: {rule}' if rule else ''}}}\n"
    prompt = "instruction" if judged is ULTRAFEEDBACK else "prompt"
    project(tmp_path, ({prompt: f"question {i}?"} | judged for i in range(8)), stages)
    code, _, err = run_cli("run", "data.yaml")
    assert code == 0, err
    found = [
        (p["chosen"]["completion"]["text"], p["rejected"]["completion"]["text"], p["score_chosen"], p["score_rejected"])
        for p in preferences(tmp_path / "runs/data")
    ]
    if expected is None:
        assert {pair[0] for pair in found} == {"b"}
    else:
        assert set(found) == set(expected)
    assert (tmp_path / "runs/data/dataset/ultrafeedback").is_dir() == (judged is ULTRAFEEDBACK)


def test_what_nothing_can_be_learnt_from_is_dropped_where_pairs_are_made(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    rows = [stated(i) | {"response_b": {0: "one two three", 1: "", 2: "fine"}[i % 3]} for i in range(60)]
    project(tmp_path, rows, "  - data: {path: rows.jsonl}\n  - pair: {}\n")
    assert run_cli("run", "data.yaml")[0] == 0
    read, paired = manifest(tmp_path / "runs/data")["stages"]
    assert set(paired["dropped"]) == {"identical texts", "empty completion"}
    assert read["out"] == paired["out"] + sum(paired["dropped"].values()) and paired["out"] > 5


# ---------------------------------------------------------------- learnt


def test_columns_system_and_turns_of_demonstrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"talk": turns(f"ask {i}", "first", "more?", "last"), "prompt": "not this"} for i in range(30)]
    stages = (
        "  - data: {path: rows.jsonl, columns: {messages: talk}, system: Be kind., turns: TURNS}\n"
        "  - train: {sft: {base: mine, name: sft}}\n"
    )
    found: dict[str, list[Any]] = {}
    for which in ("all", "last"):
        opening = open_stages(read_pipeline(project(tmp_path, rows, stages.replace("TURNS", which))))
        trainer = opening.stages["sft"]
        assert isinstance(trainer, Train)
        found[which] = list(trainer.examples(opening.made))
        assert {example.turns for example in found[which]} == {which}
    whole, apart = ({tuple(m.content for m in e.messages) for e in found[which]} for which in ("all", "last"))
    assert whole and whole < apart  # the first turn of the others answers a held-out prompt
    assert {(*texts[:1], *texts[2:]) for texts in apart} == {("Be kind.", "first", "more?", "last")}


def test_the_last_turn_alone_is_learnt(random_model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from rlaif.train.demonstrations import NOT_LEARNT, tokenize
    from rlaif.train.examples import Demonstration
    from rlaif.train.tokens import trainable_chat

    chat = trainable_chat(transformers.AutoTokenizer.from_pretrained(random_model))
    messages = tuple(Message(**turn) for turn in turns("ask", "first", "more?", "last"))
    every, _ = tokenize(chat, [Demonstration(messages)], 512)
    last, counts = tokenize(chat, [Demonstration(messages, "last")], 512)
    assert last["input_ids"] == every["input_ids"] and counts.kept == 1
    learnt = [
        token for token, label in zip(last["input_ids"][0], last["labels"][0], strict=True) if label != NOT_LEARNT
    ]
    assert chat.tokenizer.decode(learnt).strip() == "last<|end|>"
    assert sum(label != NOT_LEARNT for label in every["labels"][0]) > len(learnt)


def test_a_file_of_nothing_but_held_out_rows_says_so(tmp_path: Path) -> None:
    rows = [stated(i) for i in range(60)]
    held = [row for row, read in zip(rows, each_row(jsonl(tmp_path / "a.jsonl", rows), Counter()), strict=True)
            if read.prompt.split == "held-out"]  # fmt: skip
    assert held
    path = project(tmp_path, held, "  - data: {path: " + str(tmp_path / "rows.jsonl") + "}\n  - pair: {}\n")
    with pytest.raises(InputError, match=rf"no row of the file has completions to judge \({len(held)} held-out\)"):
        open_stages(read_pipeline(path))


def test_a_system_message_does_not_bring_a_held_out_prompt_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [stated(i) for i in range(100)]
    path = project(tmp_path, rows, "  - data: {path: rows.jsonl, system: Be kind.}\n  - pair: {}\n")
    rows_kept = open_stages(read_pipeline(path)).made["data"].rows
    assert rows_kept is not None
    kept = {row.prompt.messages[-1].content for row in rows_kept}
    bare = {row.prompt.text: row.prompt.split for row in each_row(tmp_path / "rows.jsonl", Counter())}
    assert kept and all(bare[text] != "held-out" for text in kept)
    assert len(kept) < sum(split != "held-out" for split in bare.values())  # held out with the system message


@pytest.mark.parametrize("method", ["rm", "dpo"])
@pytest.mark.parametrize("judged", [ULTRAFEEDBACK, RANKED], ids=["ratings", "ranking"])
def test_trainers_learn_from_ratings_and_rankings_by_way_of_pairs(
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
    random_model: Path,
    judged: dict[str, Any],
    method: str,
) -> None:
    prompt = "instruction" if judged is ULTRAFEEDBACK else "prompt"
    stages = (
        "  - data: {path: rows.jsonl}\n  - pair: {rule: all}\n"
        f"  - train: {{{method}: {{base: mine, name: made, batch_size: 4, max_length: 64}}}}\n"
    )
    project(tmp_path, ({prompt: f"question {i}?"} | judged for i in range(8)), stages)
    code, _, err = run_cli("run", "data.yaml", f"models.mine.path={random_model}")
    assert code == 0, err
    _, paired, trained = manifest(tmp_path / "runs/data")["stages"]
    assert trained["in"] == paired["preferences"] > 4 and trained["steps"] >= 1
    assert (tmp_path / "runs/data/models/made/training.json").exists()
    assert run_cli("run", "data.yaml", f"models.mine.path={random_model}")[1].count("unchanged, not trained again") == 1


# ---------------------------------------------------------------- rows that crash trainers as they are published

CONVERSATION = {
    "prompt": "Hi?",
    "prompt_id": "0",
    "chosen": turns("Hi?", "Good."),
    "rejected": turns("Hi?", "Bad."),
    "messages": turns("Hi?", "Good."),
    "score_chosen": 8.5,
    "score_rejected": 7.0,
}
PUBLISHED = {
    "binarised": CONVERSATION,
    "argilla": {
        "prompt": "Hi?",
        "chosen": turns("Hi?", "Good."),
        "rejected": turns("Hi?", "Bad."),
        "chosen-rating": 5.0,
        "rejected-rating": 4.25,
    },
    "text beside messages": {"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad.", "messages": turns("Hi?", "Good.")},
    "hh": {"chosen": "\n\nHuman: Hi?\n\nAssistant: Good.", "rejected": "\n\nHuman: Hi?\n\nAssistant: Bad."},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi?"}],
        "chosen": {"from": "gpt", "value": "Good."},
        "rejected": {"from": "gpt", "value": "Bad."},
    },
    "ultrafeedback": {"instruction": "Hi?"} | ULTRAFEEDBACK,
    "ranked": {"prompt": "Hi?"} | RANKED,
    "soft": {"prompt": "Hi?", "response_a": "Good.", "response_b": "Bad.", "probability": 0.8},
}


def trainer(name: str, data: Any, model: Path, out: Path) -> Any:
    trl = pytest.importorskip("trl")
    options: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no"}
    options |= {"output_dir": str(out), "report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False}
    config = getattr(trl, f"{name}Config")(**options)
    return getattr(trl, f"{name}Trainer")(model=str(model), args=config, train_dataset=data)


@pytest.mark.filterwarnings("ignore")  # the trainers' own
@pytest.mark.parametrize("name", ["SFT", "DPO", "Reward"])
def test_the_binarised_rows_crash_the_trainers_as_they_are(tmp_path: Path, random_model: Path, name: str) -> None:
    """What the next test shows to be mended; when this one fails there is nothing left to mend."""
    datasets = pytest.importorskip("datasets")
    rows = [CONVERSATION | {"prompt": "Hi?"}] * 2
    if name == "SFT":  # as its trainer looks for a completion beside the prompt
        rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    with pytest.raises((TypeError, KeyError, ValueError, AttributeError)):  # where it meets the list first, differs
        trainer(name, datasets.Dataset.from_list(rows), random_model, tmp_path / "out").train()


@pytest.mark.filterwarnings("ignore")  # the trainers' own
@pytest.mark.parametrize("name", ["SFT", "DPO", "Reward"])
def test_published_rows_come_out_trainable(tmp_path: Path, random_model: Path, name: str) -> None:
    """Every shape at once, through a run's own stages, into the trainer's own data path."""
    datasets = pytest.importorskip("datasets")
    made = []
    for shape, row in PUBLISHED.items():
        rows = [json.loads(json.dumps(row).replace("Hi?", f"Hi {i}?")) for i in range(3)]
        dropped: Counter[str] = Counter()
        found = list(each_row(jsonl(tmp_path / f"{shape}.jsonl", rows), dropped))
        stated = StatedJudgements()
        for each in found:
            stated.add(each)
        preferences = pair_rows(found, Pairing(stated.rule, stated.basis, stated.weights)).preferences
        assert len(preferences) == 3 and not dropped, (shape, dropped)
        made += list((sft_rows if name == "SFT" else preference_rows)(preferences))
    assert len(made) == 3 * len(PUBLISHED)
    of: str = "sft" if name == "SFT" else "preference"
    prompts = 1 + sum(a["prompt_id"] != b["prompt_id"] for a, b in zip(made, made[1:], strict=False))
    write_dataset(SHAPES[of], made, tmp_path / "set", facts(prompts))
    data = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    ready = trainer(name, data, random_model, tmp_path / "out")
    assert len(ready.train_dataset) == len(made)
    ready.train()
    assert ready.state.global_step == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (CONVERSATION | {"rejected": turns("Hi?", "Good.")}, "identical texts"),
        (CONVERSATION | {"chosen": turns("Hi?", "")}, "empty completion"),
        (CONVERSATION | {"score_chosen": 7.0}, "tie"),
        (CONVERSATION | {"score_chosen": 6.0}, "its scores say the opposite"),
        (CONVERSATION | {"prompt": "Ho?"}, "the prompt is not how the two begin"),
        (CONVERSATION | {"chosen": turns("Hi?")}, "no assistant turn at the end"),
        (CONVERSATION | {"chosen": []}, "no assistant turn at the end"),
    ],
)
def test_what_no_trainer_can_use_is_dropped_and_counted(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    """By both roads alike: read as preferences, and read as rows that are paired."""
    path = jsonl(tmp_path / "rows.jsonl", [row, CONVERSATION | {"score_chosen": 9.0}])
    read = read_preferences(path)
    assert (len(read.items), read.dropped) == (1, {reason: 1})
    dropped: Counter[str] = Counter()
    made = pair_rows(list(each_row(path, dropped)), Pairing("compared", "comparisons"))
    assert (len(made.preferences), dropped + made.dropped) == (1, {reason: 1})
