"""The first bytes of an image file, of unknown worth -> what they say of it, before a pixel is decoded.

PNG (W3C, third edition), WebP (RFC 9649), GIF (89a) and BMP are read here, JPEG in segments.py, TIFF and EXIF in
tags.py. What would keep a decoder busy for long is refused: real files have some dozens of chunks, segments or tags.

`limit` follows from what Pillow 13 and torchvision 0.29 hold while they decode: their own image, at 1, 2 or 4 bytes a
pixel, then the copy that is handed on, of 3; below MEMORY together. `make fuzz` and tests/test_bombs.py measure it.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from lookalike.data import segments, tags
from lookalike.data.tags import Layout, Tag

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

MEMORY = 175_000_000  # bytes that decoding may hold: 200 MB less what is read in and loaded for the first time
MAX_PIXELS = 100_000_000  # of a JPEG, which can be decoded shrunk
MAX_PIXELS_JPEG = 64_000_000  # of one that is not: 192 MB
MAX_PIXELS_WHOLE = 25_000_000  # of the other formats
MAX_SIDE = 65_535
COPY = 3  # bytes a pixel of what is handed on

_PIXELS_PER_BYTE = 512  # the densest Huffman code: one bit for a block of 64, else decoders fill up with grey
_MOST_BLOCKS = 50_000_000  # of 8 x 8, scan by scan: 6 ns each
_MOST_ODD = 10_000_000  # pixels of a JPEG in arithmetic or lossless code, which is slow
_MOST_CHUNKS = 1 << 16
_MOST_ZIPPED = 64
_MOST_SAMPLE_BYTES = 100_000_000  # of a PNG unpacked: 8.5 ns each at worst
_MOST_TEXT = 1 << 20
_MOST_SUBBLOCKS = 8192
_MOST_RLE = 1_600_000  # pixels of a BMP that Pillow unpacks in Python
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types of PNG
_EXIF_FLAG, _XMP_FLAG, _ALPHA_FLAG, _MOVES_FLAG = 0x08, 0x04, 0x10, 0x02
_STILL = {(b"VP8 ",), (b"VP8L",), (b"ALPH", b"VP8 ")}
_MOST_TAGS, _MOST_VALUES, _MOST_STRIPS, _MOST_RATIONALS = 4096, 1 << 16, 1 << 15, 4096
_MOST_LAB = 12_500_000  # pixels of a TIFF in L*a*b*, at 30 ns each
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES = 256, 257, 258, 259, 262, 277, 284
_STRIPS, _ROWS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _COLOURS, _FORMAT, _XMP = 273, 278, 322, 323, 324, 320, 339, 700
_COUNTS = {279, 325}
_READ = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, _STRIPS, tags.ORIENTATION, _SAMPLES, _ROWS, 282, 283}
_READ |= {_PLANES, 296, 317, _TILE_WIDTH, _TILE_HEIGHT, _TILES, 338, _FORMAT, 530} | _COUNTS


@dataclass(frozen=True)
class Header:
    """`width` and `height` in pixels as stored, upright by `turn`, an EXIF orientation (1 where decoders turn it).

    `limit`: the pixels that are allowed unless the user says otherwise, `whole`: those that are when nothing is
    shrunk (of a JPEG, and with torchvision), `form`: what they are allowed for. `plain`: torchvision may decode it: a
    JPEG of 8-bit grey or three colours, or a WebP of one frame. `alpha`: a WebP with transparency. `held`: bytes a
    pixel that a JPEG's decoder holds, shrunk or not.
    """

    kind: str
    width: int
    height: int
    limit: int = MAX_PIXELS_WHOLE
    whole: int = MAX_PIXELS_WHOLE
    form: str = ""
    turn: int = 1
    plain: bool = False
    alpha: bool = False
    held: float = 0.0
    jpeg: segments.Segments | None = field(default=None, repr=False)


def read(data: bytes) -> Header:
    """Raises ValueError for an empty file, another format, a damaged header or PNG chunk, and for what would keep a
    decoder busy for longer than an image can.
    """
    kind = _kind(data)
    found = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "TIFF": _tiff, "BMP": _bmp, "WEBP": _webp}[kind](data)
    return found if found.form else replace(found, form=kind)


def check(header: Header, max_pixels: int | None) -> None:
    """Raises ValueError when the image is empty, or larger than `max_pixels`, or where that is None than the limits."""
    width, height = header.width, header.height
    if min(width, height) < 1:
        raise ValueError(f"{width} x {height} pixels: an empty picture")
    if max_pixels is None and max(width, height) > MAX_SIDE:
        raise ValueError(f"{width} x {height} pixels, a side of more than {MAX_SIDE}: data.max_pixels allows more")
    if width * height > (header.limit if max_pixels is None else max_pixels):
        raise too_large(width, height, header.form, header.limit if max_pixels is None else max_pixels)


def too_large(width: int, height: int, form: str, limit: int) -> ValueError:
    """The refusal, with the key that allows more."""
    allowed = f"more than the {limit} allowed for {form}"
    return ValueError(f"{width * height} pixels ({width} x {height}), {allowed}: data.max_pixels allows more")


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
    found = segments.read(data)
    pixels, parts = found.width * found.height, len(found.sampling)
    if pixels > _PIXELS_PER_BYTE * len(data):
        raise ValueError(f"{found.width} x {found.height} pixels in {len(data)} bytes: the header lies")
    held = _held(found) if found.several else 0.0
    plain = found.bits == 8 and parts in (1, 3) and not found.odd
    taken = held + COPY if plain else max(held + 4, 4 + COPY)
    odd = found.frame not in segments.HUFFMAN_DCT
    most = _MOST_ODD if odd else MAX_PIXELS
    if held * pixels // 128 * found.scans > _MOST_BLOCKS:
        raise ValueError(f"{found.scans} scans over {found.width} x {found.height} pixels: too many")
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
    )


def _held(found: segments.Segments) -> float:
    """Bytes a pixel of the coefficients of a whole frame, two each."""
    across, down = (max(1, *(factors[i] for factors in found.sampling), 1) for i in (0, 1))
    return 2 * sum(max(a, 1) * max(d, 1) / (across * down) for a, d in found.sampling)


def _png(data: bytes) -> Header:
    """Also holds each critical chunk against its CRC: decoders skip the pixels' CRC, and flipped bits pass."""
    told: list[tuple[bytes, memoryview]] = []
    zipped = headers = moving = 0
    for name, body in _png_chunks(data):
        zipped += name in (b"zTXt", b"iTXt", b"iCCP")
        headers += name == b"IHDR"
        moving += name == b"fcTL"
        if zipped > _MOST_ZIPPED or headers > 1:
            raise ValueError(f"{max(zipped, headers)} chunks {name!r}, more than an image has")
        if name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") and moving < 2:
            told.append((name, body))
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise ValueError("damaged header")
    width, height, bits, colours = struct.unpack_from(">IIBB", data, 16)
    row = width * bits * _CHANNELS.get(colours, 4) / 8
    limit = min(MAX_PIXELS_WHOLE, int(_MOST_SAMPLE_BYTES * width / row)) if row else MAX_PIXELS_WHOLE
    form = f"PNG of {bits} bits" if limit < MAX_PIXELS_WHOLE else ""
    return Header("PNG", width, height, limit=limit, form=form, turn=_png_turn(told))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, start = memoryview(data), len(MAGIC[1][0])
    for _ in range(_MOST_CHUNKS):
        if start + 12 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        checksum = int.from_bytes(view[end : end + 4], "big")
        if name[:1].isupper() and end + 4 <= len(data) and zlib.crc32(view[start + 4 : end]) != checksum:
            raise ValueError(f"damaged: wrong checksum of {name!r} at byte {start}")
        yield name, view[start + 8 : end]
        start = end + 4
    raise ValueError(f"more than {_MOST_CHUNKS} chunks")


def _png_turn(told: list[tuple[bytes, memoryview]]) -> int:
    """The orientation as Pillow finds it: in eXIf, or a text of that name, or ImageMagick's, or in XMP."""
    texts: dict[bytes, bytes] = {}
    exif = xmp = b""
    for name, body in told:
        if name == b"eXIf":
            exif = b"Exif\0\0" + bytes(body)
            continue
        if len(body) > segments.MOST_EXIF:
            continue
        key, text = _png_text(name, bytes(body))
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


def _png_text(name: bytes, body: bytes) -> tuple[bytes, bytes]:
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
        return key, zlib.decompressobj().decompress(text[1:], _MOST_TEXT)
    except zlib.error:
        return key if name == b"zTXt" else b"", b""


def _webp(data: bytes) -> Header:
    """From the first chunk: the lossy frame, the lossless frame, or the extended canvas."""
    if len(data) < 30:
        raise ValueError("truncated header")
    kind, riff, chunk = data[12:16], *struct.unpack_from("<4xI8xI", data)
    whole = 12 + chunk + chunk % 2 == riff <= len(data) - 8
    if kind == b"VP8X":
        return _webp_extended(data, riff)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height, alpha = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
        return _of_webp(Header("WEBP", width, height, plain=whole, alpha=alpha))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return _of_webp(Header("WEBP", width & 0x3FFF, height & 0x3FFF, plain=whole))
    raise ValueError("damaged header")


def _webp_extended(data: bytes, riff: int) -> Header:
    width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
    flags, end, at = data[20], min(len(data), 8 + riff), 12
    shown, exif, xmp = list[bytes](), b"", b""
    for _ in range(_MOST_CHUNKS):
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
        raise ValueError(f"more than {_MOST_CHUNKS} chunks")
    still = not flags & _MOVES_FLAG and tuple(shown) in _STILL and at == 8 + riff <= len(data)
    turn, alpha = tags.turn(exif, xmp), bool(flags & _ALPHA_FLAG)
    return _of_webp(Header("WEBP", width, height, turn=turn, plain=still, alpha=alpha))


def _of_webp(header: Header) -> Header:
    """Its limit: libwebp holds 4 bytes a pixel beside the result; Pillow two canvases, their copy and its image."""
    taken = 4 + 5 * header.alpha if header.plain else 16
    limit = min(MAX_PIXELS_WHOLE, MEMORY // max(taken, 4 + COPY))
    return replace(header, limit=limit, form="WebP" if header.plain else "animated or odd WebP")


def _gif(data: bytes) -> Header:
    """Walks to the first frame, which may be larger than the screen; in extensions as Pillow does."""
    if len(data) < 13:
        raise ValueError("damaged header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, blocks, junk = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0), 0, 0
    while data[at : at + 1] not in (b"", b";", b","):
        at, passed = _past_extension(data, at) if data[at] == ord("!") else (at + 1, 0)
        blocks, junk = blocks + passed, junk + (not passed)
        if blocks >= _MOST_SUBBLOCKS or junk > segments.MOST_JUNK:
            raise ValueError(f"more than {_MOST_SUBBLOCKS} blocks before its first frame")
    if data[at : at + 1] == b"," and at + 10 <= len(data):
        left, top, across, down = struct.unpack_from("<HHHH", data, at + 1)
        width, height = max(width, left + across), max(height, top + down)
    return Header("GIF", width, height)


def _past_extension(data: bytes, at: int) -> tuple[int, int]:
    """Where the next block begins, and how many blocks were passed: a few, then all up to an empty one."""
    label, at, blocks = data[at + 1 : at + 2], at + 2, 0
    few = 0 if label == b"\xfe" else 2 if label == b"\xff" and data[at + 1 : at + 12] == b"NETSCAPE2.0" else 1
    while at < len(data) and blocks < _MOST_SUBBLOCKS and (data[at] or blocks < few):
        at, blocks = at + 1 + data[at], blocks + 1
    return at + 1, blocks + 1


def _bmp(data: bytes) -> Header:
    """Pillow unpacks run lengths in Python, so these are bounded more narrowly."""
    if len(data) < 26:
        raise ValueError("damaged header")
    if struct.unpack_from("<I", data, 14)[0] == 12:
        return Header("BMP", *struct.unpack_from("<HH", data, 18))
    if len(data) < 54:
        raise ValueError("damaged header")
    width, height, compression = *struct.unpack_from("<II", data, 18), struct.unpack_from("<I", data, 30)[0]
    height = 2**32 - height if height >> 24 == 0xFF else height
    if compression not in (1, 2):
        return Header("BMP", width, height)
    if len(data) > 2 * width * height + 4 * height + _MOST_VALUES:
        raise ValueError(f"{width} x {height} pixels, run-length encoded in {len(data)} bytes: more than they can take")
    return Header("BMP", width, height, limit=_MOST_RLE, form="BMP in run-length code")


def _tiff(data: bytes) -> Header:
    """Judges the tags of the first image, which Pillow reads, several times, in Python."""
    if data[:4] == b"MM\0+":
        raise ValueError("a BigTIFF of the big-endian kind, which cannot be read")
    place = tags.layout(data)
    found = tags.directory(data, place, place.first, _MOST_TAGS)
    told = _told(found)
    sizes = [tags.number(data, place, found.get(tag)) for tag in (_WIDTH, _HEIGHT)]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError("damaged header: no width or height")
    width, height = (int(size) for size in sizes if size)
    peak = _tiff_peak(data, place, found, width, height)
    lab = tags.number(data, place, found.get(_PHOTOMETRIC)) == 8
    room = MEMORY - 4 * max(0, told - _MOST_TEXT)
    limit = min(_MOST_LAB if lab else MAX_PIXELS_WHOLE, int(room / peak))
    form = "TIFF" if limit == MAX_PIXELS_WHOLE else "such a TIFF"
    width, height = (height, width) if _tiff_turn(data, place, found) >= 5 else (width, height)
    return Header("TIFF", width, height, limit=limit, form=form)


def _tiff_turn(data: bytes, place: Layout, found: dict[int, Tag]) -> int:
    """By its own tag or else by XMP; Pillow turns it."""
    if tags.ORIENTATION in found:
        turn = tags.number(data, place, found[tags.ORIENTATION])
        return int(turn) if turn is not None and turn in range(1, 9) else 1
    return tags.turn(b"", data[found[_XMP].at :][: found[_XMP].size]) if _XMP in found else 1


def _told(found: dict[int, Tag]) -> int:
    """The bytes of all values. Raises ValueError where a tag has more of them than an image needs."""
    rationals = 0
    for name, tag in found.items():
        most = 3 * _MOST_VALUES if name == _COLOURS else _MOST_STRIPS if name in (_STRIPS, _TILES) else _MOST_VALUES
        if tag.values > most and (tag.kind not in (1, 2, 7) or name in _READ or name == _COLOURS):
            raise ValueError(f"tag {name} of {tag.values} values, more than the {most} allowed")
        rationals += tag.values * (tag.kind in (5, 10))
    if rationals > _MOST_RATIONALS:
        raise ValueError(f"{rationals} fractions in its tags, more than the {_MOST_RATIONALS} allowed")
    told = sum(tag.size for tag in found.values())
    if told > MEMORY // 8:
        raise ValueError(f"tags of {told} bytes, more than the {MEMORY // 8} allowed")
    return told


def _tiff_peak(data: bytes, place: Layout, found: dict[int, Tag], width: int, height: int) -> float:
    """Bytes a pixel: Pillow's image, and beside it a turned one, or a strip or tile of libtiff's, or our copy."""

    def number(tag: int, otherwise: int) -> int:
        value = tags.number(data, place, found.get(tag))
        return otherwise if value is None or not math.isfinite(value) else int(value)

    bits, compression, photometric = number(_BITS, 1), number(_COMPRESSION, 1), number(_PHOTOMETRIC, 0)
    samples = number(_SAMPLES, 3 if compression == 7 and photometric in (2, 6) else 1)
    stored = 4
    if samples == 1 and photometric in (0, 1, 3) and compression != 6:
        stored = 1 if bits <= 8 else 2 if bits <= 16 and number(_FORMAT, 1) == 1 else 4
    across, down = width, min(max(number(_ROWS, height), 1), height)
    if _STRIPS not in found:
        across, down = number(_TILE_WIDTH, width), number(_TILE_HEIGHT, height)
    if min(across, down) < 1 or max(across, down) > max(2 * max(width, height), 4096):
        raise ValueError(f"tiles of {across} x {down} pixels for {width} x {height}: damaged header")
    buffer = 0.0 if compression == 1 else across * down * max(4, samples * bits / 8) / (width * height)
    turned = stored if _tiff_turn(data, place, found) > 1 else 0
    return stored + max(COPY, turned, buffer)
