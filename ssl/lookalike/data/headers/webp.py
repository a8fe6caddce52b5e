"""The chunks of a WebP file (RFC 9649), of unknown worth -> its header."""

import struct
from dataclasses import replace

from lookalike.data.headers import tags
from lookalike.data.headers.header import COPY, MAX_PIXELS_WHOLE, MEMORY, MOST_CHUNKS, Header

_EXIF_FLAG, _XMP_FLAG, _ALPHA_FLAG, _MOVES_FLAG = 0x08, 0x04, 0x10, 0x02
_STILL = {(b"VP8 ",), (b"VP8L",), (b"ALPH", b"VP8 ")}


def read(data: bytes) -> Header:
    """From the first chunk: the lossy frame, the lossless frame, or the extended canvas."""
    if len(data) < 30:
        raise ValueError("truncated header")
    kind, riff, chunk = data[12:16], *struct.unpack_from("<4xI8xI", data)
    whole = 12 + chunk + chunk % 2 == riff <= len(data) - 8
    if kind == b"VP8X":
        return _extended(data, riff)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height, alpha = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
        return _limited(Header("WEBP", width, height, plain=whole, alpha=alpha))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return _limited(Header("WEBP", width & 0x3FFF, height & 0x3FFF, plain=whole))
    raise ValueError("damaged header")


def _extended(data: bytes, riff: int) -> Header:
    width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
    flags, end, at = data[20], min(len(data), 8 + riff), 12
    shown, exif, xmp = list[bytes](), b"", b""
    for _ in range(MOST_CHUNKS):
        if at + 8 > end:
            break
        name, length = struct.unpack_from("<4sI", data, at)
        body, at = slice(at + 8, at + 8 + length), at + 8 + length + length % 2
        if name in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF", b"ANIM"):
            shown.append(name)
        elif name == b"EXIF" and flags & _EXIF_FLAG and not exif:
            exif = data[body]
        elif name == b"XMP " and flags & _XMP_FLAG and not xmp:
            xmp = data[body]
    else:
        raise ValueError(f"more than {MOST_CHUNKS} chunks")
    still = not flags & _MOVES_FLAG and tuple(shown) in _STILL and at == 8 + riff <= len(data)
    turn, alpha = tags.turn(exif, xmp), bool(flags & _ALPHA_FLAG)
    return _limited(Header("WEBP", width, height, turn=turn, plain=still, alpha=alpha))


def _limited(header: Header) -> Header:
    """Its limit: libwebp holds 4 bytes a pixel beside the result; Pillow two canvases, their copy
    and its image.
    """
    taken = 4 + 5 * header.alpha if header.plain else 16
    limit = min(MAX_PIXELS_WHOLE, MEMORY // max(taken, 4 + COPY))
    form, channels = "WebP" if header.plain else "animated or odd WebP", 3 + header.alpha
    return replace(header, limit=limit, form=form, channels=channels, taken=taken + 4)
