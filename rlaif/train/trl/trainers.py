"""SFT on TRL's trainer, and reward models on groups of completions."""

from __future__ import annotations

from typing import Any

import datasets
import transformers
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_trainer import SFTTrainer

from rlaif.train import packing, rm_math
from rlaif.train.tokens import NOT_LEARNT
from rlaif.train.trl.settings import Columns
from rlaif.train.trl.sharing import Ours, Weighed


class SFT(Weighed, Ours, SFTTrainer):
    def weight(self, inputs: Any) -> int:
        """The tokens trained on; the first of a row is predicted by nothing."""
        return int((inputs["labels"][:, 1:] != NOT_LEARNT).sum())


class Packing(transformers.TrainerCallback):
    """Proves, before the first step, that the rows of a sequence do not see one another."""

    def __init__(self, sequences: Columns, pad: int) -> None:
        self.sequences, self.pad = sequences, pad

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        packing.prove(model, self.sequences, self.pad)


class Grouped:
    """Groups of completions in place of TRL's pairs. A group of one pair has TRL's loss of it, which a test checks."""

    args: Any
    model: Any
    accelerator: Any
    _metrics: Any
    _signature_columns: Any
    evaluated: dict[int, tuple[float, float]]

    def __init__(self, *arguments: Any, processing_class: Any, **named: Any) -> None:
        named |= {
            "processing_class": processing_class,
            "data_collator": rm_math.Collator(processing_class.pad_token_id),
        }
        super().__init__(*arguments, **named)
        self.evaluated = {}

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
        if not self.model.training:
            scores = outputs.logits[:, 0].tolist()
            pairs = zip(inputs["numbers"], inputs["better"].tolist(), inputs["worse"].tolist(), strict=True)
            self.evaluated |= {number: (scores[better], scores[worse]) for number, better, worse in pairs}
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in figures.items():
            metrics[name].append(self.accelerator.gather(value).mean().item())
        return (loss, outputs) if return_outputs else loss


class Reward(Weighed, Ours, Grouped, RewardTrainer):
    def weight(self, inputs: Any) -> int:
        """The groups: pairs, or prompts with several."""
        return int(inputs["groups"])
