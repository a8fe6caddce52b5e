"""The chunks of a PNG file (W3C, third edition), of unknown worth -> its header."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace

from lookalike.data.headers import tags
from lookalike.data.headers.header import (
    MAX_PIXELS_WHOLE,
    MOST_CHUNKS,
    MOST_EXIF,
    MOST_TEXT,
    Header,
)

_MOST_ZIPPED = 64
_MOST_SAMPLE_BYTES = 100_000_000  # of a PNG unpacked: 8.5 ns each at worst
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types of PNG


def read(data: bytes) -> Header:
    """Also holds each critical chunk against its CRC: decoders skip the pixels' CRC, and flipped
    bits pass.
    """
    told: list[tuple[bytes, memoryview]] = []
    zipped = headers = moving = keyed = 0
    for name, body in chunks(data):
        zipped += name in (b"zTXt", b"iTXt", b"iCCP")
        headers += name == b"IHDR"
        moving += name == b"fcTL"
        keyed |= name == b"tRNS"
        if zipped > _MOST_ZIPPED or headers > 1:
            raise ValueError(f"{max(zipped, headers)} chunks {name!r}, more than an image has")
        if name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") and moving < 2:
            told.append((name, body))
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise ValueError("damaged header")
    width, height, bits, colours = struct.unpack_from(">IIBB", data, 16)
    row = width * bits * _CHANNELS.get(colours, 4) / 8
    limit = (
        min(MAX_PIXELS_WHOLE, int(_MOST_SAMPLE_BYTES * width / row)) if row else MAX_PIXELS_WHOLE
    )
    form = f"PNG of {bits} bits" if limit < MAX_PIXELS_WHOLE else ""
    found = Header("PNG", width, height, limit=limit, form=form, turn=_turn(told))
    channels, alpha = _CHANNELS.get(colours, 4) + 2 * (colours == 3), colours in (4, 6)
    channels += keyed and not alpha
    # Of 16 bits the decoder's values and its copy of the file, else Pillow's image and its copy.
    taken = 2.0 * channels + (2 * len(data) / max(1, width * height) if bits == 16 else 4)
    deep = bits == 16
    pillow = not deep or (colours == 0 and not keyed)
    found = replace(found, channels=channels, alpha=alpha or bool(keyed), bits=16 if deep else 8)
    return replace(found, pillow=pillow, taken=taken)


def chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and body of each. Raises ValueError where a critical one is damaged."""
    view, start = memoryview(data), len(_SIGNATURE)
    for _ in range(MOST_CHUNKS):
        if start + 12 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        checksum = int.from_bytes(view[end : end + 4], "big")
        if (
            name[:1].isupper()
            and end + 4 <= len(data)
            and zlib.crc32(view[start + 4 : end]) != checksum
        ):
            raise ValueError(f"damaged: wrong checksum of {name!r} at byte {start}")
        yield name, view[start + 8 : end]
        start = end + 4
    raise ValueError(f"more than {MOST_CHUNKS} chunks")


def _turn(told: list[tuple[bytes, memoryview]]) -> int:
    """The orientation as Pillow finds it: in eXIf, or a text of that name, or ImageMagick's, or in
    XMP.
    """
    texts: dict[bytes, bytes] = {}
    exif = xmp = b""
    for name, body in told:
        if name == b"eXIf":
            exif = b"Exif\0\0" + bytes(body)
            continue
        if len(body) > MOST_EXIF:
            continue
        key, text = _text(name, bytes(body))
        if name == b"tEXt" and key == b"exif":
            exif = text
        if name == b"iTXt" and key == b"XML:com.adobe.xmp":
            xmp = text
        texts[key] = text
    if not exif and (raw := texts.get(b"Raw profile type exif")):
        try:
            exif = bytes.fromhex(b"".join(raw.split(b"\n")[3:]).decode("latin-1"))
        except ValueError:
            return 1
    return tags.turn(exif, texts.get(b"XML:com.adobe.xmp") or xmp)


def _text(name: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Key and text of a chunk; both empty where it is damaged."""
    key, _, text = body.partition(b"\0")
    if name == b"tEXt":
        return key, text
    zipped = name == b"zTXt"
    if name == b"iTXt":
        if len(text) < 2 or text.count(b"\0", 2) < 2:
            return b"", b""
        zipped, text = text[0] != 0, text[1:2] + text[2:].split(b"\0", 2)[2]
        if not zipped:
            return key, text[1:]
    if not zipped or text[:1] not in (b"\0", b""):
        return b"", b""
    try:
        return key, zlib.decompressobj().decompress(text[1:], MOST_TEXT)
    except zlib.error:
        return key if name == b"zTXt" else b"", b""
