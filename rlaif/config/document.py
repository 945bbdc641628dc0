"""A YAML file as plain values, each with its line, checked against a model of what it may hold.

Knows YAML and errors, not what a file is about. YAML is safe-loaded. A key that is unknown, or written twice, is an
error that names file, line and key, and the fix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from rlaif.errors import InputError, as_one, nearest, plainly, raise_all, shortened, shown
from rlaif.records import oneline
from rlaif.resources import find, find_in, read_text, seen_from

Position = tuple[str | int, ...]
Checked = TypeVar("Checked", bound=BaseModel)
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # names become files' names, which no disk takes much longer
Name = Annotated[str, Field(pattern=NAME)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
OneOrSeveral = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)


class Counterpart(NamedTuple):
    """The name here of what another project calls a key, and in words where the two differ."""

    key: str
    inner: str = ""  # the key in the group `key`, for one of a group's
    differs: str = ""  # the end of the sentence "it is called `key` here, "


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)
    elsewhere: ClassVar[Mapping[str, Counterpart]] = {}  # by what other projects call a key
    nowhere: ClassVar[Mapping[str, str]] = {}  # keys of theirs that are not needed here, and why

    def put(self, position: Position, value: Any) -> Self:
        """These settings with another value at a position."""
        key, below = str(position[0]), position[1:]
        return self.model_copy(update={key: getattr(self, key).put(below, value) if below else value})


class Document:
    """A YAML file as plain values, with the line of each key and item."""

    def __init__(self, path: str, value: Any, lines: dict[Position, int], text: str = "") -> None:
        self.path, self.value, self.lines, self.text = path, value, lines, _lines_of(text)
        self.overridden: dict[Position, str] = {}  # set on the command line: the key as it was written there
        self.beside: tuple[Path, ...] = ()  # folders in which the files that it names are looked for first
        self.shipped: dict[str, None] = {}  # the names that only the package has, in order

    def line(self, position: Position) -> int | None:
        """The line of `position`, or of the nearest part of it that was written."""
        while position and position not in self.lines:
            position = position[:-1]
        return self.lines.get(position)

    def where(self, position: Position) -> dict[str, Any]:
        """`file`, `line` and `key` for an error about the value at `position`, wherever that value was written."""
        for end in range(len(position), 0, -1):
            if written := self.overridden.get(position[:end]):
                return {"file": COMMAND_LINE, "key": ".".join([written, *map(str, position[end:])])}
        return {"file": self.path, "line": self.line(position), "key": dotted(position) or None}

    def path_from_here(self, path: str, position: Position) -> str:
        """The path of a file or folder that is named at `position`, as it is found from the current folder.

        Looked for beside this document, then in the current folder, then in the package; one that was typed on the
        command line in the current folder first. Raises InputError.
        """
        where = self.where(position)
        here = Path()
        folders = (here, *self.beside) if where["file"] == COMMAND_LINE else (*self.beside, here)
        found = find_in(folders, path, **where)
        if found.shipped:
            self.shipped[path] = None
            return path
        named = Path(path).expanduser()
        as_written = found.path == named or (".." not in named.parts and _same(found.path, named))
        return path if as_written else seen_from(here, found.path)

    def error(self, message: str, position: Position, fix: str | None = None) -> InputError:
        return InputError(message, **self.where(position), fix=fix)

    def written(self, position: Position) -> str:
        """The line on which a value begins."""
        line = self.lines.get(position)
        return self.text[line - 1] if line is not None and line <= len(self.text) else ""

    def cut_texts(self) -> Iterator[tuple[Position, str]]:
        """The texts that a ` #` ends on their line, with what stands behind the space: not a word with a remark.

        In YAML a comment begins there, so `prefer answer #1` is read as `prefer answer`, without a word.
        """
        for position in self.lines:
            if " #" not in (line := self.written(position)) or not isinstance(read := _at(self.value, position), str):
                continue
            entry = _ENTRY.fullmatch(line)
            behind = re.match(rf"{re.escape(read)}\s+(#.*)", entry[2]) if entry else None
            if behind is not None and (" " in read or _NO_COMMENT.match(behind[1])):
                yield position, behind[1]

    def cut_short(self, position: Position) -> InputError:
        line = (_quoted(self.written(position)) or "").strip()
        problem = f"a comment begins at ` #`: the text read is {shown(_at(self.value, position))}"
        return self.error(problem, position, f"write the line as `{line}`, or the comment on a line of its own")


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # the other is not there
        return False


COMMAND_LINE = "command line"
# A pipeline of 5,000 stages has 50,000. Aliases of aliases write a file of a few lines that holds millions; a file that
# holds that many takes a second to read.
MOST_NODES = 100_000
MOST_DEPTH = 100  # a JSON schema has some 20; pydantic writes no more than 255
MOST_DIGITS = 1000  # of a number
MOST_MENDED = 50  # lines of a file that are not YAML and are told together


def dotted(position: Position) -> str:
    return ".".join(part if len(part) <= 100 else f"{part[:97]}..." for part in map(str, position))


def read_yaml(path: Path) -> Document:
    """Read a YAML mapping. Raises InputError for text that is not UTF-8 or not YAML, or that repeats a key."""
    document = load_document(read_text(path), str(path))
    for position, behind in document.cut_texts():
        if _NO_COMMENT.match(behind):
            raise document.cut_short(position)
    return document


def load_document(text: str, path: str) -> Document:
    """A YAML mapping. Raises InputError for text that is not YAML, or that repeats a key."""
    value, lines = load_value(text, path)
    if not isinstance(value, dict):
        raise InputError("expected a mapping of keys to values", file=path, line=1)
    return Document(path, value, lines, text)


def load_value(text: str, path: str) -> tuple[Any, dict[Position, int]]:
    """The value of a YAML text, and the line of each part of it. No two parts are one object.

    Raises InputError for text that is not YAML, that repeats a key, or that is too large or too deep. Where a line is
    only to be put in quotes, the fix shows that line.
    """
    lines: dict[Position, int] = {}
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _collect_lines(node, (), lines, path)
        return _unshared(loader.construct_document(node)), lines
    except _TooMany as error:
        fix = "use fewer; prompts and other rows are read from files of data"
        raise InputError(f"too many values (more than {MOST_NODES:,})", file=path, line=error.line, fix=fix) from None
    except yaml.reader.ReaderError as error:
        raise InputError(
            f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed",
            file=path,
            line=text.count("\n", 0, error.position) + 1,
            fix="remove it, or write it as an escape in double quotes",
        ) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        scalar = isinstance(error, yaml.constructor.ConstructorError)
        fix = "put it in quotes if it is text" if scalar else "check indentation, quotes and brackets"
        if "flow mapping" in str(error.context):
            fix = "inside {...}, put each text in quotes that holds a comma, a colon, ` #`, brackets or a question mark"
        mended = _mended(text, error) if path != COMMAND_LINE else None  # a value alone
        if mended is not None:
            line, fix = mended[0], f"write the line as `{shortened(mended[1].strip(), 200)}`"
        problem = shortened(str(error.problem), 200)  # it may quote the file
        raise _Unreadable(f"not valid YAML: {problem}", mended, file=path, line=line, fix=fix) from None
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {oneline(str(error))}", file=path) from None
    except (ValueError, OverflowError):  # PyYAML makes a character of any number
        where = loader.line + 1 if loader is not None else None
        raise InputError("not valid YAML: an escape names no character", file=path, line=where) from None
    except RecursionError:
        raise InputError("the values are nested too deeply", file=path, fix="no setting needs it") from None


class _Unreadable(InputError):
    """A text is not YAML. `mended` is the number of the line and the line with which it is, as far as that is known."""

    def __init__(self, message: str, mended: tuple[int, str] | None, **where: Any) -> None:
        super().__init__(message, **where)
        self.mended = mended


def _lines_of(text: str) -> list[str]:
    """The lines of a text as YAML counts them."""
    return re.split("\r\n|[\n\r\x85\u2028\u2029]", text)


def _quoted(line: str) -> str | None:
    """A line of YAML with its text in quotes; None where it has no text of its own."""
    match = _ENTRY.fullmatch(line)
    if match is None or _SECRET.search(line):
        return None
    text = match[2]
    if text[0] + text[-1] in ("{}", "[]"):  # values, in which something else is wrong
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    text = text.replace('\\"', '"')
    return match[1] + (json.dumps(text, ensure_ascii=False) if "'" in text else f"'{text}'")


_ENTRY = re.compile(r"(\s*(?:- +)*(?:[\w.-]+: +)?)(\S.*?)\s*")


_NO_COMMENT = re.compile(r"#\w")  # people write a comment with a space; this is `answer #1`
_SECRET = re.compile("key|secret|token|passw|auth", re.IGNORECASE)  # no error repeats a line that may hold one


def _mended(text: str, error: yaml.MarkedYAMLError) -> tuple[int, str] | None:
    """The number of the line that YAML stumbled over and that line with its text in quotes, if YAML then reads on."""
    lines = _lines_of(text)
    wrong = _place(error)
    for mark in (error.problem_mark, error.context_mark):
        if mark is None or mark.line >= len(lines) or (quoted := _quoted(lines[mark.line])) is None:
            continue
        try:
            yaml.compose("\n".join([*lines[: mark.line], quoted, *lines[mark.line + 1 :]]), yaml.SafeLoader)
        except yaml.MarkedYAMLError as other:
            if _place(other) <= max(wrong, mark.line):
                continue
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
            continue
        return mark.line + 1, quoted
    return None


def _place(error: yaml.MarkedYAMLError) -> int:
    return -1 if error.problem_mark is None else error.problem_mark.line


def _at(value: Any, position: Position) -> Any:
    for part in position:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


class _TooMany(Exception):
    """A text holds more values than any file needs."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Stops at too many values while it reads them. Values are text, numbers, lists and mappings.

    Also reports scalars that only look like a date, a number or a truth value: PyYAML raises Python's own errors.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.values += index is not None  # a key has none
        if self.values > MOST_NODES:
            raise _TooMany(self.line + 1)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag in _UNUSED:
            problem = f"{node.tag.rpartition(':')[2]!r} is no type of value here"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        try:
            if node.tag in _NUMBERS and (len(node.value) > MOST_DIGITS or _OTHER_BASE.fullmatch(node.value)):
                raise ValueError
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > 64:
                raise ValueError
        except (ValueError, LookupError, AttributeError):
            problem = f"{shown(node.value)} is not a usable {node.tag.rpartition(':')[2][:80]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
        return value


_OTHER_BASE = re.compile(r".*:.*|[-+]?0[0-7_]+", re.DOTALL)  # YAML 1.1 reads 1:30 as 90, and 010 as 8
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_UNUSED = {f"tag:yaml.org,2002:{kind}" for kind in ("binary", "set", "omap", "pairs")}  # no JSON holds their values


def _unshared(value: Any) -> Any:
    """A copy in which an alias has become a value of its own, so that an override of one place changes no other."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value


def _collect_lines(
    node: yaml.Node, position: Position, lines: dict[Position, int], path: str, above: tuple[yaml.Node, ...] = ()
) -> None:
    line = node.start_mark.line + 1
    lines.setdefault(position, line)
    if node in above:
        raise InputError(
            "the value contains itself", file=path, line=line, key=dotted(position), fix="remove the alias"
        )
    if len(above) > MOST_DEPTH:
        raise InputError(
            "the values are nested too deeply", file=path, line=line, fix=f"use at most {MOST_DEPTH} levels"
        )
    if len(lines) > MOST_NODES:
        raise InputError(
            f"too many values (more than {MOST_NODES:,})", file=path, line=line, fix="use fewer aliases (`*`)"
        )
    above = (*above, node)
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise InputError("a key must be text", file=path, line=line, key=dotted(position) or None)
            inner = (*position, key.value)
            if inner in lines:
                raise InputError(
                    f"the key is written twice (first on line {lines[inner]})",
                    file=path,
                    line=line,
                    key=dotted(inner),
                    fix="keep one of the two",
                )
            lines[inner] = line
            _collect_lines(child, inner, lines, path, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _collect_lines(child, (*position, index), lines, path, above)


def validated(model: type[Checked], value: Any, document: Document, position: Position) -> Checked:
    """`value` as a `model`. Raises InputError that names the line and key of the first thing wrong."""
    if not isinstance(value, dict):
        raise document.error(
            f"expected keys and values, found {shown(value)}", position, f"its keys are {', '.join(_keys(model))}"
        )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # A mistyped key is also a missing one: report the mistyped one, which helps more.
        details = error.errors()
        first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
        raise _described(first, model, document, position) from None


TextCheck = Callable[[str], tuple[str, str] | None]  # returns what is wrong with a text and the fix, or None


def unchecked(text: str) -> None:
    """A TextCheck that accepts every text."""


def read_checked(model: type[Checked], path: str) -> tuple[Checked, Document]:
    """A file of texts as a `model`, and its document. Raises InputErrors with all that is wrong, by line and key."""
    document, errors = _read_through(find(path))
    errors += [document.cut_short(position) for position, _ in document.cut_texts()]
    try:
        read = model.model_validate(document.value)
    except ValidationError as error:
        raise as_one([*errors, *_all_described(error, model, document)]) from None
    raise_all(errors)
    return read, document


def _read_through(path: Path) -> tuple[Document, list[InputError]]:
    """A YAML mapping, with every line mended that only had to be put in quotes, and an error for each of them."""
    lines, errors = _lines_of(read_text(path)), list[InputError]()
    while True:
        try:
            return load_document("\n".join(lines), str(path)), errors
        except InputError as error:
            errors.append(error)
            if not isinstance(error, _Unreadable) or error.mended is None or len(errors) > MOST_MENDED:
                raise as_one(errors) from None
            lines[error.mended[0] - 1] = error.mended[1]


def read_named_set(model: type[Checked], path: str, items: str) -> tuple[Checked, Document]:
    """A file that is a set of things with an `id` each, under the key `items`, and its document.

    Raises InputError with line and key, also for those that share an id.
    """
    read, document = read_checked(model, path)
    seen: set[str] = set()
    errors = []
    for index, item in enumerate(getattr(read, items)):
        if item.id in seen:
            position: Position = (items, index, "id")
            errors.append(document.error(f"two {items} are called {item.id!r}", position, "give each its own `id`"))
        seen.add(item.id)
    raise_all(errors)
    return read, document


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _all_described(error: ValidationError, model: type[BaseModel], document: Document) -> list[InputError]:
    """Every detail of an error, without those that follow from others.

    A missing key beside an unknown one is the same key mistyped, and a list is too short without its wrong items.
    """
    details = error.errors()
    mistyped = {detail["loc"][:-1] for detail in details if detail["type"] == "extra_forbidden"}
    above = {detail["loc"][:end] for detail in details for end in range(len(detail["loc"]))}

    def follows(detail: Mapping[str, Any]) -> bool:
        kind, place = detail["type"], detail["loc"]
        return (kind == "missing" and place[:-1] in mistyped) or (kind == "too_short" and place in above)

    return [_described(detail, model, document, ()) for detail in details if not follows(detail)]


def _described(detail: Mapping[str, Any], model: type[BaseModel], document: Document, position: Position) -> InputError:
    # "[key]" is pydantic's word for "in the key itself".
    wrong_at = (*position, *(part for part in detail["loc"] if part != "[key]"))
    kind, last = detail["type"], detail["loc"][-1] if detail["loc"] else ""
    if kind == "extra_forbidden":
        return document.error("unknown key", wrong_at, _named_here(last, _model_at(model, detail["loc"][:-1])))
    if kind == "missing" and isinstance(last, int):  # of a list of a certain length
        return document.error("expected more items", wrong_at[:-1])
    if kind == "missing":
        return document.error("the key is missing", wrong_at, f"add `{last}`")
    if kind == "value_error":  # our own message; the value is left out, since it may be a secret
        return document.error(detail["msg"].removeprefix("Value error, "), wrong_at)
    if kind == "string_type" and isinstance(detail["input"], bool | int | float):
        line = _quoted(document.written(wrong_at))
        return document.error(
            f"expected text, found {shown(detail['input'])}",
            wrong_at,
            "put it in quotes" if line is None else f"write the line as `{line.strip()}`",
        )
    return document.error(f"{plainly(detail)}, found {shown(detail['input'])}", wrong_at)


def _named_here(key: str | int, model: type[BaseModel]) -> str:
    """The key's name here, where it is another project's, or why it has none; else the nearest names."""
    known = _keys(model)
    if (why := getattr(model, "nowhere", {}).get(str(key))) is not None:
        return str(why)
    ours = getattr(model, "elsewhere", {}).get(str(key))
    if ours is None or ours.key not in known:
        return nearest(str(key), known)
    if ours.inner:
        return f"write `{ours.key}: {{{ours.inner}: ...}}`"
    return f"it is called `{ours.key}` here" + (f", {ours.differs}" if ours.differs else "")


def _model_at(model: type[BaseModel], position: Sequence[str | int]) -> type[BaseModel]:
    for part in position:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        inner = [a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(a, type)]
        model = next((a for a in inner if issubclass(a, BaseModel)), model)
    return model
