"""The first bytes of an image file, of unknown worth -> what they say of it, before a pixel is
decoded.

A module a format: jpeg, png (W3C, third edition), webp (RFC 9649), gif (89a), bmp and tiff, the
tags of the last and of EXIF in tags. What would keep a decoder busy for long is refused: real files
have some dozens of chunks, segments or tags.
"""

from dataclasses import replace

from lookalike.data.headers import bmp, gif, jpeg, png, tiff, webp
from lookalike.data.headers.header import (
    COPY,
    MAGIC,
    MAX_PIXELS,
    MAX_PIXELS_JPEG,
    MAX_PIXELS_WHOLE,
    MAX_SIDE,
    MEMORY,
    Header,
    check,
    too_large,
)

__all__ = [
    "COPY",
    "MAGIC",
    "MAX_PIXELS",
    "MAX_PIXELS_JPEG",
    "MAX_PIXELS_WHOLE",
    "MAX_SIDE",
    "MEMORY",
]
__all__ += ["Header", "check", "read", "too_large"]

_READERS = {
    "JPEG": jpeg.read,
    "PNG": png.read,
    "GIF": gif.read,
    "TIFF": tiff.read,
    "BMP": bmp.read,
    "WEBP": webp.read,
}


def read(data: bytes) -> Header:
    """Raises ValueError for an empty file, another format, a damaged header or PNG chunk, and for
    what would keep a decoder busy for longer than an image can.
    """
    kind = _kind(data)
    found = _READERS[kind](data)
    return found if found.form else replace(found, form=kind)


def _kind(data: bytes) -> str:
    if not data:
        raise ValueError("empty file")
    for magic, kind in MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise ValueError(f"not a JPEG, PNG, WebP, BMP, TIFF or GIF file: it begins with {data[:12]!r}")
