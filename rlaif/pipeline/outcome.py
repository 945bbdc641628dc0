"""The outcome of a run: its exit code, and what the user can do next."""

from __future__ import annotations

from collections.abc import Iterable

from rlaif.errors import INTERRUPTED, EngineError

LASTING = frozenset({"too-long", "template", "verb", "schema"})  # causes of failure that a retry does not change


def exit_code(state: str, stopped: EngineError | None) -> int:
    """The exit code of a run in this final state; `stopped` says why no more calls were sent."""
    if state == "done":
        return 0
    return INTERRUPTED if stopped is not None and stopped.cause == "interrupted" else 1


def next_step(causes: Iterable[str], stopped: EngineError | None) -> str | None:
    """What the user can do about a run that stopped, or that has failures of these causes; None if neither."""
    if stopped is not None:
        fix = stopped.fix or "run the same command again to continue: no call is paid for twice"
        return f"finished work is kept; {fix}"
    failed = set(causes)
    if not failed:
        return None
    if failed <= LASTING:
        return "the run is incomplete; these rows fail again until their cause is fixed"
    return "the run is incomplete; `rlaif run --retry-failed` retries the failed calls"
