"""The one package that touches TRL. It runs, resumes and evaluates a trainer.

    settings    the fields of TRL's configurations that are relied on
    sharing     what every trainer has of ours: schedules, rows that weigh alike, batches that processes share
    trainers    SFT and reward models
    preference  DPO and its family

Written against TRL 1.16 on transformers 5.23. Rows reach TRL as token ids with their masks, so its templating,
truncation and masking are not used.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.reward_config import RewardConfig
from trl.trainer.sft_config import SFTConfig

from rlaif.config import DPOSettings, RMSettings, SFTSettings, TrainerSettings
from rlaif.engines.transformers import PEFT_ON_EXPERTS
from rlaif.engines.transformers import quietly as transformers_quietly
from rlaif.errors import InputError, WorkError
from rlaif.train import lora, models, packing, precision, ranks
from rlaif.train.examples import OnStep
from rlaif.train.models import TrainResult
from rlaif.train.pair_evaluation import HeldPair
from rlaif.train.steps import Steps, tokens_before, validations
from rlaif.train.tokens import Counts
from rlaif.train.trl.preference import DPO
from rlaif.train.trl.settings import Columns, common_fields, configured, dpo_fields, rm_fields, sft_fields
from rlaif.train.trl.trainers import SFT, Packing, Reward

PRECISION = "ACCELERATE_MIXED_PRECISION"  # where a launcher says it, and the base trainer reads it


class TokenizedData(NamedTuple):
    """Training and validation rows as columns of token ids, the counts of both, and what else their trainer takes.

    `held` tells of each validation pair, in order, what its scores are counted by.
    """

    train: Columns
    validation: Columns
    counts: Counts
    own: Mapping[str, Any] = {}
    held: Sequence[HeldPair] = ()


def learn(
    settings: TrainerSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TokenizedData,
    folder: Path,
    on_step: OnStep,
    began: float,
    finish: Callable[[Any], dict[str, Any]] | None = None,
) -> TrainResult:
    """Train `model` by the method of `settings`, from the last checkpoint in the job's `folder`, and save it.

    Rows are token ids. SFT: `input_ids` and `labels`, where -100 is ignored. DPO: `prompt_ids`, `chosen_ids` and
    `rejected_ids`, with a number `row` and, for soft labels, a `probability`. Reward model: groups, as
    `rm_math.Collator` takes them. `began` is `time.monotonic()` at the start of the training. `finish` gets the trained
    model before it is saved, and may change it; what it returns is the evaluation in the record. Raises WorkError for a
    loss that is not finite or ends far above where it began, InputError when several GPUs are visible.
    """
    kind, config, fields_of = _METHODS[type(settings)]
    fields = common_fields(settings, folder, model.num_parameters()) | fields_of(settings)
    still = nullcontext() if isinstance(settings, SFTSettings) else models.still(model)
    with _config_kept(model), _computed_as_set(settings), still:
        trainer = _trainer(kind, configured(config, fields), settings, model, tokenizer, data)
        steps = Steps(trainer, settings, on_step, first_of_dpo if isinstance(settings, DPOSettings) else None)
        trainer.add_callback(steps)
        run(trainer)
        kept = steps.keep()
        if (told := steps.risen(kept)) is not None:
            data.counts.notes.append(told)
        metrics = evaluate(trainer) | kept
        if (rewards := data.own.get("evaluated")) is not None:
            rewards |= ranks.united(rewards)  # each process has those of its own validation rows
            of_last = kept.get("kept_step", trainer.state.global_step) == trainer.state.global_step
            if trainer.eval_dataset is not None and not (of_last and len(rewards) == len(trainer.eval_dataset)):
                trainer.remove_callback(steps)  # a call that only saves has seen no validation
                trainer.evaluate()
                rewards |= ranks.united(rewards)
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # as anybody calls it
    evaluated = {} if finish is None else finish(trained)
    whole = _whole(trainer)
    taken = int(trainer.state.global_step)
    made = models.result(data.counts, steps=taken, metrics=metrics, began=began, evaluation=evaluated)
    if ranks.is_first():
        models.save(trained, tokenizer, folder, made, whole)
        if settings.save == "merged":
            models.merge(folder)
    return made


def _whole(trainer: Any) -> Any:
    """The weights of a model that lies in shards on several GPUs, gathered by all of them; None of any other."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return None


_METHODS: dict[type, tuple[type, type, Callable[[Any], dict[str, Any]]]] = {
    SFTSettings: (SFT, SFTConfig, sft_fields),
    RMSettings: (Reward, RewardConfig, rm_fields),
    DPOSettings: (DPO, DPOConfig, dpo_fields),
}


def _trainer(
    kind: type, config: Any, settings: TrainerSettings, model: Any, tokenizer: Any, data: TokenizedData
) -> Any:
    if config.n_gpu > 1:
        raise InputError("several GPUs are visible to one process", fix="set CUDA_VISIBLE_DEVICES=0")
    config.total_batch_size = settings.batch_size
    adapter = None if settings.lora is None else lora.config_of(settings.lora, model, scores=settings.scores)
    trainer = kind(
        model=model,
        args=config,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict(dict(data.train)),
        eval_dataset=datasets.Dataset.from_dict(dict(data.validation)) if any(data.validation.values()) else None,
        peft_config=adapter,
        **data.own,
    )
    trainer.settings, trainer.held = settings, data.held
    trainer.remove_callback(transformers.PrinterCallback)
    if "seq_lengths" in data.train:
        pad = int(tokenizer.pad_token_id)
        trainer.data_collator = partial(packing.collated, pad=pad)
        trainer.add_callback(Packing(data.train, pad))
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


@contextmanager
def _computed_as_set(settings: TrainerSettings) -> Iterator[None]:
    """The trainer's `dtype` decides, whatever a launcher's configuration says: the base trainer would obey that."""
    before = os.environ.get(PRECISION)
    os.environ[PRECISION] = "bf16" if precision.computed_in(settings) == torch.bfloat16 else "no"
    try:
        yield
    finally:
        _put_back(PRECISION, before)


def _put_back(variable: str, before: str | None) -> None:
    if before is None:
        del os.environ[variable]
    else:
        os.environ[variable] = before


def first_of_dpo(loss: float, expected: float) -> None:
    """Raise WorkError when the first loss of DPO is not as expected: policy and reference are one model before a step.

    The tolerance is bfloat16's.
    """
    if not abs(loss - expected) <= 0.02 * max(1.0, abs(expected)):
        value = "ln 2, 0.6931" if math.isclose(expected, math.log(2), abs_tol=1e-4) else f"{expected:.4f}"
        raise WorkError(
            f"the first loss of DPO is {loss:.4f} and must be {value}: the model gives a text another probability each "
            "time",
            fix="report the architecture of the base model; SFT and reward models do not depend on this",
        )


# ---------------------------------------------------------------- run


def run(trainer: Any) -> None:
    """Train to the end, from the newest complete checkpoint, if any."""
    checkpoint = models.newest_checkpoint(Path(trainer.args.output_dir))
    if checkpoint is not None:
        trainer.tokens = tokens_before(checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def evaluate(trainer: Any) -> dict[str, float]:
    """First and last training loss, and the validation after the last step, if there are validation rows."""
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    metrics = {"first_loss": losses[0], "last_loss": losses[-1]}
    if padding := [entry["padding"] for entry in history if "padding" in entry]:
        metrics["padding"] = sum(padding) / len(padding)  # the share of the tokens in batches
    if trainer.eval_dataset is not None:
        metrics |= validations(history)[trainer.state.global_step] | {"validation_rows": _rows(trainer.eval_dataset)}
    return metrics


def _rows(dataset: Any) -> int:
    """The rows of a data set as a person counts them: of packed ones the conversations, of groups the pairs."""
    for name in ("seq_lengths", "better"):
        if name in dataset.column_names:
            return sum(map(len, dataset[name]))
    return len(dataset)


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
        _put_back("TQDM_DISABLE", tqdm)
