"""Runs the stages of a pipeline file in order.

Row stages in sequence stream: one coroutine per prompt runs through all of them, with bounded concurrency, so judging
starts during sampling. A table stage waits for all rows. Inputs and outputs are digested; a trainer or a measure with
unchanged inputs is not run again, and the calls of row stages are cached.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

from rlaif.config import LocalModel, Pipeline
from rlaif.errors import InputError, RlaifError, Stopped, WorkError
from rlaif.files import FULL, why
from rlaif.pipeline.datasets import dataset_name
from rlaif.pipeline.events import EVERY, EventLog, Meter
from rlaif.pipeline.folder import RunFolder, is_foreign, leads_away, made_before
from rlaif.pipeline.inputs import keep_inputs
from rlaif.pipeline.manifest import Manifest, RowCounts, StageRecord
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.session import Session
from rlaif.pipeline.signals import Interrupts
from rlaif.pipeline.spool import RowWriter, room
from rlaif.pipeline.stages import Opening, RowStage, Stage, TableStage, Work
from rlaif.pipeline.stages.stage import first, groups, row_record, starting_rows
from rlaif.records import Row
from rlaif.store import CallStore
from rlaif.version import __version__

LEAST_ROOM = 50 * 2**20  # free bytes on disk without which a run does not start
BYTES_A_ROW = 20_000  # about the disk space of a stage's row, in the store and the run folder together
PULSE = 0.5  # seconds between two reads of the throughput
TOLERATED = 0.05  # share of rows that may fail before a run refuses to train on the others


class Run:
    """One execution of an opened pipeline. It closes the store and the folder at its end."""

    def __init__(
        self,
        opening: Opening,
        folder: RunFolder,
        store: CallStore,
        progress: Progress,
        *,
        retry_failed: bool = False,
    ) -> None:
        self.pipeline, self.folder, self.progress = opening.pipeline, folder, progress
        self.stages = opening.stages
        self.session = session_of(
            self.pipeline, store, retry_failed=retry_failed, note=lambda text: self.work.note(text)
        )
        self.manifest = Manifest(self.pipeline, folder, self.session, opening.notes)
        self.work: Work = Work(
            self.pipeline, self.session, folder, self.manifest, progress, dict(opening.made), opening.stages
        )
        self.interrupts = Interrupts(self.work)
        self.events = EventLog(folder.path)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The last report on models, if any."""
        named = [name for name, stage in self.stages.items() if stage.reports is not None]
        reports = [made.report for name in named if (made := self.work.made.get(name)) and made.report]
        return dict(reports[-1]) if reports else None

    async def execute(self) -> str:
        """Run every stage; returns the state: `done`, `incomplete` or `stopped`. Finished work is always kept.

        Raises RlaifError, or CancelledError when it was interrupted.
        """
        with self.interrupts.attended():
            return await self._execute()

    async def _execute(self) -> str:
        try:
            _refuse_foreign(self.stages.values(), self.folder, made_before(self.manifest.before))
        except RlaifError:  # an earlier run's manifest stays as it is
            await self.close()
            raise
        watching = asyncio.create_task(self._watch())
        try:
            self._begin()
            for group in groups(self.stages[step.name] for step in self.pipeline.steps):
                if not await self._group(group):
                    break
                self.manifest.write("running")
            stopped = self.session.scheduler.stopped
            self.session.scheduler.note_masked()
            self.manifest.reasons += [stopped.message] if stopped else []
            short = self.manifest.failures or self.manifest.reasons
            self.manifest.write("stopped" if stopped else "incomplete" if short else "done")
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | asyncio.CancelledError)
            if interrupted and not self.interrupts.heard:
                self.interrupts.heard = 1  # a stage that blocks heard it itself
            with suppress(RlaifError, OSError):  # replies in flight are counted in the manifest
                await self.session.scheduler.close(at_once=interrupted)
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, BrokenPipeError):
                error = _of_the_system(error, self.folder)
            self.manifest.reasons += [] if interrupted else [str(error) or type(error).__name__]
            with suppress(OSError):  # a full disk must not hide the error
                self.manifest.write("interrupted" if interrupted else "failed")
            raise error from None
        finally:
            watching.cancel()
            self.events.write("ended", state=self.manifest.state, calls=self.manifest.calls())
            await self.close()
        return self.manifest.state

    async def close(self) -> None:
        await self.session.close()
        self.folder.close()

    async def _group(self, group: TableStage[Any] | list[RowStage[Any]]) -> bool:
        """Run one table stage, or row stages that stream; whether the run continues."""
        stages: Sequence[Stage[Any]] = group if isinstance(group, list) else [group]
        scheduler, head = self.session.scheduler, stages[0]
        if scheduler.stopped and not (head.finishes and self._has_rows(head)):
            return False
        if head.needs_most and (share := self._failed_share()) > TOLERATED:
            self.manifest.reasons.append(f"{head.name} was not started: {share:.0%} of the rows failed")
            return False
        if not scheduler.stopped:
            with self.interrupts.watched(gentle=True, blocks=False), suppress(Stopped):
                await self._gates(head)
            if scheduler.settled():
                return False
        next_models = [
            use.model
            for stage in stages
            for use in stage.settings.models_used()
            if not head.trains or use.role == "scores"
        ]
        await self.session.unload_all_but(next_models, to_train=head.trains)
        with self.interrupts.watched(gentle=head.gentle, blocks=head.blocks), suppress(Stopped):
            await (self._stream(group) if isinstance(group, list) else self._table(group))
        scheduler.settled()
        return True

    # ------------------------------------------------------------ before the first call

    def _begin(self) -> None:
        _check_disk(self.work, self.stages.values())
        self.events.write("run", name=self.pipeline.name, rlaif=__version__)
        self._remove_leftovers()
        self.manifest.write("running")  # lists its files before they are written
        applied = {name: read for name, stage in self.stages.items() if (read := stage.applies()) is not None}
        keep_inputs(self.folder.path, self.pipeline, applied)
        for stage in self.stages.values():
            self.manifest.digests |= stage.input_digests()
        for stage in self.stages.values():
            made_with = stage.made_with()
            self.manifest.digests |= {f"{what} of {stage.name}": value for what, value in made_with.items()}
        for name, spec in self.pipeline.models.items():
            if isinstance(spec, LocalModel):
                self.manifest.digests[f"model {name}"] = self.session.engines[name].identity

    def _remove_leftovers(self) -> None:
        """Remove files of earlier versions of this pipeline that this one does not make."""
        stages = self.stages.values()
        files = {f"stages/{self.work.file(stage.step).name}" for stage in stages if stage.holds is not None}
        sets = {name for stage in stages for name in stage.data_sets}
        made = self.folder.remove_made(self.manifest.before, files | sets)
        self.manifest.made = made | files  # a data set is added when it is written
        for stage in stages:
            datasets = {f"dataset {dataset_name(stage.name, shape)}" for shape in stage.writes}
            self.manifest.keep_earlier(
                stage.name, stage.settings.kind, datasets | {f"model {stage.settings.model_made}"}
            )

    # ------------------------------------------------------------ stages

    async def _gates(self, head: Stage[Any]) -> None:
        """Audit the judges of later gated stages as soon as they exist. Raises WorkError for one that fails."""
        for stage in list(self.stages.values())[head.step.number - 1 :]:
            models = stage.models
            if not stage.gated or stage.name in self.manifest.audits:
                continue
            if not all(model in self.session.engines for model in models):
                continue
            title = f"audit of {stage.name}"
            self.progress.begin(title, "pairs")
            figures, short = await stage.gate(self.session.asking(f"{stage.name} audit"))
            self.manifest.audits[stage.name] = figures
            self.progress.end(title, "; ".join(short) or "passed")
            if short:
                trained = next((model for model in models if model not in self.pipeline.models), None)
                see = f"{self.pipeline.document.path} --stage {stage.name}"
                if trained is not None:
                    see = f"{self.folder.model(trained)} --method {stage.settings.kind}"
                problem = f"the judge of {stage.name!r} falls short: {'; '.join(short)}"
                raise WorkError(problem, fix=f"see why: rlaif audit {see}")

    async def _table(self, stage: TableStage[Any]) -> None:
        began = time.monotonic()
        self.progress.begin(stage.name, stage.settings.kind)
        record = await stage.run(self.work)
        record.seconds = time.monotonic() - began
        self.manifest.reached(record)
        self.events.write("stage", **record.as_dict())
        self.progress.end(stage.name, record.outcome(stage.outcome(record.as_dict())))

    async def _stream(self, stages: Sequence[RowStage[Any]]) -> None:
        """Run every row through the row stages, with bounded concurrency."""
        began, title = time.monotonic(), " -> ".join(stage.name for stage in stages)
        source = self.work.made[stages[0].source.name]
        rows = starting_rows(source)
        self.progress.begin(title, "rows", total=len(rows))
        writers = {stage.name: RowWriter(Row, self.work.file(stage.step)) for stage in stages}
        counts = {stage.name: RowCounts(stage.facts) for stage in stages}
        todo = enumerate(rows)  # shared by the workers: each takes the next row

        async def worker() -> None:
            for index, row in todo:
                if self.session.scheduler.stopped:
                    return
                for stage in stages:
                    failed_before = row.failure is not None
                    if not failed_before:
                        try:
                            row = await stage.through(row, self.session.asking(stage.name, index))
                        except Stopped:
                            break  # the next run repeats the row, with its calls cached
                        if row.failure is not None:
                            self.manifest.fail(row.prompt.id, str(row.cause), row.failure)
                    counted = counts[stage.name]
                    dropped = stage.count(row, counted.facts)
                    counted.add(row, failed_before, dropped)
                    writers[stage.name].append(row.model_copy(update={"dropped": dropped}), index)
                else:
                    self.progress.advance(row.cause)

        models = {model for stage in stages for model in stage.models}
        try:
            await _side_by_side(worker, min(self.session.window(models), len(rows)))
        except BaseException:
            for writer in writers.values():
                writer.close()
            raise
        entered, failed_before = len(rows), source.counts.failed if source.counts else 0
        records = []
        for stage in stages:
            done, counted = writers[stage.name].finish(), counts[stage.name]
            self.work.made[stage.name] = stage.made_of(done, counted)
            record = row_record(stage, counted, failed_before, entered, self.work)
            record.streamed = True
            record.facts |= await stage.finish(done, counted, self.work)
            record.seconds = time.monotonic() - began if stage is stages[-1] else None
            self.manifest.reached(record, counted.example())
            records.append(record)
            failed_before, entered = counted.failed, counted.rows
        self._streamed(title, stages, records)

    def _streamed(self, title: str, stages: Sequence[RowStage[Any]], records: Sequence[StageRecord]) -> None:
        for record in records:
            self.events.write("stage", **record.as_dict(), calls=self.manifest.calls(record.name))
        if why := self.session.scheduler.stopped:
            self.progress.note(f"stopped: {why.cause}")
        outcomes = (r.outcome(stage.outcome(r.as_dict())) for r, stage in zip(records, stages, strict=True))
        parts = (f"{record.name} {outcome}" for record, outcome in zip(records, outcomes, strict=True))
        self.progress.end(title, "; ".join(parts))

    def _has_rows(self, stage: Stage[Any]) -> bool:
        made = self.work.made.get(stage.source.name)
        return bool(made and made.rows)

    def _failed_share(self) -> float:
        """The largest share of failed rows over the stages."""
        all_counts = [made.counts for made in self.work.made.values() if made.counts and made.counts.rows]
        return max((counts.failed / counts.rows for counts in all_counts), default=0.0)

    async def _watch(self) -> None:
        """Show the throughput, and log it every `EVERY` seconds."""
        meter = Meter(self.session.ledger, self.pipeline.budget, self.session.priced)
        written = time.monotonic()
        while True:
            await asyncio.sleep(PULSE)
            pulse = meter.read(list(self.session.scheduler.traffic.endpoints.values()))
            if pulse is None:
                continue
            self.progress.pulse(pulse.text())
            if time.monotonic() - written >= EVERY:
                written = time.monotonic()
                self.events.write("progress", **pulse._asdict(), failures=self.manifest.failures)


def _check_disk(work: Work, stages: Iterable[Stage[Any]]) -> None:
    """Raise WorkError on a nearly full disk; warn when the run may fill it."""
    rows = sum(len(made.prompts.kept) for made in work.made.values() if made.prompts)
    need = rows * sum(stage.holds == "rows" for stage in stages) * BYTES_A_ROW
    free = min(room(work.folder.path), room(work.session.store.path.parent))
    space = f"{free / 2**20:,.0f} MB are free on the disk of {str(work.folder.path)!r}"
    if free < LEAST_ROOM:
        raise WorkError(f"{space}, too little to start", fix="free some space, or give another folder with --out")
    if free < need:
        work.note(f"{space}, and the run may write {need / 2**20:,.0f} MB")


def _refuse_foreign(stages: Iterable[Stage[Any]], folder: RunFolder, made: set[str]) -> None:
    """Raise InputError for what stands where a stage would write, and no run made."""
    lost = folder.manifest() is None
    for stage in stages:
        stage.check_folder(folder)
        if stage.holds is not None:
            folder.refuse_stage(folder.stage(stage.step.number, stage.name), made)
        for name in stage.data_sets:
            path = folder.path / name
            if leads_away(path) or (name not in made and is_foreign(path, lost=lost)):
                raise InputError("the folder is there, and no run made it", file=str(path), fix="move it")


async def _side_by_side(worker: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Raises the first error of the workers."""
    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(count):
                workers.create_task(worker())
    except* (RlaifError, OSError, ImportError, MemoryError) as errors:
        raise first(errors.exceptions) from None


def _of_the_system(error: OSError, folder: RunFolder) -> WorkError:
    """A full disk, or another error of the system, while the run wrote into its folder or printed."""
    fix = "free some space" if error.errno in FULL else "check the disk and the folder's permissions"
    if error.errno == errno.EMFILE:
        fix = "raise the limit (`ulimit -n`)"
    problem = f"the run cannot go on: {why(error)}; finished work is kept"
    where = str(error.filename or folder.path)
    return WorkError(problem, file=where, fix=f"{fix}, then run the same command again: nothing is paid for twice")


def session_of(pipeline: Pipeline, store: CallStore, **options: Any) -> Session:
    """A session with the models of a pipeline."""
    used = {use.model for step in pipeline.steps for use in step.stage.models_used()}
    return Session(pipeline.models, store, seed=pipeline.seed, budget=pipeline.budget, used=used, **options)
