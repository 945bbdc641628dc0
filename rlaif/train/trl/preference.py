"""DPO and its family on TRL's trainer: our losses, and a reference that is computed once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import datasets
import torch
import transformers
from trl.models.utils import prepare_deepspeed
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from rlaif.config import DPOSettings
from rlaif.train import alarms, preference_losses, ranks
from rlaif.train.ordering import LikeLengths
from rlaif.train.preference_losses import Completions, token_weights
from rlaif.train.references import KEPT_EVERY, Completion, LogProbs, References
from rlaif.train.trl.sharing import Ours, Weighed


class Pairs(DataCollatorForPreference):
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


class DPO(Weighed, Ours, DPOTrainer):
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
        watched = [Watch(notes, grouped=preferences.group_by_length)]
        with _no_second_model():
            super().__init__(data_collator=Pairs(pad_token_id=padding), callbacks=watched, **named)
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


class Watch(transformers.TrainerCallback):
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
