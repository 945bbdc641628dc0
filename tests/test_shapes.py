"""The shapes that data sets are written in: what each says of itself, and what it takes to add one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from echo import Echo, write_project
from serving import serve

from rlaif.formats import SHAPES, Shape

ROOT = Path(__file__).parent.parent

LINES = """
from rlaif.formats.write.shape import Shape, texts

LINES = Shape(
    name="lines",
    columns=texts("prompt", "better", "prompt_id"),
    about="The chosen completion as one line.",
    from_preferences=lambda preferences, dropped: (
        {
            "prompt": preference.prompt.text,
            "better": preference.chosen.completion.text,
            "prompt_id": preference.prompt.id,
        }
        for preference in preferences
    ),
)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, with one more shape: its file, its import and its line in `SHAPES`."""
    package = shutil.copytree(
        ROOT / "rlaif",
        tmp_path / "site/rlaif",
        ignore=shutil.ignore_patterns("*.safetensors", "bundled", "__pycache__"),
    )
    shutil.copytree(ROOT / "prompts", package / "bundled/prompts")  # as in a wheel
    folder = package / "formats/write"
    (folder / "lines.py").write_text(LINES, encoding="utf-8")
    registry = (folder / "__init__.py").read_text(encoding="utf-8")
    assert registry.endswith("}\n")
    registry = registry.removesuffix("}\n") + '    "lines": LINES,\n}\n'
    registry = registry.replace("\nfrom", "\nfrom rlaif.formats.write.lines import LINES\nfrom", 1)
    (folder / "__init__.py").write_text(registry, encoding="utf-8")
    return package


def test_a_shape_is_one_file_and_its_registration(package: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rlaif.cli", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(package.parent)},
            capture_output=True,
            text=True,
        )

    with serve({name: Echo(name) for name in ("one", "two", "judge")}) as url:
        write_project(tmp_path, url)
        done = command("run", "echo.yaml")
        assert done.returncode == 0, done.stderr
    for to in ("lines.jsonl", "lines"):
        done = command("export", "runs/echo", "--format", "lines", "--to", to)
        assert done.returncode == 0, done.stderr
    table = pyarrow.parquet.read_table(tmp_path / "lines" / "data")
    assert table.column_names == ["prompt", "better", "prompt_id"]
    assert table.num_rows == len((tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines()) > 0
    assert "The chosen completion as one line." in (tmp_path / "lines/README.md").read_text(encoding="utf-8")
    refused = command("export", "runs/echo", "--format", "line", "--to", "x")
    assert refused.returncode == 2 and ", ranked, lines" in refused.stderr


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_a_shape_is_complete(name: str, shape: Shape) -> None:
    assert shape.name == name and shape.about
    assert shape.columns["prompt_id"] == "string"  # by which the rows of a prompt are counted
    assert shape.from_preferences or shape.from_rows or shape.from_revised
