"""Pixels as a file holds them -> pixels of one form: its type, scale, channels and transparency."""

import numpy as np
import torch
from torch import Tensor

from lookalike.data.decoders.raster import Raster
from lookalike.geometry import PixelFormat

_STRIP = 1 << 18  # values that are converted at a time
_NUMPY = {"uint8": np.uint8, "uint16": np.uint16, "float32": np.float32}
_WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
# Of red, green and blue: ITU-R BT.601; in 8 bits as Pillow rounds it.
_LUMA = np.array([0.299, 0.587, 0.114])
_LUMA_16 = np.array([19595, 38470, 7471], np.uint32)


def conform(raster: Raster, form: PixelFormat) -> Tensor:
    """(C, H, W) of `form`, upright.

    With a range the values stay as they are; without one integers are scaled from the file's white
    to the type's: 255 to 65535 by 257, 65535 to 255 by the high byte, others rounded. Grey becomes
    three equal channels, colour its ITU-R 601 luma; transparency lies on `form.alpha`, or stays,
    and where it is to stay and there is none all is opaque. Raises ValueError, which names the key
    that helps, for another number of channels, values that the type cannot hold, floats outside 0
    to 1 without a range, and NaN.
    """
    _refuse(raster, form)
    out_HWC = _out(raster, form)
    step = max(1, _STRIP // (raster.width * max(raster.channels, form.channels)))
    turned_HWC = _turned(out_HWC, raster.turn)
    for start in range(0, raster.height, step):
        rows = slice(start, min(start + step, raster.height))
        turned_HWC[rows] = _strip(raster.strip(rows), raster, form)
    return torch.from_numpy(out_HWC).permute(2, 0, 1)


def _out(raster: Raster, form: PixelFormat) -> np.ndarray:
    sides = raster.height, raster.width
    return np.empty(
        (*(sides[::-1] if raster.turn >= 5 else sides), form.channels), _NUMPY[form.depth]
    )


def _turned(upright_HWC: np.ndarray, turn: int) -> np.ndarray:
    """The same memory, seen as the file stores it: CIPA DC-008, section 4.6.4 A, Orientation."""
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(turn, ())
    seen = np.flip(upright_HWC, flips) if flips else upright_HWC
    return seen.swapaxes(0, 1) if turn >= 5 else seen


def _refuse(raster: Raster, form: PixelFormat) -> None:
    """Raises ValueError where the channels do not become those of the form."""
    if becomes(raster.channels, raster.alpha, form) != form.channels:
        raise ValueError(mismatch(raster.channels, raster.alpha, form))


def becomes(channels: int, alpha: bool, form: PixelFormat) -> int:
    """How many channels those of a file become, which are the form's where that can be."""
    colours, wanted = channels - alpha, form.channels
    if form.alpha == "keep" and alpha:
        return wanted if colours in (1, 3) and wanted in (2, 4) else channels
    if form.alpha == "keep" and wanted in (2, 4) and colours in (1, 3):
        return wanted
    return wanted if colours in (1, 3) and wanted in (1, 3) else colours


def mismatch(channels: int, alpha: bool, form: PixelFormat) -> str:
    """The refusal of another number of channels, with the remedy."""
    kept = alpha and form.alpha == "keep"
    number = channels if kept else channels - alpha
    what = f"{number} channel{'s' if number > 1 else ''}{', transparency among them' * kept}"
    return f"{what}, data.channels says {form.channels}: set it, or leave this file out"


def _strip(pixels_HWC: np.ndarray, raster: Raster, form: PixelFormat) -> np.ndarray:
    scaled_HWC = _scaled(pixels_HWC, raster.white, form)
    white = _white(raster, form)
    if raster.alpha and form.alpha != "keep":
        paper = white if form.alpha == "white" else 0.0
        scaled_HWC = _on_paper(scaled_HWC, paper, white, raster.multiplied)
    return _channelled(scaled_HWC, raster.alpha and form.alpha == "keep", white, form.channels)


def _white(raster: Raster, form: PixelFormat) -> float:
    """What is opaque, and the white paper, in the values that are handed on."""
    if form.range is None:
        return _WHITE[form.depth]
    return form.range[1] if raster.white is None else raster.white


def _scaled(values: np.ndarray, white: float | None, form: PixelFormat) -> np.ndarray:
    """In the form's type and scale."""
    target = np.dtype(_NUMPY[form.depth])
    if values.dtype.kind == "f":
        return _floats(values, form)
    if form.range is not None:
        return _fitting(values, target, form)
    if white is None:
        raise ValueError("integers without a white: data.range says what becomes black and white")
    # 32-bit and signed integers may lie anywhere; those of fewer bits below their white.
    if values.dtype.itemsize > 2 or values.dtype.kind == "i" or white not in (255.0, 65535.0):
        _inside(values, white)
    if target.kind == "f":
        return (values / white).astype(np.float32)
    if white == 65535 and target == np.uint8:
        return (values >> 8).astype(np.uint8)
    if white == _WHITE[form.depth]:
        return values.astype(target, copy=False)
    if white == 255 and target == np.uint16:
        return values.astype(np.uint16) * np.uint16(257)
    return np.rint(values * (_WHITE[form.depth] / white)).astype(target)


def _inside(values: np.ndarray, white: float) -> None:
    low, high = values.min(), values.max()
    if low < 0 or high > white:
        raise ValueError(
            f"values {low} to {high}, outside 0 to {white:.0f}: data.range says what becomes black "
            "and white, and data.depth: float32 holds them"
        )


def _fitting(values: np.ndarray, target: np.dtype, form: PixelFormat) -> np.ndarray:
    """Integers as they stand."""
    if target.kind == "u" and not np.can_cast(values.dtype, target):
        low, high = values.min(), values.max()
        if low < 0 or high > np.iinfo(target).max:
            deeper = "uint16" if low >= 0 and high <= 65535 else "float32"
            raise ValueError(
                f"values {low} to {high}, which data.depth: {form.depth} cannot hold: set "
                f"data.depth: {deeper}"
            )
    return values.astype(target, copy=False)


def _floats(values: np.ndarray, form: PixelFormat) -> np.ndarray:
    if form.depth != "float32":
        raise ValueError(floats_refused(form))
    found = values.astype(np.float32, copy=False)
    low, high = found.min(), found.max()
    if not (np.isfinite(low) and np.isfinite(high)):  # NaN is the least and the largest
        raise ValueError("a value that is NaN or infinite, or too large for float32")
    if form.range is None and not (low >= 0 and high <= 1):
        raise ValueError(
            f"values {low:g} to {high:g}, outside 0 to 1: data.range says what becomes black and "
            "white"
        )
    return found


def floats_refused(form: PixelFormat) -> str:
    """The refusal of floats where integers are kept, with the remedy."""
    return f"floats, which data.depth: {form.depth} cannot hold: set data.depth: float32"


def _on_paper(pixels_HWC: np.ndarray, paper: float, white: float, multiplied: bool) -> np.ndarray:
    share = pixels_HWC[..., -1:].astype(np.float64) / white
    lit = pixels_HWC[..., :-1] * (1 if multiplied else share)
    return _rounded(np.minimum(lit + paper * (1 - share), max(white, paper)), pixels_HWC.dtype)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (np.rint(values) if dtype.kind == "u" else values).astype(dtype)


def _channelled(pixels_HWC: np.ndarray, kept: bool, white: float, channels: int) -> np.ndarray:
    """As many channels as the form has; with `kept` the last is transparency."""
    if pixels_HWC.shape[2] == channels:
        return pixels_HWC
    clear = pixels_HWC[..., -1:] if kept else None
    colours = pixels_HWC[..., :-1] if kept else pixels_HWC
    if channels in (1, 2) and colours.shape[2] == 3:
        colours = _luma(colours)
    elif channels in (3, 4) and colours.shape[2] == 1:
        colours = np.repeat(colours, 3, -1)
    if channels in (1, 3):
        return colours
    opaque = np.full((*colours.shape[:2], 1), white, colours.dtype)
    return np.concatenate([colours, opaque if clear is None else clear], -1)


def _luma(colours: np.ndarray) -> np.ndarray:
    if colours.dtype == np.uint8:
        return ((colours @ _LUMA_16 + 0x8000) >> 16).astype(np.uint8)[..., None]
    return _rounded((colours @ _LUMA)[..., None], colours.dtype)
