"""Small whole files of every kind that is read, and damaged copies of them: the same seed, the same
damage.
"""

import io
import itertools
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from lookalike.data import cache

_ENDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFF0, 1 << 24)


def mutants(name: str, whole: bytes, count: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
    """`count` damaged copies and the seed of each, from `first` on."""
    for seed in range(first, first + count):
        yield seed, mutant(name, whole, seed)


def mutant(name: str, whole: bytes, seed: int) -> bytes:
    """One damaged copy: one to four blows."""
    draw = np.random.default_rng((zlib.crc32(name.encode()), seed))
    data = bytearray(whole)
    for _ in range(draw.integers(1, 5)):
        _BLOWS[draw.integers(len(_BLOWS))](data, draw)
    return bytes(data)


def _flip(data: bytearray, draw: np.random.Generator) -> None:
    for _ in range(draw.integers(1, 9)):
        if data:
            data[_place(data, draw)] ^= 1 << draw.integers(8)


def _overwrite(data: bytearray, draw: np.random.Generator) -> None:
    at = _place(data, draw)
    data[at : at + 8] = draw.bytes(draw.integers(1, 9))


def _extreme(data: bytearray, draw: np.random.Generator) -> None:
    """A number, of 1, 2, 4 or 8 bytes, becomes one at the edge of what it can be."""
    size, at = (1, 2, 4, 8)[draw.integers(4)], _place(data, draw)
    order = ("little", "big")[draw.integers(2)]
    value = _ENDS[draw.integers(len(_ENDS))] % (1 << 8 * size)
    data[at : at + size] = value.to_bytes(size, order)


def _cut(data: bytearray, draw: np.random.Generator) -> None:
    del data[_place(data, draw) :]


def _splice(data: bytearray, draw: np.random.Generator) -> None:
    """A piece comes again elsewhere, or is left out, or many times."""
    start = _place(data, draw)
    piece = bytes(data[start : start + int(draw.integers(1, 200))])
    if draw.random() < 0.3:
        del data[start : start + len(piece)]
        return
    at = _place(data, draw)
    data[at:at] = piece * int(1 + draw.integers(1, 300) * (draw.random() < 0.2))


def _place(data: bytearray, draw: np.random.Generator) -> int:
    """Mostly in the header, where it matters."""
    return int(draw.integers(0, max(1, len(data) if draw.random() < 0.4 else min(len(data), 400))))


_BLOWS = (_flip, _flip, _overwrite, _extreme, _extreme, _cut, _splice, _splice)


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def mended(data: bytes) -> bytes:
    """The PNG file with right checksums: what is damaged gets past the first look."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            break
        out += chunk(name, data[at + 8 : at + 8 + length])
        at += 12 + length
    return bytes(out + data[at:])


def colours(height: int = 40, width: int = 56) -> np.ndarray:
    """RGB uint8 (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        [255 * x / width, 255 * y / height, 255 * np.sin((x + y) / 9) ** 2], axis=-1
    ).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, form: str, **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, form, **options
    )
    return file.getvalue()


def orientation(value: int = 6) -> bytes:
    """EXIF with that orientation, and an EXIF directory of its own, in the way cameras write it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x0128], exif[0x010F] = value, 72.0, 2, "Maker"
    exif.get_ifd(0x8769)[0x829A] = (1, 250)
    return exif.tobytes()


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'


def jpegs() -> dict[str, bytes]:
    rgb, grey = colours(), colours()[..., 2]
    whole = encoded(rgb, "JPEG", quality=85)
    comment = b"\xff\xfe" + struct.pack(">H", 9) + b"comment"
    return {
        "baseline.jpg": whole,
        "fine.jpg": encoded(rgb, "JPEG", quality=95, subsampling=0, restart_marker_rows=1),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "grey.jpg": encoded(grey, "JPEG"),
        "cmyk.jpg": encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG"),
        "cmyk progressive.jpg": encoded(
            Image.fromarray(rgb).convert("CMYK"), "JPEG", progressive=True
        ),
        "exif.jpg": encoded(rgb, "JPEG", exif=orientation()),
        "xmp.jpg": encoded(rgb, "JPEG", xmp=XMP),
        "told.jpg": encoded(
            rgb, "JPEG", exif=orientation(8), icc_profile=bytes(3000), comment=b"words"
        ),
        "padded.jpg": whole[:2] + b"\xff" * 20 + comment + whole[2:],
        "mpo.jpg": encoded(rgb, "MPO", save_all=True, append_images=[Image.fromarray(rgb[::-1])]),
    }


def pngs() -> dict[str, bytes]:
    rgb, grey = colours(), colours()[..., 2]
    alpha = np.dstack([rgb, grey])
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "words", zip=True)
    text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    raw = PngImagePlugin.PngInfo()
    profile = f"\nexif\n      {len(orientation())}\n{orientation().hex()}"
    raw.add_text("Raw profile type exif", profile, zip=True)
    paletted = Image.fromarray(rgb).convert("P")
    deep = np.repeat(grey[..., None], 3, -1).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 56, 40, 16, 2, 0, 0, 0)
    sixteen = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    laced = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 56, 40, 8, 2, 0, 0, 1))
    laced += chunk(b"IDAT", zlib.compress(bytes(40 * 56 * 3 + 200))) + chunk(b"IEND", b"")
    return {
        "rgb.png": encoded(rgb, "PNG"),
        "rgba.png": encoded(alpha, "PNG"),
        "grey alpha.png": encoded(np.dstack([grey, grey[::-1]]), "PNG"),
        "16 bit.png": sixteen,
        "16 bit grey.png": encoded(grey.astype(np.uint16) * 257, "PNG"),
        "palette.png": encoded(paletted, "PNG", transparency=3),
        "alphas.png": encoded(paletted, "PNG", transparency=bytes(range(200))),
        "1 bit.png": encoded(grey > 90, "PNG"),
        "interlaced.png": laced,
        "text.png": encoded(rgb, "PNG", pnginfo=text, icc_profile=bytes(900)),
        "raw exif.png": encoded(rgb, "PNG", pnginfo=raw),
        "exif.png": encoded(rgb, "PNG", exif=orientation(7)),
        "keyed.png": encoded(rgb, "PNG", transparency=(250, 10, 30)),
        "animated.png": encoded(
            rgb, "PNG", save_all=True, append_images=[Image.fromarray(rgb[::-1])]
        ),
    }


def webps() -> dict[str, bytes]:
    rgb = colours()
    alpha = np.dstack([rgb, rgb[..., 2]])
    moving = {"save_all": True, "append_images": [Image.fromarray(alpha[::-1])]}
    return {
        "lossy.webp": encoded(rgb, "WEBP"),
        "lossless.webp": encoded(rgb, "WEBP", lossless=True),
        "alpha.webp": encoded(alpha, "WEBP"),
        "lossless alpha.webp": encoded(alpha, "WEBP", lossless=True, exact=True),
        "exif.webp": encoded(rgb, "WEBP", exif=orientation(5)),
        "xmp alpha.webp": encoded(alpha, "WEBP", xmp=XMP, icc_profile=bytes(99)),
        "animated.webp": encoded(alpha, "WEBP", **moving),
    }


def gifs() -> dict[str, bytes]:
    image = Image.fromarray(colours()).convert("P")
    moving = {
        "save_all": True,
        "append_images": [image.transpose(Image.Transpose.ROTATE_180)],
        "loop": 0,
    }
    return {
        "one.gif": encoded(image, "GIF", comment=b"words " * 90),
        "clear.gif": encoded(image, "GIF", transparency=3),
        "animated.gif": encoded(image, "GIF", **moving),
    }


def rle8(width: int, height: int, body: bytes, bits: int = 8) -> bytes:
    """A BMP in run-length code."""
    palette = b"".join(bytes((i, 255 - i, i // 2, 0)) for i in range(1 << bits))
    at = 54 + len(palette)
    head = b"BM" + struct.pack(
        "<IIIIiiHHIIIIII",
        at + len(body),
        0,
        at,
        40,
        width,
        height,
        1,
        bits,
        bits // 4 ^ 3,
        0,
        0,
        0,
        0,
        0,
    )
    return head + palette + body


def bmps() -> dict[str, bytes]:
    rgb = colours()
    runs = b"".join(bytes((56, row)) + b"\0\0" for row in range(40)) + b"\0\1"
    return {
        "rgb.bmp": encoded(rgb, "BMP"),
        "palette.bmp": encoded(Image.fromarray(rgb).convert("P"), "BMP"),
        "1 bit.bmp": encoded(rgb[..., 0] > 90, "BMP"),
        "runs.bmp": rle8(56, 40, runs),
        "runs 4.bmp": rle8(56, 40, runs, 4),
    }


def tiffs() -> dict[str, bytes]:
    rgb, grey = colours(), colours()[..., 2]
    forms = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd")
    found = {f"{form}.tif": encoded(rgb, "TIFF", compression=form) for form in forms}
    alpha = np.dstack([rgb, grey])
    turned = TiffImagePlugin.ImageFileDirectory_v2()
    turned[0x0112] = 6
    return found | {
        "alpha.tif": encoded(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "fax.tif": encoded(grey > 90, "TIFF", compression="group4"),
        "fax 3.tif": encoded(grey > 90, "TIFF", compression="group3"),
        "float.tif": encoded(grey.astype(np.float32), "TIFF"),
        "int.tif": encoded(grey.astype(np.int32) * 250, "TIFF", compression="tiff_lzw"),
        "16 bit.tif": encoded(grey.astype(np.uint16) * 257, "TIFF"),
        "big-endian.tif": encoded(
            Image.frombytes("I;16B", (56, 40), (grey.astype(">u2") * 257).tobytes()), "TIFF"
        ),
        "palette.tif": encoded(Image.fromarray(rgb).convert("P"), "TIFF"),
        "cmyk.tif": encoded(Image.fromarray(rgb).convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "big.tif": encoded(rgb, "TIFF", big_tiff=True),
        "exif.tif": encoded(rgb, "TIFF", exif=orientation()),
        "turned.tif": encoded(rgb, "TIFF", tiffinfo=turned),
        "tiled.tif": tiled(rgb),
        "tiled deflate.tif": tiled(rgb, zipped=True),
        "pages.tif": encoded(rgb, "TIFF", save_all=True, append_images=[Image.fromarray(grey)]),
    }


def tiff(tags: dict[int, tuple[int, bytes]], data: bytes, order: str = "<") -> bytes:
    """A TIFF file of `data`, which begins at byte 8, and these tags: type and values."""
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8, 11: 4, 12: 8}
    entries, extra = b"", b""
    data += bytes(len(data) % 2)
    after = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        place = values.ljust(4, b"\0")
        if len(values) > 4:
            place, extra = struct.pack(order + "I", after + len(extra)), extra + values
        entries += struct.pack(order + "HHI", tag, kind, len(values) // sizes[kind]) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + entries + bytes(4) + extra


def longs(*values: int) -> tuple[int, bytes]:
    """A tag's values of type LONG."""
    return 4, struct.pack(f"<{len(values)}I", *values)


def tiled(rgb: np.ndarray, zipped: bool = False) -> bytes:
    """A TIFF in tiles of 32 × 16 pixels."""
    height, width = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -height % 16), (0, -width % 32), (0, 0)))
    squares = [
        padded[y : y + 16, x : x + 32].tobytes()
        for y in range(0, height, 16)
        for x in range(0, width, 32)
    ]
    pieces = [zlib.compress(piece) if zipped else piece for piece in squares]
    starts = itertools.accumulate(map(len, pieces[:-1]), initial=8)
    tags = {
        256: longs(width),
        257: longs(height),
        258: (3, b"\x08\0" * 3),
        259: longs(8 if zipped else 1),
    }
    tags |= {262: longs(2), 277: longs(3), 322: longs(32), 323: longs(16), 324: longs(*starts)}
    return tiff(tags | {325: longs(*map(len, pieces))}, b"".join(pieces))


def images() -> dict[str, bytes]:
    """Image files of every form that is read."""
    return jpegs() | pngs() | webps() | gifs() | bmps() | tiffs()


def tar() -> bytes:
    """A shard with labels, a long name, a pax header, a link and a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as opened:
        for name, body in (
            ("a.png", encoded(colours(8, 8), "PNG")),
            ("a.cls", b"3"),
            ("b.jpg", b"\xff\xd8"),
            ("b.json", b'{"label": 1}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            opened.addfile(info, io.BytesIO(body))
        opened.addfile(tarfile.TarInfo("long/" + "n" * 200 + ".png"))
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    return file.getvalue()


def idx() -> bytes:
    """Two images of 3 × 4."""
    return struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 4) + bytes(range(24))


def sealed() -> bytes:
    """A sealed file of three parts."""
    return cache.seal([json.dumps({"a": 1}).encode(), bytes(range(100)), b""])


RECIPE = (Path(__file__).parent.parent / "recipes" / "quickstart.yaml").read_bytes()

CSV = b'path,label,split,is_query\na.png,cat,train,0\n"b,c.png",dog,test,1\nd.png,cat,test,0\n'
