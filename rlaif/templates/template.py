"""Prompt templates: sandboxed Jinja files that fail on a missing or an unused variable.

They get text, numbers, lists and mappings, and no other objects: a template could call their methods, and pydantic's
old loaders unpickle. Output is never rendered again, so a completion that contains `{{ ... }}` stays text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from pydantic import BaseModel

from rlaif.errors import InputError
from rlaif.records import oneline
from rlaif.resources import read_text
from rlaif.templates.apart import Apart
from rlaif.templates.bounds import MOST_WORK, cost, size, within
from rlaif.templates.environments import parsed, prompting
from rlaif.templates.failures import TemplateFailure, failure

PARSES = "close each tag and each block, and use Jinja's own tags, filters and tests"
RENDERS = "write out the variables, with conditions and loops over them alone"


class Template:
    """One Jinja file. `variables` are the names that it uses, `digest` is the SHA-256 of its source."""

    def __init__(self, source: str, path: str) -> None:
        self.path = path
        self.digest = hashlib.sha256(source.encode()).hexdigest()
        self._apart = Apart("prompt", source)
        try:
            tree = parsed(prompting, source)
            self._cost = cost(tree)
            if self._cost is None:
                self.variables = frozenset(map(str, self._apart.open()["variables"]))
            else:
                self.variables = frozenset(meta.find_undeclared_variables(tree))
                self._compiled = prompting.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise self._error("does not parse", failure(error), PARSES) from None
        except Exception as error:  # what Python's own compiler says, too
            raise self._error("cannot be rendered", failure(error), RENDERS) from None

    @classmethod
    def read(cls, path: Path) -> Template:
        return cls(read_text(path), str(path))

    def check(self, offered: set[str], required: set[str]) -> None:
        """Raise InputError when the template uses a variable that is not offered, or leaves out a required one."""
        if missing := self.variables - offered:
            raise InputError(
                f"the template uses {_names(missing)}, which has no value",
                file=self.path,
                fix=f"use only {_names(offered)}",
            )
        if unused := required - self.variables:
            raise InputError(
                f"the template never uses {_names(unused)}, so the judge would not see it",
                file=self.path,
                fix=f"write {', '.join('{{ ' + name + ' }}' for name in sorted(unused))} where it belongs",
            )

    def render_showing(self, shown: Mapping[str, str], **values: Any) -> str:
        """The rendered template. Raises InputError unless it shows every text in `shown`.

        `shown` maps the name of each text, for the error, to the text.
        """
        rendered = self.render(**values)
        for what, text in shown.items():
            if text not in rendered and oneline(text) not in rendered:
                raise InputError(f"the template does not show {what}", file=self.path, fix="write it out")
        return rendered

    def render(self, **values: Any) -> str:
        """The rendered template, stripped. Raises InputError when it uses an unknown variable or fails."""
        if not self.variables.issubset(values):
            self.check(set(values), set())
        try:
            return self._written(values).strip()
        except Exception as error:  # any error that the template's own code raises
            raise self._error("cannot be rendered", failure(error), RENDERS) from None

    def _written(self, values: Mapping[str, Any]) -> str:
        plain: dict[str, Any] = {}
        given = 0
        for name, value in values.items():
            plain[name], length = _sized(value)
            given += length
        if self._cost is not None and self._cost.of(plain, given) <= MOST_WORK:
            return within(self._compiled.render(plain), given)
        (rendered,) = self._apart.render([plain])
        if isinstance(rendered, TemplateFailure):
            raise rendered
        text: str = rendered["text"]
        return text

    def _error(self, problem: str, failed: TemplateFailure, fix: str) -> InputError:
        return InputError(f"the template {problem}: {failed.message}", file=self.path, line=failed.line, fix=fix)


def _sized(value: Any) -> tuple[Any, int]:
    """The value as plain data, and its size."""
    if type(value) is str:
        return value, size(value)
    if isinstance(value, BaseModel):
        return _plain_model(value)
    plain = _plain(value)
    return plain, size(plain)


def _plain(value: Any) -> Any:
    """The value as text, numbers, lists and mappings of such. Raises TypeError for anything else."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value if type(value) is str else str.__str__(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, BaseModel):
        return _plain_model(value)[0]
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"a template cannot be given a {type(value).__name__}")


# A run renders the same few aspects and principles for every row, so their plain forms are cached. The cache keeps each
# model alive, so its id is not reused; no template can change a plain form, since the sandbox makes it immutable.
_plain_models: dict[int, tuple[BaseModel, tuple[dict[str, Any], int]]] = {}
MOST_KEPT = 1024


def _plain_model(model: BaseModel) -> tuple[dict[str, Any], int]:
    kept = _plain_models.get(id(model))
    if kept is None:
        if len(_plain_models) >= MOST_KEPT:
            _plain_models.clear()
        plain = {name: _plain(getattr(model, name)) for name in type(model).model_fields}
        kept = _plain_models[id(model)] = (model, (plain, size(plain)))
    return kept[1]


def _names(names: set[str] | frozenset[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
