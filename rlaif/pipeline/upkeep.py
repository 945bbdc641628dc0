"""`rlaif cache`: shows, verifies and prunes the call store, and clears what trainings keep."""

from __future__ import annotations

import time
from pathlib import Path

from rlaif.errors import InputError, WorkError, nearest
from rlaif.pipeline.folder import REFERENCES, STORE, TOKENS
from rlaif.store import CallStore
from rlaif.train import kept_files

ACTIONS = ("show", "verify", "prune", "clear")


def check_action(action: str, older_than: float | None, run: str | None) -> None:
    """Raises InputError for an unknown action, and for options that do not fit it."""
    limited = older_than is not None or run is not None
    if action not in ACTIONS:
        raise InputError(f"there is no action {action!r}", fix=nearest(action, ACTIONS))
    if action == "prune" and not limited:
        raise InputError("prune would remove every call", fix="limit it with --older-than or --run")
    if action != "prune" and limited:
        raise InputError("--older-than and --run belong to prune", fix="rlaif cache prune ...")
    if older_than is not None and not older_than >= 0:  # a negative age would remove every call
        raise InputError(f"--older-than {older_than:g} is not an age in days", fix="give 0 or more")


def open_store(action: str) -> CallStore:
    """The call store of this project; only `prune` opens an existing one for writing."""
    return CallStore(STORE, read_only=action != "prune" or not STORE.exists())


def prune(store: CallStore, older_than: float | None, run: str | None) -> int:
    """Remove calls older than so many days, or paid for by a run, or both; returns their number."""
    return store.prune(before=None if older_than is None else time.time() - older_than * 86400, run=run)


def verify(store: CallStore) -> None:
    """Raises WorkError when a stored call cannot be read."""
    if damaged := store.verify():
        raise WorkError(
            f"{len(damaged):,} of {len(store):,} calls cannot be read, the first is {damaged[0]}",
            file=str(STORE),
            fix="restore the file from a copy, or run the pipeline again: it repeats the calls that cannot be read",
        )


def kept_by_trainings() -> dict[Path, int]:
    """The bytes in each folder in which the trainings of this project share what they compute, if there are any."""
    return {folder: size for folder in (TOKENS, REFERENCES) if (size := sum(f.size for f in kept_files.held(folder)))}


def clear() -> int:
    """Remove what trainings keep; the next ones compute it again. Returns the bytes."""
    kept = kept_by_trainings()
    for folder in kept:
        kept_files.prune(folder, 0)
    return sum(kept.values())
