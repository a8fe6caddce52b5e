"""The bytes of one picture, of unknown worth -> a uint8 tensor (C, H, W), or else BadPicture with the reason.

Pillow opens only the format that the first bytes name, and the header's size is judged before a pixel is
decoded. Greys deeper than 8 bits keep their high byte (Pillow's own conversion saturates), transparency lies
on white, EXIF orientation is applied, and of an animation or a multi-page file the first frame is taken.
"""

import io
import os
import stat
import struct
import warnings
import zlib

import numpy as np
import torch
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

# Imported by name: Pillow would otherwise load all its forty formats to find these two.
RARER_FORMATS = (TiffImagePlugin, WebPImagePlugin)

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

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


MAX_BYTES = 200_000_000
MAX_PIXELS = 100_000_000


class BadPicture(Exception):
    """A file that gives no picture: `path` exactly as it was asked for, `reason` in a few words."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.reason}"


def shown(path: str | os.PathLike[str]) -> str:
    """The path fit for one line of output: line breaks, control characters and stray bytes are escaped."""
    text = os.fspath(path)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def contents(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> bytes:
    """What the file holds, as it is. Raises BadPicture when it is no readable, regular, non-empty file in the limit."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("not a regular file")
            if status.st_size > max_bytes:
                raise ValueError(f"{status.st_size} bytes, more than the {max_bytes} allowed")
            return file.read(status.st_size)
    except Exception as error:
        reason = _reason(error)
    raise BadPicture(os.fspath(path), reason)


def decode(data: bytes, name: str, *, size: int | None, channels: int, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Picture uint8 (C, size, size), shorter side resized, centre cropped; or (C, H, W) where `size` is None.

    `channels` is 1 (ITU-R 601 luma) or 3 (RGB). Pillow's own limit of 178,956,970 pixels holds as well.
    Raises BadPicture, with `name` as its path, when the bytes are no whole picture within these limits.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is 1 or 3, not {channels}")
    try:
        # Pillow warns of damaged metadata; in a data set of millions those are no news to the user.
        with warnings.catch_warnings(action="ignore"):
            image = _open(data, size, max_pixels)
            picture_CHW = _pixels(_upright(image), channels)
        return picture_CHW if size is None else _canvas(picture_CHW, size)
    except Exception as error:
        reason = _reason(error)
    # Raised out here, without the cause: a kept BadPicture must not keep the picture's memory alive.
    raise BadPicture(name, reason)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text holds a memory address
        return "damaged header"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a named pipe would wait for ever


def _open(data: bytes, size: int | None, max_pixels: int) -> Image.Image:
    if not data:
        raise ValueError("empty file")
    kind = _kind(data)
    if kind == "WEBP":  # Pillow makes the whole canvas on opening
        _check_sides(*_webp_sides(data), size, max_pixels)
    image = Image.open(io.BytesIO(data), formats=[kind])
    _check_sides(*image.size, size, max_pixels)
    if kind == "PNG":
        _check_sums(data)
    if size is not None:
        image.draft(None, (size, size))  # JPEG only: 1/2, 1/4 or 1/8, never below `size`
    image.load()
    return image


def _kind(data: bytes) -> str:
    for magic, kind in MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise ValueError(f"not a JPEG, PNG, WebP, BMP, TIFF or GIF file: it begins with {data[:12]!r}")


def _webp_sides(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk: the lossy frame, the lossless frame, or the extended canvas."""
    if len(data) < 30:
        raise ValueError("truncated header")
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("damaged header")


def _check_sides(width: int, height: int, size: int | None, max_pixels: int) -> None:
    if min(width, height) < 1:
        raise ValueError(f"{width} x {height} pixels: an empty picture")
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} pixels, more than the {max_pixels} allowed")
    if size is not None and size * size * max(width, height) > max_pixels * min(width, height):
        raise ValueError(f"{width} x {height} pixels: too narrow to be resized to {size} within {max_pixels}")


def _check_sums(data: bytes) -> None:
    """Holds each critical PNG chunk against its CRC: Pillow skips the pixels' CRC, and flipped bits pass."""
    view, start = memoryview(data), len(MAGIC[1][0])
    while start + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        checksum = int.from_bytes(view[end : end + 4], "big")
        if name[:1].isupper() and end + 4 <= len(data) and zlib.crc32(view[start + 4 : end]) != checksum:
            raise ValueError(f"damaged: wrong checksum of {name!r} at byte {start}")
        start = end + 4


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF says nothing of the pixels
        turn = None
    return image if turn is None else image.transpose(turn)


def _pixels(image: Image.Image, channels: int) -> Tensor:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = _on_white(image.convert("RGBA"))
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    pixels_HWC = torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels))
    return pixels_HWC.permute(2, 0, 1).contiguous()


def _eight_bits(grey_HW: np.ndarray) -> np.ndarray:
    """Grey uint8: the high byte of 16-bit integers; floats as 0..1 where none is above 1, else as 0..255."""
    white = 65535 if grey_HW.dtype.kind in "iu" else 255
    low, high = grey_HW.min(), grey_HW.max()
    if not (low >= 0 and high <= white):  # so written, NaN is refused too
        raise ValueError(f"grey values {low} to {high}, outside 0 to {white}")
    eight_HW = grey_HW >> 8 if grey_HW.dtype.kind in "iu" else np.rint(grey_HW * (255 if high <= 1 else 1))
    return np.asarray(eight_HW, dtype=np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _canvas(picture_CHW: Tensor, size: int) -> Tensor:
    resized_CHW = tv.resize(picture_CHW, [size], InterpolationMode.BICUBIC, antialias=True)
    canvas_CHW: Tensor = tv.center_crop(resized_CHW, [size, size])
    return canvas_CHW.contiguous()
