"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) and its family.

A pair's loss is a function of its completions' log-probabilities under the policy and, but for SimPO, under the
reference: the base model, whose log-probabilities `references` keeps. They are of the completion's tokens and its end
token. `preference_losses` has the formulas.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from rlaif.config import DPOSettings
from rlaif.engines.adapters import Source
from rlaif.errors import InputError
from rlaif.train import models, trl
from rlaif.train.examples import OnStep, PreferencePair
from rlaif.train.kept_files import Place
from rlaif.train.models import TrainResult
from rlaif.train.pair_evaluation import HeldPair, ScoredPair, evaluation
from rlaif.train.pairs import IDS, tokenize
from rlaif.train.references import References

KEPT = "references"  # the folder in its job's that keeps the reference's log-probabilities


def train_dpo(
    settings: DPOSettings,
    base: Source,
    pairs: Iterable[PreferencePair],
    validation: Iterable[PreferencePair],
    place: Place,
    on_step: OnStep,
    template: str | None = None,
) -> TrainResult:
    """Train `base` on `pairs` in a job's folder, with `template` as its chat template, if given.

    Called again with the same arguments after an interruption, it resumes from its last checkpoint, and reports steps
    since then a second time. Raises InputError for an unusable base model or template and for soft labels without
    probabilities, WorkError when no pair fits, or when the loss is not finite or the first one not as it must be.
    """
    began = time.monotonic()
    with trl.quietly():
        model, tokenizer = models.load(base, template, settings)
        chat = models.trained_chat(settings, model, tokenizer)
        max_length = models.fitting(model, settings.max_length)
        cut = settings.excess_length, settings.system
        train, counts = tokenize(chat, pairs, max_length, *cut, place.tokens)
        counts.check(max_length, settings.max_length, chat, model.config)
        held, held_counts = tokenize(
            chat, validation, max_length, settings.excess_length, settings.system, place.tokens
        )
        counts.add(held_counts)
        by = models.computed_by(base, settings)
        kept = None if settings.reference_free else References(by, place.folder / KEPT, place.references)
        evaluated = dict[int, tuple[float, float]]()
        own = {"preferences": settings, "references": kept, "evaluated": evaluated, "notes": counts.notes}
        known = zip(held["source"], held["chosen_ids"], held["rejected_ids"], strict=True)
        told = [HeldPair(source, len(chosen), len(rejected)) for source, chosen, rejected in known]
        data = trl.TokenizedData(_columns(settings, train), _columns(settings, held), counts, own, told)
        finish = partial(_evaluation, held, evaluated)
        return trl.learn(settings, model, tokenizer, data, place.folder, on_step, began, finish)


def _evaluation(held: dict[str, list[Any]], rewards: dict[int, tuple[float, float]], _: Any) -> dict[str, Any]:
    """The figures on validation pairs, whose scores are their implicit rewards; nothing without such pairs."""
    if not rewards:
        return {}
    columns = zip(*(held[name] for name in (*IDS, "margin", "source")), strict=True)
    pairs = [
        ScoredPair(str(prompt), *rewards[row], len(chosen), len(rejected), margin, source)
        for row, (prompt, chosen, rejected, margin, source) in enumerate(columns)
    ]
    return {"validation": evaluation(pairs, scale=1.0)}


def _columns(settings: DPOSettings, read: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns that the trainer takes. Raises InputError for soft labels of pairs without a probability."""
    rows = len(read[IDS[0]])
    columns = {name: read[name] for name in IDS} | {"row": list(range(rows))}
    if settings.soft_labels:
        if missing := read["probability"].count(None):
            problem = f"{missing:,} of {rows:,} pairs have no probability, and `soft_labels` needs it"
            fix = "pair with verdicts that have probabilities, give a column `probability`, or remove `soft_labels`"
            raise InputError(problem, key="soft_labels", fix=fix)
        columns["probability"] = read["probability"]
    return columns
