"""Images with what was found in them, for people: groups of patches, predicted classes and the
truth side by side.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.errors import printable
from lookalike.report import page, tiles
from lookalike.report.tables import Table

_LEGEND = 10
_NONE = (128, 128, 128)
_GOLDEN = 0.6180339887


class Example(NamedTuple):
    """An image uint8 (1 or 3, H, W), the group of each patch (h, w), the class of each pixel (H, W)
    as predicted and in the mask, -1 for none; its name and the share of pixels that are right.
    """

    name: str
    image_CHW: Tensor
    group_hw: Tensor
    guess_HW: Tensor
    class_HW: Tensor

    @property
    def right(self) -> str:
        """The share of pixels that are right, in words."""
        known = self.class_HW >= 0
        if not bool(known.any()):
            return "no pixel has a class"
        share = float((self.guess_HW == self.class_HW)[known].double().mean())
        return f"{100 * share:.1f} % of pixels right"


class Row(NamedTuple):
    """A class: name, colour, IoU in words and as a length."""

    name: str
    colour: str
    iou: str
    bar: float


def document(
    title: str,
    about: str,
    table: Table,
    names: Sequence[str],
    iou: Sequence[float | None],
    examples: Sequence[Example],
) -> bytes:
    """The HTML page: scores, the examples, and every class with its colour."""
    colours = [colour(n) for n in range(len(names))]
    rows = [
        Row(printable(name), _hex(rgb), "–" if u is None else f"{100 * u:.1f}", u or 0.0)
        for name, rgb, u in zip(names, colours, iou, strict=True)
    ]
    shown = [_strip(example, rows, colours) for example in examples]
    known = {"title": title, "about": about, "table": table, "rows": rows, "examples": shown}
    return page.render("segment.html", **known)


def colour(number: int) -> tuple[int, int, int]:
    """Of a class or group: hues that lie apart, in turn light and dark, neither white nor black."""
    hue, light = (0.02 + number * _GOLDEN) % 1.0, (0.5, 0.36, 0.66)[number % 3]
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, 0.72))  # type: ignore[return-value]


def painted(class_HW: Tensor, colours: Sequence[tuple[int, int, int]]) -> Tensor:
    """uint8 (3, H, W): each class in its colour, -1 in grey."""
    table = torch.tensor([*colours, _NONE], dtype=torch.uint8)
    return table[class_HW.long()].permute(2, 0, 1).contiguous()


def soft(number: int) -> tuple[int, int, int]:
    """Of a group of patches: paler than any class."""
    hue, light = (0.58 + number * _GOLDEN) % 1.0, (0.8, 0.62, 0.72)[number % 3]
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, 0.35))  # type: ignore[return-value]


def _strip(
    example: Example, rows: Sequence[Row], colours: Sequence[tuple[int, int, int]]
) -> dict[str, object]:
    """What a strip of the page shows: four tiles, and the classes that are in them."""
    groups = [soft(n) for n in range(int(example.group_hw.max()) + 1)]
    sides = example.image_CHW.shape[1:]
    cards = [
        ("image", tiles.rgb(example.image_CHW), True),
        ("groups of patches", _large(painted(example.group_hw, groups), sides), False),
        ("predicted", tiles.rgb(painted(example.guess_HW, colours)), False),
        ("mask", tiles.rgb(painted(example.class_HW, colours)), False),
    ]
    there = torch.cat([example.guess_HW.flatten(), example.class_HW.flatten()])
    numbers, many = torch.unique(there[there >= 0], return_counts=True)
    order = many.argsort(descending=True, stable=True)
    classes = [rows[n] for n in numbers[order].tolist()]
    known = {"name": example.name, "right": example.right, "cards": cards}
    return {**known, "classes": classes[:_LEGEND], "more": max(0, len(classes) - _LEGEND)}


def _large(x_3hw: Tensor, sides: Sequence[int]) -> tiles.Tile:
    """The patches as large as the image."""
    return tiles.rgb(x_3hw).resize((sides[1], sides[0]), 0)


def _hex(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
