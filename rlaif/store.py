"""The call store: every call that was paid for, under the digest of exactly what determines its answer.

One SQLite file in WAL mode, shared by the runs of a project folder and safe under several processes. A call is durable
(committed and synced) before anything uses it. Writes that arrive together share one commit, in a separate thread, so
that only the callers of these writes wait for the disk. Fields that people query in SQL are columns; the request and
the answer are compressed JSON. The store knows nothing of models or stages.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import stat
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import chain
from json.encoder import encode_basestring
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Required, TypedDict, cast

import msgspec

from rlaif.errors import StoreError
from rlaif.files import why
from rlaif.records import FinishReason, Message, Sampling, canonical, digest_text, logprob_problem

FORMAT = 3  # of this file; format 2 is migrated, any other format is refused
KEY_VERSION = 1  # of the key's meaning; raising it makes every stored call unreachable
BUSY = 60.0  # seconds to wait for another process's commit
LEARNT_FOR = 7 * 86400.0  # seconds after which a server is probed again: it may have been upgraded
# Pause between two commits: one commit for each answer would cost more than everything else.
TOGETHER = 0.003  # seconds, when at least ENOUGH writes wait
LATEST = 0.01  # seconds, when fewer wait
ENOUGH = 8  # answers; those that a kill loses are paid for again
DAMAGED = (sqlite3.Error, UnicodeDecodeError)  # raised by a damaged file; SQLite's own message may be no text
UNREADABLE = (ValueError, KeyError, TypeError, RecursionError, zlib.error)  # raised by a damaged call
LARGEST = 2**26  # bytes of a stored JSON, which a few bytes can unpack to; what comes over a wire is far smaller
LEVEL = 1  # of the compression: the fastest, since texts are short

_TABLES = """
CREATE TABLE IF NOT EXISTS calls (
    id                INTEGER PRIMARY KEY,  -- in the order of arrival
    key               TEXT NOT NULL UNIQUE,
    model             TEXT NOT NULL,        -- identity of the model that answered
    run               TEXT NOT NULL,        -- the run that paid for it
    created           REAL NOT NULL,        -- seconds since 1970
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    request           BLOB NOT NULL,        -- zlib of JSON: what was asked, for people, since the key tells calls apart
    answer            BLOB NOT NULL         -- zlib of JSON: text, finish reason, usage, log-probabilities
);
CREATE TABLE IF NOT EXISTS failures (
    key     TEXT PRIMARY KEY,
    model   TEXT NOT NULL,
    run     TEXT NOT NULL,
    created REAL NOT NULL,
    cause   TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS wasted (        -- what was paid for answers of no use, or of answers that were lost, at most
    id                INTEGER PRIMARY KEY,
    model             TEXT NOT NULL,
    run               TEXT NOT NULL,
    created           REAL NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS servers (
    server  TEXT PRIMARY KEY,               -- its address
    learnt  TEXT NOT NULL,                  -- JSON: what it was found to honour
    created REAL NOT NULL
);
"""
_TOKENS = "CAST(total(max(0, CAST({0} AS INTEGER))) AS INTEGER)"  # a sum that no content of a column can upset
_SPENT = f"{_TOKENS.format('prompt_tokens')}, {_TOKENS.format('completion_tokens')}"
_WASTE = "INSERT INTO wasted (model, run, created, prompt_tokens, completion_tokens) "
_RESTORE = "restore it from a copy, save what can be read with sqlite3's `.recover`, or move it away and pay again"
_CHECK = "check the disk and the file's permissions"
_FREE = "free some disk space, then run the same command again: what is stored is kept"
_REASONS = {
    sqlite3.SQLITE_FULL: ("the disk is full", _FREE),
    sqlite3.SQLITE_IOERR_WRITE: ("the disk takes no more", _FREE),
    sqlite3.SQLITE_IOERR_SHMSIZE: ("the disk takes no more", _FREE),
    sqlite3.SQLITE_IOERR: ("the disk cannot be read or written", _CHECK),
    sqlite3.SQLITE_BUSY: ("another process holds it", "wait for it, then run the same command again"),
    sqlite3.SQLITE_READONLY: ("the file or its folder is readonly", _CHECK),
    sqlite3.SQLITE_CANTOPEN: ("the file cannot be opened", _CHECK),
    sqlite3.SQLITE_PERM: ("the file cannot be opened", _CHECK),
}
_INSERT = "INSERT OR IGNORE INTO calls (key, model, run, created, prompt_tokens, completion_tokens, request, answer) "


class _Tokens(TypedDict, total=False):
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0)] | None
    completion_tokens: Annotated[int, msgspec.Meta(ge=0)] | None


class _Answer(TypedDict, total=False):
    """What an answer may hold: another shape is damage, and the call is sent again."""

    text: Required[str]
    finish_reason: FinishReason | None
    usage: _Tokens | None
    token_logprobs: list[float] | None
    alternatives: dict[str, float | None] | None
    thinking: str | None
    masked: bool | None  # whether a key in it was masked


_ANSWERS, _OBJECTS = msgspec.json.Decoder(_Answer), msgspec.json.Decoder(dict[str, Any])

Answers = dict[str, dict[str, Any]]  # by key


class Call(NamedTuple):
    """A call that was paid for."""

    key: str
    model: str  # identity
    request: Mapping[str, Any]
    answer: Mapping[str, Any]


class Wasted(NamedTuple):
    """Tokens that were paid for, or may have been, without a usable answer."""

    model: str  # identity
    prompt_tokens: int
    completion_tokens: int


class Failure(NamedTuple):
    """A call that failed permanently, as recorded, so that it is not sent again."""

    key: str
    model: str  # identity
    cause: str
    message: str


class Holding(NamedTuple):
    """The calls that one run paid one model for."""

    run: str
    model: str  # identity
    calls: int
    prompt_tokens: int
    completion_tokens: int
    size: int  # bytes
    first: float  # seconds since 1970
    last: float


def call_keys(
    identity: str,
    messages: Sequence[Message],
    sampling: Sampling,
    *,
    indices: Iterable[int],
    attempt: int = 0,
    json_schema: Mapping[str, Any] | None = None,
) -> list[str]:
    """The keys of several samples of one request (DESIGN section 5.1).

    Each is the digest of everything that determines the call's answer, and of nothing else: of JSON in canonical form,
    put together from its parts.
    """
    turns = ",".join(f"[{encode_basestring(m.role)},{encode_basestring(m.content)}]" for m in messages)
    schema = "null"
    if json_schema is not None:
        # As text: engines write the properties in the schema's order, and a digest sorts a mapping's keys.
        schema = encode_basestring(json.dumps(json_schema, ensure_ascii=False, allow_nan=False))
    rest = (
        f'"messages":[{turns}],"model":{encode_basestring(identity)},"sampling":{_sampling(sampling)},"schema":{schema}'
    )
    return [digest_text(f'{{"attempt":{attempt},"index":{index},{rest},"v":{KEY_VERSION}}}') for index in indices]


@lru_cache(maxsize=256)
def _sampling(sampling: Sampling) -> str:
    return canonical(sampling.model_dump(mode="json"))


class _Batch(NamedTuple):
    """What one caller wants written, and the future that is resolved after the commit."""

    rows: list[tuple[Any, ...]]
    failures: list[tuple[Any, ...]]
    wasted: list[tuple[Any, ...]]
    given: Answers
    done: asyncio.Future[Answers]


class CallStore:
    """`get` and `put` of answers by key. Use one instance per process; close it at the end.

    `read_only` opens a store as it is and writes no file; a missing file reads as an empty store. `run` is the name of
    the run, which is stored with each call.
    """

    def __init__(self, path: Path, *, read_only: bool = False, run: str = "") -> None:
        self.path, self.run = path, run
        self._waiting: list[_Batch] = []
        self._timer: asyncio.TimerHandle | None = None
        self._busy, self._last_write = False, 0.0
        self._damaged: set[str] = set()
        self._writer = ThreadPoolExecutor(1, "call store")
        # Each connection has a lock, since several threads use it. Reads have their own connection where possible, so
        # that the event loop does not wait for a commit to reach the disk.
        self._lock = self._read_lock = threading.Lock()
        try:
            if str(path) == ":memory:" or (read_only and not (path.exists() and path.stat().st_size)):
                self._db = self._reads = _connected(":memory:")
                self._create()
            elif (problem := _no_store(path)) is not None:
                raise self._damage(problem)
            elif read_only:
                # Without a log file no process is writing: `immutable` then keeps SQLite from making one.
                still = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
                self._db = self._reads = _connected(f"{path.resolve().as_uri()}?mode=ro{still}")
                self._check_format()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._db = _connected(path)
                self._db.execute("PRAGMA synchronous=FULL")
                if self._is_new():
                    self._create()
                    self._db.execute("PRAGMA journal_mode=WAL")
                elif self._format() == 2:
                    self._check_objects()
                    _migrate(self._db)
                self._check_format()
                self._reads, self._read_lock = _connected(f"{path.resolve().as_uri()}?mode=ro"), threading.Lock()
            self._any_failures = bool(self._reads.execute("SELECT EXISTS (SELECT 1 FROM failures)").fetchone()[0])
            self._last: int = self._reads.execute("SELECT coalesce(max(id), 0) FROM calls").fetchone()[0]
            # A bit for each call, in blocks: a set of keys would grow with the run, one block with a damaged number.
            self._told: defaultdict[int, bytearray] = defaultdict(partial(bytearray, 1 << 13))
            self._id = int(self._db.execute("PRAGMA application_id").fetchone()[0])
        except (*DAMAGED, OSError) as error:
            raise self._error(error) from None

    def _create(self) -> None:
        """Make the tables, unless another process did it first.

        The store gets an id, which `_commit` writes with each commit, so that the log of another store is noticed.
        """
        self._db.execute("BEGIN EXCLUSIVE")
        if self._is_new():
            self._db.execute(f"PRAGMA application_id={1 + secrets.randbelow(2**31 - 1)}")
            for statement in _TABLES.split(";")[:-1]:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={FORMAT}")
        self._db.execute("COMMIT")

    def _format(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _is_new(self) -> bool:
        return self._format() == 0 and not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]

    def _check_format(self) -> None:
        version = self._format()
        if version == FORMAT:
            self._check_objects()
            for table, columns in _columns().items():
                found = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
                if missing := columns - found:
                    raise self._damage(f"its table {table!r} lacks {', '.join(sorted(missing))}")
            return
        self._db.close()
        fix = "use the version of rlaif that wrote it, or move the file away to start a new one"
        if version == 2:
            fix = "`rlaif run` brings it to the new format"
        raise StoreError(
            f"the call store has format {version}, this version of rlaif reads format {FORMAT}",
            file=str(self.path),
            fix=fix,
        )

    def _check_objects(self) -> None:
        """Raise StoreError for a trigger, a view or a virtual table, which run what somebody else wrote."""
        for kind, name, sql in self._db.execute("SELECT type, CAST(name AS BLOB), sql FROM sqlite_master"):
            if kind not in ("table", "index") or (sql or "").upper().startswith("CREATE VIRTUAL"):
                what = kind if kind in ("trigger", "view") else "virtual table"
                raise self._damage(f"it holds a {what}, {_text(name)!r}, which is not of this program")

    def _damage(self, problem: str) -> StoreError:
        return StoreError(f"the call store cannot be used: {problem}", file=str(self.path), fix=_RESTORE)

    def _error(self, error: Exception) -> StoreError:
        """The error in this program's words: SQLite's say nothing to most people."""
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(error, OSError):
            problem, fix = why(error), _CHECK
        elif code in _REASONS or (code is not None and (code := code & 0xFF) in _REASONS):
            problem, fix = _REASONS[code]
        else:
            problem, fix = "the file is malformed", _RESTORE
        return StoreError(f"the call store cannot be used: {problem}", file=str(self.path), fix=fix)

    # ------------------------------------------------------------ reading

    def get(self, keys: Iterable[str]) -> Answers:
        """The stored answers, by key."""
        answers = {}
        for key, packed in self._by_key("calls", "answer", keys).items():
            with suppress(*UNREADABLE):
                answers[key] = _answer(packed)
        return answers

    def find(self, keys: Iterable[str]) -> dict[str, tuple[dict[str, Any], bool]]:
        """As `get`, each answer with whether an earlier run paid for it and this is the first time it is returned."""
        rows = self._rows("calls", "key, answer, id", keys)
        answers = {}
        for key, answer, number in rows:
            try:
                answers[key] = (_answer(answer), self._untold(number))
            except UNREADABLE:  # treated as missing: the call is sent again and the new answer replaces it
                self._damaged.add(key)
        return answers

    def _untold(self, number: int) -> bool:
        if number > self._last:  # paid for since this store was opened
            return False
        block, byte, bit = self._told[number >> 16], number >> 3 & 0x1FFF, 1 << (number & 7)
        untold = not block[byte] & bit
        block[byte] |= bit
        return untold

    def request(self, key: str) -> dict[str, Any] | None:
        """The request: the model's name in the pipeline, messages, sampling, schema, index and attempt."""
        packed = self._by_key("calls", "request", [key]).get(key)
        with suppress(*UNREADABLE):
            return None if packed is None else _read(packed)
        return None

    def failures(self, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Cause and message, by key, of the calls that failed permanently; empty if the store held none when opened."""
        if not self._any_failures:
            return {}
        causes = self._rows("failures", "key, CAST(cause AS BLOB), CAST(message AS BLOB)", keys)
        return {key: (_text(cause), _text(message)) for key, cause, message in causes}

    def knows(self, model: str) -> bool:
        """Whether any call of the model with this identity was paid for."""
        query = "SELECT EXISTS (SELECT 1 FROM calls WHERE model = ?)"
        with self._reading():
            return bool(self._reads.execute(query, [model]).fetchone()[0])

    def spent(self, run: str) -> dict[str, tuple[int, int]]:
        """Tokens that a run paid for, by the identity of the model, including the wasted ones."""
        columns = "SELECT CAST(model AS BLOB) AS model, prompt_tokens, completion_tokens FROM"
        query = f"""SELECT model, {_SPENT}
                    FROM ({columns} calls WHERE run = ?1 UNION ALL {columns} wasted WHERE run = ?1) GROUP BY model"""
        with self._reading():
            return {_text(model): (read, written) for model, read, written in self._reads.execute(query, [run])}

    def learnt(self, server: str) -> dict[str, Any] | None:
        """The recorded capabilities of a server, where they are not older than LEARNT_FOR."""
        since = time.time() - LEARNT_FOR
        with self._reading():
            row = self._reads.execute(
                "SELECT learnt FROM servers WHERE server = ? AND created > ?", [server, since]
            ).fetchone()
        with suppress(*UNREADABLE):
            learnt = None if row is None else dict(json.loads(row[0]))
            if learnt is not None and all(value is None or isinstance(value, bool) for value in learnt.values()):
                return learnt
        return None  # or damaged: the server is asked again

    def _by_key(self, table: str, column: str, keys: Iterable[str]) -> dict[str, Any]:
        return dict(self._rows(table, f"key, {column}", keys))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._read_lock:
            try:
                yield
            except DAMAGED as error:
                raise self._error(error) from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except DAMAGED as error:
                raise self._error(error) from None

    def _rows(self, table: str, columns: str, keys: Iterable[str]) -> list[tuple[Any, ...]]:
        wanted = list(dict.fromkeys(keys))
        rows: list[tuple[Any, ...]] = []
        with self._reading():
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                rows += self._reads.execute(f"SELECT {columns} FROM {table} WHERE key IN ({marks})", part)
        return rows

    # ------------------------------------------------------------ writing

    def put(
        self, calls: Sequence[Call], failures: Sequence[Failure] = (), wasted: Sequence[Wasted] = ()
    ) -> asyncio.Future[Answers]:
        """Store calls in one commit. The future gives, once they are on disk, the answers stored under their keys.

        The first answer to a key stays, so a second process that paid for the same call must use the answer it gets
        here. Everything that was put is written, whether or not the future is awaited. The future raises StoreError.
        """
        loop, now = asyncio.get_running_loop(), time.time()
        # Packed here and not in the writer's thread: two threads that compress would compete for the interpreter lock.
        rows = [
            (call.key, call.model, self.run, now, *_tokens(call.answer), _packed(call.request), _packed(call.answer))
            for call in calls
        ]
        lost = [(failed.key, failed.model, self.run, now, failed.cause, _plain(failed.message)) for failed in failures]
        spent = [(one.model, self.run, now, one.prompt_tokens, one.completion_tokens) for one in wasted]
        batch = _Batch(rows, lost, spent, {call.key: dict(call.answer) for call in calls}, loop.create_future())
        if not rows and not lost and not spent:
            batch.done.set_result({})
            return batch.done
        self._waiting.append(batch)
        if len(self._waiting) in (1, ENOUGH):
            self._schedule(loop)
        return batch.done

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Schedule the next commit, unless one is in progress."""
        if self._busy or not self._waiting:
            return
        if self._timer is not None:
            self._timer.cancel()
        pause = TOGETHER if len(self._waiting) >= ENOUGH else LATEST
        self._timer = loop.call_later(max(0.0, self._last_write + pause - time.monotonic()), self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give all waiting writes to the writer's thread, as one commit."""
        batches, self._waiting = self._waiting, []
        self._busy, self._timer, self._last_write = True, None, time.monotonic()
        writing = loop.run_in_executor(self._writer, self._commit, batches)
        writing.add_done_callback(lambda done: self._written(loop, batches, done))

    def _written(
        self, loop: asyncio.AbstractEventLoop, batches: Sequence[_Batch], done: asyncio.Future[list[Answers]]
    ) -> None:
        self._busy = False
        self._schedule(loop)
        error = done.exception()
        for batch, answers in zip(batches, [{}] * len(batches) if error else done.result(), strict=True):
            if batch.done.done():  # the caller was cancelled
                continue
            if isinstance(error, DAMAGED):
                batch.done.set_exception(self._error(error))
            elif error is not None:
                batch.done.set_exception(error)
            else:
                batch.done.set_result(answers)

    def learn(self, server: str, learnt: Mapping[str, Any]) -> None:
        """Record the capabilities of a server. Raises StoreError."""
        with self._writing():
            row = [server, json.dumps(learnt), time.time()]
            self._db.execute("INSERT OR REPLACE INTO servers VALUES (?, ?, ?)", row)

    def forget_failures(self, keys: Iterable[str]) -> None:
        """Let failed calls be sent again. Raises StoreError."""
        with self._writing():
            self._db.executemany("DELETE FROM failures WHERE key = ?", [(key,) for key in keys])

    def _commit(self, batches: Sequence[_Batch]) -> list[Answers]:
        rows = [row for batch in batches for row in batch.rows]
        failures = [row for batch in batches for row in batch.failures]
        wasted = [row for batch in batches for row in batch.wasted]
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if self._id:  # it writes the file's first page, also with the same value
                    self._db.execute(f"PRAGMA application_id={self._id}")
                for key in (row[0] for row in rows if row[0] in self._damaged):
                    self._forget("key = ?", [key])
                before = self._db.total_changes
                for part in _parts(rows):
                    marks = ",".join(["(?,?,?,?,?,?,?,?)"] * len(part))
                    self._db.execute(f"{_INSERT} VALUES {marks}", list(chain.from_iterable(part)))
                all_new = self._db.total_changes - before == len(rows)
                if failures:
                    self._db.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?)", failures)
                if wasted:
                    self._db.executemany(f"{_WASTE} VALUES (?, ?, ?, ?, ?)", wasted)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        answers = [batch.given if all_new else self.get(batch.given) for batch in batches]
        if any(stored.keys() != batch.given.keys() for stored, batch in zip(answers, batches, strict=True)):
            raise sqlite3.DatabaseError("a call that was written cannot be read")
        return answers

    def _forget(self, condition: str, values: Sequence[Any]) -> int:
        """Remove calls, of which the tokens stay: what was spent is spent. Returns how many."""
        spent = f"SELECT model, run, max(created), {_SPENT} FROM calls WHERE {condition} GROUP BY model, run"
        self._db.execute(_WASTE + spent, values)
        return self._db.execute(f"DELETE FROM calls WHERE {condition}", values).rowcount

    # ------------------------------------------------------------ maintenance

    def holdings(self) -> list[Holding]:
        """What is in the store, by run and model, the newest last."""
        size = "CAST(total(length(request) + length(answer)) AS INTEGER)"
        query = f"""SELECT CAST(run AS BLOB), CAST(model AS BLOB), count(*), {_SPENT}, {size},
                           min(CAST(created AS REAL)), max(CAST(created AS REAL))
                    FROM calls GROUP BY run, model ORDER BY max(created)"""
        with self._reading():
            return [Holding(_text(run), _text(model), *row) for run, model, *row in self._reads.execute(query)]

    def prune(self, *, before: float | None = None, run: str | None = None) -> int:
        """Remove the calls made before a time (seconds since 1970), or by a run, or both; returns how many.

        A run's budget still counts them. Raises StoreError.
        """
        where, values = ["1"], list[Any]()
        if before is not None:
            where.append("created < ?")
            values.append(before)
        if run is not None:
            where.append("run = ?")
            values.append(run)
        condition = " AND ".join(where)
        with self._writing():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                removed = self._forget(condition, values)
                self._db.execute(f"DELETE FROM failures WHERE {condition}", values)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("VACUUM")
        return removed

    def verify(self) -> list[str]:
        """The keys of calls that cannot be read or used. Raises StoreError where the file itself is damaged."""
        damaged = []
        with self._reading():
            if (problem := self._reads.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(str(problem).splitlines()[0])
            for key, request, answer in self._reads.execute("SELECT CAST(key AS BLOB), request, answer FROM calls"):
                try:
                    _read(request)
                    _answer(answer)
                except UNREADABLE:
                    damaged.append(_text(key))
        return damaged

    def __len__(self) -> int:
        with self._read_lock:
            return int(self._reads.execute("SELECT count(*) FROM calls").fetchone()[0])

    def close(self) -> None:
        """Write what waits, then close. A second call does nothing. Raises StoreError where the last writes fail."""
        self._writer.shutdown()
        batches, self._waiting = self._waiting, []
        if batches:  # their event loop ended before they were written
            try:
                self._commit(batches)
            except DAMAGED as error:
                raise self._error(error) from None
        with self._read_lock:
            self._reads.close()
        with self._lock:  # the writer last: only it can remove the log file
            self._db.close()


def _parts(rows: list[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Parts whose sizes are powers of two, so that SQLite compiles few statements and each releases the lock once."""
    start, size = 0, 64
    while start < len(rows):
        while size > len(rows) - start:
            size //= 2
        yield rows[start : start + size]
        start += size


def _connected(database: Path | str) -> sqlite3.Connection:
    """A connection in autocommit mode, to a path or a URI."""
    db = sqlite3.connect(
        database, uri=isinstance(database, str), timeout=BUSY, check_same_thread=False, isolation_level=None
    )
    db.execute("PRAGMA trusted_schema=OFF")  # what a file's schema calls is not run with side effects
    return db


@lru_cache(maxsize=1)
def _columns() -> dict[str, set[str]]:
    """The columns of each table."""
    db = sqlite3.connect(":memory:")
    db.executescript(_TABLES)
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = {table: {row[1] for row in db.execute(f"PRAGMA table_info({table})")} for table in tables}
    db.close()
    return columns


def _no_store(path: Path) -> str | None:
    """Why the file is no store, before SQLite opens it; None for a store, or where there is no file yet."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "it is not a regular file"
    except FileNotFoundError:
        return None
    with open(path, "rb") as file:
        own = file.read(100)[_ID]
    log = path.with_name(f"{path.name}-wal")
    if own and log.is_file() and _id_in_log(log) not in (None, own):
        return f"the log {log.name!r} beside it is another store's (move the log away)"
    return None


_ID = slice(68, 72)  # where the first page of a file holds the id


def _id_in_log(log: Path) -> bytes | None:
    """The id of the store that wrote the log, from its first copy of the store's first page; None where it has none."""
    with open(log, "rb") as file:
        head = file.read(32)
        page = int.from_bytes(head[8:12], "big")
        if len(head) < 32 or not 512 <= page <= 65536:
            return None
        for start in range(32, log.stat().st_size, 24 + page):
            file.seek(start)
            frame = file.read(24 + 100)
            if len(frame) < 24 + 100 or frame[8:16] != head[16:24]:  # from before the log was begun anew
                return None
            if int.from_bytes(frame[:4], "big") == 1:
                return frame[24:][_ID]
    return None


def _migrate(db: sqlite3.Connection) -> None:
    """Bring format 2 to format 3: the same calls and keys, uncompressed and without the run."""
    db.execute("BEGIN IMMEDIATE")
    try:
        if int(db.execute("PRAGMA user_version").fetchone()[0]) != 2:  # another process did it first
            db.execute("ROLLBACK")
            return
        db.execute("ALTER TABLE calls RENAME TO old_calls")
        for statement in _TABLES.split(";")[:-1]:
            db.execute(statement)
        for key, model, request, answer, created in db.execute(
            "SELECT key, model, request, answer, created FROM old_calls ORDER BY created"
        ):
            try:
                tokens = _tokens(dict(json.loads(answer)))
            except UNREADABLE:  # treated as missing: the call is sent again
                continue
            row = (key, model, "", created, *tokens, _pack(request), _pack(answer))
            db.execute(f"{_INSERT} VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("DROP TABLE old_calls")
        db.execute(f"PRAGMA user_version={FORMAT}")
        db.execute("COMMIT")
        db.execute("VACUUM")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _tokens(answer: Mapping[str, Any]) -> tuple[int, int]:
    usage = answer.get("usage") or {}
    return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)


def _packed(value: Mapping[str, Any]) -> bytes:
    """Compressed JSON. Keys keep their order, because the order of a schema's properties matters."""
    try:
        return zlib.compress(msgspec.json.encode(value), LEVEL)
    except UnicodeEncodeError:  # a prompt may hold half a surrogate pair
        return _pack(json.dumps(value, ensure_ascii=False))


def _pack(text: str) -> bytes:
    return zlib.compress(text.encode("utf-8", "replace"), LEVEL)


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _read(packed: bytes) -> dict[str, Any]:
    return _OBJECTS.decode(_unpacked(packed))


def _answer(packed: bytes) -> dict[str, Any]:
    """An answer. Raises ValueError for one with a log-probability that no probability has, which is asked again."""
    answer = cast("dict[str, Any]", _ANSWERS.decode(_unpacked(packed)))
    logprobs = (*(answer.get("token_logprobs") or ()), *(answer.get("alternatives") or {}).values())
    if problem := next(filter(None, (logprob_problem(value) for value in logprobs if value is not None)), None):
        raise ValueError(problem)
    return answer


def _unpacked(packed: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(packed, LARGEST)
    if not unpacking.eof:
        raise ValueError("it is cut, or unpacks to too much")
    return text


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
