"""What a Parquet file says of its columns, read without the library: that ends the process over a damaged footer.

The footer is one Thrift structure in the compact protocol. Its fields go by number, as the format names them
(parquet.thrift of apache/parquet-format).
"""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

MOST_FOOTER = 64_000_000  # bytes; one of a thousand row groups of 20 columns has 3 million
BYTE_ARRAYS = (6, 7)  # the types of texts and bytes
DELTA_BYTE_ARRAY = 7  # the encoding in which each value can be the one before it
DICTIONARY_PAGE = 2


class Chunk(NamedTuple):
    """A column of a row group. `repeated`: at most the bytes of a value that is stored once and in several rows."""

    name: str
    values: int
    unpacked: int
    packed: int
    repeated: int


class Group(NamedTuple):
    rows: int
    chunks: list[Chunk]


def row_groups(descriptor: int) -> list[Group]:
    """The row groups of an open file. Raises ValueError, IndexError, TypeError or KeyError where it is damaged."""
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 4, size - 8), "little")
    if length > min(MOST_FOOTER, size):
        raise ValueError(f"its footer has more than {MOST_FOOTER:,} bytes")
    footer = _Compact(os.pread(descriptor, length, size - 8 - length)).fields()
    return [
        Group(group[3], [_chunk(column[3], descriptor) for column in group[1] if 3 in column])
        for group in footer.get(4, ())
    ]


def _chunk(about: dict[int, Any], descriptor: int) -> Chunk:
    name = b".".join(about[3]).decode("utf-8", "replace")
    repeated = 1
    if about[1] in BYTE_ARRAYS:
        # A dictionary is the first page.
        page = _Compact(os.pread(descriptor, 64, max(0, min(about[9], about.get(11, about[9])))))
        kind, size = page.first_two()
        repeated = size if kind == DICTIONARY_PAGE else 1
        if DELTA_BYTE_ARRAY in about[2]:
            repeated = max(repeated, about[6])
    return Chunk(name, about[5], about[6], max(1, about[7]), repeated)


class _Compact:
    """Values of Thrift's compact protocol, from bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def fields(self) -> dict[int, Any]:
        """The fields of a structure by their numbers."""
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            found[number] = self._value(head & 0xF)
        return found

    def first_two(self) -> tuple[int, int]:
        """The first two fields of a page's header, its kind and its size unpacked; zeros where it begins otherwise."""
        return tuple(self._integer() if self._byte() == 0x15 else 0 for _ in range(2))  # type: ignore[return-value]

    def _value(self, kind: int, *, listed: bool = False) -> Any:
        if kind in (1, 2):  # in a structure the kind is the value
            return self._byte() == 1 if listed else kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return struct.unpack("<d", self._bytes(8))[0]
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            return self._list()
        if kind == 11:
            return self._map()
        if kind == 12:
            return self.fields()
        raise ValueError("its footer is damaged")

    def _list(self) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        return [self._value(head & 0xF, listed=True) for _ in range(count)]

    def _map(self) -> list[tuple[Any, Any]]:
        if not (count := self._varint()):
            return []
        kinds = self._byte()
        return [(self._value(kinds >> 4, listed=True), self._value(kinds & 0xF, listed=True)) for _ in range(count)]

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _bytes(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise IndexError("its footer is damaged")
        self.at += count
        return taken

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise ValueError("its footer is damaged")

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
