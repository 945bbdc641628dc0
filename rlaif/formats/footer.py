"""What a Parquet file says of its columns: how large their pages unpack, and the values that are stored once.

The library opens the file before and refuses most damaged footers; but it ends the process where it is asked, by
`metadata.row_group(...).column(...)`, for what some damaged ones say of a column. So that is read here.

The footer and the headers of pages are Thrift structures in the compact protocol. Their fields go by number, as the
format names them (parquet.thrift of apache/parquet-format).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

MOST_FOOTER = 64_000_000  # bytes; one of a thousand row groups of 20 columns has 3 million
HEADERS = (256, 64_000, 1_000_000)  # bytes that are read for the header of a page, which may quote two of its values
BYTE_ARRAY, BYTE_ARRAYS = 6, (6, 7)  # the types of texts and bytes
DELTA_BYTE_ARRAY = 7  # the encoding in which each value can be the one before it
CODED = (2, 8)  # the encodings by numbers of a dictionary
DICTIONARY_PAGE = 2
DICTIONARY, DATA, DATA_V2 = 7, 5, 8  # the fields of a page's header that say more of it, by its kind
CODECS = {0: None, 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
SMALL_DICTIONARY = 16_000  # bytes: the largest of its values is not looked for
LARGE_DICTIONARY, MOST_ENTRIES = 400_000_000, 4_000_000  # nor is that of one with so many bytes or values


class Page(NamedTuple):
    kind: int
    unpacked: int
    packed: int
    values: int
    encoding: int
    at: int  # where it begins behind its header


class Chunk(NamedTuple):
    """A column of a row group. `repeated`: at most the bytes of a value that is stored once and in several rows."""

    name: str
    path: tuple[str, ...]
    is_bytes: bool  # which are no text
    values: int
    unpacked: int
    packed: int
    repeated: int
    dictionary: int  # bytes of it
    coded: int  # values that are numbers of it
    pages: list[tuple[int, int]]  # the values and bytes, unpacked, of each


class Group(NamedTuple):
    rows: int
    chunks: list[Chunk]


def row_groups(descriptor: int) -> Iterator[Group]:
    """The row groups of an open file. Raises ValueError, IndexError, TypeError or KeyError where it is damaged."""
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 4, size - 8), "little")
    if length > min(MOST_FOOTER, size):
        raise ValueError(f"its footer has more than {MOST_FOOTER:,} bytes")
    footer = _Compact(os.pread(descriptor, length, size - 8 - length)).fields()
    leaves = [element for element in footer[2][1:] if not element.get(5)]
    for group in footer.get(4, ()):
        pairs = zip(group[1], leaves, strict=True)
        yield Group(group[3], [_chunk(column[3], leaf, descriptor) for column, leaf in pairs])


def _chunk(about: dict[int, Any], leaf: dict[int, Any], descriptor: int) -> Chunk:
    path = tuple(part.decode("utf-8", "replace") for part in about[3])
    pages = list(_pages(about, descriptor))
    first = pages[0] if pages and pages[0].kind == DICTIONARY_PAGE else None
    repeated = 1
    if about[1] in BYTE_ARRAYS:
        # A value of differences is at most its page.
        repeated = max((page.unpacked for page in pages if page.encoding == DELTA_BYTE_ARRAY), default=1)
        if first:
            repeated = max(repeated, _largest(first, about, descriptor))
    return Chunk(
        name=".".join(path),
        path=path,
        is_bytes=about[1] in BYTE_ARRAYS and 6 not in leaf and 10 not in leaf,  # nothing says that it is text
        values=about[5],
        unpacked=sum(page.unpacked for page in pages),
        packed=max(1, about[7]),
        repeated=repeated,
        dictionary=first.unpacked if first else 0,
        coded=sum(page.values for page in pages if page.kind != DICTIONARY_PAGE and page.encoding in CODED),
        pages=[(page.values, page.unpacked) for page in pages if page.kind != DICTIONARY_PAGE],
    )


def _pages(about: dict[int, Any], descriptor: int) -> Iterator[Page]:
    """The pages of a chunk, from the headers that the library goes by, and as far as it reads."""
    at = about[9] if about.get(11, 0) <= 0 else min(about[9], about[11])
    end, values = at + about[7], 0
    while at < end and values < about[5]:
        head, length = _header(descriptor, at)
        more: dict[int, Any] = next((head[field] for field in (DICTIONARY, DATA, DATA_V2) if field in head), {})
        encoding = more.get(4 if DATA_V2 in head else 2, 0)
        page = Page(head[1], head[2], head[3], more.get(1, 0), encoding, at + length)
        if min(page.unpacked, page.packed, page.values) < 0:
            raise ValueError("a page of it is damaged")
        yield page
        values += page.values if page.kind != DICTIONARY_PAGE else 0
        at = page.at + page.packed


def _header(descriptor: int, at: int) -> tuple[dict[int, Any], int]:
    for most in HEADERS:
        header = _Compact(os.pread(descriptor, most, at))
        try:
            return header.fields(), header.at
        except IndexError:
            if len(header.data) < most:
                break
    raise ValueError("a page of it is damaged")


def _largest(page: Page, about: dict[int, Any], descriptor: int) -> int:
    """The bytes of the largest value of a dictionary; those of the whole where that is small, or cannot be said."""
    import pyarrow

    size, codec = page.unpacked, CODECS.get(about[4], "")
    if size <= SMALL_DICTIONARY or size > LARGE_DICTIONARY or page.values > MOST_ENTRIES or codec == "":
        return size
    data = os.pread(descriptor, page.packed, page.at)
    if codec is not None:
        data = pyarrow.Codec(codec).decompress(data, size, asbytes=True)
    at = largest = 0
    while at + 4 <= size:
        length = int.from_bytes(data[at : at + 4], "little")
        largest = max(largest, length)
        at += 4 + length
    return min(largest, size)


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
