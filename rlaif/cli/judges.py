"""`rlaif judge` and `rlaif audit`: judges that the command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli import terminal
from rlaif.cli.options import AsJson, AuditOptions, JudgeOptions, JudgeSettings
from rlaif.cli.runs import execute
from rlaif.errors import InputError

if TYPE_CHECKING:
    from rlaif.config import ModelSpec
    from rlaif.pipeline.auditing import Audited


def judge(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Existing completions: pairs, rankings, UltraFeedback, transcripts, ..."),
    ],
    by: Annotated[str, typer.Option("--by", metavar="JUDGE", help="A server's address or a model's folder.")],
    asked: JudgeOptions,
    settings: JudgeSettings = None,
    pair: Annotated[str | None, typer.Option("--pair", help="The rule that makes preferences.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The run folder.")] = Path("runs/judged"),
    as_json: AsJson = False,
) -> None:
    """Judge an existing data set, in any published shape, and make preferences of it."""
    from rlaif.pipeline.judging import judging

    method, server = _method(asked), {"model": asked.model, "key_variable": asked.key_env}
    pipeline = judging(data, by, method, settings or [], **server, name=out.name, pair=pair)
    execute(pipeline, out, f"rlaif judge {data}", as_json=as_json, retry_failed=False)


def audit(
    judge: Annotated[
        str,
        typer.Argument(
            metavar="JUDGE",
            help="A server's address, a model's folder, a pipeline file, or a run folder (to audit its data).",
        ),
    ],
    asked: JudgeOptions,
    scope: AuditOptions,
    settings: JudgeSettings = None,
    out: Annotated[Path, typer.Option("--out", help="The folder of audit.md and audit.json.")] = Path("audit"),
    as_json: AsJson = False,
) -> None:
    """Audit a judge: how far it agrees with gold, which biases it has, and what to do about them."""
    from rich.markdown import Markdown

    from rlaif.pipeline import auditing
    from rlaif.pipeline.engines import keyless
    from rlaif.pipeline.folder import RunFolder
    from rlaif.pipeline.loop import run_to_end

    _method(asked)  # a mistyped method is an error for every kind of audit
    kind = _kind(judge)
    _check_options(kind, asked, scope, settings or [])
    if out.exists() and not out.is_dir():  # before any call is paid for
        raise InputError(f"{str(out)!r} is a file", key="--out", fix="name a folder")
    console = terminal.console(stderr=as_json)
    if kind == "a run":
        found = auditing.audit_run(RunFolder(Path(judge)), scope.stage, scope.labels)
    else:
        audited, models = _open_audited(kind, judge, asked, scope, settings or [])
        terminal.print_notes(console, keyless(models))
        with terminal.progress(console, "rlaif audit", as_json=as_json) as progress:
            found = run_to_end(auditing.audit_judge(audited, probes=scope.probes, progress=progress))
    auditing.write_audit(found, out)
    if as_json:
        terminal.print_json(found)
    else:
        console.print(Markdown((out / "audit.md").read_text(encoding="utf-8")))
        console.print(f"written to {out / 'audit.md'} and {out / 'audit.json'}", style="dim", highlight=False)


# DECIDES: the methods a judge can be asked by, and that comparing is the default.
def _method(asked: JudgeOptions) -> str:
    from rlaif.pipeline.judging import METHODS

    if asked.method not in (None, *METHODS):
        raise InputError(f"expected compare or rate, found {asked.method!r}", key="--method")
    return asked.method or "compare"


# DECIDES: what kind of thing is audited; the names are keys of `judging.OPTIONS`.
def _kind(judge: str) -> str:
    path = Path(judge)
    if (path / "manifest.json").is_file():
        return "a run"
    if path.suffix in (".yaml", ".yml"):
        return "a pipeline"
    return "a server" if "://" in judge else "a model's folder"


def _check_options(kind: str, asked: JudgeOptions, scope: AuditOptions, settings: Sequence[str]) -> None:
    """Raises InputError for an option that an audit of this kind does not use."""
    from rlaif.pipeline.judging import check_options

    given = {
        "--model": asked.model,
        "--key-env": asked.key_env,
        "--method": asked.method,
        "--stage": scope.stage,
        "--labels": scope.labels,
        "--gold": scope.gold,
        "--take": None if scope.take is None else str(scope.take),
        "settings": " ".join(settings),
    }
    check_options(kind, given)


# DECIDES: the judging stage, its models and its seed: a pipeline's own, or those of the named judge, with seed 0.
def _open_audited(
    kind: str, judge: str, asked: JudgeOptions, scope: AuditOptions, settings: Sequence[str]
) -> tuple[Audited, list[ModelSpec]]:
    """The judge, ready to be asked, and its models."""
    from rlaif.config import judging_stage, read_pipeline
    from rlaif.pipeline import auditing
    from rlaif.pipeline.folder import STORE
    from rlaif.pipeline.judging import judge_document

    if kind == "a pipeline":
        pipeline = read_pipeline(judge, settings)
        (models, stage), seed = auditing.stage_of(pipeline, scope.stage), pipeline.seed
    else:
        document = judge_document(judge, _method(asked), settings, model=asked.model, key_variable=asked.key_env)
        (models, stage), seed = judging_stage(document), 0
    audited = auditing.open_audited(models, stage, scope.gold, scope.take, STORE, seed)
    return audited, list(models.values())
