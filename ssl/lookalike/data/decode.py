"""The bytes of one picture, of unknown worth -> uint8 pixels or crops of them, or else BadPicture with the reason.

The header's sides are judged before a pixel is decoded, and of an animation or a multi-page file the first frame is
taken. Greys deeper than 8 bits keep their high byte (Pillow's own conversion saturates), transparency lies on white,
EXIF orientation is applied.

Plain JPEG and WebP are decoded by torchvision, all else, and what torchvision refuses, by Pillow: the pixels are the
same to the bit (torchvision 0.29, Pillow 13), so that where a later torchvision has no decoders nothing changes but
the time. Of a 500 × 375 JPEG of 50 kB: 0.63 against 1.09 ms; WebP 1.5 against 2.3; 256 × 256 JPEG 0.18 against 0.39.
A JPEG whose sides are twice too large is faster by Pillow at half its sides (600 × 520 to 256: 1.3 against 1.6 ms,
resize included), and so on to an eighth. PNG stays with Pillow: torchvision would save 15 %, but its decoder ends the
process with a segmentation fault where pixels are missing.
"""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torchvision  # noqa: F401 (its decoders are operators of torch)
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin
from torch import Tensor

from lookalike.data import headers
from lookalike.errors import printable
from lookalike.folder import read_regular
from lookalike.recipe import Size, sides
from lookalike.views.resample import central

# Imported by name: Pillow would otherwise load all its forty formats to find these two.
RARER_FORMATS = (TiffImagePlugin, WebPImagePlugin)

MAX_BYTES = 200_000_000
MAX_PIXELS = 100_000_000
SHRINKS = (8, 4, 2)

T = TypeVar("T")

_GREY, _RGB = 1, 3  # torchvision.io.ImageReadMode


class BadPicture(Exception):
    """A file that gives no picture: `path` exactly as it was asked for, `reason` in a few words."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


def contents(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> bytes:
    """What the file holds, as it is. Raises BadPicture when it is no readable, regular, non-empty file in the limit."""
    return _judged(os.fspath(path), lambda: read_regular(path, max_bytes))


class Opened:
    """An encoded picture whose header was judged; `height` and `width` upright, in pixels. Holds no pixel.

    `channels` is 1 (ITU-R 601 luma) or 3 (RGB). Pillow's own limit of 178,956,970 pixels holds as well.
    Every method raises BadPicture, with `name` as its path, when the bytes are no whole picture within the limits.
    """

    def __init__(self, data: bytes, name: str, channels: int, max_pixels: int = MAX_PIXELS) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels is 1 or 3, not {channels}")
        self._data, self._name, self._channels = data, name, channels
        self._header, self._turn, (width, height) = _judged(name, lambda: _look(data, max_pixels))
        self._stored = (height, width)
        self.height, self.width = (width, height) if self._turn >= 5 else (height, width)

    def pixels(self, shrink: int = 1) -> Tensor:
        """uint8 (C, H, W), upright; a JPEG at 1/`shrink` (2, 4 or 8) of its sides, rounded up, if so asked."""
        return _judged(self._name, lambda: _upright(self._decoded(shrink), self._turn))

    def canvas(self, out_CHW: Tensor, *, whole: bool = False) -> Tensor:
        """Resizes the largest central box of the shape of `out_CHW` into it, or with `whole` all, and returns it."""
        rows, columns = out_CHW.shape[1:]

        def box(height: int, width: int) -> tuple[int, int, int, int]:
            return (0, 0, height, width) if whole else central(height, width, (rows, columns))

        _, _, height, width = box(self.height, self.width)
        room = min(height / rows, width / columns)
        picture_CHW = self.pixels(next((s for s in SHRINKS if room >= s), 1))
        return cut(picture_CHW, box(*picture_CHW.shape[1:]), out_CHW)

    def _decoded(self, shrink: int) -> Tensor:
        header = self._header
        shrink = shrink if header.kind == "JPEG" else 1
        if header.plain and shrink == 1:
            picture_CHW = _by_torchvision(self._data, header.kind, self._channels)
            if picture_CHW is not None and picture_CHW.shape[1:] == self._stored:
                return picture_CHW
        return _by_pillow(self._data, header.kind, self._channels, shrink)


def decode(
    data: bytes, name: str, *, size: Size | None, channels: int, whole: bool = False, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Picture uint8 (C, *size): its canvas (see Opened), or (C, H, W) where `size` is None.

    Raises BadPicture as Opened does.
    """
    opened = Opened(data, name, channels, max_pixels)
    if size is None:
        return opened.pixels().contiguous()
    return opened.canvas(torch.empty(channels, *sides(size), dtype=torch.uint8), whole=whole)


def cut(picture_CHW: Tensor, box: Sequence[int], out_CHW: Tensor, interpolation: str = "bicubic") -> Tensor:
    """Resizes box (top, left, height, width; pixels) of a uint8 picture into `out_CHW`, antialiased; returns that.

    torch's kernel for bytes: of 375 × 375 pixels to 256 × 256 in 0.29 ms, where Pillow's takes 1.70.
    """
    top, left, height, width = box
    piece_1CHW = picture_CHW[None, :, top : top + height, left : left + width]
    if piece_1CHW.shape[1:] != out_CHW.shape:
        sides = out_CHW.shape[1:]
        piece_1CHW = torch.nn.functional.interpolate(piece_1CHW, sides, mode=interpolation, antialias=True)
    return out_CHW.copy_(piece_1CHW[0])


def _judged(name: str, work: Callable[[], T]) -> T:
    """What `work` gives. Raises BadPicture for whatever it raises."""
    try:
        # Pillow warns of damaged metadata; in a data set of millions those are no news to the user.
        with warnings.catch_warnings(action="ignore"):
            return work()
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


def _look(data: bytes, max_pixels: int) -> tuple[headers.Header, int, tuple[int, int]]:
    """Header, EXIF orientation (1 to 8), and (width, height) as stored, found to be within the limit."""
    header = headers.read(data)
    if header.kind == "WEBP" or header.sure:  # Pillow makes the whole WebP canvas on opening
        _check_sides(header.width, header.height, max_pixels)
    if header.sure:
        return header, _orientation_of(header.exif), (header.width, header.height)
    opened = Image.open(io.BytesIO(data), formats=[header.kind])
    _check_sides(*opened.size, max_pixels)
    turn = 1 if header.kind == "TIFF" else _orientation(opened.getexif)  # TIFFs Pillow turns itself
    return header, turn, opened.size


def _check_sides(width: int, height: int, max_pixels: int) -> None:
    if min(width, height) < 1:
        raise ValueError(f"{width} x {height} pixels: an empty picture")
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} pixels, more than the {max_pixels} allowed")


def _orientation_of(exif: bytes) -> int:
    def load() -> Image.Exif:
        found = Image.Exif()
        found.load(exif)
        return found

    return _orientation(load) if exif else 1


def _orientation(load: Callable[[], Image.Exif]) -> int:
    try:
        found = load().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF says nothing of the pixels
        return 1
    return found if found in range(1, 9) else 1


def _upright(x_CHW: Tensor, turn: int) -> Tensor:
    """Undoes an EXIF orientation (CIPA DC-008, section 4.6.4 A: Orientation)."""
    if turn >= 5:
        x_CHW = x_CHW.transpose(1, 2)
    sides = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(turn, ())
    return x_CHW.flip(sides) if sides else x_CHW


def _by_torchvision(data: bytes, kind: str, channels: int) -> Tensor | None:
    """uint8 (C, H, W), or None where it cannot: Pillow has the last word."""
    try:
        # The operators themselves: torchvision's functions warn at each call that they are to go.
        bytes_N = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if kind == "JPEG":
            x_CHW: Tensor = torch.ops.image.decode_jpeg(bytes_N, _GREY if channels == 1 else _RGB, False)
            return x_CHW
        return torch.ops.image.decode_webp(bytes_N, _RGB) if channels == 3 else None
    except (RuntimeError, AttributeError):
        return None


def _by_pillow(data: bytes, kind: str, channels: int, shrink: int) -> Tensor:
    """uint8 (C, H, W) as stored; Pillow opens only the format that the first bytes name."""
    opened = Image.open(io.BytesIO(data), formats=[kind])
    if kind == "JPEG":
        opened.draft("L" if channels == 1 else None, (opened.width // shrink, opened.height // shrink))
    opened.load()
    return _pixels(opened, channels)


def _pixels(opened: Image.Image, channels: int) -> Tensor:
    if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
        opened = Image.fromarray(_eight_bits(np.asarray(opened)))
    if opened.has_transparency_data:
        opened = _on_white(opened.convert("RGBA"))
    pixels = np.array(opened.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _eight_bits(grey_HW: np.ndarray) -> np.ndarray:
    """Grey uint8: the high byte of 16-bit integers; floats as 0..1 where none is above 1, else as 0..255."""
    white = 65535 if grey_HW.dtype.kind in "iu" else 255
    low, high = grey_HW.min(), grey_HW.max()
    if not (low >= 0 and high <= white):  # so written, NaN is refused too
        raise ValueError(f"grey values {low} to {high}, outside 0 to {white}")
    eight_HW = grey_HW >> 8 if grey_HW.dtype.kind in "iu" else np.rint(grey_HW * (255 if high <= 1 else 1))
    return np.asarray(eight_HW, dtype=np.uint8)


def _on_white(opened: Image.Image) -> Image.Image:
    paper = Image.new("RGB", opened.size, "white")
    paper.paste(opened, mask=opened.getchannel("A"))
    return paper


def png(picture_CHW: Tensor) -> bytes:
    """The PNG file of a uint8 picture of three channels."""
    file = io.BytesIO()
    Image.fromarray(picture_CHW.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


def jpeg(picture_CHW: Tensor) -> bytes:
    """The JPEG file of a uint8 picture of three channels, good enough to look at."""
    file = io.BytesIO()
    Image.fromarray(picture_CHW.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=85)
    return file.getvalue()
