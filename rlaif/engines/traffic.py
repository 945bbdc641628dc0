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

from rlaif.engines.ledger import Ledger
from rlaif.engines.protocol import Reply, Request, Served
from rlaif.errors import EngineError, Stopped
from rlaif.records import Usage

START = 16  # requests at a time, at first
WINDOW = 16  # requests at least, between two decisions of a gate
OVERLOADED = 0.1  # share of a window's requests that a server refused or left unanswered for being busy
WEIGHT = 0.25  # of a doubling of requests at a time, in doublings of what they bring
STEP = 1.15
SLOWER = 1.3  # times the seconds that a token took at best: as many as are allowed may be too many
BREAK = 10  # requests that fail in a row on the way to an endpoint, before it is left alone for a while
PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two trials of an endpoint that is down
GIVE_UP = 120.0  # seconds that every endpoint of a model may be down before the run stops
FIRST_WAIT = 0.25  # seconds before a request is sent again, at first
LONGEST_WAIT = 60.0  # seconds; the longest that Retry-After is followed, too
LIMITED = 900.0  # seconds that one request may be told to come back later
PREFIX = 512  # characters of a request that decide which of several endpoints has read them before
SLACK = 4  # requests more than the least loaded endpoint has, before affinity gives way

# Causes that tell of the way to a server, not of what was asked.
TRANSPORT = frozenset({"connection", "timeout", "server", "overloaded", "rate-limit"})
GONE = frozenset({"connection"})  # nobody is there: waiting costs a request none of its tries
BROKEN = GONE | {"server", "overloaded", "timeout"}  # nothing else for long: the server does not recover by itself
FINAL = frozenset({"quota", "http-401"})  # what no other request can escape, also after a model has answered
BUSY = frozenset({"rate-limit", "timeout", "overloaded"})
AT_ONCE = frozenset({"bad-body", "fewer"})  # nothing says that the server is busy
OTHER_SEED = frozenset({"empty"})  # a server that honours seeds would only repeat itself

Arrivals = list[Reply | EngineError]  # one for each sample of a request
Wanted = Callable[[], bool]  # asked right before a request is sent: whether anybody still waits for it
# Makes durable what a request brought: replies, each with its sample's index; what was paid for answers of no use; and
# what an answer that was lost may have cost at most.
Keep = Callable[[list[tuple[int, Reply]], list[Usage], list[Usage]], Awaitable[None]]


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
        self.unkept = 0  # answers that arrived and are not durable yet
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

    def _has_room(self) -> bool:
        """Also a slow disk fills it: a kill must not lose more than what is in flight."""
        return self.in_flight < int(self.limit) and self.unkept < int(self.limit)

    async def enter(self, row: int = 0) -> None:
        """Wait for a turn. Requests of the rows that began first go first."""
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
            if turn.done() and not turn.cancelled():  # it was let in at the same moment
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
        """An answer that arrived, and was counted as `unkept`, is durable now or lost."""
        self.unkept -= 1
        self._admit()

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
    """One server as its requests see it: its gate, and whether it is there at all.

    Many requests that fail in a row on the way close it: then one request at a time tries it, after growing pauses.
    """

    def __init__(self, name: str, most: int) -> None:
        self.name, self.gate = name, Gate(most)
        self.down_since: float | None = None
        self.again_at = 0.0  # when it may be tried, while it is down
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
        """Whether it is down and may be tried now."""
        return not self.up and not self.trying and time.monotonic() >= self.again_at

    def heard(self, error: EngineError | None, who: object, trial: bool) -> None:
        """How a request ended: `error` where it failed on the way. `who` tells requests apart: one that every server
        chokes on is no reason to leave a server alone."""
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
        elif trial:  # what was sent before it was closed says nothing new
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self.again_at = time.monotonic() + self._pause

    def missing(self, error: EngineError) -> None:
        """It did not answer when it was looked at: left alone and tried again like one that broke down."""
        if self.down_since is None:
            self._failed, self._last = BREAK, error
            self._close()

    def _close(self) -> None:
        self.down_since = time.monotonic()
        self.again_at = self.down_since + self._pause

    def given_up(self) -> EngineError | None:
        """The error that stops the run, once nothing of use has come from there for too long."""
        last = self._last
        if last is None or last.cause not in BROKEN or self.down_since is None:
            return None
        if time.monotonic() - self.down_since < GIVE_UP:
            return None
        told = f"{self._failed} requests in a row failed, the last: {last.message}"
        return EngineError(told, cause=last.cause, fatal=True, fix=last.fix)


class Pace:
    """A limit that the user states, so much a minute: what comes too soon waits for its turn."""

    def __init__(self, per_minute: float) -> None:
        self._each, self._next = 60.0 / per_minute, 0.0

    def turn(self, amount: float = 1.0) -> float:
        """Seconds until the next turn, which is taken. A tenth of a minute's worth may come at once."""
        now = time.monotonic()
        turn = max(self._next, now - 6.0)
        self._next = turn + amount * self._each
        return max(0.0, turn - now)


class Traffic:
    """Asks the servers of many models. `most` is how many requests an endpoint is given at a time at most."""

    def __init__(self, ledger: Ledger, most: Mapping[str, int]) -> None:
        self._ledger, self._most = ledger, most
        self.endpoints: dict[str, Endpoint] = {}
        self._paces: dict[str, tuple[Pace | None, Pace | None]] = {}
        self._answered: set[str] = set()  # models that have answered at least once
        self._changed, self._stopping = asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """Send nothing more. What is on its way goes on."""
        self._stopping.set()
        for endpoint in self.endpoints.values():
            endpoint.gate.turn_away()
        self._notify()

    async def ask(self, engine: Served, request: Request, keep: Keep, wanted: Wanted) -> Arrivals:
        """A reply or the error that befell it for each sample, in the order of its indices; the replies are kept."""
        parts = engine.parts(request) if len(request.indices) > 1 else [request]
        if len(parts) == 1:
            return await self._ask(engine, request, keep, wanted)
        # Every part is heard out: what it brings was paid for, whatever becomes of the others.
        outcomes = await asyncio.gather(
            *(self._ask(engine, part, keep, wanted) for part in parts), return_exceptions=True
        )
        found: dict[int, Reply | EngineError] = {}
        for part, outcome in zip(parts, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            found.update(zip(part.indices, outcome, strict=True))
        return [found[index] for index in request.indices]

    async def _ask(self, engine: Served, request: Request, keep: Keep, wanted: Wanted) -> Arrivals:
        """One HTTP request, and again for what of it was of no use."""
        found: dict[int, Reply | EngineError] = {}
        tries, limited_since = 0, None
        while True:
            arrived, gone = await self._post(engine, request, keep, wanted)
            found.update(zip(request.indices, arrived, strict=True))
            errors = [one for one in arrived if isinstance(one, EngineError)]
            if any(error.cause == "rate-limit" for error in errors):
                limited_since = limited_since or time.monotonic()
            again = [
                index
                for index, one in zip(request.indices, arrived, strict=True)
                if isinstance(one, EngineError) and self._retried(engine, one, tries, limited_since, gone)
            ]
            if not again:
                return list(found.values())
            errors = [one for index in again if isinstance(one := found[index], EngineError)]
            causes = {error.cause for error in errors}
            self._ledger.tally(engine.name, request.stage).retries.update(causes - {"fewer"})
            if not gone and causes != {"fewer"}:
                tries += 1
                await self._rest(_wait(errors, tries))
            salt = request.salt + bool(causes & OTHER_SEED)
            request = request.model_copy(update={"indices": tuple(again), "salt": salt})
            if len(again) > 1 and len(engine.parts(request)) > 1:
                found.update(zip(again, await self.ask(engine, request, keep, wanted), strict=True))
                return list(found.values())

    def _retried(self, engine: Served, error: EngineError, tries: int, limited_since: float | None, gone: bool) -> bool:
        if not error.retryable or error.fatal:
            return False
        if error.cause == "fewer" or gone:  # a server that is gone may come back, and costs no row
            return True
        if error.cause == "rate-limit":  # the server is there and says when: a count would only lose rows
            return time.monotonic() - (limited_since or 0.0) < LIMITED
        return tries < engine.retries

    async def _post(self, engine: Served, request: Request, keep: Keep, wanted: Wanted) -> tuple[Arrivals, bool]:
        """One HTTP request through the gate of an endpoint, what it brings kept; and whether the server is gone."""
        endpoint, trial = await self._entered(engine, request)
        most, inside = request.sampling.max_tokens * len(request.indices), True
        try:
            await self._paced(engine, request, most)
            estimate = engine.estimate(request)
            with await self._ledger.reserve(engine.name, estimate, most) as reservation:
                if self._stopping.is_set():
                    raise _stopped()
                if not wanted():
                    raise asyncio.CancelledError
                began = time.monotonic()
                arrived = await engine.post(request, endpoint.name)
                endpoint.gate.leave()
                inside = False
                if len(arrived) != len(request.indices):
                    said = f"the engine of {engine.name!r} returned another number of samples than it was asked"
                    arrived = [EngineError(said)] * len(request.indices)
                gone = self._observe(engine, endpoint, request, arrived, time.monotonic() - began, trial)
                trial = False
                lost = _unbilled(arrived) or any(isinstance(one, EngineError) and one.lost for one in arrived)
                reservation.lost = lost
                wasted = [one.usage for one in arrived if isinstance(one, EngineError) and one.usage is not None]
                unknown = [Usage(prompt_tokens=estimate, completion_tokens=most)] if lost else []
                await self._keep(endpoint, request, arrived, wasted, unknown, keep)
        finally:
            if inside:
                endpoint.gate.leave()
            if trial:  # cancelled, and the endpoint not heard
                endpoint.trying = False
            if inside or trial:
                self._notify()
        return arrived, gone

    def _observe(
        self, engine: Served, endpoint: Endpoint, request: Request, arrived: Arrivals, seconds: float, trial: bool
    ) -> bool:
        """Let the endpoint hear how a request went; whether it is gone, so that waiting costs the request nothing."""
        errors = [one for one in arrived if isinstance(one, EngineError)]
        tokens = sum(one.usage.completion_tokens for one in arrived if isinstance(one, Reply))
        failed = errors[0] if errors and len(errors) == len(arrived) and errors[0].cause in TRANSPORT else None
        endpoint.gate.observe(seconds, tokens, failed is not None and failed.cause in BUSY)
        was_up = endpoint.up
        # A server that asks for patience is there.
        endpoint.heard(
            failed if failed and failed.cause != "rate-limit" else None, (request.messages, request.indices), trial
        )
        if trial or was_up != endpoint.up:
            self._notify()
        if len(errors) < len(arrived):
            self._answered.add(engine.name)
        for error in errors:  # a model that has answered is there: what it refuses now is this request
            error.fatal &= engine.name not in self._answered or error.cause in FINAL
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
        replies = [(i, one) for i, one in zip(request.indices, arrived, strict=True) if isinstance(one, Reply)]
        if not replies and not wasted and not unknown:
            return
        endpoint.gate.unkept += 1
        try:
            await keep(replies, wasted, unknown)
        finally:
            endpoint.gate.kept()

    # ------------------------------------------------------------ where to, and when

    def endpoint(self, url: str) -> Endpoint:
        found = self.endpoints.get(url)
        if found is None:
            found = self.endpoints[url] = Endpoint(url, self._most.get(url, 1_000))
        return found

    async def _entered(self, engine: Served, request: Request) -> tuple[Endpoint, bool]:
        """The endpoint that takes the request, entered through its gate; and whether that tries one that is down."""
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
            endpoint.gate.leave()  # it went down while this one waited

    def _chosen(self, engine: Served, request: Request) -> Endpoint | None:
        """The endpoint that has read this request's beginning before, unless others have clearly less to do.

        Where all are down, one that may be tried now; None where there is nothing to do but wait.
        """
        urls = engine.urls
        if len(urls) == 1:
            only = self.endpoint(urls[0])
            return only if only.up or only.due else None
        endpoints = [self.endpoint(url) for url in urls]
        if due := next((endpoint for endpoint in endpoints if endpoint.due), None):
            return due  # one request now and then finds out whether a replica is back
        up = [endpoint for endpoint in endpoints if endpoint.up]
        if not up:
            return None
        beginning = "".join(message.content for message in request.messages)[:PREFIX]
        near = max(up, key=lambda e: hashlib.blake2b(f"{e.name} {beginning}".encode("utf-8", "replace")).digest())
        least = min(up, key=lambda e: e.load)
        return near if near.load <= least.load + SLACK else least

    async def _change(self, engine: Served) -> None:
        """Wait until an endpoint changes, or may be tried again."""
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
        """Do nothing for so long, unless everything stops."""
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


def _unbilled(arrived: Arrivals) -> bool:
    """Whether something was answered and its tokens were not counted: it may have cost as much as was set aside."""
    usages = [one.usage for one in arrived if one.usage is not None]
    wrote = any(isinstance(one, Reply) and one.text for one in arrived)
    read = any(usage.prompt_tokens for usage in usages)
    return bool(usages) and not (read and (any(usage.completion_tokens for usage in usages) or not wrote))


def _stopped() -> Stopped:
    return Stopped("nothing more is asked: the run is stopping", cause="stopped")


def _wait(errors: Sequence[EngineError], tries: int) -> float:
    """Seconds before what failed is asked again: as the server says, else backoff with full jitter, so that requests
    which failed together do not return together."""
    if wait := max(error.wait or 0.0 for error in errors):  # no time at all, or a date that has passed, says nothing
        return min(wait, LONGEST_WAIT)
    if all(error.cause in AT_ONCE for error in errors) and tries <= 2:
        return 0.0
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(max(0, tries - 1), 16)))
