"""The pipeline file: overrides, levels of sampling settings, keys for servers, and that what is saved reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.config import (
    MeasureStage,
    OpenAIModel,
    Pipeline,
    Rater,
    RateStage,
    SamplingSettings,
    Step,
    read_pipeline,
)
from rlaif.engines.open import api_key
from rlaif.errors import InputError

PIPELINE = """\
name: all
models:
  one: &one {engine: openai, model: one, base_url: "http://127.0.0.1:9/v1"}
  two: *one
  base: {engine: transformers, path: tiny/base, sampling: {max_tokens: 48}}
stages:
  - data: {path: prompts/examples.jsonl}
  - train: {sft: {base: base, name: tuned, epochs: 3}}
  - prompts: {path: prompts/examples.jsonl, name: asked}
  - prompts: {path: prompts/examples.jsonl}
  - sample: {models: [one, {model: two, name: cool, temperature: 0.2}], per_prompt: 2}
  - rate: {model: one, rubric: prompts/rubrics/ultrafeedback.yaml}
  - pair: {}
  - train: {name: later, dpo: {base: tuned, name: final}}
  - measure: {models: [base, final], rate: {model: one, rubric: prompts/rubrics/ultrafeedback.yaml}}
"""


def read(folder: Path, *overrides: str, text: str = PIPELINE) -> Pipeline:
    (folder / "p.yaml").write_text(text)
    return read_pipeline(str(folder / "p.yaml"), overrides)


def shape(pipeline: Pipeline) -> list[tuple[int, str, Any, str | None]]:
    def settings(step: Step) -> Any:
        trainer = {"sft": {"data"}, "dpo": {"data"}}  # links, which are compared as names
        return step.stage.model_dump(exclude={"source": True, "name": True, **trainer})

    return [(s.number, s.name, settings(s), s.source.name if s.source else None) for s in pipeline.steps]


# ---------------------------------------------------------------- overrides


def test_a_stage_goes_by_the_name_that_plan_shows(tmp_path: Path) -> None:
    names = [step.name for step in read(tmp_path).steps]
    assert names == ["data", "tuned", "asked", "prompts-2", "sample", "rate", "pair", "later", "measure"]


@pytest.mark.parametrize(
    ("stage", "key", "number"),
    [
        ("data", "data.take", 0),  # its kind
        ("prompts-2", "prompts.take", 3),  # its kind and number
        ("asked", "prompts.take", 2),  # its name
        ("tuned", "train.sft.batch_size", 1),  # its trainer's name
        ("later", "train.dpo.batch_size", 7),  # its name, where its trainer has another
        ("8", "measure.take", 8),  # its place
    ],
)
def test_an_override_finds_its_stage(tmp_path: Path, stage: str, key: str, number: int) -> None:
    before, after = read(tmp_path), read(tmp_path, f"stages.{stage}.{key}=7")
    changed = [i for i, (a, b) in enumerate(zip(before.steps, after.steps, strict=True)) if a.stage != b.stage]
    assert changed == [number]


@pytest.mark.parametrize("stage", ["final", "train", "prompts", "prompts-1", "9", "-1"])
def test_an_override_by_any_other_name_is_refused(tmp_path: Path, stage: str) -> None:
    with pytest.raises(InputError, match=f"stages has no `{stage}`"):
        read(tmp_path, f"stages.{stage}.measure.take=7")


def test_an_override_makes_the_mappings_it_needs(tmp_path: Path) -> None:
    found = read(tmp_path, "models.one.sampling.temperature=0.5", "models.one.sampling.top_p=0.9", "seed=3")
    assert found.models["one"].sampling == SamplingSettings(temperature=0.5, top_p=0.9)
    assert found.seed == 3


def test_an_override_of_one_model_leaves_its_alias_alone(tmp_path: Path) -> None:
    found = read(tmp_path, "models.one.model=other")
    assert [found.models[name].model for name in ("one", "two")] == ["other", "one"]


def test_an_error_names_the_file_or_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text=PIPELINE.replace("epochs: 3", "epochs: 0"))
    assert (caught.value.line, caught.value.key) == (8, "stages.1.train.sft.epochs")
    with pytest.raises(InputError) as caught:
        read(tmp_path, "stages.tuned.train.sft.epochs=0")
    assert (caught.value.file, caught.value.line) == ("command line", None)
    assert caught.value.key == "stages.tuned.train.sft.epochs"


def test_a_secret_in_an_override_is_not_repeated(tmp_path: Path) -> None:
    for override in (
        "models.one.base_url=http://me:planted@host/v1",
        "models.one.base_url=http://host/v1?key=planted",
        "models.one.api_key_env=sk-planted",
        "models.one.api_key=planted",
        "models.one.base_url=[planted",
    ):
        with pytest.raises(InputError) as caught:
            read(tmp_path, override)
        assert "planted" not in str(caught.value) and "models.one" in str(caught.value)


# ---------------------------------------------------------------- what is saved


@pytest.mark.parametrize("path", [None, "pipelines/quickstart.yaml", "pipelines/ultrafeedback.yaml"])
def test_a_saved_pipeline_reads_back_to_the_same(tmp_path: Path, path: str | None) -> None:
    first = read(tmp_path) if path is None else read_pipeline(path)
    (tmp_path / "saved.yaml").write_text(yaml.safe_dump(first.resolved(tmp_path), sort_keys=False))
    again = read_pipeline(str(tmp_path / "saved.yaml"))
    assert again.resolved(tmp_path) == first.resolved(tmp_path)
    assert (again.name, again.seed, again.models) == (first.name, first.seed, first.models)
    assert shape(again) == shape(first)


# ---------------------------------------------------------------- levels of sampling settings


def rated(**settings: Any) -> RateStage:
    return RateStage.model_validate({"model": "judge", "rubric": "r", **settings})


def test_a_judge_is_asked_at_zero_unless_someone_says_otherwise() -> None:
    silent, warm = SamplingSettings(), SamplingSettings(temperature=0.7)
    assert rated().sampling.over(silent) == {"temperature": 0.0, "max_tokens": 1024}
    assert rated(sampling={"max_tokens": 2048}).sampling.over(silent) == {"temperature": 0.0, "max_tokens": 2048}
    assert rated(sampling={"top_p": 0.5}).sampling.over(warm) == {"temperature": 0.7, "max_tokens": 1024, "top_p": 0.5}
    assert rated(sampling={"temperature": 0.1}).sampling.over(warm)["temperature"] == 0.1
    assert Rater(model="judge", rubric="r", sampling=warm).sampling.over()["temperature"] == 0.7


def test_a_measure_keeps_its_temperature_beside_what_is_said() -> None:
    stage = MeasureStage.model_validate({"models": ["one"], "sampling": {"max_tokens": 48}})
    assert stage.sampling.over(SamplingSettings()) == {"temperature": 1.0, "max_tokens": 48}


def test_a_sampler_wins_over_its_stage_and_the_stage_over_the_model(tmp_path: Path) -> None:
    found = read(tmp_path, "stages.sample.sample.sampling={temperature: 0.5, max_tokens: 9}")
    stage = found.steps[4].stage
    model = SamplingSettings(temperature=0.9, max_tokens=5, stop=("x",))
    plain, cool = (sampler.over(stage.sampling, model) for sampler in stage.models)
    assert plain == {"temperature": 0.5, "max_tokens": 9, "stop": ("x",)}
    assert cool == {"temperature": 0.2, "max_tokens": 9, "stop": ("x",)}


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("url", "variable", "expected"),
    [
        (None, None, "sk-openai"),
        ("https://API.openai.com/v1/", None, "sk-openai"),
        ("http://api.openai.com/v1", None, "none"),
        ("https://api.openai.com.evil.org/v1", None, "none"),
        ("https://api.together.xyz/v1", None, "none"),
        ("http://127.0.0.1:8000/v1", None, "none"),
        ("http://localhost:8000/v1", "OPENAI_API_KEY", "sk-openai"),
        ("https://api.together.xyz/v1", "TOGETHER_KEY", "sk-together"),
        (None, "UNSET_KEY", "none"),
    ],
)
def test_a_key_goes_only_where_it_belongs(
    monkeypatch: pytest.MonkeyPatch, url: str | None, variable: str | None, expected: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("TOGETHER_KEY", "sk-together")
    monkeypatch.delenv("UNSET_KEY", raising=False)
    settings = {"engine": "openai", "model": "m", "api_key_env": variable} | ({"base_url": url} if url else {})
    assert api_key(OpenAIModel.model_validate(settings)) == expected
