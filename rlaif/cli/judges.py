"""`rlaif judge` and `rlaif audit`: judges that the command line names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlaif.cli import terminal
from rlaif.cli.options import AnyOut, AsJson, AuditOptions, JudgeOptions, JudgeSettings, RetryFailed
from rlaif.cli.runs import execute
from rlaif.resources import given_path


def judge(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Existing completions: pairs, rankings, UltraFeedback, transcripts, ..."),
    ],
    by: Annotated[str, typer.Option("--by", metavar="JUDGE", help="A server's address or a model's folder.")],
    options: JudgeOptions,
    settings: JudgeSettings = None,
    pair: Annotated[str | None, typer.Option("--pair", help="The rule that makes preferences.")] = None,
    out: Annotated[Path, AnyOut(help="The run folder.")] = Path("runs/judged"),
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Judge an existing data set, in any published shape, and make preferences of it."""
    from rlaif.pipeline.named_judge import judging

    pipeline = judging(
        data,
        by,
        options.method,
        settings or [],
        model=options.model,
        key_variable=options.key_env,
        name=out.name,
        pair=pair,
    )
    execute(pipeline, out, f"rlaif judge {data}", as_json=as_json, retry_failed=retry_failed)


def audit(
    judge: Annotated[
        str,
        typer.Argument(
            metavar="JUDGE",
            help="A server's address, a model's folder, a pipeline file, or a run folder (to audit its data).",
        ),
    ],
    options: JudgeOptions,
    scope: AuditOptions,
    settings: JudgeSettings = None,
    out: Annotated[Path, AnyOut(help="The folder of audit.md and audit.json.")] = Path("audit"),
    as_json: AsJson = False,
) -> None:
    """Audit a judge: how far it agrees with gold, which biases it has, and what to do about them."""
    from rlaif.pipeline import auditing
    from rlaif.pipeline.folder import STORE, RunFolder
    from rlaif.pipeline.loop import run_to_end
    from rlaif.screen import markdown

    auditing.check_audit_options(judge, options.given() | scope.given() | {"settings": " ".join(settings or [])})
    console = terminal.console(stderr=as_json)
    if auditing.is_run(judge):
        folder = RunFolder(given_path(judge))
        auditing.refuse_another(out, of := auditing.audited_run(folder, scope.stage))
        report = auditing.audit_run(folder, scope.stage, scope.labels)
    else:
        pipeline, step = auditing.judge_of(
            judge,
            settings or [],
            method=options.method,
            model=options.model,
            key_variable=options.key_env,
            stage=scope.stage,
        )
        auditing.refuse_another(out, of := auditing.audited_in(pipeline, step, scope.gold))  # before a call is paid for
        audited = auditing.open_audited(pipeline, step, scope.gold, scope.take, STORE)
        if not as_json:
            terminal.print_shipped(console, pipeline.shipped)
        terminal.print_notes(console, audited.notes)
        with terminal.progress(console, "rlaif audit", as_json=as_json) as progress:
            report = run_to_end(auditing.audit_judge(audited, probes=scope.probes, progress=progress))
    report["of"] = of
    auditing.write_audit(report, out)
    if as_json:
        terminal.print_json(report)
    else:
        console.print(markdown((out / "audit.md").read_text(encoding="utf-8")))
        console.print(f"written to {out / 'audit.md'} and {out / 'audit.json'}", style="dim", highlight=False)
