"""The segments of a JPEG file (ITU-T T.81, annex B), of unknown worth -> its frame, and what may be
left out.

Fill bytes, junk and runs of markers are skipped by search, not byte by byte; real files have some
dozens of segments.
"""

import io
import itertools
import os
import re
import struct
from typing import IO

from lookalike.data.headers import tags
from lookalike.data.headers.header import (
    COPY,
    MAX_PIXELS,
    MAX_PIXELS_JPEG,
    MEMORY,
    MOST_EXIF,
    MOST_JUNK,
    Header,
    Segments,
)

READ_AT_ONCE = 1 << 20

_END, _TAIL, _ADOBE = b"\xff\xd9", 64, 0xEE

_MOST_SEGMENTS = 4096
_MOST_SCANS = 100
_MOST_KEPT = 1 << 20
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_HUFFMAN_DCT = {0xC0, 0xC1, 0xC2}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers SOF0 … SOF15
_SCAN, _EXIF_OR_XMP = 0xDA, 0xE1
_ALONE = {0x01, *range(0xD0, 0xDA)}  # markers without a length
_TABLES = {0xC4, 0xCC, *range(0xDB, 0xE0)}
_NEEDED = {0xE0, 0xEE}  # JFIF and Adobe: they say what the colours are
_TOLD = {
    *range(0xE0, 0xF0),
    0xFE,
} - _NEEDED  # EXIF, profiles, comments: nothing that changes a pixel
_MARKER = re.compile(
    rb"\xff([^\0\xff])", re.DOTALL
)  # an escaped 0xFF is junk, one before another is fill
_IN_SCANS = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_BLOCK = 1 << 19
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_PIXELS_PER_BYTE = (
    512  # the densest Huffman code: one bit for a block of 64, else decoders fill up with grey
)
_MOST_BLOCKS = 50_000_000  # of 8 x 8, scan by scan: 6 ns each
_MOST_ODD = 10_000_000  # pixels of a JPEG in arithmetic or lossless code, which is slow


def read(data: bytes) -> Header:
    """Raises ValueError for what no decoder takes, or what is built to keep one busy."""
    found = _segments(data)
    pixels, parts = found.width * found.height, len(found.sampling)
    if pixels > _PIXELS_PER_BYTE * len(data):
        raise ValueError(
            f"{found.width} x {found.height} pixels in {len(data)} bytes: the header lies"
        )
    held = _held(found) if found.several else 0.0
    plain = found.bits == 8 and parts in (1, 3) and not found.odd
    taken = held + COPY if plain else max(held + 4, 4 + COPY)
    odd = found.frame not in _HUFFMAN_DCT
    most = _MOST_ODD if odd else MAX_PIXELS
    if held * pixels // 128 * found.scans > _MOST_BLOCKS:
        raise ValueError(
            f"{found.scans} scans over {found.width} x {found.height} pixels: too many"
        )
    return Header(
        "JPEG",
        found.width,
        found.height,
        limit=min(most, int(MEMORY / (held + 4 / 64))),
        whole=min(most, MAX_PIXELS_JPEG if plain and not held else int(MEMORY / taken)),
        held=held,
        form="progressive JPEG" if held else "JPEG",
        turn=tags.turn(found.exif, found.xmp),
        plain=plain,
        jpeg=found,
        channels=1 if parts == 1 else 3,
        bits=found.bits,
        eight=found.bits <= 8,
        pillow=found.bits <= 8,
        taken=8.0 if found.bits <= 8 else 2 * parts + 4 * parts,
    )


def look(data: bytes) -> Header:
    """Of the first bytes of a file alone: what its frame says. Raises ValueError where that does
    not lie in them.
    """
    found, at = Segments(), 2
    for _ in range(_MOST_SEGMENTS):
        marker, start, end = _next(data, at)
        if marker in _FRAMES:
            _see_frame(data, start, end, marker, found)
            channels = 1 if len(found.sampling) == 1 else 3
            return Header("JPEG", found.width, found.height, channels=channels, bits=found.bits)
        at = end
    raise ValueError(f"more than {_MOST_SEGMENTS} segments before its frame")


def usual(data: bytes, header: Header) -> bool:
    """Whether it is whole to its end, in Huffman code, and grey or Y'CbCr as libjpeg understands it
    (T.871, section 6; Adobe's marker, Technical Note 5116, section 18).
    """
    found = header.jpeg
    if found is None or found.frame not in _HUFFMAN_DCT:
        return False
    if not data[-_TAIL:].rstrip(b"\0").endswith(_END):
        return False
    for start, end in found.kept:
        marker, body = data[start + 1], data[start + 4 : end]
        if marker == _ADOBE and body[:5] == b"Adobe" and body[11:12] == b"\0":
            return len(found.sampling) == 1
        if marker == found.frame and body[6::3][:3] == b"RGB":
            return False
    return True


def file_of(data: bytes, header: Header) -> IO[bytes]:
    """The bytes as a file; of a JPEG's header only what matters to the pixels, for Pillow reads
    that in Python.
    """
    head = _spliced(data, header.jpeg) if header.jpeg else None
    return (
        io.BytesIO(data)
        if head is None or not header.jpeg
        else _Spliced(head, data, header.jpeg.scan)
    )


def _held(found: Segments) -> float:
    """Bytes a pixel of the coefficients of a whole frame, two each."""
    across, down = (max(1, *(factors[i] for factors in found.sampling), 1) for i in (0, 1))
    return 2 * sum(max(a, 1) * max(d, 1) / (across * down) for a, d in found.sampling)


def _segments(data: bytes) -> Segments:
    found, exif, kept, at, junk = Segments(), list[bytes](), [(0, 2)], 2, 0
    for _ in range(_MOST_SEGMENTS):
        marker, start, end = _next(data, at)
        junk += start - at
        found.odd |= start > at
        if junk > MOST_JUNK:
            raise ValueError(f"more than {MOST_JUNK} bytes of fill or junk between its segments")
        if marker == _SCAN:
            found.exif, found.kept, found.scan = b"".join(exif), tuple(kept), start
            _see_scans(data, found)
            return found
        if marker in _FRAMES:
            _see_frame(data, start, end, marker, found)
        elif marker == _EXIF_OR_XMP and not found.frame:
            _see_application(data[start + 4 : end], exif, found)
        if marker not in _TOLD and marker not in _ALONE:
            kept.append((start, end))
        at = end
    raise ValueError(f"more than {_MOST_SEGMENTS} segments before its pixels")


def _next(data: bytes, at: int) -> tuple[int, int, int]:
    """Marker of the next segment, where that begins (its last 0xFF) and ends."""
    match = _MARKER.search(data, at)
    if match is None:
        raise ValueError("damaged header: truncated before its first scan")
    marker, start = match[1][0], match.start()
    if marker in _ALONE:
        return marker, start, start + 2
    if marker not in _FRAMES | _TABLES | _TOLD | _NEEDED and marker != _SCAN:
        raise ValueError(f"damaged header: marker {marker:#x}")
    if start + 4 > len(data):
        raise ValueError("damaged header: truncated")
    return marker, start, start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4], "big"))


def _see_frame(data: bytes, start: int, end: int, marker: int, found: Segments) -> None:
    if found.frame:
        raise ValueError("damaged header: two frames")
    if end > len(data) or end < start + 10:
        raise ValueError("damaged header: truncated")
    found.bits, found.height, found.width, parts = struct.unpack_from(">BHHB", data, start + 4)
    if not 1 <= parts <= 4 or end < start + 10 + 3 * parts:
        raise ValueError(f"damaged header: a frame of {parts} parts")
    factors = data[start + 11 : start + 10 + 3 * parts : 3]
    found.frame, found.sampling = marker, tuple((factor >> 4, factor & 15) for factor in factors)


def _see_application(body: bytes, exif: list[bytes], found: Segments) -> None:
    if body.startswith(b"Exif\0\0"):
        exif.append(body[6:] if exif else body)
        if sum(map(len, exif)) > MOST_EXIF:
            raise ValueError(f"more than {MOST_EXIF} bytes of EXIF")
    elif body.startswith(_XMP):
        found.xmp = body[len(_XMP) :]


def _see_scans(data: bytes, found: Segments) -> None:
    """Whether there are several scans, and how many."""
    if not found.frame:
        raise ValueError("damaged header: no frame")
    if sum(end - start for start, end in found.kept) > _MOST_KEPT:
        raise ValueError(f"a header of more than {_MOST_KEPT} bytes")
    parts = data[found.scan + 4] if found.scan + 4 < len(data) else 0
    if _filled(data, found.scan):
        raise ValueError(f"more than {_BLOCK} bytes of fill in its scans")
    found.several = found.frame in _PROGRESSIVE or parts < len(found.sampling)
    if not found.several:
        return
    markers = [
        m[1][0] for m in itertools.islice(_IN_SCANS.finditer(data, found.scan), _MOST_SEGMENTS)
    ]
    found.scans = markers.count(_SCAN)
    if len(markers) == _MOST_SEGMENTS or found.scans > _MOST_SCANS:
        raise ValueError(
            f"{found.scans} scans in {len(markers)} segments, more than the {_MOST_SCANS} allowed"
        )


def _filled(data: bytes, scan: int) -> bool:
    """Whether a block of it is fill alone, which Pillow's decoder begins anew with each
    READ_AT_ONCE bytes it gets.
    """
    return any(
        data[start] == 0xFF and data.count(b"\xff", start, start + _BLOCK) == _BLOCK
        for start in range(scan, len(data), _BLOCK)
    )


def _spliced(data: bytes, found: Segments) -> bytes | None:
    """The kept bytes up to the first scan; None where those are all."""
    whole = sum(end - start for start, end in found.kept) == found.scan
    return None if whole else b"".join(data[start:end] for start, end in found.kept)


class _Spliced(io.BytesIO):
    """A file to read: `head`, then the bytes of `data` from `start` on."""

    def __init__(self, head: bytes, data: bytes, start: int) -> None:
        super().__init__()
        self._head, self._data, self._ahead, self._at = head, data, start - len(head), 0

    def read(self, size: int | None = -1) -> bytes:
        size = -1 if size is None else size
        if self._at < len(self._head):
            found = self._head[self._at :][: None if size < 0 else size]
        else:
            start = self._at + self._ahead
            found = self._data[start : None if size < 0 else start + size]
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        ends = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._data) - self._ahead}
        self._at = ends[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at
