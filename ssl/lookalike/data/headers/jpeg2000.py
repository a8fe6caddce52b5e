"""The boxes and first markers of a JPEG 2000 file (ITU-T T.800, annexes A and I), of unknown worth
-> its header.
"""

import math
import struct
from typing import NamedTuple

from lookalike.data.headers.boxes import boxes, first
from lookalike.data.headers.header import COPY, MAX_PIXELS_WHOLE, MEMORY, Header

_START, _SIZE, _CODE, _CODES, _TILE = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF90
_MOST_PARTS, _MOST_TILES, _MOST_MARKERS = 1024, 1 << 14, 4096
_MOST_PACKETS, _MOST_PRECINCTS = 4_000_000, 1 << 18
_BLOCK_BYTES = 160  # that OpenJPEG holds of a code block
_INKS = 12  # EnumCS of CMYK
_BEYOND = 1 << 62  # the last box may go on behind the bytes that are there


class _About(NamedTuple):
    """What the boxes say: where the code begins, its sides, palette, transparency and inks."""

    at: int
    sides: tuple[int, int] | None = None
    palette: bool = False
    clear: bool = False
    inks: bool = False


class _Coded(NamedTuple):
    """What the code says: sides, number, bits and sign of its parts, and whether they differ."""

    width: int
    height: int
    parts: int
    bits: int
    signed: bool
    alike: bool
    blocks: float


def read(data: bytes) -> Header:
    """Raises ValueError for what is damaged, or made of more tiles and packets than an image
    needs.
    """
    about = _boxes(data) if data[:1] == b"\0" else _About(0)
    coded = _markers(data, about.at)
    if about.sides and about.sides != (coded.width, coded.height):
        raise ValueError("damaged header: two sizes")
    channels = 3 + about.clear if about.palette or about.inks else coded.parts
    eight = coded.bits in (8, 16) or coded.bits < 8
    eight &= not coded.signed and (channels in (1, 3) or about.clear)
    if not eight and (about.palette or about.inks or not coded.alike):
        raise ValueError(f"{coded.parts} parts of {coded.bits} bits and unlike types: not read")
    # OpenJPEG's values of four bytes, its code blocks, the values that it hands on, Pillow's image.
    taken = 6 * coded.parts + coded.blocks + 4
    return Header(
        "JPEG2000",
        coded.width,
        coded.height,
        limit=min(MAX_PIXELS_WHOLE, int(MEMORY / (taken + COPY))),
        form="such a JPEG 2000",
        channels=channels,
        bits=max(8, coded.bits),
        signed=coded.signed,
        alpha=about.clear,
        white=None if coded.signed or coded.bits >= 8 else float((1 << coded.bits) - 1),
        eight=eight,
        pillow=eight and (coded.bits <= 8 or (coded.bits == 16 and channels == 1)),
        taken=taken,
    )


def _boxes(data: bytes) -> _About:
    head = first(data, b"jp2h", 0, _BEYOND)
    code = first(data, b"jp2c", 0, _BEYOND)
    if head is None or code is None:
        raise ValueError("damaged header: no box of the code")
    inner = {name: (a, b) for name, a, b in reversed(list(boxes(data, *head)))}
    if b"ihdr" not in inner or head[1] > len(data):
        raise ValueError("damaged header: no sides")
    height, width, parts = struct.unpack_from(">IIH", data, inner[b"ihdr"][0])
    colour = inner.get(b"colr", (0, 0))[0]
    inks = data[colour : colour + 1] == b"\1" and data[colour + 3 : colour + 7] == bytes(
        (0, 0, 0, _INKS)
    )
    clear = _clear(data, *inner[b"cdef"], parts) if b"cdef" in inner else False
    return _About(code[0], (width, height), b"pclr" in inner, clear, bool(colour) and inks)


def _clear(data: bytes, at: int, end: int, parts: int) -> bool:
    """Whether the last of two or four parts is transparency."""
    count = min(int.from_bytes(data[at : at + 2], "big"), (end - at - 2) // 6)
    kinds = dict(struct.unpack_from(">HH", data, at + 2 + 6 * i) for i in range(count))
    return parts in (2, 4) and kinds.get(parts - 1) in (1, 2)


def _markers(data: bytes, at: int) -> _Coded:
    if data[at : at + 4] != b"\xff\x4f\xff\x51" or len(data) < at + 42:
        raise ValueError("damaged header: no size")
    right, down, left, top, across, high, tx, ty, parts = struct.unpack_from(">8IH", data, at + 8)
    if not 1 <= parts <= _MOST_PARTS or len(data) < at + 42 + 3 * parts or not across or not high:
        raise ValueError(f"damaged header: {parts} parts in tiles of {across} x {high} pixels")
    if left >= right or top >= down or tx > left or ty > top:
        raise ValueError("damaged header: an empty image")
    forms = [data[at + 42 + 3 * i : at + 45 + 3 * i] for i in range(parts)]
    if any(form[1:] != b"\1\1" for form in forms) and parts not in (3, 4):
        raise ValueError("bands of different sizes: not read")
    bits = [(form[0] & 127) + 1 for form in forms]
    tiles = math.ceil((right - tx) / across) * math.ceil((down - ty) / high)
    if tiles > _MOST_TILES:
        raise ValueError(f"{tiles} tiles, more than the {_MOST_TILES} allowed")
    # Where all lies in one tile, it is no larger than the image.
    tile = min(across, right - left), min(high, down - top)
    blocks = _judged(data, at + 2, tiles, tile, parts)
    alike = len(set(forms)) == 1
    signed = any(form[0] & 128 for form in forms)
    return _Coded(right - left, down - top, parts, max(bits), signed, alike, blocks)


def _judged(data: bytes, at: int, tiles: int, tile: tuple[int, int], parts: int) -> float:
    """Bytes a pixel of its code blocks. Raises ValueError where these, or its packets, are more
    than an image needs.
    """
    taken = 0.0
    for _ in range(_MOST_MARKERS):
        marker, length = struct.unpack_from(">HH", data, at) if at + 4 <= len(data) else (_TILE, 0)
        if marker == _TILE:
            return parts * taken
        if marker in (_CODE, _CODES):
            shift = 0 if marker == _CODE else 1 if parts < 257 else 2
            body = data[at + 4 + shift : at + 2 + length]
            layers = int.from_bytes(body[2:4], "big") if marker == _CODE else 1
            style = body[5:] if marker == _CODE else body[1:]
            taken = max(taken, _style(style, body[0] & 1, layers, tiles, tile, parts))
        at += 2 + max(2, length)
    raise ValueError(f"more than {_MOST_MARKERS} markers before its pixels")


def _style(
    style: bytes, own: int, layers: int, tiles: int, tile: tuple[int, int], parts: int
) -> float:
    """Of one coding style: levels, sides of code blocks, and, if its `own`, sides of precincts."""
    if len(style) < 5 or style[0] > 32 or (own and len(style) < 6 + style[0]):
        raise ValueError("damaged header: coding style")
    precincts = 0
    for level in range(style[0] + 1):
        size = style[5 + style[0] - level] if own else 0xFF
        across, down = (max(1, side >> level) for side in tile)
        precincts += math.ceil(across / (1 << (size & 15))) * math.ceil(down / (1 << (size >> 4)))
    # Packets are counted over all tiles; a tile's precincts are held while it is decoded.
    if tiles * precincts * parts * layers > _MOST_PACKETS or precincts * parts > _MOST_PRECINCTS:
        raise ValueError(f"{tiles * precincts * parts * layers} packets: too many")
    return _BLOCK_BYTES / (1 << (style[1] & 15) + (style[2] & 15) + 4)
