"""Requests on their way to servers: how many at a time, where to, again when, and when to give up.

`Traffic.ask` puts one request to a model's server until every sample of it is answered or known not to come; what comes
is handed over to be kept before anything else is done. Each endpoint has a gate that finds by itself how many requests
the server serves best, and a breaker that lets a server which is down come back. What is tried again, how often and
after what wait depends on the cause. Knows nothing of the call store: the scheduler asks here for what is not stored.
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

from rlaif.engines.ledger import ROW, Ledger
from rlaif.engines.protocol import Reply, Request, Served
from rlaif.errors import EngineError, Stopped

START = 16  # requests at a time, at first
WINDOW = 16  # requests at least, between two decisions of a gate
OVERLOADED = 0.1  # share of a window's requests that a server refused or left unanswered for being busy
WEIGHT = 0.25  # of a doubling of requests at a time, in doublings of what they bring
STEP = 1.15
SLOWER = 1.3  # times the seconds that a token took at best: as many as are allowed may be too many
BREAK = 10  # requests that fail in a row on the way to an endpoint, before it is left alone for a while
PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two trials of an endpoint that is down
GIVE_UP = 120.0  # seconds that every endpoint of a model may be down before the run stops
FIRST_WAIT, LONGEST_WAIT = (
    0.25,
    60.0,
)  # seconds before a request is sent again; Retry-After is honoured up to the longest
LIMITED = 900.0  # seconds that one request may be told to come back later
PREFIX = 512  # characters of a request that decide which of several endpoints has read them before
SLACK = 4  # requests more than the least loaded endpoint has, before affinity gives way

# Causes that tell of the way to a server, not of what was asked.
TRANSPORT = frozenset({"connection", "timeout", "server", "overloaded", "rate-limit"})
BUSY = frozenset({"rate-limit", "timeout", "overloaded"})
LOST = frozenset({"timeout", "bad-body"})  # an answer may have been paid for that nobody read
AT_ONCE = frozenset({"bad-body", "fewer"})  # nothing says that the server is busy
OTHER_SEED = frozenset({"empty"})  # a server that honours seeds would only repeat itself

Arrivals = list[Reply | EngineError]  # one for each sample of a request
Wanted = Callable[[], bool]  # asked right before a request is sent: whether anybody still waits for it
Keep = Callable[[list[tuple[int, Reply]]], Awaitable[None]]  # makes replies durable, each with its sample's index


class Gate:
    """Lets so many requests through at a time as one server serves best, never more than `most`.

    What is best weighs what they bring against how many they are: tokens a second, divided by the fourth root of the
    requests at a time. It doubles them while that gains, then goes by small steps in whichever direction gains. A
    saturated vLLM refuses nothing, so nothing else could tell there. When the server says that it is busy it goes down
    by a third. Who waits is let through in the order of the rows: they are finished one after the other, and judging
    goes on while sampling does.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit, self.in_flight = most, float(min(most, START)), 0
        self.why = "starting"
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap: row, order of arrival
        self._arrived = 0
        self._ramping, self._up = True, True
        self._worth_before, self._limit_before = -math.inf, self.limit
        self._best_pace = math.inf
        self._begin(skipped=0)

    def _begin(self, skipped: int) -> None:
        """A new window, without the first `skipped` requests: they were sent under the limit before."""
        self._skipped, self._since = skipped, time.monotonic()
        self._done = self._busy = self._tokens = 0
        self._seconds = 0.0
        self._full = bool(self._waiting)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def enter(self) -> None:
        if self.in_flight < int(self.limit) and not self._waiting:
            self.in_flight += 1
            return
        self._full = True
        turn = asyncio.get_running_loop().create_future()
        self._arrived += 1
        heappush(self._waiting, (ROW.get(), self._arrived, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was let in at the same moment
                self.in_flight -= 1
                self._admit()
            raise

    def leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            _, _, turn = heappop(self._waiting)
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def turn_away(self) -> None:
        """Tell whoever waits that nothing more is sent."""
        while self._waiting:
            _, _, turn = self._waiting.pop()
            if not turn.done():
                turn.set_exception(_stopped())

    def observe(self, seconds: float, tokens: int, busy: bool) -> None:
        """How one request went: its latency, the tokens it brought, whether the server had no time for it."""
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
            self.why = "no more is asked for"
            return
        elif self._ramping and gains:
            self._set(limit * 2, "more at a time brings more")
            self._ramping = self.limit < self.most
        elif self._ramping:
            self._ramping, self._up = False, False
            worth = self._worth_before
            self._set(self._limit_before, "more at a time brings no more")
        elif limit >= self.most and pace <= SLOWER * self._best_pace:
            self._up = True  # at the end of the way, and nothing speaks for turning round
        else:
            self._up = self._up if gains else not self._up
            why = "more at a time brings more" if self._up else "fewer at a time bring as much"
            self._set(limit * STEP if self._up else limit / STEP, why)
        self._best_pace = min(self._best_pace * 1.005, pace)
        self._worth_before, self._limit_before = worth, limit

    def _set(self, limit: float, why: str) -> None:
        self.limit = max(1.0, min(float(self.most), limit))
        self.why = "as many as `concurrency` allows" if self.limit >= self.most else why
        self._admit()


class Endpoint:
    """One server as its requests see it: its gate, and whether it answers at all."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self.gate = name, Gate(most)
        self.down_since: float | None = None
        self._failed, self._pause, self.again_at, self.trying = 0, PAUSE, 0.0, False
        self._last: EngineError | None = None
        self._changed, self._stopped = asyncio.Event(), False

    def stop(self) -> None:
        self._stopped = True
        self._changed.set()
        self.gate.turn_away()

    @property
    def load(self) -> int:
        return self.gate.in_flight + self.gate.waiting

    async def passable(self) -> None:
        """Wait while the endpoint is down, but for one request at a time that tries it. Raises a fatal EngineError."""
        while self.down_since is not None:
            if self._stopped:
                raise _stopped()
            now = time.monotonic()
            if not self.trying and now >= self.again_at:
                self.trying = True
                return
            self._changed.clear()
            left = self.again_at - now if not self.trying else LONGEST_PAUSE
            try:
                await asyncio.wait_for(self._changed.wait(), max(left, 0.01))
            except TimeoutError:
                continue

    def heard(self, error: EngineError | None) -> None:
        """How a request ended: `error` where it failed on the way."""
        self.trying = False
        if error is None:
            self._failed, self._pause, self.down_since = 0, PAUSE, None
        else:
            self._failed, self._last = self._failed + 1, error
            now = time.monotonic()
            if self.down_since is not None:
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                self.again_at = now + self._pause
            elif self._failed >= BREAK:
                self.down_since, self.again_at = now, now + self._pause
        self._changed.set()

    def missing(self, error: EngineError) -> None:
        """It did not even answer when it was looked at: left alone and tried again like one that broke down."""
        if self.down_since is None:
            self._failed, self._last = BREAK, error
            self.down_since = time.monotonic()
            self.again_at = self.down_since + self._pause

    def unheard(self) -> None:
        """A request that was let through to try the endpoint was cancelled."""
        self.trying = False
        self._changed.set()

    def given_up(self) -> EngineError | None:
        """The error that stops the run, once this endpoint has been down for too long."""
        if self.down_since is None or time.monotonic() - self.down_since < GIVE_UP:
            return None
        last = self._last
        assert last is not None
        return EngineError(
            f"{self._failed} requests in a row failed, the last: {last.message}",
            cause=last.cause,
            fatal=True,
            fix=last.fix,
        )


class Pace:
    """A limit that the user states, so much a minute: what comes too soon waits for its turn."""

    def __init__(self, per_minute: float) -> None:
        self._each, self._next = 60.0 / per_minute, 0.0

    async def take(self, amount: float = 1.0) -> None:
        now = time.monotonic()
        # A tenth of a minute's worth may come at once.
        turn = max(self._next, now - 6.0)
        self._next = turn + amount * self._each
        if turn > now:
            await asyncio.sleep(turn - now)


class Traffic:
    """Asks the servers of many models. `most` is how many requests an endpoint is given at a time at most."""

    def __init__(self, ledger: Ledger, most: Mapping[str, int]) -> None:
        self._ledger, self._most = ledger, most
        self.endpoints: dict[str, Endpoint] = {}
        self._paces: dict[str, tuple[Pace | None, Pace | None]] = {}
        self._answered: set[str] = set()  # models that have answered at least once
        self._unkept, self._kept, self._stopping = 0, asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """Send nothing more. What is on its way goes on."""
        self._stopping.set()
        for endpoint in self.endpoints.values():
            endpoint.stop()

    async def ask(self, engine: Served, request: Request, keep: Keep, wanted: Wanted) -> Arrivals:
        """A reply or the error that befell it for each sample, in the order of its indices; the replies are kept."""
        if len(request.indices) == 1:
            return await self._ask(engine, request, keep, wanted)
        parts = engine.parts(request)
        arrived = await asyncio.gather(*(self._ask(engine, part, keep, wanted) for part in parts))
        found = {
            i: one for part, ones in zip(parts, arrived, strict=True) for i, one in zip(part.indices, ones, strict=True)
        }
        return [found[index] for index in request.indices]

    async def _ask(self, engine: Served, request: Request, keep: Keep, wanted: Wanted) -> Arrivals:
        """One HTTP request, and again for what of it was of no use."""
        tally, found, tries, began = (
            self._ledger.tally(engine.name),
            dict[int, Reply | EngineError](),
            0,
            time.monotonic(),
        )
        while True:
            arrived, was_down = await self._post(engine, request, wanted)
            await self._keep(
                [(i, one) for i, one in zip(request.indices, arrived, strict=True) if isinstance(one, Reply)], keep
            )
            again: list[int] = []
            for index, one in zip(request.indices, arrived, strict=True):
                found[index] = one
                if isinstance(one, EngineError):
                    if one.usage is not None:
                        tally.pay(one.usage, discarded=True)
                    if self._retried(engine, one, tries, began, was_down):
                        again.append(index)
            if not again:
                return [found[index] for index in found]
            errors = [one for index in again if isinstance(one := found[index], EngineError)]
            causes = {error.cause for error in errors}
            tries += not was_down and causes != {"fewer"}
            tally.retries.update(causes - {"fewer"})
            if not was_down:
                await self._rest(_wait(errors, tries))
            salt = request.salt + bool(causes & OTHER_SEED)
            request = request.model_copy(update={"indices": tuple(again), "salt": salt})
            if len(again) > 1 and len(engine.parts(request)) > 1:
                rest = await self.ask(engine, request, keep, wanted)
                found.update(zip(again, rest, strict=True))
                return [found[index] for index in found]

    async def _rest(self, seconds: float) -> None:
        if not seconds:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _keep(self, replies: list[tuple[int, Reply]], keep: Keep) -> None:
        if not replies:
            return
        self._unkept += 1
        try:
            await keep(replies)
        finally:
            self._unkept -= 1
            self._kept.set()

    def _retried(self, engine: Served, error: EngineError, tries: int, began: float, was_down: bool) -> bool:
        if not error.retryable or error.fatal:
            return False
        if error.cause == "fewer" or (was_down and error.cause in TRANSPORT):  # it may come back, and costs no row
            return True
        if error.cause == "rate-limit":  # the server is there and says when: a count would only lose rows
            return time.monotonic() - began < LIMITED
        return tries < engine.retries

    async def _post(self, engine: Served, request: Request, wanted: Wanted) -> tuple[Arrivals, bool]:
        """One HTTP request through the gate of an endpoint; and whether that endpoint was down when it was sent."""
        await self._paced(engine, request)
        while True:
            endpoint = self._endpoint(engine, request)
            while self._unkept >= endpoint.gate.limit:  # a slow disk: a kill must not lose more than is in flight
                self._kept.clear()
                await self._kept.wait()
            await endpoint.passable()
            await endpoint.gate.enter()
            if endpoint.down_since is None or endpoint.trying:
                break
            endpoint.gate.leave()  # it went down while this one waited
        try:
            if self._stopping.is_set():
                raise _stopped()
            most = request.sampling.max_tokens * len(request.indices)
            with await self._ledger.reserve(engine.name, engine.estimate(request), most) as reserved:
                if not wanted():
                    raise asyncio.CancelledError
                was_down, began = endpoint.down_since is not None, time.monotonic()
                arrived = await engine.post(request, endpoint.name)
                reserved.lost = any(isinstance(one, EngineError) and one.cause in LOST for one in arrived)
        except BaseException:
            endpoint.unheard()
            raise
        finally:
            endpoint.gate.leave()
        if len(arrived) != len(request.indices):
            said = f"the engine of {engine.name!r} returned another number of samples than it was asked"
            arrived = [EngineError(said)] * len(request.indices)
        seconds, errors = time.monotonic() - began, [one for one in arrived if isinstance(one, EngineError)]
        tokens = sum(one.usage.completion_tokens for one in arrived if isinstance(one, Reply))
        failed = errors[0] if errors and len(errors) == len(arrived) and errors[0].cause in TRANSPORT else None
        endpoint.gate.observe(seconds, tokens, failed is not None and failed.cause in BUSY)
        # A server that asks for patience is there.
        endpoint.heard(failed if failed is not None and failed.cause != "rate-limit" else None)
        if len(errors) < len(arrived):
            self._answered.add(engine.name)
        for error in errors:  # a model that has answered is there: what it refuses now is this request
            error.fatal &= engine.name not in self._answered
        if all(self.endpoint(place).given_up() for place in engine.places):
            stop = endpoint.given_up()
            if stop is not None:
                arrived = [stop] * len(arrived)
        return arrived, was_down or endpoint.down_since is not None

    # ------------------------------------------------------------ where to, and when

    def endpoint(self, place: str) -> Endpoint:
        found = self.endpoints.get(place)
        if found is None:
            found = self.endpoints[place] = Endpoint(place, self._most.get(place, 1_000))
        return found

    def _endpoint(self, engine: Served, request: Request) -> Endpoint:
        """The endpoint that has read this request's beginning before, unless others have clearly less to do."""
        places = engine.places
        if len(places) == 1:
            return self.endpoint(places[0])
        up = [e for place in places if (e := self.endpoint(place)).down_since is None]
        if not up:  # the one that is tried next
            return min((self.endpoint(place) for place in places), key=lambda e: e.again_at)
        beginning = "".join(message.content for message in request.messages)[:PREFIX]
        near = max(up, key=lambda e: hashlib.blake2b(f"{e.name} {beginning}".encode("utf-8", "replace")).digest())
        least = min(up, key=lambda e: e.load)
        return near if near.load <= least.load + SLACK else least

    async def _paced(self, engine: Served, request: Request) -> None:
        limits = engine.limits
        if limits is None:
            return
        if engine.name not in self._paces:
            self._paces[engine.name] = (
                Pace(limits.requests_per_minute) if limits.requests_per_minute else None,
                Pace(limits.tokens_per_minute) if limits.tokens_per_minute else None,
            )
        requests, tokens = self._paces[engine.name]
        if requests is not None:
            await requests.take()
        if tokens is not None:
            await tokens.take(engine.estimate(request) + request.sampling.max_tokens * len(request.indices))


def _stopped() -> Stopped:
    return Stopped("nothing more is asked: the run is stopping", cause="stopped")


def _wait(errors: Sequence[EngineError], tries: int) -> float:
    """Seconds before what failed is asked again: as the server says, else backoff with full jitter, so that requests
    which failed together do not return together."""
    waits = [error.wait for error in errors if error.wait is not None]
    if waits:
        return min(max(waits), LONGEST_WAIT)
    if all(error.cause in AT_ONCE for error in errors) and tries <= 2:
        return 0.0
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** max(0, tries - 1)))
