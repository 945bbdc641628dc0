"""The pipeline file: read, checked, overridden from the command line, and resolved.

Knows the shape of every stage and nothing of how a stage runs. Every error names file, line and key, and what would be
right. YAML is safe-loaded; a key that is unknown, or written twice, is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rlaif.errors import InputError, nearest
from rlaif.resources import find

Position = tuple[str | int, ...]
Checked = TypeVar("Checked", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


# ---------------------------------------------------------------- YAML with line numbers


class Document:
    """A YAML file as plain values, with the line on which each key and item stands."""

    def __init__(self, path: str, value: Any, lines: dict[Position, int]) -> None:
        self.path, self.value, self.lines = path, value, lines

    def line(self, position: Position) -> int | None:
        """The line of `position`, or of the nearest part of it that was written."""
        while position and position not in self.lines:
            position = position[:-1]
        return self.lines.get(position)

    def error(self, message: str, position: Position, fix: str | None = None) -> InputError:
        return InputError(message, file=self.path, line=self.line(position), key=dotted(position) or None, fix=fix)


def dotted(position: Position) -> str:
    return ".".join(str(part) for part in position)


def read_yaml(path: Path) -> Document:
    """Read a YAML mapping. Raises InputError for text that is not UTF-8 or not YAML, or that repeats a key."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", file=str(path), fix="save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise InputError(
            f"not valid YAML: {error.problem}", file=str(path), line=line, fix="check indentation, quotes and brackets"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {error}", file=str(path)) from None
    lines: dict[Position, int] = {}
    if node is not None:
        _collect_lines(node, (), lines, str(path))
    if not isinstance(value, dict):
        raise InputError("expected a mapping of keys to values", file=str(path), line=1)
    return Document(str(path), value, lines)


def _collect_lines(node: yaml.Node, position: Position, lines: dict[Position, int], path: str) -> None:
    lines.setdefault(position, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            place = (*position, key.value)
            if place in lines:
                raise InputError(
                    f"the key is written twice (first on line {lines[place]})",
                    file=path,
                    line=key.start_mark.line + 1,
                    key=dotted(place),
                    fix="keep one of the two",
                )
            lines[place] = key.start_mark.line + 1
            _collect_lines(child, place, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _collect_lines(child, (*position, index), lines, path)


def validated(model: type[Checked], value: Any, document: Document, position: Position) -> Checked:
    """`value` as a `model`, or an InputError that names the line and key of the first thing wrong."""
    if not isinstance(value, dict):
        found = "nothing" if value is None else repr(value)
        raise document.error(
            f"expected keys and values, found {found}", position, f"its keys are {', '.join(_keys(model))}"
        )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _first_error(error, model, document, position) from None


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _first_error(error: ValidationError, model: type[BaseModel], document: Document, position: Position) -> InputError:
    first = error.errors()[0]
    place = (*position, *(part for part in first["loc"] if not _is_union_tag(part)))
    found = repr(first.get("input"))
    if first["type"] == "extra_forbidden":
        known = _keys(_model_at(model, first["loc"][:-1]))
        return document.error("unknown key", place, nearest(str(first["loc"][-1]), known))
    if first["type"] == "missing":
        return document.error("the key is missing", place, f"add `{first['loc'][-1]}`")
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return document.error(f"{message}, found {found if len(found) < 80 else found[:77] + '...'}", place)


def _is_union_tag(part: str | int) -> bool:
    """Pydantic puts the name of the tried union member into an error's place; a user never wrote it."""
    return isinstance(part, str) and (part in _UNION_TAGS or not re.fullmatch(r"[\w.-]+", part))


_UNION_TAGS = {"str", "Sampler"}


def _model_at(model: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel]:
    for part in place:
        if part == "Sampler":
            return Sampler
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        inner = [a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(a, type)]
        model = next((a for a in inner if issubclass(a, BaseModel)), model)
    return model


# ---------------------------------------------------------------- models


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class SamplingSettings(Settings):
    """What a model or a stage says about sampling; unset fields are filled by the next outer level."""

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, gt=0)
    stop: tuple[str, ...] | None = None

    def over(self, *outer: SamplingSettings) -> dict[str, Any]:
        """The fields that are set here, or else in the nearest of `outer`."""
        merged: dict[str, Any] = {}
        for level in (*reversed(outer), self):
            merged |= {
                k: v for k, v in level.model_dump().items() if k in SamplingSettings.model_fields and v is not None
            }
        return merged


class TransformersModel(Settings):
    """A model in this process. `path` is a local or bundled folder, `hub` an id on the Hugging Face hub."""

    engine: Literal["transformers"]
    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    batch_size: int = Field(default=256, gt=0)
    sampling: SamplingSettings = SamplingSettings()

    @model_validator(mode="after")
    def _one_source(self) -> TransformersModel:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` (a folder) or `hub` (an id on the hub)")
        return self


class Price(Settings):
    """Currency units per million tokens."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class OpenAIModel(Settings):
    """A model behind an OpenAI-compatible server. The key comes from the environment variable `api_key_env`."""

    engine: Literal["openai"]
    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    revision: str | None = None
    identity: str | None = None  # declares that an endpoint which moved is still the same model
    concurrency: int = Field(default=32, gt=0)
    timeout: float = Field(default=600, gt=0)  # seconds for one request
    retries: int = Field(default=6, ge=0)
    price: Price | None = None
    sampling: SamplingSettings = SamplingSettings()

    @field_validator("base_url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        if not re.match(r"^https?://[^/@\s]+(/|$)", url):
            raise ValueError("expected a URL such as http://127.0.0.1:8000/v1, without user name or key")
        return url.rstrip("/")


ModelSpec = TransformersModel | OpenAIModel
ENGINES: dict[str, type[TransformersModel] | type[OpenAIModel]] = {
    "transformers": TransformersModel,
    "openai": OpenAIModel,
}


# ---------------------------------------------------------------- stages


class Stage(Settings):
    """One step of a pipeline. `reads` names the kinds of stage it can take its input from."""

    kind: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()

    name: Name | None = None
    source: Name | None = Field(default=None, alias="from")


class FileStage(Stage):
    path: str | None = None
    hub: str | None = None
    hub_split: str = "train"  # the split's name on the hub; the train / validation / held-out split is by hash
    take: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_source(self) -> FileStage:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` (a file) or `hub` (a data set id on the hub)")
        return self


class DataStage(FileStage):
    """Demonstrations that exist: conversations that end with an assistant turn."""

    kind = "data"


class PromptsStage(FileStage):
    """Prompts to be answered. `take` keeps the first n of the split."""

    kind = "prompts"
    column: str | None = None
    split: Literal["train", "validation", "all"] = (
        "train"  # by hash; what trains leaves held-out prompts out in any case
    )


class Sampler(SamplingSettings):
    """One entry of a sample stage: a model and how it is asked."""

    model: Name
    name: Name | None = None  # as it appears in the data; needed when one model samples in several ways
    system: str | None = None


class SampleStage(Stage):
    """Row stage: candidates for each prompt. With `pick`, each prompt draws that many of the samplers by hash."""

    kind = "sample"
    reads = ("prompts",)
    models: tuple[str | Sampler, ...] = Field(min_length=1)
    per_prompt: int = Field(default=1, gt=0)  # completions from each sampler
    pick: int | None = Field(default=None, gt=0)
    sampling: SamplingSettings = SamplingSettings()

    def samplers(self) -> list[Sampler]:
        return [m if isinstance(m, Sampler) else Sampler(model=m) for m in self.models]

    @model_validator(mode="after")
    def _names_are_unique(self) -> SampleStage:
        names = [s.name or s.model for s in self.samplers()]
        if repeated := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"two samplers are called {repeated!r}; give each its own `name`")
        if self.pick is not None and self.pick > len(names):
            raise ValueError(f"`pick` asks for {self.pick} of {len(names)} samplers")
        return self


class Rater(Settings):
    """How a judge rates: one call per prompt and aspect, all candidates in one judge prompt, in a hashed order."""

    model: Name
    rubric: str
    template: str = "prompts/rate.jinja"
    answers: Literal["json", "lines"] = "json"
    reask: int = Field(default=1, ge=0)  # how often an unreadable reply is asked again, with another seed
    sampling: SamplingSettings = SamplingSettings(temperature=0.0, max_tokens=1024)


class RateStage(Rater, Stage):
    kind = "rate"
    reads = ("sample",)


class PairStage(Stage):
    """Table stage: preferences from ratings. Ties, unparsed ratings and identical texts are dropped and counted."""

    kind = "pair"
    reads = ("rate",)
    rule: Literal["zephyr", "best-worst"] = "zephyr"
    min_margin: float = Field(default=0.0, ge=0)  # in units of the rubric's scale; the margin must be larger than 0


class TrainerSettings(Settings):
    """What both trainers take. Sizes are in sequences and tokens; one epoch is one pass over the training split."""

    base: Name
    name: Name
    data: Name | None = None
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, gt=0)
    accumulate: int = Field(default=1, gt=0)
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of the steps
    max_length: int = Field(default=1024, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: int = Field(default=50, gt=0)
    seed: int = 0


class SFTSettings(TrainerSettings):
    learning_rate: float = Field(default=2e-5, gt=0)
    template: str | None = None  # a marked chat template; without it the base model's own


class DPOSettings(TrainerSettings):
    learning_rate: float = Field(default=5e-7, gt=0)
    beta: float = Field(default=0.1, gt=0)


class TrainStage(Stage):
    """Table stage: one trained model, which is a model from here on."""

    kind = "train"
    sft: SFTSettings | None = None
    dpo: DPOSettings | None = None

    @model_validator(mode="after")
    def _one_trainer(self) -> TrainStage:
        if (self.sft is None) == (self.dpo is None):
            raise ValueError("give exactly one trainer: `sft` or `dpo`")
        if self.source is not None:
            raise ValueError("`from` does not belong here; name the data with `data` inside the trainer")
        return self

    @property
    def trainer(self) -> SFTSettings | DPOSettings:
        chosen = self.sft or self.dpo
        assert chosen is not None
        return chosen


class MeasureStage(Stage):
    """Table stage: the named models on prompts that nothing was trained on."""

    kind = "measure"
    reads = ("prompts",)
    models: tuple[Name, ...] = Field(min_length=1)
    baseline: Name | None = None  # the win rate and the paired differences are against this model
    split: Literal["validation", "held-out"] = "held-out"
    take: int | None = Field(default=None, gt=0)
    judge: Literal["gold"] | None = None  # the truth of the embedded world: for measuring only
    rate: Rater | None = None  # the judge whose point-wise ratings decide the win rate
    sampling: SamplingSettings = SamplingSettings(temperature=1.0)

    @model_validator(mode="after")
    def _baseline_is_measured(self) -> MeasureStage:
        if self.baseline is not None and self.baseline not in self.models:
            raise ValueError(f"the baseline {self.baseline!r} is not among the measured models")
        return self


STAGES: dict[str, type[Stage]] = {
    stage.kind: stage
    for stage in (DataStage, PromptsStage, SampleStage, RateStage, PairStage, TrainStage, MeasureStage)
}
ROW_STAGES = ("sample", "rate")


# ---------------------------------------------------------------- the pipeline


class Step:
    """A stage in its place: its number, its name, and the earlier step it reads."""

    def __init__(self, number: int, name: str, stage: Stage, source: Step | None) -> None:
        self.number, self.name, self.stage, self.source = number, name, stage, source

    def __repr__(self) -> str:
        return f"Step({self.number}, {self.name!r})"


class Pipeline:
    """A checked pipeline file: every name resolved, every referenced file found."""

    def __init__(
        self, document: Document, name: str, seed: int, models: dict[str, ModelSpec], steps: list[Step]
    ) -> None:
        self.document, self.name, self.seed, self.models, self.steps = document, name, seed, models, steps

    def trained(self) -> dict[str, Step]:
        return {s.stage.trainer.name: s for s in self.steps if isinstance(s.stage, TrainStage)}

    def error(self, step: Step, message: str, key: str | None = None, fix: str | None = None) -> InputError:
        position: Position = ("stages", step.number - 1, step.stage.kind, *((key,) if key else ()))
        return self.document.error(message, position, fix)

    def resolved(self) -> dict[str, Any]:
        """The pipeline with every default written out, as it is saved in the run folder."""
        return {
            "name": self.name,
            "seed": self.seed,
            "models": {name: spec.model_dump(mode="json") for name, spec in self.models.items()},
            "stages": [
                {s.stage.kind: s.stage.model_dump(mode="json", exclude={"source"}) | _links(s)} for s in self.steps
            ],
        }


def _links(step: Step) -> dict[str, Any]:
    return {"name": step.name} | ({"from": step.source.name} if step.source else {})


def read_pipeline(path: str, overrides: Sequence[str] = ()) -> Pipeline:
    """Read and check a pipeline file. Raises InputError for anything that is wrong with it."""
    document = read_yaml(find(path))
    for override in overrides:
        _apply(document, override)
    known = {"name", "seed", "models", "stages"}
    for key in document.value:
        if key not in known:
            raise document.error("unknown key", (str(key),), nearest(str(key), known))
    name = document.value.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise document.error(
            f"expected letters, digits, '.', '_' or '-', found {name!r}", ("name",), "add `name: my-run`"
        )
    seed = document.value.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise document.error(f"expected a whole number from 0, found {seed!r}", ("seed",))
    models = _read_models(document)
    return Pipeline(document, name, seed, models, _read_steps(document, models))


def _apply(document: Document, override: str) -> None:
    """Apply one `key.key=value` from the command line; items count from 0, a stage also goes by its name."""
    written, equals, text = override.partition("=")
    if not equals or not written:
        raise InputError(f"{override!r} is not of the form key=value", fix="for example stages.2.prompts.take=50")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"the value of {override!r} is not valid YAML") from None
    target: Any = document.value
    *parents, last = written.split(".")
    for depth, part in enumerate(parents):
        target = _child(target, part, written, parents[:depth])
    if isinstance(target, list):
        index = _item(target, last, written, parents)
        target[index] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise InputError(f"{'.'.join(parents)} holds no keys", key=written)


def _child(target: Any, part: str, written: str, above: list[str]) -> Any:
    if isinstance(target, list):
        return target[_item(target, part, written, above)]
    if isinstance(target, dict) and part in target:
        return target[part]
    known = [str(key) for key in target] if isinstance(target, dict) else []
    raise InputError(
        f"there is no `{part}` in {'.'.join(above) or 'the pipeline'}",
        key=written,
        fix=nearest(part, known) if known else None,
    )


def _item(target: list[Any], part: str, written: str, above: list[str]) -> int:
    """The index that `part` means: a number, or the only stage of that kind or name."""
    if part.isdigit() and int(part) < len(target):
        return int(part)
    named = [
        i
        for i, item in enumerate(target)
        if isinstance(item, dict)
        and (part in item or any(isinstance(v, dict) and v.get("name") == part for v in item.values()))
    ]
    if len(named) == 1:
        return named[0]
    problem = (
        f"{len(named)} items of {'.'.join(above)} match `{part}`" if named else f"{'.'.join(above)} has no `{part}`"
    )
    raise InputError(problem, key=written, fix=f"use a number from 0 to {len(target) - 1}")


def _read_models(document: Document) -> dict[str, ModelSpec]:
    section = document.value.get("models")
    if not isinstance(section, dict) or not section:
        raise document.error(
            "expected at least one model", ("models",), "add `models:` with a name and an engine for each"
        )
    models: dict[str, ModelSpec] = {}
    for name, value in section.items():
        place = ("models", str(name))
        engine = value.get("engine") if isinstance(value, dict) else None
        if engine not in ENGINES:
            raise document.error(
                f"unknown engine {engine!r}" if engine else "the key is missing",
                (*place, "engine"),
                nearest(str(engine), ENGINES),
            )
        spec = validated(ENGINES[engine], value, document, place)
        if isinstance(spec, TransformersModel) and spec.path is not None:
            find(spec.path, file=document.path, line=document.line((*place, "path")), key=dotted((*place, "path")))
        models[str(name)] = spec
    return models


def _read_steps(document: Document, models: dict[str, ModelSpec]) -> list[Step]:
    section = document.value.get("stages")
    if not isinstance(section, list) or not section:
        raise document.error("expected a list of stages", ("stages",), f"a stage is one of {', '.join(STAGES)}")
    steps: list[Step] = []
    available = set(models)
    for index, item in enumerate(section):
        place: Position = ("stages", index)
        if not isinstance(item, dict) or len(item) != 1:
            raise document.error("expected one stage: its kind and its settings", place, "write `- sample: {...}`")
        kind = str(next(iter(item)))
        if kind not in STAGES:
            raise document.error(f"unknown stage {kind!r}", (*place, kind), nearest(kind, STAGES))
        stage = validated(STAGES[kind], item[kind], document, (*place, kind))
        name = stage.name or (stage.trainer.name if isinstance(stage, TrainStage) else _unused(kind, steps))
        if any(step.name == name for step in steps):
            raise document.error(f"two stages are called {name!r}", (*place, kind), "give each its own `name`")
        _check_models(stage, available, document, (*place, kind))
        if isinstance(stage, TrainStage) and isinstance(models.get(stage.trainer.base), OpenAIModel):
            raise document.error(
                "a model behind a server cannot be trained here",
                (*place, kind, *_trainer_key(stage), "base"),
                "give a base whose engine is `transformers`",
            )
        step = Step(index + 1, name, stage, _source(stage, steps, document, (*place, kind)))
        if isinstance(stage, TrainStage):
            if stage.trainer.name in available:
                raise document.error(
                    f"there already is a model called {stage.trainer.name!r}",
                    (*place, kind, *_trainer_key(stage), "name"),
                )
            available.add(stage.trainer.name)
        _check_files(stage, document, (*place, kind))
        steps.append(step)
    return steps


def _unused(kind: str, steps: list[Step]) -> str:
    taken = sum(step.stage.kind == kind for step in steps)
    return kind if not taken else f"{kind}-{taken + 1}"


def _trainer_key(stage: TrainStage) -> tuple[str]:
    return ("sft",) if stage.sft else ("dpo",)


def _check_models(stage: Stage, available: set[str], document: Document, place: Position) -> None:
    """Every model a stage names must be in `models:` or trained by an earlier stage."""
    named: list[tuple[str, Position]] = []
    if isinstance(stage, SampleStage):
        named = [(s.model, ("models", i)) for i, s in enumerate(stage.samplers())]
    elif isinstance(stage, Rater):
        named = [(stage.model, ("model",))]
    elif isinstance(stage, TrainStage):
        named = [(stage.trainer.base, (*_trainer_key(stage), "base"))]
    elif isinstance(stage, MeasureStage):
        named = [(model, ("models", i)) for i, model in enumerate(stage.models)]
        named += [(stage.rate.model, ("rate", "model"))] if stage.rate else []
    for model, key in named:
        if model not in available:
            raise document.error(f"unknown model {model!r}", (*place, *key), nearest(model, available))


def _source(stage: Stage, steps: list[Step], document: Document, place: Position) -> Step | None:
    """The earlier step this stage reads: the one it names, else the nearest of the right kind."""
    if isinstance(stage, TrainStage):
        reads: tuple[str, ...] = ("data",) if stage.sft else ("pair",)
        wanted, place = stage.trainer.data, (*place, *_trainer_key(stage), "data")
    else:
        reads, wanted = stage.reads, stage.source
        place = (*place, "from")
    if not reads:
        if wanted is not None:
            raise document.error(f"a {stage.kind} stage reads no other stage", place, "take `from` out")
        return None
    fitting = [step for step in steps if step.stage.kind in reads]
    kinds = " or ".join(reads)
    if wanted is None:
        if not fitting:
            raise document.error(
                f"no earlier stage of kind {kinds} to read from", place, f"put a `{reads[0]}` stage before it"
            )
        return fitting[-1]
    if chosen := next((step for step in fitting if step.name == wanted), None):
        return chosen
    raise document.error(
        f"no earlier stage of kind {kinds} is called {wanted!r}",
        place,
        nearest(wanted, [s.name for s in fitting]) if fitting else None,
    )


def _check_files(stage: Stage, document: Document, place: Position) -> None:
    """Every path a stage names must lead somewhere before anything runs."""
    named: list[tuple[str | None, Position]] = []
    if isinstance(stage, FileStage):
        named = [(stage.path, ("path",))]
    elif isinstance(stage, Rater):
        named = [(stage.rubric, ("rubric",)), (stage.template, ("template",))]
    elif isinstance(stage, TrainStage) and stage.sft:
        named = [(stage.sft.template, ("sft", "template"))]
    elif isinstance(stage, MeasureStage) and stage.rate:
        named = [(stage.rate.rubric, ("rate", "rubric")), (stage.rate.template, ("rate", "template"))]
    for path, key in named:
        if path is not None:
            find(path, file=document.path, line=document.line((*place, *key)), key=dotted((*place, *key)))


def api_key(spec: OpenAIModel) -> str:
    """The key from the environment; servers on this machine usually want none."""
    return os.environ.get(spec.api_key_env) or "none"
