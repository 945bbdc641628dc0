"""The settings of every trainer, with what it learns from and what it has no use for; `TRAINERS` names them all.

To add a trainer: its settings here with their line in TRAINERS, and `train/NAME.py` with its line in `train.job`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rlaif.config.document import Name, OneOrSeveral, Settings
from rlaif.records import Split

LearningRate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every random generator takes
Takes = Literal["demonstrations", "preferences", "prompts"]


class Training(Settings):
    """What every trainer takes. Sizes are in sequences and tokens."""

    method: ClassVar[str]  # its key in a pipeline file
    takes: ClassVar[Takes]  # what it learns from
    reads: ClassVar[tuple[str, ...]]  # the kinds of stage that give it
    unused: ClassVar[tuple[Split, ...]] = ("held-out",)  # splits that its model does not depend on
    scores: ClassVar[bool] = False  # its model has a reward head, and writes nothing

    base: Name
    name: Name
    # The stages it learns from, one or several; without it the nearest of the right kind.
    data: Annotated[tuple[Name, ...], OneOrSeveral, Field(min_length=1)] | None = None
    learning_rate: LearningRate
    max_length: int = Field(default=1024, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: int = Field(default=50, gt=0)
    seed: Seed = 0

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


class TrainerSettings(Training):
    """What the trainers that learn from a data set take. One epoch is one pass over its training split."""

    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, gt=0)
    accumulate: int = Field(default=1, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of the steps


class SFTSettings(TrainerSettings):
    """Supervised fine-tuning on the assistant's turns of demonstrations."""

    method = "sft"
    takes = "demonstrations"
    reads = ("data", "revise")
    learning_rate: LearningRate = 2e-5
    template: str | None = None  # a marked chat template; without it the base model's own

    @property
    def chat_template(self) -> str | None:
        return self.template


class DPOSettings(TrainerSettings):
    """Direct preference optimisation against the frozen base."""

    method = "dpo"
    takes = "preferences"
    reads = ("data", "pair")
    learning_rate: LearningRate = 5e-7
    beta: float = Field(default=0.1, gt=0)


class RMSettings(TrainerSettings):
    """A pairwise reward model. `center` weighs the square of a pair's added scores, which keeps them around zero."""

    method = "rm"
    scores = True
    takes = "preferences"
    reads = ("data", "pair")
    learning_rate: LearningRate = 1e-5
    center: float = Field(default=0.01, ge=0)


class PPOSettings(Training):
    """Proximal policy optimisation against a reward model, or against checks in code.

    An iteration is one batch of completions and its updates.
    """

    method = "ppo"
    takes = "prompts"
    reads = ("prompts",)
    unused = ("held-out", "validation")
    reward: Name | None = None  # the model whose score is the reward, and whose weights the value model starts from
    checks: tuple[dict[str, Any], ...] | None = None  # or what code verifies: the reward is the share that passes
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

    @property
    def reward_model(self) -> str | None:
        return self.reward

    @property
    def reward_checks(self) -> tuple[dict[str, Any], ...] | None:
        return self.checks

    @model_validator(mode="after")
    def _one_reward(self) -> PPOSettings:
        if (self.reward is None) == (self.checks is None):
            raise ValueError("give either `reward` (a reward model) or `checks` (what code verifies)")
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
