"""The description of a shape: how its rows are made, the types of its columns, its words on the card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.records import Preference, Row

Fields = dict[str, Any]  # one row of a data set, by column
ColumnType = str | Sequence["ColumnType"] | Mapping[str, "ColumnType"]  # Arrow's name, a list of one type, or fields

TEXT, NUMBER, INTEGER = "string", "double", "int64"
MESSAGES: ColumnType = [{"role": TEXT, "content": TEXT}]


def texts(*names: str) -> dict[str, ColumnType]:
    return dict.fromkeys(names, TEXT)


def numbers(*names: str) -> dict[str, ColumnType]:
    return dict.fromkeys(names, NUMBER)


ORIGIN = texts("prompt_id", "split", "source")

PREFERENCE_TRAINING = """
from trl import DPOTrainer  # or RewardTrainer

DPOTrainer(model="path/to/model", train_dataset=data).train()
"""


@dataclass(frozen=True)
class Shape:
    """A data set that can be written. The functions `from_...` make its rows; at least one of them is given.

    `from_preferences` counts the prompts that it drops, by reason. `from_rows` takes the weights of the aspects.
    `columns` fixes the schema: inferred from the rows, a column that happens to hold only None would change its type.
    `about`, `columns_told` and `training` (Python code) stand in the card.
    """

    name: str
    columns: Mapping[str, ColumnType]
    about: str
    columns_told: str = ""
    training: str = ""
    from_preferences: Callable[[Iterable[Preference], Counter[str]], Iterator[Fields]] | None = None
    from_rows: Callable[[Iterable[Row], Mapping[str, float]], Iterator[Fields]] | None = None
