"""The first bytes of an image file, of unknown worth -> what they say of it, before a pixel is
decoded.

A module a format: jpeg, png (W3C, third edition), webp (RFC 9649), gif (89a), bmp, tiff, netpbm,
jpeg2000, heif (AVIF and HEIC), jxl, ico, npy and dicom; the tags of TIFF and EXIF in tags, the
boxes of ISO's formats in boxes, the video code in them in coded. What would keep a decoder busy for
long is refused: real files have some dozens of chunks, segments or tags.
"""

from collections.abc import Callable
from dataclasses import replace

from lookalike.data.headers import (
    bmp,
    dicom,
    gif,
    heif,
    ico,
    jpeg,
    jpeg2000,
    jxl,
    netpbm,
    npy,
    png,
    tiff,
    webp,
)
from lookalike.data.headers.header import (
    COPY,
    MAX_PIXELS,
    MAX_PIXELS_JPEG,
    MAX_PIXELS_WHOLE,
    MAX_SIDE,
    MEMORY,
    Header,
    check,
    too_large,
    within,
)
from lookalike.data.headers.magic import HEAD, KINDS, MAGIC, is_image, kind_of

__all__ = [
    "COPY",
    "HEAD",
    "MAGIC",
    "MAX_PIXELS",
    "MAX_PIXELS_JPEG",
    "MAX_PIXELS_WHOLE",
    "MAX_SIDE",
    "MEMORY",
]
__all__ += ["Header", "check", "is_image", "look", "read", "too_large", "within"]

_READERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": jpeg.read,
    "PNG": png.read,
    "GIF": gif.read,
    "TIFF": tiff.read,
    "BMP": bmp.read,
    "WEBP": webp.read,
    "PPM": netpbm.read,
    "JPEG2000": jpeg2000.read,
    "AVIF": heif.read_avif,
    "HEIC": heif.read_heic,
    "JXL": jxl.read,
    "ICO": ico.read,
    "NPY": npy.read,
    "DICOM": dicom.read,
}
_LOOKERS = _READERS | {
    "JPEG": jpeg.look,
    "TIFF": tiff.look,
    "AVIF": heif.look_avif,
    "HEIC": heif.look_heic,
}


def read(data: bytes) -> Header:
    """Raises ValueError for an empty file, another format, a damaged header or PNG chunk, and for
    what would keep a decoder busy for longer than an image can.
    """
    kind = _kind(data)
    found = _READERS[kind](data)
    return found if found.form else replace(found, form=kind)


def look(data: bytes) -> Header:
    """What the first bytes of a file say of its values; its limits, and what lies behind, are not
    judged. Raises ValueError where these bytes do not say it: of a TIFF the tags may lie at its
    end.
    """
    return _LOOKERS[_kind(data)](data)


def _kind(data: bytes) -> str:
    if not data:
        raise ValueError("empty file")
    kind = kind_of(data)
    if not kind:
        raise ValueError(f"not a {KINDS}: it begins with {data[:12]!r}")
    return kind
