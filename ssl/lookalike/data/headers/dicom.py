"""The elements of a DICOM file (PS3.5, section 7; PS3.10, section 7), of unknown worth -> its
header.

Sequences are passed over, however deep: what an image is stands outside of them.
"""

import struct
from typing import NamedTuple

from lookalike.data.headers.header import MAX_PIXELS_WHOLE, MEMORY, Header

RLE = "1.2.840.10008.1.2.5"
IMPLICIT, _BIG, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
COLOURS = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"}
GREYS = {"MONOCHROME1", "MONOCHROME2"}
PALETTE = "PALETTE COLOR"

_PLAIN = {IMPLICIT, _BIG, "1.2.840.10008.1.2.1"}
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_UNKNOWN = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SYNTAX, _SAMPLES, _PHOTOMETRIC, _FRAMES = 0x00020010, 0x00280002, 0x00280004, 0x00280008
_ROWS, _COLUMNS, _ALLOCATED, _STORED, _SIGN = (
    0x00280010,
    0x00280011,
    0x00280100,
    0x00280101,
    0x00280103,
)
_INTERCEPT, _SLOPE, _LUT, _RED = 0x00281052, 0x00281053, 0x00283000, 0x00281101
_FLOATS, _DOUBLES, _PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010
_MOST_ELEMENTS, _MOST_DEPTH, _MOST_VALUE = 1 << 16, 64, 256


class _Element(NamedTuple):
    tag: int
    kind: bytes
    length: int
    at: int


def read(data: bytes) -> Header:
    """Raises ValueError for what is damaged, or no image."""
    return _of(elements(data))


def elements(data: bytes) -> dict[int, bytes]:
    """The first bytes of the values that stand outside of sequences, up to the pixels'; by tag, in
    the file's own byte order, which is put right here.
    """
    found: dict[int, bytes] = {}
    at, syntax = _meta(data, found)
    order = ">" if syntax == _BIG else "<"
    implicit = [syntax == IMPLICIT]
    for _ in range(_MOST_ELEMENTS):
        element = _next(data, at, order, implicit[-1])
        tag, at = element.tag, element.at
        if len(implicit) == 1 and tag >= _FLOATS:
            found[tag] = b""
            return found
        if tag in (_ITEM_END, _SEQUENCE_END):
            implicit = implicit[:-1] if len(implicit) > 1 else implicit
        elif element.length == _UNKNOWN:
            implicit.append(implicit[-1] or element.kind == b"UN")
        else:
            if len(implicit) == 1:
                value = data[at : at + min(element.length, _MOST_VALUE)]
                found.setdefault(tag, _little(value, order, element.kind))
            at += element.length
        if len(implicit) > _MOST_DEPTH:
            raise ValueError(f"sequences of more than {_MOST_DEPTH} levels")
    raise ValueError(f"more than {_MOST_ELEMENTS} elements before its pixels")


def _meta(data: bytes, found: dict[int, bytes]) -> tuple[int, str]:
    """Where the data set begins, and its transfer syntax."""
    at = 132
    for _ in range(_MOST_VALUE):
        element = _next(data, at, "<", False)
        if element.tag >> 16 != 2:
            break
        if element.length == _UNKNOWN:
            raise ValueError("damaged header: file meta information")
        at = element.at + element.length
        found[element.tag] = data[element.at : min(at, element.at + _MOST_VALUE)]
    syntax = text(found, _SYNTAX)
    if syntax == _DEFLATED:
        raise ValueError("a deflated DICOM file, which is not read: save it without")
    return at, syntax


def _next(data: bytes, at: int, order: str, implicit: bool) -> _Element:
    if at + 8 > len(data):
        raise ValueError("damaged header: truncated before its pixels")
    group, number = struct.unpack_from(order + "HH", data, at)
    tag, kind = group << 16 | number, data[at + 4 : at + 6]
    if implicit or group == 0xFFFE:
        return _Element(tag, b"", struct.unpack_from(order + "L", data, at + 4)[0], at + 8)
    if kind not in _LONG:
        return _Element(tag, kind, struct.unpack_from(order + "H", data, at + 6)[0], at + 8)
    if at + 12 > len(data):
        raise ValueError("damaged header: truncated before its pixels")
    return _Element(tag, kind, struct.unpack_from(order + "L", data, at + 8)[0], at + 12)


def _little(value: bytes, order: str, kind: bytes) -> bytes:
    """Numbers of two bytes, which are all that is asked for, in little-endian order."""
    if order == "<" or kind not in (b"US", b"SS", b"OW"):
        return value
    return b"".join(value[i : i + 2][::-1] for i in range(0, len(value), 2))


def text(found: dict[int, bytes], tag: int) -> str:
    """A value that is text; empty where there is none."""
    return found.get(tag, b"").split(b"\\")[0].strip(b" \0").decode("latin-1")


def number(found: dict[int, bytes], tag: int, otherwise: int) -> int:
    """A value of two bytes."""
    value = found.get(tag, b"")[:2]
    return int.from_bytes(value, "little") if len(value) == 2 else otherwise


def line(found: dict[int, bytes]) -> tuple[float, float]:
    """Rescale slope and intercept. Raises ValueError where they are no numbers."""
    slope, intercept = text(found, _SLOPE) or "1", text(found, _INTERCEPT) or "0"
    return float(slope), float(intercept)


def _of(found: dict[int, bytes]) -> Header:
    pixels = found.keys() & {_FLOATS, _DOUBLES, _PIXELS}
    if not pixels:
        raise ValueError("a DICOM file without pixels")
    if _LUT in found:
        raise ValueError("values by a modality table, which is not read")
    photometric, samples = text(found, _PHOTOMETRIC), number(found, _SAMPLES, 1)
    if photometric not in GREYS | COLOURS | {PALETTE} or samples not in (1, 3):
        raise ValueError(f"photometric interpretation {photometric[:20]!r}, which is not read")
    allocated, frames = number(found, _ALLOCATED, 0), text(found, _FRAMES) or "1"
    if allocated not in (1, 8, 16, 32, 64) or not frames.isdigit():
        raise ValueError(f"{allocated} bits for a value, {frames[:20]} frames: damaged header")
    floating, signed, bits = _values(found, pixels)
    channels = 3 if photometric == PALETTE else samples
    # Raw bytes, pydicom's array and a copy in another order; of code what its decoders hold; of
    # colours also their floats.
    size = max(1, allocated // 8) * samples
    coded = text(found, _SYNTAX) not in _PLAIN
    taken = (
        3.0 * size
        + max(2.5 * size, 5 * samples) * coded
        + (30 if photometric.startswith("YBR") else 12 if channels > samples else 0)
    )
    return Header(
        "DICOM",
        number(found, _COLUMNS, 0),
        number(found, _ROWS, 0),
        limit=min(MAX_PIXELS_WHOLE, int(MEMORY / taken)),
        form="DICOM",
        channels=channels,
        bits=bits,
        floating=floating,
        signed=signed,
        eight=False,
        pillow=False,
        taken=taken,
        frames=min(int(frames[:9]), 1 << 30),
    )


def _values(found: dict[int, bytes], pixels: set[int]) -> tuple[bool, bool, int]:
    """Floating, signed and bits of what the values become by slope and intercept."""
    if _PIXELS not in pixels:
        return True, True, 64 if _DOUBLES in pixels else 32
    if text(found, _PHOTOMETRIC) == PALETTE:
        return False, False, 16 if number({_RED: found.get(_RED, b"")[4:]}, _RED, 8) > 8 else 8
    bits, signed = number(found, _STORED, 0), number(found, _SIGN, 0) == 1
    slope, intercept = line(found)
    if (slope, intercept) == (1, 0):
        return False, signed, max(8, bits)
    whole = slope.is_integer() and intercept.is_integer()
    return not whole, True, 32
