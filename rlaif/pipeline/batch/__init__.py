"""`rlaif batch`: a run whose calls to servers go into files, for a provider's batches or for vLLM's `run-batch`.

Each time it takes in the results that are there, then runs the pipeline as far as it gets without a server, and writes
the calls that it lacks now. Later stages need earlier answers, so there are several waves; the last one finds nothing
to ask, and the run is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.config import OpenAIModel, Pipeline
from rlaif.engines.batches import ENDED, Batch, Provider
from rlaif.engines.openai import OpenAIEngine
from rlaif.errors import EngineError, InputError, WorkError
from rlaif.pipeline.batch.results import Outcome, take_in
from rlaif.pipeline.batch.wave import Wave
from rlaif.pipeline.batched import STATE, Batched, Entry
from rlaif.pipeline.folder import STORE, RunFolder
from rlaif.pipeline.manifest import count_spent
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.run import Run, session_of
from rlaif.pipeline.session import Session
from rlaif.pipeline.start import folder_of, open_run
from rlaif.store import CallStore
from rlaif.visible import visible_line


class Batching:
    """One step of a pipeline in batches."""

    def __init__(self, pipeline: Pipeline, out: Path | None, progress: Progress) -> None:
        self._pipeline, self._out, self._progress = pipeline, out, progress
        self.outcome = Outcome()
        self.states: dict[str, Batch] = {}  # of files under way, by name
        self.failed = False  # a whole batch, or calls for good

    async def begin(self, results: Sequence[Path], *, retry_failed: bool) -> Run:
        """Take in results, and open the run that they are of. Raises RlaifError."""
        await self._in_session(lambda session, batched: self._take(session, batched, results))
        run = open_run(self._pipeline, self._out, self._progress, retry_failed=retry_failed, batches=True)
        for note in run.manifest.notes:  # of its files and keys; later ones are told as they come
            self._progress.warn(note)
        return run

    async def advance(self, run: Run, *, submit: bool) -> dict[str, Any]:
        """Run as far as answers reach, and write what is to be asked next; with `submit`, send it. Raises RlaifError.

        Returns what there is to tell.
        """
        wave = Wave(Batched(run.folder.path))
        run.session.scheduler.collect(wave)
        try:
            state = await run.execute()
        finally:
            wave.close()
        stopped = run.session.scheduler.stopped
        if stopped is None or stopped.cause == "batch":  # else it was interrupted, and the wave is not whole
            await self._in_session(partial(self._finish, wave, submit))
        return self._told(run, state, Batched(run.folder.path), wave.under_way)

    async def _in_session(self, work: Callable[[Session, Batched], Any]) -> None:
        """Do `work` in the locked run folder, with the models and the store."""
        path = folder_of(self._pipeline, self._out)
        folder = RunFolder.create(path, self._pipeline.name, self._pipeline.origin(path))
        try:
            store = CallStore(STORE, run=self._pipeline.name)
            async with session_of(self._pipeline, store, note=self._progress.warn) as session:
                count_spent(self._pipeline, session, folder, folder.manifest() or {})
                await work(session, Batched(folder.path))
        finally:
            folder.close()

    # ------------------------------------------------------------ results

    async def _take(self, session: Session, batched: Batched, results: Sequence[Path]) -> None:
        for entry in batched.state.entries:
            if entry.written and entry.file_id is not None:
                await self._adopt(session, batched, entry)
        for entry in batched.under_way():
            await self._fetch(session, batched, entry)
        if results:
            if not batched.state.entries:
                problem = "no calls of this run wait for results"
                raise InputError(problem, file=str(results[0]), fix="write them first: `rlaif batch` without --results")
            await take_in(session, batched, batched.state.entries, results, self.outcome)

    async def _adopt(self, session: Session, batched: Batched, entry: Entry) -> None:
        """Find the batch of a file that was uploaded when the program ended: it may be under way."""
        assert entry.file_id is not None
        if (batch := await _provider(session, entry).of_file(entry.file_id)) is not None:
            entry.batch_id = batch.id
            batched.save()

    async def _fetch(self, session: Session, batched: Batched, entry: Entry) -> None:
        """Ask for a batch, and take its results in once it has ended."""
        assert entry.batch_id is not None
        provider = _provider(session, entry)
        try:
            batch = self.states[entry.name] = await provider.state(entry.batch_id)
        except EngineError as error:
            if error.cause != "http-404":
                raise
            way = f"remove `{entry.name}` from the entries of {batched.path / STATE}: its calls are paid for again then"
            raise WorkError(
                error.message, fix=f"use the key that sent {entry.batch_id}; to give it up, {way}"
            ) from None
        if batch.status not in ENDED:
            return
        results, problem = batched.results(entry), provider.problem(batch)
        results.unlink(missing_ok=True)
        try:
            for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                await provider.download(file_id, results)
            if results.exists() and results.stat().st_size:
                await take_in(session, batched, [entry], [results], self.outcome)
        except InputError as error:  # no results: the batch is over all the same, and its calls are asked again
            problem = problem or f"its results: {error.message}"
        finally:
            results.unlink(missing_ok=True)  # a server's words, in which no key is masked
        if problem:
            self.failed = True
            self._progress.warn(f"the batch of {entry.name} failed: {problem}")
        entry.over = True
        batched.save()

    # ------------------------------------------------------------ requests

    async def _finish(self, wave: Wave, submit: bool, session: Session, batched: Batched) -> None:
        wave.finish(batched)
        for entry in [entry for entry in batched.state.entries if entry.over]:
            keys = {key for sent in batched.sent(entry) for key in sent.keys}
            if len(session.store.get(keys).keys() | session.store.failures(keys).keys()) == len(keys):
                batched.remove(entry)  # all of its calls are answered, or failed for good
                batched.save()
        if submit:
            await self._submit(session, batched)

    async def _submit(self, session: Session, batched: Batched) -> None:
        """Send what was written. Each id is on disk before the next request."""
        for entry in batched.written():
            self._check_budget(session, batched, entry)
            provider = _provider(session, entry)
            if entry.file_id is None:
                entry.file_id = await provider.upload(batched.requests(entry))
                batched.save()
            batch = self.states[entry.name] = await provider.create(entry.file_id)
            entry.batch_id = batch.id
            batched.save()

    def _check_budget(self, session: Session, batched: Batched, entry: Entry) -> None:
        """Raise WorkError where a file may cost more than the budget leaves, beside what is under way."""
        if session.budget is None:
            return
        reserved = sum(self.most(session, one) or 0.0 for one in batched.under_way())
        most = self.most(session, entry) or 0.0
        if session.ledger.spent + reserved + most > session.budget:
            problem = (
                f"the budget of {session.budget:g} leaves no room for {entry.name}: {session.ledger.spent:.4f} is "
                f"spent, {reserved:.4f} may be by batches under way, and it may cost {most:.4f}"
            )
            raise WorkError(problem, fix="raise `budget`, then run the same command again: nothing is sent twice")

    def most(self, session: Session, entry: Entry) -> float | None:
        """The most that a file may cost, at the price of a batch."""
        spec, cost = session.specs.get(entry.model), session.ledger.cost(entry.model, *entry.most_tokens)
        price = spec.price if isinstance(spec, OpenAIModel) else None
        return None if price is None or cost is None else cost * price.batch

    def _told(self, run: Run, state: str, batched: Batched, under_way: int) -> dict[str, Any]:
        session = run.session
        waiting = [
            {"file": entry.name, "model": entry.model, "batch": entry.batch_id, "calls": entry.calls}
            | _progress_of(self.states.get(entry.name))
            for entry in batched.under_way()
        ]
        written = [
            {"file": str(batched.requests(entry)), "model": entry.model, "requests": entry.requests,
             "calls": entry.calls, "max_cost": self.most(session, entry)}
            for entry in batched.written()
        ]  # fmt: skip
        outcome = asdict(self.outcome) | {"failed": dict(self.outcome.failed), "again": dict(self.outcome.again)}
        return {
            "run": str(run.folder.path),
            "state": state,
            "results": outcome,
            "under_way": waiting,
            "waiting_calls": under_way,
            "written": written,
        }


def _progress_of(batch: Batch | None) -> dict[str, Any]:
    if batch is None:
        return {"status": "sent", "done": None, "requests": None}
    counts = batch.request_counts
    done = None if counts is None else counts.completed + counts.failed
    return {"status": visible_line(batch.status)[:40], "done": done, "requests": counts and counts.total}


def _provider(session: Session, entry: Entry) -> Provider:
    engine = session.engines.get(entry.model)
    if not isinstance(engine, OpenAIEngine) or engine.identity != entry.identity:
        problem = f"{entry.name} is under way at a server that the pipeline does not name as {entry.model!r} any more"
        raise InputError(problem, fix="name it again, as it was, until its results are fetched")
    return Provider(engine)
