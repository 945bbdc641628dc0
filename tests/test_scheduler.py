"""The scheduler: what is on its way is not asked twice, batches are full, and a dead server stops the run."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from echo import Echo

from rlaif.engines import scheduler as module
from rlaif.engines import traffic
from rlaif.engines.asking import Ask, Asker, together
from rlaif.engines.ledger import Ledger, Tally
from rlaif.engines.protocol import Reply, Request
from rlaif.engines.scheduler import Scheduler
from rlaif.engines.traffic import BREAK, TRANSPORT
from rlaif.errors import EngineError, InputError, Stopped
from rlaif.records import Completion, Message, Sampling, Usage
from rlaif.store import CallStore

SAMPLING = Sampling(max_tokens=32)


class Server(Echo):
    """Echo as a server: one request at a time, and a count of how many are open at once.

    The first `failing` requests fail, and so does every sample for which `refuses` gives an error.
    """

    in_process = False
    retries, limits = 0, None

    def __init__(self, name: str, failing: int = 0, url: str = "http://a/v1", delay: float = 0.002) -> None:
        super().__init__(name)
        self.open = self.most_open = self.probes = 0
        self.failing, self.urls, self.delay = failing, (url,), delay
        self.capabilities: dict[str, bool | None] = {}

    async def probe(self, url: str) -> list[Usage]:
        self.probes += 1
        self.capabilities["seed"] = True
        return [Usage(prompt_tokens=8, completion_tokens=16)] * 3

    model = "m"

    async def models(self, url: str) -> list[str] | None:
        return None

    def parts(self, request: Request) -> list[Request]:
        return [request]

    def estimate(self, request: Request) -> int:
        return 1

    async def post(self, request: Request, url: str) -> list[Reply | EngineError]:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.open -= 1
        if self.failing > 0:
            self.failing -= 1
            self.asked.append(request)
            return [EngineError("no answer", cause="connection", retryable=True)] * len(request.indices)
        [replies] = await self.sample([request])
        return [self.refuses(request, i) or r for i, r in zip(request.indices, replies, strict=True)]

    def refuses(self, request: Request, index: int) -> EngineError | None:
        return None


class Batches(Echo):
    """Echo in process, keeping the size of each batch in samples."""

    def __init__(self, name: str, delay: float = 0.005) -> None:
        super().__init__(name)
        self.sizes: list[int] = []
        self.delay = delay

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply | EngineError]]:
        self.sizes.append(sum(len(request.indices) for request in requests))
        await asyncio.sleep(self.delay)
        return await super().sample(requests)


def ask(text: str, model: str = "m", n: int = 1, **more: Any) -> Ask:
    return Ask(model, [Message(role="user", content=text)], SAMPLING, n, **more)


async def sample(scheduler: Scheduler, text: str, model: str = "m", **more: Any) -> list[Completion]:
    """The completions of one ask."""
    [completions] = await scheduler.sample([ask(text, model, **more)])
    return completions


def tally(scheduler: Scheduler, model: str = "m") -> Tally:
    """What was asked of a model, over all stages."""
    return scheduler.ledger.by_model()[model]


def run(engine: Echo, work: Any, concurrency: int = 4) -> Scheduler:
    scheduler = Scheduler(CallStore(Path(":memory:")), {engine.name: engine}, {"http://a/v1": concurrency})
    asyncio.run(work(scheduler))
    return scheduler


def test_the_same_call_from_two_rows_is_paid_once() -> None:
    engine = Server("m")

    async def work(scheduler: Scheduler) -> None:
        same = await asyncio.gather(*(sample(scheduler, "q") for _ in range(10)))
        assert len({completions[0].text for completions in same}) == 1

    scheduler = run(engine, work)
    assert len(engine.asked) == 1
    counted = tally(scheduler)
    assert (counted.sent - counted.discarded, counted.cached) == (1, 9)
    assert counted.cached_completion_tokens == 0  # what this run paid for is no one else's expense


def test_more_samples_cost_only_the_new_ones() -> None:
    engine = Server("m")

    async def work(scheduler: Scheduler) -> None:
        two = await sample(scheduler, "q", n=2)
        four = await sample(scheduler, "q", n=4)
        assert four[:2] == two and [request.indices for request in engine.asked] == [(0, 1), (2, 3)]

    run(engine, work)


def test_a_server_is_probed_once_and_its_concurrency_is_kept() -> None:
    engine = Server("m")

    async def work(scheduler: Scheduler) -> None:
        await asyncio.gather(*(sample(scheduler, str(i)) for i in range(40)))

    run(engine, work, concurrency=7)
    assert engine.probes == 1 and engine.most_open == 7


def test_models_of_one_server_share_its_probe() -> None:
    engines = [Server("a"), Server("b"), Server("c", url="http://c/v1")]

    async def work() -> Scheduler:
        names = {engine.name: engine for engine in engines}
        scheduler = Scheduler(CallStore(Path(":memory:")), names, {})
        await asyncio.gather(*(sample(scheduler, "q", name) for name in names))
        return scheduler

    scheduler = asyncio.run(work())
    assert [engine.probes for engine in engines] == [1, 0, 1]
    a, b = tally(scheduler, "a"), tally(scheduler, "b")
    assert (a.sent, a.discarded, b.sent, b.discarded) == (4, 3, 1, 0)  # a probe is three calls, and paid for
    assert (a.prompt_tokens, b.prompt_tokens) == (1 + 24, 1)


def test_rows_in_flight_fill_the_batches_of_a_model_in_process() -> None:
    engine = Batches("m")

    async def work(scheduler: Scheduler) -> None:
        await asyncio.gather(*(sample(scheduler, str(i), n=3) for i in range(100)))

    run(engine, work)
    assert sum(engine.sizes) == 300 and max(engine.sizes) <= engine.batch_size
    assert len(engine.sizes) == 5  # 21 requests of three samples fit a batch of 64


def test_a_server_that_comes_back_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is down is left alone, tried now and then, and given its work when it is back."""
    monkeypatch.setattr(traffic, "PAUSE", 0.02)
    engine = Server("m", failing=BREAK + 3)

    async def work(scheduler: Scheduler) -> None:
        engine.retries = 1
        texts = await asyncio.gather(*(sample(scheduler, str(i)) for i in range(BREAK)))
        assert len(texts) == BREAK and all(one[0].text for one in texts)

    scheduler = run(engine, work, concurrency=BREAK)
    assert len(engine.asked) == (BREAK + 3) + BREAK  # three trials by one request at a time, then everybody
    assert tally(scheduler).failed == 0 and tally(scheduler).retries["connection"] == BREAK + 3


def test_a_server_that_stays_away_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "PAUSE", 0.02)
    monkeypatch.setattr(traffic, "GIVE_UP", 0.1)
    engine = Server("m", failing=10**6)

    async def work(scheduler: Scheduler) -> None:
        engine.retries = 1
        rows = [asyncio.create_task(sample(scheduler, str(i))) for i in range(3 * BREAK)]
        done, waiting = await asyncio.wait(rows, return_when=asyncio.FIRST_EXCEPTION, timeout=5)
        with pytest.raises(EngineError, match=r"\d+ requests in a row failed, the last: no answer") as caught:
            await next(iter(done))
        assert caught.value.fatal
        for row in waiting:
            row.cancel()
        await scheduler.close()

    run(engine, work)
    assert len(engine.asked) < 4 * BREAK  # left alone, not hammered


def test_a_server_that_answers_nothing_but_errors_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there and broken would else be tried once in half a minute, by every row, for hours."""
    for name, seconds in (("PAUSE", 0.02), ("GIVE_UP", 0.1), ("FIRST_WAIT", 0.01)):
        monkeypatch.setattr(traffic, name, seconds)

    class Broken(Server):
        def refuses(self, request: Request, index: int) -> EngineError | None:
            return EngineError("internal error", cause="server", retryable=True)

    engine = Broken("m")

    async def work(scheduler: Scheduler) -> None:
        engine.retries = 6
        rows = [asyncio.create_task(sample(scheduler, str(i))) for i in range(20 * BREAK)]
        await asyncio.wait(rows, return_when=asyncio.FIRST_EXCEPTION, timeout=5)
        failed = [error for row in rows if row.done() and (error := row.exception()) is not None]
        assert any(isinstance(error, EngineError) and error.fatal for error in failed)
        for row in rows:
            row.cancel()
        await scheduler.close()

    run(engine, work)
    assert len(engine.asked) < 20 * BREAK


def test_one_failure_is_that_rows_alone() -> None:
    engine = Server("m", failing=3)

    async def work(scheduler: Scheduler) -> None:
        for number in range(3):
            with pytest.raises(EngineError) as caught:
                await sample(scheduler, str(number))
            assert not caught.value.fatal
        assert (await sample(scheduler, "after"))[0].text

    scheduler = run(engine, work)
    assert tally(scheduler).causes == {"connection": 3}


CAUSES = ["too-long", "http-400", "empty", "no-logprobs"]


class Refusing(Server):
    """A server that answers what begins with `fine`, and refuses the rest."""

    cause = ""

    def refuses(self, request: Request, index: int) -> EngineError | None:
        return None if request.messages[0].content == "fine" else EngineError("no", cause=self.cause)


@pytest.mark.parametrize("cause", CAUSES)
def test_what_is_wrong_with_a_request_never_stops_the_run(cause: str) -> None:
    async def work(scheduler: Scheduler) -> None:
        if cause != "too-long":  # that is the prompt's in any case
            await sample(scheduler, "fine")
        for number in range(2 * BREAK):
            with pytest.raises(EngineError) as caught:
                await sample(scheduler, str(number))
            assert not caught.value.fatal

    assert cause not in TRANSPORT
    engine = Refusing("m")
    engine.cause = cause
    scheduler = run(engine, work)
    assert scheduler._store._db.execute("SELECT count(*) FROM failures").fetchone()[0] == 2 * BREAK


@pytest.mark.parametrize("cause", CAUSES[1:])
def test_what_every_one_of_the_first_ten_requests_meets_stops_the_run(cause: str) -> None:
    """And is no failure of these ten: with the cause mended, they are sent again."""
    engine = Refusing("m")
    engine.cause = cause

    async def work(scheduler: Scheduler) -> None:
        asked = (sample(scheduler, str(number)) for number in range(100))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        fatal = [one for one in outcomes if isinstance(one, EngineError) and one.fatal]
        assert len(fatal) == 91 and "all of the first 10 requests" in str(fatal[0])
        assert len(engine.asked) == traffic.FIRST

    scheduler = run(engine, work, concurrency=50)
    assert not scheduler._store._db.execute("SELECT count(*) FROM failures").fetchone()[0]


def test_ten_different_causes_stop_nothing_and_hold_nothing_up() -> None:
    class Odd(Refusing):
        def refuses(self, request: Request, index: int) -> EngineError | None:
            return EngineError("no", cause=f"http-4{int(request.messages[0].content) % 2}0")

    engine = Odd("m")

    async def work(scheduler: Scheduler) -> None:
        asked = (sample(scheduler, str(number)) for number in range(40))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, EngineError) and not one.fatal for one in outcomes)

    run(engine, work, concurrency=50)
    assert len(engine.asked) == 40


def test_a_request_that_makes_a_server_hang_up_is_that_rows_alone_while_others_succeed() -> None:
    class Poisoned(Server):
        def refuses(self, request: Request, index: int) -> EngineError | None:
            poison = request.messages[0].content.startswith("poison")
            return EngineError("hung up", cause="connection", retryable=True) if poison else None

    async def work(scheduler: Scheduler) -> None:
        for number in range(2 * BREAK):
            with pytest.raises(EngineError) as caught:
                await sample(scheduler, f"poison {number}")
            assert not caught.value.fatal
            await sample(scheduler, f"fine {number}")

    run(Poisoned("m"), work)


def test_what_arrived_of_a_request_is_kept_when_one_sample_fails() -> None:
    class Partly(Server):
        def refuses(self, request: Request, index: int) -> EngineError | None:
            return EngineError("nothing", cause="empty") if index == 2 else None

    engine = Partly("m")

    async def work(scheduler: Scheduler) -> None:
        scheduler._retry_failed = True
        for _ in range(2):
            with pytest.raises(EngineError, match="nothing"):
                await sample(scheduler, "q", n=4)
        assert [request.indices for request in engine.asked] == [(0, 1, 2, 3), (2,)]

    scheduler = run(engine, work)
    counted = tally(scheduler)
    assert (counted.sent - counted.discarded, counted.cached, counted.failed) == (3, 3, 2)


def test_the_answer_used_is_the_answer_stored(tmp_path: Path) -> None:
    """Two processes that pay for one call at the same time must not describe it in two ways."""

    async def work() -> None:
        stores = [CallStore(tmp_path / "calls.sqlite") for _ in range(2)]
        others = [Server("m"), Server("m")]
        others[1]._reply = lambda request, index: Reply(text="another", finish_reason="stop")  # type: ignore[method-assign]
        schedulers = [Scheduler(s, {"m": e}, {}) for s, e in zip(stores, others, strict=True)]
        one, other = await asyncio.gather(*(sample(s, "q") for s in schedulers))
        assert len(others[0].asked) == len(others[1].asked) == 1  # both paid
        assert one == other
        [key] = {completion.call for completion in (*one, *other)}
        assert stores[0].get([key])[key]["text"] == one[0].text
        for store in stores:
            store.close()

    asyncio.run(work())


def test_a_stored_call_says_what_was_asked() -> None:
    store = CallStore(Path(":memory:"))
    schema = {"properties": {"b": {}, "a": {}}}

    async def work() -> dict[str, Any] | None:
        scheduler = Scheduler(store, {"m": Batches("m")}, {})
        [_, second] = await sample(scheduler, "q", n=2, attempt=1, json_schema=schema)
        return store.request(second.call)

    assert asyncio.run(work()) == {
        "model": "m",
        "messages": [{"role": "user", "content": "q"}],
        "sampling": SAMPLING.model_dump(mode="json"),
        "attempt": 1,
        "index": 1,
        "schema": schema,
    }


def test_a_later_run_knows_what_its_data_cost(tmp_path: Path) -> None:
    tallies = []
    for _ in range(2):
        store = CallStore(tmp_path / "calls.sqlite")

        async def work(store: CallStore = store) -> Scheduler:
            scheduler = Scheduler(store, {"m": Batches("m")}, {})
            for _ in range(2):  # asked for twice, paid for once
                await sample(scheduler, "two words", n=2)
            return scheduler

        tallies.append(tally(asyncio.run(work())))
        store.close()
    first, second = tallies
    assert first.prompt_tokens == 4 and first.completion_tokens > 0 and first.cached_prompt_tokens == 0
    assert (second.sent, second.prompt_tokens, second.cached) == (0, 0, 4)
    assert second.cached_prompt_tokens == first.prompt_tokens
    assert second.cached_completion_tokens == first.completion_tokens


def test_what_breaks_a_whole_batch_reaches_every_row_of_it() -> None:
    class Broken(Batches):
        async def sample(self, requests: Sequence[Request]) -> list[list[Reply | EngineError]]:
            raise InputError("this model has no chat template")

    async def work(scheduler: Scheduler) -> None:
        outcomes = await asyncio.gather(*(sample(scheduler, str(i)) for i in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [InputError] * 5

    run(Broken("m"), work)


@pytest.mark.parametrize("in_process", [True, False])
def test_an_engine_that_returns_too_little_leaves_no_row_waiting(in_process: bool) -> None:
    class Short(Server):
        async def sample(self, requests: Sequence[Request]) -> list[list[Reply | EngineError]]:
            return []

        async def post(self, request: Request, url: str) -> list[Reply | EngineError]:
            return (await super(Server, self).sample([request]))[0][:-1]

    engine = Short("m")
    engine.in_process = in_process

    async def work(scheduler: Scheduler) -> None:
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*(sample(scheduler, str(i)) for i in range(5)), return_exceptions=True)
        assert all(isinstance(o, EngineError) and "another number of samples" in str(o) for o in outcomes)

    run(engine, work)


# ---------------------------------------------------------------- cancelling and closing


def test_cancelled_rows_cost_nothing_more_and_lose_nothing_paid_for() -> None:
    engine, store = Batches("m", delay=0.1), CallStore(Path(":memory:"))

    async def work() -> None:
        scheduler = Scheduler(store, {"m": engine}, {})
        rows = [asyncio.create_task(sample(scheduler, str(i), n=3)) for i in range(100)]
        while not engine.sizes:
            await asyncio.sleep(0.01)
        for row in rows:
            row.cancel()
        await asyncio.wait(rows)
        await asyncio.sleep(0.25)  # time enough for another batch
        assert engine.sizes == [63] and len(store) == 63

    asyncio.run(work())


def test_a_server_cancelled_in_flight_is_heard_out_and_nothing_else_is_sent() -> None:
    engine, store = Server("m", delay=0.2), CallStore(Path(":memory:"))

    async def work() -> None:
        scheduler = Scheduler(store, {"m": engine}, {"http://a/v1": 2})
        rows = [asyncio.create_task(sample(scheduler, str(i))) for i in range(10)]
        while engine.open < 2:
            await asyncio.sleep(0.01)
        for row in rows:
            row.cancel()
        await asyncio.wait(rows)
        await scheduler.close()

    asyncio.run(work())
    assert len(engine.asked) == 2 and len(store) == 2


@pytest.mark.parametrize("make", [Batches, Server])
def test_closing_does_not_wait_for_ever(make: type[Batches] | type[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.05)
    engine = make("m", delay=60)

    async def work(scheduler: Scheduler) -> None:
        row = asyncio.create_task(sample(scheduler, "q"))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            await scheduler.close()
            with pytest.raises(asyncio.CancelledError):
                await row
        await scheduler.close()  # twice does no harm

    run(engine, work)


def test_a_row_that_waits_for_one_cancelled_in_flight_gets_what_it_paid_for() -> None:
    engine = Server("m", delay=0.1)

    async def work(scheduler: Scheduler) -> None:
        first, second = (asyncio.create_task(sample(scheduler, "q")) for _ in range(2))
        while not engine.open:
            await asyncio.sleep(0.01)
        first.cancel()
        assert (await second)[0].text

    run(engine, work)
    assert len(engine.asked) == 1


def test_a_row_that_waits_for_a_cancelled_one_pays_itself() -> None:
    engine = Server("m", delay=0.05)

    async def work(scheduler: Scheduler) -> None:
        busy = asyncio.create_task(sample(scheduler, "busy"))
        await asyncio.sleep(0.02)
        first = asyncio.create_task(sample(scheduler, "q"))
        await asyncio.sleep(0)
        second = asyncio.create_task(sample(scheduler, "q"))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second)[0].text and (await busy)[0].text
        assert first.cancelled()

    run(engine, work, concurrency=1)
    assert len(engine.asked) == 2


def test_siblings_of_a_failure_end_first_and_the_gravest_error_is_raised() -> None:
    ended: list[str] = []

    async def one(name: str, delay: float, error: Exception | None = None) -> str:
        await asyncio.sleep(delay)
        ended.append(name)
        if error is not None:
            raise error
        return name

    with pytest.raises(EngineError, match="fatal"):
        asyncio.run(
            _together(one("a", 0, EngineError("row")), one("b", 0.01, EngineError("fatal", fatal=True)), one("c", 0.02))
        )
    assert ended == ["a", "b", "c"]
    with pytest.raises(InputError):
        asyncio.run(_together(one("a", 0, EngineError("row")), one("b", 0, InputError("wrong"))))
    assert asyncio.run(_together(one("a", 0.01), one("b", 0))) == ["a", "b"]


async def _together(*work: Any) -> list[str]:
    return await together(*work)


def test_a_failure_does_not_keep_the_row_that_it_befell() -> None:
    class Row:
        pass

    async def fails(row: Row) -> None:
        raise EngineError("no")

    async def work() -> weakref.ref[Row]:
        row = Row()
        with contextlib.suppress(EngineError):
            await together(fails(row), fails(row))
        return weakref.ref(row)

    gc.disable()
    try:
        assert asyncio.run(work())() is None
    finally:
        gc.enable()


def test_what_one_request_is_refused_is_not_fatal_once_the_model_has_answered() -> None:
    class Refuses(Server):
        async def post(self, request: Request, url: str) -> list[Reply | EngineError]:
            if request.messages[-1].content == "poison":
                return [EngineError("403", cause="http-403", fatal=True)]
            return await super().post(request, url)

    async def work(scheduler: Scheduler) -> None:
        with pytest.raises(EngineError) as caught:
            await sample(scheduler, "poison")
        assert caught.value.fatal  # nothing says yet that the model can be asked at all
        await sample(scheduler, "fine")
        with pytest.raises(EngineError) as caught:
            await sample(scheduler, "poison")
        assert not caught.value.fatal

    run(Refuses("m"), work)


# ---------------------------------------------------------------- servers that are away


def test_an_account_that_runs_out_of_credit_stops_the_run_and_records_nothing() -> None:
    """Credit ends after the first answers, never before."""

    class Spent(Server):
        async def post(self, request: Request, url: str) -> list[Reply | EngineError]:
            if len(self.asked) >= 3:
                return [EngineError("no credit left", cause="quota", fatal=True)]
            return await super().post(request, url)

    store = CallStore(Path(":memory:"))

    async def work() -> None:
        scheduler = Scheduler(store, {"m": Spent("m")}, {"http://a/v1": 1})
        outcomes = await asyncio.gather(*(sample(scheduler, str(i)) for i in range(8)), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, EngineError)]
        assert len(errors) == 5 and all(error.fatal for error in errors)

    asyncio.run(work())
    assert store._db.execute("SELECT count(*) FROM failures").fetchone()[0] == 0


def test_two_requests_that_every_server_chokes_on_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "LONGEST_WAIT", 0.01)

    class Poisoned(Server):
        retries = 20

        def refuses(self, request: Request, index: int) -> EngineError | None:
            return EngineError("500", cause="server", retryable=True)

    engine, store = Poisoned("m"), CallStore(Path(":memory:"))

    async def work() -> None:
        scheduler = Scheduler(store, {"m": engine}, {})
        outcomes = await asyncio.gather(*(sample(scheduler, f"poison {i}") for i in range(2)), return_exceptions=True)
        assert all(isinstance(outcome, EngineError) and not outcome.fatal for outcome in outcomes)

    asyncio.run(work())
    assert len(engine.asked) == 2 * 21
    assert store._db.execute("SELECT count(*) FROM failures").fetchone()[0] == 2  # the next run knows


def test_an_endpoint_that_breaks_down_is_tried_after_one_pause_however_many_failed_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traffic, "PAUSE", 0.05)
    engine = Server("m", delay=0.02)
    engine.retries = 1
    assert traffic.START > BREAK

    async def work(scheduler: Scheduler) -> None:
        await sample(scheduler, "first")  # before it, fewer are in flight
        engine.failing = traffic.START
        began = time.monotonic()
        texts = await asyncio.gather(*(sample(scheduler, str(i)) for i in range(50)))
        assert len(texts) == 50 and time.monotonic() - began < 2.0  # not the longest pause, of thirty seconds

    run(engine, work, concurrency=50)


class Replicas(Server):
    """Two urls; `down` names those that nobody is at."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.urls, self.down, self.got = ("http://a/v1", "http://b/v1"), set[str](), Counter[str]()

    def _gone(self, url: str) -> EngineError:
        return EngineError(f"nobody at {url}", cause="connection", retryable=True)

    async def probe(self, url: str) -> list[Usage]:
        if url in self.down:
            raise self._gone(url)
        return await super().probe(url)

    async def post(self, request: Request, url: str) -> list[Reply | EngineError]:
        self.got[url] += 1
        if url in self.down:
            return [self._gone(url)] * len(request.indices)
        return await super().post(request, url)


def test_a_replica_that_was_away_at_first_is_used_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "PAUSE", 0.02)
    engine = Replicas("m")
    engine.down = {"http://b/v1"}

    async def work(scheduler: Scheduler) -> None:
        await asyncio.gather(*(sample(scheduler, str(i)) for i in range(20)))
        engine.down.clear()
        await asyncio.sleep(0.1)
        for wave in range(10):
            await asyncio.gather(*(sample(scheduler, f"{wave} {i}") for i in range(10)))

    run(engine, work)
    assert engine.got["http://b/v1"] > 25


def test_requests_do_not_wait_for_a_dead_replica_while_another_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "PAUSE", 0.02)
    monkeypatch.setattr(traffic, "LONGEST_PAUSE", 0.2)
    engine = Replicas("m")
    engine.retries = 9

    async def work(scheduler: Scheduler) -> None:
        await sample(scheduler, "first")
        engine.down = set(engine.urls)
        rows = [asyncio.create_task(sample(scheduler, str(i))) for i in range(40)]
        await asyncio.sleep(0.3)
        assert not any(row.done() for row in rows)
        engine.down = {"http://a/v1"}
        async with asyncio.timeout(3):
            await asyncio.gather(*rows)

    run(engine, work)


def test_requests_that_begin_alike_go_to_the_same_replica() -> None:
    engine = Replicas("m")
    seen: dict[str, set[str]] = {}
    post = engine.post

    async def noted(request: Request, url: str) -> list[Reply | EngineError]:
        seen.setdefault(request.messages[0].content[:9], set()).add(url)
        return await post(request, url)

    engine.post = noted  # type: ignore[method-assign]

    async def work(scheduler: Scheduler) -> None:
        for prefix in range(20):
            for turn in range(3):  # what is read before is the first 512 characters
                await sample(scheduler, f"prefix {prefix:2}" + "x" * 600 + str(turn))

    run(engine, work)
    assert len(seen) == 20 and all(len(urls) == 1 for urls in seen.values())
    assert set.union(*seen.values()) == set(engine.urls)


# ---------------------------------------------------------------- stopping


def test_a_stop_keeps_what_was_paid_of_a_request_in_parts() -> None:
    class Parts(Server):
        def parts(self, request: Request) -> list[Request]:
            return [request.model_copy(update={"indices": (index,)}) for index in request.indices]

    engine, store = Parts("m", delay=0.1), CallStore(Path(":memory:"))

    async def work() -> None:
        scheduler = Scheduler(store, {"m": engine}, {"http://a/v1": 2})
        row = asyncio.create_task(sample(scheduler, "q", n=4))
        while engine.open < 2:
            await asyncio.sleep(0.01)
        scheduler.stop(Stopped("interrupted", cause="interrupted"))
        with pytest.raises(Stopped):
            await row
        await scheduler.close()

    asyncio.run(work())
    assert len(engine.asked) == 2 and len(store) == 2


def test_a_stop_sends_no_probe_and_no_request_more() -> None:
    class Slow(Server):
        async def probe(self, url: str) -> list[Usage]:
            await asyncio.sleep(60)
            return []

    engine = Slow("m")

    async def work(scheduler: Scheduler) -> None:
        rows = [asyncio.create_task(sample(scheduler, str(i))) for i in range(3)]
        await asyncio.sleep(0.05)
        scheduler.stop(Stopped("interrupted", cause="interrupted"))
        async with asyncio.timeout(2):
            outcomes = await asyncio.gather(*rows, return_exceptions=True)
        assert all(isinstance(outcome, Stopped | asyncio.CancelledError) for outcome in outcomes)

    run(engine, work)
    assert not engine.asked


def test_a_cancelled_row_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "LONGEST_WAIT", 0.01)  # else the pauses alone would keep it quiet
    engine = Server("m", failing=10**6, delay=0.01)
    engine.retries = 50

    async def work(scheduler: Scheduler) -> None:
        row = asyncio.create_task(sample(scheduler, "q"))
        while len(engine.asked) < 2:
            await asyncio.sleep(0.01)
        row.cancel()
        await asyncio.wait([row])
        sent = len(engine.asked)
        await asyncio.sleep(0.3)  # time enough for ten more
        assert len(engine.asked) <= sent + 1  # the one on its way

    run(engine, work)


def test_one_call_under_two_names_is_paid_once() -> None:
    engine = Server("m")

    async def work(scheduler: Scheduler) -> None:
        one, other = await scheduler.sample([ask("q", n=2), ask("q", n=3)])
        assert other[:2] == one

    run(engine, work)
    assert sorted(index for request in engine.asked for index in request.indices) == [0, 1, 2]


# ---------------------------------------------------------------- who asks


def test_calls_are_counted_for_the_stage_that_asks() -> None:
    engine = Server("m")

    async def work(scheduler: Scheduler) -> None:
        await asyncio.gather(*(sample(scheduler, str(i), stage="sample") for i in range(5)))
        await scheduler.sample([ask(str(i), stage="rate") for i in range(3, 7)])

    ledger = run(engine, work).ledger
    counts = {
        stage: (found.sent - found.discarded, found.cached)
        for stage in ("sample", "rate")
        for found in ledger.by_model(stage).values()
    }
    assert counts == {"sample": (5, 0), "rate": (2, 2)}
    assert ledger.tally("m", "sample").discarded == 3  # the probe is paid by who asks first


def test_an_asker_asks_as_it_is_bound() -> None:
    asker = Asker(Scheduler(CallStore(Path(":memory:")), {"m": (engine := Batches("m"))}, {}), "m", SAMPLING, "rate", 7)
    messages = [Message(role="user", content="q")]

    async def work() -> None:
        [one, two] = await asker.several(messages, 2)
        assert await asker.one(messages) == one != two
        await asker.sampled(seed=5).one(messages, attempt=1, json_schema={"type": "object"})

    asyncio.run(work())
    first, second = engine.asked
    assert (first.indices, first.stage, first.row, first.sampling) == ((0, 1), "rate", 7, SAMPLING)
    assert (second.indices, second.stage, second.row, second.attempt) == ((0,), "rate", 7, 1)
    assert second.sampling == SAMPLING.model_copy(update={"seed": 5}) and second.json_schema == {"type": "object"}


def test_requests_of_the_rows_that_began_first_are_sent_first() -> None:
    engine = Server("m")
    rows = [0, 7, 3, 9, 1, 5]

    async def work(scheduler: Scheduler) -> None:
        await sample(scheduler, "a probe first")
        await asyncio.gather(*(sample(scheduler, str(row), row=row) for row in rows))

    run(engine, work, concurrency=1)
    assert [int(request.messages[0].content) for request in engine.asked[1:]] == sorted(rows)


# ---------------------------------------------------------------- money


class Price(NamedTuple):
    prompt: float = 0.0
    completion: float = 1e6  # one for each token


@pytest.mark.parametrize("wasted", [False, True])
def test_a_budget_counts_over_several_starts_what_gave_nothing_too(wasted: bool, tmp_path: Path) -> None:
    class Empty(Server):
        def refuses(self, request: Request, index: int) -> EngineError | None:
            usage = Usage(prompt_tokens=1, completion_tokens=5)
            return EngineError("empty", cause="empty", usage=usage) if wasted else None

    spent, starts = [], []
    for start in range(4):
        store = CallStore(tmp_path / "calls.sqlite", run="r")
        ledger = Ledger({"m": Price()}, budget=200.0)
        found = store.spent("r").get("echo m", (0, 0))
        ledger.before(ledger.cost("m", *found) or 0.0)
        starts.append(ledger.spent)

        async def work(store: CallStore = store, ledger: Ledger = ledger, start: int = start) -> None:
            scheduler = Scheduler(store, {"m": Empty("m")}, {"http://a/v1": 1}, ledger=ledger)
            rows = (sample(scheduler, f"{start} {i}") for i in range(60))
            await asyncio.gather(*rows, return_exceptions=True)
            await scheduler.close()

        asyncio.run(work())
        spent.append(ledger.spent)
        store.close()
    assert starts == [0.0, *spent[:-1]] and 160 < spent[-1] <= 200.0


def test_a_reservation_that_does_not_fit_waits_for_those_on_their_way_and_then_stops() -> None:
    async def work() -> None:
        ledger = Ledger({"m": Price()}, budget=100.0)
        amounts = random.Random(0)
        for _ in range(3000):  # sums of many amounts are never quite zero again
            with await ledger.reserve("m", 0, amounts.randint(1, 90)):
                pass
        held = await ledger.reserve("m", 0, 80)
        with held:
            waiting = asyncio.create_task(ledger.reserve("m", 0, 30))
            await asyncio.sleep(0.01)
            assert not waiting.done()
        with await waiting:
            pass
        async with asyncio.timeout(1):
            with pytest.raises(Stopped, match="leaves no room"):
                await ledger.reserve("m", 0, 101)

    asyncio.run(work())


def test_a_slow_disk_of_one_server_does_not_hold_up_another() -> None:
    """No more answers wait for the disk than requests are under way, for each server by itself."""
    engines = {"slow": Server("slow", url="http://slow/v1"), "quick": Server("quick", url="http://quick/v1")}
    store = CallStore(Path(":memory:"))
    commit, unkept = store._commit, []

    def slowly(batches: Any) -> Any:
        time.sleep(0.03)
        return commit(batches)

    store._commit = slowly  # type: ignore[method-assign]

    async def work() -> None:
        scheduler = Scheduler(store, engines, {"http://slow/v1": 4, "http://quick/v1": 4})

        async def watch() -> None:
            while True:
                unkept.append(max((e.gate.unkept for e in scheduler.traffic.endpoints.values()), default=0))
                await asyncio.sleep(0.001)

        watching = asyncio.create_task(watch())
        rows = [sample(scheduler, str(i), name) for name in engines for i in range(60)]
        await asyncio.gather(*rows)
        watching.cancel()
        await scheduler.close()

    asyncio.run(work())
    assert 1 <= max(unkept) <= 8  # four that wait, and the four that were under way when the fourth came
