"""The one module that touches TRL, and the settings of TRL and of its base trainer that this project relies on.

It runs, resumes and evaluates a trainer. Written against TRL 1.16 on transformers 5.23. Rows reach TRL as token ids
with their masks, so its templating, truncation and masking are not used.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import BatchRebalanceSampler
from trl.models.utils import prepare_deepspeed
from trl.trainer import dpo_trainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from rlaif.config import DPOSettings, RMSettings, SFTSettings, TrainerSettings
from rlaif.engines.transformers import PEFT_ON_EXPERTS
from rlaif.engines.transformers import quietly as transformers_quietly
from rlaif.errors import InputError, WorkError
from rlaif.train import alarms, lora, models, packing, precision, preference_losses, ranks, reporting, rm_math
from rlaif.train.examples import OnStep
from rlaif.train.memory import RECOMPUTED_FROM
from rlaif.train.models import TrainResult
from rlaif.train.ordering import LikeLengths
from rlaif.train.preference_losses import Completions, token_weights
from rlaif.train.references import KEPT_EVERY, Completion, LogProbs, References
from rlaif.train.schedules import schedule_of
from rlaif.train.steps import Steps, tokens_before, validations
from rlaif.train.tokens import Counts

Columns = Mapping[str, list[Any]]

SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
}


class TokenizedData(NamedTuple):
    """Training and validation rows as columns of token ids, the counts of both, and what else their trainer takes."""

    train: Columns
    validation: Columns
    counts: Counts
    own: Mapping[str, Any] = {}


# ---------------------------------------------------------------- the settings relied on


def common_fields(settings: TrainerSettings, folder: Path, parameters: int) -> dict[str, Any]:
    """The settings of all trainers. Every name must exist in TRL's configurations, which a test checks."""
    recompute = parameters >= RECOMPUTED_FROM if settings.recompute == "auto" else settings.recompute
    return _recompute(recompute) | {
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


def _recompute(on: bool) -> dict[str, Any]:
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


# ---------------------------------------------------------------- the trainers


class _Ours:
    """A trainer with our schedules, without telemetry and TRL's model card."""

    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    settings: TrainerSettings

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Our schedules: the first step of the base trainer's has a learning rate of 0."""
        shares = schedule_of(self.settings, num_training_steps).share
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, shares)
        return self.lr_scheduler

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> Any:
        """The base trainer's AdamW, or that of bfloat16 weights, with its settings."""
        kind, named = super().get_optimizer_cls_and_kwargs(args, model)  # type: ignore[misc]
        trained = {weight.dtype for weight in self.model.parameters() if weight.requires_grad}
        if trained != {torch.bfloat16}:
            return kind, named
        return precision.RoundedAdamW, {name: named[name] for name in ("lr", "betas", "eps") if name in named}

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
    tokens: int
    _read: int
    router_aux_loss_coef = 0.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._weights = []  # of the batches since the last log
        self._due = []  # of those of this step that are still to come
        self.tokens, self._read = 0, 0  # so far in all processes, and by this one since the last log
        if ranks.count() > 1:  # metrics are means of this process, and put together where they are logged
            self.accelerator.gather_for_metrics = self.gather_function = _kept_apart

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        order = self._order(rows)
        if ranks.count() == 1:
            return super()._get_train_sampler(train_dataset) if order is None else order  # type: ignore[misc]
        if (
            order is None and self.args.train_sampling_strategy != "sequential"
        ):  # as of a mixture, whose order is its own
            order = Shuffled(len(rows), torch.initial_seed())
        return Shares(len(rows), self._batch_size, order, lambda: int(self.state.epoch or 0))

    def _order(self, rows: Any) -> Any:
        """The order of the training rows, as a sampler; None for the base trainer's."""
        return None

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
        self._step_weight = ranks.summed([sum(self._due)])[0] / (ranks.count() * max(1, len(batches)))
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        training = self.model.training
        weight = self._due.pop(0) if training else 0 if self._idle(len(self.eval_dataset)) else self.weight(inputs)
        self._weights.append(weight)
        if training and weight:
            self._read += _tokens_of(inputs)
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
        metrics.pop("num_tokens", None)  # TRL's count is of one process
        means = [name for name, values in metrics.items() if self._weights and len(values) == len(self._weights)]
        sums = [
            sum(value * weight for value, weight in zip(metrics[name], self._weights, strict=True)) for name in means
        ]
        total, *weighed = ranks.summed([sum(self._weights), *sums])
        if total > 0:
            metrics.update((name, [value / total]) for name, value in zip(means, weighed, strict=True))
        self._weights.clear()
        self.tokens += int(ranks.summed([float(self._read)])[0])
        self._read, metrics["num_tokens"] = 0, [self.tokens]
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


class _Pairs(DataCollatorForPreference):
    """Pairs as TRL's batch, those chosen in its first half, with what else the loss needs of each."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        columns = [name for name in _OF_PAIR if name in examples[0]]
        return batch | {name: torch.tensor([example[name] for example in examples]) for name in columns}


# Columns beside the ids: the row's number, the probability of soft labels, the reference's log-probability of what both
# completions of a pair are long (for `ld_alpha`).
_OF_PAIR = ("row", "probability", "ref_chosen_shared_logps", "ref_rejected_shared_logps")
_SIDES = ("chosen", "rejected")
AT_ONCE = 4  # completions of a batch for the reference, for each pair of one in training, whose forward keeps far more


class _DPO(_Weighed, _Ours, DPOTrainer):
    """TRL's trainer of DPO with the losses of `preference_losses`, and a reference that is computed once and kept.

    Of TRL are the batches, the log-probabilities without logits in memory, and what adapters and processes need.
    `evaluated` gets the implicit rewards, chosen and rejected, of each validation row by its number, and `notes` what
    the figures of the whole training warn of.
    """

    def __init__(
        self,
        *,
        preferences: DPOSettings,
        references: References | None,
        evaluated: dict[int, tuple[float, float]],
        notes: list[str],
        **named: Any,
    ) -> None:
        self.preferences, self.references, self.evaluated = preferences, references, evaluated
        padding = named["processing_class"].pad_token_id
        watched = [_Watch(notes, grouped=preferences.group_by_length)]
        with _no_second_model():
            super().__init__(data_collator=_Pairs(pad_token_id=padding), callbacks=watched, **named)
        model = self.accelerator.unwrap_model(self.model)
        # TRL asks for entropy and others of each token, which nothing here reads.
        add_fused_lm_head(getattr(model, "get_base_model", lambda: model)(), outputs=("log_probs",))

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        """Skipped: the rows are token ids already, and DPOTrainer has no setting for that."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
            columns: Any = self._signature_columns
            columns.extend(_OF_PAIR)

    def _order(self, rows: Any) -> Any:
        """The base trainer's random order, except where another order of the same rows saves padding."""
        batches = self.args.gradient_accumulation_steps
        if batches == 1 and not self.preferences.group_by_length:
            return None
        columns = zip(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], strict=True)
        lengths = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in columns]
        step = self._batch_size * batches
        return LikeLengths(lengths, step, self.args.seed, grouped=self.preferences.group_by_length)

    # ------------------------------------------------------------ the reference

    def _precompute_ref_logps(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        """The data set with the reference's log-probabilities as columns; as it is, for a loss without reference."""
        if self.references is None:
            return dataset
        columns = _completions(dataset, shared=self.preferences.ld_alpha is not None)
        logps = self._kept_logps({each.key: each for column in columns.values() for each in column})
        for name, column in columns.items():
            dataset = dataset.add_column(name, [logps[each.key] for each in column])
        return dataset

    def _kept_logps(self, wanted: Mapping[bytes, Completion]) -> LogProbs:
        """The reference's log-probability of each completion, by key; what was not known is computed and kept."""
        assert self.references is not None
        known = ranks.united(self.references.known(wanted))
        missing = [each for key, each in wanted.items() if key not in known]
        known |= ranks.united(self._computed_and_kept(missing))
        if self.accelerator.is_main_process:
            self.references.keep(known)
        return known

    def _computed_and_kept(self, completions: Sequence[Completion]) -> LogProbs:
        """This process's share of the reference's log-probabilities, of which a kill costs the last minute's."""
        assert self.references is not None
        computed, kept = LogProbs(), time.monotonic()
        for key, logp in self._computed_logps(completions):
            computed[key] = logp
            if time.monotonic() - kept > KEPT_EVERY:
                self.references.keep(computed)
                kept = time.monotonic()
        return computed

    def _computed_logps(self, completions: Sequence[Completion]) -> Iterator[tuple[bytes, float]]:
        """Key and log-probability of this process's share, the longest completions first."""
        size = AT_ONCE * self.args.per_device_train_batch_size
        ordered = sorted(completions, key=lambda each: -len(each.prompt) - len(each.ids))
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        processes, own = self.accelerator.num_processes, self.accelerator.process_index
        batches += batches[:1] * (-len(batches) % processes)  # sharded weights need every process in every forward
        if not batches:
            return
        model = self.ref_model or self.model
        if self.ref_model is None and self.is_deepspeed_enabled:
            model = prepare_deepspeed(self.model, self.accelerator)
        model.eval()
        for batch in batches[own::processes]:
            empty: list[int] = []
            rows = [{"prompt_ids": each.prompt, "chosen_ids": each.ids, "rejected_ids": empty} for each in batch]
            inputs = {name: tensor[: len(batch)].to(self.accelerator.device)
                      for name, tensor in self.data_collator(rows).items()}  # fmt: skip
            logps = torch.cat(self.compute_ref_log_probs(model, inputs)).tolist()  # type: ignore[no-untyped-call]
            yield from zip((each.key for each in batch), logps, strict=True)

    # ------------------------------------------------------------ the loss

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        outputs, pairs = self._forward(model, inputs)
        probability = inputs.get("probability")
        batch = preference_losses.scored(self.preferences, pairs, probability)
        noted = preference_losses.figures(pairs, batch)
        if self.model.training and self.state.global_step == 0:
            noted["expected_loss"] = self._first_losses(model, inputs, pairs, probability)
        self._note(inputs, noted)
        loss = batch.losses.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
            self._metrics[self._mode]["aux_loss"].append(self.accelerator.gather(outputs.aux_loss).mean().item())
        return (loss, outputs) if return_outputs else loss

    def _forward(self, model: Any, inputs: Any) -> tuple[Any, Completions]:
        mask = inputs["completion_mask"]
        asked = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        if self.aux_loss_enabled:
            asked["output_router_logits"] = True
        outputs = model(**asked, labels=inputs["input_ids"].masked_fill(mask == 0, -100), fused_lm_head=True)
        mask = mask[:, 1:]  # the first token is predicted by nothing
        logps = outputs.log_probs[:, -mask.shape[1] :]  # virtual tokens of an adapter come before
        counted = logps.sum(1), (logps * token_weights(mask, self.preferences.ld_alpha)).sum(1)
        return outputs, Completions(*counted, mask.sum(1), *self._reference_of(inputs))

    def _reference_of(self, inputs: Any) -> tuple[Any, Any]:
        """The reference's log-probabilities of a batch, and as `ld_alpha` counts them."""
        if self.references is None:
            return None, None
        whole = torch.cat([inputs[f"ref_{side}_logps"] for side in _SIDES])
        if (alpha := self.preferences.ld_alpha) is None:
            return whole, whole
        shared = torch.cat([inputs[f"ref_{side}_shared_logps"] for side in _SIDES])
        return whole, shared + alpha * (whole - shared)

    def _first_losses(self, model: Any, inputs: Any, pairs: Completions, probability: Any) -> Any:
        """What the losses must be before the first update: those of the reference or, without one, the same again."""
        if self.references is not None:
            return preference_losses.first_losses(self.preferences, pairs, probability)
        with torch.no_grad():
            again = self._forward(model, inputs)[1]
        return preference_losses.scored(self.preferences, again, probability).losses

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _note(self, inputs: Any, noted: Mapping[str, Any]) -> None:
        """Add the means over the pairs of all processes to the metrics, and note a validation row's rewards."""
        gather = self.accelerator.gather
        padding = 1 - inputs["attention_mask"].float().mean()
        table = torch.stack([*noted.values(), padding.expand(len(inputs["row"]))], 1)
        rows = gather(table).tolist()
        for name, column in zip((*noted, "padding"), zip(*rows, strict=True), strict=True):
            self._metrics[self._mode][name].append(sum(column) / len(column))
        if not self.model.training:
            names = list(noted)
            places = [names.index(f"rewards/{side}") for side in _SIDES]
            for number, row in zip(gather(inputs["row"]).tolist(), rows, strict=True):
                self.evaluated[number] = (row[places[0]], row[places[1]])


@contextmanager
def _no_second_model() -> Iterator[None]:
    """Under FSDP, TRL loads the base again as the reference; the policy, which is whole until it trains, will do."""
    module: Any = dpo_trainer
    before = module.create_model_from_path
    module.create_model_from_path = lambda *_, **__: None
    try:
        yield
    finally:
        module.create_model_from_path = before


class _Watch(transformers.TrainerCallback):
    """Raises the alarm of a step, and notes what the whole training warns of."""

    def __init__(self, notes: list[str], *, grouped: bool) -> None:
        self.notes, self.grouped = notes, grouped

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        first, last = (
            list(islice((entry for entry in entries if "loss" in entry), alarms.WINDOW))
            for entries in (state.log_history, reversed(state.log_history))
        )
        if (found := alarms.fall(first, last[::-1])) is not None:
            logs[alarms.COLLAPSE] = found

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        steps = [entry for entry in state.log_history if "loss" in entry]
        self.notes += alarms.notes(steps, grouped=self.grouped)


def _completions(dataset: datasets.Dataset, *, shared: bool) -> dict[str, list[Completion]]:
    """The completions whose reference is needed, by the column that it becomes.

    With `shared`, also what both completions of a pair are long of each.
    """
    whole = {
        side: [Completion(*ids) for ids in zip(dataset["prompt_ids"], dataset[f"{side}_ids"], strict=True)]
        for side in _SIDES
    }
    columns = {f"ref_{side}_logps": column for side, column in whole.items()}
    if shared:
        both = [min(len(c.ids), len(r.ids)) for c, r in zip(whole["chosen"], whole["rejected"], strict=True)]
        for side, column in whole.items():
            columns[f"ref_{side}_shared_logps"] = [
                each.begins(length) for each, length in zip(column, both, strict=True)
            ]
    return columns


class _Packing(transformers.TrainerCallback):
    """Proves, before the first step, that the rows of a sequence do not see one another."""

    def __init__(self, sequences: Columns, pad: int) -> None:
        self.sequences, self.pad = sequences, pad

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        packing.prove(model, self.sequences, self.pad)


class _Grouped:
    """Groups of completions in place of TRL's pairs. A group of one pair has TRL's loss of it, which a test checks."""

    args: Any
    model: Any
    accelerator: Any
    _metrics: Any
    _signature_columns: Any

    def __init__(self, *arguments: Any, processing_class: Any, **named: Any) -> None:
        named |= {
            "processing_class": processing_class,
            "data_collator": rm_math.Collator(processing_class.pad_token_id),
        }
        super().__init__(*arguments, **named)

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        """Skipped: the rows are token ids already."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = rm_math.COLUMNS

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        outputs = model(input_ids=ids, attention_mask=mask, use_cache=False)
        loss, figures = rm_math.group_loss(
            outputs.logits[:, 0].float(), inputs, self.args.center_rewards_coefficient or 0.0
        )
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in figures.items():
            metrics[name].append(self.accelerator.gather(value).mean().item())
        return (loss, outputs) if return_outputs else loss


class _Reward(_Weighed, _Ours, _Grouped, RewardTrainer):
    def weight(self, inputs: Any) -> int:
        """The groups: pairs, or prompts with several."""
        return int(inputs["groups"])


def _tokens_of(inputs: Mapping[str, Any]) -> int:
    """The tokens of a batch, without its padding; packed rows have positions in place of a mask."""
    mask = inputs.get("attention_mask")
    return int(inputs["input_ids"].numel() if mask is None else mask.sum())


class Shuffled:
    """Row numbers in the order in which accelerate shuffles them for one process."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.rows, generator=generator).tolist()


class Shares(BatchRebalanceSampler):
    """This process's rows of every batch, where a batch is shared by several.

    The batches are those of one process: rows as they stand, or in an `order` that depends on the `epoch`.
    Of a batch with fewer rows than processes, one without a share repeats a row, which counts nothing. Being of this
    class, it is not shared out again.
    """

    def __init__(self, rows: int, batch_size: int, order: Any = None, epoch: Callable[[], int] = lambda: 0) -> None:
        # Not named `batch_size`: accelerate would drop batches of any other size.
        self.rows, self.size, self.order, self.of_epoch = rows, batch_size, order, epoch

    def __len__(self) -> int:
        return math.ceil(self.rows / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.rows))
        if self.order is not None:
            self.order.set_epoch(self.of_epoch())
            order = list(self.order)
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
    loss that is not finite, InputError when several GPUs are visible.
    """
    # The trainer's `dtype` decides, whatever a launcher's configuration says: the base trainer would obey that.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if precision.computed_in(settings) == torch.bfloat16 else "no"
    kind, config, fields_of = _METHODS[type(settings)]
    fields = common_fields(settings, folder, model.num_parameters()) | fields_of(settings)
    with _config_kept(model), nullcontext() if isinstance(settings, SFTSettings) else models.still(model):
        trainer = _trainer(kind, configured(config, fields), settings, model, tokenizer, data)
        steps = Steps(trainer, settings, on_step, first_of_dpo if isinstance(settings, DPOSettings) else None)
        trainer.add_callback(steps)
        run(trainer)
        kept = steps.keep()
        metrics = evaluate(trainer) | kept
        if (rewards := data.own.get("evaluated")) is not None:
            rewards |= ranks.united(rewards)  # each process has those of its own validation rows
            of_last = kept.get("kept_step", trainer.state.global_step) == trainer.state.global_step
            if trainer.eval_dataset is not None and not (of_last and len(rewards) == len(trainer.eval_dataset)):
                trainer.remove_callback(steps)  # a call that only saves has seen no validation
                trainer.evaluate()
                rewards |= ranks.united(rewards)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    told = {} if finish is None else finish(trained)
    whole = _whole(trainer)
    taken = int(trainer.state.global_step)
    made = models.result(data.counts, steps=taken, metrics=metrics, began=began, evaluation=told)
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
    SFTSettings: (_SFT, SFTConfig, sft_fields),
    RMSettings: (_Reward, RewardConfig, rm_fields),
    DPOSettings: (_DPO, DPOConfig, dpo_fields),
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
    trainer.settings = settings
    trainer.remove_callback(transformers.PrinterCallback)
    if "seq_lengths" in data.train:
        pad = int(tokenizer.pad_token_id)
        trainer.data_collator = partial(packing.collated, pad=pad)
        trainer.add_callback(_Packing(data.train, pad))
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
    if padding := [entry["padding"] for entry in trainer.state.log_history if "padding" in entry]:
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
        if tqdm is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = tqdm
