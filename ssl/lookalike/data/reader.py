"""Samples -> rows of raw pixels in place: a canvas of each image, or a crop for each of its views.

An image that cannot be read is replaced by another that (seed, sample) chooses; its crops follow
the sample's own draws. So a row is a pure function of (seed, epoch, sample), whoever reads it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lookalike import rng
from lookalike.data.decode import SHRINKS, BadImage, cut
from lookalike.data.images import ArrayImages, Images
from lookalike.data.images.contract import OpenedImage
from lookalike.errors import DataError
from lookalike.recipe import Size

_ATTEMPTS = 100


class Bad(NamedTuple):
    """An image that could not be read, and the sample that took its place."""

    sample: int
    path: str
    reason: str
    replacement: int


class CropPolicy(Protocol):
    """Which boxes the views cut, as the classes of views/ say it."""

    @property
    def interpolation(self) -> str: ...
    def sizes(self, size: Size) -> list[tuple[int, int]]:
        """Height and width of each view."""

    def boxes(
        self, ids_B: Tensor, *, seed: int, epoch: int, heights_B: Tensor, widths_B: Tensor
    ) -> list[Tensor]:
        """For each view int64 (B, 4): top, left, height, width in pixels of each image."""


class HostCrops(NamedTuple):
    """Crops on the host from full-size images: by the policy of the views, whose large ones have
    `size`.
    """

    policy: CropPolicy
    size: Size


class Reader:
    """Reads samples of `images` into given tensors: canvases, or with `cuts` one crop for each
    view.

    `shapes` are those of one sample's parts, (C, H, W) each, of `dtype`.
    """

    def __init__(self, images: Images, seed: int, host_crops: HostCrops | None = None) -> None:
        self.images, self.seed, self.host_crops = images, seed, host_crops
        self.dtype = images.form.dtype
        channels = images.shape[0]
        sizes = [] if host_crops is None else host_crops.policy.sizes(host_crops.size)
        self.shapes = [(channels, height, width) for height, width in sizes] or [images.shape]

    def fill(self, epoch: int, ids: Sequence[int], parts: Sequence[Tensor]) -> list[Bad]:
        """Writes the rows of `ids` into `parts`, each (B, C, H, W) of `dtype`; returns what was
        bad.

        Raises DataError when a sample's image and 99 replacements cannot be read.
        """
        if self.host_crops is None and isinstance(self.images, ArrayImages):
            self.images.read_many(ids, parts[0])
            return []
        chosen, rows = list(ids), list(range(len(ids)))
        problems: dict[int, BadImage] = {}
        for attempt in range(1, _ATTEMPTS + 1):
            refused = self._take(epoch, ids, chosen, rows, parts)
            problems = refused | problems  # of each row the first stays
            rows = sorted(refused)
            if not rows:
                return [
                    Bad(ids[b], p.path, p.reason, chosen[b]) for b, p in sorted(problems.items())
                ]
            for b in rows:
                chosen[b] = rng.seed(self.seed, "replace", ids[b], attempt) % len(self.images)
        first = problems[rows[0]]
        raise DataError(
            f"{first.path}: {first.reason}; nor could {_ATTEMPTS - 1} others be read: is the "
            "folder sound?"
        )

    def _take(
        self,
        epoch: int,
        ids: Sequence[int],
        chosen: list[int],
        rows: list[int],
        parts: Sequence[Tensor],
    ) -> dict[int, BadImage]:
        """Reads the images `chosen` for `rows`; returns which rows they could not fill."""
        opened: dict[int, OpenedImage] = {}
        refused: dict[int, BadImage] = {}
        for b in rows:
            try:
                if self.host_crops is None:
                    self.images.read(chosen[b], parts[0][b])
                else:
                    opened[b] = self.images.open(chosen[b])
            except BadImage as error:
                refused[b] = error
        return refused | self._cut(epoch, ids, opened, parts) if opened else refused

    def _cut(
        self,
        epoch: int,
        ids: Sequence[int],
        opened: dict[int, OpenedImage],
        parts: Sequence[Tensor],
    ) -> dict[int, BadImage]:
        """Decodes each image once and cuts its views; the boxes of all are drawn together."""
        assert self.host_crops is not None
        policy, refused = self.host_crops.policy, {}
        sides_B2 = torch.tensor([(image.height, image.width) for image in opened.values()])
        ids_B = torch.tensor([ids[b] for b in opened])
        how = {"heights_B": sides_B2[:, 0], "widths_B": sides_B2[:, 1]}
        boxes_BV = zip(
            *(v.tolist() for v in policy.boxes(ids_B, seed=self.seed, epoch=epoch, **how)),
            strict=True,
        )
        for (b, image), boxes in zip(opened.items(), boxes_BV, strict=True):
            try:
                cut_views(image, boxes, [part[b] for part in parts], policy.interpolation)
            except BadImage as error:
                refused[b] = error
        return refused


def cut_views(
    image: OpenedImage, boxes: Sequence[list[int]], outs: Sequence[Tensor], interpolation: str
) -> None:
    """Resizes each box of the image into its `outs` (C, H, W), decoding once.

    A JPEG is decoded at the smallest of 1, 1/2, 1/4 and 1/8 at which no box is smaller than its
    view.
    """
    room = min(
        box[a + 1] / out.shape[a] for box, out in zip(boxes, outs, strict=True) for a in (1, 2)
    )
    image_CHW = image.pixels(next((s for s in SHRINKS if s <= room), 1))
    height, width = image_CHW.shape[1:]
    y, x = height / image.height, width / image.width
    for (top, left, h, w), out in zip(boxes, outs, strict=True):
        top, bottom, left, right = (
            round(top * y),
            round((top + h) * y),
            round(left * x),
            round((left + w) * x),
        )
        cut(image_CHW, (top, left, bottom - top, right - left), out, interpolation)
