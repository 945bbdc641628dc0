"""The published recipes: each is a pipeline, and takes two steps on tiny models of the architectures that it names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from test_architectures import base_of
from test_run import Cli, run_cli  # noqa: F401 - the fixture

from rlaif.config import DataStage, PromptsStage, TrainStage, TransformersModel, read_pipeline

RECIPES = Path(__file__).parents[1] / "pipelines" / "recipes"
ARCHITECTURE = {  # of the models that the recipes name
    "mistralai/Mistral-7B-v0.1": "Mistral",
    "allenai/Llama-3.1-Tulu-3-8B-SFT": "Llama",
    "meta-llama/Meta-Llama-3-8B-Instruct": "Llama",
    "meta-llama/Llama-3.1-8B": "Llama",
}
CHAT = [{"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(8)]  # fmt: skip
PAIRS = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No idea."} for i in range(8)]
SMALL = {"batch_size": 4, "accumulate": 1, "epochs": 1, "max_steps": 2, "max_length": 96, "processes": 1,
         "launch": "null", "dtype": "float32", "packing": "false"}  # fmt: skip


def test_every_recipe_is_swept() -> None:
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == sorted([*TRAINED, "instructgpt"])


TRAINED = ("light-sft-7b", "simpo-llama-3-8b", "tulu-3-8b-dpo", "zephyr-7b", "zephyr-7b-h200", "zephyr-7b-qlora")


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_takes_two_steps_on_tiny_models_of_its_architectures(
    name: str,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES / f"{name}.yaml"
    code, out, err = run_cli("run", str(recipe), *tiny(recipe, tmp_path))
    assert code == 0, out + err
    trained = [step.stage for step in read_pipeline(str(recipe)).steps if isinstance(step.stage, TrainStage)]
    assert len(trained) in (1, 2)
    for stage in trained:
        folder = tmp_path / "runs" / name / "models" / stage.trainer.name
        assert json.loads((folder / "training.json").read_text())["steps"] == 2


def test_a_recipe_whose_judge_is_a_server_is_planned(
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES / "instructgpt.yaml"
    code, out, err = run_cli("plan", str(recipe), *tiny(recipe, tmp_path))
    assert code == 0, out + err
    assert [word in out for word in ("sft", "rank", "rm", "ppo", "measure")] == [True] * 5


def tiny(recipe: Path, folder: Path) -> list[str]:
    """Overrides that put tiny models and files in the place of what a recipe names, and end after two steps."""
    return [f"{key}={value}" for key, value in _tiny(recipe, folder)]


def _tiny(recipe: Path, folder: Path) -> Iterator[tuple[str, Any]]:
    pipeline = read_pipeline(str(recipe))
    for name, spec in pipeline.models.items():
        if isinstance(spec, TransformersModel):
            base = base_of(ARCHITECTURE[str(spec.hub)], folder / f"model-{name}")
            yield f"models.{name}", json.dumps({"engine": "transformers", "path": str(base)})
    for step in pipeline.steps:
        key = f"stages.{step.name}.{step.stage.kind}"
        if isinstance(step.stage, DataStage | PromptsStage):
            readers = [each.stage for each in pipeline.steps if step in each.sources]
            rows = PAIRS if any(stage.takes == "preferences" for stage in readers) else CHAT
            file = folder / f"{step.name}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            given = {"path": str(file), "name": step.name}
            everything = isinstance(step.stage, DataStage) and step.stage.split == "all"
            yield key, json.dumps(given | ({"split": "all"} if everything else {}))
        if isinstance(step.stage, TrainStage) and step.stage.method != "ppo":
            for setting, value in SMALL.items():
                if setting in type(step.stage.trainer).model_fields:
                    yield f"{key}.{step.stage.method}.{setting}", value
            if step.stage.trainer.lora is not None:
                rest = step.stage.trainer.lora.model_dump(mode="json", exclude={"quantized"})
                yield f"{key}.{step.stage.method}.lora", json.dumps(rest | {"r": 4})
