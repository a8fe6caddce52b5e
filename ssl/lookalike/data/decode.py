"""The bytes of one image, of unknown worth -> its pixels or crops of them, or else BadImage with
the reason.

What a file is say its first bytes, whatever its name. The header's sides are judged before a pixel
is decoded (headers/); what is decoded then, and how, say pixels.py and decoders/.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from lookalike.data import headers
from lookalike.data.decoders import allowed, for_device, numbers_in, pixels_in
from lookalike.errors import printable
from lookalike.folder import read_regular
from lookalike.geometry import PixelFormat, central, sides
from lookalike.recipe import Size

MAX_BYTES = 200_000_000
MORE = ": data.max_pixels allows more"
SHRINKS = (8, 4, 2)
HEAD = headers.HEAD
"""So many bytes of a file are enough for `is_image`."""

T = TypeVar("T")


class BadImage(Exception):
    """A file that gives no image: `path` exactly as it was asked for, `reason` in a few words."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


def contents(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> bytes:
    """What the file holds, as it is. Raises BadImage when it is no readable, regular, non-empty
    file in the limit.
    """
    return _judged(os.fspath(path), lambda: read_regular(path, max_bytes, MORE))


class Opened:
    """An encoded image whose header was judged; `height` and `width` upright, in pixels. Holds no
    pixel.

    Its values in `form`, raw where that has a range; where it has none, integers of another depth
    are scaled so that white stays white: of a container of 10, 12 or 16 bits, or the MAXVAL of a
    PGM, the largest value; 16 bits to 8 by the high byte. Floats stay as they are; 32-bit and
    signed integers count as 16-bit ones. One channel is ITU-R 601 luma, three are RGB, other
    numbers must be the file's own; transparency lies on `form.alpha`, or is the last channel. Of
    several pages the first counts; of a DICOM file of several frames only `frame` that is asked
    for, from 0.

    `max_pixels`: how many are allowed, of any format; by default as many as decode below 200 MB:
    100 million of a JPEG, 64 million of one that is not shrunk, 25 million of others, fewer of some
    kinds and of deep forms (headers/). Every method raises BadImage, with `name` as its path, when
    the bytes are no whole image within the limits, or not one of that form.
    """

    def __init__(
        self,
        data: bytes,
        name: str,
        form: PixelFormat,
        max_pixels: int | None = None,
        frame: int | None = None,
    ) -> None:
        self._name, self._form, self._max_pixels = name, form, max_pixels
        self._frame = frame
        self._header = _judged(name, lambda: _look(data, form, max_pixels))
        span = self._header.span if self._header.kind in ("PNG", "ICO") else None
        self._data = data[slice(*span)] if span else data
        sides = self._header.height, self._header.width
        self.height, self.width = sides[::-1] if self._header.turn >= 5 else sides

    def pixels(self, shrink: int = 1) -> Tensor:
        """(C, H, W) of the form, upright; an 8-bit JPEG at 1/`shrink` (2, 4 or 8) of its sides,
        rounded up, if so asked.
        """
        return _judged(
            self._name,
            lambda: pixels_in(
                self._data,
                self._header,
                self._form,
                shrink,
                self._max_pixels is None,
                self._frame,
            ),
        )

    @property
    def header(self) -> headers.Header:
        """What its first bytes say."""
        return self._header

    @property
    def for_device(self) -> bytes | None:
        """The file, where a device's decoder of JPEGs may have it; None where the host decodes."""
        limited = self._max_pixels is None
        fits = for_device(self._data, self._header, self._form, limited)
        return self._data if fits else None

    def canvas(self, out_CHW: Tensor, *, whole: bool = False) -> Tensor:
        """Resizes the largest central box of the shape of `out_CHW` into it, or with `whole` all,
        and returns it.
        """
        rows, columns = out_CHW.shape[1:]

        def box(height: int, width: int) -> tuple[int, int, int, int]:
            return (0, 0, height, width) if whole else central(height, width, (rows, columns))

        _, _, height, width = box(self.height, self.width)
        room = min(height / rows, width / columns)
        image_CHW = self.pixels(next((s for s in SHRINKS if room >= s), 1))
        return cut(image_CHW, box(*image_CHW.shape[1:]), out_CHW)


def decode(
    data: bytes,
    name: str,
    *,
    size: Size | None,
    form: PixelFormat,
    whole: bool = False,
    max_pixels: int | None = None,
) -> Tensor:
    """Image (C, *size) of `form`: its canvas (see Opened), or (C, H, W) where `size` is None.

    Raises BadImage as Opened does.
    """
    opened = Opened(data, name, form, max_pixels)
    if size is None:
        return opened.pixels().contiguous()
    return opened.canvas(torch.empty(form.channels, *sides(size), dtype=form.dtype), whole=whole)


def numbers(data: bytes, name: str, max_pixels: int | None = None) -> Tensor:
    """The numbers that the pixels of a mask hold, (H, W), uint8 or uint16, upright: a grey PNG's
    values, or the indices of its palette. Raises BadImage as Opened does.
    """
    header = _judged(name, lambda: _look(data, PixelFormat(1), max_pixels))
    return _judged(name, lambda: numbers_in(data, header, max_pixels is None))


def cut(
    image_CHW: Tensor, box: Sequence[int], out_CHW: Tensor, interpolation: str = "bicubic"
) -> Tensor:
    """Resizes box (top, left, height, width; pixels) of an image into `out_CHW` of the same type,
    antialiased; returns that. Deeper pixels than bytes go through float32, in which 16 bits are
    exact, and are rounded into their type.

    torch's kernel for bytes: of 375 × 375 pixels to 256 × 256 in 0.29 ms, where Pillow's takes
    1.70.
    """
    top, left, height, width = box
    piece_1CHW = image_CHW[None, :, top : top + height, left : left + width]
    if piece_1CHW.shape[1:] != out_CHW.shape:
        sides, deep = out_CHW.shape[1:], piece_1CHW.dtype != torch.uint8
        piece_1CHW = torch.nn.functional.interpolate(
            piece_1CHW.float() if deep else piece_1CHW, sides, mode=interpolation, antialias=True
        )
        if out_CHW.dtype == torch.uint16:
            piece_1CHW = piece_1CHW.round_().clamp_(0, 65535)
    return out_CHW.copy_(piece_1CHW[0])


def _judged(name: str, work: Callable[[], T]) -> T:
    """What `work` gives. Raises BadImage for whatever it raises."""
    try:
        # Pillow warns of damaged metadata; in a data set of millions those are no news to the user.
        with warnings.catch_warnings(action="ignore"):
            return work()
    except Exception as error:
        reason = _reason(error)
    # Raised out here, without the cause: a kept BadImage must not keep the image's memory alive.
    raise BadImage(name, reason)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text holds a memory address
        return "damaged header"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = (
        (error.strerror if isinstance(error, OSError) else None)
        or str(error)
        or type(error).__name__
    )
    return " ".join(text.split())[:200]


def _look(data: bytes, form: PixelFormat, max_pixels: int | None) -> headers.Header:
    """The header, within the limits."""
    header = allowed(headers.read(data), form)
    headers.check(header, max_pixels)
    return header


class Look(NamedTuple):
    """What the values of an image file are: how many a pixel has, transparency among them; bits of
    each that matter; floats or not, signed or not.
    """

    channels: int
    bits: int
    floating: bool
    signed: bool


def look(data: bytes) -> Look:
    """By the header alone. 64 KiB of a file are enough, of most formats; else, as for what is no
    image, raises BadImage, whose path is empty: a TIFF may have its tags at its end.
    """
    found = _judged("", lambda: headers.look(data))
    return Look(found.channels, found.bits, found.floating, found.signed)


def is_image(head: bytes) -> bool:
    """Whether a file that begins so is of a format that is read, by its first bytes alone: 4096, or
    all of it. Says nothing of whether it is whole.
    """
    return headers.is_image(head)
