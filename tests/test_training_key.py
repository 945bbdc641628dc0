"""What makes two trainings the same: every input that decides the trained model is in its key."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.config import TrainStage
from rlaif.pipeline.training import training_key
from rlaif.records import Message

LESSONS: Any = [("train", (Message(role="user", content="hi"),))]
PPO: dict[str, Any] = {"base": "base", "name": "ppo", "reward": "rm"}


def key(settings: dict[str, Any] | None = None, *, method: str = "ppo", **changed: Any) -> str:
    given: dict[str, Any] = {"base": "b", "lessons": LESSONS, "template": None, "reward": "r"} | changed
    return training_key(TrainStage.model_validate({method: PPO | (settings or {})}), **given)


@pytest.mark.parametrize(
    "changed",
    [
        {"base": "other weights"},
        {"reward": "another reward model"},
        {"template": "a template"},
        {"lessons": LESSONS * 2},
        {"settings": {"beta": 0.2}},
        {"settings": {"seed": 1}},
        {"settings": {"missing_eos_penalty": 0}},
    ],
)
def test_another_input_is_another_training(changed: dict[str, Any]) -> None:
    assert key(**changed) != key()


def test_what_a_trainer_does_not_learn_from_decides_nothing() -> None:
    for split in ("held-out", "validation"):
        assert key(lessons=[*LESSONS, (split, LESSONS[0][1])]) == key()


@pytest.mark.parametrize(
    "renamed",
    [{"name": "other"}, {"base": "other"}, {"reward": "other"}, {"data": "elsewhere"}, {"checkpoint_steps": 3}],
)
def test_names_and_checkpoints_decide_nothing(renamed: dict[str, Any]) -> None:
    assert key(renamed) == key()
