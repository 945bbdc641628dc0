"""The settings of every trainer, with the data that it takes and the splits that it does not use.

To add a trainer: its settings here with their line in TRAINERS, and `train/NAME.py` with its line in `train.job`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rlaif.config.document import Name, OneOrSeveral, Settings
from rlaif.records import Split

LearningRate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range of every random generator
Takes = Literal["demonstrations", "preferences", "prompts"]


# What TRL, axolotl, LLaMA-Factory and OpenRLHF call a setting, and its name here: for the error of an unknown key. A
# name with a dot is one of a group's.
ELSEWHERE = {
    **dict.fromkeys(("per_device_train_batch_size", "micro_batch_size", "train_batch_size"), "batch_size"),
    "gradient_accumulation_steps": "accumulate",
    **dict.fromkeys(("num_train_epochs", "num_epochs", "num_ppo_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "schedule"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps", "lr_warmup_ratio"), "warmup"),
    **dict.fromkeys(("lr", "actor_learning_rate"), "learning_rate"),
    **dict.fromkeys(("min_lr", "min_lr_rate", "cosine_min_lr_ratio"), "min_rate"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "sequence_len", "cutoff_len", "max_len"), "max_length"),
    **dict.fromkeys(("eval_steps", "evals_per_epoch", "eval_strategy"), "evaluate_every"),
    **dict.fromkeys(("save_steps", "saves_per_epoch", "save_strategy"), "checkpoint_steps"),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model"), "keep"),
    **dict.fromkeys(("bf16", "torch_dtype"), "dtype"),
    **dict.fromkeys(("rl_beta", "pref_beta", "kl_coef", "init_kl_coef"), "beta"),
    "center_rewards_coefficient": "center",
    **dict.fromkeys(("chat_template", "chat_template_path"), "template"),
    **dict.fromkeys(("lora_r", "lora_rank"), "lora.r"),
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    **dict.fromkeys(("lora_target_modules", "lora_target", "lora_target_linear"), "lora.target"),
    **dict.fromkeys(("load_in_4bit", "quantization_bit"), "lora.quantized"),
    **dict.fromkeys(("use_peft", "adapter", "finetuning_type"), "lora"),
    **dict.fromkeys(("sample_packing", "neat_packing", "packing_samples"), "packing"),
    "l2": "weight_decay",
    "data_seed": "seed",
    **dict.fromkeys(("use_wandb", "wandb_project"), "report_to"),
    **dict.fromkeys(("loss_type", "pref_loss", "dpo_loss_type"), "loss"),
    "dpo_label_smoothing": "label_smoothing",
    **dict.fromkeys(("cliprange", "eps_clip"), "clip"),
    "cliprange_value": "value_clip",
    **dict.fromkeys(("lam", "lambd"), "gae_lambda"),
    **dict.fromkeys(("response_length", "max_new_tokens", "max_completion_length"), "max_tokens"),
    "max_steps": "iterations",  # of PPO; the others have it
    "mini_batch_size": "minibatch_size",
    "critic_learning_rate": "value_learning_rate",
    **dict.fromkeys(("base_model", "model_name_or_path"), "base"),
    "reward_model_path": "reward",
    **dict.fromkeys(("dataset", "datasets", "dataset_name"), "data"),
    "output_dir": "name",
}
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class Training(Settings):
    """The settings of every trainer. Sizes are in sequences and tokens."""

    method: ClassVar[str]  # its key in a pipeline file
    takes: ClassVar[Takes]  # its training data
    reads: ClassVar[tuple[str, ...]]  # the kinds of stage with such data
    unused: ClassVar[tuple[Split, ...]] = ("held-out",)  # splits that it does not use
    scores: ClassVar[bool] = False  # its model has a reward head and does not generate
    elsewhere: ClassVar[Mapping[str, str]] = ELSEWHERE

    base: Name
    name: Name
    # The stages with its data, one or several; by default the nearest of the right kind.
    data: Annotated[tuple[Name, ...], OneOrSeveral, Field(min_length=1)] | None = None
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
    """The settings of trainers on a data set. One epoch is one pass over its training split."""

    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, gt=0)
    accumulate: int = Field(default=1, gt=0)
    max_steps: int | None = Field(default=None, gt=0)  # in place of `epochs`
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of the steps
    decay: float = Field(default=0.1, gt=0, le=1)  # share of the steps at the end in which `wsd` falls
    decay_shape: Literal["1-sqrt", "linear"] = "1-sqrt"  # how it falls
    min_rate: float = Field(default=0.0, ge=0, lt=1)  # share of the learning rate that a falling schedule ends at
    weight_decay: float = Field(default=0.0, ge=0, le=1)  # of all weights but biases and norms
    evaluate_every: float = Field(default=0.25, gt=0)  # steps from one validation to the next; below 1 a share of all
    keep: Literal["last", "best"] = "last"  # the step whose weights are saved; best by validation
    report_to: Annotated[tuple[Tracker, ...], OneOrSeveral] = ()  # beside metrics.jsonl

    # How `keep: best` compares two validations: figures by importance, and whether less of it is better.
    best_by: ClassVar[tuple[tuple[str, bool], ...]] = (("validation_accuracy", False), ("validation_loss", True))

    @field_validator("evaluate_every")
    @classmethod
    def _whole_steps(cls, every: float) -> float:
        if every >= 1 and every != int(every):
            raise ValueError(f"{every:g} steps are no whole number; give a share of all steps below 1, or whole steps")
        return every

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainerSettings:
        for name in ("decay", "decay_shape"):
            if self.schedule != "wsd" and getattr(self, name) != type(self).model_fields[name].default:
                problem = f"`{name}` is of `schedule: wsd`, and the schedule is {self.schedule}"
                raise ValueError(f"{problem}: leave it out, or write that schedule")
        if self.schedule == "constant" and self.min_rate:
            raise ValueError("`min_rate` is of schedules that fall, and the schedule is constant: leave it out")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            problem = f"`warmup` ({self.warmup:g}) and `decay` ({self.decay:g}) are more than all steps"
            raise ValueError(f"{problem}: lower one of them")
        return self


class SFTSettings(TrainerSettings):
    """Supervised fine-tuning on the assistant's turns of demonstrations."""

    method = "sft"
    takes = "demonstrations"
    reads = ("data", "sample", "verify", "rate", "score", "revise")
    best_by = (("validation_loss", True),)
    learning_rate: LearningRate = 2e-5
    template: str | None = None  # marks assistant turns; by default the base model's own

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
    keep_value_model: bool = True  # in `value`, in the model's folder: it took as much training as the policy

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
