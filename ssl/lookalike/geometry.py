"""Pixels, sides and boxes of images: what decoding an image, cutting views from it and a model's
input have in common. And the two distances of embeddings, which a model tells and a score asks for.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch

Depth = Literal["uint8", "uint16", "float32"]
"""The type in which pixels are kept from the file to the view."""

Alpha = Literal["white", "black", "keep"]
"""What transparency lies on, or that it stays a channel of its own."""

MOST_CHANNELS = 512

_TYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}
_WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
_WORDS = {"uint8": "8-bit", "uint16": "16-bit", "float32": "floating-point"}


class PixelFormat(NamedTuple):
    """What the pixels of a set are, from the file to the view: one for all images, never one each.

    `range`: the values, as they stand in the files, that become 0 and 1 in a view; what lies
    outside is clamped. None: all that the type holds, 0 … 255, 0 … 65535 or 0.0 … 1.0; integers of
    another depth in a file are then scaled from white to white.
    """

    channels: int = 3
    depth: Depth = "uint8"
    range: tuple[float, float] | None = None
    alpha: Alpha = "white"

    @property
    def dtype(self) -> torch.dtype:
        """Of a canvas."""
        return _TYPES[self.depth]

    @property
    def ends(self) -> tuple[float, float]:
        """The values that become 0 and 1."""
        return (0.0, _WHITE[self.depth]) if self.range is None else self.range

    @property
    def plain(self) -> bool:
        """Whether pixels are bytes of which 0 is black and 255 white."""
        return self.depth == "uint8" and self.range is None

    @property
    def words(self) -> str:
        """For people, what of a file becomes 0 and 1."""
        low, high = (int(end) if float(end).is_integer() else end for end in self.ends)
        return f"{_WORDS[self.depth]} values {low} … {high} become 0 … 1"


BYTES = PixelFormat()
"""Bytes, 0 black and 255 white: what pixels are where nothing else is said."""

Distance = Literal["cosine", "euclidean"]
"""How two embeddings are compared: by their angle, or by the length of their difference."""

DISTANCES: tuple[Distance, ...] = get_args(Distance)


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size: the side of a square, or both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def central(
    height: int, width: int, like: int | Sequence[int], share: float = 1.0
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of an image's middle: `share` of the sides of the largest box
    shaped as `like`.
    """
    rows, columns = sides(like)
    whole = min(height, width * rows / columns)
    h, w = max(1, round(whole * share)), max(1, round(whole * columns / rows * share))
    return (height - h) // 2, (width - w) // 2, h, w
