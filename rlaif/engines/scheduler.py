"""The scheduler, between the stages and the engines.

A stage asks for samples. The scheduler answers from the call store, sends what is missing, and returns only what is
durable. Requests to servers go through `traffic`, each on its own. Models in this process share the machine: their
requests are gathered into large batches, and one model computes at a time.

A request that was sent is paid for: its reply is stored even if its row was cancelled meanwhile. A cancelled row's
unsent requests are dropped.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

from rlaif.config.models import Thinking
from rlaif.engines.asking import Ask, gravest
from rlaif.engines.ledger import Ledger
from rlaif.engines.protocol import REFUSES, Engine, Local, Reply, Request, Served
from rlaif.engines.secrets import MASK
from rlaif.engines.thinking import marked, parted
from rlaif.engines.traffic import Arrivals, Traffic, wrong_count
from rlaif.errors import EngineError, Stopped
from rlaif.records import Completion, Sampling, Usage, digest_text
from rlaif.store import Answers, Call, CallStore, Failure, Wasted, call_keys

LINGER = 0.02  # seconds that an in-process batch waits for more requests
PROBE = (120, 48)  # prompt and completion tokens of a probe, at most
GRACE = 10.0  # seconds that `close` waits for requests in flight
AT_ONCE = 0.2  # and where a person does not want to wait: for replies that have just arrived
# Transient failures: not about the request itself, so not recorded, and the next run tries again.
PASSING = frozenset(
    {
        "connection",
        "stopped",
        "interrupted",
        "budget",
        "quota",
        "http-401",
        "plan",
        "engine",
        "cut-thinking",
        "thinking",
    }
)

Result = TypeVar("Result")
Collect = Callable[[Served, Request, Sequence[str]], None]  # takes a request to a server, with the keys of its calls


@dataclass(eq=False)
class _Order:
    """A request queued or in flight. `done` is set when its replies are stored, or when it failed."""

    engine: Engine
    request: Request
    keys: Sequence[str]
    done: asyncio.Future[Answers]
    sent: bool = False
    abandoned: bool = False  # its row is gone: replies are still stored, nothing more is sent


class Scheduler:
    """Answers requests for samples from the store or an engine. `engines` may grow as models are trained.

    `concurrency` limits the requests in flight to each server, by URL. With `retry_failed`, calls that failed in an
    earlier run are retried, and unreadable replies asked for once more; without, they come from the store as they are.
    `used` names the models whose servers are checked before the first call. `on_note` gets each note for the user.
    `thinking` says, by model, what becomes of its thinking; it is stripped where it says nothing.
    """

    def __init__(
        self,
        store: CallStore,
        engines: Mapping[str, Engine],
        concurrency: Mapping[str, int],
        *,
        ledger: Ledger | None = None,
        retry_failed: bool = False,
        used: Collection[str] | None = None,
        on_note: Callable[[str], None] = lambda _: None,
        thinking: Mapping[str, Thinking] | None = None,
    ) -> None:
        self._store, self._engines, self._retry_failed = store, engines, retry_failed
        self._thinking = {} if thinking is None else thinking
        self._thought: set[str] = set()  # models whose thinking was told of
        self._retried: set[tuple[str, int, str, str]] = set()  # what was asked again because nobody could read a reply
        self._masked: Counter[str] = Counter()  # completions in which a key was masked, by model
        self.ledger = ledger or Ledger()
        self.traffic = Traffic(self.ledger, concurrency)
        self.stopped: Stopped | None = None  # why nothing more is sent
        self._used, self.note = used, on_note
        self.collected = 0  # requests that were given to `collect`
        self._collect: Collect | None = None
        self._checked: asyncio.Task[None] | None = None
        self._probes: dict[str, asyncio.Task[None]] = {}  # by url
        self._in_flight: dict[str, _Order] = {}
        self._waiting: dict[Local, list[_Order]] = {}
        self._computing: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._storing: set[asyncio.Task[None]] = set()

    def stop(self, why: Stopped) -> None:
        """Send nothing more. Requests in flight finish; everything else that is waited for fails with `why`."""
        if self.stopped is not None:
            return
        self.stopped = why
        self.traffic.stop()
        for probe in self._probes.values():
            probe.cancel()
        for queue in self._waiting.values():
            for order in queue:
                _fail(order, why)
        self._waiting.clear()

    def note_masked(self) -> None:
        """Note how many completions held a key so far: when all have arrived, or nothing more is waited for."""
        for model, count in (+self._masked).items():
            of = f"{count:,} completion{'s' if count > 1 else ''} of the model {model!r}"
            self.note(f"a key stood in {of}, and is masked as {MASK}")

    def collect(self, into: Collect) -> None:
        """Send nothing to servers: give what is missing to `into`, and let whatever needs it fail as `Stopped`."""
        self._collect = into
        self._remind_all()

    def settled(self) -> Stopped | None:
        """Called after a stage: why no later one runs. Where calls were collected, they have to be answered first."""
        if self.collected:
            fix = "`rlaif batch` says what they wait for"
            self.stop(Stopped("calls wait for a batch", cause="batch", fix=fix))
        return self.stopped

    async def sample(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        """The completions of each ask, in order, from the store where they are cached.

        Looked up together, sent concurrently. After a failure the others still finish; then the gravest EngineError is
        raised.
        """
        keys = [
            call_keys(
                self._engines[ask.model].identity, ask.messages, ask.sampling, indices=range(ask.n),
                attempt=ask.attempt, json_schema=ask.json_schema,
            )
            for ask in asks
        ]  # fmt: skip
        while flying := {order.done for wanted in keys for key in wanted if (order := self._in_flight.get(key))}:
            await asyncio.wait(flying)  # the same call is in flight for another row
        cached = self._store.find([key for wanted in keys for key in wanted])
        keys = [wanted if self._to_make(ask, wanted, cached) else [] for ask, wanted in zip(asks, keys, strict=True)]
        answers: Answers = {}
        orders: list[_Order] = []
        errors: list[BaseException] = []
        for ask, wanted in zip(asks, keys, strict=True):
            answers |= self._stored(ask, {key: cached[key] for key in wanted if key in cached})
            missing = [index for index, key in enumerate(wanted) if key not in cached]
            # Two asks may have the same key under two model names: the second joins the first one's order.
            orders += {order for index in missing if (order := self._in_flight.get(wanted[index]))} - set(orders)
            if missing := [index for index in missing if wanted[index] not in self._in_flight]:
                try:
                    orders.append(self._order(ask, missing, [wanted[index] for index in missing]))
                except EngineError as error:
                    errors.append(error)
        if orders:
            outcomes = await self._awaited(orders)
            errors += [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            for outcome in outcomes:
                if not isinstance(outcome, BaseException):
                    answers |= outcome
        if errors:
            raise gravest(errors)
        return [
            [self._completion(ask.model, key, answers[key]) for key in wanted]
            for ask, wanted in zip(asks, keys, strict=True)
        ]

    def _to_make(self, ask: Ask, keys: Sequence[str], cached: Mapping[str, object]) -> bool:
        """Whether an ask is answered: one of `--retry-failed` from the store, or once in a run that retries."""
        if not ask.retries or all(key in cached for key in keys):
            return True
        alike = (ask.stage, ask.row, ask.model, digest_text("\x1f".join(message.content for message in ask.messages)))
        if not self._retry_failed or alike in self._retried:
            return False
        self._retried.add(alike)
        return True

    def _completion(self, model: str, key: str, answer: Mapping[str, Any]) -> Completion:
        """A stored answer as a completion, without the model's thinking. Raises EngineError where there may be none."""
        self._masked[model] += bool(answer.get("masked"))
        completion = stored_completion(model, key, answer, self._thinking.get(model, "strip"))
        if completion.thinking is not None and model not in self._thought:
            self._thought.add(model)
            self.note(
                f"the model {model!r} thinks before it answers: its thinking is no part of its completions, and `rlaif "
                "show` shows it (`thinking: keep` would keep it in them)"
            )
        return completion

    async def _awaited(self, orders: Sequence[_Order]) -> list[Answers | BaseException]:
        """The outcome of each order. If the caller is cancelled meanwhile, unsent orders are dropped."""
        try:
            await asyncio.wait([order.done for order in orders])  # cancelling `wait` cancels none of them
        except asyncio.CancelledError:
            for order in orders:
                order.abandoned = True
                if not order.sent:
                    order.done.cancel()
            raise
        return [_outcome(order.done) for order in orders]

    def _stored(self, ask: Ask, cached: Mapping[str, tuple[dict[str, Any], bool]]) -> Answers:
        """The stored answers by key, counted; each comes with whether an earlier run paid for it."""
        if cached:
            tally = self.ledger.tally(ask.model, ask.stage)
            tally.cached += len(cached)
            for answer, earlier in cached.values():
                if earlier and (usage := answer.get("usage")):
                    tally.cached_prompt_tokens += usage.get("prompt_tokens") or 0
                    tally.cached_completion_tokens += usage.get("completion_tokens") or 0
        return {key: answer for key, (answer, _) in cached.items()}

    def _refuse_failed(self, ask: Ask, keys: Sequence[str]) -> None:
        """Raise the stored EngineError of a call that failed for good in an earlier run, or forget it to retry."""
        if not (failed := self._store.failures(keys)):
            return
        if self._retry_failed:
            self._store.forget_failures(failed)
            return
        cause, message = next(iter(failed.values()))
        tally = self.ledger.tally(ask.model, ask.stage)
        tally.failed += len(failed)
        tally.causes[cause] += len(failed)
        raise EngineError(message, cause=cause)

    async def close(self, *, at_once: bool = False) -> None:
        """Drop unsent requests, wait `GRACE` seconds for those in flight (or `AT_ONCE`), and store their replies."""
        for order in list(self._in_flight.values()):
            if not order.sent:
                order.done.cancel()
        self.traffic.stop()
        probes, self._probes = {*self._probes.values(), *([self._checked] if self._checked else [])}, {}
        for probe in probes:
            probe.cancel()
        await _ended(probes)
        await _ended(self._asking, timeout=AT_ONCE if at_once else GRACE)
        for task in self._asking:
            task.cancel()
        await _ended(self._asking)
        await _ended(self._storing)  # never cut short: these replies have arrived
        self.note_masked()
        for order in list(self._in_flight.values()):
            order.done.cancel()

    # ------------------------------------------------------------ orders

    def _order(self, ask: Ask, missing: Sequence[int], keys: Sequence[str]) -> _Order:
        """Queue the missing samples of an ask. Raises EngineError when stopped or when they failed before."""
        if self.stopped is not None:
            raise self.stopped
        self._refuse_failed(ask, keys)
        engine = self._engines[ask.model]
        request = Request(
            messages=tuple(ask.messages),
            sampling=ask.sampling,
            indices=tuple(missing),
            attempt=ask.attempt,
            json_schema=dict(ask.json_schema) if ask.json_schema is not None else None,
            stage=ask.stage,
            row=ask.row,
        )
        if self._collect is not None and not engine.in_process:
            self.collected += 1
            self._collect(cast(Served, engine), request, keys)
            raise Stopped(f"a call of {ask.model!r} waits for a batch", cause="batch")
        order = _Order(engine, request, keys, asyncio.get_running_loop().create_future())
        self._in_flight.update(dict.fromkeys(keys, order))
        order.done.add_done_callback(lambda _: self._forget(order))
        if engine.in_process:
            self._waiting.setdefault(cast(Local, engine), []).append(order)
            if self._computing is None or self._computing.done():
                self._computing = self._start(self._compute(), self._asking)
        else:
            self._start(self._send(cast(Served, engine), order), self._asking)
        return order

    def _forget(self, order: _Order) -> None:
        for key in order.keys:
            self._in_flight.pop(key, None)
        if not order.done.cancelled():
            order.done.exception()  # mark it retrieved: the row may be gone

    def _start(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def _kept(
        self,
        order: _Order,
        replies: Sequence[tuple[int, Reply]],
        wasted: Sequence[Usage] = (),
        unknown: Sequence[Usage] = (),
    ) -> Answers:
        """Count a request's replies and make them durable; returns the stored answers by key."""
        engine, request = order.engine, order.request
        tally, key_of = (
            self.ledger.tally(engine.name, request.stage),
            dict(zip(request.indices, order.keys, strict=True)),
        )
        calls = []
        for index, reply in replies:
            tally.pay(reply.usage)
            tally.cut += reply.finish_reason == "length"
            calls.append(paid_call(engine, key_of[index], request, index, reply))
        for usage in wasted:
            tally.pay(usage, discarded=True)
        return await self._store.put(calls, [], [_wasted(engine, usage) for usage in (*wasted, *unknown)])

    async def _settle(self, order: _Order, arrived: Arrivals, stored: Answers | None = None) -> None:
        """Store an order's replies, unless `stored` holds them already, and its failures; then end the order."""
        errors = [r for r in arrived if isinstance(r, EngineError)]
        if errors:
            tally = self.ledger.tally(order.engine.name, order.request.stage)
            tally.failed += len(errors)
            tally.causes.update(error.cause for error in errors)
        try:
            if stored is None:
                replies = [(i, r) for i, r in zip(order.request.indices, arrived, strict=True) if isinstance(r, Reply)]
                stored = await self._kept(order, replies)
            if errors:
                lasting = [
                    Failure(key, order.engine.identity, r.cause, str(r))
                    for key, r in zip(order.keys, arrived, strict=True)
                    if isinstance(r, EngineError) and lasts(r)
                ]
                await self._store.put([], lasting)
        except Exception as error:
            _fail(order, error)
            return
        if errors:
            _fail(order, gravest(errors))
        elif not order.done.done():
            order.done.set_result(stored)

    # ------------------------------------------------------------ servers

    async def _send(self, engine: Served, order: _Order) -> None:
        stored: Answers = {}

        async def keep(replies: list[tuple[int, Reply]], wasted: list[Usage], unknown: list[Usage]) -> None:
            stored.update(await self._kept(order, replies, wasted, unknown))

        def wanted() -> bool:
            if order.done.done() or order.abandoned:
                return False
            order.sent = True
            return True

        try:
            await self._probed(engine, order.request.stage)
            arrived = await self.traffic.ask(engine, order.request, keep, wanted)
            await self._settle(order, arrived, stored)
        except asyncio.CancelledError:
            if self.stopped is not None:
                _fail(order, self.stopped)
            order.done.cancel()
            raise
        except Stopped as error:
            if error.cause == "budget":
                self.stop(error)
            _fail(order, error)
        except EngineError as error:
            await self._settle(order, [error] * len(order.keys), stored)
        except Exception as error:
            _fail(order, error)

    async def _preflight(self) -> None:
        """Check, before the first call is paid for, that every server answers and lists its model.

        Raises the error of a model none of whose servers answers, unless its calls may all be cached.
        """
        self._remind_all()
        engines = [engine for name, engine in self._engines.items() if self._used is None or name in self._used]
        served = [cast(Served, engine) for engine in engines if not engine.in_process]
        servers = [(engine, url) for engine in served for url in engine.urls]
        lists = await asyncio.gather(*(engine.models(url) for engine, url in servers), return_exceptions=True)
        unreached: dict[str, list[BaseException]] = {}
        for (engine, url), models in zip(servers, lists, strict=True):
            errors = unreached.setdefault(engine.name, [])
            if isinstance(models, BaseException):
                errors.append(models)
            elif models is not None and engine.model not in models:
                shown = (", ".join(models[:6]) or "none") + (", ..." if len(models) > 6 else "")
                self.note(f"{url} does not list {engine.model!r}, the model of {engine.name}; it lists {shown}")
        for engine in served:
            if len(errors := unreached[engine.name]) < len(engine.urls):
                continue
            if self._store.knows(engine.identity):  # its calls may all be cached
                self.note(str(errors[0]))
                continue
            if isinstance(errors[0], EngineError):
                errors[0].fatal = True
            raise errors[0]

    def _remind_all(self) -> None:
        for engine in self._engines.values():
            if not engine.in_process:
                self.remind(cast(Served, engine))

    def remind(self, engine: Served) -> None:
        """Give a model what an earlier run found out about what its server refuses, and keep what this one does."""

        def tell(line: str) -> None:
            self.note(line)
            refused = {name: so for name, so in engine.capabilities.items() if name.startswith(REFUSES)}
            if refused:
                self._store.learn(engine.identity, refused)

        engine.tell = tell
        engine.capabilities.update(self._store.learnt(engine.identity) or {})

    async def _probed(self, engine: Served, stage: str) -> None:
        """Probe what each server honours, once; from the store where another run has probed it."""
        if self._checked is None:
            self._checked = asyncio.create_task(self._preflight())
        if not self._checked.done():
            await asyncio.shield(self._checked)
        else:
            self._checked.result()
        failed: list[EngineError] = []
        for url in engine.urls:
            if url not in self._probes:
                self._probes[url] = asyncio.create_task(self._probe(engine, url, stage))
            try:
                if not self._probes[url].done():
                    await asyncio.shield(self._probes[url])
                else:
                    self._probes[url].result()
            except EngineError as error:
                failed.append(error)
        if len(failed) == len(engine.urls) and not any(self.traffic.endpoint(p).up for p in engine.urls):
            raise failed[0]

    async def _probe(self, engine: Served, url: str, stage: str) -> None:
        known = self._store.learnt(url)
        if known is not None:
            engine.capabilities.update(known)
            return
        with await self.ledger.reserve(engine.name, *PROBE):
            try:
                paid = await engine.probe(url)
            except EngineError as error:
                self.traffic.endpoint(url).missing(error)
                raise
            for usage in paid:
                self.ledger.tally(engine.name, stage).pay(usage, discarded=True)
            await self._store.put([], [], [_wasted(engine, usage) for usage in paid])
        self._store.learn(url, {"seed": engine.capabilities.get("seed")})

    # ------------------------------------------------------------ models in this process

    async def _compute(self) -> None:
        """Run gathered batches, the model with most requests first, until the queue is empty."""
        while True:
            await self._until_settled()
            if not self._waiting or self.stopped is not None:
                return
            if batch := self._take(max(self._waiting, key=lambda engine: len(self._waiting[engine]))):
                await self._ask(batch)

    async def _ask(self, orders: Sequence[_Order]) -> None:
        """Send the requests of `orders` to their engine as one batch, and store the replies."""
        for order in orders:
            order.sent = True
        engine = cast(Local, orders[0].engine)
        try:
            arrivals = await engine.sample([order.request for order in orders])
            if [len(arrived) for arrived in arrivals] != [len(order.keys) for order in orders]:
                raise EngineError(wrong_count(engine.name))
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

    def _take(self, engine: Local) -> list[_Order]:
        """The next batch of a model: requests of similar length, up to the engine's batch size in samples."""
        queue = [order for order in self._waiting.pop(engine) if not order.done.done()]
        queue.sort(key=lambda order: sum(len(message.content) for message in order.request.messages))
        count, samples = 0, 0
        while count < len(queue) and (count == 0 or samples + len(queue[count].keys) <= engine.batch_size):
            samples += len(queue[count].keys)
            count += 1
        if count < len(queue):
            self._waiting[engine] = queue[count:]
        return queue[:count]

    async def _until_settled(self) -> None:
        """Wait while requests still arrive, so that batches are full."""
        before = -1
        while (now := sum(len(queue) for queue in self._waiting.values())) != before:
            before = now
            await asyncio.sleep(LINGER)


def _wasted(engine: Engine, usage: Usage) -> Wasted:
    return Wasted(engine.identity, usage.prompt_tokens, usage.completion_tokens)


async def _ended(tasks: set[asyncio.Task[None]], timeout: float | None = None) -> None:
    if tasks:
        await asyncio.wait(set(tasks), timeout=timeout)


def _outcome(done: asyncio.Future[Answers]) -> Answers | BaseException:
    return asyncio.CancelledError() if done.cancelled() else done.exception() or done.result()


def _fail(order: _Order, error: BaseException) -> None:
    if not order.done.done():
        order.done.set_exception(error)


def stored_completion(model: str, key: str, answer: Mapping[str, Any], thinking: Thinking = "strip") -> Completion:
    """A stored answer as a completion; `model` is the model's name in this pipeline.

    Raises EngineError for one with thinking where that is to `fail`, and for one that was cut before its answer.
    """
    fields = {name: value for name, value in answer.items() if value is not None and name != "masked"}
    text, apart = fields["text"], fields.get("thinking")
    if apart is None and not marked(text):
        return Completion(model=model, call=key, **fields)
    if thinking == "keep":
        fields.pop("thinking", None)
        kept = text if apart is None else f"<think>\n{apart}\n</think>\n\n{text}"
        return Completion(model=model, call=key, **(fields | {"text": kept}))
    parts = parted(text)
    thought = "\n\n".join(filter(None, (apart, parts.thinking)))
    if thinking == "fail" and (thought or parts.thinking is not None):
        fix = "state `thinking: strip` for the model, or switch its thinking off"
        raise EngineError(f"the model {model!r} thinks before it answers", cause="thinking", fix=fix)
    if parts.thinking is not None:
        if not parts.answer and fields["finish_reason"] == "length":
            fix = "raise `max_tokens`: a model of this process thinks within them"
            raise EngineError(f"the model {model!r} still thinks where its tokens end", cause="cut-thinking", fix=fix)
        fields.pop("token_logprobs", None)  # they are the thinking's, too
    return Completion(model=model, call=key, **(fields | {"text": parts.answer, "thinking": thought or None}))


def lasts(error: EngineError) -> bool:
    """Whether a call that failed so is recorded, and sent again only with `--retry-failed`."""
    return not (error.fatal or error.early) and error.cause not in PASSING


def paid_call(engine: Engine, key: str, request: Request, index: int, reply: Reply) -> Call:
    """One sample of a request as the store keeps it."""
    readable = {"model": engine.name} | _readable(request) | {"index": index}
    return Call(key, engine.identity, readable, _answer(reply))


def _answer(reply: Reply) -> dict[str, Any]:
    """A reply as the store keeps it, without unset fields."""
    kept: dict[str, Any] = {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": {"prompt_tokens": reply.usage.prompt_tokens, "completion_tokens": reply.usage.completion_tokens},
    }
    if reply.token_logprobs is not None:
        kept["token_logprobs"] = list(reply.token_logprobs)
    if reply.alternatives is not None:
        kept["alternatives"] = reply.alternatives
    if reply.thinking is not None:
        kept["thinking"] = reply.thinking
    if reply.masked:
        kept["masked"] = True
    return kept


def _readable(request: Request) -> dict[str, Any]:
    """A request as the store keeps it, for people to read."""
    return {
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "sampling": _settings(request.sampling),
        "attempt": request.attempt,
        "schema": request.json_schema,
    }


@lru_cache(maxsize=256)
def _settings(sampling: Sampling) -> dict[str, Any]:
    return sampling.model_dump(mode="json")
