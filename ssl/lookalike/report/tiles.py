"""Images for people: tiles, as data URLs for a page or side by side on one PNG."""

import base64
import io
from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal, TypeAlias

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from lookalike.geometry import PixelFormat
from lookalike.views import scale

Tile: TypeAlias = Image.Image
Mark = Literal["query", "right", "wrong", "junk"]

SIDE = 160
"""Pixels of the longest side of a thumbnail and of a framed tile."""

_EDGE = 4
_SMALLEST = 96  # tiny images are shown enlarged to this many pixels
_COLOURS = {"query": "#0969da", "right": "#1a7f37", "wrong": "#cf222e", "junk": "#8c959f"}
_SIGN = 27  # pixels of the corner that holds the sign
_STROKES: dict[Mark, list[list[tuple[int, int]]]] = {
    "right": [[(6, 14), (11, 19), (21, 8)]],
    "wrong": [[(7, 7), (20, 20)], [(20, 7), (7, 20)]],
    "junk": [[(5, 13), (22, 13)]],
}


def visible(image_CHW: Tensor, form: PixelFormat) -> Tensor:
    """What people can see of raw pixels, uint8 (1 or 3, H, W): the first three channels, or the
    first alone, by the range of the set.
    """
    return shown(image_CHW if form.plain else scale(image_CHW, form))


def shown(image_CHW: Tensor) -> Tensor:
    """The same of bytes, or of floats in [0, 1]."""
    few_CHW = image_CHW[: 3 if len(image_CHW) >= 3 else 1]
    return few_CHW if few_CHW.dtype == torch.uint8 else (few_CHW * 255).round().to(torch.uint8)


def rgb(image_CHW: Tensor) -> Tile:
    """A uint8 image of one or three channels in RGB."""
    return Image.fromarray(image_CHW.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def enlarged(image_CHW: Tensor) -> Tile:
    """The same, times a whole number where it is tiny."""
    tile = rgb(image_CHW)
    return ImageOps.scale(tile, max(1, -(-_SMALLEST // max(tile.size))), Image.Resampling.NEAREST)


def thumbnail(image_CHW: Tensor) -> Tile:
    """The same, of at most SIDE pixels a side."""
    tile = rgb(image_CHW)
    tile.thumbnail((SIDE, SIDE))
    return tile


def plain(side: int, colour: str) -> Tile:
    """A gap between tiles, or what stands for an image that cannot be shown."""
    return Image.new("RGB", (side, side), colour)


def framed(image_CHW: Tensor | None, mark: Mark) -> Tile:
    """A square of SIDE pixels: the image, pale where junk, in a frame with the mark's sign."""
    tile, inner = plain(SIDE, _COLOURS[mark]), plain(SIDE - 2 * _EDGE, "#ebebeb")
    if image_CHW is not None:
        shown = rgb(image_CHW)
        times = inner.width / max(shown.size)
        width, height = (max(1, round(side * times)) for side in shown.size)
        how = Image.Resampling.NEAREST if times > 1 else Image.Resampling.LANCZOS
        shown = shown.resize((width, height), how)
        if mark == "junk":
            shown = ImageOps.colorize(ImageOps.grayscale(shown), "#999999", "white")
        inner.paste(shown, ((inner.width - width) // 2, (inner.height - height) // 2))
    tile.paste(inner, (_EDGE, _EDGE))
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, _SIGN - 1, _SIGN - 1), _COLOURS[mark])
    for stroke in _STROKES.get(mark, []):
        draw.line(stroke, "white", width=4, joint="curve")
    if mark == "query":
        font = ImageFont.load_default(size=22)
        draw.text((_SIGN // 2, _SIGN // 2), "?", "white", font, anchor="mm", stroke_width=0.7)
    return tile


def grid(rows: Sequence[Sequence[Tile]]) -> bytes:
    """The PNG of tiles on white, a row a list."""
    height = max(tile.height for row in rows for tile in row)
    columns = zip_longest(*rows)
    widths = [max(tile.width for tile in column if tile) for column in columns]
    size = (sum(widths) + _EDGE * (len(widths) + 1), (height + _EDGE) * len(rows) + _EDGE)
    sheet = Image.new("RGB", size, "white")
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            sheet.paste(tile, (sum(widths[:c]) + _EDGE * (c + 1), r * (height + _EDGE) + _EDGE))
    return _file(sheet, "PNG")


def data_url(tile: Tile, form: str = "PNG") -> str:
    """What an <img> needs to hold its image: a PNG, or a JPEG good enough to look at."""
    return f"data:image/{form.lower()};base64,{base64.b64encode(_file(tile, form)).decode()}"


def _file(tile: Tile, form: str) -> bytes:
    buffer = io.BytesIO()
    tile.save(buffer, form, quality=85)
    return buffer.getvalue()
