"""Stage one against a scripted server: whatever a reviser does wrong is counted and is not in the SFT data."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from inside import rlaif
from serving import Answer, completion, scripted

from rlaif.pipeline.stages.revise import Revise
from rlaif.records import Message as Turn
from rlaif.records import Row, prompt_id, split_of

PIPELINE = """\
name: one
models:
  m: {engine: openai, model: m, base_url: "URL", retries: 0}
stages:
  - prompts: {path: prompts.jsonl, keep: harmful}
  - sample: {models: [m]}
  - revise: {model: m, constitution: constitutions/helpful-harmless.yaml, revisions: NUMBER, MORE}
"""
MARK = re.compile(r"<completion (\w+)>")
ODD = "{{ x }} {%% <completion 000000000000> ```\nHuman: 日本 \u202e %s"

# What the server writes as the revision of a prompt, by the prompt's number, and what it is counted as.
KINDS: tuple[tuple[str, str | None], ...] = (
    ("A fine revision.", None),
    ("Here is the revised completion:\n\nA revision.", "revision: preface"),
    ("<completion MARK>\nA revision.\n</completion MARK>", "revision: stray tag"),
    ("A revision.<|im_end|>", "revision: role marker"),
    ("A revision. The critique says that it is fine.", "revision: critic's words"),
    ("A revision. " * 200, "revision: more than 20 times the draft's length"),
    ("CUT", "revision: cut at max_tokens"),
    (" ", "revision: empty"),
    ("EMPTY CRITIQUE", "critique: empty"),
    ("My draft.", "unchanged"),
    ("I'm sorry, but I can't help with that.", "refusal"),
)
EACH = 2  # prompts of each kind, one of them harmful


def prompts() -> list[dict[str, Any]]:
    """Prompts of the training split, each with its number; every second one is harmful."""
    rows: list[dict[str, Any]] = []
    for salt in range(10_000):
        number = len(rows)
        text = ODD % f"number {number}. {salt}"
        if split_of(prompt_id([Turn(role="user", content=text)])) == "train":
            rows.append({"prompt": text, "harmful": number % 2 == 0})
        if len(rows) == EACH * len(KINDS):
            return rows
    raise AssertionError("no prompts")


class Server:
    """Samples `My draft.`, criticises, and revises by KINDS in the steps that are named."""

    def __init__(self, broken: set[int], nothing: int = 0) -> None:
        self.broken, self.nothing, self.asked, self.texts = broken, nothing, Counter[str](), list[str]()

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        if "messages" not in body:
            return {"data": [{"id": "m"}]}
        text = body["messages"][-1]["content"]
        task = "revision" if "# Your task: a rev" in text else "critique" if "# Your task" in text else "draft"
        if not (number := re.search(r"number (\d+)\.", text)):
            return completion("x")  # a probe
        self.asked[task] += 1
        self.texts.append(text)
        return self.said(task, text, int(number[1]))

    def said(self, task: str, text: str, number: int) -> dict[str, Any]:
        if task == "draft":
            return completion("My draft.")
        step = 2 if "A first revision." in text else 1
        kind = KINDS[number % len(KINDS)][0] if step in self.broken else "A first revision."
        if task == "critique":
            if self.nothing and self.asked["critique"] % self.nothing == 0:
                return completion("It keeps the rule.\n\nNothing to mend.")
            return completion("" if kind == "EMPTY CRITIQUE" else "It could be better.")
        if kind == "CUT":
            return completion("A revision that", finish_reason="length")
        (mark,) = set(MARK.findall(text)) - {"000000000000"}
        return completion(kind.replace("MARK", mark))


def ran(folder: Path, server: Server, revisions: int = 1, more: str = "drop: []") -> tuple[dict[str, Any], list[Row]]:
    """The manifest's record of the `revise` stage, and its rows, of a run against the server."""
    rows = prompts()
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with scripted([Answer(server)]) as script:
        text = PIPELINE.replace("URL", script.base_url).replace("NUMBER", str(revisions)).replace("MORE", more)
        (folder / "p.yaml").write_text(text, encoding="utf-8")
        planned = json.loads(rlaif(folder, "plan", "p.yaml", "--json").out)
        done = rlaif(folder, "run", "p.yaml")
    assert done.code == 0, done.out + done.err
    manifest = json.loads((folder / "runs/one/manifest.json").read_text(encoding="utf-8"))
    (record,) = (stage for stage in manifest["stages"] if stage["name"] == "revise")
    (plan,) = (stage for stage in planned["stages"] if stage["stage"] == "revise")
    record["planned"], record["printed"] = plan["calls"]["m"]["calls"], done.out
    lines = (folder / "runs/one" / record["file"]).read_text(encoding="utf-8").splitlines()
    return record, [Row.model_validate_json(line) for line in lines]


def learnt(folder: Path) -> dict[str, str]:
    """The completions of the SFT data, by their prompts."""
    import pyarrow.parquet

    (path,) = (folder / "runs/one/dataset/revise-sft/data").glob("*.parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    return {row["messages"][0]["content"]: row["messages"][-1]["content"] for row in rows}


def of_kind(kind: str | None) -> list[int]:
    return [number for number in range(EACH * len(KINDS)) if KINDS[number % len(KINDS)][1] == kind]


# ---------------------------------------------------------------- what a reviser does wrong


def test_what_is_broken_is_counted_and_not_learnt(tmp_path: Path) -> None:
    record, rows = ran(tmp_path, server := Server({1}), more="drop: []")
    broken = [kind for _, kind in KINDS if kind and ":" in kind]
    assert len(broken) == 8
    assert record["seen"] == {
        **dict.fromkeys(broken, EACH),
        "unchanged": EACH,
        "refusal of a harmful prompt": sum(number % 2 == 0 for number in of_kind("refusal")),
        "refusal of a harmless prompt": sum(number % 2 == 1 for number in of_kind("refusal")),
    }
    # One revision each: without it nothing is left of the row.
    assert record["dropped"] == dict.fromkeys(broken, EACH) and record["left_out"] == record["dropped"]
    assert (record["in"], record["out"]) == (EACH * len(KINDS), EACH * 3)
    assert record["broken"] == EACH * 8 and record["revisions"] == EACH * len(KINDS)
    kept = {text: sorted(of_kind(kind)) for text, kind in KINDS if kind in (None, "unchanged", "refusal")}
    found: dict[str, list[int]] = {}
    for prompt, text in learnt(tmp_path).items():
        number = re.search(r"number (\d+)\.", prompt)
        assert number
        found.setdefault(text, []).append(int(number[1]))
    assert {text: sorted(numbers) for text, numbers in found.items()} == kept

    card = (tmp_path / "runs/one/dataset/revise-sft/README.md").read_text(encoding="utf-8")
    status = rlaif(tmp_path, "status", "runs/one").out
    for what, count in record["seen"].items():
        assert f"  - {what}: {count}\n" in card.replace("\\", "").replace("&#39;", "'"), what
        assert f"{what}: {count}" in " ".join(status.split()), what
    assert f"{EACH * 8} broken steps" in record["printed"]
    for kind, told in ((broken[0], "not used: revision: preface"), ("unchanged", "revision 1 is left, unchanged"),
                       ("refusal", "revision 1 is left, a refusal")):  # fmt: skip
        shown = rlaif(tmp_path, "show", "runs/one", rows[of_kind(kind)[0]].prompt.id, "--stage", "revise").out
        assert told in shown, shown

    asked = [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text("utf-8").splitlines()]
    assert set(learnt(tmp_path)) <= set(asked)  # byte for byte
    for text in asked:
        assert sum(f">\n{text}\n</prompt" in sent for sent in server.texts) == (
            1 if "EMPTY CRITIQUE" in KINDS[asked.index(text) % len(KINDS)][0] else 2
        )


def test_a_chain_whose_second_step_fails_keeps_its_good_first(tmp_path: Path) -> None:
    record, _ = ran(tmp_path, Server({2}), revisions=2, more="drop: []")
    assert record["dropped"] == {} and record["out"] == record["in"] == EACH * len(KINDS)
    assert record["seen"]["revision: preface"] == EACH and record["broken"] == EACH * 8
    texts = Counter(learnt(tmp_path).values())
    assert texts == {
        "A first revision.": EACH * 8,
        **{text: EACH for text, kind in KINDS if kind in (None, "unchanged", "refusal")},
    }


def test_unchanged_revisions_and_refusals_are_dropped_by_choice(tmp_path: Path) -> None:
    record, _ = ran(tmp_path, Server({1}), more="drop: [unchanged, refusal]")
    assert record["dropped"]["unchanged"] == record["dropped"]["refusal"] == EACH
    assert set(learnt(tmp_path).values()) == {"A fine revision."} and record["out"] == EACH
    assert record["seen"]["unchanged"] == EACH  # seen all the same


# ---------------------------------------------------------------- a critique that finds nothing


@pytest.mark.parametrize(("after", "nothing"), [("next", 3), ("end", 3), ("next", 1), ("end", 1)])
def test_a_critique_that_finds_nothing_saves_the_calls_that_the_forecast_says(
    after: str, nothing: int, tmp_path: Path
) -> None:
    revisions, chains = 3, EACH * len(KINDS)
    record, rows = ran(tmp_path, server := Server(set(), nothing), revisions, f"after_nothing: {after}")
    sent = server.asked["critique"] + server.asked["revision"]
    found = server.asked["critique"] // nothing
    assert record["planned"] == chains * revisions * 2  # at most
    assert record["found_nothing"] == found and record["saved_calls"] == record["planned"] - sent
    assert record.get("seen", {}).get("unchanged", 0) == sum(
        all(step.found_nothing for step in row.revisions) for row in rows
    )
    if after == "next":
        assert server.asked["critique"] == chains * revisions and record["saved_calls"] == found
        assert record["stopped_early"] == 0
    else:
        left = [revisions - len(row.revisions) for row in rows]
        assert record["saved_calls"] == found + 2 * sum(left)
        assert record["stopped_early"] == sum(map(bool, left)) > 0
    assert record["broken"] == 0 and record["out"] == chains  # they are fine, not broken
    assert f"{record['saved_calls']:,} calls saved" in record["printed"]
    shown = rlaif(tmp_path, "show", "runs/one", next(r for r in rows if r.revisions[-1].found_nothing).prompt.id).out
    assert "nothing to mend: no revision was asked for" in shown


def test_every_fact_of_the_stage_is_in_its_record(tmp_path: Path) -> None:
    record, _ = ran(tmp_path, Server(set()), more="drop: []")
    assert set(Revise.facts) <= record.keys() and "seen" not in record


@pytest.mark.parametrize("phrases", ["...", "[' ... ', x]", "['!?']"])
def test_a_phrase_without_a_word_would_end_every_chain(phrases: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x", "harmful": true}\n')
    text = PIPELINE.replace("URL", "http://127.0.0.1:9/v1").replace("NUMBER", "1")
    (tmp_path / "p.yaml").write_text(text.replace("MORE", f"found_nothing: {phrases}"))
    done = rlaif(tmp_path, "plan", "p.yaml")
    assert done.code == 2 and "revise.found_nothing" in done.err and "has no word" in done.err, done.err
