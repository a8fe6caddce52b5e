"""Sides and boxes of images, in whole pixels: what decoding an image and cutting views from it have
in common. And the two distances of embeddings, which a model tells and a score asks for.
"""

from collections.abc import Sequence
from typing import Literal, get_args

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
