"""The learning rate of every step, by its closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlaif.config import SFTSettings
from rlaif.train.schedules import Schedule, schedule_of


def settings_of(**given: Any) -> SFTSettings:
    return SFTSettings.model_validate({"base": "b", "name": "n"} | given)


def rates(**given: Any) -> list[float]:
    steps = given.pop("over", 10)
    schedule = schedule_of(settings_of(**given), steps)
    return [schedule.share(step) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_the_learning_rate_rises_from_its_first_step_and_never_stands_at_nothing(schedule: str) -> None:
    for warmup, steps in ((0, 1), (1, 1), (1, 10), (3, 30)):
        found = Schedule(schedule, steps, warmup)
        shares = [found.share(step) for step in range(steps)]
        assert all(0 < share <= 1 for share in shares) and max(shares) == 1
        assert shares[:warmup] == [(step + 1) / warmup for step in range(warmup)]
        assert shares[warmup:] == sorted(shares[warmup:], reverse=True)


def test_linear_and_cosine_by_hand() -> None:
    assert Schedule("linear", 4).share(3) == pytest.approx(0.25)
    assert Schedule("cosine", 4).share(2) == pytest.approx(0.5)
    assert rates(schedule="linear", warmup=0.2, over=6) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("shape", ["1-sqrt", "linear"])
def test_wsd_warms_up_stays_and_decays_by_its_closed_form(shape: str) -> None:
    """20 steps: 2 warm up, 10 at the peak, 8 decay; x is the share of the decay that has passed."""
    found = rates(schedule="wsd", warmup=0.1, decay=0.4, decay_shape=shape, over=20)
    passed = [i / 8 for i in range(8)]
    fall = [1 - math.sqrt(x) if shape == "1-sqrt" else 1 - x for x in passed]
    assert found == pytest.approx([0.5, 1, *[1] * 10, *fall], abs=1e-12)


def test_wsd_without_a_warm_up_that_only_decays_is_linear() -> None:
    assert rates(schedule="wsd", warmup=0, decay=1, decay_shape="linear") == pytest.approx(
        rates(schedule="linear", warmup=0)
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_a_falling_schedule_ends_at_the_least_rate(schedule: str) -> None:
    """InstructGPT's and Llama 2's tenth. A rate is the least one, and what is above it of the schedule without."""
    plain, least = (rates(schedule=schedule, warmup=0.1, min_rate=rate, over=1000) for rate in (0.0, 0.1))
    assert least[100:] == pytest.approx([0.1 + 0.9 * rate for rate in plain[100:]])
    assert least[:100] == plain[:100] and 0.1 < least[-1] < 0.12


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"decay": 0.2}, "`decay` is of `schedule: wsd`, and the schedule is cosine"),
        ({"schedule": "linear", "decay_shape": "linear"}, "`decay_shape` is of `schedule: wsd`"),
        ({"schedule": "constant", "min_rate": 0.1}, "`min_rate` is of schedules that fall"),
        ({"schedule": "wsd", "warmup": 0.6, "decay": 0.5}, r"`warmup` \(0.6\) and `decay` \(0.5\) are more than all"),
        ({"evaluate_every": 2.5}, "2.5 steps are no whole number"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        settings_of(**given)
    assert settings_of(schedule="wsd", decay=0.2) == SFTSettings.model_validate(
        settings_of(schedule="wsd", decay=0.2).model_dump()
    )
