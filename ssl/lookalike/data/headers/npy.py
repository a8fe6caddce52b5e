"""The header of a NumPy file (its format 1.0 to 3.0), of unknown worth -> ours.

An array is (H, W), (H, W, C), or (C, H, W) where C is smaller than both others and the last axis is
not.

Its dictionary is read word by word, never evaluated; objects are refused.
"""

import re
from dataclasses import dataclass

from lookalike.data.headers.header import MAX_PIXELS_WHOLE, MEMORY, Header

_MOST_HEAD = 10_000
_MOST_CHANNELS = 512
_TYPE = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?)([a-zA-Z?])(\d{0,2})['"]""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([\d,\sL]{0,200})\)""")
_SIZES = {"b": (1,), "u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8)}


@dataclass(frozen=True)
class Layout:
    """Type of the values as NumPy writes it, shape as stored, order, and where the values begin."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    at: int

    @property
    def first(self) -> bool:
        """Whether the channels come first."""
        if len(self.shape) < 3:
            return False
        a, b, c = self.shape
        return a < min(b, c) and not c < min(a, b)


def layout(data: bytes) -> Layout:
    """What the first bytes say. Raises ValueError for what is no array of numbers."""
    size = 2 if data[6:7] == b"\1" else 4
    begin = 8 + size
    length = int.from_bytes(data[8:begin], "little")
    if data[6:7] not in (b"\1", b"\2", b"\3") or length > _MOST_HEAD or begin + length > len(data):
        raise ValueError("damaged header")
    text = data[begin : begin + length].decode("latin-1")
    kind, order, shape = _TYPE.search(text), _ORDER.search(text), _SHAPE.search(text)
    if kind is None or order is None or shape is None:
        raise ValueError("an array of objects, or of a damaged header: not read")
    sides = tuple(int(side.strip(" L")[:20]) for side in shape[1].split(",") if side.strip(" L"))
    letter = "b" if kind[2] == "?" else kind[2]
    count = int(kind[3] or 1)
    if count not in _SIZES.get(letter, ()):
        raise ValueError(f"an array of type {kind[2]}{kind[3]}, not of numbers: not read")
    dtype = "?" if letter == "b" else f"{kind[1].replace('|', '')}{letter}{count}"
    return Layout(dtype, sides, order[1] == "True", begin + length)


def read(data: bytes) -> Header:
    """Raises ValueError for what is no image."""
    found = layout(data)
    if len(found.shape) not in (2, 3):
        raise ValueError(f"an array of shape {found.shape}, not (H, W), (H, W, C) or (C, H, W)")
    shape = found.shape if len(found.shape) == 3 else (*found.shape, 1)
    height, width, channels = (*shape[1:], shape[0]) if found.first else shape
    if not 1 <= channels <= _MOST_CHANNELS:
        raise ValueError(f"an array of shape {found.shape}: {channels} channels")
    size = 1 if found.dtype == "?" else int(found.dtype[-1])
    kind = "b" if found.dtype == "?" else found.dtype[-2]
    return Header(
        "NPY",
        width,
        height,
        limit=min(MAX_PIXELS_WHOLE, MEMORY // (channels * size)),
        form="NPY",
        channels=channels,
        bits=8 * size,
        floating=kind == "f",
        signed=kind == "i",
        white=1.0 if kind == "b" else None,
        eight=False,
        pillow=False,
        taken=1.0,
    )
