"""DICOM files by pydicom: one frame, rescaled where the file says how, and white where it says
white.
"""

import io
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lookalike.data.decoders.codecs import codec
from lookalike.data.decoders.raster import Raster, needs, of_array
from lookalike.data.headers import Header, dicom, jpeg, jpeg2000

_SLACK = 4096
_JPEG = b"\xff\xd8"
_HEAD = 1 << 16  # bytes of a JPEG-LS in which its frame begins
_SHARED, _EACH = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


def raster(data: bytes, header: Header, frame: int) -> Raster:
    """A frame. Raises ValueError where its code claims other sides than the file."""
    try:
        import pydicom
        from pydicom.pixels.processing import apply_color_lut, convert_color_space
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise needs("pydicom", "dicom") from error
    logging.getLogger("pydicom").disabled = True  # it tells of each damaged value
    dataset = pydicom.dcmread(io.BytesIO(data))
    photometric = str(dataset.PhotometricInterpretation)
    code = _code(dataset, header, frame)
    if code is None:
        pixels = pixel_array(dataset, index=frame)
    else:
        pixels = _signed(_decoded(code, photometric), dataset)
        if photometric == "YBR_FULL" and not code.startswith(_JPEG):
            pixels = convert_color_space(pixels, photometric, "RGB")
    if photometric == dicom.PALETTE:
        pixels = apply_color_lut(pixels, dataset)
    found = of_array(pixels, header.full)
    sides = header.height, header.width, header.channels
    if (found.height, found.width, found.channels) != sides:
        raise ValueError(f"{pixels.shape} decoded, not what its header says: damaged")
    return _valued(found, dataset, header, frame)


def _code(dataset: Any, header: Header, frame: int) -> bytes | None:
    """The frame in a JPEG of any kind; None where pydicom itself unpacks it, plain or in runs.
    Raises ValueError where it would be decoded to more than the image.
    """
    from pydicom.encaps import get_frame

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return None
    code = bytes(get_frame(dataset.PixelData, frame, number_of_frames=header.frames))
    if syntax == dicom.RLE:
        bytes_ = int(dataset.SamplesPerPixel) * (int(dataset.BitsAllocated) // 8)
        _judge_runs(code, header.width * header.height * bytes_)
        return None
    sides = _sides(code)
    if sides != (header.width, header.height):
        raise ValueError(f"{sides[0]} x {sides[1]} pixels in its code: damaged")
    return code


def _sides(code: bytes) -> tuple[int, int]:
    """Width and height of a JPEG in any of its processes, a JPEG-LS, or a JPEG 2000."""
    if code.startswith(_JPEG):
        at = _ls(code)
        if at >= 0:
            height, width = (int.from_bytes(code[at + i : at + i + 2], "big") for i in (5, 7))
            return width, height
        found = jpeg.read(code)
    elif code[:1] == b"\0" or code[:4] == b"\xff\x4f\xff\x51":
        found = jpeg2000.read(code)
    else:
        raise ValueError(f"pixels in a code that begins with {code[:4]!r}: not read")
    return found.width, found.height


def _ls(code: bytes) -> int:
    """Where the frame of a JPEG-LS begins; -1 where it is none."""
    return code.find(b"\xff\xf7", 0, _HEAD)


def _decoded(code: bytes, photometric: str) -> np.ndarray:
    """By the decoder of that code. One of many, gdcm, ends the process where it is damaged."""
    if not code.startswith(_JPEG):
        return np.asarray(codec("jpeg2k_decode", "dicom")(code, numthreads=1))
    if _ls(code) >= 0:
        return np.asarray(codec("jpegls_decode", "dicom")(code))
    if photometric not in dicom.COLOURS:
        return np.asarray(codec("jpeg_decode", "dicom")(code))
    stored = "RGB" if photometric == "RGB" else "YCbCr"
    return np.asarray(codec("jpeg_decode", "dicom")(code, colorspace=stored, outcolorspace="RGB"))


def _signed(pixels: np.ndarray, dataset: Any) -> np.ndarray:
    """With the sign that the file gives values, whatever their code knows of it."""
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    if signed == (pixels.dtype.kind == "i"):
        return pixels
    values = pixels.astype(np.int32) & (1 << bits) - 1
    return values - (values >> bits - 1 << bits) if signed else values


def _judge_runs(code: bytes, expected: int) -> None:
    """PackBits (PS3.5, annex G), which unpacks up to 64 bytes from one."""
    if len(code) > 2 * expected + _SLACK:
        raise ValueError(f"runs of {len(code)} bytes for {expected}: damaged")
    at, made, end = 64, 0, len(code)
    while at < end:
        head = code[at]
        if head == 128:
            at += 1
            continue
        length = head + 1 if head < 128 else 257 - head
        at, made = at + (1 + length if head < 128 else 2), made + length
        if made > expected + _SLACK:
            raise ValueError(f"runs that unpack to more than {expected} bytes: damaged")


def _valued(found: Raster, dataset: Any, header: Header, frame: int) -> Raster:
    """Inverted where its least value is white, then rescaled."""
    slope, intercept = _line(dataset, frame)
    strip = found.strip
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        strip = _inverted(strip, dataset, header)
    if (slope, intercept) == (1, 0):
        return replace(found, strip=strip)
    whole = slope.is_integer() and intercept.is_integer() and not header.floating
    dtype = np.int64 if whole else np.float32

    def rescaled(rows: slice) -> np.ndarray:
        return (strip(rows) * slope + intercept).astype(dtype)

    return replace(found, strip=rescaled, white=None)


def _inverted(
    strip: Callable[[slice], np.ndarray], dataset: Any, header: Header
) -> Callable[[slice], np.ndarray]:
    if header.floating and "PixelData" not in dataset:
        raise ValueError("white is the least of its floats: not read")
    bits = int(dataset.BitsStored)
    # The least and the largest value change places.
    ends = -1 if int(dataset.PixelRepresentation) else (1 << bits) - 1
    return lambda rows: ends - strip(rows).astype(np.int64)


def _line(dataset: Any, frame: int) -> tuple[float, float]:
    """Slope and intercept: the file's, or in an enhanced file those of the frame or of all."""
    places = [dataset]
    for name, i in ((_EACH, frame), (_SHARED, 0)):
        groups = getattr(dataset, name, None) or []
        if i < len(groups):
            places += list(getattr(groups[i], "PixelValueTransformationSequence", None) or [])[:1]
    for place in places:
        if "RescaleSlope" in place or "RescaleIntercept" in place:
            slope, intercept = place.get("RescaleSlope", 1), place.get("RescaleIntercept", 0)
            return float(slope), float(intercept)
    return 1.0, 0.0
