"""The settings of every trainer, with the data that it takes and the splits that it does not use.

To add a trainer: its settings here with their line in TRAINERS, and `train/NAME.py` with its line in `train.job`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlaif.config.document import Counterpart, Name, OneOrSeveral, Settings
from rlaif.records import Split

LearningRate = Annotated[float, Field(gt=0, le=1, description="the highest rate of AdamW's updates")]
Mix = Annotated[dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range of every random generator
TemplateArgument = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]
Precision = Literal["auto", "float32", "bfloat16"]
Takes = Literal["demonstrations", "preferences", "prompts"]


# What TRL, axolotl, LLaMA-Factory and OpenRLHF call a setting, and its name here: for the error of an unknown key.
ELSEWHERE = {
    "per_device_train_batch_size": Counterpart("batch_size", differs="and counts the rows of all processes at once"),
    **dict.fromkeys(("micro_batch_size", "train_batch_size"), Counterpart("batch_size")),
    "gradient_accumulation_steps": Counterpart("accumulate"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "num_ppo_epochs", "max_epochs"), Counterpart("epochs")),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), Counterpart("schedule")),
    **dict.fromkeys(
        ("warmup_ratio", "warmup_steps", "lr_warmup_ratio"),
        Counterpart("warmup", differs="and is a share of the steps"),
    ),
    **dict.fromkeys(("lr", "actor_learning_rate"), Counterpart("learning_rate")),
    **dict.fromkeys(("min_lr", "min_lr_rate", "cosine_min_lr_ratio"), Counterpart("min_rate")),
    **dict.fromkeys(
        ("max_seq_length", "max_seq_len", "sequence_len", "cutoff_len", "max_len"), Counterpart("max_length")
    ),
    **dict.fromkeys(("eval_steps", "evals_per_epoch", "eval_strategy"), Counterpart("evaluate_every")),
    **dict.fromkeys(("save_steps", "saves_per_epoch", "save_strategy"), Counterpart("checkpoint_steps")),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model"), Counterpart("keep")),
    **dict.fromkeys(("bf16", "torch_dtype"), Counterpart("dtype")),
    "fp16": Counterpart("dtype", differs="and takes float32 or bfloat16"),
    "gradient_checkpointing": Counterpart("recompute"),
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config"), Counterpart("launch", differs="and names a configuration of accelerate")
    ),
    **dict.fromkeys(("rl_beta", "pref_beta", "kl_coef", "init_kl_coef"), Counterpart("beta")),
    "center_rewards_coefficient": Counterpart("center"),
    **dict.fromkeys(("chat_template", "chat_template_path"), Counterpart("template")),
    **dict.fromkeys(("lora_r", "lora_rank"), Counterpart("lora", inner="r")),
    "lora_alpha": Counterpart("lora", inner="alpha"),
    "lora_dropout": Counterpart("lora", inner="dropout"),
    **dict.fromkeys(("lora_target_modules", "lora_target", "lora_target_linear"), Counterpart("lora", inner="target")),
    **dict.fromkeys(("load_in_4bit", "quantization_bit"), Counterpart("lora", inner="quantized")),
    **dict.fromkeys(("use_peft", "adapter", "finetuning_type"), Counterpart("lora")),
    **dict.fromkeys(("sample_packing", "neat_packing", "packing_samples"), Counterpart("packing")),
    "l2": Counterpart("weight_decay"),
    "data_seed": Counterpart("seed"),
    **dict.fromkeys(("use_wandb", "wandb_project"), Counterpart("report_to")),
    **dict.fromkeys(("loss_type", "pref_loss", "dpo_loss_type"), Counterpart("loss")),
    "dpo_label_smoothing": Counterpart("label_smoothing"),
    **dict.fromkeys(("rpo_alpha", "cpo_alpha", "pref_ftx", "nll_loss_coef"), Counterpart("sft_weight")),
    "simpo_gamma": Counterpart("gamma_beta_ratio", differs="and is gamma divided by `beta`"),
    **dict.fromkeys(("cliprange", "eps_clip"), Counterpart("clip")),
    "cliprange_value": Counterpart("value_clip"),
    **dict.fromkeys(("lam", "lambd"), Counterpart("gae_lambda")),
    **dict.fromkeys(("response_length", "max_new_tokens", "max_completion_length"), Counterpart("max_tokens")),
    "max_steps": Counterpart("iterations"),  # of PPO; the others have it
    "total_episodes": Counterpart("iterations", differs="and counts batches of `batch_size` completions"),
    "mini_batch_size": Counterpart("minibatch_size"),
    "critic_learning_rate": Counterpart("value_learning_rate"),
    **dict.fromkeys(("base_model", "model_name_or_path"), Counterpart("base")),
    "reward_model_path": Counterpart("reward"),
    **dict.fromkeys(("dataset", "datasets", "dataset_name"), Counterpart("data")),
    "output_dir": Counterpart("name", differs="or --out on the command line"),
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

    r: int = Field(default=16, gt=0, le=4096, description="its rank")
    alpha: float = Field(default=32, gt=0, description="it is scaled by alpha / r")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of its input")  # TRL's is 0.05
    target: Literal["all-linear"] | tuple[ModuleName, ...] = Field(
        default="all-linear",
        description="the linear layers that get one: all but the head, or those whose names end so",
    )
    # QLoRA: Dettmers et al. 2023, arXiv 2305.14314.
    quantized: Literal["4bit"] | None = Field(default=None, description="how the frozen base is held, in 4 bits")

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
    elsewhere: ClassVar[Mapping[str, Counterpart]] = ELSEWHERE
    nowhere: ClassVar[Mapping[str, str]] = NOWHERE

    # The description of a setting is what `rlaif train METHOD --help` says of it.
    base: Name = Field(description="the model to start from")
    name: Name = Field(description="the trained model's name")
    data: Annotated[tuple[Name, ...], OneOrSeveral, Field(min_length=1)] | None = Field(
        default=None, description="the stages with its data, one or several; by default the nearest of the right kind"
    )
    template: str | None = Field(default=None, description="a file with a chat template; by default the base's own")
    template_arguments: dict[TemplateArgument, bool | int | float | str] = Field(
        default={}, description="what the template is called with, such as {enable_thinking: false}"
    )
    system: Literal["keep", "merge", "skip"] = Field(
        default="keep",
        description="a system message: as the template has it, put before the user's words, or its row left out",
    )
    learning_rate: LearningRate
    max_length: int = Field(default=1024, gt=0, description="the most tokens of a row")
    dtype: Precision = Field(
        default="auto", description="what is computed in; auto: bfloat16 on a GPU that has it, else float32"
    )
    lora: LoRASettings | None = Field(
        default=None, description="an adapter in place of the weights, such as {r: 16}; its settings:"
    )
    save: Literal["adapter", "merged"] = Field(
        default="adapter", description="what a LoRA training leaves: the adapter, or the whole model"
    )
    recompute: Literal["auto"] | bool = Field(
        default="auto", description="activations are computed again backwards; auto: from 100 million parameters on"
    )
    checkpoint_steps: int = Field(default=50, gt=0, description="steps from one checkpoint to the next")
    report_to: Annotated[tuple[Tracker, ...], OneOrSeveral] = Field(
        default=(), description="trackers that get the figures beside metrics.jsonl"
    )
    seed: Seed = Field(default=0, description="of every random draw")

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

    excess_length: Literal["truncate", "drop", "raise"] = Field(
        default="truncate",
        description="a row over `max_length`: its prompt cut from the left where half stays, or dropped, or refused",
    )
    epochs: float = Field(default=1.0, gt=0, description="passes over the training rows")
    batch_size: int = Field(default=16, gt=0, description="rows at once, in all processes")
    accumulate: int = Field(default=1, gt=0, description="batches that make one step")
    max_steps: int | None = Field(default=None, gt=0, description="steps in all, in place of `epochs`")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine", description="how the learning rate falls after its warm-up"
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps in which the rate rises")
    decay: float = Field(default=0.1, gt=0, le=1, description="share of the steps at the end, in which `wsd` falls")
    decay_shape: Literal["1-sqrt", "linear"] = Field(default="1-sqrt", description="how `wsd` falls")
    min_rate: float = Field(
        default=0.0, ge=0, lt=1, description="share of the learning rate that a falling schedule ends at"
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="of all weights but biases and norms")
    evaluate_every: float = Field(
        default=0.25, gt=0, description="steps from one validation to the next; below 1 a share of all"
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="the step whose weights are saved; best by validation"
    )
    weights: Precision = Field(
        default="auto", description="what the weights are held in; auto: float32, or `dtype` where they are frozen"
    )

    processes: int = Field(default=1, gt=0, le=1024, description="how many share each batch: one for each GPU")
    launch: str | None = Field(
        default=None, description="a configuration of accelerate that starts them, such as accelerate/fsdp2.yaml"
    )

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
    packing: bool = Field(
        default=False, description="several rows in one sequence of `max_length`; `batch_size` then counts sequences"
    )
    mix: Mix | None = Field(
        default=None, description="the share of each stage of `data`; by default all rows once an epoch"
    )
    mix_by: Literal["rows", "tokens"] = Field(default="rows", description="what the shares are of")
    mix_decay: Mix | None = Field(
        default=None, description="another mixture for the last steps, of which `decay` is the share"
    )

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
    loss: Loss = Field(default="sigmoid", description="the loss of a pair")
    beta: float = Field(
        default=BETAS["sigmoid"],
        gt=0,
        description="how close the policy stays to the reference; by default "
        + ", ".join(f"{beta:g} for {loss}" for loss, beta in BETAS.items()),
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="the share of pairs that are the wrong way round"
    )
    soft_labels: bool = Field(default=False, description="how much a pair counts for either side is its probability")
    gamma_beta_ratio: float | None = Field(
        default=None, ge=0, description="the margin of `simpo` in units of beta, by default 0.5 there"
    )
    ld_alpha: float | None = Field(
        default=None, ge=0, le=1, description="weight of the tokens beyond the shorter completion's length"
    )
    sft_weight: float = Field(
        default=0.0, ge=0, description="of the chosen completion's negative log-likelihood per token"
    )
    group_by_length: bool = Field(default=False, description="steps of pairs of like lengths, for less padding")

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
    center: float = Field(
        default=0.01, ge=0, description="weight of the squared sum of a pair's scores, which keeps them around zero"
    )
    grouping: Literal["pair", "prompt"] = Field(
        default="pair", description="what is in one group, in which a completion is forwarded once"
    )
    group_size: int = Field(default=9, ge=2, description="the most completions of a group")
    loss: Literal["pairs", "plackett_luce"] = Field(
        default="pairs", description="of the pairs of a group, or of its whole ranking"
    )
    margin_scale: float = Field(default=0.0, ge=0, description="times a pair's margin, subtracted inside the sigmoid")
    soft_labels: bool = Field(default=False, description="the target is a pair's probability")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="the share of labels that are taken to be wrong"
    )
    normalize: bool = Field(default=True, description="training completions score 0 on average, with a deviation of 1")

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
    reward: Name | None = Field(default=None, description="the reward model, from whose weights the value model starts")
    checks: tuple[dict[str, Any], ...] | None = Field(
        default=None, description="checks in code, in place of a reward model: the reward is the share that passes"
    )
    learning_rate: LearningRate = 1e-6
    value_learning_rate: LearningRate | None = Field(
        default=None, description="that of the value model, by default the policy's"
    )
    schedule: Literal["linear", "constant"] = Field(default="linear", description="how the learning rate falls")
    iterations: int = Field(default=100, gt=0, description="batches of completions, each with its updates")
    batch_size: int = Field(default=64, gt=1, description="completions of an iteration")
    minibatch_size: int = Field(default=16, gt=0, description="completions of an update")
    accumulate: int = Field(default=1, gt=0, description="pieces that a minibatch is computed in, one after another")
    sample_batch_size: int | None = Field(
        default=None, gt=0, description="completions sampled at once, by default the whole batch"
    )
    epochs: int = Field(default=4, gt=0, description="passes over each batch")
    max_tokens: int = Field(default=256, gt=0, description="the most tokens of a completion")
    beta: float = Field(default=0.05, ge=0, description="weight in the reward of the KL divergence from the base model")
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount of the rewards of later tokens")
    gae_lambda: float = Field(
        default=0.95, ge=0, le=1, description="lambda of the advantages (generalised advantage estimation)"
    )
    clip: float = Field(default=0.2, gt=0, description="how far from 1 the ratio of probabilities counts")
    value_clip: float = Field(default=0.2, gt=0, description="how far from its old value a new one counts")
    missing_eos_penalty: float = Field(
        default=1.0, ge=0, description="subtracted from the score of a completion that does not end"
    )
    checkpoint_steps: int = Field(default=10, gt=0, description="iterations from one checkpoint to the next")
    split: Literal["hash", "all"] = Field(
        default="hash", description="the prompts that the hash leaves for training, or all of them"
    )
    keep_value_model: bool = Field(default=True, description="in the folder `value` of the model's")

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
    def _not_quantized(self) -> PPOSettings:
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
