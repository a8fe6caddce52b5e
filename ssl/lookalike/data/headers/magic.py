"""The first bytes of a file, of unknown worth -> which image format they name, if any."""

import re

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
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    (b"\xff\x0a", "JXL"),
    (b"\x93NUMPY", "NPY"),
    (b"\0\0\1\0", "ICO"),
)
KINDS = (
    "JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, JPEG 2000, AVIF, HEIC, JPEG XL, ICO, NPY or DICOM file"
)
HEAD = 4096
"""So many bytes are enough to name a format."""

_NETPBM = re.compile(rb"P[1-7][\s#]")
_NETPBM_SIDES = re.compile(
    rb"P[1-6](?:\s|#[^\n\r]*[\n\r])+\d+(?:\s|#[^\n\r]*[\n\r])+\d+(?=\s|#)|P7\s*\n(?:#[^\n]*\n)*"
    rb"(?:WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE)\s"
)
_AV1 = {b"avif", b"avis"}
_HEVC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_MOST_BRANDS = 64
_BMP_HEADS = {12, 16, 40, 52, 56, 64, 108, 124}


def kind_of(data: bytes) -> str:
    """The format that the bytes name; "" where they name none."""
    for magic, kind in MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _by_brands(data)
    if data[128:132] == b"DICM":
        return "DICOM"
    return "PPM" if _NETPBM.match(data) else ""


def is_image(head: bytes) -> bool:
    """Whether a file that begins so, 4096 bytes or all of it, is of a format that is read: by its
    first bytes alone, whatever its name, and without a decoder.

    Where these could also begin a text or a font, what follows must be a header too.
    """
    kind = kind_of(head)
    if kind == "PPM":
        return _NETPBM_SIDES.match(head) is not None
    if kind == "BMP":
        return len(head) >= 26 and int.from_bytes(head[14:18], "little") in _BMP_HEADS
    if kind == "ICO":
        return _is_icon(head)
    if kind == "JXL" and head[0] == 0xFF:
        return len(head) > 12
    return bool(kind)


def _by_brands(data: bytes) -> str:
    """Of an ISO base media file (ISO 14496-12): its first box names the formats it follows."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 16 + 4 * _MOST_BRANDS)
    brands = {data[8:12]} | {data[at : at + 4] for at in range(16, end - 3, 4)}
    return "AVIF" if brands & _AV1 else "HEIC" if brands & _HEVC else ""


def _is_icon(head: bytes) -> bool:
    """One entry or more, the first of which lies behind them all."""
    count = int.from_bytes(head[4:6], "little")
    size, at = (int.from_bytes(head[i : i + 4], "little") for i in (14, 18))
    return len(head) >= 22 and count > 0 and not head[9] and size > 0 and at >= 6 + 16 * count
