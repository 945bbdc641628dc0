"""Packing: few sequences, and in each the losses and gradients of its rows alone; or a refusal."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from test_architectures import base_of
from test_train import Steps, assistant, train, user, validation, weights
from transformers import AutoModelForCausalLM

from rlaif.errors import WorkError
from rlaif.train import packing
from rlaif.train.examples import Demonstration
from rlaif.train.packing import pack, packed, prove

# ---------------------------------------------------------------- the sequences


@pytest.mark.parametrize(
    ("lengths", "capacity", "expected"),
    [
        ([], 10, []),
        ([10], 10, [[0]]),
        ([5, 7, 3, 5], 10, [[1, 2], [0, 3]]),
        ([2, 2, 2], 4, [[0, 1], [2]]),
        # First fit would put the 3 beside the 6, and the 4 alone; here each finds the least room that holds it.
        ([6, 7, 3, 4], 10, [[1, 2], [0, 3]]),
        ([1, 6, 5, 4, 4], 10, [[1, 3], [2, 4, 0]]),
    ],
)
def test_rows_are_packed_best_fit_decreasing(lengths: list[int], capacity: int, expected: list[list[int]]) -> None:
    assert pack(lengths, capacity) == expected


def naive(lengths: list[int], capacity: int) -> int:
    """The number of sequences of best-fit decreasing, by its definition."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        if fitting := [room for room in rooms if room >= length]:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    return len(rooms)


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_packed_once_into_as_few_sequences_as_the_definition_says(seed: int) -> None:
    draw = random.Random(seed)
    capacity = draw.randint(20, 200)
    lengths = [min(capacity, int(draw.lognormvariate(3, 1)) + 1) for _ in range(300)]
    sequences = pack(lengths, capacity)
    assert sorted(row for rows in sequences for row in rows) == list(range(300))
    assert all(sum(lengths[row] for row in rows) <= capacity for rows in sequences)
    assert len(sequences) == naive(lengths, capacity)
    assert len(sequences) <= 11 / 9 * -(-sum(lengths) // capacity) + 4 or max(lengths) > capacity / 2


def test_a_hundred_thousand_rows_are_packed_in_a_moment() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 2048) for _ in range(100_000)]
    began = time.process_time()
    sequences = pack(lengths, 2048)
    assert time.process_time() - began < 3
    assert sum(lengths) / (2048 * len(sequences)) > 0.99


def test_a_row_that_fits_into_no_sequence_is_an_error() -> None:
    with pytest.raises(ValueError, match="a row of 11 tokens is longer than a sequence of 10"):
        pack([3, 11], 10)


def test_the_tokens_of_a_batch_and_their_positions_by_hand() -> None:
    columns = {"input_ids": [[5, 6, 7], [8, 9], [4, 4, 4]], "labels": [[5, 6, 7], [-100, 9], [-100, -100, 4]]}
    sequences = packed(columns, 5)
    assert sequences == {
        "input_ids": [[5, 6, 7], [4, 4, 4, 8, 9]],
        "labels": [[-100, 6, 7], [-100, -100, 4, -100, 9]],
        "seq_lengths": [[3], [3, 2]],
    }
    rows = [{name: column[i] for name, column in sequences.items()} for i in range(2)]
    assert {name: tensor.tolist() for name, tensor in packing.collated(rows, pad=0).items()} == {
        "input_ids": [[5, 6, 7, 0, 0], [4, 4, 4, 8, 9]],
        "labels": [[-100, 6, 7, -100, -100], [-100, -100, 4, -100, 9]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]],
    }


# ---------------------------------------------------------------- the proof


def losses_and_gradients(model: Any, batch: dict[str, torch.Tensor], **how: Any) -> tuple[float, dict[str, Any]]:
    """The sum of the losses of a batch's learnt tokens, and its gradients."""
    model.zero_grad()
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = model(**inputs, **how).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


COLUMNS = {
    "input_ids": [[7, 8, 9, 10, 11, 12], [20, 21, 22], [30, 31, 32, 33], [40, 41]],
    "labels": [[-100, -100, 9, 10, 11, 12], [-100, 21, 22], [-100, 31, -100, 33], [-100, 41]],
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_losses_and_gradients_are_those_of_the_rows_alone(random_model: Path, attention: str) -> None:
    """And they are not with a cache: transformers makes the mask block-diagonal only without one."""
    model = AutoModelForCausalLM.from_pretrained(random_model, attn_implementation=attention).eval()
    sequences = packed(COLUMNS, 10)
    assert len(sequences["input_ids"]) == 2
    rows = [{name: column[i] for name, column in sequences.items()} for i in range(2)]
    together, gradients = losses_and_gradients(model, packing.collated(rows, pad=0), use_cache=False)
    alone, sums = 0.0, dict.fromkeys(gradients, torch.tensor(0.0))
    for ids, labels in zip(*COLUMNS.values(), strict=True):
        batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
        loss, own = losses_and_gradients(model, batch)
        alone += loss
        sums = {name: sums[name] + own[name] for name in sums}
    assert together == pytest.approx(alone, rel=1e-6)
    assert all(torch.allclose(gradients[name], sums[name], atol=1e-5) for name in gradients)
    leaking, _ = losses_and_gradients(model, packing.collated(rows, pad=0), use_cache=True)
    assert abs(leaking - alone) > 1e-3
    prove(model, sequences, 0)


def test_a_training_step_is_the_same_packed_and_padded(random_model: Path, tmp_path: Path) -> None:
    examples = [Demonstration((user("what is it? " * (i % 3)), assistant(f"it is {i}"))) for i in range(1, 13)]
    steps: dict[bool, Steps] = {}
    for is_packed in (False, True):
        steps[is_packed] = []
        record = train(
            "sft",
            random_model,
            tmp_path / str(is_packed),
            steps[is_packed].append,
            [*examples, *validation(examples[:5])],
            packing=is_packed,
            batch_size=24,
            max_length=64,
        )
        assert (record.kept, record.dropped) == (17, {})
    (whole,), (one,) = steps[False], steps[True]
    assert one["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    assert record.notes == ["packed: 12 rows in 5 sequences of up to 64 tokens, 95% full"]
    loaded = [AutoModelForCausalLM.from_pretrained(tmp_path / str(is_packed)) for is_packed in (False, True)]
    for (name, ours), theirs in zip(loaded[0].named_parameters(), loaded[1].parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name


def test_a_packed_training_resumes_as_if_nothing_had_happened(random_model: Path, tmp_path: Path) -> None:
    examples = [Demonstration((user(f"what is {i}?"), assistant(f"it is {i}"))) for i in range(24)]
    how: dict[str, Any] = {"examples": examples, "packing": True, "batch_size": 1, "max_length": 128}
    train("sft", random_model, tmp_path / "whole", **how)

    def stop(figures: dict[str, float]) -> None:
        if figures["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("sft", random_model, tmp_path / "part", stop, **how)
    train("sft", random_model, tmp_path / "part", **how)
    assert weights(tmp_path / "part") == weights(tmp_path / "whole")


ARCHITECTURES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3Text", "GPT2", "Phi3", "Granite", "Mixtral")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_rows_of_these_architectures_stay_apart(name: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_of(name, tmp_path / "base"))
    prove(model, packed(COLUMNS, 10), 0)
    assert model.training is False


@pytest.mark.parametrize("name", ["OPT", pytest.param("Bloom", marks=pytest.mark.lab)])
def test_an_architecture_whose_rows_see_one_another_is_refused_before_the_first_step(name: str, tmp_path: Path) -> None:
    """These tell positions by their attention mask, which a packed sequence does not have."""
    base = base_of(name, tmp_path / "base")
    examples = [Demonstration((user(f"what is {i}?"), assistant(f"it is {i}"))) for i in range(6)]
    steps: Steps = []
    with pytest.raises(WorkError, match="a row's loss differs by .* when it is packed.*`packing: false`"):
        train("sft", base, tmp_path / "out", steps.append, examples, packing=True, max_length=128)
    assert steps == []
    train("sft", base, tmp_path / "alone", steps.append, examples, packing=True, max_length=36)
    assert steps  # no sequence has two rows
