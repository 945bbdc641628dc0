"""The README's pipeline, as shipped, on fewer prompts: it runs, it is incremental, and it survives a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inside import rlaif

from rlaif.pipeline.folder import STORE
from rlaif.records import Prompt, split_of
from rlaif.store import CallStore

pytestmark = pytest.mark.timeout(900)

PIPELINE = "pipelines/quickstart.yaml"
SMALL = [
    "stages.sft.train.sft.epochs=0.4",
    "stages.sft.train.sft.checkpoint_steps=5",
    "stages.prompts.prompts.take=20",
    "stages.dpo.train.dpo.batch_size=8",
    "stages.dpo.train.dpo.checkpoint_steps=1",
    "stages.measure.measure.take=12",
]


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """Run the quickstart in `folder`; returns what its manifest says of the calls made."""
    done = rlaif(folder, "run", PIPELINE, *SMALL, *overrides)
    assert done.code == 0, done.out + done.err
    assert "Traceback" not in done.err and "Warning" not in done.err, done.err
    manifest = json.loads((folder / "runs/quickstart/manifest.json").read_text())
    manifest["sent"] = {model: calls["sent"] for model, calls in manifest["calls"].items() if calls["sent"]}
    manifest["output"] = done.out
    return manifest


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a copy of the rubric, as `rlaif init` makes it, and one finished run."""
    folder = tmp_path_factory.mktemp("quickstart")
    assert rlaif(folder, "init", "project").code == 0
    run(folder / "project")
    return folder / "project"


def test_it_ends_with_the_table_and_the_summary(project: Path) -> None:
    manifest = run(project)
    summary = json.loads((project / "runs/quickstart/report/summary.json").read_text())
    assert [model["name"] for model in summary["models"]] == ["base", "sft", "dpo"]
    for model in summary["models"]:
        for figure in ("gold", "win_rate", "length"):
            assert set(model[figure]) >= {"mean", "low", "high", "n"}
            assert model[figure]["low"] <= model[figure]["mean"] <= model[figure]["high"]
    assert {"models", "judge", "calls", "seconds"} <= set(summary)
    assert all(word in manifest["output"] for word in ("gold", "win rate", "base", "sft", "dpo", "KL"))


def test_a_second_run_computes_nothing_and_keeps_every_digest(project: Path) -> None:
    first, second = run(project), run(project)
    assert second["sent"] == {} and second["digests"] == first["digests"] and len(second["digests"]) >= 8
    assert second["output"].count("unchanged") == 3  # two trainers and the measure


def test_no_held_out_prompt_reaches_a_stage_file(project: Path) -> None:
    seen = 0
    for path in (project / "runs/quickstart/stages").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            prompt = json.loads(line)["prompt"]
            seen += 1
            assert split_of(Prompt.model_validate(prompt).id) == "train"
    assert seen >= 40


def test_a_changed_sentence_asks_the_judge_anew_and_trains_again(project: Path) -> None:
    before = run(project)
    rubric = project / "prompts/rubrics/tiny.yaml"
    text = rubric.read_text()
    assert "we like polite replies ." in text
    rubric.write_text(text.replace("we like polite replies .", "we like blunt replies ."))
    try:
        after = run(project)
    finally:
        rubric.write_text(text)
    assert set(after["sent"]) <= {"annotator", "dpo"} and after["sent"]["annotator"] > 0
    assert after["digests"]["model sft"] == before["digests"]["model sft"]
    assert after["digests"]["model dpo"] != before["digests"]["model dpo"]


def test_more_prompts_cost_only_the_new_ones(project: Path) -> None:
    run(project)
    after = run(project, "stages.prompts.prompts.take=24", "stages.measure.measure.models=[base,sft]")
    # Four new prompts: one sample of the base, three of sft, and at most three judge calls for each.
    assert after["sent"]["base"] == 4 and after["sent"]["sft"] == 12 and after["sent"]["annotator"] <= 48


def test_a_run_killed_thrice_goes_on_with_every_finished_call_kept(project: Path, tmp_path: Path) -> None:
    """SIGKILL in the training, among the samples and in the next training, each time in the folder of the last."""
    models = tmp_path / "runs/quickstart/models"
    killed_once(tmp_path, lambda: any(models.glob("sft.partial/checkpoint-*/complete")))
    killed_once(tmp_path, lambda: calls_kept(tmp_path) >= 20)
    killed_once(tmp_path, lambda: any(models.glob("dpo.partial/checkpoint-*/complete")))
    assert not (models / "dpo").exists()
    resumed, calm = run(tmp_path), run(project)
    assert [(s["name"], s["in"]) for s in resumed["stages"]] == [(s["name"], s["in"]) for s in calm["stages"]]
    assert resumed["digests"]["model sft"] == calm["digests"]["model sft"]
    rows = [rated_prompts(folder) for folder in (tmp_path, project)]
    assert rows[0] == rows[1] and len(rows[0]) == 20
    # Sampling and rating had ended: only the measure asks for anything.
    assert resumed["sent"].get("base", 0) <= 12 and resumed["sent"].get("sft", 0) <= 12


def killed_once(folder: Path, moment: Callable[[], bool]) -> None:
    """The quickstart as a process of its own in `folder`, killed at the first moment that is so."""
    command = [sys.executable, "-m", "rlaif.cli", "run", PIPELINE, *SMALL]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        while not moment():
            assert process.poll() is None, "it had ended before it could be killed"
            time.sleep(0.02)
        process.kill()


def calls_kept(folder: Path) -> int:
    if not (folder / STORE).exists():
        return 0
    store = CallStore(folder / STORE, read_only=True)
    try:
        return len(store)
    finally:
        store.close()


def rated_prompts(folder: Path) -> list[str]:
    path = folder / "runs/quickstart/stages/05-rate.jsonl"
    return [json.loads(line)["prompt"]["messages"][0]["content"] for line in path.read_text().splitlines()]


WITHOUT_THE_WORLD_AND_THEN_BESIDE_IT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "rlaif.tiny.world":
            raise ImportError("the world is not here")
sys.meta_path.insert(0, Refuse())
import asyncio
from rlaif.config import Rater, SamplingSettings
from rlaif.engines.asking import Asking
from rlaif.engines.scheduler import Scheduler
from rlaif.engines.transformers import TransformersEngine
from rlaif.judges.rating import Judge, rate
from rlaif.records import Candidate, Completion, Message, Prompt, Row
from rlaif.resources import find
from rlaif.rubric import read_rubric
from rlaif.store import CallStore
from rlaif.templates import Template
from pathlib import Path
def candidate(text):
    return Candidate(sampler="m", completion=Completion(text=text, model="m", call=text))
texts = ["it is five .", "go away . it is six .", "thank you for asking . it is five ."]
row = Row(prompt=Prompt(messages=(Message(role="user", content="what is two plus three ?"),)),
          candidates=tuple(map(candidate, texts)))
greedy = SamplingSettings(temperature=0, max_tokens=160)
rater = Rater(model="annotator", rubric="", template="", answers="lines", sampling=greedy)
rubric, template = read_rubric("prompts/rubrics/tiny.yaml"), Template.read(find("prompts/rate-compact.jinja"))
async def go():
    engine = TransformersEngine("annotator", str(find("tiny/annotator")))
    scheduler = Scheduler(CallStore(Path(":memory:")), {"annotator": engine}, {})
    asking = Asking(scheduler, {"annotator": SamplingSettings()}, 0)
    done = await rate(row, rater, Judge(rubric, template), asking.asker("annotator", rater.sampling))
    await engine.close()
    print([(r.aspect, r.value, r.raw) for r in done.ratings])
asyncio.run(go())
assert "rlaif.tiny.world" not in sys.modules
del sys.meta_path[0]
import rlaif.tiny.world
asyncio.run(go())
"""


def test_the_annotator_answers_the_same_without_the_world() -> None:
    command = [sys.executable, "-c", WITHOUT_THE_WORLD_AND_THEN_BESIDE_IT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    without, beside = done.stdout.splitlines()
    assert without == beside and without.count("rating") >= 6
