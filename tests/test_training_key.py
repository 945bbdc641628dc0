"""What makes two trainings the same: every input that decides the trained model is in its key, in one form for ever."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rlaif.config import TRAINERS
from rlaif.judges.verifiers import Check
from rlaif.records import Message, Split, digest
from rlaif.train import job
from rlaif.train.examples import Demonstration, Example, PreferencePair, PromptOnly, Survey
from rlaif.train.rewards import identity_of_checks

ASKED = (
    Message(role="user", content='hi é "x"'),
    Message(role="assistant", content="ok\n"),
    Message(role="user", content="more"),
)
TALK = (*ASKED, Message(role="assistant", content="yes 𝄞"))
PROMPTS: list[Example] = [PromptOnly(ASKED[:1])]
PPO: dict[str, Any] = {"base": "base", "name": "ppo", "reward": "rm"}


def key(
    settings: dict[str, Any] | None = None,
    *,
    method: str = "ppo",
    examples: Iterable[Example] = PROMPTS,
    base: str = "b",
    template: str | None = None,
    reward: str | None = "r",
) -> str:
    trainer = TRAINERS[method].model_validate(
        (PPO if method == "ppo" else {"base": "b", "name": "n"}) | (settings or {})
    )
    survey = Survey(trainer.unused)
    survey.add(iter(examples))
    return job.training_key(trainer, base, survey.digest, template, reward)


@pytest.mark.parametrize(
    "changed",
    [
        {"base": "other weights"},
        {"reward": "another reward model"},
        {"template": "a template"},
        {"examples": PROMPTS * 2},
        {"settings": {"beta": 0.2}},
        {"settings": {"seed": 1}},
        {"settings": {"missing_eos_penalty": 0}},
        {"settings": {"sample_batch_size": 8}},
        {"settings": {"accumulate": 2}},
    ],
)
def test_another_input_is_another_training(changed: dict[str, Any]) -> None:
    assert key(**changed) != key()


def test_what_a_trainer_does_not_learn_from_decides_nothing() -> None:
    for split in ("held-out", "validation"):
        assert key(examples=[*PROMPTS, PromptOnly(ASKED[:1], split)]) == key()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "renamed",
    [
        {"name": "other"},
        {"base": "other"},
        {"reward": "other"},
        {"data": "elsewhere"},
        {"checkpoint_steps": 3},
        {"recompute": True},
        {"report_to": "wandb"},
    ],
)
def test_names_and_checkpoints_decide_nothing(renamed: dict[str, Any]) -> None:
    assert key(renamed) == key()


WHOLE = [Demonstration(TALK), Demonstration(TALK[:2], "all", "validation"), Demonstration(TALK[:2], "all", "held-out")]
LAST = [
    Demonstration((*ASKED, Message(role="assistant", content="yes")), "last"),
    Demonstration((ASKED[0], Message(role="assistant", content="no")), "last"),
]
PAIRS = [PreferencePair(ASKED[:1], "good", "bad"), PreferencePair(ASKED, "good", "bad", "validation")]
ALL_PROMPTS = [PromptOnly(ASKED[:1]), PromptOnly(ASKED, "validation"), PromptOnly(ASKED[:1], "held-out")]


@pytest.mark.parametrize(
    ("method", "examples", "golden"),
    [
        ("sft", WHOLE, "7a73d78511a1f80afe8e55ada9618bec"),
        ("sft", LAST, "f5d4008df08f72cdf77543fbb4cfb871"),
        ("sft", [], "0515190eb3ba198c13ad46a10246f03a"),
        ("rm", PAIRS, "12c88f4bf4974887ea261bbffded5b1c"),
        ("dpo", PAIRS, "f6d594b4046ff5f95a9775142e179e49"),
        ("ppo", ALL_PROMPTS, "85ddfb53a0096312b970aadcbd61a809"),
    ],
)
def test_a_model_that_was_trained_before_is_found_again(
    method: str, examples: Sequence[Example], golden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that changes trains every model of every project anew. These are of `job.TRAINING` 3."""
    monkeypatch.setattr(job, "versions", lambda *packages: {"torch": "1"})
    monkeypatch.setattr(job, "__version__", "0")
    given = {"template": "a template" if method == "sft" else None, "reward": "identity" if method == "ppo" else None}
    settings = {"name": "n", "base": "b"} | ({"reward": "r"} if method == "ppo" else {})
    assert key(settings, method=method, examples=examples, base="weights", **given) == golden


def test_the_identity_of_checks_is_as_it_was() -> None:
    checks = [Check.model_validate({"length": {"max_words": 2}})]
    plain = PromptOnly((Message(role="user", content="plain"),))
    known = [
        PromptOnly(ASKED[:1], reference=("4",)),
        PromptOnly(ASKED, checks=({"length": {"max_words": 3}},)),
    ]
    for prompts in ([*known, plain], known[::-1]):
        assert identity_of_checks(checks, prompts) == "7a5c73f573917a0455d8bfae657a3bdf"
    assert identity_of_checks(checks, known[:1]) != "7a5c73f573917a0455d8bfae657a3bdf"


def test_a_survey_digests_as_the_whole_array_is_digested_and_counts_what_is_left_out() -> None:
    survey = Survey(("held-out",))
    assert survey.digest == digest([])
    assert survey.add(WHOLE) == 3
    turns = [[message.role, message.content] for message in TALK]
    assert survey.digest == digest([["train", turns], ["validation", turns[:2]]])
    assert survey.add(iter(PAIRS)) == 2 and survey.add([]) == 0
    pairs = [["train", [turns[:1], "good", "bad"]], ["validation", [turns[:3], "good", "bad"]]]
    assert survey.digest == digest([["train", turns], ["validation", turns[:2]], *pairs])
    assert (survey.given, survey.left_out) == (5, {"held-out": 1})
    splits: tuple[Split, ...] = ("train", "held-out")
    assert len({_digest(replace(WHOLE[0], split=split)) for split in splits}) == 2


def _digest(*examples: Example) -> str:
    survey = Survey(("held-out",))
    survey.add(examples)
    return survey.digest
