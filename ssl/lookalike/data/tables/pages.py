"""The pages of a Parquet file: how large each says it unpacks to, read from its header before
anything is unpacked.

Apache Parquet format, "Data Pages" (PageHeader), in Thrift's compact protocol. What the footer says
of sizes is not held against the pages by its readers, which make room for whatever a page header
claims.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_HEADER = 1 << 16
_USUAL = 1 << 10
_DEEPEST = 8
_UNPACKED, _PACKED = 2, 3
"""Numbers of the fields of a PageHeader: sizes in bytes without and with compression."""


class _Cursor:
    """A place in a page header. Raises IndexError beyond its end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while (byte := self.byte()) & 0x80:
            value, shift = value | (byte & 0x7F) << shift, shift + 7
            if shift > 63:
                raise ValueError("a number without end in a page header")
        return value | byte << shift

    def number(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise IndexError

    def fields(self, depth: int = 0) -> Iterator[tuple[int, int]]:
        """Number and value of each whole number in a struct; all else is passed over."""
        field = 0
        while head := self.byte():
            field = field + (head >> 4) if head >> 4 else self.number()
            kind = head & 15
            if kind in (4, 5, 6):
                yield field, self.number()
            elif kind > 2:  # 1 and 2 are true and false, without a byte of their own
                self._value(kind, depth)

    def _value(self, kind: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise ValueError("a page header nested too deeply")
        if kind in (1, 2, 3):
            self.skip(1)
        elif kind in (4, 5, 6):
            self.varint()
        elif kind == 7:
            self.skip(8)
        elif kind == 8:
            self.skip(self.varint())
        elif kind in (9, 10):
            head = self.byte()
            for _ in range(self.varint() if head >> 4 == 15 else head >> 4):
                self._value(head & 15, depth + 1)
        elif kind == 12:
            for _ in self.fields(depth + 1):
                pass
        else:
            raise ValueError("no page header")


class Page(NamedTuple):
    """Bytes of a page's header, and of the page with and without compression."""

    header: int
    packed: int
    unpacked: int


def pages(data: BinaryIO, start: int, end: int) -> Iterator[Page]:
    """The pages of a column's chunk. Raises ValueError where one is none."""
    while start < end:
        page = _page(data.fileno(), start)
        yield page
        start += page.header + page.packed


def _page(file: int, at: int) -> Page:
    for most in (_USUAL, _HEADER):
        cursor = _Cursor(os.pread(file, most, at))
        try:
            found = dict(cursor.fields())
        except IndexError:
            continue
        if found.get(_UNPACKED, -1) < 0 or found.get(_PACKED, -1) < 0:
            raise ValueError("no page header")
        return Page(cursor.at, found[_PACKED], found[_UNPACKED])
    raise ValueError(f"a page header that is cut short, or above {_HEADER} bytes")
