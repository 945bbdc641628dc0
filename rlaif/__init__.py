"""From a constitution, a rubric or a judge to preference data that can be trusted, and from the data to a better model.

Three functions do what the command line does, and work in a notebook too:

    run = rlaif.run("pipelines/quickstart.yaml", seed=1)
    run.preferences[0].chosen.completion.text
    rlaif.plan("pipelines/ultrafeedback.yaml")["calls"]

Importing the package loads no model library; those are loaded where a model is used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # nothing is imported here: the command line sets its signal handlers first
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from rlaif.pipeline.interface import FinishedRun
    from rlaif.version import __version__

__all__ = ["__version__", "load", "plan", "run"]


def run(
    pipeline: str | Path,
    *,
    out: str | Path | None = None,
    retry_failed: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> FinishedRun:
    """Run a pipeline file and return its run folder as an object: `.preferences`, `.rows`, `.summary`, `.models`.

    Run again after a crash, an edit or with more prompts, and only what changed is computed. `overrides` change keys of
    the file, `__` standing for a dot: `seed=1`, `stages__prompts__prompts__take=50`. `out` is the run folder, by
    default `runs/NAME` of the current folder. With `retry_failed` the calls that failed in an earlier run are retried,
    and unparsed judgements asked for once more; with `quiet` no progress is printed.

    A run that stops early, has failed rows or made nothing returns too: see `.state`. Raises InputError for wrong
    input, before anything is made, WorkError and EngineError for work that failed.
    """
    from rlaif.pipeline.interface import run

    return run(pipeline, out=out, retry_failed=retry_failed, quiet=quiet, **overrides)


def plan(pipeline: str | Path, *, out: str | Path | None = None, **overrides: Any) -> dict[str, Any]:
    """What a run would do, as `rlaif plan --json` prints it: stages, calls by model, tokens, cost. Nothing is sent.

    Raises InputError for wrong input.
    """
    from rlaif.pipeline.interface import plan

    return plan(pipeline, out=out, **overrides)


def load(folder: str | Path) -> FinishedRun:
    """A run folder that exists, as `run` returns it. Raises InputError where there is none."""
    from rlaif.pipeline.interface import load

    return load(folder)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from rlaif.version import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


del TYPE_CHECKING  # a public name would be one to keep
