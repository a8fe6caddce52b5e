"""The first bits of a JPEG XL file (ISO 18181-1, annexes A, D and E; 18181-2), of unknown worth ->
its header.
"""

from typing import NamedTuple

from lookalike.data.headers.boxes import boxes
from lookalike.data.headers.header import MAX_PIXELS_WHOLE, MEMORY, Header

_HEAD = 4096  # of its code, which is enough
_BEYOND = 1 << 62  # the last box may go on behind the bytes that are there
_MOST_EXTRA = 256
_RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIDE = ((1, 9), (1, 13), (1, 18), (1, 30))
_ENUM = ((0, 0), (1, 0), (2, 4), (18, 6))
_NAME = ((0, 0), (0, 4), (16, 5), (48, 10))
_ALPHA, _SPOT, _FILTER, _GREY = 0, 2, 5, 1
_HELD = 4.0  # bytes a channel and pixel that libjxl holds beside the values, measured


class _Bits:
    """Numbers of any width out of bytes, the lowest bit first."""

    def __init__(self, data: bytes) -> None:
        self._all, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("damaged header: cut short")
        value = self._all & ((1 << count) - 1)
        self._all >>= count
        return value

    def choice(self, *of: tuple[int, int]) -> int:
        """U32: one of four, each a base and the width of what is added."""
        base, count = of[self.take(2)]
        return base + self.take(count)


class _About(NamedTuple):
    """Of the metadata: orientation, bits, floating or not, transparency, further channels, grey."""

    turn: int = 1
    bits: int = 8
    floating: bool = False
    extra: tuple[int, ...] = ()
    grey: bool = False
    premultiplied: bool = False


def read(data: bytes) -> Header:
    """As libjxl turns it. Raises ValueError where its header is cut short or damaged."""
    bits = _Bits(_code(data)[2:])
    width, height = _sides(bits)
    about = _metadata(bits)
    clear = about.extra == (_ALPHA,)
    channels = (1 if about.grey else 3) + len(about.extra)
    taken = _HELD * max(3, channels) + channels * (1 if about.bits <= 8 else 2 + 2 * about.floating)
    width, height = (height, width) if about.turn >= 5 else (width, height)
    return Header(
        "JXL",
        width,
        height,
        limit=min(MAX_PIXELS_WHOLE, int(MEMORY / (taken + 3))),
        form="such a JPEG XL",
        channels=channels,
        bits=max(8, about.bits),
        floating=about.floating,
        alpha=clear,
        eight=False,
        pillow=False,
        taken=taken,
    )


def _code(data: bytes) -> bytes:
    """The begin of its code, which may lie in several boxes."""
    if data[:2] == b"\xff\x0a":
        return data[:_HEAD]
    found = b""
    for name, start, end in boxes(data, 0, _BEYOND):
        start += 4 if name == b"jxlp" else 0
        if name in (b"jxlc", b"jxlp"):
            found += data[start : min(end, start + _HEAD)]
        if len(found) >= _HEAD or name == b"jxlc":
            break
    if found[:2] != b"\xff\x0a":
        raise ValueError("damaged header: no code")
    return found[:_HEAD]


def _sides(bits: _Bits) -> tuple[int, int]:
    """Width and height."""
    small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else bits.choice(*_SIDE)

    height = side()
    if ratio := bits.take(3):
        over, under = _RATIOS[ratio - 1]
        return height * over // under, height
    return side(), height


def _metadata(bits: _Bits) -> _About:
    if bits.take(1):
        return _About()
    turn = _further(bits) if bits.take(1) else 1
    depth, floating = _depth(bits)
    bits.take(1)
    count = bits.choice((0, 0), (1, 0), (2, 4), (1, 12))
    if count > _MOST_EXTRA:
        raise ValueError(f"{count} channels beside the colours, more than {_MOST_EXTRA}")
    extra = tuple(_extra(bits) for _ in range(count))
    bits.take(1)  # xyb_encoded
    grey = not bits.take(1) and not _profile(bits) and bits.choice(*_ENUM) == _GREY
    return _About(turn, depth, floating, extra, grey)


def _profile(bits: _Bits) -> int:
    """Passes over want_icc, which changes nothing of how many colours there are."""
    bits.take(1)
    return 0


def _further(bits: _Bits) -> int:
    """The orientation; passes over sides that are meant, a preview and an animation."""
    turn = bits.take(3) + 1
    if bits.take(1):
        _sides(bits)
    if bits.take(1):
        _preview(bits)
    if bits.take(1):
        bits.choice((100, 0), (1000, 0), (1, 10), (1, 30))
        bits.choice((1, 0), (1001, 0), (1, 8), (1, 10))
        bits.choice((0, 0), (0, 3), (0, 16), (0, 32))
        bits.take(1)
    return turn


def _preview(bits: _Bits) -> None:
    of = (
        ((16, 0), (32, 0), (1, 5), (33, 9))
        if bits.take(1)
        else ((1, 6), (65, 8), (321, 10), (1345, 12))
    )
    bits.choice(*of)
    if not bits.take(3):
        bits.choice(*of)


def _depth(bits: _Bits) -> tuple[int, bool]:
    """Bits of a value, and whether it is a float."""
    if not bits.take(1):
        return bits.choice((8, 0), (10, 0), (12, 0), (1, 6)), False
    found = bits.choice((32, 0), (16, 0), (24, 0), (1, 6))
    bits.take(4)
    return found, True


def _extra(bits: _Bits) -> int:
    """The kind of a channel beside the colours; -1 for transparency that is multiplied in."""
    if bits.take(1):
        return _ALPHA
    kind = bits.choice(*_ENUM)
    _depth(bits)
    bits.choice((0, 0), (3, 0), (4, 0), (1, 3))
    bits.take(8 * bits.choice(*_NAME))
    if kind == _SPOT:
        bits.take(64)
    if kind == _FILTER:
        bits.choice((1, 0), (0, 2), (3, 4), (19, 8))
    multiplied = kind == _ALPHA and bits.take(1)
    return -1 if multiplied else kind
