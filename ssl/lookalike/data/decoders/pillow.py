"""All bits that Pillow has of an image: 8 of most, 16 and 32 of greys. And the numbers of a mask,
which are no colours.
"""

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


def numbers_of(data: bytes, header: headers.Header, limited: bool) -> np.ndarray:
    """What each pixel of a PNG holds as a number, (H, W) of uint8 or uint16, as stored: of a
    palette the index, of fewer bits than 8 the number itself.

    Raises ValueError for another format and for colours, else as `pixels_of` does.
    """
    if header.kind != "PNG":
        raise ValueError(f"a mask in {header.kind}: save it as PNG, whose numbers are kept")
    with allowing(header.width * header.height):
        opened = loaded(data, header, 1, 1, limited)
    if opened.mode not in ("1", "L", "P", "I") and not opened.mode.startswith("I;16"):
        raise ValueError(
            f"a mask of colours ({opened.mode}): save the classes' numbers as a grey or palette PNG"
        )
    numbers_HW = np.array(opened)  # a copy: Pillow's own memory is not to be written
    if opened.mode == "L" and data[24] < 8:  # Pillow spreads two and four bits over eight
        return numbers_HW // np.uint8(255 // (2 ** data[24] - 1))
    return numbers_HW.astype(np.uint16 if deep(opened.mode) else np.uint8, copy=False)
