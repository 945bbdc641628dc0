"""The settings of every trainer, with the data that it takes and the splits that it does not use.

To add a trainer: its settings here with their line in TRAINERS, and `train/NAME.py` with its line in `train.job`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlaif.config.document import Name, OneOrSeveral, Settings
from rlaif.records import Split

LearningRate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range of every random generator
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]
Precision = Literal["auto", "float32", "bfloat16"]
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
    learning_rate: LearningRate
    max_length: int = Field(default=1024, gt=0)
    dtype: Precision = "auto"  # computed in; auto: bfloat16 on a GPU that has it, else float32
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
        return None

    @property
    def reward_model(self) -> str | None:
        """The model whose score is the reward."""
        return None

    @property
    def reward_checks(self) -> tuple[dict[str, Any], ...] | None:
        """What code verifies as the reward."""
        return None


class LoRASettings(Settings):
    """A low-rank adapter (Hu et al. 2021, arXiv 2106.09685) in place of the weights. Names and defaults are TRL's."""

    r: int = Field(default=16, gt=0, le=4096)  # its rank
    alpha: float = Field(default=32, gt=0)  # it is scaled by alpha / r
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of its input; TRL's is 0.05
    # The linear layers that get one: all but the head, or those whose names end so.
    target: Literal["all-linear"] | tuple[ModuleName, ...] = "all-linear"
    quantized: Literal["4bit"] | None = None  # the frozen base (QLoRA, Dettmers et al. 2023, arXiv 2305.14314)

    @field_validator("target", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        named = list(given) if isinstance(given, list | tuple) else [given]
        if not named:
            raise ValueError("name at least one layer, or leave it out for all linear layers")
        return "all-linear" if named == ["all-linear"] else named


class TrainerSettings(Training):
    """The settings of trainers on a data set. One epoch is one pass over its training split."""

    still: ClassVar[bool] = False  # it trains without dropout

    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, gt=0)
    accumulate: int = Field(default=1, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of the steps
    # The weights are held in; auto: float32 where they are trained, and what is computed in where they are frozen.
    weights: Precision = "auto"
    lora: LoRASettings | None = None
    save: Literal["adapter", "merged"] = "adapter"  # what is left of a LoRA training
    recompute: Literal["auto"] | bool = "auto"  # activations in the backward pass; auto: from 100 million parameters

    processes: int = Field(default=1, gt=0, le=1024)  # that share each batch: one for each GPU
    launch: str | None = None  # a configuration of accelerate that starts them, such as accelerate/fsdp2.yaml

    @model_validator(mode="after")
    def _launched(self) -> Self:
        if self.launch is not None and self.processes == 1:
            raise ValueError("`launch` says how several processes start: give `processes` too, or remove it")
        return self

    @model_validator(mode="after")
    def _shared(self) -> Self:
        if self.processes > self.batch_size:
            problem = f"`batch_size` ({self.batch_size}) is less than `processes` ({self.processes})"
            raise ValueError(f"{problem}: each needs a row, and `accumulate` may be lower for it")
        return self

    @model_validator(mode="after")
    def _of_an_adapter(self) -> Self:
        if self.lora is None and self.save == "merged":
            raise ValueError("`save: merged` is of an adapter: give `lora` too, or remove it")
        if self.lora is not None and self.lora.dropout and self.still:
            raise ValueError(f"{self.method} trains without dropout, so `lora.dropout` would do nothing: remove it")
        return self


class SFTSettings(TrainerSettings):
    """Supervised fine-tuning on the assistant's turns of demonstrations."""

    method = "sft"
    takes = "demonstrations"
    reads = ("data", "sample", "verify", "rate", "score", "revise")
    learning_rate: LearningRate = 2e-5
    template: str | None = None  # marks assistant turns; by default the base model's own

    @property
    def chat_template(self) -> str | None:
        return self.template


class DPOSettings(TrainerSettings):
    """Direct preference optimisation against the frozen base."""

    method = "dpo"
    still = True
    takes = "preferences"
    reads = ("data", "pair")
    learning_rate: LearningRate = 5e-7
    beta: float = Field(default=0.1, gt=0)


class RMSettings(TrainerSettings):
    """A pairwise reward model. `center` weights the squared sum of a pair's scores, which keeps them around zero."""

    method = "rm"
    still = True
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
