"""The walks through the code that CONTRIBUTING.md writes down lead where they say, each file met twice at most.

`python tests/test_walks.py` puts the lines right after an edit.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "CONTRIBUTING.md"
STEP = re.compile(r"^\d+\. `(?P<file>[\w/.]+\.py):(?P<line>\d+)` `(?P<name>[\w.]+)`", re.MULTILINE)


def walks(text: str) -> dict[str, str]:
    """Each walk by its title: the sections of third level under "Walks"."""
    section = text.partition("\n## Walks\n")[2].partition("\n## ")[0]
    titles = re.split(r"^### (.+)$", section, flags=re.MULTILINE)[1:]
    return dict(zip(titles[::2], titles[1::2], strict=True))


def line_of(file: str, name: str) -> int:
    """The line on which a function, class or method is defined. Raises KeyError where it is not."""
    lines: dict[str, int] = {}
    for node in ast.parse((ROOT / "rlaif" / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines[node.name] = node.lineno
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines[f"{node.name}.{inner.name}"] = inner.lineno
    return lines[name]


def put_right(text: str) -> str:
    def step(match: re.Match[str]) -> str:
        file, name = match["file"], match["name"]
        return match[0].replace(f"{file}:{match['line']}`", f"{file}:{line_of(file, name)}`")

    return STEP.sub(step, text)


def test_every_walk_leads_where_it_says() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = walks(text)
    assert len(found) == 4
    for title, steps in found.items():
        visits = [match["file"] for match in STEP.finditer(steps)]
        assert len(visits) >= 6, title
        assert max(Counter(visits).values()) <= 2, (title, Counter(visits).most_common(1))
    assert put_right(text) == text, "run `python tests/test_walks.py`"


def test_a_step_that_leads_nowhere_is_seen() -> None:
    assert put_right("1. `records.py:1` `Row.score`") != "1. `records.py:1` `Row.score`"
    with pytest.raises(KeyError):
        put_right("1. `records.py:1` `Row.nothing`")


if __name__ == "__main__":
    DOCUMENT.write_text(put_right(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
