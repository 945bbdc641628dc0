"""Results of batches, taken into the call store: verified as the answers of a server are, whatever their order.

A file of results is what a provider or vLLM's `run-batch` writes: a line for each request that was answered, or failed.
Nothing about it is trusted: lines may be missing, twice there, of others, cut or no JSON. All of it is counted.
"""

from __future__ import annotations

import errno
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from rlaif.engines.batches import RESULTS
from rlaif.engines.openai import OpenAIEngine
from rlaif.engines.protocol import Reply
from rlaif.engines.scheduler import lasts, paid_call
from rlaif.engines.traffic import OTHER_SEED, unbilled
from rlaif.engines.wire import GZIP_OR_ZLIB, MB, MOST
from rlaif.errors import EngineError, InputError, shortened
from rlaif.files import opened, why
from rlaif.pipeline.batched import Batched, Entry, Sent
from rlaif.pipeline.session import Session
from rlaif.records import Usage
from rlaif.store import Call, Failure, Wasted

AT_ONCE = 256  # requests whose answers are stored in one commit
MOST_LINE = 2 * MOST  # bytes: an answer is one string more than over a wire


class _Response(msgspec.Struct):
    status_code: int = 200
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    """What is read of a line of results."""

    custom_id: str
    response: _Response | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def fine(self) -> bool:
        return self.response is not None and self.response.status_code == 200

    @property
    def is_result(self) -> bool:
        return self.response is not None or bytes(self.error) != b"null"

    def answer(self) -> tuple[int, bytes] | None:
        """Status and body as of a server's answer; None where there is none, as for a request that expired."""
        if self.response is None:
            return None
        body = bytes(self.response.body)
        return self.response.status_code, bytes(self.error) if body == b"null" else body

    def expired(self) -> str:
        """Why there is no answer, in a word."""
        try:
            code = msgspec.json.decode(self.error, type=dict[str, Any]).get("code")
        except (ValueError, RecursionError):
            code = None
        return shortened(code, 40) if isinstance(code, str) and code else "no answer"


@dataclass
class Outcome:
    """What became of results. Calls are counted, and lines that are none of a call."""

    stored: int = 0
    known: int = 0  # answered before, by other results or a run
    failed: Counter[str] = field(default_factory=Counter)  # for good, by cause
    again: Counter[str] = field(default_factory=Counter)  # in the next files, by cause
    example: str | None = None  # of an error
    missing: int = 0  # requests without a result, of the files that have any
    duplicate: int = 0
    unknown: int = 0
    unreadable: int = 0
    cut: int = 0  # last lines without an end

    def failing(self, error: EngineError, *, for_good: bool) -> None:
        (self.failed if for_good else self.again)[error.cause] += 1
        self.example = self.example or str(error)


class _Files:
    """Files of results, found by the id of a request. They stay on disk."""

    def __init__(self, paths: Sequence[Path], outcome: Outcome, held: ExitStack) -> None:
        self._files: list[BinaryIO] = []
        self._at: dict[str, tuple[int, int, bool]] = {}  # file, offset, and whether it is an answer
        for path in paths:
            found = self._index(held.enter_context(_plain(path)), outcome)
            if not found:
                problem = "it holds no line of results"
                fix = "give what answered a file of requests: each line has `custom_id`, and `response` or `error`"
                raise InputError(problem, file=str(path), fix=fix)

    def __len__(self) -> int:
        return len(self._at)

    def _index(self, file: BinaryIO, outcome: Outcome) -> int:
        number, found = len(self._files), 0
        self._files.append(file)
        offset = 0
        for raw in iter(lambda: file.readline(MOST_LINE), b""):
            start, offset = offset, offset + len(raw)
            line = _read(raw)
            if line is None:
                cut = not raw.endswith(b"\n") and len(raw) < MOST_LINE
                outcome.cut += cut
                outcome.unreadable += not cut and bool(raw.strip())
                continue
            found += 1
            before = self._at.get(line.custom_id)
            outcome.duplicate += before is not None
            if before is None or (line.fine and not before[2]):
                self._at[line.custom_id] = (number, start, line.fine)
        return found

    def pop(self, custom_id: str) -> _Line | None:
        """The line of a request, once."""
        place = self._at.pop(custom_id, None)
        if place is None:
            return None
        self._files[place[0]].seek(place[1])
        return _read(self._files[place[0]].readline(MOST_LINE))


def _read(raw: bytes) -> _Line | None:
    try:
        line = msgspec.json.decode(raw, type=_Line)
    except (ValueError, RecursionError):
        return None
    return line if line.is_result else None


def _plain(path: Path) -> BinaryIO:
    """A file of results, unpacked where it is compressed: it is read here and there. Raises InputError."""
    with ExitStack() as held:
        try:
            file = held.enter_context(opened(path))
            if file.read(2) == b"\x1f\x8b":
                plain = held.enter_context(cast(BinaryIO, tempfile.TemporaryFile()))  # noqa: SIM115
                file.seek(0)
                _unpack(file, plain)
                file.close()
                file = plain
        except (OSError, zlib.error) as error:
            problem = f"it cannot be read: {why(error) if isinstance(error, OSError) else 'it is no gzip'}"
            raise InputError(problem, file=str(path), fix="give a file of results") from None
        held.pop_all()
    file.seek(0)
    return file


def _unpack(file: BinaryIO, plain: BinaryIO) -> None:
    """Of a file that is cut, what is there. Raises OSError for too much, and zlib.error for what is no gzip."""
    unpacking = zlib.decompressobj(GZIP_OR_ZLIB)
    for piece in iter(lambda: file.read(MB), b""):
        while piece:
            plain.write(unpacking.decompress(piece, MB))
            piece = unpacking.unconsumed_tail
            if unpacking.eof:  # one part of several, as `cat` puts them together
                piece, unpacking = unpacking.unused_data, zlib.decompressobj(GZIP_OR_ZLIB)
            if plain.tell() > RESULTS:
                raise OSError(errno.EOVERFLOW, f"it unpacks to more than {RESULTS // MB:,} MB")


async def take_in(
    session: Session, batched: Batched, entries: Sequence[Entry], paths: Sequence[Path], outcome: Outcome
) -> None:
    """Store what files of results answer of the requests of `entries`, the newest of which are read first."""
    with ExitStack() as held:
        files = _Files(paths, outcome, held)
        there: set[str] = set()
        missing: set[str] = set()  # some of which another file may hold, too
        for entry in reversed(entries):
            engine = session.engines.get(entry.model)
            if not isinstance(engine, OpenAIEngine) or engine.identity != entry.identity:
                continue  # of a model that the pipeline names no more: its results stay unknown
            session.scheduler.remind(engine)
            taking = _Taking(session, batched, engine, outcome)
            without: set[str] = set()
            for sent in batched.sent(entry):
                line = files.pop(sent.custom_id)
                (there if line else without).add(sent.custom_id)
                if line is not None:
                    await taking.add(sent, line)
            await taking.finish()
            missing |= without if taking.any else set()
        outcome.missing += len(missing - there)
        outcome.unknown += len(files)


class _Taking:
    """Takes the results of one model, some at a time."""

    def __init__(self, session: Session, batched: Batched, engine: OpenAIEngine, outcome: Outcome) -> None:
        self._session, self._batched, self._engine, self._outcome = session, batched, engine, outcome
        self._waiting: list[tuple[Sent, _Line]] = []
        self.any = False

    async def add(self, sent: Sent, line: _Line) -> None:
        self.any = True
        self._waiting.append((sent, line))
        if len(self._waiting) >= AT_ONCE:
            await self._store()

    async def finish(self) -> None:
        await self._store()
        self._batched.save()

    async def _store(self) -> None:
        known = self._session.store.get(key for sent, _ in self._waiting for key in sent.keys)
        calls: list[Call] = []
        failures: list[Failure] = []
        spent: list[Usage] = []
        for sent, line in self._waiting:
            for one in self._outcomes(sent, line, known.keys(), spent):
                (calls if isinstance(one, Call) else failures).append(one)  # type: ignore[arg-type]
        wasted = [Wasted(self._engine.identity, usage.prompt_tokens, usage.completion_tokens) for usage in spent]
        stored = await self._session.store.put(calls, failures, wasted)
        self._outcome.stored += len(stored)
        for key in stored:
            self._batched.state.salts.pop(key, None)
        self._waiting.clear()
        spent += [Usage(**usage) for answer in stored.values() if (usage := answer.get("usage"))]
        read, written = self._batched.state.paid.get(self._engine.identity, (0, 0))
        read += sum(usage.prompt_tokens for usage in spent)
        self._batched.state.paid[self._engine.identity] = (read, written + sum(u.completion_tokens for u in spent))

    def _outcomes(self, sent: Sent, line: _Line, known: Any, spent: list[Usage]) -> Iterator[Call | Failure]:
        """What is to be stored of one request; `spent` gets what its answers of no use cost."""
        request, answer = sent.asked(), line.answer()
        fresh = [key for key in sent.keys if key not in known]
        self._outcome.known += len(sent.keys) - len(fresh)
        if not fresh:
            return
        if answer is None:
            self._outcome.again[self._engine.shown(line.expired())] += len(fresh)
            return
        arrived = self._engine.received(request, frozenset(sent.without), *answer)
        lost = unbilled(arrived) or any(one.lost for one in arrived if isinstance(one, EngineError))
        if lost:
            most = len(arrived) * (request.sampling.max_tokens + self._engine.thinking_tokens)
            spent.append(Usage(prompt_tokens=self._engine.estimate(request), completion_tokens=most))
        for index, key, one in zip(request.indices, sent.keys, arrived, strict=True):
            if key in known:
                continue
            if isinstance(one, Reply):
                yield paid_call(self._engine, key, request, index, one)
                continue
            spent += [one.usage] if one.usage is not None else []
            if for_good := self._for_good(key, one):
                yield Failure(key, self._engine.identity, one.cause, str(one))
            self._outcome.failing(one, for_good=for_good)

    def _for_good(self, key: str, error: EngineError) -> bool:
        """Whether a call is not asked again. One whose answer was of no use gets as many other seeds as in a run."""
        salts = self._batched.state.salts
        if error.cause in OTHER_SEED and error.retryable:
            salts[key] = salts.get(key, 0) + 1
            return salts[key] > self._engine.retries
        return lasts(error) and not error.retryable
