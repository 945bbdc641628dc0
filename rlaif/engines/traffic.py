"""Requests to servers: concurrency, choice of endpoint, retries and giving up.

`Traffic.ask` sends one request to a model's servers until every sample has a reply or a final error. Replies are handed
over to be stored before anything else happens. Each endpoint has a gate, which tunes its concurrency, and a circuit
breaker. Whether, how often and when a request is retried depends on the cause of its error. The call store is the
scheduler's business: what arrives here is not cached.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from heapq import heappop, heappush

from rlaif.engines.ledger import Ledger
from rlaif.engines.protocol import Reply, Request, Served
from rlaif.errors import EngineError, Stopped
from rlaif.records import Usage

START = 16  # concurrency at first
WINDOW = 16  # requests between two decisions of a gate, at least
OVERLOADED = 0.1  # share of a window's requests that failed because the server was busy
WEIGHT = 0.25  # the price of doubling concurrency, in doublings of throughput
STEP = 1.15  # factor of a small step
SLOWER = 1.3  # at full concurrency, latency per token over its best that counts as overload
BREAK = 10  # transport failures in a row that open an endpoint's circuit breaker
PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two trials of an endpoint that is down, at first and at most
GIVE_UP = 120.0  # seconds for which all endpoints of a model may be down before the run stops
FIRST_WAIT = 0.25  # seconds before the first retry
LONGEST_WAIT = 60.0  # seconds before a retry at most, also where Retry-After says more
LIMITED = 900.0  # seconds for which a request may be rate-limited before it fails
PREFIX = 512  # leading characters of a request that decide its endpoint, for prefix caching
FIRST = 10  # requests of a kind that a model may fail alike, before it has answered any, until the run stops
SLACK = 4  # requests beyond the least loaded endpoint's before affinity gives way

# Causes that are about the way to a server, not about the request.
TRANSPORT = frozenset({"connection", "timeout", "server", "overloaded", "rate-limit"})
GONE = frozenset({"connection"})  # the server is unreachable: waiting uses up no retries
BROKEN = GONE | {
    "server",
    "overloaded",
    "timeout",
}  # after GIVE_UP seconds of these the run stops
FINAL = frozenset({"quota", "http-401"})  # fatal for every request, even after a model has answered
BUSY = frozenset({"rate-limit", "timeout", "overloaded"})
AT_ONCE = frozenset({"bad-body", "fewer"})  # retried without a wait: the server is not busy
# About this request, not about every one of its kind.
OWN = TRANSPORT | {"too-long", "fewer", "content-filter"}
OTHER_SEED = frozenset({"empty"})  # retried with another seed: the same one would repeat the reply

Arrivals = list[Reply | EngineError]  # one for each sample of a request
Wanted = Callable[[], bool]  # called right before a request is sent: whether its row still waits for it
# Stores the outcome of a request: replies with their sample indices, the usage of unusable replies, and the maximum
# usage of replies that were lost.
Keep = Callable[[list[tuple[int, Reply]], list[Usage], list[Usage]], Awaitable[None]]


class Gate:
    """Limits the requests in flight to one server. The limit is tuned, up to `most`.

    It maximises tokens per second divided by the fourth root of the limit: it doubles while that gains, then takes
    small steps in the direction that gains. Throughput is the signal because a saturated vLLM refuses nothing. When the
    server reports that it is busy, the limit drops by 30 %. Waiting requests enter in row order, so that rows finish in
    order and judging runs while sampling does.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit, self.in_flight = most, float(min(most, START)), 0
        self.unkept = 0  # replies that arrived and are not stored yet
        self.why = "starting"
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap: row, order of arrival
        self._arrived = 0
        self._ramping, self._up = True, True
        self._worth_before, self._limit_before = -math.inf, self.limit
        self._best_pace = math.inf
        self._begin(skipped=0)

    def _begin(self, skipped: int) -> None:
        """Start a window, without the first `skipped` requests, which were sent under the previous limit."""
        self._skipped, self._since = skipped, time.monotonic()
        self._done = self._busy = self._tokens = 0
        self._seconds = 0.0
        self._full = bool(self._waiting)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def _has_room(self) -> bool:
        """Unstored replies count too: with a slow disk, a kill must lose no more than one limit's worth."""
        return self.in_flight < int(self.limit) and self.unkept < int(self.limit)

    async def enter(self, row: int = 0) -> None:
        """Wait for a turn. Lower rows go first."""
        if not self._waiting and self._has_room():
            self.in_flight += 1
            return
        self._full = True
        turn = asyncio.get_running_loop().create_future()
        self._arrived += 1
        heappush(self._waiting, (row, self._arrived, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was admitted at the same moment
                self.in_flight -= 1
                self._admit()
            raise

    def leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._has_room():
            _, _, turn = heappop(self._waiting)
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def kept(self) -> None:
        """A reply that was counted as `unkept` is now stored or lost."""
        self.unkept -= 1
        self._admit()

    def turn_away(self) -> None:
        """Fail every waiting request: nothing more is sent."""
        while self._waiting:
            _, _, turn = self._waiting.pop()
            if not turn.done():
                turn.set_exception(_stopped())

    def observe(self, seconds: float, tokens: int, busy: bool) -> None:
        """Record one request: its latency in seconds, its completion tokens, whether the server was busy."""
        if self._skipped > 0 and not busy:
            self._skipped -= 1
            if not self._skipped:
                self._begin(skipped=0)
            return
        self._done += 1
        self._busy += busy
        self._tokens += tokens
        self._seconds += seconds
        if self._done >= max(WINDOW, self.limit):
            before = self.limit
            self._decide()
            self._begin(skipped=int(self.limit) if self.limit != before else 0)

    def _decide(self) -> None:
        elapsed = max(time.monotonic() - self._since, 1e-6)
        worth = math.log(max(self._tokens, 1) / elapsed) - WEIGHT * math.log(self.limit)
        pace = self._seconds / max(1, self._tokens)
        gains, limit = worth > self._worth_before, self.limit
        if self._busy > 1 and self._busy > OVERLOADED * self._done:
            self._ramping, self._up, worth = False, True, -math.inf
            self._set(limit * 0.7, f"the server was busy for {self._busy} of {self._done} requests")
        elif not self._full:
            self.why = "no more requests are waiting"
            return
        elif self._ramping and gains:
            self._set(limit * 2, "more concurrency raises throughput")
            self._ramping = self.limit < self.most
        elif self._ramping:
            self._ramping, self._up = False, False
            worth = self._worth_before
            self._set(self._limit_before, "more concurrency did not raise throughput")
        elif limit >= self.most and pace <= SLOWER * self._best_pace:
            self._up = True  # at the maximum and not slower: stay
        else:
            self._up = self._up if gains else not self._up
            why = "more concurrency raises throughput" if self._up else "less concurrency is as fast"
            self._set(limit * STEP if self._up else limit / STEP, why)
        self._best_pace = min(self._best_pace * 1.005, pace)
        self._worth_before, self._limit_before = worth, limit

    def _set(self, limit: float, why: str) -> None:
        self.limit = max(1.0, min(float(self.most), limit))
        self.why = "as many as `concurrency` allows" if self.limit >= self.most else why
        self._admit()


class Endpoint:
    """One server: its gate and its circuit breaker.

    After many transport failures in a row it is down; then one request at a time tries it, after growing pauses.
    """

    def __init__(self, name: str, most: int) -> None:
        self.name, self.gate = name, Gate(most)
        self.down_since: float | None = None
        self.again_at = 0.0  # when it may be tried next, while it is down
        self.trying = False
        self._failed, self._who, self._pause = 0, set[object](), PAUSE
        self._last: EngineError | None = None

    @property
    def load(self) -> int:
        return self.gate.in_flight + self.gate.waiting

    @property
    def up(self) -> bool:
        return self.down_since is None

    @property
    def due(self) -> bool:
        """Down, and may be tried now."""
        return not self.up and not self.trying and time.monotonic() >= self.again_at

    def record(self, error: EngineError | None, who: object, trial: bool) -> None:
        """Record how a request ended; `error` is a transport failure. `who` identifies the request, so that retries of
        a single one do not open the breaker."""
        if trial:
            self.trying = False
        if error is None:
            self._failed, self._pause, self.down_since = 0, PAUSE, None
            self._who.clear()
            return
        self._last = error
        self._failed += 1
        self._who.add(who)
        if self.down_since is None:
            if self._failed >= BREAK and len(self._who) >= BREAK // 2:
                self._close()
        elif trial:  # requests sent before it went down say nothing new
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self.again_at = time.monotonic() + self._pause

    def missing(self, error: EngineError) -> None:
        """The probe failed: down, and tried again like one that broke down."""
        if self.down_since is None:
            self._failed, self._last = BREAK, error
            self._close()

    def _close(self) -> None:
        self.down_since = time.monotonic()
        self.again_at = self.down_since + self._pause

    def given_up(self) -> EngineError | None:
        """The error that stops the run, once the endpoint has been down for GIVE_UP seconds; else None."""
        last = self._last
        if last is None or last.cause not in BROKEN or self.down_since is None:
            return None
        if time.monotonic() - self.down_since < GIVE_UP:
            return None
        problem = f"{self._failed} requests in a row failed, the last: {last.message}"
        return EngineError(problem, cause=last.cause, fatal=True, fix=last.fix)


class Beginning:
    """A model's first requests of one kind, until one is answered: at most FIRST are in flight, or failed for good.

    So a cause that cannot pass, such as a server without log-probabilities, is not met, and paid for, by every row.
    """

    def __init__(self) -> None:
        self.over = False
        self.stop: EngineError | None = None  # why nothing more of the kind is sent
        self._under_way = 0
        self._met: list[tuple[str, object]] = []  # cause and request
        self._changed = asyncio.Event()

    async def enter(self) -> None:
        """Wait for a turn. Raises EngineError once the first requests all failed alike."""
        while not self.over and self._under_way + len(self._met) >= FIRST:
            self._changed.clear()
            await self._changed.wait()
        if self.stop is not None:
            raise self.stop
        self._under_way += 1

    def leave(self, arrived: Arrivals, who: object) -> None:
        """Record how a request ended; none `arrived` where it was not sent."""
        self._under_way -= 1
        error = arrived[0] if arrived else None
        if any(isinstance(one, Reply) for one in arrived):
            self.over = True
        elif isinstance(error, EngineError) and not self.over and error.cause not in OWN:
            error.early = True
            self._met.append((error.cause, who))
            if len(self._met) >= FIRST:
                self._decide(error)
        self._changed.set()

    def _decide(self, last: EngineError) -> None:
        self.over = True
        causes, asked = {cause for cause, _ in self._met}, {who for _, who in self._met}
        if len(causes) == 1 and len(asked) >= FIRST // 2:  # and not a few requests that were sent again and again
            problem = f"{last.message} (as in all of the first {FIRST} requests of this kind)"
            self.stop = EngineError(problem, cause=last.cause, fatal=True, fix=last.fix)

    def turn_away(self) -> None:
        """Let everything through: the run stops, and nothing more is sent."""
        self.over = True
        self._changed.set()


class Pace:
    """A rate limit per minute, set by the user."""

    def __init__(self, per_minute: float) -> None:
        self._each, self._next = 60.0 / per_minute, 0.0

    def turn(self, amount: float = 1.0) -> float:
        """Take the next turn; returns the seconds until it. A burst of a tenth of a minute's worth is allowed."""
        now = time.monotonic()
        turn = max(self._next, now - 6.0)
        self._next = turn + amount * self._each
        return max(0.0, turn - now)


class Traffic:
    """Sends requests to the servers of many models. `most` limits the requests in flight to each endpoint, by URL."""

    def __init__(self, ledger: Ledger, most: Mapping[str, int]) -> None:
        self._ledger, self._most = ledger, most
        self.endpoints: dict[str, Endpoint] = {}
        self._paces: dict[str, tuple[Pace | None, Pace | None]] = {}
        self._answered: set[str] = set()  # models that have replied at least once
        self._ended: dict[str, EngineError] = {}  # models of which no request can succeed any more
        self._beginnings: dict[tuple[object, ...], Beginning] = {}  # by model, and by what requests ask for
        self._changed, self._stopping = asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """Send nothing more. Requests in flight finish."""
        self._stopping.set()
        for endpoint in self.endpoints.values():
            endpoint.gate.turn_away()
        for beginning in self._beginnings.values():
            beginning.turn_away()
        self._notify()

    async def ask(self, engine: Served, request: Request, keep: Keep, wanted: Wanted) -> Arrivals:
        """A reply or an error for each sample, in the order of the request's indices; the replies are stored."""
        parts = engine.parts(request) if len(request.indices) > 1 else [request]
        if len(parts) == 1:
            return await self._ask(engine, request, keep, wanted)
        # All parts finish, even if one fails: their replies are paid for.
        outcomes = await asyncio.gather(
            *(self._ask(engine, part, keep, wanted) for part in parts), return_exceptions=True
        )
        by_index: dict[int, Reply | EngineError] = {}
        for part, outcome in zip(parts, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            by_index.update(zip(part.indices, outcome, strict=True))
        return [by_index[index] for index in request.indices]

    async def _ask(self, engine: Served, request: Request, keep: Keep, wanted: Wanted) -> Arrivals:
        """One HTTP request, and retries of the samples that failed."""
        by_index: dict[int, Reply | EngineError] = {}
        tries, limited_since = 0, None
        while True:
            arrived, gone = await self._post(engine, request, keep, wanted)
            by_index.update(zip(request.indices, arrived, strict=True))
            errors = [sample for sample in arrived if isinstance(sample, EngineError)]
            if any(error.cause == "rate-limit" for error in errors):
                limited_since = limited_since or time.monotonic()
            again = [
                index
                for index, sample in zip(request.indices, arrived, strict=True)
                if isinstance(sample, EngineError) and self._retried(engine, sample, tries, limited_since, gone)
            ]
            if not again:
                return list(by_index.values())
            errors = [sample for index in again if isinstance(sample := by_index[index], EngineError)]
            causes = {error.cause for error in errors}
            self._ledger.tally(engine.name, request.stage).retries.update(causes - {"fewer"})
            if not gone and causes != {"fewer"}:
                tries += 1
                await self._rest(_wait(errors, tries))
            salt = request.salt + bool(causes & OTHER_SEED)
            request = request.model_copy(update={"indices": tuple(again), "salt": salt})
            if len(again) > 1 and len(engine.parts(request)) > 1:
                by_index.update(zip(again, await self.ask(engine, request, keep, wanted), strict=True))
                return list(by_index.values())

    def _retried(self, engine: Served, error: EngineError, tries: int, limited_since: float | None, gone: bool) -> bool:
        if not error.retryable or error.fatal:
            return False
        if error.cause == "fewer" or gone:  # an unreachable server may come back: wait, without counting tries
            return True
        if error.cause == "rate-limit":  # the server says when to retry, so only time limits it
            return time.monotonic() - (limited_since or 0.0) < LIMITED
        return tries < engine.retries

    async def _post(self, engine: Served, request: Request, keep: Keep, wanted: Wanted) -> tuple[Arrivals, bool]:
        """One HTTP request through an endpoint's gate, its replies stored; and whether the server is unreachable."""
        sampling = request.sampling
        kind = (engine.name, sampling.logprobs, bool(sampling.alternatives), request.json_schema is None)
        beginning = self._beginnings.get(kind)
        if beginning is None:
            beginning = self._beginnings[kind] = Beginning()
        if beginning.over and beginning.stop is None:
            return await self._post_through(engine, request, keep, wanted)
        await beginning.enter()
        arrived: Arrivals = []
        try:
            arrived, gone = await self._post_through(engine, request, keep, wanted)
        finally:
            beginning.leave(arrived, (request.messages, request.indices))
        if beginning.stop is not None and not any(isinstance(one, Reply) for one in arrived):
            arrived = [beginning.stop] * len(arrived)
        return arrived, gone

    async def _post_through(
        self, engine: Served, request: Request, keep: Keep, wanted: Wanted
    ) -> tuple[Arrivals, bool]:
        endpoint, trial = await self._entered(engine, request)
        # Thinking may take tokens of its own; of a model that is none of a server's, it takes none.
        tokens = request.sampling.max_tokens + getattr(engine, "thinking_tokens", 0)
        most, inside = tokens * len(request.indices), True
        try:
            await self._paced(engine, request, most)
            estimate = engine.estimate(request)
            with await self._ledger.reserve(engine.name, estimate, most) as reservation:
                if self._stopping.is_set():
                    raise _stopped()
                if self._ended and engine.name in self._ended:
                    raise self._ended[engine.name]
                if not wanted():
                    raise asyncio.CancelledError
                began = time.monotonic()
                arrived = await engine.post(request, endpoint.name)
                endpoint.gate.leave()
                inside = False
                if len(arrived) != len(request.indices):
                    arrived = [EngineError(wrong_count(engine.name))] * len(request.indices)
                gone = self._observe(engine, endpoint, request, arrived, time.monotonic() - began, trial)
                trial = False
                errors = [sample for sample in arrived if isinstance(sample, EngineError)]
                reservation.lost = lost = unbilled(arrived) or any(error.lost for error in errors)
                wasted = [error.usage for error in errors if error.usage is not None]
                unknown = [Usage(prompt_tokens=estimate, completion_tokens=most)] if lost else []
                await self._keep(endpoint, request, arrived, wasted, unknown, keep)
        finally:
            if inside:
                endpoint.gate.leave()
            if trial:  # cancelled before the endpoint's outcome was recorded
                endpoint.trying = False
            if inside or trial:
                self._notify()
        return arrived, gone

    def _observe(
        self, engine: Served, endpoint: Endpoint, request: Request, arrived: Arrivals, seconds: float, trial: bool
    ) -> bool:
        """Record a request's outcome at its endpoint; whether the server is unreachable, so that no try is counted."""
        errors = [sample for sample in arrived if isinstance(sample, EngineError)]
        tokens = sum(sample.usage.completion_tokens for sample in arrived if isinstance(sample, Reply))
        failed = errors[0] if errors and len(errors) == len(arrived) and errors[0].cause in TRANSPORT else None
        endpoint.gate.observe(seconds, tokens, failed is not None and failed.cause in BUSY)
        was_up = endpoint.up
        # A server that limits the rate is up.
        endpoint.record(
            failed if failed and failed.cause != "rate-limit" else None, (request.messages, request.indices), trial
        )
        if trial or was_up != endpoint.up:
            self._notify()
        if len(errors) < len(arrived):
            self._answered.add(engine.name)
        for error in errors:  # a model that has replied before exists: the error is about this request
            error.fatal &= engine.name not in self._answered or error.cause in FINAL
            if error.fatal and error.cause in FINAL:
                self._ended[engine.name] = error
        if failed is None:
            return False
        stops = [self.endpoint(url).given_up() for url in engine.urls]
        if (stop := stops[0]) is not None and all(stops):
            arrived[:] = [stop] * len(arrived)
        return failed.cause in GONE and not endpoint.up

    async def _keep(
        self,
        endpoint: Endpoint,
        request: Request,
        arrived: Arrivals,
        wasted: list[Usage],
        unknown: list[Usage],
        keep: Keep,
    ) -> None:
        replies = [(i, reply) for i, reply in zip(request.indices, arrived, strict=True) if isinstance(reply, Reply)]
        if not replies and not wasted and not unknown:
            return
        endpoint.gate.unkept += 1
        try:
            await keep(replies, wasted, unknown)
        finally:
            endpoint.gate.kept()

    # ------------------------------------------------------------ endpoints and waits

    def endpoint(self, url: str) -> Endpoint:
        endpoint = self.endpoints.get(url)
        if endpoint is None:
            endpoint = self.endpoints[url] = Endpoint(url, self._most.get(url, 1_000))
        return endpoint

    async def _entered(self, engine: Served, request: Request) -> tuple[Endpoint, bool]:
        """The request's endpoint, entered through its gate; and whether this is the trial of one that is down."""
        while True:
            if self._stopping.is_set():
                raise _stopped()
            endpoint = self._chosen(engine, request)
            if endpoint is None:
                await self._change(engine)
                continue
            trial = not endpoint.up
            endpoint.trying |= trial
            try:
                await endpoint.gate.enter(request.row)
            except BaseException:
                if trial:
                    endpoint.trying = False
                    self._notify()
                raise
            if trial or endpoint.up:
                return endpoint, trial
            endpoint.gate.leave()  # it went down during the wait

    def _chosen(self, engine: Served, request: Request) -> Endpoint | None:
        """The endpoint that the request's prefix hashes to, unless it is clearly busier than the least loaded one.

        One that is down and due for a trial goes first. None when all are down and none is due.
        """
        urls = engine.urls
        if len(urls) == 1:
            only = self.endpoint(urls[0])
            return only if only.up or only.due else None
        endpoints = [self.endpoint(url) for url in urls]
        if due := next((endpoint for endpoint in endpoints if endpoint.due), None):
            return due  # this request finds out whether it is back
        up = [endpoint for endpoint in endpoints if endpoint.up]
        if not up:
            return None
        beginning = "".join(message.content for message in request.messages)[:PREFIX]
        near = max(up, key=lambda e: hashlib.blake2b(f"{e.name} {beginning}".encode("utf-8", "replace")).digest())
        least = min(up, key=lambda e: e.load)
        return near if near.load <= least.load + SLACK else least

    async def _change(self, engine: Served) -> None:
        """Wait until an endpoint changes or is due for a trial."""
        changed = self._changed
        endpoints = [self.endpoint(url) for url in engine.urls]
        times = [e.again_at for e in endpoints if not e.up and not e.trying]
        left = min(times) - time.monotonic() if times else LONGEST_PAUSE
        with suppress(TimeoutError):
            async with asyncio.timeout(max(left, 0.001)):
                await changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _rest(self, seconds: float) -> None:
        """Sleep. Raises Stopped as soon as the run stops."""
        if seconds <= 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        if self._stopping.is_set():
            raise _stopped()

    async def _paced(self, engine: Served, request: Request, most: int) -> None:
        limits = engine.limits
        if limits is None:
            return
        if engine.name not in self._paces:
            self._paces[engine.name] = (
                Pace(limits.requests_per_minute) if limits.requests_per_minute else None,
                Pace(limits.tokens_per_minute) if limits.tokens_per_minute else None,
            )
        requests, tokens = self._paces[engine.name]
        waits = [requests.turn()] if requests else []
        waits += [tokens.turn(engine.estimate(request) + most)] if tokens else []
        await self._rest(max(waits, default=0.0))


def unbilled(arrived: Arrivals) -> bool:
    """Whether there are replies without token counts: they may have cost as much as was reserved."""
    usages = [sample.usage for sample in arrived if sample.usage is not None]
    if all(isinstance(one, Reply) and one.finish_reason == "content_filter" and not one.text for one in arrived):
        return False  # a filter that stops the prompt bills nothing
    wrote = any(isinstance(sample, Reply) and sample.text for sample in arrived)
    read = any(usage.prompt_tokens for usage in usages)
    return bool(usages) and not (read and (any(usage.completion_tokens for usage in usages) or not wrote))


def _stopped() -> Stopped:
    return Stopped("not sent: the run is stopping", cause="stopped")


def wrong_count(model: str) -> str:
    """The message for an engine that breaks the protocol."""
    return f"the engine of {model!r} returned another number of samples than requested"


def _wait(errors: Sequence[EngineError], tries: int) -> float:
    """Seconds before a retry: what the server says, else exponential backoff with full jitter, which spreads retries of
    requests that failed together."""
    if wait := max(error.wait or 0.0 for error in errors):  # 0, or a date in the past, says nothing
        return min(wait, LONGEST_WAIT)
    if all(error.cause in AT_ONCE for error in errors) and tries <= 2:
        return 0.0
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(max(0, tries - 1), 16)))
