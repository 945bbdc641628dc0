"""The scheduler: what stands between the stages and the engines.

A stage asks for samples of a model; the scheduler answers from the call store, sends what is missing, and returns only
what is durable. Servers get one request at a time within their concurrency; models in this process share the machine,
so their requests are gathered into large batches and one model computes at a time.

What was sent is paid for, so it outlives the row that asked: its answer is stored even when the row was cancelled
meanwhile. What was not sent by then is never sent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from rlaif.engines.protocol import TRANSPORT, Account, Engine, Reply, Request
from rlaif.errors import EngineError
from rlaif.records import Completion, Message, Sampling, Usage
from rlaif.store import Call, CallStore, call_key

LINGER = 0.02  # seconds an in-process batch that is not full waits for more requests
PATIENCE = 20  # requests that may fail in a row on the way to one server, retries included, before the run stops
GRACE = 10.0  # seconds that `close` waits for what was sent

Answers = dict[str, dict[str, Any]]  # by the call's key
Arrivals = list[Reply | EngineError]  # one for each sample of a request

Result = TypeVar("Result")


@dataclass
class Tally:
    """What one model was asked in this run. Tokens of what was discarded are counted with the others."""

    sent: int = 0  # calls that were paid for in this run
    discarded: int = 0  # those of them whose answer was of no use: probes, empty completions
    cached: int = 0  # calls the store answered
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0  # what the store's answers once cost, each counted once
    cached_completion_tokens: int = 0
    cut: int = 0  # completions that ended at max_tokens
    causes: Counter[str] = field(default_factory=Counter)  # of `failed`
    retries: Counter[str] = field(default_factory=Counter)  # requests sent again, by cause


class Sampler(Protocol):
    """What a stage needs of a scheduler; the plan has one that never sends."""

    async def sample(
        self,
        model: str,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        n: int = 1,
        attempt: int = 0,
        json_schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]: ...


async def together(*work: Awaitable[Result]) -> list[Result]:
    """The results of all `work`. One that fails lets the others finish; then the gravest error is raised."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    if errors := [outcome for outcome in outcomes if isinstance(outcome, BaseException)]:
        raise _gravest(errors)
    return outcomes  # type: ignore[return-value]


def _gravest(errors: Sequence[BaseException]) -> BaseException:
    """The first error that stops the run; the first of all where each befell a row alone."""
    return min(errors, key=lambda error: isinstance(error, EngineError) and not error.fatal)


@dataclass(eq=False)
class _Order:
    """A request on its way. `done` ends when its answers are stored, or are known not to come."""

    engine: Engine
    request: Request
    keys: Sequence[str]
    done: asyncio.Future[Answers]
    sent: bool = False


class Scheduler:
    """Answers requests for samples from the store or an engine. `engines` may grow as models are trained."""

    def __init__(self, store: CallStore, engines: Mapping[str, Engine], concurrency: Mapping[str, int]) -> None:
        self._store, self._engines = store, engines
        self._slots = {name: asyncio.Semaphore(limit) for name, limit in concurrency.items()}
        self._probes: dict[str, asyncio.Task[None]] = {}  # by server
        self._failed_in_a_row: Counter[str] = Counter()  # by server
        self._answered: set[str] = set()  # models of servers that have answered at least once
        self._in_flight: dict[str, _Order] = {}
        self._waiting: dict[Engine, list[_Order]] = {}  # for an engine in this process
        self._computing: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._storing: set[asyncio.Task[None]] = set()
        self._accounted: set[str] = set()  # keys whose tokens are in a tally, as paid now or as cached
        self.tallies: dict[str, Tally] = {}

    def tally(self, model: str) -> Tally:
        return self.tallies.setdefault(model, Tally())

    async def sample(
        self,
        model: str,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        n: int = 1,
        attempt: int = 0,
        json_schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """`n` completions, each from the store where it was paid for before.

        Raises EngineError when one of them is not to be had; the others are stored by then.
        """
        engine = self._engines[model]
        keys = [
            call_key(engine.identity, messages, sampling, index=i, attempt=attempt, json_schema=json_schema)
            for i in range(n)
        ]
        while flying := {self._in_flight[key].done for key in keys if key in self._in_flight}:
            await asyncio.wait(flying)  # the same call is being paid for by another row
        answers = self._store.get(keys)
        self._count_cached(self.tally(model), answers)
        missing = [i for i, key in enumerate(keys) if key not in answers]
        if missing:
            request = Request(
                messages=tuple(messages),
                sampling=sampling,
                indices=tuple(missing),
                attempt=attempt,
                json_schema=dict(json_schema) if json_schema is not None else None,
            )
            answers |= await self._pay(engine, request, [keys[i] for i in missing])
        return [
            Completion(model=model, call=key, **{k: v for k, v in answers[key].items() if v is not None})
            for key in keys
        ]

    async def close(self) -> None:
        """Drop what was not sent, wait `GRACE` seconds for what was, and store what arrives. Then close the store."""
        for order in list(self._in_flight.values()):
            if not order.sent:
                order.done.cancel()
        probes, self._probes = set(self._probes.values()), {}
        for probe in probes:
            probe.cancel()
        await _ended(probes)
        await _ended(self._asking, timeout=GRACE)
        for task in self._asking:
            task.cancel()
        await _ended(self._asking)
        await _ended(self._storing)  # never cut short: these answers have arrived
        for order in list(self._in_flight.values()):
            order.done.cancel()
        for engine in self._engines.values():
            if not engine.in_process:
                self._count_account(engine)

    # ------------------------------------------------------------ orders

    async def _pay(self, engine: Engine, request: Request, keys: Sequence[str]) -> Answers:
        """Order samples; returns when they are durable."""
        order = _Order(engine, request, keys, asyncio.get_running_loop().create_future())
        self._in_flight.update(dict.fromkeys(keys, order))
        order.done.add_done_callback(lambda _: self._forget(order))
        if engine.in_process:
            self._waiting.setdefault(engine, []).append(order)
            if self._computing is None or self._computing.done():
                self._computing = self._start(self._compute(), self._asking)
        else:
            self._start(self._send(order), self._asking)
        try:
            return await asyncio.shield(order.done)
        except asyncio.CancelledError:
            if not order.sent:
                order.done.cancel()
            raise

    def _forget(self, order: _Order) -> None:
        for key in order.keys:
            self._in_flight.pop(key, None)
        if not order.done.cancelled():
            order.done.exception()  # seen, also where the row that asked is gone

    def _start(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def _ask(self, orders: Sequence[_Order]) -> None:
        """Put the requests of `orders` to their engine, and have what arrives stored. Each order hears how it went."""
        for order in orders:
            order.sent = True
        engine = orders[0].engine
        try:
            arrivals = await engine.sample([order.request for order in orders])
            if [len(one) for one in arrivals] != [len(order.keys) for order in orders]:
                raise EngineError(f"the engine of {engine.name!r} returned another number of samples than it was asked")
        except EngineError as error:
            arrivals = [[error] * len(order.keys) for order in orders]
        except Exception as error:
            for order in orders:
                _fail(order, error)
            return
        except asyncio.CancelledError:
            for order in orders:
                order.done.cancel()
            raise
        for order, arrived in zip(orders, arrivals, strict=True):
            self._start(self._settle(order, arrived), self._storing)

    async def _settle(self, order: _Order, arrived: Arrivals) -> None:
        """Make what arrived of an order durable, count it, and end the order."""
        request, engine = order.request, order.engine
        replies = [(i, key, r) for i, key, r in zip(request.indices, order.keys, arrived, strict=True)
                   if isinstance(r, Reply)]  # fmt: skip
        errors = [r for r in arrived if isinstance(r, EngineError)]
        self._count(engine, [reply for _, _, reply in replies], errors)
        try:
            stored = await self._store.put(
                [
                    Call(key, engine.identity, _asked(engine.name, request, index), reply.model_dump(mode="json"))
                    for index, key, reply in replies
                ]
            )
        except Exception as error:
            _fail(order, error)
            return
        self._accounted.update(stored)
        if errors:
            _fail(order, _gravest(errors))
        elif not order.done.done():
            order.done.set_result(stored)

    # ------------------------------------------------------------ servers

    async def _send(self, order: _Order) -> None:
        engine = order.engine
        try:
            await self._probed(engine)
            async with self._slots[engine.name]:
                if not order.done.done():
                    await self._ask([order])
                    # The slot is held until the answer is on disk, so that a kill can lose no more than what fits.
                    await asyncio.wait([order.done])
        except asyncio.CancelledError:
            order.done.cancel()
            raise
        except EngineError as error:
            self._count(engine, [], [error] * len(order.keys))
            _fail(order, error)
        except Exception as error:
            _fail(order, error)

    async def _probed(self, engine: Engine) -> None:
        server = engine.server or engine.name
        if server not in self._probes:
            self._probes[server] = asyncio.create_task(engine.probe())
        await asyncio.shield(self._probes[server])

    # ------------------------------------------------------------ models in this process

    async def _compute(self) -> None:
        """Run gathered batches, the model with most requests first, until none waits."""
        while True:
            await self._until_settled()
            if not self._waiting:
                return
            if batch := self._take(max(self._waiting, key=lambda engine: len(self._waiting[engine]))):
                await self._ask(batch)

    def _take(self, engine: Engine) -> list[_Order]:
        """The next batch of a model: requests of like length, up to the engine's batch size in samples."""
        queue = [order for order in self._waiting.pop(engine) if not order.done.done()]
        queue.sort(key=lambda order: sum(len(message.content) for message in order.request.messages))
        room: int = getattr(engine, "batch_size", 64)
        count, samples = 0, 0
        while count < len(queue) and (count == 0 or samples + len(queue[count].keys) <= room):
            samples += len(queue[count].keys)
            count += 1
        if count < len(queue):
            self._waiting[engine] = queue[count:]
        return queue[:count]

    async def _until_settled(self) -> None:
        """Wait while requests still arrive, so that a batch is as full as the rows in flight allow."""
        before = -1
        while (now := sum(len(queue) for queue in self._waiting.values())) != before:
            before = now
            await asyncio.sleep(LINGER)

    # ------------------------------------------------------------ counting

    def _count(self, engine: Engine, replies: Sequence[Reply], errors: Sequence[EngineError]) -> None:
        """One request's outcome. Too many in a row that fail on the way to a server are fatal."""
        tally = self.tally(engine.name)
        tally.failed += len(errors)
        tally.causes.update(error.cause for error in errors)
        tally.sent += len(replies)
        tally.cut += sum(reply.finish_reason == "length" for reply in replies)
        tally.prompt_tokens += sum(reply.usage.prompt_tokens for reply in replies)
        tally.completion_tokens += sum(reply.usage.completion_tokens for reply in replies)
        if engine.in_process:
            return
        self._count_account(engine)
        server = engine.server or engine.name
        if replies:
            self._answered.add(engine.name)
        for error in errors:  # a model that has answered is there: what it refuses now is this request
            error.fatal &= engine.name not in self._answered
        if not errors or replies or any(error.cause not in TRANSPORT for error in errors):
            self._failed_in_a_row[server] = 0  # the server answered, if only to refuse
            return
        self._failed_in_a_row[server] += 1
        for error in errors:
            error.fatal |= self._failed_in_a_row[server] >= PATIENCE

    def _count_account(self, engine: Engine) -> None:
        """Move what the engine spent beyond its replies to its tally."""
        tally = self.tally(engine.name)
        account, engine.account = engine.account, Account()
        tally.sent += account.discarded
        tally.discarded += account.discarded
        tally.prompt_tokens += account.prompt_tokens
        tally.completion_tokens += account.completion_tokens
        tally.retries.update(account.retries)

    def _count_cached(self, tally: Tally, answers: Answers) -> None:
        tally.cached += len(answers)
        for key in answers.keys() - self._accounted:
            usage = Usage.model_validate(answers[key].get("usage") or {})
            tally.cached_prompt_tokens += usage.prompt_tokens
            tally.cached_completion_tokens += usage.completion_tokens
        self._accounted |= answers.keys()


async def _ended(tasks: set[asyncio.Task[None]], timeout: float | None = None) -> None:
    if tasks:
        await asyncio.wait(set(tasks), timeout=timeout)


def _fail(order: _Order, error: BaseException) -> None:
    if not order.done.done():
        order.done.set_exception(error)


def _asked(model: str, request: Request, index: int) -> dict[str, Any]:
    """One call of a request, as the store keeps it for a person to read."""
    asked = request.model_dump(mode="json", exclude={"indices", "json_schema"})
    return {"model": model} | asked | {"index": index, "schema": request.json_schema}
