"""`rlaif train`: one trainer on existing data."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from rlaif.cli import results, terminal
from rlaif.cli.checks import show_check
from rlaif.cli.options import AnyOut, AsJson, ReadOptions
from rlaif.errors import InputError


def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="The trainer, such as sft, rm, dpo or ppo.")],
    base: Annotated[str, typer.Option("--base", help="The model to start from: a folder.")],
    data: Annotated[
        str,
        typer.Option("--data", help="A file of what it takes: conversations (sft), preferences (rm, dpo) or prompts."),
    ],
    read: ReadOptions,
    out: Annotated[Path | None, AnyOut(help="The folder of the trained model.")] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="A LoRA adapter over the base: a folder. One may also be the base.")
    ] = None,
    reward: Annotated[str | None, typer.Option("--reward", help="The reward model, for ppo: a folder.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the trainer, e.g. epochs=2 learning_rate=1e-5."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="How many processes share each batch: one for each GPU.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what memory it takes and whether that fits; load and train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train one model on existing data. After an interruption the same command resumes."""
    from rlaif.pipeline.alone import check_alone, one_trainer, plan_alone, train_alone

    shared = [] if processes is None else [f"processes={processes}"]
    given = [*(settings or []), *shared]
    pipeline = one_trainer(method, base, data, method, given, reward, read.given(), adapter)
    if read.check:
        show_check(check_alone(pipeline, out), data, as_json=as_json)
        return
    if plan:
        memory = plan_alone(pipeline)
        if as_json:
            terminal.print_json(memory)
        else:
            results.print_memory(terminal.console(), memory, f"memory of {method}")
        return
    if out is None:
        fix = "give --out FOLDER, or --check or --plan"
        raise InputError("a training needs the folder of its model", key="--out", fix=fix)
    console = terminal.console(stderr=as_json)
    with terminal.progress(console, f"rlaif train {method}", as_json=as_json) as progress:
        record = asyncio.run(train_alone(pipeline, out, progress))
    if as_json:
        terminal.print_json(record)
    else:
        results.print_training(console, record, out)
