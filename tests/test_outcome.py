"""The outcome of a run, and the loop it runs on."""

from __future__ import annotations

import asyncio
import gc

import pytest

from rlaif.errors import Stopped
from rlaif.pipeline.loop import run_to_end
from rlaif.pipeline.outcome import exit_code, next_step


def test_the_exit_code_says_how_a_run_ended() -> None:
    assert exit_code("done", None) == 0
    assert exit_code("incomplete", None) == 1
    assert exit_code("stopped", Stopped("the budget is spent", cause="budget")) == 1
    assert exit_code("stopped", Stopped("interrupted", cause="interrupted")) == 130


def test_the_next_step_fits_what_happened() -> None:
    assert next_step([], None) is None
    assert "--retry-failed" in str(next_step(["too-long", "timeout"], None))
    lasting = str(next_step(["too-long", "template"], None))
    assert "until their cause is fixed" in lasting and "--retry-failed" not in lasting
    assert str(next_step(["timeout"], Stopped("interrupted", cause="interrupted"))).endswith("is paid for twice")
    stopped = Stopped("the budget is spent", cause="budget", fix="raise `budget`")
    assert next_step([], stopped) == "finished work is kept; raise `budget`"


def test_the_loop_returns_the_result_and_leaves_the_collector_as_it_was() -> None:
    async def work() -> int:
        assert gc.get_threshold() == (50_000, 20, 100)
        return 7

    async def cancelled() -> int:
        raise asyncio.CancelledError

    before = gc.get_threshold(), gc.get_freeze_count()
    assert run_to_end(work()) == 7
    with pytest.raises(KeyboardInterrupt):
        run_to_end(cancelled())
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
