"""The directories of numbered tags (IFDs) in TIFF files and EXIF, of unknown worth -> the few
values that matter.

Adobe's TIFF 6.0, section 2, and the BigTIFF extension of it; CIPA DC-008 (EXIF), section 4.6. A
directory is read as Pillow reads it: of a tag that comes twice the first counts, values that
together exceed the file are passed over, and what follows the first cut-off tag is lost.
"""

import re
import struct
from typing import NamedTuple

ORIENTATION = 0x0112

_MOST_ENTRIES = 1 << 16
_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_LETTERS = {
    3: "H",
    4: "L",
    5: "LL",
    6: "b",
    8: "h",
    9: "l",
    10: "ll",
    11: "f",
    12: "d",
    13: "L",
    16: "Q",
}
_FIRST_BYTES = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+")
_EXIF = re.compile(rb"^(Exif\0\0){1,2}")
_XMP = re.compile(rb'tiff:Orientation(="|>)([0-9])')


class Tag(NamedTuple):
    """The type of its values, how many there are, how many bytes they take, and where they
    begin.
    """

    kind: int
    values: int
    size: int
    at: int


class Layout(NamedTuple):
    """Byte order ("<" or ">"), BigTIFF or not, and where the first directory lies."""

    order: str
    big: bool
    first: int


def layout(data: bytes) -> Layout:
    """What the first bytes of a TIFF file say. Raises ValueError when they are cut short."""
    order, big = "<" if data[:2] == b"II" else ">", data[2:3] == b"+"
    at, letter = (8, "Q") if big else (4, "L")
    if len(data) < at + struct.calcsize("<" + letter):
        raise ValueError("damaged header")
    return Layout(order, big, struct.unpack_from(order + letter, data, at)[0])


def directory(
    data: bytes, place: Layout, at: int, most_entries: int = _MOST_ENTRIES
) -> dict[int, Tag]:
    """The tags of the directory at that byte, in its order. Raises ValueError when it says to have
    too many.
    """
    count, entry, inline = ("Q", "HHQ8s", 8) if place.big else ("H", "HHL4s", 4)
    start, step = at + struct.calcsize("<" + count), struct.calcsize("<" + entry)
    if start > len(data):
        return {}
    entries = struct.unpack_from(place.order + count, data, at)[0]
    if entries > most_entries:
        raise ValueError(f"a directory of {entries} tags, more than the {most_entries} allowed")
    found: dict[int, Tag] = {}
    elsewhere = 0
    for where in range(start, min(start + step * entries, len(data) - step + 1), step):
        number, kind, values, _ = struct.unpack_from(place.order + entry, data, where)
        size = values * _UNITS.get(kind, 0)
        if not size or number in found:
            continue
        begins = where + step - inline
        if size > inline:
            begins = struct.unpack_from(place.order + ("Q" if place.big else "L"), data, begins)[0]
            elsewhere += size
            if elsewhere > len(data):
                continue
            if begins + size > len(data):
                break
        found[number] = Tag(kind, values, size, begins)
    return found


def listed(data: bytes, place: Layout, at: int) -> set[int]:
    """The numbers of all tags of the directory. Raises ValueError when it does not lie in these
    bytes.
    """
    count, entry = ("Q", "HHQ8s") if place.big else ("H", "HHL4s")
    start, step = at + struct.calcsize("<" + count), struct.calcsize("<" + entry)
    entries = struct.unpack_from(place.order + count, data, at)[0] if start <= len(data) else 0
    if not entries or entries > _MOST_ENTRIES or start + step * entries > len(data):
        raise ValueError("its directory lies elsewhere")
    return {
        struct.unpack_from(place.order + "H", data, start + step * i)[0] for i in range(entries)
    }


def number(data: bytes, place: Layout, tag: Tag | None) -> float | None:
    """The first value of the tag; None when there is none, or bytes and text."""
    if tag is None or tag.kind not in _LETTERS:
        return None
    value, *below = struct.unpack_from(place.order + _LETTERS[tag.kind], data, tag.at)
    if not below:
        return float(value) if tag.kind in (11, 12) else int(value)
    return value / below[0] if below[0] else None


def turn(exif: bytes, xmp: bytes) -> int:
    """The orientation (1 to 8) in EXIF, or else in XMP; 1 where they say none, or are damaged."""
    exif = _EXIF.sub(b"", exif)
    found: float | None = None
    if exif:
        if exif[:4] not in _FIRST_BYTES or len(exif) < 8:
            return 1
        place = layout(exif)
        tags = directory(exif, place, place.first)
        if ORIENTATION in tags:
            found = number(exif, place, tags[ORIENTATION])
            return int(found) if found is not None and found in range(1, 9) else 1
    match = _XMP.search(xmp)
    return int(match[2]) if match and match[2] in b"12345678" else 1
