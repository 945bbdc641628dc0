"""The embedded models behind the OpenAI protocol give the data that the same models give in this process."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from echo import Echo
from inside import rlaif
from serving import serve
from test_run import Cli, run_cli  # noqa: F401 - the fixture

from rlaif import load
from rlaif.engines.transformers import TransformersEngine
from rlaif.records import Row
from rlaif.resources import find

PIPELINE = """\
name: {name}
models:
  base: {base}
  annotator: {annotator}
stages:
  - prompts: {{path: tiny/prompts.jsonl, take: 12}}
  - sample:
      models:
        - {{model: base, name: greedy, temperature: 0}}
        - {{model: base, name: warm, temperature: 1}}
      sampling: {{max_tokens: 48, stop: ["\\n"]}}
  - rate:
      model: annotator
      rubric: prompts/rubrics/tiny.yaml
      template: prompts/rate-compact.jinja
      answers: lines
      sampling: {{temperature: 0, max_tokens: 160}}
  - pair: {{rule: best-worst}}
"""


def rows(name: str) -> list[dict[str, Any]]:
    lines = (Path("runs") / name / "stages/03-rate.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_embedded_models_behind_a_server(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    engines = {name: TransformersEngine(name, str(find(f"tiny/{name}"))) for name in ("base", "annotator")}
    with serve(engines) as url:
        models = {n: f"{{engine: openai, model: {n}, base_url: '{url}'}}" for n in engines}
        (tmp_path / "served.yaml").write_text(PIPELINE.format(name="served", **models))
        code, out, err = run_cli("run", "served.yaml")
    assert code == 0, out + err
    models = {n: f"{{engine: transformers, path: tiny/{n}}}" for n in engines}
    (tmp_path / "local.yaml").write_text(PIPELINE.format(name="local", **models))
    assert run_cli("run", "local.yaml")[0] == 0

    served, local = rows("served"), rows("local")
    assert len(served) == len(local) == 12
    greedy = [[row["candidates"][0]["completion"]["text"] for row in table] for table in (served, local)]
    assert greedy[0] == greedy[1]
    ratings = [rating for row in served for rating in row["ratings"]]
    read = [rating for rating in ratings if rating.get("value") is not None]
    assert len(ratings) == 12 * 2 * 3 and len(read) >= 0.9 * len(ratings)

    import datasets

    folder = "runs/served/dataset/ultrafeedback/data/*.parquet"
    assert len(datasets.load_dataset("parquet", data_files=folder, split="train")) == 12


PRINCIPLES = """\
name: {name}
models:
  base: {base}
  annotator: {annotator}
stages:
  - prompts: {{path: tiny/prompts.jsonl, take: 12}}
  - sample:
      models: [base, annotator]
      sampling: {{temperature: 0, max_tokens: 48, stop: ["\\n"]}}
  - revise:
      model: annotator
      constitution: constitutions/tiny.yaml
      critique_template: prompts/critique-compact.jinja
      revision_template: prompts/revise-compact.jinja
      sampling: {{temperature: 0, max_tokens: 96}}
  - compare:
      model: annotator
      constitution: constitutions/tiny.yaml
      template: prompts/compare-compact.jinja
      ending: which one ?
      reasons: true
      sampling: {{temperature: 0, max_tokens: 160}}
"""


def test_principles_are_applied_alike_in_process_and_behind_a_server(tmp_path: Path, run_cli: Cli) -> None:  # noqa: F811
    """The same critiques, revisions and probabilities, whichever way the annotator is reached."""
    engines = {name: TransformersEngine(name, str(find(f"tiny/{name}"))) for name in ("base", "annotator")}
    with serve(engines) as url:
        models = {n: f"{{engine: openai, model: {n}, base_url: '{url}'}}" for n in engines}
        (tmp_path / "served.yaml").write_text(PRINCIPLES.format(name="served", **models))
        code, out, err = run_cli("run", "served.yaml")
    assert code == 0, out + err
    models = {n: f"{{engine: transformers, path: tiny/{n}}}" for n in engines}
    (tmp_path / "local.yaml").write_text(PRINCIPLES.format(name="local", **models))
    assert run_cli("run", "local.yaml")[0] == 0
    tables = []
    for name in ("served", "local"):
        folder = Path("runs") / name / "stages"
        revised, compared = (
            [Row.model_validate_json(line) for line in (folder / file).read_text().splitlines()]
            for file in ("03-revise.jsonl", "04-compare.jsonl")
        )
        steps = [step for row in revised for step in row.revisions]
        words = [(step.principle, step.critique.text, step.completion and step.completion.text) for step in steps]
        chances = [c.probability for row in compared for c in row.comparisons]
        tables.append((words, chances))
    (served_words, served), (local_words, local) = tables
    assert served_words == local_words and len(local_words) >= 15
    assert served == [p if p is None else pytest.approx(p, abs=1e-3) for p in local] and len(local) >= 5


def test_what_of_a_runs_replies_was_read_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pipeline and the command of benchmarks/real."""
    folder = Path(__file__).parents[1] / "benchmarks" / "real"
    with serve({"my-model": Echo("m")}) as url:
        done = rlaif(tmp_path, "run", str(folder / "pipeline.yaml"), f"models.model.base_url={url}")
    assert done.code == 1 and "judgements are unparsed" in done.out  # an echo gives no verdict
    runpy.run_path(str(folder / "readable.py"))["main"]([str(tmp_path / "runs" / "real")])
    lines = capsys.readouterr().out.splitlines()
    read = {cells[1].strip(" `"): cells[2:4] for line in lines if len(cells := line.split("|")) == 6}
    rows = load(tmp_path / "runs" / "real")
    verdicts = [order for row in rows.rows_of("hard") for c in row.comparisons for order in c.orders]
    assert read["hard"][0].strip() == str(len(verdicts)) and all(order.problem for order in verdicts)
    assert read["hard"][1].startswith(" 0 [0, ") and read["rate"][1].startswith(" 100 [")
    assert {"sample", "first", "revise", "soft"} <= read.keys()
