"""Images for people: one PNG of many, or one HTML page with nothing from elsewhere."""

import base64
import html
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.data.pixels import png
from lookalike.errors import RecipeError, printable

_EDGE = 4
_SMALLEST = 96  # tiny images are shown enlarged to this many pixels
_STYLE = (
    "body{font:14px/1.4 "
    "system-ui,sans-serif;margin:2em;color:#222}td,th{padding:6px;vertical-align:top;"
    "text-align:left}img{image-rendering:pixelated;display:block}small{color:#666}"
)


def refuse_other(path: Path, what: str) -> None:
    """Raises RecipeError, saying `what` is shown, for a path that ends neither in .png nor in
    .html.
    """
    if path.suffix.lower() not in (".png", ".html"):
        raise RecipeError(f"{printable(path)}: {what} a .png or an .html: name it so")


def tile(image_CHW: Tensor) -> Tensor:
    """uint8 (C, H, W) as RGB, enlarged by a whole number where it is tiny."""
    times = max(1, -(-_SMALLEST // max(image_CHW.shape[1:])))
    colour_CHW = image_CHW.expand(3, -1, -1) if image_CHW.shape[0] == 1 else image_CHW
    return F.interpolate(colour_CHW[None].float(), scale_factor=times, mode="nearest")[0].to(
        torch.uint8
    )


def grid(rows: list[list[Tensor]]) -> bytes:
    """A PNG of tiles, uint8 (3, H, W) each, a row a list, on white."""
    height = max(x.shape[1] for row in rows for x in row)
    widths = [max(row[column].shape[2] for row in rows) for column in range(len(rows[0]))]
    sheet = torch.full(
        (3, len(rows) * (height + _EDGE) + _EDGE, sum(w + _EDGE for w in widths) + _EDGE), 255
    )
    sheet = sheet.to(torch.uint8)
    for r, row in enumerate(rows):
        left = _EDGE
        for width, x in zip(widths, row, strict=True):
            top = r * (height + _EDGE) + _EDGE
            sheet[:, top : top + x.shape[1], left : left + x.shape[2]] = x
            left += width + _EDGE
    return png(sheet)


def image(image_CHW: Tensor, alt: str = "") -> str:
    """An HTML image that holds its image, uint8 (3, H, W)."""
    data = base64.b64encode(png(image_CHW)).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def document(title: str, body: str, style: str = "") -> str:
    """One HTML page of a title, which is escaped, a body, whose texts must be, and perhaps more
    style.
    """
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}{style}</style><h1>{html.escape(title)}</h1>{body}</html>"
    )
