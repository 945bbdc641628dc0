"""The settings of a trainer in its help: each with its default and its meaning, of the model that checks them."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from typer.core import TyperCommand

from rlaif.cli import terminal
from rlaif.cli.tables import Column, table
from rlaif.screen import line

if TYPE_CHECKING:
    from pydantic import BaseModel

OPTIONS = {"base", "name", "data", "reward"}  # settings that the command line has as options


class WithSettings(TyperCommand):
    """A command whose help, after a METHOD, lists the settings of that trainer."""

    given: tuple[str, ...] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self.given = tuple(args)  # --help ends the command before its arguments are read
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from rlaif.config import TRAINERS

        named, _, _ = self.make_parser(ctx).parse_args(args=[*self.given])
        if (method := named.get("method")) in TRAINERS:
            print_settings(str(method), TRAINERS[method])


def print_settings(method: str, settings: type[BaseModel]) -> None:
    console = terminal.console()
    columns = (Column("setting", text=True), Column("default", text=True), Column("meaning", text=True))
    rows = [(line(name), line(default), line(meaning)) for name, default, meaning in settings_of(settings)]
    console.print(table(columns, rows, console.width, f"settings of {method}, as KEY=VALUE"))


def settings_of(settings: type[BaseModel], group: str = "") -> Iterator[tuple[str, str, str]]:
    """The name of each setting, its default and its meaning with its choices; those of a group follow it."""
    from pydantic import BaseModel

    for name, field in settings.model_fields.items():
        if not group and name in OPTIONS:
            continue
        choices = [*_choices(field.annotation)]
        meaning = (field.description or "") + (f" ({', '.join(choices)})" if choices else "")
        yield f"{group}{name}", _written(field.get_default(call_default_factory=True)), meaning
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from settings_of(inner, f"{group}  ")


def _choices(annotation: Any) -> Iterator[str]:
    """The words that a value may be."""
    kind = get_origin(annotation)
    if kind is Literal:
        yield from map(str, get_args(annotation))
    elif kind in (Union, UnionType, tuple):
        for inner in get_args(annotation):
            yield from _choices(inner)
    elif kind is Annotated:
        yield from _choices(get_args(annotation)[0])


def _written(value: Any) -> str:
    """A default as the command line takes it; none for one that there is not."""
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
