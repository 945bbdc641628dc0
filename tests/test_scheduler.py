"""The scheduler: what is on its way is not asked twice, batches are full, and a dead server stops the run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from echo import Echo

from rlaif.engines.protocol import Reply, Request
from rlaif.engines.scheduler import PATIENCE, Scheduler
from rlaif.errors import EngineError, InputError
from rlaif.records import Message, Sampling
from rlaif.store import CallStore

SAMPLING = Sampling(max_tokens=32)


class Server(Echo):
    """Echo as a server: one request at a time, and a count of how many are open at once."""

    in_process = False

    def __init__(self, name: str, failing: int = 0) -> None:
        super().__init__(name)
        self.open = self.most_open = self.probes = 0
        self.failing = failing

    async def probe(self) -> None:
        self.probes += 1

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply] | EngineError]:
        assert len(requests) == 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(0.002)
        self.open -= 1
        if self.failing > 0:
            self.failing -= 1
            self.asked.extend(requests)
            return [EngineError("no answer", cause="connection", retryable=True)]
        return await super().sample(requests)


class Batches(Echo):
    """Echo in process, keeping the size of each batch in samples."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.sizes: list[int] = []

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply] | EngineError]:
        self.sizes.append(sum(len(request.indices) for request in requests))
        await asyncio.sleep(0.005)
        return await super().sample(requests)


def ask(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def run(engine: Echo, work: Any, concurrency: int = 4) -> Scheduler:
    scheduler = Scheduler(CallStore(Path(":memory:")), {engine.name: engine}, {engine.name: concurrency})
    asyncio.run(work(scheduler))
    return scheduler


def test_the_same_call_from_two_rows_is_paid_once() -> None:
    engine = Server("m")

    async def work(scheduler: Scheduler) -> None:
        same = await asyncio.gather(*(scheduler.sample("m", ask("q"), SAMPLING) for _ in range(10)))
        assert len({completions[0].text for completions in same}) == 1

    scheduler = run(engine, work)
    assert len(engine.asked) == 1
    assert (scheduler.tally("m").sent, scheduler.tally("m").cached) == (1, 9)


def test_more_samples_cost_only_the_new_ones() -> None:
    engine = Server("m")

    async def work(scheduler: Scheduler) -> None:
        two = await scheduler.sample("m", ask("q"), SAMPLING, n=2)
        four = await scheduler.sample("m", ask("q"), SAMPLING, n=4)
        assert four[:2] == two and [request.indices for request in engine.asked] == [(0, 1), (2, 3)]

    run(engine, work)


def test_a_server_is_probed_once_and_its_concurrency_is_kept() -> None:
    engine = Server("m")

    async def work(scheduler: Scheduler) -> None:
        await asyncio.gather(*(scheduler.sample("m", ask(str(i)), SAMPLING) for i in range(40)))

    run(engine, work, concurrency=7)
    assert engine.probes == 1 and engine.most_open == 7


def test_rows_in_flight_fill_the_batches_of_a_model_in_process() -> None:
    engine = Batches("m")

    async def work(scheduler: Scheduler) -> None:
        await asyncio.gather(*(scheduler.sample("m", ask(str(i)), SAMPLING, n=3) for i in range(100)))

    run(engine, work)
    assert sum(engine.sizes) == 300 and max(engine.sizes) <= engine.batch_size
    assert len(engine.sizes) == 5  # 21 requests of three samples fit a batch of 64


def test_one_failure_is_that_rows_alone_and_many_in_a_row_are_fatal() -> None:
    engine = Server("m", failing=PATIENCE + 1)

    async def work(scheduler: Scheduler) -> None:
        for number in range(1, PATIENCE + 2):
            with pytest.raises(EngineError) as caught:
                await scheduler.sample("m", ask(str(number)), SAMPLING)
            assert caught.value.fatal == (number >= PATIENCE)
        assert (await scheduler.sample("m", ask("after"), SAMPLING))[0].text

    scheduler = run(engine, work)
    assert scheduler.tally("m").causes == {"connection": PATIENCE + 1}


def test_what_breaks_a_whole_batch_reaches_every_row_of_it() -> None:
    class Broken(Batches):
        async def sample(self, requests: Sequence[Request]) -> list[list[Reply] | EngineError]:
            raise InputError("this model has no chat template")

    async def work(scheduler: Scheduler) -> None:
        outcomes = await asyncio.gather(
            *(scheduler.sample("m", ask(str(i)), SAMPLING) for i in range(5)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [InputError] * 5

    run(Broken("m"), work)
