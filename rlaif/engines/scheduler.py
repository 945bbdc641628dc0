"""The scheduler: what stands between the stages and the engines.

A stage asks for samples of a model; the scheduler answers from the call store, sends what is missing, and returns only
what is durable. Servers get one request at a time within their concurrency; models in this process share the machine,
so their requests are gathered into large batches and one model computes at a time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlaif.engines.protocol import Engine, Reply, Request
from rlaif.errors import EngineError
from rlaif.records import Completion, Message, Sampling
from rlaif.store import CallStore, call_key

LINGER = 0.02  # seconds an in-process batch that is not full waits for more requests
PATIENCE = 20  # calls of one server that may fail in a row, retries included, before the run stops


@dataclass
class Tally:
    """What one model was asked in this run."""

    sent: int = 0  # calls an engine answered
    cached: int = 0  # calls the store answered
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: int = 0  # completions that ended at max_tokens
    causes: Counter[str] = field(default_factory=Counter)


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


class Scheduler:
    """Answers requests for samples from the store or an engine. `engines` may grow as models are trained."""

    def __init__(self, store: CallStore, engines: Mapping[str, Engine], concurrency: Mapping[str, int]) -> None:
        self._store, self._engines = store, engines
        self._slots = {name: asyncio.Semaphore(limit) for name, limit in concurrency.items()}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._failed_in_a_row: Counter[str] = Counter()
        self._in_flight: dict[str, asyncio.Future[None]] = {}
        self._waiting: dict[str, list[tuple[Request, asyncio.Future[list[Reply]]]]] = {}
        self._computing: asyncio.Task[None] | None = None
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
        """`n` completions, each from the store where it was paid for before. Raises EngineError."""
        engine = self._engines[model]
        keys = [
            call_key(engine.identity, messages, sampling, index=i, attempt=attempt, json_schema=json_schema)
            for i in range(n)
        ]
        while flying := [self._in_flight[key] for key in keys if key in self._in_flight]:
            await asyncio.wait(flying)  # the same call is being paid for by another row
        answers = self._store.get(keys)
        missing = [i for i, key in enumerate(keys) if key not in answers]
        self.tally(model).cached += n - len(missing)
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

    async def _pay(self, engine: Engine, request: Request, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Send one request and make its answers durable."""
        done = asyncio.get_running_loop().create_future()
        self._in_flight.update(dict.fromkeys(keys, done))
        tally = self.tally(engine.name)
        try:
            replies = await (self._gathered(engine, request) if engine.in_process else self._sent(engine, request))
            answers = {key: reply.model_dump(mode="json") for key, reply in zip(keys, replies, strict=True)}
            await self._store.put([(key, engine.identity, answer) for key, answer in answers.items()])
        except EngineError as error:
            tally.failed += len(keys)
            tally.causes[error.cause] += len(keys)
            self._failed_in_a_row[engine.name] += 1
            error.fatal |= not engine.in_process and self._failed_in_a_row[engine.name] >= PATIENCE
            raise
        finally:
            done.set_result(None)
            for key in keys:
                self._in_flight.pop(key, None)
        self._failed_in_a_row[engine.name] = 0
        tally.sent += len(replies)
        tally.cut += sum(reply.finish_reason == "length" for reply in replies)
        tally.prompt_tokens += sum(reply.usage.prompt_tokens for reply in replies)
        tally.completion_tokens += sum(reply.usage.completion_tokens for reply in replies)
        return answers

    async def _sent(self, engine: Engine, request: Request) -> list[Reply]:
        if engine.name not in self._probes:
            self._probes[engine.name] = asyncio.create_task(engine.probe())
        await asyncio.shield(self._probes[engine.name])
        async with self._slots[engine.name]:
            return _unwrapped((await engine.sample([request]))[0])

    async def _gathered(self, engine: Engine, request: Request) -> list[Reply]:
        future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(engine.name, []).append((request, future))
        if self._computing is None or self._computing.done():
            self._computing = asyncio.create_task(self._compute())
        return await future

    async def _compute(self) -> None:
        """Run gathered batches, the model with most requests first, until none waits."""
        while True:
            await self._until_settled()
            name = max(self._waiting, key=lambda model: len(self._waiting[model]), default=None)
            if name is None or not self._waiting[name]:
                return
            batch = self._take(name)
            try:
                results = await self._engines[name].sample([request for request, _ in batch])
            except Exception as error:  # the engine as a whole failed: each waiting row must hear of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, EngineError):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _take(self, name: str) -> list[tuple[Request, asyncio.Future[list[Reply]]]]:
        """The next batch of a model: requests of like length, up to the engine's batch size in samples."""
        queue = self._waiting[name]
        queue.sort(key=lambda item: sum(len(message.content) for message in item[0].messages))
        room: int = getattr(self._engines[name], "batch_size", 64)
        count, samples = 0, 0
        while count < len(queue) and (count == 0 or samples + len(queue[count][0].indices) <= room):
            samples += len(queue[count][0].indices)
            count += 1
        batch, self._waiting[name] = queue[:count], queue[count:]
        return batch

    async def _until_settled(self) -> None:
        """Wait while requests still arrive, so that a batch is as full as the rows in flight allow."""
        before = -1
        while (now := sum(len(queue) for queue in self._waiting.values())) != before:
            before = now
            await asyncio.sleep(LINGER)


def _unwrapped(result: list[Reply] | EngineError) -> list[Reply]:
    if isinstance(result, EngineError):
        raise result
    return result
