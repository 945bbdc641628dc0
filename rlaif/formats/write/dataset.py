"""Data sets that `datasets` and trainers load unedited: one Parquet file and a card in a folder.

Equal rows give equal bytes: nothing written holds a time, a path or a host.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from rlaif.errors import WorkError
from rlaif.files import new_file
from rlaif.formats.write.card import CardFacts, card_text
from rlaif.formats.write.files import beside, storable, whole
from rlaif.formats.write.shape import ColumnType, Shape

BATCH = 500  # rows in memory while a data set is written; what Parquet notes of each batch stays in memory, too
PARQUET = "data/train-00000-of-00001.parquet"  # inside its folder


def write_dataset(shape: Shape, rows: Iterable[dict[str, Any]], folder: Path, card: CardFacts) -> int:
    """Write `rows` as a data set with its card; returns how many rows. Raises WorkError as `DatasetWriter.finish`."""
    with DatasetWriter(shape, folder) as writer:
        for _, of_prompt in groupby(rows, key=lambda row: row["prompt_id"]):
            writer.extend(of_prompt)
        return writer.finish(card)


class DatasetWriter:
    """A data set that `datasets.load_dataset(folder)` loads, written a row at a time.

    `finish` renames it to its place; a block that ends without `finish` leaves nothing behind.
    """

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.count, self.folder = 0, folder
        self._shape, self._prompts, self._batch = shape, 0, list[dict[str, Any]]()
        self._file = ExitStack()
        self._own: list[str] = []  # columns beside the shape's: those that travelled with the prompts
        self._writer: Any = None  # Arrow's, from the first rows on

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def extend(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add the rows of one prompt, which may be none; a prompt that a file holds twice counts as two."""
        before = self.count
        for row in rows:
            self.count += 1
            self._batch.append(row)
            if len(self._batch) == BATCH:
                self._write()
        self._prompts += self.count > before

    def _write(self) -> None:
        if self._writer is None:
            self._open()
        own = {name: None for row in self._batch for name in row if name not in self._shape.columns}
        if new := [name for name in own if name not in self._own]:
            self._widen(new)
        self._writer.write_table(_table(self._batch, self._schema))
        self._batch.clear()

    def _open(self) -> None:
        import pyarrow.parquet

        data = self._parquet.parent
        data.mkdir(parents=True, exist_ok=True)
        for file in (self.folder / "README.md", self._parquet):  # from a run that was killed
            for left in file.parent.glob(f".{file.name}.[0-9]*.tmp"):
                left.unlink()
        self._file.callback(self._temporary.unlink, missing_ok=True)
        os.close(new_file(self._temporary))
        self._schema = _schema(self._shape)
        # Without statistics: nobody reads the least and the greatest text of every column and batch.
        writer = pyarrow.parquet.ParquetWriter(self._temporary, self._schema, write_statistics=False)
        self._writer = self._file.enter_context(writer)

    def _widen(self, names: Sequence[str]) -> None:
        """Add columns of the prompts' own file, as text; in the rows before they are null."""
        import pyarrow
        import pyarrow.parquet

        self._own += names
        schema = self._schema
        for name in names:
            schema = schema.append(pyarrow.field(name, pyarrow.string()))
        self._schema, narrow = schema, self._temporary.with_suffix(".narrow.tmp")
        self._writer.close()
        os.replace(self._temporary, narrow)
        os.close(new_file(self._temporary))
        try:
            self._writer = pyarrow.parquet.ParquetWriter(self._temporary, schema, write_statistics=False)
            self._file.enter_context(self._writer)
            with pyarrow.parquet.ParquetFile(narrow) as before:
                for batch in before.iter_batches(BATCH):
                    table = pyarrow.Table.from_batches([batch])
                    for name in names:
                        table = table.append_column(name, pyarrow.nulls(len(table), pyarrow.string()))
                    self._writer.write_table(table)
        finally:
            narrow.unlink()

    def finish(self, card: CardFacts) -> int:
        """Put the data set in its place, with its card; returns how many rows it has.

        Raises WorkError when there are none, or when the card's counts do not add up: prompts in = prompts out +
        dropped.
        """
        _check_counts(self.count, self._prompts, card)
        if self._batch:
            self._write()
        self._writer.close()
        os.replace(self._temporary, self._parquet)
        with whole(self.folder / "README.md") as file:
            file.write_text(card_text(self._shape, self.count, self._prompts, card), encoding="utf-8")
        return self.count

    @property
    def _parquet(self) -> Path:
        return self.folder / PARQUET

    @property
    def _temporary(self) -> Path:
        return beside(self._parquet)


def _table(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    """Through JSON: to read Python objects Arrow loads pandas, which costs every run time and memory."""
    import pyarrow.json

    text = b"\n".join(_encoded(row) for row in rows)
    return pyarrow.json.read_json(
        io.BytesIO(text),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )


def _encoded(row: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(row)
    except UnicodeEncodeError:
        return msgspec.json.encode(storable(row))


def _check_counts(rows: int, prompts_out: int, card: CardFacts) -> None:
    dropped = sum(card.dropped.values())
    if not rows:
        raise WorkError(f"nothing to write: of {card.prompts_in} prompts were dropped {_reasons(card.dropped)}")
    if card.prompts_in != prompts_out + dropped:
        raise WorkError(f"the counts do not add up: {card.prompts_in} prompts in, {prompts_out} out, {dropped} dropped")


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} ({reason})" for reason, count in sorted(dropped.items())) or "none"


def _schema(shape: Shape) -> Any:
    """In Arrow's own types: to build it with `datasets` costs a second of every run."""
    import pyarrow

    return pyarrow.schema([(name, _arrow(kind)) for name, kind in shape.columns.items()])


def _arrow(kind: ColumnType) -> Any:
    import pyarrow

    if isinstance(kind, str):
        return pyarrow.type_for_alias(kind)
    if isinstance(kind, Mapping):
        return pyarrow.struct([(name, _arrow(field)) for name, field in kind.items()])
    return pyarrow.list_(_arrow(kind[0]))
