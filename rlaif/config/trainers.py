"""The settings of every trainer, with the data that it takes and the splits that it does not use.

To add a trainer: its settings here with their line in TRAINERS, and `train/NAME.py` with its line in `train.job`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rlaif.config.document import Name, OneOrSeveral, Settings
from rlaif.records import Split

LearningRate = Annotated[float, Field(gt=0, le=1)]
Mix = Annotated[dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range of every random generator
TemplateArgument = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
Takes = Literal["demonstrations", "preferences", "prompts"]


class Training(Settings):
    """The settings of every trainer. Sizes are in sequences and tokens."""

    method: ClassVar[str]  # its key in a pipeline file
    takes: ClassVar[Takes]  # its training data
    reads: ClassVar[tuple[str, ...]]  # the kinds of stage with such data
    unused: ClassVar[tuple[Split, ...]] = ("held-out",)  # splits that it does not use
    scores: ClassVar[bool] = False  # its model has a reward head and does not generate

    base: Name
    name: Name
    # The stages with its data, one or several; by default the nearest of the right kind.
    data: Annotated[tuple[Name, ...], OneOrSeveral, Field(min_length=1)] | None = None
    template: str | None = None  # a file; by default the base model's own
    template_arguments: dict[TemplateArgument, bool | int | float | str] = {}  # such as {enable_thinking: false}
    # A system message: as the template has it, put before the first user's words, or its row left out.
    system: Literal["keep", "merge", "skip"] = "keep"
    learning_rate: LearningRate
    max_length: int = Field(default=1024, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: int = Field(default=50, gt=0)
    seed: Seed = 0

    @field_validator("name")
    @classmethod
    def _no_job(cls, name: str) -> str:
        if name.endswith(".partial"):
            raise ValueError("names in .partial are those of unfinished trainings")
        return name

    @property
    def chat_template(self) -> str | None:
        """The file of a chat template of its own."""
        return self.template

    @property
    def uses_margins(self) -> bool:
        """Whether its loss depends on the margins of preferences."""
        return False

    @property
    def withholds_nothing(self) -> bool:
        """Whether it trains on prompts that are held out elsewhere."""
        return False

    @property
    def mixes(self) -> bool:
        """Whether it has to know which stage each row is from."""
        return False

    @property
    def reward_model(self) -> str | None:
        """The model whose score is the reward."""
        return None

    @property
    def reward_checks(self) -> tuple[dict[str, Any], ...] | None:
        """What code verifies as the reward."""
        return None


class TrainerSettings(Training):
    """The settings of trainers on a data set. One epoch is one pass over its training split."""

    # Of a row over `max_length`: its prompt is cut from the left where half of it stays, or it is dropped, or refused.
    excess_length: Literal["truncate", "drop", "raise"] = "truncate"
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, gt=0)
    accumulate: int = Field(default=1, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of the steps


class SFTSettings(TrainerSettings):
    """Supervised fine-tuning on the assistant's turns of demonstrations."""

    method = "sft"
    takes = "demonstrations"
    reads = ("data", "sample", "verify", "rate", "score", "revise")
    learning_rate: LearningRate = 2e-5
    packing: bool = False  # several rows in one sequence of `max_length` tokens; `batch_size` then counts sequences
    # The share of each stage of `data`, by rows or by tokens; by default all rows once an epoch.
    mix: Mix | None = None
    mix_by: Literal["rows", "tokens"] = "rows"
    mix_decay: Mix | None = None  # another mixture for the last steps
    decay: float = Field(default=0.1, gt=0, le=1)  # the share of the steps in which it holds

    @model_validator(mode="before")
    @classmethod
    def _data_of_the_mixture(cls, values: Any) -> Any:
        """Without `data`, the stages that the mixtures name."""
        if not isinstance(values, dict) or values.get("data") is not None:
            return values
        mixes = [values[key] for key in ("mix", "mix_decay") if isinstance(values.get(key), dict)]
        named = list(dict.fromkeys(name for mix in mixes for name in mix))
        return values | {"data": named} if named else values

    @model_validator(mode="after")
    def _mixtures_of_the_data(self) -> SFTSettings:
        if self.mix is None and self.mix_decay is not None:
            raise ValueError("`mix_decay` is the mixture after `mix`; give that, too")
        for key, mix in (("mix", self.mix), ("mix_decay", self.mix_decay)):
            if mix is not None and not any(mix.values()):
                raise ValueError(f"`{key}` gives no stage a share")
            for name in mix or ():
                if name not in (self.data or ()):
                    raise ValueError(f"`{key}` names {name!r}, which `data` does not; add it there")
        named = {*(self.mix or ()), *(self.mix_decay or ())}
        if self.mix is not None and (left := next((name for name in self.data or () if name not in named), None)):
            raise ValueError(f"`data` names {left!r}, which has no share; give it one in `mix`, or remove it")
        return self

    @property
    def mixes(self) -> bool:
        return self.mix is not None


class DPOSettings(TrainerSettings):
    """Direct preference optimisation against the frozen base."""

    method = "dpo"
    takes = "preferences"
    reads = ("data", "pair")
    learning_rate: LearningRate = 5e-7
    beta: float = Field(default=0.1, gt=0)


class RMSettings(TrainerSettings):
    """A pairwise reward model. `center` weights the squared sum of a pair's scores, which keeps them around zero."""

    method = "rm"
    scores = True
    takes = "preferences"
    reads = ("data", "pair")
    learning_rate: LearningRate = 1e-5
    center: float = Field(default=0.01, ge=0)


class PPOSettings(Training):
    """Proximal policy optimisation with a reward model, or with checks in code.

    An iteration is one batch of completions and its updates.
    """

    method = "ppo"
    takes = "prompts"
    reads = ("prompts",)
    unused = ("held-out", "validation")
    reward: Name | None = None  # the reward model, from whose weights the value model starts
    checks: tuple[dict[str, Any], ...] | None = None  # or checks in code: the reward is the share that passes
    learning_rate: LearningRate = 1e-6
    value_learning_rate: LearningRate | None = None  # by default the policy's
    schedule: Literal["linear", "constant"] = "linear"
    iterations: int = Field(default=100, gt=0)
    batch_size: int = Field(default=64, gt=1)  # completions per iteration
    minibatch_size: int = Field(default=16, gt=0)
    epochs: int = Field(default=4, gt=0)  # passes over each batch
    max_tokens: int = Field(default=256, gt=0)  # of a completion
    beta: float = Field(default=0.05, ge=0)  # weight in the reward of the KL divergence from the base model
    gamma: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    missing_eos_penalty: float = Field(default=1.0, ge=0)  # subtracted from the score of a completion that does not end
    checkpoint_steps: int = Field(default=10, gt=0)
    split: Literal["hash", "all"] = "hash"  # the prompts that the hash leaves for training, or all of them

    @property
    def withholds_nothing(self) -> bool:
        return self.split == "all"

    @property
    def reward_model(self) -> str | None:
        return self.reward

    @property
    def reward_checks(self) -> tuple[dict[str, Any], ...] | None:
        return self.checks

    @model_validator(mode="after")
    def _one_reward(self) -> PPOSettings:
        if (self.reward is None) == (self.checks is None):
            raise ValueError("give either `reward` (a reward model) or `checks` (checks in code)")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> PPOSettings:
        if self.batch_size % self.minibatch_size:
            raise ValueError(f"`batch_size` ({self.batch_size}) is not a multiple of `minibatch_size`")
        if self.max_tokens >= self.max_length:
            raise ValueError(f"`max_tokens` ({self.max_tokens}) leaves no room for a prompt in `max_length`")
        return self


TRAINERS: dict[str, type[Training]] = {
    "sft": SFTSettings,
    "rm": RMSettings,
    "dpo": DPOSettings,
    "ppo": PPOSettings,
}
