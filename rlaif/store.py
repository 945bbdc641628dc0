"""The call store: every call that was paid for, under the digest of exactly what determines its answer.

One SQLite file in WAL mode, shared by the runs of a project folder and safe under several processes. A call is durable
(committed and synced) before anything uses it. Writes that arrive together share one commit, in a separate thread, so
that only the callers of these writes wait for the disk. Fields that people query in SQL are columns; the request and
the answer are compressed JSON. The store knows nothing of models or stages.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from rlaif.errors import StoreError
from rlaif.records import Message, Sampling, canonical, digest_text, logprob_problem

FORMAT = 3  # of this file; format 2 is migrated, any other format is refused
KEY_VERSION = 1  # of the key's meaning; raising it makes every stored call unreachable
BUSY = 60.0  # seconds to wait for another process's commit
LEARNT_FOR = 7 * 86400.0  # seconds after which a server is probed again: it may have been upgraded
# Pause between two commits: one commit for each answer would cost more than everything else.
TOGETHER = 0.003  # seconds, when at least ENOUGH writes wait
LATEST = 0.01  # seconds, when fewer wait
ENOUGH = 8  # answers; those that a kill loses are paid for again
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, zlib.error)  # raised by a damaged call
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
_SCHEMA = f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={FORMAT};COMMIT;"
_INSERT = "INSERT OR IGNORE INTO calls (key, model, run, created, prompt_tokens, completion_tokens, request, answer) "


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
                self._db.executescript(_SCHEMA)
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
                    self._db.execute("PRAGMA journal_mode=WAL")
                    self._db.executescript(_SCHEMA)
                elif self._format() == 2:
                    _migrate(self._db)
                self._check_format()
                self._reads, self._read_lock = _connected(f"{path.resolve().as_uri()}?mode=ro"), threading.Lock()
            self._any_failures = bool(self._reads.execute("SELECT EXISTS (SELECT 1 FROM failures)").fetchone()[0])
            self._last: int = self._reads.execute("SELECT coalesce(max(id), 0) FROM calls").fetchone()[0]
            self._told = bytearray((self._last >> 3) + 1)  # a bit for each call: a set of keys would grow with the run
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from None

    def _format(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _is_new(self) -> bool:
        return self._format() == 0 and not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]

    def _check_format(self) -> None:
        version = self._format()
        if version == FORMAT:
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

    def _error(self, error: Exception) -> StoreError:
        fix = "check the disk and the file's permissions"
        if "full" in str(error):
            fix = "free some disk space, then run the same command again: what is stored is kept"
        elif "malformed" in str(error) or "not a database" in str(error):
            fix = (
                "restore it from a copy, save what can be read with sqlite3's `.recover`, or move it away and pay again"
            )
        return StoreError(f"the call store cannot be used: {error}", file=str(self.path), fix=fix)

    # ------------------------------------------------------------ reading

    def get(self, keys: Iterable[str]) -> Answers:
        """The stored answers, by key."""
        answers = {}
        for key, packed in self._by_key("calls", "answer", keys).items():
            with suppress(*UNREADABLE):
                answers[key] = _usable(packed)
        return answers

    def find(self, keys: Iterable[str]) -> dict[str, tuple[dict[str, Any], bool]]:
        """As `get`, each answer with whether an earlier run paid for it and this is the first time it is returned."""
        rows = self._rows("calls", "key, answer, id", keys)
        answers = {}
        for key, answer, number in rows:
            try:
                answers[key] = (_usable(answer), self._untold(number))
            except UNREADABLE:  # treated as missing: the call is sent again and the new answer replaces it
                self._damaged.add(key)
        return answers

    def _untold(self, number: int) -> bool:
        if number > self._last:  # paid for since this store was opened
            return False
        byte, bit = number >> 3, 1 << (number & 7)
        untold = not self._told[byte] & bit
        self._told[byte] |= bit
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
        causes = self._by_key("failures", "cause || char(10) || message", keys)
        return {key: tuple(text.split("\n", 1)) for key, text in causes.items()}

    def knows(self, model: str) -> bool:
        """Whether any call of the model with this identity was paid for."""
        query = "SELECT EXISTS (SELECT 1 FROM calls WHERE model = ?)"
        with self._reading():
            return bool(self._reads.execute(query, [model]).fetchone()[0])

    def spent(self, run: str) -> dict[str, tuple[int, int]]:
        """Tokens that a run paid for, by the identity of the model, including the wasted ones."""
        columns = "SELECT model, prompt_tokens, completion_tokens FROM"
        query = f"""SELECT model, sum(prompt_tokens), sum(completion_tokens)
                    FROM ({columns} calls WHERE run = ?1 UNION ALL {columns} wasted WHERE run = ?1) GROUP BY model"""
        with self._reading():
            return {model: (read, written) for model, read, written in self._reads.execute(query, [run])}

    def learnt(self, server: str) -> dict[str, Any] | None:
        """The recorded capabilities of a server, where they are not older than LEARNT_FOR."""
        since = time.time() - LEARNT_FOR
        with self._reading():
            row = self._reads.execute(
                "SELECT learnt FROM servers WHERE server = ? AND created > ?", [server, since]
            ).fetchone()
        with suppress(*UNREADABLE):
            return None if row is None else dict(json.loads(row[0]))
        return None

    def _by_key(self, table: str, column: str, keys: Iterable[str]) -> dict[str, Any]:
        return dict(self._rows(table, f"key, {column}", keys))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._read_lock:
            try:
                yield
            except sqlite3.Error as error:
                raise self._error(error) from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
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
            if isinstance(error, sqlite3.Error):
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
                if replaced := [(row[0],) for row in rows if row[0] in self._damaged]:
                    self._db.executemany("DELETE FROM calls WHERE key = ?", replaced)
                before = self._db.total_changes
                for part in _parts(rows):
                    marks = ",".join(["(?,?,?,?,?,?,?,?)"] * len(part))
                    self._db.execute(f"{_INSERT} VALUES {marks}", list(chain.from_iterable(part)))
                all_new = self._db.total_changes - before == len(rows)
                if failures:
                    self._db.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?)", failures)
                if wasted:
                    columns = "model, run, created, prompt_tokens, completion_tokens"
                    self._db.executemany(f"INSERT INTO wasted ({columns}) VALUES (?, ?, ?, ?, ?)", wasted)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        return [batch.given if all_new else self.get(batch.given) for batch in batches]

    # ------------------------------------------------------------ maintenance

    def holdings(self) -> list[Holding]:
        """What is in the store, by run and model, the newest last."""
        query = """SELECT run, model, count(*), sum(prompt_tokens), sum(completion_tokens),
                          sum(length(request) + length(answer)), min(created), max(created)
                   FROM calls GROUP BY run, model ORDER BY max(created)"""
        with self._reading():
            return [Holding(*row) for row in self._reads.execute(query)]

    def prune(self, *, before: float | None = None, run: str | None = None) -> int:
        """Remove the calls made before a time (seconds since 1970), or by a run, or both; returns how many.

        Raises StoreError.
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
            removed = self._db.execute(f"DELETE FROM calls WHERE {condition}", values).rowcount
            self._db.execute(f"DELETE FROM failures WHERE {condition}", values)
            self._db.execute("COMMIT")
            self._db.execute("VACUUM")
        return removed

    def verify(self) -> list[str]:
        """The keys of calls that cannot be read or used. Raises StoreError where the file itself is damaged."""
        damaged = []
        with self._reading():
            if (problem := self._reads.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(str(problem).splitlines()[0])
            for key, request, answer in self._reads.execute("SELECT key, request, answer FROM calls"):
                try:
                    _read(request)
                    if not isinstance(_usable(answer)["text"], str):
                        damaged.append(key)
                except UNREADABLE:
                    damaged.append(key)
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
            except sqlite3.Error as error:
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
    return sqlite3.connect(
        database, uri=isinstance(database, str), timeout=BUSY, check_same_thread=False, isolation_level=None
    )


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
    return dict(msgspec.json.decode(zlib.decompress(packed)))


def _usable(packed: bytes) -> dict[str, Any]:
    """An answer. Raises ValueError for one with a log-probability that no probability has, which is asked again."""
    answer = _read(packed)
    logprobs = (*(answer.get("token_logprobs") or ()), *(answer.get("alternatives") or {}).values())
    if problem := next(filter(None, (logprob_problem(value) for value in logprobs if value is not None)), None):
        raise ValueError(problem)
    return answer
