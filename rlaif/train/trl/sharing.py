"""What every trainer on TRL has of ours: schedules, rows that weigh alike, and batches that processes share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler

from rlaif.config import TrainerSettings
from rlaif.train import precision, ranks
from rlaif.train.pair_evaluation import HeldPair, during_training
from rlaif.train.schedules import schedule_of
from rlaif.train.tokens import NOT_LEARNT


class Ours:
    """A trainer with our schedules, without telemetry and TRL's model card."""

    args: Any
    model: Any
    state: Any
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

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        """The base trainer takes one more step when it resumes after the last one, where that is within an epoch."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **named)  # type: ignore[misc]

    def evaluate(self, *arguments: Any, **named: Any) -> Any:
        """Validation draws no random number of the training's, so how often there is one changes no weight."""
        with torch.random.fork_rng(devices=[]):  # data loaders draw a seed on the CPU
            return super().evaluate(*arguments, **named)  # type: ignore[misc]

    def _send_telemetry(self) -> None: ...

    def create_model_card(self, *_: Any, **__: Any) -> None: ...


class Weighed:
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
    held: Sequence[HeldPair] = ()  # of preferences, the validation pairs
    evaluated: dict[int, tuple[float, float]]  # their scores at the last validation, by their numbers

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
        # The rows of a mixture stand in their order already.
        if order is None and self.args.train_sampling_strategy != "sequential":
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
            batches[-1]["labels"] = torch.full_like(batches[-1]["labels"], NOT_LEARNT)
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
        total, read, *weighed = ranks.summed([sum(self._weights), self._read, *sums])
        if total > 0:
            metrics.update((name, [value / total]) for name, value in zip(means, weighed, strict=True))
        self._weights.clear()
        self.tokens += int(read)
        self._read, metrics["num_tokens"] = 0, [self.tokens]
        if "aux_loss" in metrics:
            term = self.router_aux_loss_coef * metrics["aux_loss"][0]
            if "loss" in logs:
                logs["loss"] -= term
            if "loss" in metrics:
                metrics["loss"][0] -= term
        if self.held and not self.model.training:
            told = during_training(self.held, ranks.united(self.evaluated))
            metrics.update((name, [value]) for name, value in told.items())
        super().log(logs, start_time)  # type: ignore[misc]


def _tokens_of(inputs: Mapping[str, Any]) -> int:
    """The tokens of a batch without its padding; with it, of packed rows, which have no mask."""
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
