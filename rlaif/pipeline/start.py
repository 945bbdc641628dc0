"""Opens a pipeline to run or plan, for the command line and the Python interface."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rlaif.config import Pipeline
from rlaif.pipeline import batched
from rlaif.pipeline.folder import STORE, RunFolder
from rlaif.pipeline.plan import Plan
from rlaif.pipeline.progress import Progress
from rlaif.pipeline.run import Run
from rlaif.pipeline.session import Session
from rlaif.pipeline.stages import open_stages
from rlaif.records import Row
from rlaif.store import CallStore


def folder_of(pipeline: Pipeline, out: Path | None) -> Path:
    """The pipeline's run folder: `out`, or `runs/NAME` in the current folder."""
    return out if out is not None else Path("runs") / pipeline.name


def open_run(
    pipeline: Pipeline, out: Path | None, progress: Progress, *, retry_failed: bool = False, batches: bool = False
) -> Run:
    """A run ready to execute, its folder locked. Only one that is for `batches` goes beside batches under way.

    Raises InputError before anything is written, WorkError while another process runs in the folder.
    """
    opening = open_stages(pipeline)
    with ExitStack() as opened:  # closed again if the run cannot be built
        path = folder_of(pipeline, out)
        folder = RunFolder.create(path, pipeline.name, pipeline.origin(path))
        opened.callback(folder.close)
        if not batches:
            batched.refuse_under_way(folder.path, pipeline.document.path)
        store = CallStore(STORE, run=pipeline.name)
        opened.callback(store.close)
        run = Run(opening, folder, store, progress, retry_failed=retry_failed)
        opened.pop_all()
    return run


def open_plan(pipeline: Pipeline, out: Path | None) -> Plan:
    """A plan ready to be made. Nothing is written. Raises InputError."""
    opening = open_stages(pipeline)
    store = CallStore(STORE, read_only=True, run=pipeline.name)
    with ExitStack() as opened:
        opened.callback(store.close)
        plan = Plan(opening, RunFolder(folder_of(pipeline, out)), store)
        opened.pop_all()
    return plan


async def try_out(prompt: str, principle: str, seed: int) -> Row:
    """A typed prompt and principle, given to the embedded models. Nothing is stored. Raises EngineError."""
    from rlaif.tiny.trial import MODELS, put  # which reads the embedded world

    async with Session(MODELS, CallStore(Path(":memory:")), seed=seed) as session:
        return await put(prompt, principle, session.asking("try"))
