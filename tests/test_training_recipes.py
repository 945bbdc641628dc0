"""The published recipes: each is a pipeline, and takes two steps on tiny models of the architectures that it names."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("trl")

from conftest import make_random_model
from test_architectures import SIZES, base_of
from test_run import Cli, run_cli  # noqa: F401 - the fixture
from transformers import LlamaConfig, MistralConfig

from rlaif.config import TRAINERS, DataStage, PromptsStage, TrainStage, TransformersModel, read_pipeline
from rlaif.train import memory

RECIPES = Path(__file__).parents[1] / "pipelines" / "recipes"
ARCHITECTURE = {  # of the models that the recipes name
    "mistralai/Mistral-7B-v0.1": "Mistral",
    "allenai/Llama-3.1-Tulu-3-8B-SFT": "Llama",
    "meta-llama/Meta-Llama-3-8B-Instruct": "Llama",
    "meta-llama/Llama-3.1-8B": "Llama",
}
PAIRS = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No idea."} for i in range(8)]
SMALL = {"batch_size": 4, "accumulate": 1, "epochs": 1, "max_steps": 2, "max_length": 96, "processes": 1,
         "launch": "null", "dtype": "auto", "packing": "false"}  # fmt: skip
UNUSABLE = {"quantized"} if find_spec("bitsandbytes") is None else set()
SMALL_PPO = {"iterations": 2, "batch_size": 4, "minibatch_size": 4, "accumulate": 2, "sample_batch_size": 2,
             "epochs": 1, "max_tokens": 8, "max_length": 96, "dtype": "float32"}  # fmt: skip


GLOBAL_BATCH = {  # published: rows of one step
    "instructgpt": (32, 64), "light-sft-7b": (64,), "simpo-llama-3-8b": (128,), "tulu-3-8b-dpo": (128,),
    "zephyr-7b": (128, 128), "zephyr-7b-h200": (128, 128), "zephyr-7b-qlora": (64, 128),
}  # fmt: skip
LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8}  # fmt: skip
PUBLISHED: dict[str, Any] = {  # the shapes of the models that the recipes name
    "mistralai/Mistral-7B-v0.1": MistralConfig(),
    "allenai/Llama-3.1-Tulu-3-8B-SFT": LlamaConfig(**LLAMA, vocab_size=128264),
    "meta-llama/Meta-Llama-3-8B-Instruct": LlamaConfig(**LLAMA, vocab_size=128256),
    "meta-llama/Llama-3.1-8B": LlamaConfig(**LLAMA, vocab_size=128256),
}
PLANNED = re.compile(r"^#   (\S+) +([\d.]+) GB of (\d+)(?: with (.+))?$", re.MULTILINE)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_head_of_a_recipe_says_what_the_plan_says(recipe: Path, tmp_path: Path) -> None:
    """Its memory within 2 %, on a GPU that has it; and its batches are those that were published."""
    pipeline = read_pipeline(str(recipe))
    (base,) = [spec for spec in pipeline.models.values() if isinstance(spec, TransformersModel)]
    config = PUBLISHED[str(base.hub)]
    config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
    config.save_pretrained(tmp_path)
    trainings = {step.name: step.stage for step in pipeline.steps if isinstance(step.stage, TrainStage)}
    as_written: list[str] = []
    for name, gigabytes, of_gpu, changed in PLANNED.findall(recipe.read_text()):
        overrides = [f"stages.{name}.train.{trainings[name].method}.{change}" for change in changed.split()]
        (trainer,) = [
            step.stage.trainer
            for step in read_pipeline(str(recipe), overrides).steps
            if isinstance(step.stage, TrainStage) and step.name == name
        ]
        told = memory.plan(tmp_path, trainer).total / 1e9
        assert float(gigabytes) == pytest.approx(told, rel=0.02) and told < int(of_gpu), (name, changed, told)
        if trainer.method != "ppo":
            batch = trainer.batch_size * trainer.accumulate
            assert batch == GLOBAL_BATCH[recipe.stem][[*trainings].index(name)], name
        as_written += [] if changed else [name]
    assert as_written == [*trainings]


def test_every_recipe_is_swept() -> None:
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == sorted([*TRAINED, "instructgpt"])


TRAINED = ("light-sft-7b", "simpo-llama-3-8b", "tulu-3-8b-dpo", "zephyr-7b", "zephyr-7b-h200", "zephyr-7b-qlora")
# Of other architectures than their own: SFT, SimPO and DPO.
MOVED = (("light-sft-7b", "Qwen2"), ("simpo-llama-3-8b", "Qwen3"), ("tulu-3-8b-dpo", "Gemma2"))


@pytest.mark.parametrize(("name", "architecture"), [*((name, None) for name in TRAINED), *MOVED])
def test_a_recipe_takes_two_steps_on_tiny_models_of_its_architectures(
    name: str,
    architecture: str | None,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES / f"{name}.yaml"
    packed = name == "zephyr-7b-h200"  # the others are not, as each packed SFT is proved on its own base
    code, out, err = run_cli("run", str(recipe), *tiny(recipe, tmp_path, architecture, packed=packed))
    assert code == 0, out + err
    trained = [step.stage for step in read_pipeline(str(recipe)).steps if isinstance(step.stage, TrainStage)]
    assert len(trained) in (1, 2)
    for stage in trained:
        folder = tmp_path / "runs" / name / "models" / stage.trainer.name
        assert json.loads((folder / "training.json").read_text())["steps"] == 2
    if packed:
        job = read_pipeline(str(tmp_path / "runs" / name / "pipeline.yaml")).steps[1].stage
        assert isinstance(job, TrainStage) and getattr(job.trainer, "packing", False)


def test_the_trainings_of_instructgpt_take_two_steps_one_after_another(
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the recipe has them, from files in the place of the judge: SFT, the reward model of it, and PPO with both."""
    monkeypatch.chdir(tmp_path)
    ranked = ["It is {}.", "No idea.", "Go away."]
    files: dict[str, list[dict[str, Any]]] = {
        "demonstrations": chat(24),
        "pairs": [
            {"prompt": f"What is {i}?", "chosen": better.format(i), "rejected": worse}
            for i in range(8)
            for better, worse in itertools.combinations(ranked, 2)
        ],
        "prompts": [{"prompt": f"What is {i}?"} for i in range(8)],
    }
    for name, rows in files.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"sft": SMALL, "rm": SMALL, "ppo": SMALL_PPO}
    stages: list[dict[str, Any]] = [
        {"data": {"path": "demonstrations.jsonl", "name": "demonstrations"}},
        {"data": {"path": "pairs.jsonl", "name": "pairs"}},
        {"prompts": {"path": "prompts.jsonl", "name": "prompts"}},
    ]
    taken = {"sft": "demonstrations", "rm": "pairs", "ppo": "prompts"}
    for stage in yaml.safe_load((RECIPES / "instructgpt.yaml").read_text())["stages"]:
        for method, given in stage.get("train", {}).items():
            fields = TRAINERS[method].model_fields
            changed = {key: yaml.safe_load(str(value)) for key, value in small[method].items() if key in fields}
            data = {"data": taken[method], "lora": given["lora"] | {"r": 4}}
            stages.append({"train": {method: given | changed | data}})
    assert [[*stage["train"]] for stage in stages[3:]] == [["sft"], ["rm"], ["ppo"]]
    # The base's tokens are those of Llama 3: its end token is not the one that ends the template's turns.
    special = ["<|pad|>", "<|end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    config = LlamaConfig(**SIZES, vocab_size=len(special) + 256, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    folder = make_random_model(tmp_path / "base", special=special, config=config, template=None)
    base = {"engine": "transformers", "path": str(folder)}
    Path("p.yaml").write_text(json.dumps({"name": "p", "models": {"base": base}, "stages": stages}))
    code, out, err = run_cli("run", "p.yaml")
    assert code == 0, out + err
    for name in ("sft", "rm", "ppo"):
        assert json.loads(Path(f"runs/p/models/{name}/training.json").read_text())["steps"] == 2


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


def chat(rows: int) -> list[dict[str, Any]]:
    asked = [({"role": "user", "content": f"What is {i}?"}, f"It is {i}.") for i in range(rows)]
    return [{"messages": [question, {"role": "assistant", "content": answer}]} for question, answer in asked]


def tiny(recipe: Path, folder: Path, architecture: str | None = None, *, packed: bool = False) -> list[str]:
    """Overrides that put tiny models and files in the place of what a recipe names, and end after two steps."""
    overrides = dict(_tiny(recipe, folder, architecture))
    return [f"{key}={value}" for key, value in overrides.items() if not (packed and key.endswith(".packing"))]


def _tiny(recipe: Path, folder: Path, architecture: str | None) -> Iterator[tuple[str, Any]]:
    pipeline = read_pipeline(str(recipe))
    for name, spec in pipeline.models.items():
        if isinstance(spec, TransformersModel):
            base = base_of(architecture or ARCHITECTURE[str(spec.hub)], folder / f"model-{name}")
            yield f"models.{name}", json.dumps({"engine": "transformers", "path": str(base)})
    for step in pipeline.steps:
        key = f"stages.{step.name}.{step.stage.kind}"
        if isinstance(step.stage, DataStage | PromptsStage):
            readers = [each.stage for each in pipeline.steps if step in each.sources]
            rows = PAIRS if any(stage.takes == "preferences" for stage in readers) else chat(8)
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
                rest = step.stage.trainer.lora.model_dump(mode="json", exclude=UNUSABLE)
                yield f"{key}.{step.stage.method}.lora", json.dumps(rest | {"r": 4})
