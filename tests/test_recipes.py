"""Every recipe of docs/recipes.md, read out of the page and typed as a user types it: the pipeline, the commands, what
they print, and the sentence that each mistake gets.

The test stands for the user's files and servers. Of what is printed, numbers with a decimal point may differ.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import Echo
from inside import rlaif
from serving import serve

from rlaif.engines.protocol import Reply, Request
from rlaif.records import digest

PAGE = (Path(__file__).parent.parent / "docs/recipes.md").read_text(encoding="utf-8")
RECIPES = {title: text for title, _, text in (part.partition("\n") for part in PAGE.split("\n## ")[1:])}
PROMPTS = 20
PROGRESS = re.compile(r": begins$|: [\d,]+ [a-z]+$|: [\d,]+ of [\d,]+ ")  # lines that a terminal draws over


class Strong(Echo):
    """Answers in words, sums with their number, right two times of five; a long poem is cut."""

    def _reply(self, request: Request, index: int) -> Reply:
        reply, text = super()._reply(request, index), request.messages[-1].content
        if (terms := re.match(r"What is (\d+) \+ (\d+)\?", text)) is not None:
            wrong = int(digest([text, request.sampling.seed, index])[0], 16) < 10
            total = int(terms[1]) + int(terms[2]) + wrong
            return reply.model_copy(update={"text": f"{reply.text}, the answer is {total}"})
        return reply.model_copy(update={"finish_reason": "length"}) if "long poem" in text else reply


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve({"strong-model": Strong("strong-model"), "judge-model": Echo("judge-model")}) as base_url:
        yield base_url


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", RECIPES[title], re.DOTALL | re.MULTILINE)


def shown(title: str) -> list[dict[str, Any]]:
    """The rows of the user's file that the page shows."""
    return [json.loads(line) for block in blocks(title, "json") for line in block.splitlines()]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def plainly(text: str) -> str:
    """A text without its line breaks and what a terminal draws over, and with a sign for each number with a point."""
    lines = [line for line in text.splitlines() if not PROGRESS.search(line)]
    return re.sub(r"\d+\.\d+", "#", " ".join(" ".join(lines).split()))


def follow(title: str, folder: Path, url: str = "") -> None:
    """Save the recipe's pipelines, type its commands, and compare what they print."""
    for pipeline in blocks(title, "yaml"):
        name = re.match(r"# rlaif (?:run|plan) (\S+)\n", pipeline)
        assert name is not None, "the first line is the command"
        (folder / name[1]).write_text(pipeline.replace("http://127.0.0.1:8000/v1", url))
    typed = [part for block in blocks(title, "console") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    assert len(typed) >= 2
    for command, _, printed in (part.partition("\n") for part in typed):
        done = rlaif(folder, *shlex.split(command)[1:])
        assert plainly(done.out + done.err) == plainly(printed), command
        assert done.code == (2 if "error: " in printed else 0)
    assert "error: " in typed[-1]  # the mistake


def questions(folder: Path) -> None:
    more = [{"prompt": f"Say something about number {number}."} for number in range(PROMPTS - 4)]
    write(
        folder, "questions.jsonl", [*shown("SFT data from a stronger model"), {"prompt": "Write a long poem."}, *more]
    )


def test_sft_data_from_a_stronger_model(tmp_path: Path, url: str) -> None:
    questions(tmp_path)
    write(tmp_path, "queries.jsonl", [{"query": "Why is the sky blue?"}])
    follow("SFT data from a stronger model", tmp_path, url)
    rows = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    for given, row in zip(shown("SFT data from a stronger model"), rows, strict=False):
        messages = given.get("messages") or [{"role": "user", "content": given["prompt"]}]
        assert row["messages"][:-1] == messages and row["messages"][-1]["role"] == "assistant"
        assert row["messages"][-1]["content"].split() and row["model"] == "strong" and row["call"]
    assert "Write a long poem." not in (tmp_path / "sft.jsonl").read_text()


def test_sft_data_by_best_of_n(tmp_path: Path, url: str) -> None:
    questions(tmp_path)
    follow("SFT data by best of n", tmp_path, url)
    kept, rated = (rows_of(tmp_path / "runs/best/dataset", name) for name in ("rate-sft", "rate-rated"))
    best: dict[str, float] = {}
    for row in rated:
        if row["finish_reason"] == "stop":
            best[row["prompt_id"]] = max(row["score"], best.get(row["prompt_id"], 0.0))
    assert {row["prompt_id"]: row["score"] for row in kept} == {k: score for k, score in best.items() if score >= 4}
    assert len(rated) == 4 * PROMPTS and all(len(row["ratings"]) == 4 for row in rated)


def test_rejection_sampling_by_checks(tmp_path: Path, url: str) -> None:
    question = "What is {} + {}? End with: the answer is"
    sums = [{"prompt": question.format(a, a + 1), "answer": str(2 * a + 1)} for a in range(3, PROMPTS + 2)]
    write(tmp_path, "sums.jsonl", [*shown("Rejection sampling by checks"), *sums])
    follow("Rejection sampling by checks", tmp_path, url)
    for row in rows_of(tmp_path / "runs/passing/dataset", "verify-sft"):
        first, second = map(int, re.findall(r"\d+", row["messages"][0]["content"]))
        assert row["messages"][-1]["content"].endswith(f"the answer is {first + second}")


THINGS = "coat hat roof friend boat song word door".split()


def asked() -> list[str]:
    return [f"how do i {verb} a {thing} ?" for verb in ("find", "mend", "lose") for thing in THINGS]


def test_a_kto_file_into_a_reward_model(tmp_path: Path) -> None:
    title = "A KTO file into a reward model"
    good, bad = shown(title)
    rows = [row | {"prompt": prompt} for prompt in asked()[: PROMPTS - 1] for row in (good, bad)]
    write(tmp_path, "kto.jsonl", [good, bad, *rows])
    write(tmp_path, "alone.jsonl", [good, *(row for row in rows if row["label"])])
    follow(title, tmp_path)
    assert (tmp_path / "runs/kto/models/rm/model.safetensors").is_file()


def test_a_helpsteer_file_into_a_reward_model(tmp_path: Path) -> None:
    title = "A HelpSteer2 file into a reward model"
    good, bad = shown(title)
    rows = [row | {"prompt": prompt} for prompt in asked()[: PROMPTS - 1] for row in (good, bad)]
    write(tmp_path, "helpsteer.jsonl", [good, bad, *rows])
    follow(title, tmp_path)
    for row in rows_of(tmp_path / "runs/helpsteer/dataset", "preference"):
        assert (row["score_chosen"], row["score_rejected"]) == (4, 1)
    assert (tmp_path / "runs/helpsteer/models/rm/model.safetensors").is_file()


def test_no_recipe_is_left_out() -> None:
    assert len(RECIPES) == sum(name.startswith("test_") for name in globals()) - 1


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(folder / name / "data").to_pylist()
    assert rows
    return rows
