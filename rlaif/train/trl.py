"""The one module that touches TRL, and the settings of TRL and of its base trainer that this project relies on.

It runs, resumes and evaluates a trainer. Written against TRL 1.16 on transformers 5.23. Rows reach TRL as token ids
with their masks, so its templating, truncation and masking are not used.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import BatchRebalanceSampler
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from rlaif.config import DPOSettings, RMSettings, SFTSettings, TrainerSettings
from rlaif.engines.transformers import PEFT_ON_EXPERTS
from rlaif.engines.transformers import quietly as transformers_quietly
from rlaif.errors import InputError, WorkError
from rlaif.train import lora, models, precision, ranks
from rlaif.train.examples import OnStep
from rlaif.train.models import TrainResult
from rlaif.train.tokens import Counts

Columns = Mapping[str, list[Any]]

SMALL = 100_000_000  # parameters; below, activations fit in memory and recomputing them only costs time
REPORTED = ("loss", "aux_loss", "learning_rate", "grad_norm")
REPORTED_DPO = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
REPORTED_RM = ("accuracy", "margin", "mean_reward")
VALIDATED = {
    "eval_loss": "validation_loss",
    "eval_accuracy": "validation_accuracy",
    "eval_margin": "validation_margin",
    "eval_rewards/accuracies": "validation_accuracy",
    "eval_rewards/margins": "validation_margin",
}


class TokenizedData(NamedTuple):
    """Training and validation rows as columns of token ids, and the counts of both."""

    train: Columns
    validation: Columns
    counts: Counts


# ---------------------------------------------------------------- the settings relied on


def common_fields(settings: TrainerSettings, folder: Path, parameters: int) -> dict[str, Any]:
    """The settings of all trainers. Every name must exist in TRL's configurations, which a test checks."""
    schedule = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    recompute = parameters >= SMALL if settings.recompute == "auto" else settings.recompute
    return _recompute(recompute) | {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": math.ceil(settings.batch_size / ranks.count()),
        "per_device_eval_batch_size": math.ceil(settings.batch_size / ranks.count()),
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": schedule,
        "warmup_steps": settings.warmup,  # below 1, so a share of the steps
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": settings.max_length,
        "seed": settings.seed,
        # What it computes in; what the weights are held in is another setting: `train.precision`.
        "bf16": precision.computed_in(settings) == torch.bfloat16,
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_steps,
        "save_total_limit": 2,  # the older one remains while the newer is being written
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _recompute(on: bool) -> dict[str, Any]:
    """Activation checkpointing under the name in this version of transformers; TRL's default sets the old one."""
    names = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    if "activation_checkpointing" in names:
        return {"activation_checkpointing": on, "gradient_checkpointing": None}
    return {"gradient_checkpointing": on}


def sft_fields(settings: SFTSettings) -> dict[str, Any]:
    return {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": False, "loss_type": "nll"}


def dpo_fields(settings: DPOSettings) -> dict[str, Any]:
    # The reference is the base model before the first step. Its log-probabilities are precomputed: a quarter less time
    # than at every step, and one model in memory instead of two.
    return {
        "beta": settings.beta,
        "loss_type": ["sigmoid"],
        "disable_dropout": True,
        "precompute_ref_log_probs": True,
    }


def rm_fields(settings: RMSettings) -> dict[str, Any]:
    return {"center_rewards_coefficient": settings.center or None, "disable_dropout": True}


def configured(config: type, fields: Mapping[str, Any]) -> Any:
    """An instance of a TRL configuration. Raises WorkError naming the settings that the installed TRL lacks."""
    missing = set(fields) - {field.name for field in dataclasses.fields(config)}
    if missing:
        raise WorkError(
            f"the installed TRL has no setting {', '.join(sorted(missing))} in its {config.__name__}",
            fix="install trl>=1.16,<2",
        )
    return config(**fields)


# ---------------------------------------------------------------- the trainers


class _Ours:
    """A trainer without telemetry and model card, whose first step has a learning rate above 0."""

    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The base trainer's schedules, except that its first step has a learning rate of 0."""
        args = self.args
        shares = share_of_rate(args.lr_scheduler_type, args.get_warmup_steps(num_training_steps), num_training_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, shares)
        return self.lr_scheduler

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> Any:
        """The base trainer's AdamW, or that of bfloat16 weights, with its settings."""
        kind, named = super().get_optimizer_cls_and_kwargs(args, model)  # type: ignore[misc]
        trained = {weight.dtype for weight in self.model.parameters() if weight.requires_grad}
        if trained != {torch.bfloat16}:
            return kind, named
        return precision.RoundedAdamW, {name: named[name] for name in ("lr", "betas", "eps") if name in named}

    def _send_telemetry(self) -> None: ...

    def create_model_card(self, *_: Any, **__: Any) -> None: ...


class _Weighed:
    """Means over rows, where TRL takes the mean of its batches' means: rows of a smaller last batch would weigh more.

    So a step of several batches has the loss and the gradient of one batch, and what validation measures does not
    depend on its batch size. The load-balancing loss of a mixture of experts, which TRL adds, is reported apart.

    Of several processes each takes its share of every batch, of whatever size: together they have the loss, the
    gradient and the metrics of one.
    """

    args: Any
    model: Any
    state: Any
    accelerator: Any
    train_dataset: Any
    eval_dataset: Any
    _metrics: Any
    _weights: list[int]
    _due: list[int]
    _step_weight: float
    router_aux_loss_coef = 0.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._weights = []  # of the batches since the last log
        self._due = []  # of those of this step that are still to come
        if ranks.count() > 1:  # metrics are means of this process, and put together where they are logged
            self.accelerator.gather_for_metrics = self.gather_function = _kept_apart

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if ranks.count() == 1:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        rows = len(self.train_dataset if train_dataset is None else train_dataset)
        return Shares(rows, self._batch_size, epoch=lambda: int(self.state.epoch or 0), seed=torch.initial_seed())

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if ranks.count() == 1:
            return super()._get_eval_sampler(eval_dataset)  # type: ignore[misc]
        return Shares(len(eval_dataset), self._batch_size)

    @property
    def _batch_size(self) -> int:
        """The rows at once in all processes."""
        return int(self.args.total_batch_size)

    def _idle(self, rows: int) -> bool:
        """Whether the batch at hand is the last of a pass, and holds a row only so that this process has one."""
        last = self.accelerator.gradient_state.end_of_dataloader
        return bool(last) and 0 < rows % self._batch_size <= ranks.rank()

    def _get_num_items_in_batch(self, batches: list[Any], device: Any) -> Any:
        if batches and "labels" in batches[-1] and self._idle(len(self.train_dataset)):
            batches[-1]["labels"] = torch.full_like(batches[-1]["labels"], -100)
        return super()._get_num_items_in_batch(batches, device)  # type: ignore[misc]

    def weight(self, inputs: Any) -> int:
        """What a batch counts: its pairs, of which it holds chosen and rejected."""
        return len(inputs["input_ids"]) // 2

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        batches, items = super().get_batch_samples(*arguments, **named)  # type: ignore[misc]
        self._due = list(map(self.weight, batches))
        if batches and self._idle(len(self.train_dataset)):
            self._due[-1] = 0
        self._step_weight = _summed([sum(self._due)])[0] / (ranks.count() * max(1, len(batches)))
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        training = self.model.training
        weight = self._due.pop(0) if training else 0 if self._idle(len(self.eval_dataset)) else self.weight(inputs)
        self._weights.append(weight)
        with _apart(self.accelerator):
            computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        loss, *outputs = computed if return_outputs else (computed,)
        if not training:
            self._metrics["eval"]["loss"].append(loss.item())
        elif num_items_in_batch is None:  # else it is a share of the step's sum already
            loss = loss * (weight / self._step_weight)
        return (loss, *outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        means = [name for name, values in metrics.items() if self._weights and len(values) == len(self._weights)]
        sums = [
            sum(value * weight for value, weight in zip(metrics[name], self._weights, strict=True)) for name in means
        ]
        total, *weighed = _summed([sum(self._weights), *sums])
        if total > 0:
            metrics.update((name, [value / total]) for name, value in zip(means, weighed, strict=True))
        self._weights.clear()
        if "aux_loss" in metrics:
            term = self.router_aux_loss_coef * metrics["aux_loss"][0]
            if "loss" in logs:
                logs["loss"] -= term
            if "loss" in metrics:
                metrics["loss"][0] -= term
        super().log(logs, start_time)  # type: ignore[misc]


class _SFT(_Weighed, _Ours, SFTTrainer):
    def weight(self, inputs: Any) -> int:
        """The tokens trained on; the first of a row is predicted by nothing."""
        return int((inputs["labels"][:, 1:] != -100).sum())


class _DPO(_Weighed, _Ours, DPOTrainer):
    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        """Skipped: the rows are token ids already, and DPOTrainer has no setting for that."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Kept in the job's folder, where every process finds what the first has written; TRL's place is its own."""
        kept = Path(self.args.output_dir)
        dataset._get_cache_file_path = lambda digest: str(kept / f"reference-{name}-{digest}.arrow")
        return super()._precompute_ref_logps(dataset, name, batch_size)


class _Reward(_Weighed, _Ours, RewardTrainer):
    pass


class Shares(BatchRebalanceSampler):
    """This process's rows of every batch, where a batch is shared by several.

    The batches are those of one process: rows in order, or shuffled with a `seed` for each `epoch` as accelerate does.
    Of a batch with fewer rows than processes, one without a share repeats a row, which counts nothing. Being of this
    class, it is not shared out again.
    """

    def __init__(
        self, rows: int, batch_size: int, epoch: Callable[[], int] = lambda: 0, seed: int | None = None
    ) -> None:
        # Not named `batch_size`: accelerate would drop batches of any other size.
        self.rows, self.size, self.of_epoch, self.first_seed = rows, batch_size, epoch, seed

    def __len__(self) -> int:
        return math.ceil(self.rows / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.rows))
        if self.first_seed is not None:
            generator = torch.Generator().manual_seed(self.first_seed + self.of_epoch())
            order = torch.randperm(self.rows, generator=generator).tolist()
        for start in range(0, self.rows, self.size):
            batch = order[start : start + self.size]
            yield batch[ranks.rank() :: ranks.count()] or batch[:1]

    def set_epoch(self, epoch: int) -> None:
        """Ignored: a resumed epoch's sampler is not told."""


def _kept_apart(tensors: Any, *_: Any, **__: Any) -> Any:
    return tensors


@contextmanager
def _apart(accelerator: Any) -> Iterator[None]:
    """No gathering of metrics inside, of processes whose batches may differ in size."""
    if ranks.count() == 1:
        yield
        return
    accelerator.gather = _kept_apart
    try:
        yield
    finally:
        del accelerator.gather


def _summed(values: Sequence[float]) -> list[float]:
    """Each of the values, summed over the processes."""
    if ranks.count() == 1:
        return list(values)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(shared)
    return list(shared.tolist())


def in_any(mine: bool) -> bool:
    """Whether it is so in any of the processes; each must ask."""
    return _summed([float(mine)])[0] > 0


def share_of_rate(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """The share of the learning rate at a step, counted from 0: a linear warm-up, then `schedule`."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        left = 1 - (step - warmup) / max(1, steps - warmup)  # 1 right after the warm-up, 0 after the last step
        if schedule == "cosine":
            return 0.5 * (1 - math.cos(math.pi * max(0.0, left)))
        return max(0.0, left) if schedule == "linear" else 1.0

    return share


class _Steps(transformers.TrainerCallback):
    """Reports each step, stops on a loss that is not finite, and marks complete checkpoints."""

    def __init__(self, on_step: OnStep, first: Callable[[float], None] | None) -> None:
        self.on_step, self.first = on_step, first

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise WorkError(f"the loss is {logs['loss']} at step {state.global_step}", fix="lower `learning_rate`")
        if self.first is not None and state.global_step == 1:
            self.first(logs["loss"])
        steps = {"step": state.global_step, "steps": state.max_steps}
        self.on_step(
            {**steps, **{name: logs[name] for name in (*REPORTED, *REPORTED_DPO, *REPORTED_RM) if name in logs}}
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if in_any(True) and not ranks.is_first():  # every process has saved its random state
            return
        models.mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def learn(
    settings: TrainerSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TokenizedData,
    folder: Path,
    on_step: OnStep,
    began: float,
) -> TrainResult:
    """Train `model` by the method of `settings`, from the last checkpoint in the job's `folder`, and save it.

    Rows are token ids. SFT: `input_ids` and `labels`, where -100 is ignored. DPO: `prompt_ids`, `chosen_ids` and
    `rejected_ids`. Reward model: `chosen_ids` and `rejected_ids`, each a prompt and a completion. `began` is
    `time.monotonic()` at the start of the training. Raises WorkError for a loss that is not finite, InputError when
    several GPUs are visible.
    """
    kind, config, own = _METHODS[type(settings)]
    fields = common_fields(settings, folder, model.num_parameters()) | own(settings)
    with _config_kept(model), nullcontext() if isinstance(settings, SFTSettings) else models.still(model):
        adapter = None
        if settings.lora is not None:
            adapter = lora.config_of(settings.lora, model, scores=settings.scores)
        arguments = configured(config, fields)
        arguments.total_batch_size = settings.batch_size
        trainer = _trainer(kind, arguments, model, tokenizer, data, on_step, adapter)
        run(trainer)
        metrics = evaluate(trainer)
    trained, whole = trainer.accelerator.unwrap_model(trainer.model), _whole(trainer)
    made: dict[str, Any] = {"steps": int(trainer.state.global_step), "metrics": metrics, "began": began}
    if not ranks.is_first():
        return models.result(data.counts, **made)
    saved = models.save(trained, tokenizer, folder, data.counts, **made, whole=whole)
    if settings.save == "merged":
        models.merge(folder)
    return saved


def _whole(trainer: Any) -> Any:
    """The weights of a model that lies in shards on several GPUs, gathered by all of them; None of any other."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return None


_METHODS: dict[type, tuple[type, type, Callable[[Any], dict[str, Any]]]] = {
    SFTSettings: (_SFT, SFTConfig, sft_fields),
    RMSettings: (_Reward, RewardConfig, rm_fields),
    DPOSettings: (_DPO, DPOConfig, dpo_fields),
}


def _trainer(
    kind: type, config: Any, model: Any, tokenizer: Any, data: TokenizedData, on_step: OnStep, adapter: Any
) -> Any:
    if config.n_gpu > 1:
        raise InputError("several GPUs are visible to one process", fix="set CUDA_VISIBLE_DEVICES=0")
    trainer = kind(
        model=model,
        args=config,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict(dict(data.train)),
        eval_dataset=datasets.Dataset.from_dict(dict(data.validation)) if any(data.validation.values()) else None,
        peft_config=adapter,
        callbacks=[_Steps(on_step, first_of_dpo if isinstance(config, DPOConfig) else None)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


@contextmanager
def _config_kept(model: PreTrainedModel) -> Iterator[None]:
    """Set back what TRL sets of a mixture of experts: a saved `output_router_logits` would break its sampling."""
    config: Any = model.config.get_text_config()
    names = [name for name in ("output_router_logits", "router_aux_loss_coef") if hasattr(config, name)]
    before = {name: getattr(config, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def first_of_dpo(loss: float) -> None:
    """Raise WorkError when the first loss of DPO is not ln 2: policy and reference are the same model before a step.

    The tolerance is bfloat16's.
    """
    if abs(loss - math.log(2)) > 0.02:
        raise WorkError(
            f"the first loss of DPO is {loss:.4f} and must be ln 2, {math.log(2):.4f}: the model gives a text another "
            "probability each time",
            fix="report the architecture of the base model; SFT and reward models do not depend on this",
        )


# ---------------------------------------------------------------- run


def run(trainer: Any) -> None:
    """Train to the end, from the newest complete checkpoint, if any."""
    checkpoint = models.newest_checkpoint(Path(trainer.args.output_dir))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def evaluate(trainer: Any) -> dict[str, float]:
    """First and last training loss, and the validation metrics, if there are validation rows."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics = {"first_loss": losses[0], "last_loss": losses[-1]}
    if trainer.eval_dataset is not None:
        validated = trainer.evaluate()
        metrics |= {ours: float(validated[theirs]) for theirs, ours in VALIDATED.items() if theirs in validated}
    return metrics


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars or warnings from the libraries; progress is reported through `on_step`."""
    data_bars = datasets.are_progress_bars_disabled()
    levels = {name: logging.getLogger(name).level for name in ("trl", "accelerate")}
    tqdm = os.environ.get("TQDM_DISABLE")
    datasets.disable_progress_bars()
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"  # TRL's only switch for the bar of the reference's log-probabilities
    try:
        with transformers_quietly(), warnings.catch_warnings():
            # TRL 1.16 still uses this property's old name.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            warnings.filterwarnings("ignore", message=PEFT_ON_EXPERTS)
            # A checkpoint of an adapter may hold the row of a new padding token; what is saved in the end does not.
            warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
            yield
    finally:
        if not data_bars:
            datasets.enable_progress_bars()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if tqdm is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = tqdm
