"""The settings of TRL and of its base trainer that this project relies on.

Every name must exist in TRL's configurations, which a test checks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from rlaif.config import DPOSettings, RMSettings, SFTSettings, TrainerSettings
from rlaif.errors import WorkError
from rlaif.train import memory, precision, ranks, reporting

Columns = Mapping[str, list[Any]]

SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
}


def common_fields(settings: TrainerSettings, folder: Path, parameters: int) -> dict[str, Any]:
    """The settings of all trainers. Every name must exist in TRL's configurations, which a test checks."""
    return recompute(memory.recomputed(settings, parameters)) | {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,  # without, as many as `num_train_epochs` has
        "per_device_train_batch_size": math.ceil(settings.batch_size / ranks.count()),
        "per_device_eval_batch_size": math.ceil(settings.batch_size / ranks.count()),
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": SCHEDULES[settings.schedule],  # a tracker's label: `schedules` has the rates
        "warmup_steps": settings.warmup,  # below 1, so a share of the steps
        "weight_decay": settings.weight_decay,  # the base trainer leaves out biases and norms
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
        "include_num_input_tokens_seen": "no",  # TRL counts them
        "report_to": reporting.usable(settings.report_to),
        "disable_tqdm": True,
    }


def recompute(on: bool) -> dict[str, Any]:
    """Activation checkpointing under the name in this version of transformers; TRL's default sets the old one."""
    names = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    if "activation_checkpointing" in names:
        return {"activation_checkpointing": on, "gradient_checkpointing": None}
    return {"gradient_checkpointing": on}


def sft_fields(settings: SFTSettings) -> dict[str, Any]:
    fields = {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": False, "loss_type": "nll"}
    if settings.mixes:  # the rows are those of all epochs, in order
        fields |= {"num_train_epochs": 1.0, "train_sampling_strategy": "sequential"}
    return fields


def dpo_fields(settings: DPOSettings) -> dict[str, Any]:
    # The reference is the base model before the first step. Its log-probabilities are computed there: a quarter less
    # time than at every step, and one model in memory instead of two. The loss is `preference_losses`'.
    return {"beta": settings.beta, "disable_dropout": True, "precompute_ref_log_probs": True}


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
