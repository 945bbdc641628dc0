"""The Python interface: `rlaif.run`, `rlaif.plan` and `rlaif.load`, over the same path as the command line."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from rlaif.config import read_pipeline
from rlaif.pipeline import browse
from rlaif.pipeline.folder import RunFolder
from rlaif.pipeline.loop import run_to_end
from rlaif.pipeline.progress import Lines, Silent
from rlaif.pipeline.start import open_plan, open_run
from rlaif.records import Preference, Record, Row
from rlaif.resources import given_path
from rlaif.screen import Console

Item = TypeVar("Item", bound=Record)
Value = TypeVar("Value")


class Records(Sequence[Item], Generic[Item]):
    """Records of a run's files, read again on each iteration, so they need not fit into memory."""

    def __init__(self, read: Callable[[], Iterator[Item]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Item]:
        return self._read()

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self._read())

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return list(self)[index]
        number = index if index >= 0 else len(self) + index
        for item in islice(self, max(number, 0), None):
            if number >= 0:
                return item
        raise IndexError(f"index {index} of {len(self):,} records")

    def __repr__(self) -> str:
        return f"<{len(self):,} records>"


class FinishedRun:
    """A run folder. Every property is read from its files on access."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self.path = folder, folder.path

    @property
    def manifest(self) -> dict[str, Any]:
        """`manifest.json`: state, stages with counts and drops, calls, cost, digests, failures by cause."""
        return browse.status(self._folder)

    @property
    def state(self) -> str:
        """`done`, `incomplete`, `stopped`, `interrupted`, `failed`, `running` or `killed`."""
        return str(self.manifest["state"])

    @property
    def rows(self) -> Records[Row]:
        """The rows of the last stage that made any, including failed ones."""
        return Records(lambda: browse.rows(self._folder))

    def rows_of(self, stage: str) -> Records[Row]:
        """The rows of one stage. Raises InputError for a stage without rows."""
        return Records(lambda: browse.rows(self._folder, stage))

    @property
    def preferences(self) -> Records[Preference]:
        """The preferences of the last stage that made any."""
        return Records(lambda: browse.all_preferences(self._folder))

    @property
    def summary(self) -> dict[str, Any] | None:
        """The measures in `report/summary.json`; None if nothing was measured."""
        return browse.summary(self._folder)

    @property
    def models(self) -> dict[str, Path]:
        """The folders of the models that the run trained, by name."""
        return browse.models(self._folder)

    def __repr__(self) -> str:
        return f"<run {str(self.path)!r}: {self.state}>"


def run(
    pipeline: str | Path,
    *,
    out: str | Path | None = None,
    retry_failed: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> FinishedRun:
    """See `rlaif.run`."""
    progress = Silent() if quiet else Lines(Console(stderr=True))
    checked = read_pipeline(str(pipeline), values=_values(overrides))
    opened = open_run(checked, _path(out), progress, retry_failed=retry_failed)
    for note in opened.manifest.notes:
        progress.warn(note)
    with progress:
        _to_end(opened.execute(), opened.interrupts.interrupt)
    return load(opened.folder.path)


def plan(pipeline: str | Path, *, out: str | Path | None = None, **overrides: Any) -> dict[str, Any]:
    """See `rlaif.plan`."""
    planning = open_plan(read_pipeline(str(pipeline), values=_values(overrides)), _path(out))
    return _to_end(planning.make()) | {"notes": planning.notes}


def load(folder: str | Path) -> FinishedRun:
    """See `rlaif.load`."""
    return FinishedRun(RunFolder.existing(given_path(folder)))


def _path(out: str | Path | None) -> Path | None:
    return None if out is None else given_path(out)


def _values(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides by their whole key, `__` standing for a dot, as values that YAML could have given."""
    return {key.replace("__", "."): _plain(value) for key, value in overrides.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _to_end(work: Coroutine[Any, Any, Value], interrupt: Callable[[], None] | None = None) -> Value:
    """The result of `work`, also where an event loop runs in this thread already, as in a notebook.

    There it runs in a thread of its own. Each interruption calls `interrupt` in its loop, or cancels the work, and
    waits for its end.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run_to_end(work)
    outcome: Future[Value] = Future()
    running: Future[tuple[asyncio.AbstractEventLoop, Callable[[], object]]] = Future()

    async def in_its_loop() -> Value:
        task = asyncio.current_task()
        assert task is not None
        running.set_result((asyncio.get_running_loop(), interrupt or task.cancel))
        return await work

    def target() -> None:
        try:
            outcome.set_result(run_to_end(in_its_loop()))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=target, name="rlaif", daemon=True).start()
    with _ctrl_c_raises():
        while True:
            try:
                return outcome.result()
            except KeyboardInterrupt:
                if outcome.done():
                    raise
                loop, ended = running.result()
                with suppress(RuntimeError):  # it has just ended
                    loop.call_soon_threadsafe(ended)


@contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt here. `asyncio.run` would only cancel its task, which waits for this thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
