"""The shapes that data sets are written in, and what each says of itself; `test_additions.py` adds one."""

from __future__ import annotations

import pytest

from rlaif.formats import SHAPES, Shape


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_a_shape_is_complete(name: str, shape: Shape) -> None:
    assert shape.name == name and shape.about
    assert shape.columns["prompt_id"] == "string"  # by which the rows of a prompt are counted
    assert shape.from_preferences or shape.from_rows
