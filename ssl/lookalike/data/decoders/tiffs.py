"""TIFFs that Pillow cannot read, or not with all bits and bands, by tifffile: the first page."""

import io
import logging
from dataclasses import replace

import numpy as np

from lookalike.data.decoders.raster import Raster, needs, of_array
from lookalike.data.headers import Header

_AT_ONCE = 1 << 20
_COMPRESSIONS = {1, 5, 8, 32773, 32946, 34925, 50000}
_GREY_OR_RGB = (0, 1, 2)
_AXES = {"YX": (0, 1), "YXS": (0, 1, 2), "SYX": (1, 2, 0)}


def tiff(data: bytes, header: Header) -> Raster:
    """Of grey, RGB and any number of bands, in strips or tiles, side by side or one after another;
    white is white where the file has black so.
    """
    try:
        import tifffile
    except ImportError as error:
        raise needs("tifffile", "images") from error
    logging.getLogger("tifffile").disabled = True  # it tells of each damaged tag
    how = header.tiff
    if how is None or how.photometric not in _GREY_OR_RGB or how.compression not in _COMPRESSIONS:
        raise ValueError(
            f"a TIFF of {header.channels} channels of {header.bits} bits in colour space "
            f"{how and how.photometric} and compression {how and how.compression}, which is not "
            "read: save it as RGB, deflated"
        )
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        _refuse(page.axes, page.shape, header)
        try:
            pixels = page.asarray(maxworkers=1, buffersize=_AT_ONCE)
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise needs("imagecodecs", "images") from error
            raise
    pixels_HWC = pixels.transpose(_AXES[page.axes])
    found = of_array(pixels_HWC, header.full, how.turn, header.alpha, how.premultiplied)
    return _inverted(found, header) if how.photometric == 0 else found


def _refuse(axes: str, shape: tuple[int, ...], header: Header) -> None:
    """Raises ValueError where tifffile is about to decode anything else than was judged."""
    sides = (header.height, header.width)
    order = _AXES.get(axes)
    found = [shape[i] for i in order] if order and len(order) == len(shape) else list(shape)
    expected = [*sides, header.channels]
    if [*found, 1][:3] not in (expected, [*sides[::-1], header.channels]):
        raise ValueError(f"a page of shape {shape} and axes {axes}: damaged, or not an image")


def _inverted(found: Raster, header: Header) -> Raster:
    """Of grey whose least value is white."""
    if header.floating or header.signed or header.alpha or header.bits > 32:
        raise ValueError("white is zero in it, of floats, signed integers or bands: not read")
    white = np.uint32((1 << header.bits) - 1)
    return replace(found, strip=lambda rows: white - found.strip(rows).astype(np.uint32))
