"""The gate finds how many requests a server serves best, and lets rows through in their order."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from rlaif.engines import traffic
from rlaif.engines.traffic import Gate


class Clock:
    """Time that passes as the simulation says."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def simulate(
    monkeypatch: pytest.MonkeyPatch, slots: int, most: int = 256, requests: int = 6000, busy_above: int | None = None
) -> Gate:
    """A server that answers `slots` requests at a time, each in about a second, queueing the others; above
    `busy_above` it refuses. Requests come whenever the gate lets them."""
    clock, rng = Clock(), random.Random(0)
    monkeypatch.setattr(traffic, "time", clock)
    gate = Gate(most)
    gate._waiting = [(0, 0, None)] * 10**6  # type: ignore[list-item] # somebody always waits
    under_way: list[tuple[float, float, bool]] = []  # when it ends, when it began, refused
    free = [0.0] * slots
    for _ in range(requests):
        while len(under_way) < int(gate.limit):
            if busy_above is not None and len(under_way) >= busy_above:
                under_way.append((clock.now + 0.01, clock.now, True))
                continue
            slot = min(range(slots), key=free.__getitem__)
            free[slot] = max(free[slot], clock.now) + rng.uniform(0.7, 1.3)
            under_way.append((free[slot], clock.now, False))
        under_way.sort()
        ended, began, refused = under_way.pop(0)
        clock.now = max(clock.now, ended)
        gate._full = True
        gate.observe(clock.now - began, 0 if refused else 100, refused)
    return gate


@pytest.fixture(autouse=True)
def _nobody_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "_admit", lambda self: None)


@pytest.mark.parametrize("slots", [1, 4, 24, 64, 150])
def test_a_gate_finds_what_a_server_that_only_queues_can_serve(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = simulate(monkeypatch, slots)
    assert 0.75 * slots <= gate.limit <= 1.75 * slots + 2


def test_a_gate_keeps_to_what_the_user_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = simulate(monkeypatch, slots=1000, most=48)
    assert gate.limit == 48 and gate.why == "as many as `concurrency` allows"


def test_a_gate_stays_below_what_a_server_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = simulate(monkeypatch, slots=200, busy_above=40)
    assert 15 <= gate.limit <= 60


def test_rows_that_began_first_are_let_through_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    order: list[int] = []

    async def row(number: int, gate: Gate) -> None:
        await gate.enter(number)
        order.append(number)
        await asyncio.sleep(0.001)
        gate.leave()

    async def work() -> None:
        gate = Gate(1)
        rows: list[Any] = [asyncio.create_task(row(number, gate)) for number in (0, 7, 3, 9, 1, 5)]
        await asyncio.gather(*rows)
        assert gate.in_flight == 0

    asyncio.run(work())
    assert order == [0, 1, 3, 5, 7, 9]


def test_a_cancelled_request_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    async def work() -> None:
        gate = Gate(1)
        await gate.enter()
        waiting = [asyncio.create_task(gate.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        gate.leave()
        await waiting[1]
        waiting[2].cancel()
        gate.leave()
        await asyncio.sleep(0)
        assert gate.in_flight == 0

    asyncio.run(work())
