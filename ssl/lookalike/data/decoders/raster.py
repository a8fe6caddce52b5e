"""Pixels as a file holds them, with all their bits, some rows at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Raster:
    """An image as stored: `strip` gives some of its rows, (h, width, channels) of any type of
    number.

    `turn`: the EXIF orientation that is still to be undone. `white`: the value that is white; None
    where its values have none. `alpha`: the last channel is transparency, and `multiplied`: the
    others were multiplied by it.
    """

    height: int
    width: int
    channels: int
    strip: Callable[[slice], np.ndarray]
    white: float | None
    turn: int = 1
    alpha: bool = False
    multiplied: bool = False


def of_array(
    pixels: np.ndarray,
    white: float | None,
    turn: int = 1,
    alpha: bool = False,
    multiplied: bool = False,
) -> Raster:
    """Of an image that was decoded whole, (H, W) or (H, W, C)."""
    pixels_HWC = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels_HWC.shape
    return Raster(
        height,
        width,
        channels,
        lambda rows: pixels_HWC[rows],
        white,
        turn,
        alpha,
        multiplied,
    )


def needs(package: str, extra: str) -> ValueError:
    """The refusal where a library is not installed, with the remedy."""
    return ValueError(f"needs {package}: pip install 'lookalike[{extra}]'")
