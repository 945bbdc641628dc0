"""The call store: every call that was paid for, under the digest of exactly what determines its answer.

One SQLite file in WAL mode, shared by the runs of a project folder and safe under several processes. A call is durable
(committed and synced) before anything uses it; writes that arrive together share one commit. The store knows nothing of
models or stages: it keeps JSON under keys.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.errors import StoreError
from rlaif.records import Message, Sampling, digest

FORMAT = 2  # of this file; a store of another format is refused with a sentence, never guessed at
KEY_VERSION = 1  # of the key's meaning; raising it makes every stored call unreachable, so it has to be worth that

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS calls (
    key     TEXT PRIMARY KEY,
    model   TEXT NOT NULL,       -- identity of the model that answered
    request TEXT NOT NULL,       -- JSON: what was asked; for people, since the key already tells calls apart
    answer  TEXT NOT NULL,       -- JSON: text, finish reason, usage, log-probabilities
    created REAL NOT NULL        -- seconds since 1970
) WITHOUT ROWID;
PRAGMA user_version={FORMAT};
COMMIT;
"""


class Call(NamedTuple):
    """A call that was paid for."""

    key: str
    model: str  # identity
    request: Mapping[str, Any]
    answer: Mapping[str, Any]


def call_key(
    identity: str,
    messages: Sequence[Message],
    sampling: Sampling,
    *,
    index: int,
    attempt: int = 0,
    json_schema: Mapping[str, Any] | None = None,
) -> str:
    """The digest of everything that determines a call's answer, and of nothing else (DESIGN section 5.1)."""
    return digest(
        {
            "v": KEY_VERSION,
            "model": identity,
            "messages": [[m.role, m.content] for m in messages],
            "sampling": sampling.model_dump(mode="json"),
            # As text: engines write the properties in the schema's order, and a digest sorts a mapping's keys.
            "schema": None if json_schema is None else json.dumps(json_schema, ensure_ascii=False, allow_nan=False),
            "index": index,
            "attempt": attempt,
        }
    )


class CallStore:
    """`get` and `put` of answers by key. Use one instance per process; close it at the end.

    `read_only` opens a store as it is and writes nothing, not even beside it; a missing file reads as an empty store.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._waiting: list[Call] = []
        self._running: asyncio.Future[None] | None = None  # the commit under way
        self._next: asyncio.Future[None] | None = None  # the commit that gathers what arrives meanwhile
        # Each connection has its lock, since it is used from several threads. Reads have their own where they can, so
        # that the event loop does not wait for a commit to reach the disk.
        self._lock = self._read_lock = threading.Lock()
        try:
            if str(path) == ":memory:" or (read_only and not (path.exists() and path.stat().st_size)):
                self._db = self._reads = _connected(":memory:")
                self._db.executescript(_SCHEMA)
            elif read_only:
                # Without a log beside it nobody is writing: `immutable` then keeps SQLite from making one.
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
                self._check_format()
                self._reads, self._read_lock = _connected(f"{path.resolve().as_uri()}?mode=ro"), threading.Lock()
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from None

    def _format(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _is_new(self) -> bool:
        return self._format() == 0 and not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]

    def _check_format(self) -> None:
        if (found := self._format()) != FORMAT:
            self._db.close()
            raise StoreError(
                f"the call store has format {found}, this version of rlaif reads format {FORMAT}",
                file=str(self.path),
                fix="use the version of rlaif that wrote it, or move the file away to start a new one",
            )

    def _error(self, error: Exception) -> StoreError:
        return StoreError(
            f"the call store cannot be used: {error}",
            file=str(self.path),
            fix="check the disk and the file's permissions",
        )

    def get(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The answers that are stored, by key."""
        return self._found("answer", keys)

    def request(self, key: str) -> dict[str, Any] | None:
        """What was asked: the model's name in the pipeline, messages, sampling, schema, index and attempt."""
        return self._found("request", [key]).get(key)

    def _found(self, column: str, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        wanted = list(dict.fromkeys(keys))
        found: dict[str, str] = {}
        try:
            with self._read_lock:
                for start in range(0, len(wanted), 500):
                    part = wanted[start : start + 500]
                    marks = ",".join("?" * len(part))
                    found.update(
                        self._reads.execute(f"SELECT key, {column} FROM calls WHERE key IN ({marks})", part).fetchall()
                    )
            return {key: json.loads(text) for key, text in found.items()}
        except (sqlite3.Error, ValueError) as error:
            raise self._error(error) from None

    async def put(self, calls: Sequence[Call]) -> dict[str, dict[str, Any]]:
        """Store calls together; returns, once they are on disk, the answers that are stored under their keys.

        The first answer to a key stays, so a second process that paid for the same call must use what it gets here.
        """
        if not calls:
            return {}
        self._waiting.extend(calls)
        if self._next is None:
            self._next = asyncio.ensure_future(self._commit_after(self._running))
        await asyncio.shield(self._next)
        return self.get(call.key for call in calls)

    async def _commit_after(self, running: asyncio.Future[None] | None) -> None:
        """Let the commit under way end, then write all that has gathered meanwhile in one."""
        if running is not None and not running.done():
            await asyncio.wait([running])
        batch, self._waiting = self._waiting, []
        self._running, self._next = self._next, None
        await asyncio.to_thread(self._write, batch)

    def _write(self, batch: list[Call]) -> None:
        now = time.time()
        rows = [(call.key, call.model, _json(call.request), _json(call.answer), now) for call in batch]
        try:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._db.executemany("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?)", rows)
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._error(error) from None

    def __len__(self) -> int:
        with self._read_lock:
            return int(self._reads.execute("SELECT count(*) FROM calls").fetchone()[0])

    def close(self) -> None:
        with self._read_lock:
            self._reads.close()
        with self._lock:  # the writer last: it is the one that can put the log away
            self._db.close()


def _connected(place: Path | str) -> sqlite3.Connection:
    """A connection in autocommit, to a path or to what a URI names."""
    return sqlite3.connect(place, uri=isinstance(place, str), timeout=60, check_same_thread=False, isolation_level=None)


def _json(value: Mapping[str, Any]) -> str:
    """JSON that SQLite takes: a prompt may hold half a surrogate pair. Keys keep their order, for the schema's sake."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
