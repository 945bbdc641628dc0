"""Reward models by hand-worked numbers: margins, soft labels, groups of completions, and what they cost."""

from __future__ import annotations

import asyncio
import json
import math
import os
import runpy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from inside import rlaif
from pydantic import ValidationError
from safetensors.torch import load_file
from test_train import PAIRS, Steps, train, validation
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaModel
from trl.trainer.reward_trainer import RewardTrainer

from rlaif.cli import terminal
from rlaif.cli.evaluations import brief, print_evaluation
from rlaif.config import RMSettings
from rlaif.engines.transformers import TransformersEngine
from rlaif.errors import InputError
from rlaif.formats import read_preferences
from rlaif.generate.pairing import Pairing, preferences_of
from rlaif.records import Candidate, Comparison, Completion, Message, Prompt, Row, Score, Verdict
from rlaif.statistics import calibration_of
from rlaif.train import groups, models, rm, rm_head, rm_math
from rlaif.train.examples import PreferencePair, of_preferences, of_stated_preferences
from rlaif.train.groups import Pair, Tokenized
from rlaif.train.pair_evaluation import ScoredPair, evaluation
from rlaif.train.tokens import Counts, trainable_chat

DATA = Path(os.environ.get("RLAIF_REALDATA", Path(__file__).parents[2] / "shared" / "data"))
ASKED = (Message(role="user", content="which?"),)


def settings_of(**changed: Any) -> RMSettings:
    return RMSettings.model_validate({"base": "base", "name": "rm"} | changed)


# ---------------------------------------------------------------- what reaches the trainer

TURNS = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "A"}]
FILES: dict[str, tuple[dict[str, Any], float | None, float | None]] = {
    "helpsteer2": ({"prompt": "Hi?", "response_1": "A", "response_2": "B", "preference_strength": -2}, 2.0, None),
    "ultrafeedback": (
        {
            "chosen": TURNS,
            "rejected": [TURNS[0], {"role": "assistant", "content": "B"}],
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        },
        2.5,
        None,
    ),
    "probability": ({"prompt": "Hi?", "chosen": "A", "rejected": "B", "probability": 0.8}, None, 0.8),
    "probability of the first": (
        {"prompt": "Hi?", "completion_a": "B", "completion_b": "A", "probability": 0.25},
        None,
        0.75,
    ),
}


@pytest.mark.parametrize("shape", FILES)
def test_a_files_margin_and_probability_reach_the_pair(shape: str, tmp_path: Path) -> None:
    row, margin, probability = FILES[shape]
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (pair,) = of_stated_preferences(read_preferences(file).items)
    assert (pair.chosen, pair.rejected, pair.source) == ("A", "B", "pairs.jsonl")
    assert (pair.margin, pair.probability) == (margin, probability)


def test_a_pair_stages_margin_and_probability_reach_the_pair() -> None:
    candidates = tuple(
        Candidate(sampler="m", completion=Completion(text=text, model="m", call=text, finish_reason="stop"))
        for text in ("A", "B")
    )
    scores = tuple(Score(candidate=i, value=value, judge="j") for i, value in enumerate((0.5, 2.0)))
    verdict = Verdict(a=0, b=1, verdict="B", probability=0.25)
    compared = Comparison(
        a=0, b=1, principle="p", judge="j", verdict="B", probability=0.25, orders=(verdict, verdict.swap())
    )
    row = Row(
        prompt=Prompt(messages=ASKED, source="here"), candidates=candidates, scores=scores, comparisons=(compared,)
    )
    for pairing, margin, probability in (
        (Pairing("best-worst", "scores"), 1.5, None),
        (Pairing("compared"), 0.5, 0.75),
    ):
        (pair,) = of_preferences(preferences_of(row, pairing, Counter()))
        assert (pair.chosen, pair.rejected, pair.source) == ("B", "A", "here")
        assert (pair.margin, pair.probability) == (margin, probability)


# ---------------------------------------------------------------- targets and margins


@pytest.mark.parametrize(
    ("changed", "probability", "expected"),
    [
        ({}, 0.8, 1.0),
        ({"soft_labels": True}, 0.8, 0.8),
        ({"soft_labels": True}, None, 1.0),
        ({"label_smoothing": 0.1}, None, 0.9),
        ({"soft_labels": True, "label_smoothing": 0.1}, 0.8, 0.9 * 0.8 + 0.1 * 0.2),
    ],
)
def test_the_target_of_a_pair(changed: dict[str, Any], probability: float | None, expected: float) -> None:
    assert rm.target(settings_of(**changed), Pair(0, 1, None, probability)) == pytest.approx(expected)


def test_the_loss_of_a_pair_by_formula() -> None:
    gaps, targets = torch.tensor([0.7, 0.7, 0.0]), torch.tensor([1.0, 0.8, 0.5])
    by_hand = [
        math.log(1 + math.exp(-0.7)),
        0.8 * math.log(1 + math.exp(-0.7)) + 0.2 * math.log(1 + math.exp(0.7)),
        math.log(2),
    ]
    assert rm_math.pair_losses(gaps, targets).tolist() == pytest.approx(by_hand)


def test_soft_labels_are_least_at_their_own_probability() -> None:
    gap = torch.tensor([math.log(0.8 / 0.2)], requires_grad=True)
    rm_math.pair_losses(gap, torch.tensor([0.8])).sum().backward()
    assert gap.grad is not None and gap.grad.item() == pytest.approx(0, abs=1e-7)


def batch_of(tokenized: Sequence[Tokenized], **changed: Any) -> dict[str, Any]:
    columns = rm.columns(settings_of(**changed), tokenized)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return rm_math.Collator(0)(rows)


def tokenized(size: int, pairs: Sequence[Pair], name: str = "p") -> Tokenized:
    return Tokenized(name, [[7, 8 + i, 1] for i in range(size)], [2] * size, list(pairs))


def test_a_margin_is_scaled_and_subtracted_and_a_pair_without_one_has_none() -> None:
    group = tokenized(3, [Pair(0, 1, 2.0), Pair(1, 2)])
    batch = batch_of([group], margin_scale=0.5)
    assert batch["margins"].tolist() == [1.0, 0.0]
    loss, figures = rm_math.group_loss(torch.tensor([2.0, 1.5, 1.0]), batch, 0.0)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(0.5)) + math.log(1 + math.exp(-0.5))) / 2)
    assert figures["margin"].item() == pytest.approx(0.5) and figures["accuracy"].item() == 1
    assert batch_of([group])["margins"].tolist() == [0.0, 0.0]


# ---------------------------------------------------------------- groups


def all_pairs(size: int) -> list[Pair]:
    return [Pair(i, j) for i, j in combinations(range(size), 2)]


@pytest.mark.parametrize("size", range(2, 10))
def test_the_loss_of_a_prompt_is_the_mean_of_its_pairs_and_so_is_its_gradient(size: int) -> None:
    """Two prompts, the other of one pair: each counts one half, whatever its number of pairs."""
    pairs = all_pairs(size)
    assert len(pairs) == math.comb(size, 2)
    scores = torch.randn(size + 2, generator=torch.Generator().manual_seed(size), requires_grad=True)
    loss, _ = rm_math.group_loss(scores, batch_of([tokenized(size, pairs), tokenized(2, [Pair(1, 0)])]), 0.01)
    loss.backward()
    assert scores.grad is not None

    free = scores.detach().clone().requires_grad_()

    def of_pair(i: int, j: int) -> torch.Tensor:
        return -logsigmoid(free[i] - free[j]) + 0.01 * (free[i] + free[j]) ** 2

    whole = torch.stack([of_pair(i, j) for i, j in combinations(range(size), 2)]).mean()
    expected = (whole + of_pair(size + 1, size)) / 2
    expected.backward()
    assert free.grad is not None
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert scores.grad.tolist() == pytest.approx(free.grad.tolist(), rel=1e-4, abs=1e-6)


def test_the_order_of_completions_and_of_pairs_changes_nothing() -> None:
    texts = ["a", "b", "c", "d"]
    pairs = [PreferencePair(ASKED, texts[i], texts[j]) for i, j in combinations(range(4), 2)]
    scores = {"a": 0.3, "b": -1.0, "c": 0.9, "d": 0.1}
    losses = []
    for shuffled in (pairs, [pairs[i] for i in (5, 2, 0, 4, 1, 3)]):
        (group,) = groups.of_prompts(enumerate(shuffled, 1), 9)
        batch = batch_of([tokenized(4, group.pairs)])
        losses.append(rm_math.group_loss(torch.tensor([scores[text] for text in group.completions]), batch, 0.1)[0])
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)


def test_a_group_of_one_pair_has_trls_loss_of_it() -> None:
    """Our loss of pairs alone, beside the one that TRL's trainer computes of the same rows and scores."""
    scores = torch.randn(8, generator=torch.Generator().manual_seed(3))
    chosen, rejected = scores[0::2], scores[1::2]
    margins = torch.tensor([0.5, 0.0, 1.0, 2.0])
    theirs = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=0.1),
        accelerator=SimpleNamespace(gather=lambda value: value, gather_for_metrics=lambda value: value),
        _metrics={"train": {name: [] for name in ("min_reward", "mean_reward", "max_reward", "accuracy", "margin")}},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"input_ids": None, "attention_mask": torch.ones(8, 3), "margin": margins}
    logits = SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
    expected = RewardTrainer.compute_loss(theirs, lambda **_: logits, inputs)
    rows = [tokenized(2, [Pair(0, 1, margin.item())]) for margin in margins]
    loss, figures = rm_math.group_loss(scores, batch_of(rows, margin_scale=1), 0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name in ("accuracy", "margin", "mean_reward"):
        assert figures[name].item() == pytest.approx(theirs._metrics["train"][name][0], rel=1e-5)


def test_ties_of_a_ranking_make_no_pair_and_each_completion_is_in_the_group_once(tmp_path: Path) -> None:
    ranks = {"A": 1, "B": 2, "C": 2, "D": 3}
    row = {"prompt": "Hi?", "completions": [{"text": text, "rank": rank} for text, rank in ranks.items()]}
    file = tmp_path / "ranked.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (group,) = groups.of_prompts(enumerate(of_stated_preferences(read_preferences(file).items), 1), 9)
    assert sorted(group.completions) == ["A", "B", "C", "D"]
    named = {(group.completions[pair.better], group.completions[pair.worse]) for pair in group.pairs}
    assert named == {("A", "B"), ("A", "C"), ("A", "D"), ("B", "D"), ("C", "D")} and len(group.pairs) == 5
    assert groups.total_order(group.pairs) is None


def test_the_pairs_of_a_prompt_are_one_group_wherever_they_stand_and_no_pair_is_lost_in_a_large_one() -> None:
    other = (Message(role="user", content="another"),)
    pairs = [PreferencePair(ASKED, "a", "b"), PreferencePair(other, "a", "b"), PreferencePair(ASKED, "a", "c")]
    assert [len(group.pairs) for group in groups.of_prompts(enumerate(pairs, 1), 9)] == [2, 1]
    assert [len(group.pairs) for group in groups.of_pairs(enumerate(pairs, 1))] == [1, 1, 1]
    many = [PreferencePair(ASKED, f"{i}", f"{j}") for i, j in combinations(range(12), 2)]
    made = groups.of_prompts(enumerate(many, 1), 5)
    assert sum(len(group.pairs) for group in made) == 66 and max(len(group.completions) for group in made) == 5


def test_what_is_dropped_from_a_group_is_counted_in_pairs_and_its_prompt_is_cut_alike(random_model: Path) -> None:
    chat = trainable_chat(AutoTokenizer.from_pretrained(random_model))
    asked = (Message(role="user", content="what is this about? " * 2),)
    texts = ["fine", "good enough", "says <|end|> itself", "long " * 30]
    pairs = [PreferencePair(asked, texts[i], texts[j]) for i, j in combinations(range(4), 2)]
    counts = Counts()
    read = groups.tokenize(chat, groups.of_prompts(enumerate(pairs, 1), 9), 50, counts)
    (group,) = read
    assert (counts.kept, counts.cut, counts.dropped) == (1, 1, {"end-token-inside": 3, "too-long": 2})
    assert len(group.sequences) == 2 and max(map(len, group.sequences)) == 50
    prompts = {tuple(ids[:-length]) for ids, length in zip(group.sequences, group.lengths, strict=True)}
    assert len(prompts) == 1 and all(ids[-1] == 1 for ids in group.sequences)


# ---------------------------------------------------------------- Plackett-Luce


def test_plackett_luce_by_hand_and_as_the_pair_for_two() -> None:
    scores = torch.tensor([1.0, 0.5, -0.2])
    first = math.exp(1.0) / (math.exp(1.0) + math.exp(0.5) + math.exp(-0.2))
    second = math.exp(0.5) / (math.exp(0.5) + math.exp(-0.2))
    assert rm_math.plackett_luce(scores).item() == pytest.approx(-(math.log(first) + math.log(second)) / 2)
    pair = rm_math.pair_losses(scores[:1] - scores[1:2], torch.ones(1))
    assert rm_math.plackett_luce(scores[:2]).item() == pytest.approx(pair.item())


@pytest.mark.parametrize(
    ("pairs", "order"),
    [
        ([Pair(2, 0), Pair(0, 1)], [2, 0, 1]),  # the pair that follows need not be stated
        (all_pairs(4), [0, 1, 2, 3]),
        ([Pair(0, 1), Pair(0, 2)], None),
        ([Pair(0, 1), Pair(1, 2), Pair(2, 0)], None),
        ([Pair(0, 1), Pair(1, 0)], None),
    ],
)
def test_pairs_give_one_order_or_none(pairs: list[Pair], order: list[int] | None) -> None:
    assert groups.total_order(pairs) == order


def test_a_group_without_an_order_has_the_loss_of_its_pairs_beside_ranked_ones() -> None:
    ranked, partial = tokenized(3, all_pairs(3)), tokenized(3, [Pair(0, 1), Pair(0, 2)])
    scores = torch.tensor([0.4, 0.1, -0.3, 0.2, 0.9, 0.0])
    changed = {"grouping": "prompt", "loss": "plackett_luce"}
    loss, _ = rm_math.group_loss(scores, batch_of([ranked, partial], **changed), 0.0)
    pairs = rm_math.pair_losses(torch.tensor([0.2 - 0.9, 0.2 - 0.0]), torch.ones(2)).mean()
    assert loss.item() == pytest.approx((rm_math.plackett_luce(scores[:3]) + pairs).item() / 2)
    counts = Counts()
    rm.tell_missing(settings_of(**changed), [ranked, partial], counts)
    assert counts.notes == ["1 of 2 groups have no total order: their loss is that of their pairs"]


# ---------------------------------------------------------------- training


def ranked(prompts: int, size: int) -> list[PreferencePair]:
    """All pairs of `size` completions, the longer the better, of each prompt."""
    return [
        PreferencePair((Message(role="user", content=f"what is {n}?"),), "yes " * (i + 1), "yes " * (j + 1))
        for n in range(prompts)
        for j, i in combinations(range(size), 2)
    ]


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that trainings forward with a gradient, as they come."""
    sizes: list[int] = []
    forward = LlamaModel.forward

    def counted(self: Any, input_ids: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            sizes.append(len(input_ids))
        return forward(self, input_ids, **named)

    monkeypatch.setattr(LlamaModel, "forward", counted)
    return sizes


@pytest.mark.parametrize("size", [4, 9])
def test_each_completion_is_forwarded_once(size: int, random_model: Path, tmp_path: Path, forwarded: list[int]) -> None:
    examples = ranked(4, size)
    train("rm", random_model, tmp_path / "groups", examples=examples, grouping="prompt", batch_size=2)
    assert forwarded == [2 * size] * 2
    forwarded.clear()
    train("rm", random_model, tmp_path / "pairs", examples=examples, batch_size=100)
    assert sum(forwarded) == 4 * size * (size - 1)


def test_groups_of_two_train_as_pairs_do(random_model: Path, tmp_path: Path) -> None:
    told: dict[str, Steps] = {"pair": [], "prompt": []}
    for grouping, steps in told.items():
        train("rm", random_model, tmp_path / grouping, steps.append, grouping=grouping)
    assert told["pair"] == told["prompt"] and len(told["pair"]) == 6


def test_uneven_groups_weigh_alike_however_they_are_accumulated(random_model: Path, tmp_path: Path) -> None:
    """Five prompts of 2 to 6 completions, a step in batches of 2, 2 and 1, and in one."""
    uneven = [pair for n in range(5) for pair in ranked(n + 1, n + 2)[-math.comb(n + 2, 2) :]]
    steps: dict[int, Steps] = {2: [], 5: []}
    found = {}
    for size, reported in steps.items():
        found[size] = train(
            "rm", random_model, tmp_path / str(size), reported.append, [*uneven, *validation(uneven)],
            batch_size=size, accumulate=4, grouping="prompt",
        ).metrics  # fmt: skip
    assert len(steps[2]) == len(steps[5]) == 1
    assert steps[2][0] == pytest.approx(steps[5][0], rel=1e-4)
    assert found[2] == pytest.approx(found[5], rel=1e-4)


def test_plackett_luce_learns_a_ranking(random_model: Path, tmp_path: Path) -> None:
    examples = [*ranked(8, 4), *validation(ranked(2, 4))]
    record = train(
        "rm", random_model, tmp_path / "rm", examples=examples, grouping="prompt", loss="plackett_luce", epochs=6
    )
    assert record.metrics["last_loss"] < 0.5 * record.metrics["first_loss"] and record.notes == []
    assert record.metrics["validation_accuracy"] == pytest.approx(1)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"margin_scale": 1, "soft_labels": True}, "both say how far a pair is apart"),
        ({"loss": "plackett_luce"}, "add `grouping: prompt`"),
        ({"loss": "plackett_luce", "grouping": "prompt", "soft_labels": True}, "takes no `soft_labels`"),
        ({"loss": "plackett_luce", "grouping": "prompt", "margin_scale": 1}, "takes no `margin_scale`"),
        ({"loss": "plackett_luce", "grouping": "prompt", "label_smoothing": 0.1}, "takes no `label_smoothing`"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        settings_of(**changed)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"margin_scale": 1}, "`margin_scale`: no pair has a usable margin"),
        ({"soft_labels": True}, "no pair has a usable probability"),
    ],
)
def test_a_setting_that_no_pair_has_the_column_for_is_refused(
    changed: dict[str, Any], told: str, random_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        train("rm", random_model, tmp_path / "rm", examples=PAIRS, **changed)


def test_pairs_without_the_column_are_counted_in_a_note(random_model: Path, tmp_path: Path) -> None:
    some = [PreferencePair(p.prompt, p.chosen, p.rejected, probability=0.9 if i else None) for i, p in enumerate(PAIRS)]
    record = train("rm", random_model, tmp_path / "rm", examples=some, soft_labels=True, batch_size=24)
    assert record.notes == ["1 of 24 pairs have no usable probability: trained with a hard label"]


def test_validation_pairs_without_the_column_are_counted_too_and_refuse_nothing() -> None:
    counts, group = Counts(), tokenized(3, [Pair(0, 1, 2.0, 0.9), Pair(1, 2)])
    rm.tell_missing(settings_of(margin_scale=1), [group], counts, validation=True)
    rm.tell_missing(settings_of(soft_labels=True), [tokenized(2, [Pair(0, 1)])], counts, validation=True)
    rm.tell_missing(settings_of(soft_labels=True), [], counts, validation=True)
    assert counts.notes == [
        "1 of 2 validation pairs have no usable margin: validated with a margin of 0",
        "1 of 1 validation pairs have no usable probability: validated with a hard label",
    ]


# ---------------------------------------------------------------- the head after training


def test_training_completions_have_mean_0_and_deviation_1_and_every_reader_the_same_scores(
    random_model: Path, tmp_path: Path
) -> None:
    """Plain transformers in a padded batch and our engine: nothing beside the weights knows of the bias."""
    record = train("rm", random_model, tmp_path / "rm", examples=[*PAIRS, *validation(PAIRS[:4])])
    before = record.evaluation["reference"]
    assert before["completions"] == 48 and before["shifted"] and before["uneven"] < rm_head.UNEVEN
    assert abs(before["mean"]) > 0.01 and abs(before["deviation"] - 1) > 0.01
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32).eval()
    read = groups.tokenize(trainable_chat(tokenizer), groups.of_pairs(enumerate(PAIRS, 1)), 100, Counts())
    sequences = [ids for group in read for ids in group.sequences]
    padded = tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
    with torch.no_grad():
        plain = net(**padded).logits[:, 0]
    assert plain.mean().item() == pytest.approx(0, abs=1e-4)
    assert plain.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    engine = TransformersEngine("rm", str(tmp_path / "rm"), device="cpu")
    chosen = asyncio.run(engine.score([(pair.prompt, pair.chosen) for pair in PAIRS]))
    asyncio.run(engine.close())
    assert chosen == pytest.approx(plain[0::2].tolist(), abs=1e-4)
    value = models.load_value_model(tmp_path / "rm", tokenizer)  # PPO's
    assert rm_head.scores(value, rm_head.states(value, sequences, 5)) == pytest.approx(plain.tolist(), abs=1e-4)


def test_without_normalize_the_head_is_as_it_was_trained(random_model: Path, tmp_path: Path) -> None:
    for name, normalize in (("as-trained", False), ("normalised", True)):
        train("rm", random_model, tmp_path / name, normalize=normalize)
    plain, normalised = (load_file(tmp_path / name / "model.safetensors") for name in ("as-trained", "normalised"))
    differing = [name for name in plain if not torch.equal(plain[name], normalised[name])]
    assert differing == ["score.weight"]


class Head(torch.nn.Module):
    """A score head alone, as `rm_head.normalise` changes it."""

    def __init__(self, weight: torch.Tensor, bias: float | None = None) -> None:
        super().__init__()
        self.score = torch.nn.Linear(len(weight), 1, bias=bias is not None)
        self.score.weight.data.copy_(weight[None])
        if bias is not None:
            self.score.bias.data.fill_(bias)


def random_states(common: float) -> torch.Tensor:
    """(40, 8) states around a common one, as those of one end token are."""
    drawn = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    return drawn * 0.1 + common * torch.ones(8)


@pytest.mark.parametrize("bias", [None, 3.0])
def test_a_shift_and_a_scale_change_no_order(bias: float | None) -> None:
    states, model = random_states(1.0), Head(torch.linspace(-1, 1.04, 8), bias)
    before = torch.tensor(rm_head.scores(model, states))
    found = rm_head.normalise(model, states)
    after = torch.tensor(rm_head.scores(model, states))
    assert found is not None and found.shifted and found.uneven < 0.1
    assert (after.mean().item(), after.std(unbiased=False).item()) == pytest.approx((0, 1), abs=1e-5)
    exact = (before - before.mean()) / before.std(unbiased=False)
    assert after.tolist() == pytest.approx(exact.tolist(), abs=1e-5 if bias is not None else 0.15)


def test_a_mean_that_no_direction_carries_evenly_stays_and_is_told() -> None:
    states, model = random_states(0.0), Head(torch.ones(8), None)
    states[:, 0] += 20 * (states[:, 1] > 0)  # two kinds of completions: their mean is that of none
    found = rm_head.normalise(model, states)
    assert found is not None and not found.shifted and found.uneven > rm_head.UNEVEN
    after = torch.tensor(rm_head.scores(model, states))
    assert after.std(unbiased=False).item() == pytest.approx(1) and after.mean().item() > 0.5


def test_scores_that_are_all_the_same_are_not_normalised() -> None:
    model = Head(torch.zeros(8))
    assert rm_head.normalise(model, random_states(1.0)) is None
    assert not model.score.weight.any()


def test_the_benchmark_pools_seeds_by_prompt() -> None:
    """Two seeds of two prompts: a is sure by 3/4 and right once of two, b by 19/20 and right twice."""
    pooled = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks/kwise.py"))["pooled"]
    pairs = [
        ScoredPair(prompt, logit, 0.0, 1, 1)
        for prompt, logit in (("a", math.log(3)), ("b", math.log(19)), ("a", -math.log(3)), ("b", math.log(19)))
    ]
    accuracy, error = pooled(pairs)
    assert (accuracy.mean, accuracy.n, error.n) == (0.75, 2, 2)
    assert error.mean == pytest.approx((0.5 + 0.1) / 4)
    of_pairs = calibration_of([0.75, 0.95, 0.75, 0.95], [1, 1, 0, 1], lowest=0.5)
    assert of_pairs is not None and error.mean == pytest.approx(of_pairs.ece.mean)
    assert 0 <= error.low < error.high


def test_weights_that_are_not_finite_are_left_to_be_refused() -> None:
    model = Head(torch.full((8,), math.nan))
    assert rm.finish(settings_of(), None, [], [tokenized(2, [Pair(0, 1)])], Counts(), model) == {}


# ---------------------------------------------------------------- evaluation


def scored(prompt: str, gap: float, *, margin: float | None = None, source: str | None = None) -> ScoredPair:
    return ScoredPair(prompt, gap, 0.0, 10, 5, margin, source)


def test_accuracy_is_by_prompt_by_source_and_by_margin() -> None:
    pairs = [
        *(scored(f"a{i}", 1.0, margin=2.0, source="a") for i in range(6)),
        *(scored(f"b{i}", (1.0, -1.0)[i % 2], margin=0.5, source="b") for i in range(4)),
        *(scored("many", -1.0, source="b") for _ in range(10)),
    ]
    found = evaluation(pairs, 1.0)
    assert (found["pairs"], found["prompts"]) == (20, 11)
    assert found["accuracy"]["mean"] == pytest.approx(8 / 11, abs=1e-6) and found["accuracy"]["n"] == 11
    assert {name: share["mean"] for name, share in found["by_source"].items()} == {"a": 1.0, "b": 0.4}
    assert [(band["low"], band["high"], band["pairs"]) for band in found["by_margin"]] == [(0.5, 0.5, 4), (2, 2, 6)]
    assert [band["accuracy"]["mean"] for band in found["by_margin"]] == [0.5, 1.0]


def test_calibration_is_on_the_scale_of_the_loss() -> None:
    """Of pairs at a logit of ln 3 three in four are right: calibrated at their own scale, and not at another."""
    pairs = [scored(f"{i}", math.log(3) / 2 if i % 4 else -math.log(3) / 2) for i in range(40)]
    own, other = (evaluation(pairs, scale)["calibration"] for scale in (2.0, 6.0))
    assert own["ece"]["mean"] == pytest.approx(0, abs=1e-6) and other["ece"]["mean"] > 0.1
    (filled,) = own["bins"]
    assert (filled["n"], filled["accuracy"], filled["confidence"]) == (40, 0.75, 0.75)


def test_what_length_does_is_told_by_the_labels_and_by_the_model() -> None:
    """Scores are lengths: the model prefers the longer one always, and the labels in one pair of four."""
    sides = [(8, 5) if i % 4 == 0 else (5, 8) for i in range(20)]
    pairs = [ScoredPair(f"{i}", float(a), float(b), a, b) for i, (a, b) in enumerate(sides)]
    length = evaluation(pairs, 1.0)["length"]
    assert length["correlation"]["mean"] == pytest.approx(1)
    assert (length["longer_chosen"]["mean"], length["longer_preferred"]["mean"]) == (0.25, 1.0)
    flat = [ScoredPair(f"{i}", 0.0, 0.0, 3, 3) for i in range(4)]
    assert set(evaluation(flat, 1.0)["length"].values()) == {None}


def test_the_record_and_the_screen_tell_the_evaluation(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = [
        PreferencePair(p.prompt, p.chosen, p.rejected, "validation", margin=float(i), source=f"set {i % 2}")
        for i, p in enumerate(PAIRS[:8])
    ]
    record = train("rm", random_model, tmp_path / "rm", examples=[*PAIRS, *held])
    assert json.loads((tmp_path / "rm/training.json").read_text())["evaluation"] == record.evaluation
    found = record.evaluation["validation"]
    assert found["accuracy"]["mean"] == pytest.approx(record.metrics["validation_accuracy"])
    console = terminal.console()
    print_evaluation(console, record.evaluation)
    told = capsys.readouterr().out
    assert "8 validation pairs of 8 prompts" in told and "source set 1" in told and "margin 6 to 7" in told
    assert "is chosen in 0% of pairs and preferred by the model in 0%" in " ".join(told.split())
    assert brief(record.evaluation).startswith("100% [68, 100] of 8 validation pairs right, calibration error")
    assert brief({}) == ""


def test_a_reward_models_scores_of_stated_preferences_are_written_as_rewardbench_has_them(
    random_model: Path, tmp_path: Path
) -> None:
    train("rm", random_model, tmp_path / "rm", examples=PAIRS, batch_size=24)
    rows = [
        {"prompt": f"what is {i}?", "chosen": f"it is {i}", "rejected": "no idea", "subset": ("math", "chat")[i % 2]}
        for i in range(8)
    ]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bench.yaml").write_text(
        "name: bench\nmodels: {rm: {engine: transformers, path: rm}}\n"
        "stages: [data: {path: bench.jsonl}, score: {reward: rm}, pair: {rule: all}]\n"
    )
    assert rlaif(tmp_path, "run", "bench.yaml").code == 0
    written = rlaif(tmp_path, "export", "runs/bench", "--format", "rewardbench-scores", "--to", "scores.jsonl")
    assert written.code == 0, written.err
    found = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(found) >= 6 and {row["subset"] for row in found} == {"math", "chat"}
    engine = TransformersEngine("rm", str(tmp_path / "rm"), device="cpu")
    for side in ("chosen", "rejected"):
        items = [((Message(role="user", content=row["prompt"]),), row[side]) for row in found]
        scores = asyncio.run(engine.score(items))
        assert [row[f"scores_{side}"] for row in found] == pytest.approx(scores, abs=1e-4)
    asyncio.run(engine.close())
    assert all(row["results"] == float(row["scores_chosen"] > row["scores_rejected"]) for row in found)
    assert {row["chosen"] for row in found} <= {row["chosen"] for row in rows}


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="no published data here: set RLAIF_REALDATA to its folder")
def test_the_length_confound_of_published_pairs_is_told(random_model: Path, tmp_path: Path) -> None:
    """HH-RLHF's harmless pairs reverse the usual bias: the longer one is chosen in 44 % (data/SOURCES.md)."""
    read = read_preferences(DATA / "hh_rlhf" / "harmless-base-test.jsonl.gz").items
    short = [pair for pair in of_stated_preferences(read) if len(pair.prompt) == 1]
    examples = [replace(pair, split="validation" if i % 3 else "train") for i, pair in enumerate(short[:240])]
    record = train("rm", random_model, tmp_path / "rm", examples=examples, max_length=400, batch_size=16)
    found = record.evaluation["validation"]
    longer = found["length"]["longer_chosen"]
    assert longer["low"] < 0.4425 < longer["high"] and longer["n"] > 100
    assert found["length"]["longer_preferred"] and found["length"]["correlation"]
    assert "the longer one is chosen in" in brief(record.evaluation)
