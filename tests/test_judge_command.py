"""`rlaif judge`: a judge on data that exists, over a real socket, without a pipeline file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from echo import RUBRIC
from test_formats import jsonl
from test_run import Cli, manifest, models, run_cli, url  # noqa: F401 - the fixtures

LONG, SHORT = "one two three four", "one two"


def pairs(folder: Path, count: int = 12) -> Path:
    """Preferences whose file prefers the shorter completion; two rows of each prompt."""
    rows = [
        {"prompt": f"question {i // 2}?", "chosen": f"{SHORT} {i}", "rejected": f"{LONG} {i}"} for i in range(count)
    ]
    jsonl(folder / "pairs.jsonl", rows)
    (folder / "rubric.yaml").write_text(RUBRIC)
    return folder / "pairs.jsonl"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_are_judged_anew_and_every_row_is_kept(tmp_path: Path, run_cli: Cli, url: str) -> None:  # noqa: F811
    data, out = pairs(tmp_path), tmp_path / "runs/mine"
    rating = ["--method", "rate", "rubric=rubric.yaml", "--pair", "best-worst", "--out", str(out)]
    code, _, problem = run_cli("judge", str(data), "--by", url, "--model", "judge", *rating)
    assert code == 0, problem
    told = manifest(out)
    assert told["state"] == "done" and [stage["out"] for stage in told["stages"]] == [12, 12, 12]
    made = lines(out / "stages/03-pair.jsonl")
    assert len(made) == 12  # held-out prompts too, and both rows of a prompt
    assert all(str(row["chosen"]["completion"]["text"]).startswith(LONG) for row in made)  # type: ignore[index]
    code, said, _ = run_cli("judge", str(data), "--by", url, "--model", "judge", *rating)
    assert code == 0 and "\n0 calls made" in said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--by", "http://127.0.0.1:9/v1"], r"no model on http://127\.0\.0\.1:9/v1 is named.*--model"),
        (["--by", "tiny/annotater"], r"there is no file or folder 'tiny/annotater'.*tiny/annotator"),
        (["--by", "tiny/annotator", "--method", "guess"], r"expected compare or rate, found 'guess'"),
        (["--by", "tiny/annotator", "reasns=true"], r"`reasns`: unknown key.*reasons"),
        (["--by", "tiny/annotator", "reasons"], r"'reasons' is not of the form key=value"),
        (["--by", "tiny/annotator", "--pair", "bst"], r"--pair.*'best-worst'"),
    ],
)
def test_wrong_input_is_a_sentence(
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
    arguments: list[str],
    problem: str,
) -> None:
    code, _, said = run_cli("judge", str(pairs(tmp_path)), *arguments)
    assert code == 2 and said.count("\n") == 1 and re.search(problem, said), said
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    pairs(tmp_path)
    code, _, said = run_cli("judge", "pears.jsonl", "--by", "tiny/annotator")
    assert code == 2 and "pears.jsonl" in said and "pairs.jsonl" in said


def test_what_a_file_states_is_not_taken_for_the_judges_word(tmp_path: Path, run_cli: Cli, url: str) -> None:  # noqa: F811
    """The file rates the aspect `words` too, and prefers the other completion."""
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    said = [("x", SHORT, "5"), ("y", LONG, "1")]
    entries = [{"model": m, "response": text, "annotations": {"words": {"Rating": r}}} for m, text, r in said]
    jsonl(tmp_path / "rated.jsonl", [{"instruction": f"question {i}?", "completions": entries} for i in range(3)])
    asked = ["--by", url, "--model", "judge", "--method", "rate", "rubric=rubric.yaml", "--out", "runs/anew"]
    code, _, problem = run_cli("judge", "rated.jsonl", *asked, "--pair", "best-worst")
    assert code == 0, problem
    stages = {stage["name"]: stage for stage in manifest(tmp_path / "runs/anew")["stages"]}
    assert stages["rate"]["ratings"] == 3 * 2 * 2
    rows = lines(tmp_path / "runs/anew/stages/02-rate.jsonl")
    assert all({rating["judge"] for rating in row["ratings"]} == {"judge"} for row in rows)  # type: ignore[attr-defined]
    made = lines(tmp_path / "runs/anew/stages/03-pair.jsonl")
    assert {str(row["chosen"]["completion"]["text"]) for row in made} == {LONG}  # type: ignore[index]


def test_a_file_of_other_columns_is_told_how_to_be_read(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    (tmp_path / "odd.csv").write_text("question,first answer,second answer\nq,a,b\n")
    code, _, said = run_cli("judge", "odd.csv", "--by", "tiny/annotator")
    assert code == 2 and re.search(
        r"`DATA`: no row .* \(1 no completion\)\. Fix: .*`columns` of a `data` stage", said
    ), said
