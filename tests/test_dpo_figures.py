"""What a DPO training tells of itself: alarms, padding, the order of its rows, its evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from test_dpo import UNEVEN, train
from test_train import PAIRS, Steps, Stopped, assistant, validation, weights
from test_train import train as train_any

from rlaif.train import alarms
from rlaif.train.examples import Demonstration
from rlaif.train.ordering import WINDOW, LikeLengths

Figures = list[Mapping[str, float]]


# ---------------------------------------------------------------- alarms


def steps_of(name: str, values: list[float]) -> Figures:
    return [{"step": number, name: value} for number, value in enumerate(values, 1)]


def test_an_alarm_is_a_fall_over_a_whole_window() -> None:
    low = steps_of("logratios/chosen_per_token", [-0.6] * 10)
    assert alarms.fall([], low) == pytest.approx(0.6)
    assert alarms.fall([], low[:9]) is None  # too few steps to tell
    assert alarms.fall([], steps_of("logratios/chosen_per_token", [-0.4] * 9 + [-1.3])) is None  # one batch
    assert alarms.fall([], steps_of("logratios/chosen_per_token", [0.6] * 10)) is None  # a rise


def test_without_a_reference_the_fall_is_below_the_first_steps() -> None:
    steps = steps_of("logps/chosen_per_token", [-2.0] * 10 + [-2.6] * 10)
    assert alarms.fall(steps[:10], steps[10:]) == pytest.approx(0.6)
    assert alarms.fall(steps[:10], steps[5:15]) is None
    assert alarms.notes(steps, grouped=False)[0].startswith("at step 19 the chosen completions are 0.54 nats per token")


def test_a_collapse_is_an_alarm_in_its_steps_and_a_note_in_the_record(random_model: Path, tmp_path: Path) -> None:
    """A model that was fine-tuned on the chosen completions unlearns them at a high rate.

    Resumed after the collapse, it is told of still.
    """
    learnt = [Demonstration((*pair.prompt, assistant(pair.chosen))) for pair in UNEVEN[:8]]
    base = tmp_path / "sft"
    train_any("sft", random_model, base, examples=learnt, epochs=20, learning_rate=1e-2, schedule="constant")
    steps: Steps = []

    def stop(step: dict[str, float]) -> None:
        steps.append(step)
        if step["step"] == 15:
            raise Stopped

    changed: dict[str, Any] = {"epochs": 8, "learning_rate": 0.01, "beta": 0.01, "checkpoint_steps": 14}
    with pytest.raises(Stopped):
        train(base, tmp_path / "out", stop, **changed)
    falls = {step["step"]: step[alarms.COLLAPSE] for step in steps if alarms.COLLAPSE in step}
    assert min(falls) >= alarms.WINDOW and max(falls) == 15
    last = [step["logratios/chosen_per_token"] for step in steps][-10:]
    assert falls[15] == pytest.approx(-sum(last) / 10)
    record = train(base, tmp_path / "out", **changed)
    assert any(note.startswith(f"at step {min(falls)} the chosen completions are") for note in record.notes)


def test_a_healthy_training_has_no_alarm(random_model: Path, tmp_path: Path) -> None:
    steps: Steps = []
    record = train(random_model, tmp_path / "out", steps.append, epochs=6, learning_rate=1e-4)
    assert len(steps) == 12 and not any(alarms.COLLAPSE in step for step in steps)
    assert not any("less probable" in note for note in record.notes)


# ---------------------------------------------------------------- order and padding


@pytest.mark.parametrize("grouped", [False, True])
def test_every_row_comes_once_and_those_of_a_step_from_the_longest_to_the_shortest(grouped: bool) -> None:
    lengths = [(7 * row) % 91 for row in range(8 * WINDOW * 2 + 5)]
    order = LikeLengths(lengths, 8, 0, grouped=grouped)
    rows = list(order)
    assert sorted(rows) == list(range(len(lengths))) and len(order) == len(lengths) and rows == list(order)
    steps = [[lengths[row] for row in rows[start : start + 8]] for start in range(0, len(rows), 8)]
    assert all(step == sorted(step, reverse=True) for step in steps) and len(steps[-1]) == 5
    spread = sum(step[0] - step[-1] for step in steps[:-1]) / len(steps[:-1])
    assert spread < 5 if grouped else spread > 50
    longest = [step[0] for step in steps[:WINDOW]]
    assert longest != sorted(longest, reverse=True)  # steps do not go from long to short
    order.set_epoch(1)
    assert list(order) != rows
    order.set_epoch(0)
    assert list(order) == rows


MIXED = [replace(pair, chosen=pair.chosen + " and so on" * (9 * (i % 2))) for i, pair in enumerate(PAIRS)]


def test_padding_is_reported_and_falls_where_the_batches_of_a_step_hold_like_lengths(
    random_model: Path, tmp_path: Path
) -> None:
    """The batches of one step are cut from its rows by length, which changes nothing but the padding."""
    shares, firsts = {}, {}
    for name, changed in {
        "random": {"batch_size": 2},
        "one": {"batch_size": 8},
        "step": {"batch_size": 2, "accumulate": 4},
        "grouped": {"batch_size": 2, "group_by_length": True},
    }.items():
        steps: Steps = []
        record = train(random_model, tmp_path / name, steps.append, examples=MIXED, sft_weight=1, **changed)
        shares[name] = record.metrics["padding"]
        firsts[name] = steps[0]["loss"]
        advised = any("group_by_length: true" in note for note in record.notes)
        assert advised == (name != "grouped" and shares[name] > alarms.PADDED)
        assert shares[name] == pytest.approx(sum(step["padding"] for step in steps) / len(steps))
    assert shares["grouped"] < shares["random"] and shares["step"] < shares["one"]


@pytest.mark.parametrize("changed", [{"accumulate": 2}, {"group_by_length": True}], ids=str)
def test_a_resumed_training_takes_its_rows_in_the_same_order(
    random_model: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    def stop(step: dict[str, float]) -> None:
        if step["step"] == 5:
            raise Stopped

    settings: dict[str, Any] = {"examples": UNEVEN[:12], "epochs": 2, "batch_size": 2, "checkpoint_steps": 2} | changed
    whole: Steps = []
    train(random_model, tmp_path / "whole", whole.append, **settings)
    with pytest.raises(Stopped):
        train(random_model, tmp_path / "out", stop, **settings)
    again: Steps = []
    train(random_model, tmp_path / "out", again.append, **settings)
    assert again == whole[-len(again) :] and again[0]["step"] == 5
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


# ---------------------------------------------------------------- evaluation


def test_validation_pairs_are_evaluated_by_source_and_margin(random_model: Path, tmp_path: Path) -> None:
    """Half of the pairs teach one order; validation pairs of source `swapped` have the other, so all are wrong."""
    held = validation(UNEVEN[:12])
    held = [
        replace(pair, source="straight", margin=2.0)
        if i % 3
        else replace(pair, chosen=pair.rejected, rejected=pair.chosen, source="swapped", margin=1.0)
        for i, pair in enumerate(held)
    ]
    record = train(random_model, tmp_path / "out", examples=[*UNEVEN, *held], epochs=3, learning_rate=1e-3)
    found = record.evaluation["validation"]
    assert (found["pairs"], found["accuracy"]["n"]) == (12, 12)
    assert found["accuracy"]["mean"] == pytest.approx(record.metrics["validation_accuracy"], abs=1e-4)
    by_source = {name: (share["mean"], share["n"]) for name, share in found["by_source"].items()}
    assert by_source == {"straight": (1.0, 8), "swapped": (0.0, 4)}
    bands = [(band["low"], band["accuracy"]["mean"]) for band in found["by_margin"]]
    assert bands == [(1.0, 0.0), (2.0, 1.0)]
    assert found["length"]["correlation"]["n"] > 0
    assert json.loads((tmp_path / "out/training.json").read_text())["evaluation"] == record.evaluation
