"""The two pipelines that close the circle, as shipped, on fewer prompts: critique and revise, and SFT -> RM -> PPO."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from inside import rlaif

from rlaif.constitution import read_constitution
from rlaif.records import Row, split_of

pytestmark = pytest.mark.timeout(900)

CAI = "pipelines/constitutional_ai.yaml"
CAI_SMALL = [
    "stages.helpful.train.sft.epochs=0.4",
    "stages.red-team.prompts.take=40",
    "stages.sl-cai.train.sft.epochs=0.4",
    "stages.look-alikes.prompts.take=20",
    "stages.questions.prompts.take=30",
    "stages.measure.measure.take=24",
]
RLHF = "pipelines/rlhf.yaml"
RLHF_SMALL = [
    "stages.sft.train.sft.epochs=0.4",
    "stages.prompts.prompts.take=40",
    "stages.rm.train.rm.checkpoint_steps=1",
    "stages.rm.train.rm.batch_size=8",
    "stages.ppo.train.ppo.iterations=4",
    "stages.ppo.train.ppo.checkpoint_steps=1",
    "stages.ppo.train.ppo.batch_size=16",
    "stages.ppo.train.ppo.minibatch_size=8",
    "stages.measure.measure.take=8",
    "stages.measure.measure.best_of.n=2",
]


def run(folder: Path, pipeline: str, *overrides: str) -> dict[str, Any]:
    """Run a pipeline in `folder`; its manifest with what was printed, the calls sent and the summary."""
    done = rlaif(folder, "run", pipeline, *overrides)
    assert done.code == 0, done.out + done.err
    assert "Traceback" not in done.err and "Warning" not in done.err, done.err
    path = folder / "runs" / yaml.safe_load((folder / pipeline).read_text())["name"]
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sent"] = {model: calls["sent"] for model, calls in manifest["calls"].items() if calls["sent"]}
    manifest["output"], manifest["path"] = done.out, path
    manifest["summary"] = json.loads((path / "report/summary.json").read_text())
    manifest["stages"] = {stage["name"]: stage for stage in manifest["stages"]}
    return manifest


def plan(folder: Path, pipeline: str, *overrides: str) -> dict[str, Any]:
    """The calls that a plan made in `folder` counts."""
    done = rlaif(folder, "plan", pipeline, *overrides, "--json")
    assert done.code == 0, done.err
    calls: dict[str, Any] = json.loads(done.out)["calls"]
    return calls


def rows(manifest: dict[str, Any], stage: str) -> list[Row]:
    text = (manifest["path"] / manifest["stages"][stage]["file"]).read_text()
    return [Row.model_validate_json(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("circle")
    assert rlaif(folder, "init", "project").code == 0
    return folder / "project"


# ---------------------------------------------------------------- constitution


@pytest.fixture(scope="module")
def cai(project: Path) -> dict[str, Any]:
    return run(project, CAI, *CAI_SMALL)


def test_every_row_accounts_for_its_principles_and_parents(cai: dict[str, Any], project: Path) -> None:
    constitution = read_constitution(str(project / "constitutions/tiny.yaml"))
    swept = 0
    for row in rows(cai, "revise"):
        for revision in row.revisions:
            place = revision.number - 1
            drawn = constitution.draw(
                "revise", row.prompt.id, str(revision.candidate), request="critique", position=place
            )
            assert revision.principle == drawn.id and revision.critique.call and revision.critique.text
            swept += 1
    assert swept >= 70
    for row in rows(cai, "compare"):
        for comparison in row.comparisons:
            assert comparison.principle == constitution.draw("compare", row.prompt.id, request="comparison").id
            forward, backward = comparison.orders
            assert (forward.a, forward.b) == (backward.b, backward.a)
            assert all(verdict.reasons and verdict.raw and len(verdict.calls) == 2 for verdict in comparison.orders)
            assert comparison.probability is not None and 0 <= comparison.probability <= 1
            swept += 1
    assert swept >= 100


def test_in_is_out_and_dropped_and_the_data_sets_load(cai: dict[str, Any]) -> None:
    import datasets

    for stage in cai["stages"].values():
        assert stage["in"] == stage["out"] + sum(stage["dropped"].values()), stage
    assert cai["stages"]["sl-cai"]["from"] == "revise + demonstrations + look-alike-answers"
    folder = cai["path"] / "dataset"
    names = {"revise-sft", "look-alike-answers-sft", "preference", "sft"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        data = datasets.load_dataset("parquet", data_files=f"{folder}/{name}/data/*.parquet", split="train")
        assert len(data) > 5 and all(split_of(row["prompt_id"]) == "train" for row in data)
    for row in datasets.load_dataset("parquet", data_files=f"{folder}/preference/data/*.parquet", split="train"):
        assert row["principle"] in ("safety", "truth", "tone", "length") and 0.5 < row["probability"] <= 1
    card = (folder / "revise-sft" / "README.md").read_text()
    assert "constitution tiny" in card and "critique template" in card and "annotator" in card


def test_it_ends_with_what_got_better_and_what_got_worse(cai: dict[str, Any]) -> None:
    assert [model["name"] for model in cai["summary"]["models"]] == ["helpful", "sl-cai", "rl-cai"]
    for model in cai["summary"]["models"]:
        for figure in ("gold", "length", "harmful_complied", "harmful_refused", "look_alikes_answered", "kl"):
            assert model[figure]["low"] <= model[figure]["mean"] <= model[figure]["high"], figure
    for word in ("harmful complied with", "look-alikes answered", "words", "KL"):
        assert word in cai["output"]


def test_a_second_run_asks_nothing_and_trains_nothing(cai: dict[str, Any], project: Path) -> None:
    again = run(project, CAI, *CAI_SMALL)
    assert again["sent"] == {} and again["digests"] == cai["digests"]
    assert again["output"].count("unchanged") == 4  # three trainers and the measure


def test_show_tells_a_row_s_whole_story(cai: dict[str, Any], project: Path) -> None:
    def show(*arguments: str) -> str:
        done = rlaif(project, "show", str(cai["path"]), *arguments)
        assert done.code == 0, done.err
        return done.out

    revised = rows(cai, "revise")[0]
    told = show(revised.prompt.id, "--stage", "revise")
    for revision in revised.revisions:
        written = "nothing to mend" if revision.completion is None else revision.completion.text
        for words in (revision.principle, revision.critique.text, written):
            assert " ".join(words.split()) in " ".join(told.split())
    told = show(rows(cai, "compare")[0].prompt.id)
    assert "compared under" in told and "before [" in told
    divided = next(row for row in rows(cai, "compare") if any(one.disagrees for one in row.comparisons))
    assert "the two orders disagree" in show(divided.prompt.id)
    asked = json.loads(show(rows(cai, "compare")[0].prompt.id, "--json"))["requests"]
    assert len(asked) == 2 + 4  # two completions, and in each order the reasons and the verdict


def test_the_plan_counts_what_the_run_asks(cai: dict[str, Any], project: Path, tmp_path: Path) -> None:
    fresh = plan(tmp_path, CAI, *CAI_SMALL)
    # 40 drafts, 20 look-alikes and 24 measured; two steps of two calls a draft; two orders of two calls a pair
    assert fresh["helpful"]["calls"] == 84 and fresh["helpful"]["paid"] == 0
    assert fresh["annotator"]["calls"] == 40 * 4 + 30 * 4
    saved = cai["stages"]["revise"]["saved_calls"]
    assert 10 <= saved == cai["stages"]["revise"]["found_nothing"]
    assert cai["sent"]["annotator"] <= fresh["annotator"]["calls"] - saved
    run(project, CAI, *CAI_SMALL)
    assert all(need["calls"] == need["paid"] for need in plan(project, CAI, *CAI_SMALL).values())


def test_a_principle_turned_round_asks_only_what_it_touches_and_changes_the_data(
    cai: dict[str, Any], project: Path
) -> None:
    was = rows(cai, "revise")  # the next run writes over the file
    path = project / "constitutions/tiny.yaml"
    text = path.read_text()
    assert text.count("length: short") == 1
    path.write_text(text.replace("length: short", "length: long"))
    try:
        after = run(project, CAI, *CAI_SMALL)
    finally:
        path.write_text(text)
    assert after["digests"]["model helpful"] == cai["digests"]["model helpful"]
    assert after["sent"].get("helpful", 0) == 0  # the drafts are as they were
    lengths: list[tuple[int, int]] = []
    asked_again = kept = 0
    for old, new in zip(was, rows(after, "revise"), strict=True):
        assert [r.principle for r in old.revisions] == [r.principle for r in new.revisions]  # drawn by id alone
        touched, drafts = False, [old.candidates[0].completion, new.candidates[0].completion]
        for before, now in zip(old.revisions, new.revisions, strict=True):
            touched = touched or before.principle == "length"
            if not touched:
                assert before == now
                kept += 1
            elif before.principle == "length":
                short, long = (
                    len((step.completion or draft).text.split())
                    for step, draft in zip((before, now), drafts, strict=True)
                )
                lengths.append((short, long))
                asked_again += 1
            drafts = [step.completion or draft for step, draft in zip((before, now), drafts, strict=True)]
    assert asked_again >= 8 and kept >= 30
    shorter, longer = (sum(column) / asked_again for column in zip(*lengths, strict=True))
    assert longer > 2 * shorter  # what was cut to one sentence is now drawn out


# ---------------------------------------------------------------- SFT -> RM -> PPO


@pytest.fixture(scope="module")
def rlhf(project: Path) -> dict[str, Any]:
    return run(project, RLHF, *RLHF_SMALL)


def test_the_circle_closes(rlhf: dict[str, Any]) -> None:
    names = ["base", "sft", "ppo", "sft best of 2"]
    assert [model["name"] for model in rlhf["summary"]["models"]] == names
    for model in rlhf["summary"]["models"]:
        assert model["gold"]["n"] == 8 and model["reward"]["n"] == 8
    best = rlhf["summary"]["models"][-1]
    assert best["kl"] == {"at_most": 0.193147, "against": "sft"}
    assert best["reward"]["mean"] >= rlhf["summary"]["models"][1]["reward"]["mean"]
    assert "validation_accuracy" in rlhf["stages"]["rm"]["metrics"]
    ppo = rlhf["stages"]["ppo"]  # learns from the training split alone
    assert ppo["dropped"] == {"validation": 40 - ppo["out"]} and 30 <= ppo["out"] < 40
    assert {"last_score", "last_kl"} <= set(rlhf["stages"]["ppo"]["metrics"])
    assert "at most 0.19" in rlhf["output"] and "reward model rm" in rlhf["output"]


def test_the_score_ppo_reads_is_the_score_of_the_trained_reward_model(rlhf: dict[str, Any]) -> None:
    """Through the engine, and by transformers alone at the last token of prompt, completion and end token."""
    import asyncio

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rlaif.engines.transformers import TransformersEngine
    from rlaif.train import tokens

    folder = rlhf["path"] / "models/rm"
    items = [(row.prompt.messages, row.candidates[0].completion.text) for row in rows(rlhf, "sample")[:12]]
    engine = TransformersEngine("rm", str(folder))
    read = asyncio.run(engine.score(items))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    chat = tokens.trainable_chat(AutoTokenizer.from_pretrained(folder))
    for (prompt, completion), score in zip(items, read, strict=True):
        ((before, after),) = tokens.completions(chat, [(prompt, completion)])
        assert after[-1] == chat.tokenizer.eos_token_id
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([before + after])).logits.item()
        assert score == pytest.approx(alone, abs=1e-4)
    asyncio.run(engine.close())


def test_the_plan_counts_best_of_and_nothing_twice(rlhf: dict[str, Any], project: Path, tmp_path: Path) -> None:
    # Four samplers for 40 prompts; of each of 8 measured prompts two completions, the first being sft's own.
    assert plan(tmp_path, RLHF, *RLHF_SMALL)["sft"]["calls"] == 4 * 40 + 2 * 8
    assert rlhf["sent"]["sft"] <= 4 * 40 + 2 * 8
    assert all(need["calls"] == need["paid"] for need in plan(project, RLHF, *RLHF_SMALL).values())


def test_a_source_that_gives_nothing_stops_its_trainer_and_says_where_it_went(tmp_path: Path) -> None:
    """Every critique is cut, so no revision is left; the demonstrations beside it must not stand in for them."""
    overrides = [*CAI_SMALL, "stages.red-team.prompts.take=5", "stages.revise.revise.sampling.max_tokens=1"]
    done = rlaif(tmp_path, "run", CAI, *overrides)
    assert done.code == 1 and "stage 'revise' gave nothing to train 'sl-cai' on" in done.err, done.err
    manifest = json.loads((tmp_path / "runs/constitutional-ai/manifest.json").read_text())
    (revise,) = (stage for stage in manifest["stages"] if stage["name"] == "revise")
    assert (revise["in"], revise["out"]) == (5, 0) and revise["dropped"]["critique: cut at max_tokens"] >= 4


@pytest.mark.lab
def test_killed_trainings_go_on_to_the_same_models(rlhf: dict[str, Any], project: Path, tmp_path: Path) -> None:
    """SIGKILL once a stage has written two checkpoints, in a copy of the project that lacks its model: first one stage,
    then the next."""
    folder = tmp_path / "copy"
    shutil.copytree(project, folder)
    for name in ("rm", "ppo"):
        shutil.rmtree(folder / "runs/rlhf/models" / name)
    for name in ("rm", "ppo"):
        partial = folder / "runs/rlhf/models" / f"{name}.partial"
        command = [sys.executable, "-m", "rlaif.cli", "run", RLHF, *RLHF_SMALL]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
            while not any(
                int(path.parent.name.rpartition("-")[2]) >= 2 for path in partial.glob("checkpoint-*/complete")
            ):
                assert process.poll() is None, "the training had ended before it could be killed"
                time.sleep(0.02)
            process.kill()
        assert partial.is_dir()
    resumed = run(folder, RLHF, *RLHF_SMALL)
    for name in ("rm", "ppo"):
        assert resumed["digests"][f"model {name}"] == rlhf["digests"][f"model {name}"]
        assert resumed["stages"][name]["metrics"] == rlhf["stages"][name]["metrics"]
