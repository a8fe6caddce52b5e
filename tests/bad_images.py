"""Images that several tests share: a good one, and files that no decoder can or should read."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

MEGABYTE = 1 << 20


def colours(height: int = 37, width: int = 53, seed: int = 0) -> np.ndarray:
    """RGB uint8 (H, W, 3): smooth, with an asymmetric corner, so that a flip or a swap shows."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / width, 255 * y / height
    image_HWC = np.stack([red, green, 255 * np.sin((x + y + seed) / 9) ** 2], axis=-1).astype(
        np.uint8
    )
    image_HWC[:5, :9] = (250, 10, 30)
    return image_HWC


def save(path: Path, array: np.ndarray, **options) -> Path:
    """By Pillow, in the format of the name."""
    Image.fromarray(array).save(path, **options)
    return path


def png(width: int, height: int, body: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A file of one IDAT chunk, whatever it holds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def tiff(width: int, height: int, body: bytes, compression: int = 1, bits: int = 8) -> bytes:
    """A grey file of one strip, whatever it holds."""
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, compression),
        (262, 1),
        (273, 8),
        (277, 1),
    ]
    tags += [(278, height), (279, len(body))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(body))
        + body
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """name -> its bytes and a part of the reason."""
    good = save(folder / "source.png", colours()).read_bytes()
    jpeg = save(folder / "source.jpg", colours()).read_bytes()
    webp = save(folder / "source.webp", colours()).read_bytes()
    gif = save(folder / "source.gif", colours()).read_bytes()
    bmp = save(folder / "source.bmp", colours()).read_bytes()
    deflated = save(
        folder / "source.tiff", colours(), compression="tiff_adobe_deflate"
    ).read_bytes()
    broken = bytearray(good)
    broken[len(good) // 2] ^= 0xFF
    return {
        "empty.jpg": (b"", "empty file"),
        "html.jpg": (b"<!DOCTYPE html><html>404</html>", "begins with b'<!doctype"),
        "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a jpeg, png"),
        "pdf.png": (b"%PDF-1.7 ...", "not a jpeg, png"),
        "eps.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a jpeg, png"),
        "short.png": (good[: len(good) // 2], "truncated"),
        "short.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "short.webp": (webp[: len(webp) // 2], ""),
        "short.gif": (gif[: len(gif) // 2], "truncated"),
        "short.bmp": (bmp[: len(bmp) // 2], "truncated"),
        "short.tiff": (tiff(20, 20, bytes(400))[:300], ""),
        "deflate.tiff": (deflated.replace(deflated[8:40], bytes(32)), ""),
        "flipped.png": (bytes(broken), "wrong checksum"),
        "magic.jpg": (b"\xff\xd8\xff", "damaged header"),
        "magic.png": (b"\x89PNG\r\n\x1a\n", "damaged header"),
        "magic.gif": (b"GIF89a", "damaged header"),
        "magic.bmp": (b"BM", "damaged header"),
        "magic.tif": (b"II*\0", "damaged header"),
        "magic.webp": (b"RIFF\0\0\0\0WEBP", "truncated header"),
        "odd.webp": (b"RIFF\0\0\0\0WEBPVP9 " + bytes(40), "damaged header"),
        "garbage.jpg": (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4, ""),
        "wide0.gif": (b"GIF89a" + struct.pack("<HH", 0, 9) + bytes(3) + gif[13:], ""),
        "zero.bmp": (bmp[:18] + bytes(4) + bmp[22:], "empty image"),
        "zero.webp": (b"RIFF" + bytes(4) + b"WEBPVP8 " + bytes(40), "empty image"),
    }


def bombs() -> dict[str, bytes]:
    """name -> small files whose headers promise far too many pixels."""
    side = 30_000
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (side - 1).to_bytes(3, "little") * 2
    vp8l = b"VP8L" + struct.pack("<IBI", 9, 0x2F, 16_383 | 16_383 << 14) + bytes(9)
    vp8 = (
        b"VP8 "
        + struct.pack("<I", 20)
        + b"\x30\1\0\x9d\1\x2a"
        + struct.pack("<HH", 16_383, 16_383)
        + bytes(20)
    )
    frame = b"GIF89a" + struct.pack("<HHBBB", 5, 5, 0, 0, 0)
    frame += b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\0;"
    jpeg = (
        b"\xff\xd8\xff\xc0"
        + struct.pack(">HBHHB", 11, 8, side, side, 1)
        + b"\1\x11\0"
        + b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    )
    return {
        "a.png": png(side, side, zlib.compress(bytes(4 * MEGABYTE))),
        # Between Pillow's limits: it would warn.
        "b.png": png(9_990, 9_990, zlib.compress(bytes(4 * MEGABYTE))),
        "c.png": png(2**31 - 1, 1, zlib.compress(b"")),
        "a.webp": b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x,
        "l.webp": b"RIFF" + struct.pack("<I", 4 + len(vp8l)) + b"WEBP" + vp8l,
        "y.webp": b"RIFF" + struct.pack("<I", 4 + len(vp8)) + b"WEBP" + vp8,
        "a.gif": frame,
        "b.gif": b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + frame[13:],
        "a.tif": tiff(side, side, zlib.compress(bytes(4 * MEGABYTE)), compression=8),
        "a.bmp": b"BM"
        + struct.pack("<IIIIiiHHIIIIII", 200, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
        "a.jpg": jpeg,
    }
