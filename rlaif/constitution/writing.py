"""A constitution as a YAML file that a person edits: long texts as blocks, what is at its default left out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from rlaif.config import load_value
from rlaif.config.document import NAME
from rlaif.constitution.origin import Shape
from rlaif.constitution.reading import Constitution, read_constitution
from rlaif.constitution.shapes import PUBLISHED, Imported, export_constitution, import_constitution
from rlaif.errors import InputError, WorkError, nearest, shown
from rlaif.files import write_text

WIDTH = 96  # a list in one line may go beyond it by an item
LONG = 60  # characters: a longer text is a block


class _Dumper(yaml.SafeDumper):
    """Blocks for long texts and for texts of several lines; one alias, for examples that are the same."""

    def ignore_aliases(self, data: Any) -> bool:
        return not isinstance(data, _Shared)

    def generate_anchor(self, node: yaml.Node) -> str:
        return "examples"

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # a list stands further in than its key


class _Shared(list[Any]):
    """A list that is written once."""


class _Flow(list[Any]):
    """A list in one line."""


_LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # which YAML takes for such


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    if text != text.strip() or any(line != line.rstrip() for line in text.split("\n")) or _LINE_ENDS.search(text):
        style = '"'  # blocks, and single quotes, change such white space
    elif "\n" in text:
        style = "|"
    elif len(text) > LONG:
        style = ">"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(_Shared, yaml.SafeDumper.represent_list)
_Dumper.add_representer(
    _Flow, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def as_yaml(constitution: Constitution, about: Sequence[str]) -> str:
    """The file of a constitution whose requests are written out, under a comment of these lines."""

    def dumped(part: Mapping[str, Any]) -> str:
        return str(yaml.dump(dict(part), Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=WIDTH))

    value: dict[str, Any] = constitution.model_dump(mode="json", exclude_defaults=True)
    examples = value.get("examples", {})
    if "critique" in examples and examples["critique"] == examples.get("revision"):
        examples["revision"] = examples["critique"] = _Shared(examples["critique"])
    keys = ("name", "preamble", "requests", "principles", "examples")
    texts = [dumped({key: value[key]}) for key in keys if key in value]
    if "origin" in value:
        for frame in [frame for frames in value["origin"].get("frames", {}).values() for frame in frames]:
            frame["between"] = _Flow(frame["between"])
        why = "What `rlaif constitution export` puts back around these texts. No prompt holds it."
        texts.append(f"# {why}\n{dumped({'origin': value['origin']})}")
    comment = "".join(f"# {line}\n" for words in about for line in textwrap.wrap(words, WIDTH))
    text = comment + "\n".join(texts)
    if Constitution.model_validate(load_value(text, "the written file")[0]) != constitution:
        raise WorkError("the constitution cannot be written as YAML that is read as it is", fix="report its text")
    return text


def import_to(paths: Sequence[str], out: Path) -> Imported:
    """Write the constitution of published files to `out`. Raises InputError."""
    if not re.match(NAME, out.stem):
        raise InputError(f"{shown(out.stem)} can be no name of a constitution", fix="name a file such as mine.yaml")
    imported = import_constitution(paths, out.stem)
    about = f"Imported by `rlaif constitution import` from {', '.join(imported.read)}."
    _write({out: as_yaml(imported.constitution, [about])})
    return imported


def export_to(path: str, shape: str, out: Path) -> tuple[list[Path], list[str]]:
    """Write the files of a shape to a folder, or to a file if there is one; their paths, and what they leave out."""
    if shape not in PUBLISHED:
        raise InputError(f"there is no format {shown(shape)}", fix=nearest(shape, PUBLISHED))
    exported = export_constitution(read_constitution(path), cast(Shape, shape))
    if out.suffix == ".json":
        if len(exported.files) > 1:
            raise InputError(f"{out} is one file, and there are {len(exported.files)}", fix="name a folder")
        files = dict(zip([out], exported.files.values(), strict=True))
    else:
        files = {out / name: text for name, text in exported.files.items()}
    _write(files)
    return list(files), exported.notes


def _write(files: Mapping[Path, str]) -> None:
    for path in files:
        if path.exists():
            raise InputError(f"{path} is there already", fix="name another, or remove it")
    for path, text in files.items():
        write_text(path, text)
