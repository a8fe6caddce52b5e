"""Files that are built to take a decoder's time or memory are refused early; ordinary large images
decode as before.
"""

import functools
import io
import struct
import tarfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from forked import Judged, forked
from lookalike.data.decode import BadImage, Opened, decode
from lookalike.data.images import subset
from lookalike.data.shards import Shards
from lookalike.data.sources import Folder
from lookalike.geometry import PixelFormat
from mutants import chunk, encoded, images, longs, rle8, tiff

SECONDS = 2  # of the processor: twice what is promised of an idle core
GROWTH = 200 * 2**20


def judged(data: bytes, **how: object) -> Judged:
    """The refusal, or the shape of the pixels, from a child that has decoded an image before."""
    options = {"size": 64, "form": PixelFormat(), **how}

    def work() -> object:
        try:
            return tuple(decode(data, "a", **options).shape)
        except BadImage as error:
            return error.reason

    found = forked(work, limit=30)
    assert not found.ended, found
    assert found.seconds < SECONDS, found
    assert found.growth < GROWTH, found
    return found


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    extra: bytes = b"",
    laced: int = 0,
    row: int = 0,
) -> bytes:
    """A flat PNG of good checksums: bytes of value 4, thus the slowest filter, in rows of `row`
    bytes.
    """
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    packer, line = zlib.compressobj(9), b"\4" * (row or 1 + (width * depth * samples + 7) // 8)
    block = max(1, (1 << 20) // len(line))
    body = (
        b"".join(packer.compress(line * min(block, height - y)) for y in range(0, height, block))
        + packer.flush()
    )
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, laced))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


PALETTE = chunk(b"PLTE", bytes(range(256)) * 3)
CLEAR = chunk(b"tRNS", bytes(range(256)))
WHOLE = encoded(np.zeros((16, 16, 3), np.uint8), "JPEG")
TAGS = {
    256: longs(5),
    257: longs(5),
    258: longs(8),
    259: longs(1),
    262: longs(1),
    273: longs(8),
    277: longs(1),
}
TAGS |= {278: longs(5), 279: longs(25)}


def app(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body


def before_frame(bytes_: bytes) -> bytes:
    return WHOLE[:20] + bytes_ + WHOLE[20:]  # behind JFIF


def before_scan(bytes_: bytes) -> bytes:
    at = WHOLE.index(b"\xff\xda")
    return WHOLE[:at] + bytes_ + WHOLE[at:]


def scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose last scans come again and again."""
    whole = encoded(np.zeros((side, side), np.uint8), "JPEG", progressive=True)
    starts = [i for i in range(len(whole) - 1) if whole[i : i + 2] == b"\xff\xda"]
    return whole[:-2] + whole[starts[-1] : -2] * count + whole[-2:]


def arithmetic(data: bytes) -> bytes:
    """The same file, said to be in arithmetic code."""
    return data.replace(b"\xff\xc0", b"\xff\xc9", 1)


def exif_of(entries: int, count: int) -> bytes:
    """EXIF in which all entries refer to the same place."""
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, entries)
    tags = b"".join(struct.pack("<HHII", 1000 + i % 60000, 5, count, 8) for i in range(entries))
    return head + tags + bytes(8 * count)


def big_tiff(entries: int) -> bytes:
    tags = struct.pack("<HHQQ", 65000, 3, 1, 0) * entries
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, entries) + tags + bytes(8)


def gif(width: int, height: int, before: bytes = b"", frame: tuple[int, int] = (1, 1)) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    return screen + before + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\0;"


def webp(*chunks: tuple[bytes, bytes], flags: int = 0, sides: tuple[int, int] = (5, 5)) -> bytes:
    canvas = struct.pack("<I", flags) + b"".join((side - 1).to_bytes(3, "little") for side in sides)
    body = b"".join(
        name + struct.pack("<I", len(b)) + b + bytes(len(b) % 2)
        for name, b in ((b"VP8X", canvas), *chunks)
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def zipped_errors(count: int) -> bytes:
    """Texts of a kilobyte that unpack to a megabyte and then turn out damaged."""
    text = b"k\0\0" + zlib.compress(bytes(1 << 20), 9)[:-4] + bytes(4)
    return chunk(b"zTXt", text) * count


def strips(count: int, tag: int = 273, **more: tuple[int, bytes]) -> bytes:
    return tiff({**TAGS, tag: (4, struct.pack("<I", 8) * count)}, bytes(400))


def tiles(side: int) -> dict[int, tuple[int, bytes]]:
    return {k: v for k, v in TAGS.items() if k != 273} | {
        322: longs(side),
        323: longs(side),
        324: longs(8),
    }


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    # F10, F11: walks through segments
    "fill": (lambda: b"\xff\xd8" + b"\xff" * 20_000_000, "truncated"),
    "fill and frame": (lambda: before_frame(b"\xff" * 20_000_000), "fill or junk"),
    "junk": (lambda: before_frame(bytes(20_000_000)), "fill or junk"),
    "escaped junk": (lambda: before_frame(b"\xff\0" * 5_000_000), "fill or junk"),
    "empty segments": (lambda: before_frame(b"\xff\xee\0\2" * 5_000_000), "4096 segments"),
    "lone markers": (lambda: before_frame(b"\xff\xd0" * 5_000_000), "4096 segments"),
    "fill before the scan": (lambda: before_scan(b"\xff" * 20_000_000), "fill or junk"),
    "segments before the scan": (lambda: before_scan(b"\xff\xfe\0\2" * 5_000_000), "4096 segments"),
    "tables before the scan": (
        lambda: before_scan(app(0xDB, bytes(65 * 1000)) * 200),
        "header of more than",
    ),
    "long EXIF": (
        lambda: before_frame(app(0xE1, b"Exif\0\0" + bytes(65_000)) * 300),
        "bytes of EXIF",
    ),
    "two frames": (lambda: before_scan(WHOLE[WHOLE.index(b"\xff\xc0") :][:19]), "two frames"),
    "scans": (lambda: scans(5000, 1000), "scans"),
    "fill between scans": (
        lambda: scans(1, 64)[:-2] + b"\xff" * 20_000_000 + b"\0" * 9,
        "fill in its scans",
    ),
    "some fill between scans": (
        lambda: scans(1, 64)[:-2] + (b"\xff" * 1_000_000 + b"\0\xff\xd0") * 60,
        "",
    ),
    "fill in a scan": (lambda: WHOLE[:-4] + b"\xff" * 20_000_000 + b"\0" * 9, "fill in its scans"),
    "scans of large images": (lambda: scans(80, 7000), "too many"),
    "progressive": (
        lambda: encoded(np.zeros((9999, 9999, 3), np.uint8), "JPEG", progressive=True),
        "progressive",
    ),
    "arithmetic": (
        lambda: arithmetic(encoded(np.zeros((5000, 5000), np.uint8), "JPEG")),
        "for JPEG",
    ),
    "segments after the scan": (
        lambda: scans(1, 64)[:-2] + b"\xff\xfe\0\2" * 5_000_000 + b"\xff\xd9",
        "segments",
    ),
    # F13: pixels
    "png rgba": (
        lambda: png(10_000, 10_000, 8, 6),
        "25000000 allowed for PNG: data.max_pixels allows more",
    ),
    "png clear palette": (lambda: png(10_000, 10_000, 8, 3, PALETTE + CLEAR), "allowed for PNG"),
    "png 1 bit": (lambda: png(10_000, 10_000, 1, 0), "allowed for PNG"),
    "png tall": (lambda: png(1, 100_000_000, 8, 0), "a side of more than 65535: data.max_pixels"),
    "png wide": (lambda: png(65_536, 1, 8, 0), "a side of more than 65535"),
    "png 16 bit": (lambda: png(4000, 4000, 16, 6), "12500000 allowed for PNG of 16 bits"),
    "gif": (lambda: gif(10_000, 9_999), "allowed for GIF"),
    "gif frame": (lambda: gif(5, 5, frame=(10_000, 9_999)), "allowed for GIF"),
    "tiff float": (
        lambda: encoded(
            np.zeros((8000, 8000), np.float32), "TIFF", compression="tiff_adobe_deflate"
        ),
        "allowed for such a TIFF, decoded with all its bits: data.max_pixels allows more",
    ),
    "tiff fax": (
        lambda: encoded(np.zeros((10_000, 10_000), bool), "TIFF", compression="group4"),
        "allowed for TIFF",
    ),
    "tiff tiles": (lambda: tiff(tiles(60_000), b"0" * 25), "tiles of 60000 x 60000"),
    "webp animated": (
        lambda: webp((b"ANMF", bytes(16)), flags=2, sides=(16_383, 16_383)),
        "animated",
    ),
    "bmp runs": (
        lambda: rle8(4000, 4000, b"\1\0\0\0" * 4000),
        "1600000 allowed for BMP in run-length code",
    ),
    "bmp runs that add nothing": (
        lambda: rle8(1000, 1000, b"\1\7" * 20_000_000),
        "more than they can take",
    ),
    "bmp steps that add nothing": (
        lambda: rle8(1000, 1000, b"\0\2\0\0" * 20_000_000, 4),
        "more than they can take",
    ),
    # F14: tags
    "fractions": (
        lambda: tiff({**TAGS, 282: (5, bytes(8) * 3_000_000)}, b"0" * 25),
        "tag 282 of 3000000 values",
    ),
    "a million fractions": (
        lambda: tiff({**TAGS, 282: (5, bytes(8) * 1_000_000)}, b"0" * 25),
        "tag 282",
    ),
    "60,000 fractions": (
        lambda: tiff({**TAGS, 282: (5, bytes(8) * 60_000)}, b"0" * 25),
        "60000 fractions",
    ),
    "strips": (lambda: strips(3_000_000), "tag 273 of 3000000"),
    "byte counts": (lambda: strips(3_000_000, 279), "tag 279 of"),
    "orientations": (
        lambda: tiff({**TAGS, 274: (3, bytes(12_000_000))}, b"0" * 25),
        "tag 274 of 6000000",
    ),
    "signed bytes": (lambda: tiff({**TAGS, 700: (1, b"0" * 30_000_000)}, b"0" * 25), "tags of"),
    "bits as bytes": (lambda: tiff({**TAGS, 258: (1, bytes(30_000_000))}, b"0" * 25), "tag 258 of"),
    "colours": (lambda: tiff({**TAGS, 320: (3, bytes(30_000_000))}, b"0" * 25), "tag 320 of"),
    "BigTIFF": (lambda: big_tiff(5_000_000), "directory of 5000000 tags"),
    "many tags": (
        lambda: tiff({i: longs(1) for i in range(60_000)}, b"0" * 25),
        "directory of 60000 tags",
    ),
    # Chunks and blocks
    "png chunks": (lambda: png(5, 5, 8, 0, chunk(b"teSt", b"") * 4_000_000), "65536 chunks"),
    "png empty IDAT": (lambda: png(5, 5, 8, 0, chunk(b"IDAT", b"") * 4_000_000), "65536 chunks"),
    "png texts": (lambda: png(5, 5, 8, 0, zipped_errors(60_000)), "chunks b'zTXt'"),
    "png profiles": (
        lambda: png(5, 5, 8, 0, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(900_000))) * 30_000),
        "iCCP",
    ),
    "png of two headers": (
        lambda: png(
            5, 5, 8, 0, chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0))
        ),
        "chunks b'IHDR'",
    ),
    "gif comments": (lambda: gif(5, 5, b"!\xfe" + b"\1a" * 5_000_000 + b"\0"), "8192 blocks"),
    "gif extensions": (lambda: gif(5, 5, b"!\x01\0" * 5_000_000), "8192 blocks"),
    "gif applications": (
        lambda: gif(5, 5, b"!\xff\x0bNETSCAPE2.0" + b"\1a" * 5_000_000 + b"\0"),
        "8192 blocks",
    ),
    "gif junk": (lambda: gif(5, 5, b"\7" * 20_000_000), "8192 blocks"),
    "webp chunks": (lambda: webp(*[(b"JUNK", b"")] * 1_000_000), "65536 chunks"),
    "webp frames": (lambda: webp(*[(b"ANMF", bytes(16))] * 500_000, flags=2), "65536 chunks"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_from_its_header(name):
    make, reason = BOMBS[name]
    found = judged(make())
    assert isinstance(found.value, str)
    assert reason in found.value
    assert found.seconds < 1.5


EXIFS = {
    "jpg": lambda exif: before_frame(app(0xE1, exif[:65_000])),
    "two.jpg": lambda exif: before_frame(
        app(0xE1, exif[:65_000]) + app(0xE1, b"Exif\0\0" + exif[65_000:130_000])
    ),
    "mpf.jpg": lambda exif: before_frame(app(0xE2, b"MPF\0" + exif[6:65_000])),
    "photoshop.jpg": lambda exif: before_frame(
        app(0xED, b"Photoshop 3.0\0" + b"8BIM\0\0\0\0\0\0\0\0" * 5000) * 1500
    ),
    "png": lambda exif: png(16, 16, 8, 2, chunk(b"eXIf", exif[6:])),
    "webp": lambda exif: webp((b"EXIF", exif), (b"VP8L", vp8l()), flags=8, sides=(16, 16)),
    "tif": lambda exif: tiff(
        {**TAGS, 0x8769: longs(8 + 26)},
        b"0" * 25 + b"\0" + struct.pack("<HHHII", 1, 33434, 5, 2_000_000, 60) + bytes(16_000_000),
    ),
}


def vp8l() -> bytes:
    return encoded(np.zeros((16, 16, 3), np.uint8), "WEBP", lossless=True)[20:]


@pytest.mark.parametrize("name", EXIFS)
@pytest.mark.parametrize(("entries", "count"), [(5000, 8000), (5, 2_000_000), (60_000, 100_000)])
def test_exif_that_multiplies_changes_nothing(name, entries, count):
    """No fraction of it is made, and no copy: what is said of the orientation alone counts."""
    found = judged(
        EXIFS[name](exif_of(entries, count)), size=2
    )  # so small that Pillow decodes the JPEG, shrunk
    assert found.value == (3, 2, 2)
    assert found.growth < 100 * 2**20


@functools.cache
def image(height: int = 4000, width: int = 6000, channels: int = 3) -> np.ndarray:
    y, x = np.arange(height, dtype=np.uint16)[:, None], np.arange(width, dtype=np.uint16)[None]
    planes = [(x + y) // 7, x // 5 + 3 * (y % 40), y // 3, (x // 16 + y // 16) * 9][:channels]
    return np.stack(
        [np.broadcast_to(plane, (height, width)).astype(np.uint8) for plane in planes], -1
    )


def naive(data: bytes, channels: int) -> np.ndarray:
    """Pillow's conversions of the whole image at once."""
    opened = Image.open(io.BytesIO(data))
    opened.load()
    if opened.mode.startswith("I;16"):
        opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
    if opened.has_transparency_data:
        opened = opened.convert("RGBA")
        paper = Image.new("RGB", opened.size, "white")
        paper.paste(opened, mask=opened.getchannel("A"))
        opened = paper
    return np.asarray(opened.convert("L" if channels == 1 else "RGB"))


def grey() -> np.ndarray:
    return image()[..., 0]


FAST = {"compress_level": 1}
LARGE: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: encoded(image(), "PNG", **FAST),
    "rgba.png": lambda: encoded(image(channels=4), "PNG", **FAST),
    "palette.png": lambda: encoded(
        Image.fromarray(grey()).convert("P"), "PNG", transparency=bytes(range(256)), **FAST
    ),
    "1 bit.png": lambda: encoded(grey() > 90, "PNG", **FAST),
    "16 bit.png": lambda: encoded(grey().astype(np.uint16) * 257, "PNG", **FAST),
    "rgb.tif": lambda: encoded(image(), "TIFF", compression="tiff_lzw"),
    "grey.gif": lambda: encoded(Image.fromarray(grey()), "GIF"),
    "cmyk.jpg": lambda: encoded(Image.fromarray(image(channels=4), "CMYK"), "JPEG"),
    "progressive.jpg": lambda: encoded(image(), "JPEG", progressive=True),
    "50 Mpx.jpg": lambda: encoded(image(6120, 8160), "JPEG"),
}


# 24 Mpx each; in every suite one of each decoder.
OF_EACH = ("1 bit.png", "16 bit.png", "grey.gif", "progressive.jpg", "rgb.tif")


@pytest.mark.parametrize(
    "name", [n if n in OF_EACH else pytest.param(n, marks=pytest.mark.slow) for n in LARGE]
)
def test_an_ordinary_large_image_decodes_to_the_same_bits_within_the_limits(name):
    data = LARGE[name]()

    def work() -> int:
        crc = 0
        for row_CW in Opened(data, name, PixelFormat(3)).pixels().unbind(1):
            crc = zlib.crc32(row_CW.T.contiguous().numpy(), crc)
        return crc

    found = forked(work, limit=30)
    assert not found.ended
    assert found.growth < GROWTH
    assert found.seconds < SECONDS
    assert found.value == zlib.crc32(np.ascontiguousarray(naive(data, 3)))


def test_the_key_allows_more_of_every_format_and_fewer(monkeypatch):
    """Also than Pillow's own limit, which stands again afterwards."""
    large = {
        "a.png": png(1, 70_000, 8, 0),
        "b.tif": encoded(np.zeros((6000, 6000), bool), "TIFF", compression="group4"),
    }
    for name, data in large.items():
        with pytest.raises(BadImage, match=r"data\.max_pixels allows more"):
            Opened(data, name, PixelFormat(1))
        how = {"size": 8, "form": PixelFormat(1), "max_pixels": 36_000_000}
        assert decode(data, name, **how).shape == (1, 8, 8)
        with pytest.raises(BadImage, match="more than the 69999 allowed"):
            Opened(data, name, PixelFormat(1), 69_999)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name, data in images().items():
        form = PixelFormat(1, "float32", (0, 255)) if name == "float.tif" else PixelFormat(1)
        assert decode(data, name, size=8, form=form).shape == (1, 8, 8)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_the_key_reaches_the_images_of_a_folder_and_of_shards(tmp_path):
    (tmp_path / "all").mkdir()
    for i in range(3):
        (tmp_path / "all" / f"{i}.png").write_bytes(png(9, 10, 8, 2))
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        shard.add(tmp_path / "all" / "0.png", "0.png")
    for make in (Folder, Shards):
        place = tmp_path / ("all" if make is Folder else "0.tar")
        for allowed, good in ((89, False), (90, True), (None, True)):
            images = subset(
                make(str(place), canvas=8, test_fraction=0, max_pixels=allowed).split("train"), [0]
            )
            assert images.max_pixels == allowed
            if good:
                assert images.read(0).shape == (3, 8, 8)
            else:
                with pytest.raises(
                    BadImage, match=r"90 pixels .9 x 10., more than the 89 allowed for PNG"
                ):
                    images.read(0)
