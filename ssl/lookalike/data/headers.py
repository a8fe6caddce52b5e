"""The first bytes of a picture file, of unknown worth -> what they say of it, before a pixel is decoded.

JPEG (ITU-T T.81, annex B), PNG (W3C, third edition) and WebP (RFC 9649) are read here; of other formats, and of
what is unusual in these, only the format is named: Pillow says the rest.
"""

import struct
import zlib
from dataclasses import dataclass

MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)

_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers SOF0 … SOF15
_PIXELS_PER_BYTE = 512  # the densest Huffman code: one bit for a block of 64, else decoders fill up with grey
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_MAY_TURN = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}  # PNG chunks that may hold an orientation


@dataclass(frozen=True)
class Header:
    """`width` and `height` in pixels as stored, 0 where only Pillow can tell; `exif` as a JPEG holds it.

    `sure`: nothing else has a say in sides and orientation; `plain`: a JPEG or WebP of 8-bit grey or colours, one
    frame, no transparency, no CMYK.
    """

    kind: str
    width: int = 0
    height: int = 0
    sure: bool = False
    plain: bool = False
    exif: bytes = b""


def read(data: bytes) -> Header:
    """Raises ValueError for an empty file, another format, a damaged header or PNG chunk."""
    kind = _kind(data)
    if kind == "JPEG":
        return _jpeg(data)
    if kind == "PNG":
        return _png(data)
    return _webp(data) if kind == "WEBP" else Header(kind)


def _kind(data: bytes) -> str:
    if not data:
        raise ValueError("empty file")
    for magic, kind in MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise ValueError(f"not a JPEG, PNG, WebP, BMP, TIFF or GIF file: it begins with {data[:12]!r}")


def _jpeg(data: bytes) -> Header:
    """Walks the segments to the first frame header; at anything odd it leaves the rest to Pillow."""
    at, exif, sure = 2, b"", True
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAMES:
            bits, height, width, parts = struct.unpack_from(">BHHB", data, at + 4)
            if width * height > _PIXELS_PER_BYTE * len(data):
                raise ValueError(f"{width} x {height} pixels in {len(data)} bytes: the header lies")
            return Header("JPEG", width, height, sure, sure and bits == 8 and parts in (1, 3), exif)
        if marker == 0xE1:
            body = data[at + 4 : at + 2 + length]
            sure = sure and not (exif and body[:4] == b"Exif") and b"tiff:Orientation" not in body
            exif = body if body[:6] == b"Exif\0\0" else exif
        at += 2 + length
    return Header("JPEG")


def _png(data: bytes) -> Header:
    """Also holds each critical chunk against its CRC: decoders skip the pixels' CRC, and flipped bits pass."""
    view, start, names = memoryview(data), len(MAGIC[1][0]), set()
    while start + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        checksum = int.from_bytes(view[end : end + 4], "big")
        if name[:1].isupper() and end + 4 <= len(data) and zlib.crc32(view[start + 4 : end]) != checksum:
            raise ValueError(f"damaged: wrong checksum of {name!r} at byte {start}")
        names.add(name)
        start = end + 4
    if data[12:16] != b"IHDR" or len(data) < 33:
        return Header("PNG")
    width, height = struct.unpack_from(">II", data, 16)
    return Header("PNG", width, height, sure=not names & _MAY_TURN)


def _webp(data: bytes) -> Header:
    """From the first chunk: the lossy frame, the lossless frame, or the extended canvas."""
    if len(data) < 30:
        raise ValueError("truncated header")
    kind, riff, chunk = data[12:16], *struct.unpack_from("<4xI8xI", data)
    whole = 12 + chunk + chunk % 2 == riff <= len(data) - 8
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
        return Header("WEBP", width, height)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return Header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, True, whole and not bits >> 28 & 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF, True, whole)
    raise ValueError("damaged header")
