"""The settings of every stage and trainer, each with its defaults and what it can know of itself to be wrong."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from rlaif.config.document import Name, Position, Settings, Text
from rlaif.config.models import JudgeSampling, MeasureSampling, RevisionSampling, SamplingSettings

Share = Annotated[float, Field(ge=0, le=1)]
OneOrSeveral = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
LearningRate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every random generator takes


class Stage(Settings):
    """One step of a pipeline. `reads` names the kinds of stage it can take its input from."""

    kind: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()

    name: Name | None = None
    source: Name | None = Field(default=None, alias="from")

    def named_models(self) -> list[tuple[str, Position]]:
        """The models the stage uses, each with the key it stands under; one whose key ends in `reward` scores."""
        return []

    def named_files(self) -> list[tuple[str, Position]]:
        """The paths the stage reads, each with its key."""
        return []


class FileStage(Stage):
    path: str | None = None
    hub: str | None = None
    hub_split: str = "train"  # the split's name on the hub; the train / validation / held-out split is by hash
    revision: str | None = None  # of the data set on the hub: a commit, branch or tag
    take: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_source(self) -> FileStage:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` (a file) or `hub` (a data set id on the hub)")
        if self.revision is not None and self.hub is None:
            raise ValueError("a `revision` is of a data set on the hub; take it out")
        return self

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self, "path")


class Columns(Settings):
    """What a file calls its columns, by what we call them. Those that are not named here are not read."""

    prompt: str | None = None
    messages: str | None = None
    completion: str | None = None
    system: str | None = None
    reference: str | None = None
    source: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    chosen_model: str | None = None
    rejected_model: str | None = None
    score_chosen: str | None = None
    score_rejected: str | None = None
    completion_a: str | None = None
    completion_b: str | None = None
    model_a: str | None = None
    model_b: str | None = None
    label: str | None = None  # of the two: a, b or tie
    probability: str | None = None  # that chosen, or the first of the two, is the better one
    completions: str | None = None
    models: str | None = None
    scores: str | None = None
    ranks: str | None = None

    @model_validator(mode="after")
    def _names_one(self) -> Columns:
        if not self.named():
            raise ValueError("name at least one column, such as {prompt: question}")
        return self

    def named(self) -> dict[str, str]:
        return self.model_dump(exclude_none=True)


class DataStage(FileStage):
    """Data that exists: demonstrations, preferences, or completions to judge, as whoever reads it takes it."""

    kind = "data"
    columns: Columns | None = None
    system: Text | None = None  # put in front of a conversation where no system message stands
    turns: Literal["all", "last"] | None = None  # of a conversation, what is learnt or judged


class PromptsStage(FileStage):
    """Prompts to be answered. `take` keeps the first n of the split, or of the splits where several are named."""

    kind = "prompts"
    column: str | None = None
    # By hash. What trains learns from the training split and is checked on the validation split, whatever stands here.
    split: Annotated[tuple[Literal["train", "validation", "all"], ...], OneOrSeveral, Field(min_length=1)] = ("train",)


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

    def named_models(self) -> list[tuple[str, Position]]:
        return [(sampler.model, ("models", i)) for i, sampler in enumerate(self.models)]


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
    reads = ("sample", "data")

    def named_models(self) -> list[tuple[str, Position]]:
        return _given(self, "model")

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self, "rubric", "template")


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

    def named_models(self) -> list[tuple[str, Position]]:
        return _given(self, "model")

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self, "constitution", "critique_template", "revision_template")


class CompareStage(Stage):
    """Row stage: which of two candidates a drawn principle prefers, asked in both orders.

    A `soft` verdict is the probability of the two numbers as the first token, a `hard` one the number written. With
    `reasons` the judge first explains and is then asked for its verdict, which `clamp` keeps from being too sure.
    """

    kind = "compare"
    reads = ("sample", "data")
    model: Name
    constitution: str
    template: str = "prompts/compare.jinja"
    ending: Text = "Which completion follows the principle better? Answer with its number alone, 1 or 2."
    verdicts: Literal["soft", "hard"] = "soft"
    reasons: bool = False
    clamp: tuple[Share, Share] | None = None
    reask: int = Field(default=1, ge=0)  # how often an unreadable verdict is asked again, with another seed
    sampling: JudgeSampling = JudgeSampling()

    @model_validator(mode="after")
    def _clamp_is_for_reasons(self) -> CompareStage:
        if self.clamp is not None and not (self.reasons and self.verdicts == "soft"):
            raise ValueError("`clamp` is for soft verdicts after reasons; take it out, or set `reasons: true`")
        if self.clamp is not None and not self.clamp[0] < 0.5 < self.clamp[1]:
            raise ValueError("`clamp` needs a share below one half and one above, such as [0.4, 0.6]")
        return self

    def named_models(self) -> list[tuple[str, Position]]:
        return _given(self, "model")

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self, "constitution", "template")


class PairStage(Stage):
    """Table stage: preferences from ratings or comparisons, or from what a file states.

    Ties, unparsed and identical texts are dropped and counted.
    """

    kind = "pair"
    reads = ("rate", "compare", "data")
    rule: Literal["zephyr", "best-worst", "all", "compared"] | None = None  # ratings: zephyr; comparisons: compared
    # In units of the rubric's scale, or of probability (chosen minus rejected); the margin must be larger than 0.
    min_margin: float = Field(default=0.0, ge=0)


class Training(Settings):
    """What every trainer takes. Sizes are in sequences and tokens."""

    base: Name
    name: Name
    # The stages it learns from, one or several; without it the nearest of the right kind.
    data: Annotated[tuple[Name, ...], OneOrSeveral, Field(min_length=1)] | None = None
    learning_rate: LearningRate
    max_length: int = Field(default=1024, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: int = Field(default=50, gt=0)
    seed: Seed = 0


class TrainerSettings(Training):
    """What the trainers that learn from a data set take. One epoch is one pass over its training split."""

    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, gt=0)
    accumulate: int = Field(default=1, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of the steps


class SFTSettings(TrainerSettings):
    learning_rate: LearningRate = 2e-5
    template: str | None = None  # a marked chat template; without it the base model's own


class DPOSettings(TrainerSettings):
    learning_rate: LearningRate = 5e-7
    beta: float = Field(default=0.1, gt=0)


class RMSettings(TrainerSettings):
    """A pairwise reward model. `center` weighs the square of a pair's added scores, which keeps them around zero."""

    learning_rate: LearningRate = 1e-5
    center: float = Field(default=0.01, ge=0)


class PPOSettings(Training):
    """Proximal policy optimisation against a reward model. An iteration is one batch of completions and its updates."""

    reward: Name  # the model whose score is the reward, and whose weights the value model starts from
    learning_rate: LearningRate = 1e-6
    value_learning_rate: LearningRate | None = None  # without it the policy's
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

    def named_models(self) -> list[tuple[str, Position]]:
        return _given(self.trainer, "base", "reward", under=(self.method,))

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self.trainer, "template", under=(self.method,))


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
        if twice := next((name for name in self.models if self.models.count(name) > 1), None):
            raise ValueError(f"the model {twice!r} is named twice")
        if self.best_of is not None and self.reward is None:
            raise ValueError("`best_of` needs a reward model to choose by; name it in `reward`")
        return self

    def named_models(self) -> list[tuple[str, Position]]:
        named: list[tuple[str, Position]] = [(model, ("models", i)) for i, model in enumerate(self.models)]
        return [
            *named,
            *_given(self.rate, "model", under=("rate",)),
            *_given(self.best_of, "model", under=("best_of",)),
            *_given(self, "reward"),
        ]

    def named_files(self) -> list[tuple[str, Position]]:
        return _given(self.rate, "rubric", "template", under=("rate",))


def _given(settings: Settings | None, *keys: str, under: Position = ()) -> list[tuple[str, Position]]:
    """What is written under each of `keys`, those that are not set left out, with the whole key."""
    values = [(getattr(settings, key, None), key) for key in keys]
    return [(value, (*under, key)) for value, key in values if value is not None]


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
