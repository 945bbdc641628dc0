"""Arguments and options that several commands share, and options that are read as one object."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from rlaif.resources import given_path

PipelinePath = Annotated[str, typer.Argument(metavar="PIPELINE", help="A pipeline file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides of the file's keys, e.g. seed=1 budget=5."),
]
JudgeSettings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings of the judging stage, e.g. reasons=true or rubric=FILE."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", parser=given_path, help="A run folder, e.g. runs/quickstart.")]
AnyOut = partial(typer.Option, "--out", parser=given_path, metavar="<path>")
Out = Annotated[Path | None, AnyOut(help="The run folder \\[default: runs/NAME of the pipeline].")]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Retry the calls that failed in an earlier run, and ask for unparsed again."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")]


@dataclass(frozen=True)
class JudgeOptions:
    """How to reach and ask the judge that the command line names."""

    model: Annotated[str | None, typer.Option("--model", help="The model's name on the server.")] = None
    key_env: Annotated[
        str | None, typer.Option("--key-env", help="The environment variable that holds the server's key.")
    ] = None
    method: Annotated[str | None, typer.Option("--method", help="compare or rate \\[default: compare].")] = None

    def given(self) -> dict[str, str | None]:
        return {"--model": self.model, "--key-env": self.key_env, "--method": self.method}


@dataclass(frozen=True)
class AuditOptions:
    """What an audit asks its judge, and what it compares the answers with."""

    stage: Annotated[str | None, typer.Option("--stage", help="The judging stage of a pipeline file or a run.")] = None
    gold: Annotated[
        str | None,
        typer.Option("--gold", help="A file of gold pairs or of preferences \\[default: the shipped pairs]."),
    ] = None
    take: Annotated[int | None, typer.Option("--take", min=1, help="Use only so many of the gold pairs.")] = None
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="For a run: a file of people's labels to compare its judgements with."),
    ] = None
    probes: Annotated[bool, typer.Option(help="Ask the probes of bias and injection too.")] = True

    def given(self) -> dict[str, str | None]:
        take = None if self.take is None else str(self.take)
        return {"--stage": self.stage, "--labels": self.labels, "--gold": self.gold, "--take": take}


@dataclass(frozen=True)
class ReadOptions:
    """Which rows of a training file are for what, and whether they are only shown."""

    validation: Annotated[
        str | None, typer.Option("--validation", help="A file to validate on, instead of a twentieth of the data.")
    ] = None
    split: Annotated[
        str | None,
        typer.Option("--split", help="all: train on every row; by default a fifth is held out, by its prompts' hash."),
    ] = None
    turns: Annotated[
        str | None,
        typer.Option("--turns", help="The assistant turns that sft trains on: all or last \\[default: all]."),
    ] = None
    check: Annotated[bool, typer.Option("--check", help="Only show what would be trained on, token by token.")] = False

    def given(self) -> dict[str, str | None]:
        return {"validation": self.validation, "split": self.split, "turns": self.turns}


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer reads it: a parameter whose type is a dataclass becomes one option for each of its fields."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if not is_dataclass(group):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = group
        hints = get_type_hints(group, include_extras=True)
        for field in fields(group):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name]))

    @functools.wraps(command)
    def flat(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return flat
