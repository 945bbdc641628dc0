"""A reward model (Stiennon et al. 2020, arXiv 2009.01325, section 3.4): a score for a completion to a prompt.

The loss of a pair is -log sigmoid(score of chosen - score of rejected - margin), plus `center` times the square of the
two scores' sum, which keeps scores around zero (Eisenstein et al. 2023, arXiv 2312.09244). With `soft_labels` a judge's
probability is the target instead of 1. The score is read at the completion's end token, the last token of each
sequence, in training as in use.

Completions are forwarded in groups (`train.groups`): a pair, or all completions of a prompt, each once, with the loss
averaged over the prompt's pairs (InstructGPT: Ouyang et al. 2022, arXiv 2203.02155, equation 1). The trained model is
normalised (`train.rm_head`) and evaluated on validation pairs (`train.pair_evaluation`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any

from rlaif.config import RMSettings
from rlaif.engines.adapters import Source
from rlaif.engines.transformers import not_finite
from rlaif.errors import InputError
from rlaif.train import groups, models, rm_head, trl
from rlaif.train.examples import OnStep, PreferencePair
from rlaif.train.groups import Pair, Tokenized
from rlaif.train.kept_files import Place
from rlaif.train.models import TrainResult
from rlaif.train.pair_evaluation import HeldPair, ScoredPair, evaluation
from rlaif.train.tokens import Counts

PADDED = 8  # sequences, at most, that are scored alone and in one padded batch
REFERENCE = 512  # completions, at most, whose scores have mean 0 and deviation 1


def train_rm(
    settings: RMSettings,
    base: Source,
    pairs: Iterable[PreferencePair],
    validation: Iterable[PreferencePair],
    place: Place,
    on_step: OnStep,
    template: str | None = None,
) -> TrainResult:
    """Train a reward model that starts from `base`, with `template` if given, on `pairs` in a job's folder.

    Its metrics include the accuracy on the validation pairs, if any. Called
    again with the same arguments after an interruption, it resumes from its last checkpoint, and reports steps since
    then a second time. Raises InputError for an unusable base model or template and for settings that no pair has the
    columns for, WorkError when no pair fits or the loss is not finite.
    """
    began = time.monotonic()
    with trl.quietly():
        model, tokenizer = models.load_reward(base, settings.seed, template, settings)
        chat = models.trained_chat(settings, model, tokenizer)
        max_length = models.fitting(model, settings.max_length)
        train, counts = groups.read(settings, chat, pairs, max_length, place.tokens)
        counts.check(max_length, settings.max_length, chat, model.config)
        tell_missing(settings, train, counts)
        held, held_counts = groups.read(settings, chat, validation, max_length, place.tokens)
        tell_missing(settings, held, counts, validation=True)
        counts.add(held_counts)
        told = [
            HeldPair(pair.source, group.lengths[pair.better], group.lengths[pair.worse])
            for group in held
            for pair in group.pairs
        ]
        data = trl.TokenizedData(columns(settings, train), columns(settings, held), counts, held=told)
        return trl.learn(
            settings,
            model,
            tokenizer,
            data,
            place.folder,
            on_step,
            began,
            partial(finish, settings, tokenizer, train, held, counts),
        )


def finish(
    settings: RMSettings,
    tokenizer: Any,
    train: Sequence[Tokenized],
    held: Sequence[Tokenized],
    counts: Counts,
    model: Any,
) -> dict[str, Any]:
    """Normalise the trained model, if asked to, and evaluate it on the validation pairs, if there are any.

    The reference is a sample of the training completions, chosen and rejected alike, drawn by the seed. Raises
    WorkError for a model that scores a completion otherwise in a padded batch.
    """
    if not_finite(model):
        return {}  # it is refused when it is saved
    size = 2 * settings.batch_size  # sequences that fit in memory: training forwards as many at least
    normalised = None
    known = list(dict.fromkeys(tuple(ids) for group in train for ids in group.sequences))
    if settings.normalize:
        drawn = random.Random(settings.seed).sample(known, min(REFERENCE, len(known)))
        normalised = rm_head.normalise(model, rm_head.states(model, drawn, size))
        if normalised is None:
            counts.notes.append("all completions score the same: not normalised")
        elif not normalised.shifted:
            counts.notes.append(
                f"the completions' mean score stays at {normalised.mean / normalised.deviation:.2f}: "
                "no change of the weights would shift all scores alike"
            )
    rm_head.refuse_padded_otherwise(model, tokenizer, _of_all_lengths(known, min(PADDED, size)))
    scale = 1.0 if normalised is None else normalised.deviation
    reference = None if normalised is None else {name: _rounded(v) for name, v in normalised._asdict().items()}
    told: dict[str, Any] = {"scale": _rounded(scale), "reference": reference, "validation": None}
    if held:
        scores = rm_head.scores(model, rm_head.states(model, [ids for group in held for ids in group.sequences], size))
        told["validation"] = evaluation(scored_pairs(held, scores), scale)
    return told


def _of_all_lengths(sequences: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """Some of the sequences, the shortest and the longest among them."""
    ordered = sorted(sequences, key=len)
    last, steps = len(ordered) - 1, max(1, count - 1)
    return [ordered[place] for place in sorted({last * step // steps for step in range(count)})]


def _rounded(value: float) -> float:
    return round(value, 6) if isinstance(value, float) else value


def scored_pairs(tokenized: Sequence[Tokenized], scores: Iterable[float]) -> list[ScoredPair]:
    """Every pair with the scores of its two; `scores` are those of all sequences in order."""
    made, left = [], iter(scores)
    for group in tokenized:
        own = [next(left) for _ in group.sequences]
        for pair in group.pairs:
            both = own[pair.better], own[pair.worse], group.lengths[pair.better], group.lengths[pair.worse]
            made.append(ScoredPair(group.prompt, *both, pair.margin, pair.source))
    return made


def columns(settings: RMSettings, tokenized: Sequence[Tokenized]) -> dict[str, list[Any]]:
    """One row for each group, as `rm_math.Collator` takes them; `numbers` are those of its pairs among all, from 0."""
    number = count()
    made: dict[str, list[Any]] = {
        "sequences": [group.sequences for group in tokenized],
        "better": [[pair.better for pair in group.pairs] for group in tokenized],
        "worse": [[pair.worse for pair in group.pairs] for group in tokenized],
        "margins": [[settings.margin_scale * (pair.margin or 0.0) for pair in group.pairs] for group in tokenized],
        "numbers": [[next(number) for _ in group.pairs] for group in tokenized],
        "targets": [[target(settings, pair) for pair in group.pairs] for group in tokenized],
    }
    if settings.loss == "plackett_luce":
        made["order"] = [groups.total_order(group.pairs) or [] for group in tokenized]
    return made


def target(settings: RMSettings, pair: Pair) -> float:
    """The probability that the better one of a pair is the better one, which the loss aims at.

    A share `label_smoothing` of labels is taken to be wrong: the target moves towards 1/2.
    """
    stated = pair.probability if settings.soft_labels and pair.probability is not None else 1.0
    return stated + settings.label_smoothing * (1 - 2 * stated)


def tell_missing(
    settings: RMSettings, tokenized: Sequence[Tokenized], counts: Counts, *, validation: bool = False
) -> None:
    """Note how many pairs lack what a setting reads. Raises InputError when all do that are trained on."""
    pairs = [pair for group in tokenized for pair in group.pairs]
    kind, used = ("validation pairs", "validated") if validation else ("pairs", "trained")
    known = (
        (settings.margin_scale > 0, "margin", "margin_scale", "a margin of 0", "scores or ratings"),
        (
            settings.soft_labels,
            "probability",
            "soft_labels",
            "a hard label",
            "a `probability`, such as those of `compare`",
        ),
    )
    for is_read, what, key, instead, wanted in known:
        without = sum(getattr(pair, what) is None for pair in pairs) if is_read else 0
        if without == len(pairs) and without and not validation:
            raise InputError(
                f"no pair has a usable {what}", key=key, fix=f"use preferences with {wanted}, or remove `{key}`"
            )
        if without:
            counts.notes.append(f"{without:,} of {len(pairs):,} {kind} have no usable {what}: {used} with {instead}")
    if settings.loss == "plackett_luce" and not validation:
        unordered = sum(groups.total_order(group.pairs) is None for group in tokenized)
        if unordered:
            counts.notes.append(
                f"{unordered:,} of {len(tokenized):,} groups have no total order: their loss is that of their pairs"
            )
