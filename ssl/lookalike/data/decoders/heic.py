"""HEIC files by pi-heif, as libheif turns and crops them."""

import io

import numpy as np

from lookalike.data.decoders.raster import Raster, needs
from lookalike.data.headers import Header


def heic(data: bytes, header: Header) -> Raster:
    """With all its bits, 8, 10 or 12."""
    try:
        import pi_heif
    except ImportError as error:
        raise needs("pi-heif", "images") from error
    pi_heif.options.DECODE_THREADS = 1
    opened = pi_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    if tuple(opened.size) != (header.width, header.height):
        width, height = opened.size
        raise ValueError(
            f"{width} x {height} pixels beside {header.width} x {header.height}: damaged"
        )
    channels = np.asarray(opened)[:1, :1].size
    if channels != header.channels:
        raise ValueError(f"{channels} channels beside {header.channels}: damaged")

    def strip(rows: slice) -> np.ndarray:
        # The pixels are freed with `opened`, whatever array still refers to them.
        return np.array(np.asarray(opened)[rows]).reshape(-1, header.width, channels)

    return Raster(
        header.height,
        header.width,
        channels,
        strip,
        header.full,
        alpha=opened.has_alpha,
        multiplied=opened.premultiplied_alpha,
    )
