"""A plan counts what a run then asks, also when part of it is paid for; it writes nothing and keeps no rows."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import RUBRIC, Echo, write_prompts
from serving import serve
from test_run import asked

from rlaif.config import Pipeline, read_pipeline
from rlaif.engines.protocol import Reply, Request
from rlaif.pipeline.folder import STORE
from rlaif.pipeline.progress import Silent
from rlaif.pipeline.start import open_plan, open_run
from rlaif.store import CallStore

PIPELINE = """\
name: planned
models:
  one: {{engine: openai, model: one, base_url: "{url}", concurrency: 4, price: {{prompt: 0, completion: 1000}}}}
  two: {{engine: openai, model: two, base_url: "{url}", concurrency: 4, price: {{prompt: 0, completion: 1000}}}}
  judge: {{engine: openai, model: judge, base_url: "{url}", concurrency: 4, price: {{prompt: 0, completion: 1000}}}}
stages:
  - prompts: {{path: prompts.jsonl, split: all}}
  - sample: {{models: [one, two], per_prompt: 2, sampling: {{max_tokens: 32}}}}
  - rate:
      name: critique
      model: judge
      rubric: prompts/rubrics/critique.yaml
      template: prompts/rate-critique.jinja
      answers: score
      reask: 1
      sampling: {{max_tokens: 64}}
  - rate: {{name: rate, model: judge, rubric: rubric.yaml, reask: 1, sampling: {{max_tokens: 128}}}}
  - pair: {{rule: zephyr}}
"""
PROMPTS = 30
HELD_OUT = 8  # of them, by their digests
CALLS = {  # of each stage: two samples of two models, a critique of each, two aspects of all four together
    "sample": {"one": 2 * PROMPTS, "two": 2 * PROMPTS},
    "critique": {"judge": 4 * PROMPTS},
    "rate": {"judge": 2 * PROMPTS},
}
TOKENS = {"one": 2 * 32 * PROMPTS, "two": 2 * 32 * PROMPTS, "judge": (4 * 64 + 2 * 128) * PROMPTS}


class Unlike(Echo):
    """Echo that never says the same twice: of equal completions one is judged, and a plan cannot know."""

    def _reply(self, request: Request, index: int) -> Reply:
        reply = super()._reply(request, index)
        warm = request.sampling.temperature
        written = not any(word in request.messages[-1].content for word in ("<completion", "Overall score:"))
        return reply.model_copy(
            update={"text": f"{reply.text} {self.name}-{request.sampling.seed}-{warm}"} if written else {}
        )


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[dict[str, Echo], str]]:
    models: dict[str, Any] = {name: Unlike(name) for name in ("one", "two", "judge")}
    with serve(models) as url:
        yield models, url


@pytest.fixture
def models(servers: tuple[dict[str, Echo], str]) -> dict[str, Echo]:
    asked(servers[0])
    return servers[0]


@pytest.fixture
def project(tmp_path: Path, servers: tuple[dict[str, Echo], str], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path, servers[1])


def write_project(folder: Path, url: str, prompts: int = PROMPTS) -> Path:
    write_prompts(folder, prompts)
    (folder / "rubric.yaml").write_text(RUBRIC)
    (folder / "planned.yaml").write_text(PIPELINE.format(url=url))
    return folder / "planned.yaml"


def plan(pipeline: Pipeline) -> dict[str, Any]:
    return asyncio.run(open_plan(pipeline, None).make())


def run(pipeline: Pipeline) -> str:
    return asyncio.run(open_run(pipeline, None, Silent()).execute())


def by_stage(planned: dict[str, Any], what: str) -> dict[str, dict[str, int]]:
    return {
        stage["stage"]: {model: count[what] for model, count in stage["calls"].items()}
        for stage in planned["stages"]
        if "calls" in stage
    }


def by_model(planned: dict[str, Any], what: str) -> dict[str, int]:
    return {model: need[what] for model, need in planned["calls"].items()}


def added(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for stage in counts.values():
        total.update(stage)
    return dict(total)


def in_store() -> int:
    store = CallStore(STORE, read_only=True)
    try:
        return len(store)
    finally:
        store.close()


def held(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def test_a_plan_says_what_a_run_then_asks(project: Path, models: dict[str, Echo]) -> None:
    pipeline = read_pipeline(str(project))
    before = plan(pipeline)
    assert by_stage(before, "calls") == CALLS and set(added(by_stage(before, "paid")).values()) == {0}
    assert by_model(before, "calls") == added(CALLS) and by_model(before, "max_completion_tokens") == TOKENS
    assert not any(model.asked for model in models.values()) and not Path("runs").exists()

    assert run(pipeline) == "done"
    assert asked(models) == added(CALLS)

    after = plan(pipeline)
    assert by_stage(after, "calls") == by_stage(after, "paid") == CALLS
    assert {need["max_cost"] for need in after["calls"].values()} == {0.0}
    assert not any(model.asked for model in models.values())
    rows = {stage["stage"]: stage["rows"] for stage in before["stages"]}
    assert rows == {"prompts": PROMPTS, "sample": PROMPTS, "critique": PROMPTS, "rate": PROMPTS, "pair": 0}
    assert before["stages"][-1]["at_most"] == PROMPTS and "at_most" not in after["stages"][-1]


JUDGED = "  - rate: {{name: rate, model: judge, rubric: rubric.yaml, reask: 1, sampling: {{max_tokens: 128}}}}\n"
FORMS = {
    # Two samplers of one model, whose completions a plan must not take for equal: a judge is asked of each.
    "one model under two names": (
        "  - sample: {{models: [one, again], per_prompt: 1}}\n"
        "  - rate: {{model: judge, rubric: rubric.yaml, shown: one}}\n",
        {"one": PROMPTS, "again": PROMPTS, "judge": 4 * PROMPTS},
    ),
    # What code will keep is not known before: a judge may be asked of everything.
    "filtered by code": (
        "  - sample: {{models: [one, two], per_prompt: 1}}\n"
        "  - verify: {{keep: passing, checks: [{{length: {{max_words: 1000}}}}]}}\n" + JUDGED,
        {"one": PROMPTS, "two": PROMPTS, "judge": 2 * PROMPTS},
    ),
    "measured": (
        "  - measure:\n      models: [one, two]\n      split: held-out\n"
        "      rate: {{model: judge, rubric: rubric.yaml, shown: one}}\n",
        {"one": HELD_OUT, "two": HELD_OUT, "judge": 4 * HELD_OUT},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_of_an_empty_store_counts_as_many_calls_as_the_run_sends(
    form: str, project: Path, models: dict[str, Echo]
) -> None:
    stages, calls = FORMS[form]
    head, _, _ = project.read_text().partition("  - sample")
    one = next(line for line in head.splitlines() if line.startswith("  one:"))
    again = one.replace("  one:", "  again:").replace("}}", "}, sampling: {temperature: 0.3}}")
    head = head.replace("stages:", f"{again}\nstages:") if "again" in calls else head
    project.write_text(head + stages.replace("{{", "{").replace("}}", "}"))
    pipeline = read_pipeline(str(project))
    assert by_model(plan(pipeline), "calls") == calls
    assert run(pipeline) == "done"
    assert sum(asked(models).values()) == sum(calls.values())
    assert by_model(plan(pipeline), "paid") == ({} if form == "measured" else calls)  # a measure made is unchanged


@pytest.mark.parametrize("budget", [1.0, 2.5])
def test_a_plan_says_what_is_left_when_part_is_paid_for(project: Path, models: dict[str, Echo], budget: float) -> None:
    pipeline = read_pipeline(str(project))
    assert run(read_pipeline(str(project), [f"budget={budget:g}"])) == "stopped"
    paid = asked(models)
    assert 0.1 * sum(added(CALLS).values()) < sum(paid.values()) < 0.9 * sum(added(CALLS).values())
    left = plan(pipeline)
    assert by_stage(left, "calls") == CALLS and by_model(left, "paid") == paid
    assert sum(added(by_stage(left, "paid")).values()) == sum(paid.values()) == in_store()

    assert run(pipeline) == "done"
    assert asked(models) == {model: need["calls"] - need["paid"] for model, need in left["calls"].items()}


def test_a_plan_made_twice_is_the_same_and_leaves_the_run_as_it_was(project: Path, models: dict[str, Echo]) -> None:
    pipeline = read_pipeline(str(project))
    assert plan(pipeline) == plan(pipeline)
    run(read_pipeline(str(project), ["budget=1.5"]))
    before = held(Path("runs/planned"))
    assert len(before) > 5
    assert plan(pipeline) == plan(pipeline)
    assert held(Path("runs/planned")) == before
    assert not any(path.suffix == ".tmp" for path in Path("runs").rglob("*"))


FEW_CALLS = ["stages.sample.sample.models=[one]", "stages.rate.rate.from=sample"]
FEW_CALLS += [f"stages.{name}.rate.reask=0" for name in ("critique", "rate")]


def peak(folder: Path, prompts: int) -> float:
    """The most memory that opening and planning so many prompts takes at once, in MB."""
    pipeline = read_pipeline(str(write_project(folder, "http://127.0.0.1:9/v1", prompts)), FEW_CALLS)
    tracemalloc.start()
    try:
        planned = plan(pipeline)
        most = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert by_model(planned, "calls") == {"one": 2 * prompts, "judge": 4 * prompts}
    return most


def test_a_plan_keeps_no_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a stage reads rows that another was planned on before: it has them made again, one by one."""
    monkeypatch.chdir(tmp_path)
    peak(tmp_path, 5)  # what is loaded once is loaded
    few, many = peak(tmp_path, 150), peak(tmp_path, 900)
    assert many - few < 0.17, f"150 prompts take {few:.2f} MB, 900 take {many:.2f} MB"
