"""One variable of a MATLAB file, level 5, of unknown worth -> texts, numbers, lists and
dictionaries.

Of "MAT-File Format" (MathWorks) only what annotations need: numbers, texts, cells, structs; no
objects, no functions. scipy.io.loadmat ends the process with a segmentation fault where bytes are
wrong (1.17); here every length is held against what is there, and what is made is bounded by
`MAX_UNPACKED` bytes.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.data.index import os_errors_as
from lookalike.errors import DataError, printable
from lookalike.folder import read_regular

MAX_BYTES, MAX_UNPACKED = 16_000_000, 16_000_000
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_TEXTS = {1: "ascii", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_ENDS = {"<": "-le", ">": "-be"}
_CELL, _STRUCT, _CHAR, _PLAIN = 1, 2, 4, range(6, 16)
_DEEPEST = 4
_MOST, _LONGEST = 1 << 18, 1 << 20
"""Values in an array of cells or structs, and bytes of one of numbers or text."""


def variable(file: Path, name: str, *fields: str) -> list[Any]:
    """The elements of an array: of structs as dictionaries of these fields (none: of all), of cells
    as they are.

    In them an array of one number is the number, and what lies deeper than four in one another is
    None. Raises DataError when the file cannot be read, or has no such array.
    """
    try:
        with os_errors_as(file):
            data = read_regular(file, MAX_BYTES)
    except ValueError as error:
        raise DataError(f"{printable(file)}: {error}: fetch the file again") from error
    if not data:
        raise DataError(
            f"{printable(file)}: 0 bytes, 1 to {MAX_BYTES} are allowed: fetch the file again"
        )
    try:
        return _found(data, name, fields)
    except (ValueError, struct.error, zlib.error) as error:
        reason = printable(str(error))[:120]
        raise DataError(
            f"{printable(file)}: no MATLAB file that can be read ({reason}): fetch the file again"
        ) from error


def _found(data: bytes, name: str, fields: tuple[str, ...]) -> list[Any]:
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(data[124:128])
    if order is None:
        raise ValueError("not of level 5")
    room = MAX_UNPACKED
    for kind, body in _elements(memoryview(data)[128:], order):
        if kind == _COMPRESSED:
            inner = _unpacked(body, room)
            room -= len(inner)
            kind, body = next(_elements(memoryview(inner), order), (kind, body))
        known, found = _matrix(body, order, name, fields) if kind == _MATRIX else ("", None)
        if known == name:
            if not isinstance(found, list):
                raise ValueError(f"{name} is no array")
            return found
    raise ValueError(f"no {name} in it")


def _unpacked(body: memoryview, room: int) -> bytes:
    unpack = zlib.decompressobj()
    inner = unpack.decompress(body, max(room, 1))
    if not unpack.eof:
        raise ValueError(f"a compressed part is cut short, or above {MAX_UNPACKED} bytes")
    return inner


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Kind and bytes of each data element; up to four bytes lie in the tag itself."""
    at = 0
    while at < len(data):
        (kind,) = struct.unpack_from(f"{order}I", data, at)
        if size := kind >> 16:
            kind, start, most = kind & 0xFFFF, at + 4, 4
            at += 8
        else:
            (size,) = struct.unpack_from(f"{order}I", data, at + 4)
            start, most = at + 8, len(data) - at - 8
            at = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if size > most or start + size > len(data):
            raise ValueError("cut short")
        yield kind, data[start : start + size]


def _matrix(
    body: memoryview, order: str, wanted: str = "", only: tuple[str, ...] = (), depth: int = 0
) -> tuple[str, Any]:
    """Name and value of a matrix; no value where it has another name than the one wanted."""
    if not body or depth > _DEEPEST:
        return "", None
    parts = _elements(body, order)
    flags, dims = _numbers(parts, order, {_UINT32}), _numbers(parts, order, {_INT32})
    name = bytes(_next(parts, {_INT8})[1]).decode("ascii")
    if name != wanted:
        return name, None
    number, count = (flags or [0])[0] & 0xFF, math.prod(dims)
    if number == _CHAR:
        kind, text = _next(parts, set(_TEXTS))
        encoding = _TEXTS[kind]
        return name, bytes(text).decode(
            encoding + _ENDS[order] if encoding in ("utf-16", "utf-32") else encoding
        )
    if number in _PLAIN:
        values = _numbers(parts, order, set(_NUMBERS))
        return name, values[0] if len(values) == 1 else values
    if number not in (_CELL, _STRUCT):
        raise ValueError(f"an array of class {number}, neither numbers, text, cells nor structs")
    fields = _fields(parts, order) if number == _STRUCT else [""]
    if count * len(fields) > _MOST:
        raise ValueError(f"more than {_MOST} values in {name[:40]}")
    inner = list(islice((part for kind, part in parts if kind == _MATRIX), _MOST + 1))
    if len(inner) != count * len(fields):
        raise ValueError(f"{len(inner)} values for {count} times {len(fields)}")
    if number == _CELL:
        return name, [_matrix(each, order, depth=depth + 1)[1] for each in inner]
    kept = [(k, field) for k, field in enumerate(fields) if not only or field in only]
    return name, [
        {field: _matrix(inner[k + start], order, depth=depth + 1)[1] for k, field in kept}
        for start in range(0, len(inner), max(1, len(fields)))
    ]


def _fields(parts: Iterator[tuple[int, memoryview]], order: str) -> list[str]:
    """The names of a struct's fields, each in as many bytes as the number before them says."""
    width = (_numbers(parts, order, {_INT32}) or [0])[0]
    names = bytes(_next(parts, {_INT8})[1]).decode("ascii")
    return (
        [names[k : k + width].partition("\0")[0] for k in range(0, len(names), width)]
        if width > 0
        else []
    )


def _numbers(parts: Iterator[tuple[int, memoryview]], order: str, kinds: set[int]) -> list[Any]:
    kind, body = _next(parts, kinds)
    numbers: list[Any] = np.frombuffer(body, order + _NUMBERS[kind]).tolist()
    return numbers


def _next(parts: Iterator[tuple[int, memoryview]], kinds: set[int]) -> tuple[int, memoryview]:
    kind, body = next(parts, (0, None))
    if body is None or kind not in kinds:
        raise ValueError(f"an element of kind {kind} where another belongs")
    if len(body) > _LONGEST:
        raise ValueError(f"an element of {len(body)} bytes, more than the {_LONGEST} allowed")
    return kind, body
