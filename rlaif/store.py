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
from typing import Any

from rlaif.errors import StoreError
from rlaif.records import Message, Sampling, digest

FORMAT = 1  # of this file; a store of another format is refused with a sentence, never guessed at
KEY_VERSION = 1  # of the key's meaning; raising it makes every stored call unreachable, so it has to be worth that

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    key     TEXT PRIMARY KEY,
    model   TEXT NOT NULL,       -- identity of the model that answered
    answer  TEXT NOT NULL,       -- JSON: text, finish reason, usage, log-probabilities
    created REAL NOT NULL        -- seconds since 1970
) WITHOUT ROWID;
"""


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
            "schema": json_schema,
            "index": index,
            "attempt": attempt,
        }
    )


class CallStore:
    """`get` and `put` of answers by key. Use one instance per process; close it at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # one connection, used from the event loop's worker threads
        self._waiting: list[tuple[str, str, dict[str, Any]]] = []
        self._running: asyncio.Future[None] | None = None  # the commit under way
        self._next: asyncio.Future[None] | None = None  # the commit that gathers what arrives meanwhile
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise StoreError(
                    f"the call store has format {found}, this version of rlaif reads format {FORMAT}",
                    file=str(path),
                    fix="use the version of rlaif that wrote it, or move the file away to start a new one",
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={FORMAT}")
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from None

    def _error(self, error: Exception) -> StoreError:
        return StoreError(
            f"the call store cannot be used: {error}",
            file=str(self.path),
            fix="check the disk and the file's permissions",
        )

    def get(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The answers that are stored, by key."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, str] = {}
        try:
            with self._lock:
                for start in range(0, len(wanted), 500):
                    part = wanted[start : start + 500]
                    marks = ",".join("?" * len(part))
                    found.update(
                        self._db.execute(f"SELECT key, answer FROM calls WHERE key IN ({marks})", part).fetchall()
                    )
            return {key: json.loads(answer) for key, answer in found.items()}
        except (sqlite3.Error, ValueError) as error:
            raise self._error(error) from None

    async def put(self, calls: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
        """Store (key, model identity, answer) together; returns when they are on disk.

        The first answer to a key stays: a second process that paid for the same call must not change what was used.
        """
        if not calls:
            return
        self._waiting.extend(calls)
        if self._next is None:
            self._next = asyncio.ensure_future(self._commit_after(self._running))
        await asyncio.shield(self._next)

    async def _commit_after(self, running: asyncio.Future[None] | None) -> None:
        """Let the commit under way end, then write all that has gathered meanwhile in one."""
        if running is not None and not running.done():
            await asyncio.wait([running])
        batch, self._waiting = self._waiting, []
        self._running, self._next = self._next, None
        await asyncio.to_thread(self._write, batch)

    def _write(self, batch: list[tuple[str, str, dict[str, Any]]]) -> None:
        now = time.time()
        rows = [
            (key, model, json.dumps(answer, ensure_ascii=False, sort_keys=True), now) for key, model, answer in batch
        ]
        try:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._db.executemany("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?)", rows)
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._error(error) from None

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM calls").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._db.close()
