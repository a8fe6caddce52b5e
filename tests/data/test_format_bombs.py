"""Files of the further formats that are built to take a decoder's time or memory are refused from
their headers; ordinary large images of them decode within the limits.
"""

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import imagecodecs
import numpy as np
import pytest

import deep
import heics
import mutants
from forked import Judged, forked
from heics import box, full
from lookalike.data.decode import BadImage, Opened, decode, is_image, look
from lookalike.data.headers import coded
from lookalike.geometry import PixelFormat

SECONDS = 2
GROWTH = 200 * 2**20


def judged(data: bytes, form: PixelFormat) -> Judged:
    """The refusal, or the shape of the pixels, from a child whose libraries are loaded."""

    def work() -> object:
        with suppress(BadImage):
            look(data[: 1 << 16])
        is_image(data[:4096])
        try:
            return tuple(decode(data, "a", size=None, form=form).shape)
        except BadImage as error:
            return error.reason

    found = forked(work, limit=30)
    assert not found.ended, found
    assert found.seconds < SECONDS, found
    assert found.growth < GROWTH, found
    return found


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def jp2_of(
    sides: tuple[int, int], tile: tuple[int, int], levels: int = 0, own: bytes = b""
) -> bytes:
    """The main header of a code of one grey part."""
    size = struct.pack(">HIIIIIIIIH", 0, *sides, 0, 0, *tile, 0, 0, 1) + b"\7\1\1"
    code = struct.pack(">BBHB", bool(own), 0, 1, 0) + bytes([levels, 4, 4, 0, 1]) + own
    segments = b"".join(
        mark + struct.pack(">H", 2 + len(body)) + body
        for mark, body in ((b"\xff\x51", size), (b"\xff\x52", code))
    )
    return b"\xff\x4f" + segments + b"\xff\x90\0\x0a" + bytes(200)


def avif_of(payload: Callable[[bytes], bytes]) -> bytes:
    data = deep.avif(deep.ramp(3, 8), 8)
    at = data.index(b"mdat") + 4
    return data[:at] + payload(data[at:])


def larger_av1(body: bytes) -> bytes:
    """Its sequence header claims 16,384 × 16,384, in so many bits."""
    at = body.index(b"\x0a")
    bits = f"{int.from_bytes(body[at + 2 : at + 2 + body[at + 1]], 'big'):0{8 * body[at + 1]}b}"
    assert bits[4] == "1"  # a still picture of a reduced header
    head = bits[:10] + f"{13:04b}{13:04b}" + "1" * 28
    across = int(bits[10:14], 2) + 1 + int(bits[14:18], 2) + 1
    head += bits[18 + across :]
    head += "0" * (-len(head) % 8)
    made = int(head, 2).to_bytes(len(head) // 8, "big")
    return body[:at] + b"\x0a" + bytes([len(made)]) + made + body[at + 2 + body[at + 1] :]


def element(tag: int, kind: bytes, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind
    long = kind in (b"SQ", b"OB", b"OW", b"UN")
    return head + (struct.pack("<HL", 0, size) if long else struct.pack("<H", size)) + value


def dicom_of(before: bytes, rows: int = 16, columns: int = 16, pixels: bytes = bytes(256)) -> bytes:
    """Of 8 bits, with other elements before its pixels."""
    syntax = element(0x00020010, b"UI", b"1.2.840.10008.1.2.1\0")
    words = element(0x00280002, b"US", b"\1\0") + element(0x00280004, b"CS", b"MONOCHROME2 ")
    words += element(0x00280010, b"US", struct.pack("<H", rows))
    words += element(0x00280011, b"US", struct.pack("<H", columns))
    words += b"".join(
        element(tag, b"US", bytes([value, 0]))
        for tag, value in ((0x00280100, 8), (0x00280101, 8), (0x00280102, 7), (0x00280103, 0))
    )
    group = element(0x00020000, b"UL", struct.pack("<I", len(syntax))) + syntax
    return bytes(128) + b"DICM" + group + words + before + element(0x7FE00010, b"OB", pixels)


def runs(code: bytes) -> bytes:
    whole = deep.dicom(deep.ramp(1, 8), 8, "RLE")
    at = whole.index(b"\xfe\xff\x00\xe0", whole.index(b"\xe0\x7f\x10\x00") + 20)
    body = struct.pack("<16L", 1, 64, *[0] * 14) + code
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return whole[:at] + struct.pack("<HHL", 0xFFFE, 0xE000, len(body)) + body + end


def jp2_in_dicom() -> bytes:
    """Its code is of another size than the file."""
    small, large = deep.ramp(1, 8), deep.ramp(1, 8, 400, 400)
    whole = deep.dicom(large, 8, "J2K")
    return whole.replace(
        element(0x00280010, b"US", struct.pack("<H", 400)),
        element(0x00280010, b"US", struct.pack("<H", small.shape[0])),
    )


def properties(count: int) -> bytes:
    return heics.heic(8, more=(box(b"free"),) * count)


def deep_boxes() -> bytes:
    inner = b""
    for _ in range(20_000):
        inner = struct.pack(">I4s", 8 + len(inner), b"meta") + inner if len(inner) < 9e5 else inner
    return box(b"ftyp", b"avif", bytes(4)) + inner


def pages(count: int) -> bytes:
    """A TIFF whose directories follow one another in a circle."""
    data = bytearray(deep.tiff(deep.ramp(5, 16), photometric="minisblack", planarconfig="contig"))
    at = struct.unpack_from("<I", data, 4)[0]
    tags = struct.unpack_from("<H", data, at)[0]
    struct.pack_into("<I", data, at + 2 + 12 * tags, at)
    return bytes(data) * count


GREY16 = PixelFormat(1, "uint16")
KEY = "data.max_pixels allows more"
BOMBS: dict[str, tuple[Callable[[], bytes], PixelFormat, str]] = {
    "ppm of huge sides": (lambda: b"P6 99999 99999 255 " + bytes(99), PixelFormat(3), KEY),
    "ppm of endless sides": (lambda: b"P6 " + b"9" * 100_000, PixelFormat(3), "damaged header"),
    "ppm comments": (lambda: b"P6" + b"#\n" * 9_000_000, PixelFormat(3), "damaged header"),
    "ppm too short": (lambda: b"P6 5000 5000 255 " + bytes(99), PixelFormat(3), ""),
    "ppm text": (lambda: b"P3 4000 4000 255 " + b"9 " * 99, PixelFormat(3), KEY),
    "ppm text too short": (lambda: b"P3 1600 1600 255 " + b"9 " * 99, PixelFormat(3), "too few"),
    "pam lines": (lambda: b"P7\n" + b"#\n" * 9_000_000, PixelFormat(3), "no ENDHDR"),
    "pam channels": (
        lambda: b"P7\nWIDTH 5000\nHEIGHT 5000\nDEPTH 500\nMAXVAL 255\nENDHDR\n" + bytes(99),
        PixelFormat(3),
        KEY,
    ),
    "npy of huge sides": (
        lambda: deep.npy(np.zeros((4, 5), np.uint8)).replace(b"(4, 5)", b"(99999, 99999)"),
        GREY16,
        "",
    ),
    "npy of many digits": (
        lambda: replaced(deep.npy(np.zeros((4, 5))), b"(4, 5), }", b"(" + b"9" * 90 + b", 5), }"),
        GREY16,
        "",
    ),
    "npy header": (
        lambda: b"\x93NUMPY\2\0" + struct.pack("<I", 9_000_000) + b"(" * 9_000_000,
        GREY16,
        "damaged header",
    ),
    "npy nested": (
        lambda: b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"(" * 9000,
        GREY16,
        "damaged header",
    ),
    "jp2 of huge sides": (lambda: jp2_of((60_000, 60_000), (60_000, 60_000)), GREY16, KEY),
    "jp2 tiles": (lambda: jp2_of((4000, 4000), (1, 1)), GREY16, "16000000 tiles"),
    "jp2 precincts": (
        lambda: jp2_of((3000, 3000), (3000, 3000), 5, bytes(6)),
        GREY16,
        "packets: too many",
    ),
    "jp2 boxes": (
        lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"free") * 900_000,
        GREY16,
        "4096 boxes",
    ),
    "avif of huge sides": (
        lambda: replaced(
            deep.avif(deep.ramp(3, 8), 8),
            b"ispe" + struct.pack(">III", 0, 28, 20),
            b"ispe" + struct.pack(">III", 0, 30_000, 30_000),
        ),
        PixelFormat(3),
        KEY,
    ),
    "avif whose picture is larger": (
        lambda: avif_of(larger_av1),
        PixelFormat(3),
        "in a picture of it",
    ),
    "avif deep": (deep_boxes, PixelFormat(3), ""),
    "heic of huge sides": (lambda: heics.heic(8, sides=(30_000, 30_000)), PixelFormat(3), KEY),
    "heic properties": (lambda: properties(300_000), PixelFormat(3), ""),
    "jxl of huge sides": (
        # Not small; 2^30 high, as wide as high.
        lambda: (
            b"\xff\x0a" + (0b1 << 35 | (2**30 - 1) << 3 | 0b110).to_bytes(6, "little") + bytes(99)
        ),
        PixelFormat(3),
        KEY,
    ),
    "jxl boxes": (
        lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"free") * 900_000,
        PixelFormat(3),
        "4096 boxes",
    ),
    "icon entries": (
        lambda: b"\0\0\1\0\xff\xff" + bytes(2_000_000),
        PixelFormat(3),
        "65535 images",
    ),
    "dicom of huge sides": (lambda: dicom_of(b"", 60_000, 60_000), GREY16, KEY),
    "dicom elements": (
        lambda: dicom_of(element(0x00290010, b"SH", b"") * 2_000_000),
        GREY16,
        "65536 elements",
    ),
    "dicom levels": (
        lambda: dicom_of(element(0x00290010, b"SQ", b"", 0xFFFFFFFF) * 500_000),
        GREY16,
        "64 levels",
    ),
    "dicom runs": (lambda: runs(b"\x81\0" * 2_000), GREY16, "runs that unpack to more"),
    "dicom many runs": (lambda: runs(b"\x80" * 20_000_000), GREY16, "runs of"),
    "dicom code of other sides": (jp2_in_dicom, GREY16, "pixels in its code: damaged"),
    "dicom too short": (lambda: dicom_of(b"", 4000, 4000), GREY16, ""),
    "tiff bands": (
        lambda: mutants.tiff(
            {
                256: mutants.longs(4000),
                257: mutants.longs(4000),
                258: (3, b"\x10\0" * 900),
                259: mutants.longs(1),
                262: mutants.longs(1),
                273: mutants.longs(8),
                277: mutants.longs(900),
            },
            bytes(100),
        ),
        PixelFormat(3),
        KEY,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_from_its_header(name):
    make, form, reason = BOMBS[name]
    found = judged(make(), form)
    assert isinstance(found.value, str), found
    assert reason in found.value


def test_pages_in_a_circle_are_of_no_concern():
    assert judged(pages(1), PixelFormat(5, "uint16")).value == (5, 20, 28)


def zipped(size: int) -> bytes:
    """A strip that unpacks to far more than the image."""
    body = zlib.compress(bytes(size), 9)
    tags = {256: 20, 257: 20, 259: 8, 262: 1, 273: 8, 277: 5, 278: 20, 279: len(body)}
    found = {tag: mutants.longs(value) for tag, value in tags.items()}
    return mutants.tiff(found | {258: (3, b"\x10\0" * 5)}, body)


def test_what_unpacks_to_more_than_the_image_takes_no_more():
    found = judged(zipped(100_000_000), PixelFormat(5, "uint16"))
    assert found.growth < 20 * 2**20


def test_the_sides_in_the_code_are_read_right():
    """Else nothing would be held against them."""
    for bits in (8, 10, 12):
        assert set(coded.sides(heics.heic(bits))) == {(heics.WIDTH, heics.HEIGHT)}
    for size in ((20, 28), (64, 65), (301, 7)):
        for channels in (3, 4):
            data = deep.avif(deep.ramp(channels, 8, *size), 8)
            assert set(coded.sides(data)) == {size[::-1]}
    assert full(b"meta", 0)  # a box without anything in it says nothing
    assert list(coded.sides(full(b"meta", 0))) == []


def large(channels: int, bits: int, height: int, width: int) -> np.ndarray:
    """Smooth."""
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    value = (np.sin(x / 97) + np.cos(y / 71) + 2) / 4 * ((1 << bits) - 1)
    return np.stack([value.astype(np.uint8 if bits == 8 else np.uint16)] * channels, -1)


BANDS = {"photometric": "minisblack", "planarconfig": "contig"}
LARGE = {
    "16 bit.png": (lambda: imagecodecs.png_encode(large(3, 16, 2500, 2500), level=1), "uint16"),
    "8 bit.jp2": (lambda: deep.jp2(large(3, 8, 1700, 2000), 8), "uint8"),
    "8 bit.avif": (
        lambda: imagecodecs.avif_encode(large(3, 8, 2400, 3000), level=70, speed=10, numthreads=1),
        "uint8",
    ),
    "16 bit.jxl": (lambda: deep.jxl(large(3, 16, 2200, 2500)), "uint16"),
    "bands.tif": (
        lambda: deep.tiff(large(5, 16, 2400, 2500), compression="zlib", **BANDS),
        "uint16",
    ),
    "float.tif": (
        lambda: deep.tiff(large(1, 16, 3000, 4000)[..., 0] / np.float32(65535)),
        "float32",
    ),
    "x-ray.dcm": (lambda: deep.dicom(large(1, 12, 3000, 4000)[..., 0], 12), "uint16"),
    "rgb.ppm": (lambda: deep.netpbm(6, large(3, 8, 4000, 6000), 255), "uint8"),
    "bands.npy": (lambda: deep.npy(large(5, 16, 2400, 2900)), "uint16"),
}


@pytest.mark.parametrize("name", LARGE)
def test_an_ordinary_large_image_decodes_within_the_limits(name):
    make, depth = LARGE[name]
    data = make()
    channels = look(data).channels
    form = PixelFormat(channels, depth)
    opened = Opened(data, name, form)
    assert judged(data, form).value == (channels, opened.height, opened.width)


def test_the_key_allows_more_of_every_format_and_fewer():
    for name, data in deep.images().items():
        channels = look(data).channels
        form = PixelFormat(channels, "float32", (0, 1), "keep")
        opened = Opened(data, name, form)
        pixels = opened.height * opened.width
        with pytest.raises(BadImage, match=rf"more than the {pixels - 1} allowed.*{KEY}"):
            Opened(data, name, form, pixels - 1)
        assert Opened(data, name, form, pixels).pixels().shape[0] == channels
