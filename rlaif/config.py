"""The pipeline file: read, checked, overridden from the command line, and resolved.

Knows the shape of every stage and nothing of how a stage runs. Every error names file, line and key, and what would be
right. YAML is safe-loaded; a key that is unknown, or written twice, is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from rlaif.errors import InputError, nearest
from rlaif.records import oneline
from rlaif.resources import find, read_text

Position = tuple[str | int, ...]
Checked = TypeVar("Checked", bound=BaseModel)
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every random generator takes


# ---------------------------------------------------------------- YAML with line numbers


class Document:
    """A YAML file as plain values, with the line on which each key and item stands."""

    def __init__(self, path: str, value: Any, lines: dict[Position, int]) -> None:
        self.path, self.value, self.lines = path, value, lines
        self.overridden: dict[Position, str] = {}  # what the command line set, in the words it was written in

    def line(self, position: Position) -> int | None:
        """The line of `position`, or of the nearest part of it that was written."""
        while position and position not in self.lines:
            position = position[:-1]
        return self.lines.get(position)

    def where(self, position: Position) -> dict[str, Any]:
        """`file`, `line` and `key` for an error about the value at `position`, wherever that value was written."""
        for end in range(len(position), 0, -1):
            if written := self.overridden.get(position[:end]):
                return {"file": COMMAND_LINE, "key": ".".join([written, *map(str, position[end:])])}
        return {"file": self.path, "line": self.line(position), "key": dotted(position) or None}

    def error(self, message: str, position: Position, fix: str | None = None) -> InputError:
        return InputError(message, **self.where(position), fix=fix)


COMMAND_LINE = "command line"
MOST_NODES = 100_000  # aliases of aliases write a file of a few lines that holds millions of values


def dotted(position: Position) -> str:
    return ".".join(str(part) for part in position)


def read_yaml(path: Path) -> Document:
    """Read a YAML mapping. Raises InputError for text that is not UTF-8 or not YAML, or that repeats a key."""
    value, lines = _load(read_text(path), str(path))
    if not isinstance(value, dict):
        raise InputError("expected a mapping of keys to values", file=str(path), line=1)
    return Document(str(path), value, lines)


def _load(text: str, path: str) -> tuple[Any, dict[Position, int]]:
    """The value that `text` spells, and where each part of it stands. No two parts of it are one object."""
    lines: dict[Position, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _collect_lines(node, (), lines, path)
        return _unshared(loader.construct_document(node)), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        scalar = isinstance(error, yaml.constructor.ConstructorError)
        fix = "put it in quotes if it is text" if scalar else "check indentation, quotes and brackets"
        raise InputError(f"not valid YAML: {error.problem}", file=path, line=line, fix=fix) from None
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {oneline(str(error))}", file=path) from None
    except RecursionError:
        raise InputError("the values are nested too deeply", file=path, fix="no setting needs it") from None


class _Loader(yaml.SafeLoader):
    """PyYAML lets Python's own errors through for a scalar that only looks like a date, a number or a truth value."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > 64:
                raise ValueError
        except (ValueError, LookupError, AttributeError):
            problem = f"{found(node.value)} is not a usable {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
        return value


def _unshared(value: Any) -> Any:
    """A copy in which an alias has become a value of its own, so that an override of one place changes no other."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value


def _collect_lines(
    node: yaml.Node, position: Position, lines: dict[Position, int], path: str, above: tuple[yaml.Node, ...] = ()
) -> None:
    line = node.start_mark.line + 1
    lines.setdefault(position, line)
    if node in above:
        raise InputError(
            "the value contains itself", file=path, line=line, key=dotted(position), fix="remove the alias"
        )
    if len(lines) > MOST_NODES:
        raise InputError("too many values", file=path, line=line, fix="use fewer aliases (`*`)")
    above = (*above, node)
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise InputError("a key must be text", file=path, line=line, key=dotted(position) or None)
            place = (*position, key.value)
            if place in lines:
                raise InputError(
                    f"the key is written twice (first on line {lines[place]})",
                    file=path,
                    line=line,
                    key=dotted(place),
                    fix="keep one of the two",
                )
            lines[place] = line
            _collect_lines(child, place, lines, path, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _collect_lines(child, (*position, index), lines, path, above)


def found(value: Any) -> str:
    """A value as an error shows it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def validated(model: type[Checked], value: Any, document: Document, position: Position) -> Checked:
    """`value` as a `model`, or an InputError that names the line and key of the first thing wrong."""
    if not isinstance(value, dict):
        raise document.error(
            f"expected keys and values, found {found(value)}", position, f"its keys are {', '.join(_keys(model))}"
        )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _first_error(error, model, document, position) from None


def read_named_set(model: type[Checked], path: str, items: str) -> tuple[Checked, Document]:
    """A file that is a set of things with an `id` each, under the key `items`, and the document it stands in.

    Raises InputError with line and key, also for two that share an id.
    """
    document = read_yaml(find(path))
    found = validated(model, document.value, document, ())
    seen: set[str] = set()
    for index, item in enumerate(getattr(found, items)):
        if item.id in seen:
            place: Position = (items, index, "id")
            raise document.error(f"two {items} are called {item.id!r}", place, "give each its own `id`")
        seen.add(item.id)
    return found, document


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _first_error(error: ValidationError, model: type[BaseModel], document: Document, position: Position) -> InputError:
    first = error.errors()[0]
    place = (*position, *(part for part in first["loc"] if part != "[key]"))  # pydantic's word for "in the key itself"
    if first["type"] == "extra_forbidden":
        known = _keys(_model_at(model, first["loc"][:-1]))
        return document.error("unknown key", place, nearest(str(first["loc"][-1]), known))
    if first["type"] == "missing":
        return document.error("the key is missing", place, f"add `{first['loc'][-1]}`")
    if first["type"] == "value_error":  # our own words, which say what was found; it may be a secret
        return document.error(first["msg"].removeprefix("Value error, "), place)
    message = _PLAIN.get(first["type"]) or first["msg"][0].lower() + first["msg"][1:]
    return document.error(f"{message}, found {found(first['input'])}", place)


_PLAIN = {
    "dict_type": "expected keys and values",
    "model_type": "expected keys and values",
    "invalid_key": "expected a key that is text",
    "string_type": "expected text",
    "tuple_type": "expected a list",
}


def _model_at(model: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel]:
    for part in place:
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
    """What a model or a stage says about sampling; unset fields are filled by the next outer level.

    `defaults` are those of a kind of stage. They stand below what anyone wrote, each field by itself.
    """

    defaults: ClassVar[dict[str, Any]] = {}

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, gt=0)
    stop: tuple[str, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_another_kind(cls, value: Any) -> Any:
        return value.model_dump() if isinstance(value, SamplingSettings) else value

    def over(self, *outer: SamplingSettings) -> dict[str, Any]:
        """Each field as it is set here, or else in the nearest of `outer`, or else by this kind of stage."""
        merged: dict[str, Any] = {}
        levels = (*reversed(outer), self)
        for level in levels:
            merged |= level.defaults
        for level in levels:
            merged |= level.model_dump(include=set(SamplingSettings.model_fields), exclude_none=True)
        return merged


class JudgeSampling(SamplingSettings):
    """A judge is asked for its likeliest rating, with room to explain it."""

    defaults = {"temperature": 0.0, "max_tokens": 1024}


class RevisionSampling(SamplingSettings):
    """Critiques and revisions are drawn from the model, as in the paper, with room to explain."""

    defaults = {"temperature": 1.0, "max_tokens": 1024}


class MeasureSampling(SamplingSettings):
    """At temperature 1 the samples are the model's own distribution, which is what a KL divergence is about."""

    defaults = {"temperature": 1.0}


class LocalModel(Settings):
    """A model whose weights are here. `path` is a local or bundled folder, `hub` an id on the Hugging Face hub."""

    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    sampling: SamplingSettings = SamplingSettings()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` (a folder) or `hub` (an id on the hub)")
        return self


class TransformersModel(LocalModel):
    """A model in this process, run by transformers."""

    engine: Literal["transformers"]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    batch_size: int = Field(default=256, gt=0)


class VLLMModel(LocalModel):
    """A model in this process, run by vLLM. `options` go to `vllm.LLM` as they are (max_model_len, ...)."""

    engine: Literal["vllm"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: int = Field(default=1024, gt=0)  # calls handed over at a time; vLLM batches them itself
    options: dict[str, Any] = {}


class Price(Settings):
    """Currency units per million tokens."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


OPENAI = "https://api.openai.com"


class OpenAIModel(Settings):
    """A model behind an OpenAI-compatible server. Its key, if it wants one, comes from the environment."""

    engine: Literal["openai"]
    model: str
    base_url: str = f"{OPENAI}/v1"
    api_key_env: str | None = None  # the variable's name; the key itself never stands in a file
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
        parts = urlsplit(url)
        odd = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        if odd or "@" in parts.netloc or re.search(r"[?#\s]", url):
            raise ValueError(
                "expected a URL such as http://127.0.0.1:8000/v1, without user name or key, `?` or `#`: "
                "it is saved with the run"
            )
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_variable(cls, variable: str | None) -> str | None:
        if variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            raise ValueError("expected the name of an environment variable, never the key itself")
        return variable

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key: the one named, or OpenAI's own for OpenAI alone.

        Any other server gets a key only if the pipeline file says which, so that none is sent where it does not belong.
        """
        parts = urlsplit(self.base_url)
        return self.api_key_env or ("OPENAI_API_KEY" if f"{parts.scheme}://{parts.hostname}" == OPENAI else None)


ModelSpec = TransformersModel | OpenAIModel | VLLMModel
ENGINES: dict[str, type[TransformersModel] | type[OpenAIModel] | type[VLLMModel]] = {
    "transformers": TransformersModel,
    "openai": OpenAIModel,
    "vllm": VLLMModel,
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
    """Prompts to be answered. `take` keeps the first n of the split, or of the splits where several are named."""

    kind = "prompts"
    column: str | None = None
    # By hash. What trains learns from the training split and is checked on the validation split, whatever stands here.
    split: Literal["train", "validation", "all"] | tuple[Literal["train", "validation"], ...] = "train"


class Sampler(SamplingSettings):
    """One entry of a sample stage: a model and how it is asked."""

    model: Name
    name: Name | None = None  # as it appears in the data; needed when one model samples in several ways
    system: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class SampleStage(Stage):
    """Row stage: candidates for each prompt. With `pick`, each prompt draws that many of the samplers by hash."""

    kind = "sample"
    reads = ("prompts",)
    models: tuple[Sampler, ...] = Field(min_length=1)
    per_prompt: int = Field(default=1, gt=0)  # completions from each sampler
    pick: int | None = Field(default=None, gt=0)
    sampling: SamplingSettings = SamplingSettings()

    @property
    def candidates(self) -> int:
        """How many each prompt gets."""
        return (self.pick or len(self.models)) * self.per_prompt

    @model_validator(mode="after")
    def _names_are_unique(self) -> SampleStage:
        names = [s.name or s.model for s in self.models]
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
    sampling: JudgeSampling = JudgeSampling()


class RateStage(Rater, Stage):
    kind = "rate"
    reads = ("sample",)


class ReviseStage(Stage):
    """Row stage: each candidate critiqued and rewritten under drawn principles, `revisions` times, each kept."""

    kind = "revise"
    reads = ("sample",)
    model: Name
    constitution: str
    revisions: int = Field(default=1, gt=0)
    critique_template: str = "prompts/critique.jinja"
    revision_template: str = "prompts/revise.jinja"
    sampling: RevisionSampling = RevisionSampling()


class CompareStage(Stage):
    """Row stage: which of two candidates a drawn principle prefers, asked in both orders.

    A `soft` verdict is the probability of the two numbers as the first token, a `hard` one the number written. With
    `reasons` the judge first explains and is then asked for its verdict, which `clamp` keeps from being too sure.
    """

    kind = "compare"
    reads = ("sample",)
    model: Name
    constitution: str
    template: str = "prompts/compare.jinja"
    ending: str = "Which completion follows the principle better? Answer with its number alone, 1 or 2."
    verdicts: Literal["soft", "hard"] = "soft"
    reasons: bool = False
    clamp: tuple[Share, Share] | None = None
    sampling: JudgeSampling = JudgeSampling()

    @model_validator(mode="after")
    def _clamp_is_for_reasons(self) -> CompareStage:
        if self.clamp is not None and not (self.reasons and self.verdicts == "soft"):
            raise ValueError("`clamp` is for soft verdicts after reasons; take it out, or set `reasons: true`")
        if self.clamp is not None and not self.clamp[0] < 0.5 < self.clamp[1]:
            raise ValueError("`clamp` needs a share below one half and one above, such as [0.4, 0.6]")
        return self


class PairStage(Stage):
    """Table stage: preferences from ratings or comparisons. Ties, unparsed and identical texts are dropped, counted."""

    kind = "pair"
    reads = ("rate", "compare")
    rule: Literal["zephyr", "best-worst", "compared"] | None = None  # ratings: zephyr; comparisons: compared
    # In units of the rubric's scale, or of probability (chosen minus rejected); the margin must be larger than 0.
    min_margin: float = Field(default=0.0, ge=0)


class Training(Settings):
    """What every trainer takes. Sizes are in sequences and tokens."""

    base: Name
    name: Name
    data: Name | tuple[Name, ...] | None = None  # the stages it learns from; without it the nearest of the right kind
    learning_rate: float = Field(gt=0)
    max_length: int = Field(default=1024, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: int = Field(default=50, gt=0)
    seed: Seed = 0

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.data,) if isinstance(self.data, str) else self.data or ()


class TrainerSettings(Training):
    """What the trainers that learn from a data set take. One epoch is one pass over its training split."""

    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, gt=0)
    accumulate: int = Field(default=1, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of the steps


class SFTSettings(TrainerSettings):
    learning_rate: float = Field(default=2e-5, gt=0)
    template: str | None = None  # a marked chat template; without it the base model's own


class DPOSettings(TrainerSettings):
    learning_rate: float = Field(default=5e-7, gt=0)
    beta: float = Field(default=0.1, gt=0)


class RMSettings(TrainerSettings):
    """A pairwise reward model. `center` weighs the penalty on a pair's mean score, which keeps scores around zero."""

    learning_rate: float = Field(default=1e-5, gt=0)
    center: float = Field(default=0.01, ge=0)


class PPOSettings(Training):
    """Proximal policy optimisation against a reward model. An iteration is one batch of completions and its updates."""

    reward: Name  # the model whose score is the reward, and whose weights the value model starts from
    learning_rate: float = Field(default=1e-6, gt=0)
    value_learning_rate: float | None = Field(default=None, gt=0)  # without it the policy's
    schedule: Literal["linear", "constant"] = "linear"
    iterations: int = Field(default=100, gt=0)
    batch_size: int = Field(default=64, gt=1)  # completions in an iteration
    minibatch_size: int = Field(default=16, gt=0)
    epochs: int = Field(default=4, gt=0)  # passes over each batch
    max_tokens: int = Field(default=256, gt=0)  # of a completion
    beta: float = Field(default=0.05, ge=0)  # weight of the KL from the base model in the reward
    gamma: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    missing_eos_penalty: float = Field(default=1.0, ge=0)  # taken off the score of a completion that does not end
    checkpoint_steps: int = Field(default=10, gt=0)

    @model_validator(mode="after")
    def _sizes_fit(self) -> PPOSettings:
        if self.batch_size % self.minibatch_size:
            raise ValueError(f"`batch_size` ({self.batch_size}) is not a multiple of `minibatch_size`")
        if self.max_tokens >= self.max_length:
            raise ValueError(f"`max_tokens` ({self.max_tokens}) leaves no room for a prompt in `max_length`")
        return self


TRAINERS: dict[str, tuple[str, ...]] = {  # each trainer, and the kinds of stage it can learn from
    "sft": ("data", "revise"),
    "rm": ("data", "pair"),
    "dpo": ("data", "pair"),
    "ppo": ("prompts",),
}


class TrainStage(Stage):
    """Table stage: one trained model, which is a model from here on."""

    kind = "train"
    sft: SFTSettings | None = None
    rm: RMSettings | None = None
    dpo: DPOSettings | None = None
    ppo: PPOSettings | None = None

    @model_validator(mode="after")
    def _one_trainer(self) -> TrainStage:
        if sum(getattr(self, method) is not None for method in TRAINERS) != 1:
            raise ValueError(f"give exactly one trainer: {', '.join(f'`{method}`' for method in TRAINERS)}")
        if self.source is not None:
            raise ValueError("`from` does not belong here; name the data with `data` inside the trainer")
        return self

    @property
    def method(self) -> str:
        """Which of the trainers."""
        return next(method for method in TRAINERS if getattr(self, method) is not None)

    @property
    def trainer(self) -> SFTSettings | RMSettings | DPOSettings | PPOSettings:
        chosen = self.sft or self.rm or self.dpo or self.ppo
        assert chosen is not None
        return chosen


class BestOf(Settings):
    """The completion of n that the reward model scores highest, measured as if a model had written it."""

    model: Name
    n: int = Field(default=4, gt=1)

    @property
    def name(self) -> str:
        return f"{self.model} best of {self.n}"


class MeasureStage(Stage):
    """Table stage: the named models on prompts that nothing was trained on."""

    kind = "measure"
    reads = ("prompts",)
    models: tuple[Name, ...] = Field(min_length=1)
    baseline: Name | None = None  # the win rate and the paired differences are against this model
    split: Literal["validation", "held-out"] = "held-out"
    take: int | None = Field(default=None, gt=0)
    judge: Literal["gold"] | None = None  # the truth of the embedded world: for measuring only
    reward: Name | None = None  # a reward model, whose score of every completion stands beside the other figures
    best_of: BestOf | None = None
    rate: Rater | None = None  # the judge whose point-wise ratings decide the win rate
    sampling: MeasureSampling = MeasureSampling()

    @model_validator(mode="after")
    def _baseline_is_measured(self) -> MeasureStage:
        if self.baseline is not None and self.baseline not in self.models:
            raise ValueError(f"the baseline {self.baseline!r} is not among the measured models")
        if self.best_of is not None and self.reward is None:
            raise ValueError("`best_of` needs a reward model to choose by; name it in `reward`")
        return self


STAGES: dict[str, type[Stage]] = {
    stage.kind: stage
    for stage in (
        DataStage,
        PromptsStage,
        SampleStage,
        RateStage,
        ReviseStage,
        CompareStage,
        PairStage,
        TrainStage,
        MeasureStage,
    )
}
ROW_STAGES = ("sample", "rate", "revise", "compare")


# ---------------------------------------------------------------- the pipeline


class Step:
    """A stage in its place: its number, its name, and the earlier steps it reads."""

    def __init__(self, number: int, name: str, stage: Stage, sources: Sequence[Step]) -> None:
        self.number, self.name, self.stage, self.sources = number, name, stage, tuple(sources)

    @property
    def source(self) -> Step | None:
        """The step it reads; the first of them where a trainer reads several."""
        return self.sources[0] if self.sources else None

    def __repr__(self) -> str:
        return f"Step({self.number}, {self.name!r})"


class Pipeline:
    """A checked pipeline file: every name resolved, every referenced file found."""

    def __init__(
        self, document: Document, name: str, seed: int, models: dict[str, ModelSpec], steps: list[Step]
    ) -> None:
        self.document, self.name, self.seed, self.models, self.steps = document, name, seed, models, steps

    def error(self, step: Step, message: str, key: str | None = None, fix: str | None = None) -> InputError:
        position: Position = ("stages", step.number - 1, step.stage.kind, *((key,) if key else ()))
        return self.document.error(message, position, fix)

    def resolved(self) -> dict[str, Any]:
        """The pipeline with every default and link written out, as it is saved in the run folder.

        It reads back to the same pipeline. What a stage leaves to its models stays unsaid.
        """
        return {
            "name": self.name,
            "seed": self.seed,
            "models": {name: spec.model_dump(mode="json", exclude_none=True) for name, spec in self.models.items()},
            "stages": [{step.stage.kind: _written_out(step)} for step in self.steps],
        }


def _written_out(step: Step) -> dict[str, Any]:
    settings: dict[str, Any] = step.stage.model_dump(mode="json", exclude={"source"}, exclude_none=True)
    settings["name"] = step.name
    if isinstance(step.stage, TrainStage):
        names = [source.name for source in step.sources]
        settings[step.stage.method]["data"] = names if len(names) > 1 else names[0]
    elif step.source is not None:
        settings["from"] = step.source.name
    return settings


def read_pipeline(path: str, overrides: Sequence[str] = ()) -> Pipeline:
    """Read and check a pipeline file. Raises InputError for anything that is wrong with it."""
    document = read_yaml(find(path))
    for override in overrides:
        _apply(document, override)
    return checked(document)


def checked(document: Document) -> Pipeline:
    """The pipeline that a document describes. Raises InputError for anything that is wrong with it."""
    known = {"name", "seed", "models", "stages"}
    for key in document.value:
        if key not in known:
            raise document.error("unknown key", (str(key),), nearest(str(key), known))
    name = document.value.get("name")
    if not isinstance(name, str) or not re.match(NAME, name):
        raise document.error(
            f"expected letters, digits, '.', '_' or '-', found {found(name)}", ("name",), "write `name: my-run`"
        )
    seed = document.value.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise document.error(f"expected a whole number from 0 to {2**32 - 1}, found {found(seed)}", ("seed",))
    models = _read_models(document)
    return Pipeline(document, name, seed, models, _read_steps(document, models))


def _apply(document: Document, override: str) -> None:
    """Apply one `key.key=value` from the command line; items count from 0, a stage also goes by its name."""
    written, equals, text = override.partition("=")
    if not equals or not written:
        raise InputError(f"{override!r} is not of the form key=value", fix="for example stages.2.prompts.take=50")
    try:
        value, _ = _load(text, COMMAND_LINE)
    except InputError as error:
        raise InputError(error.message, file=COMMAND_LINE, key=written, fix=error.fix) from None
    parts = written.split(".")
    target: Any = document.value
    position: Position = ()
    for depth, part in enumerate(parts, start=1):
        last = depth == len(parts)
        key = _key(target, part, position, written, last)
        position = (*position, key)
        if last or (isinstance(target, dict) and target.get(key) is None):
            target[key] = value if last else {}
            document.overridden[position] = ".".join(parts[:depth])
        target = target[key]


def one_trainer(method: str, base: str, data: str, name: str, settings: Sequence[str], reward: str | None) -> Pipeline:
    """A pipeline that trains one model on one file, as the command line gives them.

    `settings` are the trainer's own, as key=value. Raises InputError, its keys named as they were given.
    """
    trainer: dict[str, Any] = {"base": "base", "name": name}
    models = {"base": {"engine": "transformers", "path": base}}
    reads = "prompts" if method == "ppo" else "data"
    given: dict[Position, str] = {("models", "base", "path"): "--base", ("stages", 0, reads, "path"): "--data"}
    if reward is not None:
        models["reward"] = {"engine": "transformers", "path": reward}
        given[("models", "reward", "path")] = "--reward"
        trainer["reward"] = "reward"
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key or key in ("base", "name", "data", "reward"):
            raise InputError(f"{setting!r} is not a setting of the form key=value", fix="for example epochs=2")
        try:
            trainer[key], _ = _load(text, COMMAND_LINE)
        except InputError as error:
            raise InputError(error.message, file=COMMAND_LINE, key=key, fix=error.fix) from None
        given[("stages", 1, "train", method, key)] = key
    stages: list[dict[str, Any]] = [{reads: {"path": data}}, {"train": {method: trainer}}]
    document = Document(COMMAND_LINE, {"name": "train", "models": models, "stages": stages}, {})
    document.overridden = given
    return checked(document)


def _key(target: Any, part: str, above: Position, written: str, last: bool) -> str | int:
    """The index or key that `part` means in `target`; a key that is not there yet only where a setting may stand."""
    if isinstance(target, list):
        return _item(target, part, above, written)
    if not isinstance(target, dict):
        raise InputError(f"{dotted(above)} holds no keys", file=COMMAND_LINE, key=written)
    is_stage = above[:1] == ("stages",) and len(above) == 2
    if part in target or (not is_stage and (last or len(above) >= 2)):
        return part
    known = [str(key) for key in target]
    raise InputError(
        f"there is no `{part}` in {dotted(above) or 'the pipeline'}",
        file=COMMAND_LINE,
        key=written,
        fix=nearest(part, known) if known else None,
    )


def _item(target: list[Any], part: str, above: Position, written: str) -> int:
    """The index that `part` means: a number, or for a stage its name."""
    if re.fullmatch("[0-9]{1,9}", part) and int(part) < len(target):
        return int(part)
    names = _step_names(target) if above == ("stages",) else []
    if names.count(part) == 1:
        return names.index(part)
    problem = f"{dotted(above)} has no `{part}`" if part not in names else f"two stages are called {part!r}"
    numbers = f"use a number from 0 to {len(target) - 1}" if target else None
    raise InputError(problem, file=COMMAND_LINE, key=written, fix=nearest(part, names) if names else numbers)


def _read_models(document: Document) -> dict[str, ModelSpec]:
    section = document.value.get("models")
    if not isinstance(section, dict) or not section:
        raise document.error(
            "expected at least one model", ("models",), "add `models:` with a name and an engine for each"
        )
    models: dict[str, ModelSpec] = {}
    for name, value in section.items():
        place = ("models", str(name))
        if not isinstance(name, str) or not re.match(NAME, name):
            raise document.error(
                f"expected a name of letters, digits, '.', '_' or '-', found {found(name)}",
                place,
                "put it in quotes" if isinstance(name, int) else None,
            )
        if not isinstance(value, dict):
            raise document.error(f"expected keys and values, found {found(value)}", place, "give it an `engine`")
        engine = value.get("engine")
        if not isinstance(engine, str) or engine not in ENGINES:
            raise document.error(
                "the key is missing" if engine is None else f"unknown engine {found(engine)}",
                (*place, "engine"),
                nearest(str(engine), ENGINES),
            )
        spec = validated(ENGINES[engine], value, document, place)
        if isinstance(spec, LocalModel) and spec.path is not None:
            find(spec.path, **document.where((*place, "path")))
        models[name] = spec
    return models


def _read_steps(document: Document, models: dict[str, ModelSpec]) -> list[Step]:
    section = document.value.get("stages")
    if not isinstance(section, list) or not section:
        raise document.error("expected a list of stages", ("stages",), f"a stage is one of {', '.join(STAGES)}")
    steps: list[Step] = []
    available = set(models)
    names = _step_names(section)
    for index, item in enumerate(section):
        place: Position = ("stages", index)
        if not isinstance(item, dict) or len(item) != 1:
            raise document.error("expected one stage: its kind and its settings", place, "write `- sample: {...}`")
        kind = str(next(iter(item)))
        if kind not in STAGES:
            raise document.error(f"unknown stage {kind!r}", (*place, kind), nearest(kind, STAGES))
        stage = validated(STAGES[kind], item[kind], document, (*place, kind))
        name = names[index]
        if name in names[:index]:
            raise document.error(f"two stages are called {name!r}", (*place, kind), "give each its own `name`")
        _check_models(stage, available, document, (*place, kind))
        _check_heads(stage, steps, models, document, (*place, kind))
        if isinstance(stage, TrainStage) and isinstance(models.get(stage.trainer.base), OpenAIModel):
            raise document.error(
                "a model behind a server cannot be trained here",
                (*place, kind, stage.method, "base"),
                "give a base whose engine is `transformers` or `vllm`",
            )
        step = Step(index + 1, name, stage, _sources(stage, steps, document, (*place, kind)))
        _check_sense(step, steps, document, (*place, kind))
        if isinstance(stage, TrainStage):
            if stage.trainer.name in available:
                raise document.error(
                    f"there already is a model called {stage.trainer.name!r}",
                    (*place, kind, stage.method, "name"),
                )
            available.add(stage.trainer.name)
        _check_files(stage, document, (*place, kind))
        steps.append(step)
    return steps


def _step_names(section: list[Any]) -> list[str]:
    """What each stage goes by, in files, logs and overrides: its `name`, its trainer's, or its kind and number."""
    names: list[str] = []
    kinds: list[str] = []
    for item in section:
        kind, settings = next(iter(item.items()), ("", None)) if isinstance(item, dict) else ("", None)
        kinds.append(str(kind))
        groups = [settings, *(settings.values() if kind == "train" and isinstance(settings, dict) else ())]
        given = [group["name"] for group in groups if isinstance(group, dict) and group.get("name") is not None]
        number = kinds.count(str(kind))
        names.append(str(given[0]) if given else f"{kind}-{number}" if number > 1 else str(kind))
    return names


def _check_sense(step: Step, earlier: list[Step], document: Document, place: Position) -> None:
    """What no stage can know of itself."""
    first = next((s for s in earlier if isinstance(s.stage, MeasureStage)), None)
    if isinstance(step.stage, MeasureStage) and first is not None:
        raise document.error(
            f"a run has one report, and the stage {first.name!r} writes it", place, "name all its models in one stage"
        )
    sampled = step.source.source if isinstance(step.stage, PairStage) and step.source else None
    if sampled is not None and isinstance(sampled.stage, SampleStage) and sampled.stage.candidates < 2:
        raise document.error(
            f"a pair needs two candidates, and the stage {sampled.name!r} gives each prompt one",
            place,
            "raise its `per_prompt`, or name another model there",
        )


def _check_heads(
    stage: Stage, earlier: list[Step], models: dict[str, ModelSpec], document: Document, place: Position
) -> None:
    """A reward model scores and writes nothing; any other model writes and has no score."""
    trained = {s.stage.trainer.name: s.stage.method for s in earlier if isinstance(s.stage, TrainStage)}
    for model, key in named_models(stage):
        method = trained.get(model)
        if key[-1] == "reward":
            if method not in (None, "rm") or isinstance(models.get(model), OpenAIModel):
                what = "was not trained by `rm`" if method else "runs behind a server, which gives no score"
                raise document.error(f"{model!r} {what}", (*place, *key), "name a reward model whose weights are here")
        elif method == "rm" and key != ("rm", "base"):
            fix = "name the model it was trained from, or another"
            raise document.error(f"{model!r} is a reward model and writes nothing", (*place, *key), fix)


def _check_models(stage: Stage, available: set[str], document: Document, place: Position) -> None:
    """Every model a stage names must be in `models:` or trained by an earlier stage."""
    for model, key in named_models(stage):
        if model not in available:
            raise document.error(f"unknown model {model!r}", (*place, *key), nearest(model, available))


def named_models(stage: Stage) -> list[tuple[str, Position]]:
    """The models a stage names, each with the key it is named under."""
    named: list[tuple[str, Position]] = []
    if isinstance(stage, SampleStage):
        named = [(s.model, ("models", i)) for i, s in enumerate(stage.models)]
    elif isinstance(stage, Rater | ReviseStage | CompareStage):
        named = [(stage.model, ("model",))]
    elif isinstance(stage, TrainStage):
        named = [(stage.trainer.base, (stage.method, "base"))]
        named += [(stage.ppo.reward, ("ppo", "reward"))] if stage.ppo else []
    elif isinstance(stage, MeasureStage):
        named = [(model, ("models", i)) for i, model in enumerate(stage.models)]
        named += [(stage.rate.model, ("rate", "model"))] if stage.rate else []
        named += [(stage.best_of.model, ("best_of", "model"))] if stage.best_of else []
        named += [(stage.reward, ("reward",))] if stage.reward else []
    return named


def _sources(stage: Stage, steps: list[Step], document: Document, place: Position) -> list[Step]:
    """The earlier steps this stage reads: those it names, else the nearest of the right kind."""
    reads = stage.reads
    wanted: tuple[str, ...] = (stage.source,) if stage.source is not None else ()
    key: Position = (*place, "from")
    if isinstance(stage, TrainStage):
        reads, wanted, key = TRAINERS[stage.method], stage.trainer.sources, (*place, stage.method, "data")
    elif isinstance(stage, PairStage) and stage.rule is not None:
        reads = ("compare",) if stage.rule == "compared" else ("rate",)
    if not reads:
        if wanted:
            raise document.error(f"a {stage.kind} stage reads no other stage", key, "take `from` out")
        return []
    fitting = [step for step in steps if step.stage.kind in reads]
    kinds = " or ".join(reads)
    if not wanted:
        if not fitting:
            first = next((kind for kind in reads if kind != "data"), reads[0])
            raise document.error(
                f"no earlier stage of kind {kinds} to read from", key, f"put a `{first}` stage before it"
            )
        return fitting[-1:]
    chosen = []
    for name in wanted:
        step = next((step for step in fitting if step.name == name), None)
        if step is None:
            raise document.error(
                f"no earlier stage of kind {kinds} is called {name!r}",
                key,
                nearest(name, [s.name for s in fitting]) if fitting else None,
            )
        chosen.append(step)
    if len({step.name for step in chosen}) < len(chosen):
        raise document.error("a stage is named twice", key, "name each once")
    return chosen


def _check_files(stage: Stage, document: Document, place: Position) -> None:
    """Every path a stage names must lead somewhere before anything runs."""
    named: list[tuple[str | None, Position]] = []
    if isinstance(stage, FileStage):
        named = [(stage.path, ("path",))]
    elif isinstance(stage, Rater):
        named = [(stage.rubric, ("rubric",)), (stage.template, ("template",))]
    elif isinstance(stage, ReviseStage):
        named = [(getattr(stage, key), (key,)) for key in ("constitution", "critique_template", "revision_template")]
    elif isinstance(stage, CompareStage):
        named = [(stage.constitution, ("constitution",)), (stage.template, ("template",))]
    elif isinstance(stage, TrainStage) and stage.sft:
        named = [(stage.sft.template, ("sft", "template"))]
    elif isinstance(stage, MeasureStage) and stage.rate:
        named = [(stage.rate.rubric, ("rate", "rubric")), (stage.rate.template, ("rate", "template"))]
    for path, key in named:
        if path is not None:
            find(path, **document.where((*place, *key)))


def api_key(spec: OpenAIModel) -> str:
    """The key from the environment, or the word that stands for none. Raises InputError for what no header can hold."""
    key = os.environ.get(spec.key_variable or "", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {spec.key_variable} holds characters that no key has", fix="set it again")
    return key or "none"
