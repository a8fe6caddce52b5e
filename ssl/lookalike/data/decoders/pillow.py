"""All bits that Pillow has of an image: 8 of most, 16 and 32 of greys."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from lookalike.data import headers
from lookalike.data.decoders.pixels import allowing, decoded, deep, loaded
from lookalike.data.decoders.raster import Raster, of_array


def raster_of(data: bytes, header: headers.Header, limited: bool) -> Raster:
    """All bits that Pillow has of it, as stored, in grey or RGB, with transparency where there is
    some: 8 of most, 16 and 32 of greys.

    Raises as `pixels_of` does.
    """
    if header.plain and header.kind == "JPEG":
        image_CHW = decoded(data, header, header.channels, 1, limited)
        pixels_HWC = image_CHW.permute(1, 2, 0).numpy()
        return of_array(pixels_HWC, header.full, header.turn)
    with allowing(header.width * header.height):
        opened = loaded(data, header, 3, 1, limited)
    if deep(opened.mode):
        strip = _strips(opened, opened.mode)
        return Raster(opened.height, opened.width, 1, strip, header.full, header.turn)
    alpha = opened.has_transparency_data
    grey = opened.mode in ("1", "L", "LA", "La")
    mode = ("L" if grey else "RGB") + "A" * alpha
    return Raster(
        opened.height,
        opened.width,
        len(mode),
        _strips(opened, mode),
        255.0,
        header.turn,
        alpha,
    )


def _strips(opened: Image.Image, mode: str) -> Callable[[slice], np.ndarray]:
    """Gives some rows, (h, W, C), in that mode."""

    def strip(rows: slice) -> np.ndarray:
        piece = opened.crop((0, rows.start, opened.width, rows.stop))
        pixels = np.asarray(piece if piece.mode == mode else piece.convert(mode))
        return pixels.reshape(*pixels.shape[:2], -1)

    return strip
