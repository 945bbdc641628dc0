"""The settings of every trainer, with the data that it takes and the splits that it does not use.

To add a trainer: its settings here with their line in TRAINERS, and `train/NAME.py` with its line in `train.job`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlaif.config.document import Name, OneOrSeveral, Settings
from rlaif.records import Split

LearningRate = Annotated[float, Field(gt=0, le=1)]
Mix = Annotated[dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range of every random generator
TemplateArgument = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]
Precision = Literal["auto", "float32", "bfloat16"]
Takes = Literal["demonstrations", "preferences", "prompts"]


# What TRL, axolotl, LLaMA-Factory and OpenRLHF call a setting, and its name here: for the error of an unknown key. A
# name with a dot is one of a group's. What is said after a comma is where the two differ.
ELSEWHERE = {
    "per_device_train_batch_size": "batch_size, and counts the rows of all processes at once",
    **dict.fromkeys(("micro_batch_size", "train_batch_size"), "batch_size"),
    "gradient_accumulation_steps": "accumulate",
    **dict.fromkeys(("num_train_epochs", "num_epochs", "num_ppo_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "schedule"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps", "lr_warmup_ratio"), "warmup, and is a share of the steps"),
    **dict.fromkeys(("lr", "actor_learning_rate"), "learning_rate"),
    **dict.fromkeys(("min_lr", "min_lr_rate", "cosine_min_lr_ratio"), "min_rate"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "sequence_len", "cutoff_len", "max_len"), "max_length"),
    **dict.fromkeys(("eval_steps", "evals_per_epoch", "eval_strategy"), "evaluate_every"),
    **dict.fromkeys(("save_steps", "saves_per_epoch", "save_strategy"), "checkpoint_steps"),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model"), "keep"),
    **dict.fromkeys(("bf16", "torch_dtype"), "dtype"),
    "fp16": "dtype, and takes float32 or bfloat16",
    "gradient_checkpointing": "recompute",
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config"), "launch, and names a configuration of accelerate"),
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
    **dict.fromkeys(("rpo_alpha", "cpo_alpha", "pref_ftx", "nll_loss_coef"), "sft_weight"),
    "simpo_gamma": "gamma_beta_ratio, and is gamma divided by `beta`",
    **dict.fromkeys(("cliprange", "eps_clip"), "clip"),
    "cliprange_value": "value_clip",
    **dict.fromkeys(("lam", "lambd"), "gae_lambda"),
    **dict.fromkeys(("response_length", "max_new_tokens", "max_completion_length"), "max_tokens"),
    "max_steps": "iterations",  # of PPO; the others have it
    "total_episodes": "iterations, and counts batches of `batch_size` completions",
    "mini_batch_size": "minibatch_size",
    "critic_learning_rate": "value_learning_rate",
    **dict.fromkeys(("base_model", "model_name_or_path"), "base"),
    "reward_model_path": "reward",
    **dict.fromkeys(("dataset", "datasets", "dataset_name"), "data"),
    "output_dir": "name, or --out on the command line",
}
# Settings of theirs that have no counterpart here, and why none is needed.
NOWHERE = {
    "logging_steps": "leave it out: every step is in metrics.jsonl",
    **dict.fromkeys(("val_set_size", "eval_dataset"), "give --validation FILE, or `validation:` of the data stage"),
    "max_grad_norm": "leave it out: it is 1",
    "optim": "leave it out: it is AdamW",
    **dict.fromkeys(
        ("train_on_inputs", "assistant_only_loss", "completion_only_loss"),
        "leave it out: only the assistant's turns are learnt",
    ),
    "padding_free": "leave it out: rows are padded to the longest of their step",
    "precompute_ref_log_probs": "leave it out: the reference is always computed once and kept",
    "max_prompt_length": "leave it out: prompts are cut to fit `max_length`",
    "dataset_text_field": "write `plain_text: COLUMN` in the data stage",
    "vf_coef": "leave it out: the value model is apart from the policy, with a `value_learning_rate` of its own",
    "temperature": "leave it out: rollouts sample at temperature 1",
}
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


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


class Training(Settings):
    """The settings of every trainer. Sizes are in sequences and tokens."""

    method: ClassVar[str]  # its key in a pipeline file
    takes: ClassVar[Takes]  # its training data
    reads: ClassVar[tuple[str, ...]]  # the kinds of stage with such data
    unused: ClassVar[tuple[Split, ...]] = ("held-out",)  # splits that it does not use
    scores: ClassVar[bool] = False  # its model has a reward head and does not generate
    still: ClassVar[bool] = False  # it trains without dropout
    elsewhere: ClassVar[Mapping[str, str]] = ELSEWHERE
    nowhere: ClassVar[Mapping[str, str]] = NOWHERE

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
    dtype: Precision = "auto"  # computed in; auto: bfloat16 on a GPU that has it, else float32
    lora: LoRASettings | None = None
    save: Literal["adapter", "merged"] = "adapter"  # what is left of a LoRA training
    recompute: Literal["auto"] | bool = "auto"  # activations in the backward pass; auto: from 100 million parameters
    checkpoint_steps: int = Field(default=50, gt=0)
    report_to: Annotated[tuple[Tracker, ...], OneOrSeveral] = ()  # beside metrics.jsonl
    seed: Seed = 0

    @field_validator("name")
    @classmethod
    def _no_job(cls, name: str) -> str:
        if name.endswith(".partial"):
            raise ValueError("names in .partial are those of unfinished trainings")
        return name

    @model_validator(mode="after")
    def _of_an_adapter(self) -> Self:
        if self.lora is None and self.save == "merged":
            raise ValueError("`save: merged` is of an adapter: give `lora` too, or remove it")
        if self.lora is not None and self.lora.quantized and self.dtype == "float32":
            raise ValueError("`lora.quantized` computes in bfloat16: leave `dtype` out, or write bfloat16")
        if self.lora is not None and self.lora.dropout and self.still:
            raise ValueError(f"{self.method} trains without dropout, so `lora.dropout` would do nothing: remove it")
        return self

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
    max_steps: int | None = Field(default=None, gt=0)  # in place of `epochs`
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of the steps
    decay: float = Field(default=0.1, gt=0, le=1)  # share of the steps at the end, in which `wsd` falls
    decay_shape: Literal["1-sqrt", "linear"] = "1-sqrt"  # how it falls
    min_rate: float = Field(default=0.0, ge=0, lt=1)  # share of the learning rate that a falling schedule ends at
    weight_decay: float = Field(default=0.0, ge=0, le=1)  # of all weights but biases and norms
    evaluate_every: float = Field(default=0.25, gt=0)  # steps from one validation to the next; below 1 a share of all
    keep: Literal["last", "best"] = "last"  # the step whose weights are saved; best by validation
    # The weights are held in; auto: float32 where they are trained, and what is computed in where they are frozen.
    weights: Precision = "auto"

    processes: int = Field(default=1, gt=0, le=1024)  # that share each batch: one for each GPU
    launch: str | None = None  # a configuration of accelerate that starts them, such as accelerate/fsdp2.yaml

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
        switches = getattr(self, "mix_decay", None) is not None  # at the same step, whatever the schedule
        for name in ("decay_shape",) if switches else ("decay", "decay_shape"):
            if self.schedule != "wsd" and getattr(self, name) != type(self).model_fields[name].default:
                problem = f"`{name}` is of `schedule: wsd`, and the schedule is {self.schedule}"
                raise ValueError(f"{problem}: leave it out, or write that schedule")
        if self.schedule == "constant" and self.min_rate:
            raise ValueError("`min_rate` is of schedules that fall, and the schedule is constant: leave it out")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            problem = f"`warmup` ({self.warmup:g}) and `decay` ({self.decay:g}) are more than all steps"
            raise ValueError(f"{problem}: lower one of them")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        # By its value, not by whether it was given: a job's file holds every setting.
        if self.max_steps is not None and self.epochs != type(self).model_fields["epochs"].default:
            raise ValueError("`epochs` and `max_steps` both say how long it trains: give one of them")
        return self

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


class SFTSettings(TrainerSettings):
    """Supervised fine-tuning on the assistant's turns of demonstrations."""

    method = "sft"
    takes = "demonstrations"
    reads = ("data", "sample", "verify", "rate", "score", "revise")
    best_by = (("validation_loss", True),)
    learning_rate: LearningRate = 2e-5
    packing: bool = False  # several rows in one sequence of `max_length` tokens; `batch_size` then counts sequences
    # The share of each stage of `data`, by rows or by tokens; by default all rows once an epoch.
    mix: Mix | None = None
    mix_by: Literal["rows", "tokens"] = "rows"
    mix_decay: Mix | None = None  # another mixture for the last steps, of which `decay` is the share

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
        if self.packing and self.mix is not None and (self.mix_decay is not None or self.max_steps is not None):
            key = "max_steps" if self.mix_decay is None else "mix_decay"
            problem = f"a packed mixture has as many steps as its rows fill, so `{key}` has no place"
            raise ValueError(f"{problem}: remove it, or `packing`")
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


Loss = Literal["sigmoid", "ipo", "robust", "sigmoid_norm", "simpo"]  # by TRL's names, where it has them
BETAS: dict[str, float] = {"sigmoid": 0.1, "ipo": 0.1, "robust": 0.1, "sigmoid_norm": 5.0, "simpo": 2.0}


class DPOSettings(TrainerSettings):
    """Direct preference optimisation, against the frozen base unless the loss is reference-free.

    `train.preference_losses` has the losses with their formulas and sources.
    """

    method = "dpo"
    still = True
    takes = "preferences"
    reads = ("data", "pair")
    learning_rate: LearningRate = 5e-7
    loss: Loss = "sigmoid"
    beta: float = Field(default=BETAS["sigmoid"], gt=0)  # by default that of the loss in BETAS
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)  # the share of pairs that are the wrong way round
    soft_labels: bool = False  # how much each pair counts for either side is its probability
    gamma_beta_ratio: float | None = Field(default=None, ge=0)  # of simpo, whose default is 0.5
    ld_alpha: float | None = Field(default=None, ge=0, le=1)  # weight of tokens beyond the shorter one's length
    sft_weight: float = Field(default=0.0, ge=0)  # of the chosen one's negative log-likelihood per token
    group_by_length: bool = False  # steps of pairs of like lengths, for less padding

    @property
    def reference_free(self) -> bool:
        """Whether the loss needs no reference."""
        return self.loss == "simpo"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_loss(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        loss = values.get("loss", "sigmoid")
        own: dict[str, Any] = {"beta": BETAS[loss]} if isinstance(loss, str) and loss in BETAS else {}
        given = {name: value for name, value in values.items() if name != "gamma_beta_ratio" or value is not None}
        return own | ({"gamma_beta_ratio": 0.5} if loss == "simpo" else {}) | given

    @model_validator(mode="after")
    def _settings_fit_the_loss(self) -> DPOSettings:
        if self.soft_labels and self.label_smoothing:
            raise ValueError("`soft_labels` and `label_smoothing` both say how sure the labels are: give one of them")
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("`loss: robust` is `sigmoid` without a `label_smoothing` between 0 and 0.5: give it")
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("`label_smoothing` is of the logistic losses, and `loss: ipo` is a square: remove it")
        if self.loss in ("ipo", "robust") and self.soft_labels:
            raise ValueError(f"`loss: {self.loss}` takes no `soft_labels`: use sigmoid, sigmoid_norm or simpo")
        if self.loss != "simpo" and self.gamma_beta_ratio is not None:
            raise ValueError(f"`gamma_beta_ratio` is of `loss: simpo`, and the loss is {self.loss}: remove it")
        if self.loss not in ("sigmoid", "robust") and self.ld_alpha is not None:
            raise ValueError(f"`loss: {self.loss}` is length-averaged already, so `ld_alpha` has no place: remove it")
        return self


class RMSettings(TrainerSettings):
    """A reward model. `center` weights the squared sum of a pair's scores, which keeps them around zero.

    `batch_size` counts groups: pairs, or with `grouping: prompt` prompts with up to `group_size` completions each.
    """

    method = "rm"
    still = True
    scores = True
    takes = "preferences"
    reads = ("data", "pair")
    learning_rate: LearningRate = 1e-5
    center: float = Field(default=0.01, ge=0)
    grouping: Literal["pair", "prompt"] = "pair"  # what is in one group: a completion of a group is forwarded once
    group_size: int = Field(default=9, ge=2)  # the most completions of a group
    loss: Literal["pairs", "plackett_luce"] = "pairs"
    margin_scale: float = Field(default=0.0, ge=0)  # times a pair's margin, subtracted inside the sigmoid
    soft_labels: bool = False  # the target is a pair's probability
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)  # the share of labels taken to be wrong
    normalize: bool = True  # training completions score 0 on average, with a deviation of 1

    @property
    def uses_margins(self) -> bool:
        return self.margin_scale > 0

    @model_validator(mode="after")
    def _one_way_to_say_how_far_apart(self) -> RMSettings:
        if self.margin_scale and self.soft_labels:
            raise ValueError("`margin_scale` and `soft_labels` both say how far a pair is apart: give one of them")
        if self.loss == "plackett_luce":
            if self.grouping != "prompt":
                raise ValueError("`loss: plackett_luce` ranks the completions of a prompt: add `grouping: prompt`")
            for name in ("margin_scale", "soft_labels", "label_smoothing"):
                if getattr(self, name):
                    raise ValueError(f"`loss: plackett_luce` ranks, and takes no `{name}`: remove one of them")
        return self


class PPOSettings(Training):
    """Proximal policy optimisation with a reward model, or with checks in code.

    An iteration is one batch of completions and its updates.
    """

    method = "ppo"
    still = True
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
    minibatch_size: int = Field(default=16, gt=0)  # completions in one update
    accumulate: int = Field(default=1, gt=0)  # pieces that a minibatch is computed in, one after another
    sample_batch_size: int | None = Field(default=None, gt=0)  # completions sampled at once; by default the whole batch
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
    keep_value_model: bool = True  # in `value`, in the model's folder: it took as much training as the policy

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
    def _whole_numbers(self) -> PPOSettings:
        if self.lora is not None and self.lora.quantized:
            raise ValueError("`lora.quantized` is of sft, rm and dpo, and ppo samples from its base: remove it")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> PPOSettings:
        if self.batch_size % self.minibatch_size:
            raise ValueError(f"`batch_size` ({self.batch_size}) is not a multiple of `minibatch_size`")
        if self.accumulate > self.minibatch_size:
            problem = f"`minibatch_size` ({self.minibatch_size}) is less than `accumulate` ({self.accumulate})"
            raise ValueError(f"{problem}: each piece needs a completion")
        if self.max_tokens >= self.max_length:
            raise ValueError(f"`max_tokens` ({self.max_tokens}) leaves no room for a prompt in `max_length`")
        return self


TRAINERS: dict[str, type[Training]] = {
    "sft": SFTSettings,
    "rm": RMSettings,
    "dpo": DPOSettings,
    "ppo": PPOSettings,
}
