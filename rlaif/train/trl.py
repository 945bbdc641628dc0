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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from rlaif.config import DPOSettings, RMSettings, SFTSettings, TrainerSettings
from rlaif.engines.transformers import quietly as transformers_quietly
from rlaif.errors import InputError, WorkError
from rlaif.train import models, reporting
from rlaif.train.examples import OnStep
from rlaif.train.models import TrainResult
from rlaif.train.schedules import schedule_of
from rlaif.train.steps import Steps, tokens_before, validations
from rlaif.train.tokens import Counts

Columns = Mapping[str, list[Any]]

SMALL = 100_000_000  # parameters; below, activations fit in memory and recomputing them only costs time
EXTREMES: dict[str, Callable[[list[float]], float]] = {"min_reward": min, "max_reward": max}  # of a step's batches
SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
}


class TokenizedData(NamedTuple):
    """Training and validation rows as columns of token ids, and the counts of both."""

    train: Columns
    validation: Columns
    counts: Counts


# ---------------------------------------------------------------- the settings relied on


def common_fields(settings: TrainerSettings, folder: Path, parameters: int) -> dict[str, Any]:
    """The settings of all trainers. Every name must exist in TRL's configurations, which a test checks."""
    return _recompute(parameters >= SMALL) | {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,  # without, as many as `num_train_epochs` has
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": SCHEDULES[settings.schedule],  # a tracker's label: `schedules` has the rates
        "warmup_steps": settings.warmup,  # below 1, so a share of the steps
        "weight_decay": settings.weight_decay,  # the base trainer leaves out biases and norms
        "max_grad_norm": 1.0,
        "max_length": settings.max_length,
        "seed": settings.seed,
        # Weights and optimiser stay in float32 under bfloat16: its 8 bits of precision would lose a step at 5e-7.
        "bf16": settings.dtype == "bfloat16",
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_steps,
        "save_total_limit": 2,  # the older one remains while the newer is being written
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "no",  # TRL counts them
        "report_to": reporting.usable(settings.report_to),
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
    """A trainer with our schedules, without telemetry and TRL's model card."""

    args: Any
    optimizer: Any
    lr_scheduler: Any
    settings: TrainerSettings

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Our schedules: the first step of the base trainer's has a learning rate of 0."""
        shares = schedule_of(self.settings, num_training_steps).share
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, shares)
        return self.lr_scheduler

    def evaluate(self, *arguments: Any, **named: Any) -> Any:
        """Validation draws no random number of the training's, so how often there is one changes no weight."""
        with torch.random.fork_rng(devices=[]):  # data loaders draw a seed on the CPU
            return super().evaluate(*arguments, **named)  # type: ignore[misc]

    def _send_telemetry(self) -> None: ...

    def create_model_card(self, *_: Any, **__: Any) -> None: ...


class _Weighed:
    """Means over rows, where TRL takes the mean of its batches' means: rows of a smaller last batch would weigh more.

    So a step of several batches has the loss and the gradient of one batch, and what validation measures does not
    depend on its batch size. The load-balancing loss of a mixture of experts, which TRL adds, is reported apart.
    """

    model: Any
    _metrics: Any
    _weights: list[int]
    _step_weight: float
    router_aux_loss_coef = 0.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._weights = []  # of the batches since the last log

    def weight(self, inputs: Any) -> int:
        """What a batch counts: its pairs, of which it holds chosen and rejected."""
        return len(inputs["input_ids"]) // 2

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        batches, items = super().get_batch_samples(*arguments, **named)  # type: ignore[misc]
        self._step_weight = sum(map(self.weight, batches)) / max(1, len(batches))
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        training, weight = self.model.training, self.weight(inputs)
        self._weights.append(weight)
        computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        loss, *outputs = computed if return_outputs else (computed,)
        if not training:
            self._metrics["eval"]["loss"].append(loss.item())
        elif num_items_in_batch is None:  # else it is a share of the step's sum already
            loss = loss * (weight / self._step_weight)
        return (loss, *outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        total = sum(self._weights)
        for name, values in metrics.items():
            if name in EXTREMES:
                metrics[name] = [EXTREMES[name](values)]
            elif len(values) == len(self._weights) and total > 0:
                weighed = (value * weight for value, weight in zip(values, self._weights, strict=True))
                metrics[name] = [sum(weighed) / total]
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


class _Reward(_Weighed, _Ours, RewardTrainer):
    pass


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
        trainer = _trainer(kind, configured(config, fields), settings, model, tokenizer, data)
        steps = Steps(trainer, settings, on_step, first_of_dpo if isinstance(settings, DPOSettings) else None)
        trainer.add_callback(steps)
        run(trainer)
        metrics = evaluate(trainer) | steps.keep()
    trained = trainer.accelerator.unwrap_model(trainer.model)
    taken = int(trainer.state.global_step)
    return models.save(trained, tokenizer, folder, data.counts, steps=taken, metrics=metrics, began=began)


_METHODS: dict[type, tuple[type, type, Callable[[Any], dict[str, Any]]]] = {
    SFTSettings: (_SFT, SFTConfig, sft_fields),
    RMSettings: (_Reward, RewardConfig, rm_fields),
    DPOSettings: (_DPO, DPOConfig, dpo_fields),
}


def _trainer(
    kind: type, config: Any, settings: TrainerSettings, model: Any, tokenizer: Any, data: TokenizedData
) -> Any:
    if config.n_gpu > 1:
        raise InputError("several GPUs are visible to one process", fix="set CUDA_VISIBLE_DEVICES=0")
    trainer = kind(
        model=model,
        args=config,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict(dict(data.train)),
        eval_dataset=datasets.Dataset.from_dict(dict(data.validation)) if any(data.validation.values()) else None,
    )
    trainer.settings = settings
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
    if checkpoint is not None:
        trainer._total_train_tokens = tokens_before(checkpoint)  # TRL counts from 0 again
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def evaluate(trainer: Any) -> dict[str, float]:
    """First and last training loss, and the validation after the last step, if there are validation rows."""
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    metrics = {"first_loss": losses[0], "last_loss": losses[-1]}
    if trainer.eval_dataset is not None:
        metrics |= validations(history)[trainer.state.global_step] | {"validation_rows": len(trainer.eval_dataset)}
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
