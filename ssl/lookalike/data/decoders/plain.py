"""Formats of numbers that follow one another: Netpbm's and NumPy's, by NumPy alone."""

import re

import numpy as np

from lookalike.data.decoders.raster import Raster, of_array
from lookalike.data.headers import Header, npy

_LONGEST, _SLACK = 12, 4096  # characters of a number in text, with the space between
_COMMENT = re.compile(rb"#[^\n\r]*")


def netpbm(data: bytes, header: Header) -> Raster:
    """PBM, PGM, PPM (as text or bytes) and PAM. In a PBM 1 is black: 0 and 255 here."""
    form = data[1] - ord("0")
    at, _ = header.span or (0, 0)
    shape = header.height, header.width, header.channels
    if form in (1, 4):
        bits_HW = _packed(data, at, *shape[:2]) if form == 4 else _digits(data, at, *shape[:2])
        return of_array(np.where(bits_HW != 0, np.uint8(0), np.uint8(255)), 255.0)
    count, dtype = int(np.prod(shape)), np.dtype("u1" if (header.white or 0) < 256 else ">u2")
    values = _words(data, at, count) if form < 4 else np.frombuffer(data, dtype, count, at)
    return of_array(values.reshape(shape), header.white, 1, header.alpha)


def _packed(data: bytes, at: int, height: int, width: int) -> np.ndarray:
    row = (width + 7) // 8
    rows = np.frombuffer(data, np.uint8, height * row, at).reshape(height, row)
    return np.unpackbits(rows, axis=1, count=width)


def _digits(data: bytes, at: int, height: int, width: int) -> np.ndarray:
    """0 and 1, with or without space between."""
    values = np.frombuffer(_uncommented(data, at - 1).translate(None, b" \t\n\r\v\f"), np.uint8)
    if len(values) < height * width or not np.isin(values[: height * width], (48, 49)).all():
        raise ValueError("damaged: too few values, or others than 0 and 1")
    return values[: height * width].reshape(height, width) - 48


def _words(data: bytes, at: int, count: int) -> np.ndarray:
    text = _uncommented(data, at - 1)[: _LONGEST * count + _SLACK].decode("latin-1")
    # Not told how many: it would fill up with whatever lies in memory.
    values = np.fromstring(text, np.int32, sep=" ")
    if len(values) < count:
        raise ValueError("damaged: too few values, or others than numbers")
    return values[:count]


def _uncommented(data: bytes, at: int) -> bytes:
    """The text from there on, without comments."""
    return _COMMENT.sub(b" ", data[at:])


def array(data: bytes, header: Header) -> Raster:
    """A NumPy file. Objects are not read."""
    found = npy.layout(data)
    values = np.frombuffer(data, found.dtype, int(np.prod(found.shape)), found.at)
    pixels = values.reshape(found.shape, order="F" if found.fortran else "C")
    return of_array(np.moveaxis(pixels, 0, -1) if found.first else pixels, header.full)
