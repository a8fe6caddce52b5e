"""The segments of a JPEG file (ITU-T T.81, annex B), of unknown worth -> its frame, and what may be left out.

Fill bytes, junk and runs of markers are skipped by search, not byte by byte; real files have some dozens of segments.
"""

import itertools
import re
import struct
from dataclasses import dataclass

MOST_SEGMENTS = 4096
MOST_SCANS = 100
MOST_JUNK = 1 << 16
MOST_KEPT = 1 << 20
MOST_EXIF = 1 << 24
READ_AT_ONCE = 1 << 20
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
HUFFMAN_DCT = {0xC0, 0xC1, 0xC2}

_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers SOF0 … SOF15
_SCAN, _EXIF_OR_XMP = 0xDA, 0xE1
_ALONE = {0x01, *range(0xD0, 0xDA)}  # markers without a length
_TABLES = {0xC4, 0xCC, *range(0xDB, 0xE0)}
_NEEDED = {0xE0, 0xEE}  # JFIF and Adobe: they say what the colours are
_TOLD = {*range(0xE0, 0xF0), 0xFE} - _NEEDED  # EXIF, profiles, comments: nothing that changes a pixel
_MARKER = re.compile(rb"\xff([^\0\xff])", re.DOTALL)  # an escaped 0xFF is junk, one before another is fill
_IN_SCANS = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_BLOCK = 1 << 19
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass
class Segments:
    """What the segments up to the first scan say; `sampling` holds the horizontal and vertical factor of each part.

    `odd`: there was junk, or a first marker that decoders treat each in their way. `kept`: the spans of bytes up to
    the first scan that matter to the pixels; `scan`: where that begins. `several`: its parts, or bits, come in
    several scans, for which decoders hold the whole frame.
    """

    frame: int = 0
    bits: int = 0
    width: int = 0
    height: int = 0
    sampling: tuple[tuple[int, int], ...] = ()
    several: bool = False
    scans: int = 1
    odd: bool = False
    exif: bytes = b""
    xmp: bytes = b""
    kept: tuple[tuple[int, int], ...] = ()
    scan: int = 0


def read(data: bytes) -> Segments:
    """Raises ValueError for what no decoder takes, or what is built to keep one busy."""
    found, exif, kept, at, junk = Segments(), list[bytes](), [(0, 2)], 2, 0
    for _ in range(MOST_SEGMENTS):
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
    raise ValueError(f"more than {MOST_SEGMENTS} segments before its pixels")


def spliced(data: bytes, found: Segments) -> bytes | None:
    """The kept bytes up to the first scan; None where those are all."""
    whole = sum(end - start for start, end in found.kept) == found.scan
    return None if whole else b"".join(data[start:end] for start, end in found.kept)


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
    if sum(end - start for start, end in found.kept) > MOST_KEPT:
        raise ValueError(f"a header of more than {MOST_KEPT} bytes")
    parts = data[found.scan + 4] if found.scan + 4 < len(data) else 0
    if _filled(data, found.scan):
        raise ValueError(f"more than {_BLOCK} bytes of fill in its scans")
    found.several = found.frame in PROGRESSIVE or parts < len(found.sampling)
    if not found.several:
        return
    markers = [m[1][0] for m in itertools.islice(_IN_SCANS.finditer(data, found.scan), MOST_SEGMENTS)]
    found.scans = markers.count(_SCAN)
    if len(markers) == MOST_SEGMENTS or found.scans > MOST_SCANS:
        raise ValueError(f"{found.scans} scans in {len(markers)} segments, more than the {MOST_SCANS} allowed")


def _filled(data: bytes, scan: int) -> bool:
    """Whether a block of it is fill alone, which Pillow's decoder begins anew with each READ_AT_ONCE bytes it gets."""
    return any(
        data[start] == 0xFF and data.count(b"\xff", start, start + _BLOCK) == _BLOCK
        for start in range(scan, len(data), _BLOCK)
    )
