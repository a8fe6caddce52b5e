"""All bits of deep PNG, JPEG 2000, AVIF, JPEG XL and JPEG files, by imagecodecs: the decoder of the
format that the first bytes name, no other, and on one core.
"""

import struct
import zlib
from typing import Any

import numpy as np

from lookalike.data.decoders.raster import Raster, needs, of_array
from lookalike.data.headers import Header
from lookalike.data.headers.heif import still
from lookalike.data.headers.png import chunks

_PIXELS = (b"IHDR", b"IDAT", b"IEND")


def png(data: bytes, header: Header) -> Raster:
    """Of 16 bits. The colour that is transparent is looked for here: the decoder would take its
    bytes in another order.
    """
    key = b""
    parts = list[bytes | memoryview]()
    for name, body in chunks(data):
        if name in _PIXELS:
            head = struct.pack(">I", len(body)) + name
            parts += [head, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))]
        key = bytes(body) if name == b"tRNS" else key
    pixels = codec("png_decode")(data[:8] + b"".join(parts))
    pixels_HWC = pixels[..., None] if pixels.ndim == 2 else pixels
    if key and pixels_HWC.shape[2] in (1, 3):
        pixels_HWC = _keyed(pixels_HWC, key)
    return _checked(pixels_HWC, header)


def _keyed(pixels_HWC: np.ndarray, key: bytes) -> np.ndarray:
    """With transparency: none of the pixels of that colour is opaque."""
    channels = pixels_HWC.shape[2]
    if len(key) < 2 * channels:
        raise ValueError("damaged: a transparent colour cut short")
    colour = np.frombuffer(key[: 2 * channels], ">u2")
    opaque_HW = (pixels_HWC != colour).any(-1)
    return np.concatenate([pixels_HWC, (opaque_HW * np.uint16(65535))[..., None]], -1)


def jpeg2000(data: bytes, header: Header) -> Raster:
    """Of any depth and number of bands."""
    return _checked(codec("jpeg2k_decode")(data, numthreads=1), header)


def avif(data: bytes, header: Header) -> Raster:
    """Of 10 and 12 bits; of a sequence the image that stands for it."""
    return _checked(codec("avif_decode")(still(data), index=0, numthreads=1), header)


def jxl(data: bytes, header: Header) -> Raster:
    """Of any depth, floats too; the first frame of an animation."""
    return _checked(codec("jpegxl_decode")(data, index=0, numthreads=1), header)


def jpeg(data: bytes, header: Header) -> Raster:
    """Of more than 8 bits."""
    return _checked(codec("jpeg_decode")(data), header)


def _checked(pixels: np.ndarray, header: Header) -> Raster:
    """Raises ValueError where something else was decoded than was judged."""
    found = of_array(pixels, header.full, header.turn, header.alpha)
    seen = found.width, found.height, found.channels
    if seen != (header.width, header.height, header.channels):
        raise ValueError(f"{pixels.shape} decoded, not what its header says: damaged")
    return found


def codec(name: str, extra: str = "images") -> Any:
    """The decoder of that name. Raises ValueError where the library is missing."""
    try:
        import imagecodecs
    except ImportError as error:
        raise needs("imagecodecs", extra) from error
    return getattr(imagecodecs, name)
