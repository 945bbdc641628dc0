"""What a template can cost, told by reading it: before it is compiled, since Jinja computes constants while compiling.

A *simple* template only writes out what it is given: variables and their parts, literals, conditions, a few filters
whose cost is linear, and loops over what it is given, none inside another. Its cost is at most a number of passes over
the text that it is given, which is known before each rendering. Everything that makes new values (`set`, `range`, `*`,
macros, calls, format widths) makes a template not simple, whether or not it would be harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jinja2 import nodes

from rlaif.templates.failures import MOST_WRITTEN, TemplateFailure

MOST_WORK = 16_000_000  # characters that a simple template may read and write in this process: well under a second
MOST_NODES = 5_000  # of a simple template; more take too long to compile
MOST_DEPTH = 40  # of nested expressions and conditions of a simple template

# Characters of one rendering: its own words, and each that it is given so many times. Hundreds of renderings are in
# memory at a time.
OWN_WRITTEN, TIMES_WRITTEN = 1_000_000, 16

# A list is written with its texts in quotes: a character of them takes ten at most, a whole text four more.
QUOTED, AROUND = 10, 4

# By how much a filter may lengthen a text: three characters for one in capital letters, twelve for one in JSON.
FILTERS = {
    "capitalize": 3,
    "count": 1,
    "d": 1,
    "default": 1,
    "dictsort": 1,
    "first": 1,
    "items": 1,
    "last": 1,
    "length": 1,
    "list": QUOTED + AROUND,  # of the characters of a text
    "lower": 3,
    "oneline": 1,
    "reverse": 1,
    "string": 1,
    "title": 3,
    "tojson": 12,
    "trim": 1,
    "upper": 3,
}
# Not `odd`, `even` and `divisibleby`: they compute a remainder, which of a text is a format with its widths.
TESTS = frozenset(
    "boolean defined eq equalto false in integer iterable lower mapping ne none number sequence string true undefined "
    "upper".split()
)
METHODS = {"endswith": 1, "items": 1, "lower": 3, "lstrip": 1, "rstrip": 1, "startswith": 1, "strip": 1, "upper": 3}

Path = tuple[str, ...]


class NotSimple(Exception):
    """The template is not simple."""


class Amount(NamedTuple):
    """At most so many characters: those `given` to the template, several times, and `own` ones."""

    given: int = 0
    own: int = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(self.given + other.given, self.own + other.own)

    def times(self, factor: int) -> Amount:
        return Amount(self.given * factor, self.own * factor)


class Expression(NamedTuple):
    """The longest value of an expression, and the work of computing it."""

    value: Amount
    work: Amount


class Cost(NamedTuple):
    """The work of a simple template: once, for each turn of its loops, and for each marked passage."""

    once: Amount
    loops: tuple[tuple[Path, Amount], ...]
    marked: int

    def of(self, values: dict[str, Any], given: int, *, marks: bool = False) -> int:
        """The most characters that the template reads and writes when it is given `values`, of size `given`.

        With `marks` the places of marked passages are told, for which transformers joins all that is written before
        each.
        """
        work, turns = self.once.given * given + self.once.own, 1
        for path, amount in self.loops:
            rounds = _length(values, path)
            work += rounds * (amount.given * given + amount.own)
            turns += rounds
        return work * turns * self.marked if marks and self.marked else work


def within(text: str, given: int) -> str:
    """What a template wrote when it was given so many characters. Raises TemplateFailure for too much."""
    most = min(OWN_WRITTEN + TIMES_WRITTEN * given, MOST_WRITTEN)
    if len(text) > most:
        raise TemplateFailure(f"it writes more than {most:,} characters when it is given {given:,}", exceeded=True)
    return text


def size(value: Any) -> int:
    """At least the length of a plain value when it is written out, odd characters aside."""
    kind = type(value)  # plain values are of no subclass, and an `isinstance` of Mapping takes a microsecond
    if kind is str:
        return len(value) + 4
    if kind is dict:
        return 4 + sum(map(size, value)) + sum(map(size, value.values()))
    if kind is list:
        return 4 + sum(map(size, value))
    return 24


def _length(values: dict[str, Any], path: Path) -> int:
    """The number of turns of a loop over what `path` names. A text has one for each character."""
    value: Any = values
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return len(value) if isinstance(value, list | dict | str) else 0


def cost(template: nodes.Template) -> Cost | None:
    """The cost of a template that was parsed and not optimised; None for one that is not simple."""
    reading = _Reading()
    try:
        once = reading.statements(template.body, 0)
    except NotSimple:
        return None
    if once.own + sum(amount.own for _, amount in reading.loops) > MOST_WORK:
        return None  # Jinja would compute that much while compiling
    return Cost(once, tuple(reading.loops), reading.marked)


def _sum(amounts: Iterable[Amount]) -> Amount:
    total = Amount()
    for amount in amounts:
        total = total.plus(amount)
    return total


def _literal_length(arguments: list[nodes.Expr]) -> int:
    """The length of the only argument, a literal."""
    if not arguments:
        return 0
    if len(arguments) == 1 and isinstance(arguments[0], nodes.Const) and isinstance(arguments[0].value, str):
        return len(arguments[0].value)
    raise NotSimple


class _Reading:
    """Reads one template. Raises NotSimple at the first node that a simple template does not have."""

    def __init__(self) -> None:
        self.loops: list[tuple[Path, Amount]] = []
        self.marked = 0
        self._nodes = 0
        self._in_loop = False

    # ------------------------------------------------------------ statements

    def statements(self, body: Iterable[nodes.Node], depth: int) -> Amount:
        return _sum(self._statement(node, depth + 1) for node in body)

    def _statement(self, node: nodes.Node, depth: int) -> Amount:
        self._count(depth)
        if isinstance(node, nodes.Output):
            return _sum(self._written(child, depth) for child in node.nodes)
        if isinstance(node, nodes.If):
            parts = (self.statements(part, depth) for part in (node.body, node.elif_, node.else_))
            return self.expression(node.test, depth).work.plus(_sum(parts))
        if isinstance(node, nodes.For):
            return self._loop(node, depth)
        if isinstance(node, nodes.Scope):  # a passage marked by `generation`
            self.marked += 1
            return self.statements(node.body, depth)
        if isinstance(node, nodes.Break | nodes.Continue):
            return Amount()
        raise NotSimple

    def _written(self, node: nodes.Expr, depth: int) -> Amount:
        if isinstance(node, nodes.TemplateData):
            self._count(depth)
            return Amount(own=len(node.data))
        value, work = self.expression(node, depth)
        return work.plus(value)

    def _loop(self, node: nodes.For, depth: int) -> Amount:
        """The work around a loop; that of its turns goes to `loops`."""
        if self._in_loop or node.recursive:
            raise NotSimple
        path = self._path(node.iter)
        self._in_loop = True
        turn = self.statements(node.body, depth)
        if node.test is not None:
            turn = turn.plus(self.expression(node.test, depth).work)
        self._in_loop = False
        self.loops.append((path, turn.plus(Amount(own=1))))
        return self.statements(node.else_, depth).plus(Amount(given=len(path) + 16))  # sorted or copied once

    def _path(self, node: nodes.Node) -> Path:
        """The names that lead to what a loop goes over. It has no more turns than that has items."""
        if isinstance(node, nodes.Filter) and node.node is not None and node.name in ("dictsort", "items", "reverse"):
            if node.args or node.kwargs or node.dyn_args or node.dyn_kwargs:
                raise NotSimple
            return self._path(node.node)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "items":
            if node.args or node.kwargs or node.dyn_args or node.dyn_kwargs:
                raise NotSimple
            return self._path(node.node.node)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            self.expression(node.arg, 0)
            return self._path(node.node)
        if isinstance(node, nodes.Name):
            return (node.name,)
        if isinstance(node, nodes.Getattr):
            return (*self._path(node.node), node.attr)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return (*self._path(node.node), node.arg.value)
        raise NotSimple

    # ------------------------------------------------------------ expressions

    def expression(self, node: nodes.Node | None, depth: int) -> Expression:
        if node is None:
            return Expression(Amount(), Amount())
        self._count(depth)
        if isinstance(node, _JOINED):
            return self._joined(node, depth + 1)
        read = _READ.get(type(node))
        if read is None:
            raise NotSimple
        return read(self, node, depth + 1)

    def _several(self, parts: Iterable[nodes.Node | None], depth: int) -> Expression:
        read = [self.expression(part, depth) for part in parts]
        return Expression(_sum(part.value for part in read), _sum(part.work for part in read))

    def _constant(self, node: nodes.Const, depth: int) -> Expression:
        return Expression(Amount(own=len(str(node.value))), Amount())

    def _name(self, node: nodes.Name, depth: int) -> Expression:
        return Expression(Amount(given=1), Amount())

    def _attribute(self, node: nodes.Getattr, depth: int) -> Expression:
        return self.expression(node.node, depth)

    def _item(self, node: nodes.Getitem, depth: int) -> Expression:
        value, work = self.expression(node.node, depth)
        index = self.expression(node.arg, depth)
        work = work.plus(index.work).plus(index.value)
        return Expression(value, work.plus(value) if isinstance(node.arg, nodes.Slice) else work)

    def _slice(self, node: nodes.Slice, depth: int) -> Expression:
        return self._several((node.start, node.stop, node.step), depth)

    def _compared(self, node: nodes.Expr, depth: int) -> Expression:
        value, work = self._several(node.iter_child_nodes(), depth)
        return Expression(Amount(own=5), work.plus(value))

    def _joined(self, node: nodes.Node, depth: int) -> Expression:
        """A value made of its parts, which are copied."""
        value, work = self._several(node.iter_child_nodes(), depth)
        return Expression(value, work.plus(value))

    def _listed(self, node: nodes.List | nodes.Tuple, depth: int) -> Expression:
        value, work = self._several(node.items, depth)
        value = value.times(QUOTED).plus(Amount(own=AROUND * (1 + len(node.items))))
        return Expression(value, work.plus(value))

    def _filtered(self, node: nodes.Filter, depth: int) -> Expression:
        if node.dyn_args or node.dyn_kwargs or node.kwargs or node.node is None:
            raise NotSimple
        value, work = self.expression(node.node, depth)
        if node.name == "join":
            made = value.times(1 + _literal_length(node.args))
        elif node.name in FILTERS and (not node.args or node.name in ("d", "default")):
            other = self._several(node.args, depth)
            made, work = value.times(FILTERS[node.name]).plus(other.value), work.plus(other.work)
        else:
            raise NotSimple
        return Expression(made, work.plus(made))

    def _test(self, node: nodes.Test, depth: int) -> Expression:
        if node.name not in TESTS or node.dyn_args or node.dyn_kwargs or node.kwargs:
            raise NotSimple
        value, work = self._several((node.node, *node.args), depth)
        return Expression(Amount(own=5), work.plus(value))

    def _call(self, node: nodes.Call, depth: int) -> Expression:
        """A method of a text with one literal at most, or `raise_exception`, which chat templates have."""
        if node.dyn_args or node.dyn_kwargs or node.kwargs or len(node.args) > 1:
            raise NotSimple
        if isinstance(node.node, nodes.Name) and node.node.name == "raise_exception":
            return Expression(Amount(), self._several(node.args, depth).work)
        if not isinstance(node.node, nodes.Getattr) or node.node.attr not in METHODS:
            raise NotSimple
        value, work = self.expression(node.node.node, depth)
        # `strip` compares each character with each of its argument's.
        made = value.times(METHODS[node.node.attr] + _literal_length(node.args))
        return Expression(made, work.plus(made))

    def _count(self, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES or depth > MOST_DEPTH:
            raise NotSimple


_READ: dict[type[nodes.Node], Callable[[_Reading, Any, int], Expression]] = {
    nodes.Const: _Reading._constant,
    nodes.Name: _Reading._name,
    nodes.Getattr: _Reading._attribute,
    nodes.Getitem: _Reading._item,
    nodes.Slice: _Reading._slice,
    nodes.Filter: _Reading._filtered,
    nodes.Test: _Reading._test,
    nodes.Call: _Reading._call,
    nodes.Compare: _Reading._compared,
    nodes.Not: _Reading._compared,
    nodes.List: _Reading._listed,
    nodes.Tuple: _Reading._listed,
}
_JOINED = (
    nodes.Add,
    nodes.Sub,
    nodes.And,
    nodes.Or,
    nodes.Neg,
    nodes.Pos,
    nodes.Concat,
    nodes.CondExpr,
    nodes.Operand,
)
