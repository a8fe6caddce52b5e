"""The bytes of one image whose header was judged -> its pixels in one form.

8-bit images, and the high bytes of deeper ones where nothing says otherwise, by Pillow and
torchvision as ever (pixels.py); all else by the decoder of its format with all its bits: a module a
library, which is imported when the first such file is met. Then conform.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lookalike.data import headers
from lookalike.data.decoders import codecs, dicoms, heic, plain, tiffs
from lookalike.data.decoders.conform import conform, floats_refused
from lookalike.data.decoders.orientation import upright
from lookalike.data.decoders.pillow import numbers_of, raster_of
from lookalike.data.decoders.pixels import pixels_of
from lookalike.data.decoders.raster import Raster
from lookalike.data.headers import Header, jpeg
from lookalike.geometry import PixelFormat

__all__ = ["allowed", "for_device", "numbers_in", "pixels_in"]

_DECODERS: dict[str, Callable[[bytes, Header], Raster]] = {
    "PNG": codecs.png,
    "JPEG": codecs.jpeg,
    "JPEG2000": codecs.jpeg2000,
    "AVIF": codecs.avif,
    "JXL": codecs.jxl,
    "HEIC": heic.heic,
    "TIFF": tiffs.tiff,
    "PPM": plain.netpbm,
    "NPY": plain.array,
}
_BYTES = {"uint8": 1, "uint16": 2, "float32": 4}


def allowed(header: Header, form: PixelFormat) -> Header:
    """With the limit that the form leaves, where it is not decoded as ever."""
    if _as_ever(header, form):
        return header
    taken = header.taken + form.channels * _BYTES[form.depth]
    return headers.within(header, int(headers.MEMORY / taken))


def pixels_in(
    data: bytes, header: Header, form: PixelFormat, shrink: int, limited: bool, frame: int | None
) -> Tensor:
    """(C, H, W) of `form`, upright; a JPEG at 1/`shrink` of its sides, rounded up, where its 8 bits
    are kept.

    Raises ValueError for more pixels than are allowed, what the form does not hold, and several
    frames of which none is asked for; and whatever the decoders raise.
    """
    if header.floating and form.depth != "float32":
        raise ValueError(floats_refused(form))
    if _as_ever(header, form):
        return pixels_of(data, header, form.channels, shrink, limited)
    return conform(_raster(data, header, limited, frame), form)


def numbers_in(data: bytes, header: Header, limited: bool) -> Tensor:
    """(H, W), uint8 or uint16, upright: the number that each pixel of a PNG holds. Raises as
    `numbers_of` does.
    """
    numbers_HW = torch.from_numpy(numbers_of(data, header, limited))
    return upright(numbers_HW[None], header.turn)[0]


def for_device(data: bytes, header: Header, form: PixelFormat, limited: bool) -> bool:
    """Whether a decoder of plain JPEGs gives of these bytes what torchvision's on the host does, or
    nearly."""
    return (
        header.kind == "JPEG"
        and header.plain
        and _as_ever(header, form)
        and not (limited and header.width * header.height > header.whole)
        and jpeg.usual(data, header)
    )


def _as_ever(header: Header, form: PixelFormat) -> bool:
    """Whether Pillow's or torchvision's 8 bits in one or three channels are what is asked for."""
    return (
        header.eight
        and form.depth == "uint8"
        and form.channels in (1, 3)
        and form.alpha == "white"
        and (header.bits <= 8 or form.range is None)
    )


def _raster(data: bytes, header: Header, limited: bool, frame: int | None) -> Raster:
    if header.kind == "DICOM":
        if frame is None and header.frames > 1:
            raise ValueError(f"{header.frames} frames in one file: save each as a file of its own")
        return dicoms.raster(data, header, frame or 0)
    return (
        raster_of(data, header, limited) if header.pillow else _DECODERS[header.kind](data, header)
    )
