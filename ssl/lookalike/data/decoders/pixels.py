"""The bytes of one image whose header was judged -> its pixels, uint8 (C, H, W), upright, by Pillow
and torchvision; and pixels -> bytes.

Of an animation or a multi-page file the first frame is taken. Greys deeper than 8 bits keep their
high byte (Pillow's own conversion saturates), transparency lies on white, EXIF orientation is
applied.

Plain JPEG and WebP are decoded by torchvision, all else, and what torchvision refuses, by Pillow:
the pixels are the same to the bit (torchvision 0.29, Pillow 13), so that where a later torchvision
has no decoders nothing changes but the time. Of a 500 × 375 JPEG of 50 kB: 0.63 against 1.09 ms;
WebP 1.5 against 2.3; 256 × 256 JPEG 0.18 against 0.39. A JPEG whose sides are twice too large is
faster by Pillow at half its sides (600 × 520 to 256: 1.3 against 1.6 ms, resize included), and so
on to an eighth. PNG stays with Pillow: torchvision would save 15 %, but its decoder ends the
process with a segmentation fault where pixels are missing.
"""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO, Any

import numpy as np
import torch
from PIL import (
    AvifImagePlugin,
    IcoImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from lookalike.data import headers
from lookalike.data.decoders.orientation import upright
from lookalike.data.headers.heif import still
from lookalike.data.headers.ico import icon
from lookalike.data.headers.jpeg import READ_AT_ONCE, file_of
from lookalike.lean import without_compiler

# Imported by name: Pillow would otherwise load all its forty formats to find these.
RARER_FORMATS = (
    AvifImagePlugin,
    IcoImagePlugin,
    Jpeg2KImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

_GREY, _RGB, _RGBA = 1, 3, 4  # torchvision.io.ImageReadMode
_STRIP = 1 << 18  # pixels that are converted at a time
_STORED = {
    "1": 1,
    "L": 1,
    "P": 1,
    "I;16": 2,
    "I;16B": 2,
    "I;16L": 2,
    "I;16N": 2,
}  # bytes a pixel; of others 4
_PILLOWS_LIMIT = threading.Lock()


def pixels_of(
    data: bytes, header: headers.Header, channels: int, shrink: int, limited: bool
) -> Tensor:
    """uint8 (C, H, W), upright; a JPEG at 1/`shrink` (1, 2, 4 or 8) of its sides, rounded up.

    With `limited` more pixels, or bytes that Pillow would take, than are allowed raise ValueError.
    What else is wrong raises whatever the decoders raise.
    """
    return upright(decoded(data, header, channels, shrink, limited), header.turn)


def decoded(
    data: bytes, header: headers.Header, channels: int, shrink: int, limited: bool
) -> Tensor:
    """uint8 (C, H, W) as stored."""
    shrink = shrink if header.kind == "JPEG" else 1
    if limited and shrink == 1 and header.width * header.height > header.whole:
        raise headers.too_large(header.width, header.height, f"a whole {header.form}", header.whole)
    if header.plain and shrink == 1:
        image_CHW = _by_torchvision(data, header, channels)
        if image_CHW is not None and image_CHW.shape[1:] == (header.height, header.width):
            return image_CHW
    with allowing(header.width * header.height):
        return _by_pillow(data, header, channels, shrink, limited)


def saved(image_CHW: Tensor, form: str, **options: Any) -> bytes:
    """The file of a uint8 image of one or three channels in that format of Pillow's."""
    pixels = image_CHW.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@contextmanager
def allowing(pixels: int) -> Iterator[None]:
    """Pillow refuses more than twice its MAX_IMAGE_PIXELS; what our own check let pass may be more,
    for this while.

    The limit is of the whole process: another thread that opens an image meanwhile is not warned by
    it.
    """
    if Image.MAX_IMAGE_PIXELS is None or pixels <= 2 * Image.MAX_IMAGE_PIXELS:
        yield
        return
    with _PILLOWS_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _file_of(data: bytes, header: headers.Header) -> IO[bytes]:
    """The file for Pillow, with nothing in it that was not judged."""
    if header.kind == "AVIF":
        return io.BytesIO(still(data))
    return io.BytesIO(icon(data, header)) if header.kind == "ICO" else file_of(data, header)


def _open(file: IO[bytes], kind: str) -> Image.Image:
    """Pillow opens only the format that the first bytes name."""
    opened = Image.open(file, formats=[kind])
    if kind == "TIFF":
        # Else Pillow also reads the EXIF directories, which nothing here asks for.
        opened.is_animated = True  # type: ignore[attr-defined]
    if kind == "JPEG":
        opened.decodermaxblock = READ_AT_ONCE
    return opened


@cache
def operators() -> Any:
    """torchvision's decoders, which its import adds to the operators of torch."""
    with without_compiler():
        import torchvision  # noqa: F401

    return torch.ops.image


def _by_torchvision(data: bytes, header: headers.Header, channels: int) -> Tensor | None:
    """uint8 (C, H, W), or None where it cannot: Pillow has the last word."""
    try:
        # The operators themselves: torchvision's functions warn at each call that they are to go.
        image = operators()
        bytes_N = torch.frombuffer(data, dtype=torch.uint8)
        if header.kind == "JPEG":
            x_CHW: Tensor = image.decode_jpeg(bytes_N, _GREY if channels == 1 else _RGB, False)
            return x_CHW
        x_CHW = image.decode_webp(bytes_N, _RGBA if header.alpha else _RGB)
    except (RuntimeError, AttributeError):
        return None
    if len(x_CHW) == channels:
        return x_CHW
    pixels_HWC = x_CHW.permute(1, 2, 0).numpy()
    height, width, _ = pixels_HWC.shape
    return _in_strips(height, width, channels, lambda rows: Image.fromarray(pixels_HWC[rows]))


def _by_pillow(
    data: bytes, header: headers.Header, channels: int, shrink: int, limited: bool
) -> Tensor:
    """uint8 (C, H, W) as stored."""
    return _pixels(loaded(data, header, channels, shrink, limited), channels)


def loaded(
    data: bytes, header: headers.Header, channels: int, shrink: int, limited: bool
) -> Image.Image:
    """The image that Pillow makes of it."""
    opened = _open(_file_of(data, header), header.kind)
    if sorted(opened.size) != sorted((header.width, header.height)):
        raise ValueError(
            f"{opened.width} x {opened.height} pixels beside {header.width} x {header.height}: "
            "damaged"
        )
    if header.kind == "JPEG":
        opened.draft(
            "L" if channels == 1 else None, (opened.width // shrink, opened.height // shrink)
        )
    if limited:
        _check_room(opened, header)
    opened.load()
    return opened


def deep(mode: str) -> bool:
    """Whether its greys have more than 8 bits."""
    return mode in ("I", "F") or mode.startswith("I;16")


def _check_room(opened: Image.Image, header: headers.Header) -> None:
    """Holds what Pillow is about to take, while it decodes and then beside our copy, against the
    limit.
    """
    stored, pixels = _STORED.get(opened.mode, 4), opened.width * opened.height
    taken = int(
        max(
            pixels * (stored + headers.COPY),
            header.held * header.width * header.height + pixels * stored,
        )
    )
    if taken > headers.MEMORY:
        why = (
            "torchvision refused it, and "
            if header.plain and opened.size == (header.width, header.height)
            else ""
        )
        what = f"{opened.width} x {opened.height} pixels as {opened.mode} take {taken} bytes"
        raise ValueError(
            f"{why}{what}, more than the {headers.MEMORY} allowed: data.max_pixels allows more"
        )


def _pixels(opened: Image.Image, channels: int) -> Tensor:
    def strip(rows: slice) -> Image.Image:
        whole = rows.stop - rows.start >= opened.height
        return opened if whole else opened.crop((0, rows.start, opened.width, rows.stop))

    if not deep(opened.mode):
        return _in_strips(opened.height, opened.width, channels, strip)
    spans = _spans(opened.height, opened.width)
    ends = [
        (grey_HW.min(), grey_HW.max()) for grey_HW in (np.asarray(strip(rows)) for rows in spans)
    ]
    low, high = np.min([low for low, _ in ends]), np.max([high for _, high in ends])

    def eight_bits(rows: slice) -> Image.Image:
        return Image.fromarray(_eight_bits(np.asarray(strip(rows)), low, high))

    return _in_strips(opened.height, opened.width, channels, eight_bits)


def _in_strips(
    height: int, width: int, channels: int, strip: Callable[[slice], Image.Image]
) -> Tensor:
    """uint8 (C, H, W), converted some rows at a time, so that little is held twice."""
    pixels_HWC = np.empty((height, width, channels), np.uint8)
    for rows in _spans(height, width):
        piece = strip(rows)
        if piece.has_transparency_data:
            piece = _on_white(piece.convert("RGBA"))
        mode = "L" if channels == 1 else "RGB"
        converted = np.asarray(piece if piece.mode == mode else piece.convert(mode))
        pixels_HWC[rows] = converted.reshape(*converted.shape[:2], channels)
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def _spans(height: int, width: int) -> list[slice]:
    step = max(1, _STRIP // width)
    return [slice(start, min(start + step, height)) for start in range(0, height, step)]


def _eight_bits(grey_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """Grey uint8: the high byte of 16-bit integers.

    `low` and `high` are of the whole image. Raises ValueError when they lie outside these.
    """
    if low < 0 or high > 65535:
        raise ValueError(
            f"grey values {low} to {high}, outside 0 to 65535: data.range says what becomes black "
            "and white, and data.depth: float32 holds them"
        )
    return np.asarray(grey_HW >> 8, dtype=np.uint8)


def _on_white(opened: Image.Image) -> Image.Image:
    paper = Image.new("RGB", opened.size, "white")
    paper.paste(opened, mask=opened.getchannel("A"))
    return paper
