"""The boxes of an AVIF or HEIC file (ISO 23008-12; AVIF 1.1), of unknown worth -> its header."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from lookalike.data.headers import coded
from lookalike.data.headers.boxes import boxes, first
from lookalike.data.headers.header import COPY, MAX_PIXELS_WHOLE, MEMORY, Header, too_large

_MOST_ITEMS = 4096
_BEYOND = 1 << 62  # the last box may go on behind the bytes that are there
# Bytes a pixel that the decoders hold, measured, by chroma_format_idc: grey, 4:2:0, 4:2:2, 4:4:4.
# Deep ones take more, Pillow's AVIF its own copies.
_HELD = (6.0, 8.5, 11.0, 15.0)
_DEEP, _COPIES = 1.7, 4.0
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
# (turns to the left, mirror) -> the EXIF orientation that says the same; 0: top and bottom change
# places, 1: left and right.
_TURNS: dict[tuple[int, int | None], int]
_TURNS = {(0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6}
_TURNS |= {(0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7, (0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5}


# Of AV1: monochrome, and whether there are half as many columns and rows of colour.
_CHROMA = (3, 3, 2, 1, 0, 0, 0, 0)


class _Property(NamedTuple):
    name: bytes
    body: bytes


def read_avif(data: bytes) -> Header:
    """As decoders leave it, to be turned. Raises ValueError where its pictures are larger than they
    are said to be, too.
    """
    return _checked(data, look_avif(data))


def read_heic(data: bytes) -> Header:
    """As libheif turns and crops it."""
    return _checked(data, look_heic(data))


def look_avif(data: bytes) -> Header:
    """Of the first bytes of a file, which hold its properties."""
    return _header("AVIF", data)


def look_heic(data: bytes) -> Header:
    """Of the first bytes of a file, which hold its properties."""
    return _header("HEIC", data)


def still(data: bytes) -> bytes:
    """The AVIF file as one of an image alone, whose header was judged, where it is also a
    sequence, whose frames may claim other sides.
    """
    return data[:8] + b"avif" + data[12:] if data[8:12] == b"avis" else data


def _checked(data: bytes, header: Header) -> Header:
    for width, height in coded.sides(data):
        if width * height > max(header.limit, 4096):
            raise too_large(width, height, f"{header.form}, in a picture of it", header.limit)
    return header


def _header(kind: str, data: bytes) -> Header:
    meta = first(data, b"meta", 0, _BEYOND)
    if meta is None or meta[1] > len(data):
        raise ValueError("damaged header: no properties")
    about = _Meta(data, meta[0] + 4, meta[1])
    found = about.properties(about.primary)
    width, height = about.sides(found, kind == "HEIC")
    bits, chroma = about.values(found)
    turn = _turn(found)
    if kind == "HEIC":
        width, height, turn = (*((height, width) if turn >= 5 else (width, height)), 1)
    alpha = about.clear()
    taken = _HELD[chroma] * (_DEEP if bits > 8 else 1) + _COPIES * (kind == "AVIF") + 2 * alpha
    return Header(
        kind,
        width,
        height,
        limit=min(MAX_PIXELS_WHOLE, int(MEMORY / (taken + COPY))),
        form=kind if bits <= 8 else f"{kind} of {bits} bits",
        turn=turn,
        channels=(3 if chroma else 1) + alpha,
        bits=bits,
        alpha=alpha,
        eight=kind == "AVIF",
        pillow=kind == "AVIF" and bits <= 8,
        taken=taken,
    )


def _turn(found: list[_Property]) -> int:
    by = {name: body[:1] for name, body in found if body}
    left = by[b"irot"][0] & 3 if b"irot" in by else 0
    return _TURNS[left, by[b"imir"][0] & 1 if b"imir" in by else None]


class _Meta:
    """What the box `meta` says: the primary image, properties of images, and references."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data = data
        self._boxes = {name: (a, b) for name, a, b in boxes(data, start, end)}
        self.primary = self._primary()
        self._references = list(self._refer())
        self._all, self._of = self._properties()

    def _primary(self) -> int:
        at, _ = self._span(b"pitm")
        return int.from_bytes(self._data[at + 4 : at + (8 if self._data[at] else 6)], "big")

    def _span(self, name: bytes) -> tuple[int, int]:
        if name not in self._boxes:
            raise ValueError(f"damaged header: no box {name!r}")
        return self._boxes[name]

    def _refer(self) -> Iterator[tuple[bytes, int, list[int]]]:
        """Kind, from and to of each reference."""
        if b"iref" not in self._boxes:
            return
        at, end = self._boxes[b"iref"]
        size = 4 if self._data[at] else 2
        for name, start, stop in boxes(self._data, at + 4, end):
            ids = [
                int.from_bytes(self._data[i : i + size], "big")
                for i in (start, *range(start + size + 2, stop, size))
            ]
            yield name, ids[0], ids[1:]

    def _properties(self) -> tuple[list[_Property], dict[int, list[int]]]:
        """All properties, and which of them, counted from 1, each image has."""
        at, end = self._span(b"iprp")
        parts = {name: (a, b) for name, a, b in boxes(self._data, at, end)}
        if b"ipco" not in parts or b"ipma" not in parts:
            raise ValueError("damaged header: no properties")
        all_ = [_Property(n, self._data[a:b]) for n, a, b in boxes(self._data, *parts[b"ipco"])]
        return all_, self._associations(*parts[b"ipma"])

    def _associations(self, at: int, end: int) -> dict[int, list[int]]:
        version, flags, count = self._data[at], self._data[at + 3] & 1, self._number(at + 4, 4)
        if count > _MOST_ITEMS:
            raise ValueError(f"{count} images in it, more than the {_MOST_ITEMS} allowed")
        found, size, wide = dict[int, list[int]](), 4 if version else 2, 1 + flags
        at += 8
        for _ in range(count):
            item, many = self._number(at, size), self._number(at + size, 1)
            at += size + 1
            ids = [
                self._number(at + wide * i, wide) & ((1 << 8 * wide - 1) - 1) for i in range(many)
            ]
            found.setdefault(item, ids)
            at += wide * many
        if at > end:
            raise ValueError("damaged header: properties of images")
        return found

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._data[at : at + size], "big")

    def properties(self, item: int) -> list[_Property]:
        """Those of an image, in their order."""
        return [self._all[i - 1] for i in self._of.get(item, ()) if 0 < i <= len(self._all)]

    def sides(self, found: list[_Property], cropped: bool) -> tuple[int, int]:
        """Width and height before it is turned; with `cropped` those of its clean aperture."""
        by = dict(found)
        if len(by.get(b"ispe", b"")) < 12:
            raise ValueError("damaged header: no width or height")
        width, height = struct.unpack_from(">II", by[b"ispe"], 4)
        if cropped and len(by.get(b"clap", b"")) >= 16:
            across, of, down, of_down = struct.unpack_from(">IIII", by[b"clap"])
            if not of or not of_down or across // of > width or down // of_down > height:
                raise ValueError("damaged header: an aperture larger than the image")
            width, height = across // of, down // of_down
        return width, height

    def values(self, found: list[_Property]) -> tuple[int, int]:
        """Bits, and chroma_format_idc, by the image's own decoder or its first tile's."""
        tiles = [
            to[0]
            for name, at, to in self._references
            if at == self.primary and to and name == b"dimg"
        ]
        for own in (found, *(self.properties(tile) for tile in tiles)):
            for name, body in own:
                if name == b"av1C" and len(body) >= 3:
                    bits = 8 if not body[2] & 0x40 else 12 if body[2] & 0x20 else 10
                    return bits, _CHROMA[body[2] >> 2 & 7]
                if name == b"hvcC" and len(body) >= 18:
                    return 8 + (body[17] & 7), body[16] & 3
        raise ValueError("an image in neither HEVC nor AV1 code, which is not read")

    def clear(self) -> bool:
        """Whether another image is its transparency."""
        others = [at for name, at, to in self._references if name == b"auxl" and self.primary in to]
        return any(
            name == b"auxC" and body[4:].startswith(_ALPHA)
            for other in others
            for name, body in self.properties(other)
        )
