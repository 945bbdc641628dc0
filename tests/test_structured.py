"""Structured ratings in a whole run: a judge in this process that replies in JSON, and what it needs for that."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import make_random_model
from test_run import Cli, run_cli  # noqa: F401 - the fixture

PIPELINE = """\
name: structured
models:
  base: {{engine: transformers, path: tiny/base, device: cpu, sampling: {{max_tokens: 16, stop: ["\\n"]}}}}
  judge: {{engine: transformers, path: "{judge}", device: cpu}}
stages:
  - prompts: {{path: tiny/prompts.jsonl, take: {prompts}}}
  - sample: {{models: [base], per_prompt: 2, sampling: {{temperature: 1.0}}}}
  - rate:
      model: judge
      rubric: prompts/rubrics/tiny.yaml
      answers: json
      reask: 0
      sampling: {{temperature: 3.0, max_tokens: 1500}}
"""
MEASURE = """\
  - measure:
     models: [base]
     rate:
      model: judge
      rubric: prompts/rubrics/tiny.yaml
      answers: json
"""
PROMPTS, ASPECTS = 3, 3


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A judge of random weights, which knows no JSON: what it writes by the schema it owes to the grammar alone."""
    judge = make_random_model(tmp_path / "judge")
    config = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    file = tmp_path / "structured.yaml"
    file.write_text(PIPELINE.format(judge=judge, prompts=PROMPTS))
    return file


def test_every_reply_that_was_not_cut_is_read(pipeline: Path, run_cli: Cli) -> None:  # noqa: F811
    code, _, err = run_cli("run", str(pipeline))
    assert code == 0, err
    rows = [json.loads(line) for line in Path("runs/structured/stages/03-rate.jsonl").read_text().splitlines()]
    ratings = [rating for row in rows for rating in row["ratings"] if rating.get("problem") != "empty completion"]
    cut = [rating for rating in ratings if rating.get("problem") == "the reply was cut at max_tokens"]
    read = [rating for rating in ratings if rating not in cut]
    assert len(ratings) > PROMPTS * ASPECTS and len(cut) < len(ratings) / 4
    assert {rating.get("problem") for rating in read} == {None}
    assert {rating["value"] for rating in read} == {1, 2, 3, 4, 5}


def test_json_asked_of_a_model_in_this_process_needs_xgrammar_before_anything_runs(
    pipeline: Path,
    run_cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    measured = pipeline.with_name("measured.yaml")
    measured.write_text(pipeline.read_text().split("  - sample")[0] + MEASURE)
    for command, file in (("plan", pipeline), ("run", pipeline), ("plan", measured)):
        line = file.read_text().splitlines().index("      answers: json") + 1
        code, _, err = run_cli(command, str(file))
        said = err.replace("\n", "")
        assert code == 2 and f"{file.name}:{line}: " in said and "pip install 'rlaif-kit[schema]'" in said
    assert not Path("runs/structured/stages").exists()
    pipeline.write_text(pipeline.read_text().replace("answers: json", "answers: lines"))
    assert run_cli("plan", str(pipeline))[0] == 0
