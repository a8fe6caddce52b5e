"""Images in files, each with a mask in another: a class for every pixel, cut as the canvas is."""

import hashlib
import os
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.data.decode import BadImage, contents, numbers
from lookalike.data.images.contract import OpenedImage, Reading
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.images.files import FileImages
from lookalike.errors import DataError, printable
from lookalike.geometry import central

IGNORED = -1
"""What a mask says of pixels that belong to no class."""

_IGNORED_16 = 65535
MOST_CLASSES = 65535


class Numbers(NamedTuple):
    """What the numbers in a mask mean: `ignore` no class; with `reduce_zero` 0 no class either, and
    each other number the class before it; `classes`: the names, by class.
    """

    classes: tuple[str, ...]
    ignore: int | None = 255
    reduce_zero: bool = False

    def classes_of(self, numbers_HW: Tensor) -> Tensor:
        """int32 (H, W), IGNORED where there is none; may be too large for `classes`."""
        class_HW = numbers_HW.to(torch.int32)
        out_HW = class_HW - 1 if self.reduce_zero else class_HW.clone()
        if self.ignore is not None:
            out_HW[class_HW == self.ignore] = IGNORED
        return out_HW


class MaskedImages(FileImages):
    """Images in files under `root`, and the mask of each, under it too; `masks` pairs with `paths`.

    `numbers`: what the masks' numbers mean. There are no labels: `names` are the classes of pixels.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        paths: Iterable[bytes],
        masks: Iterable[bytes],
        reading: Reading,
        numbers: Numbers,
    ) -> None:
        super().__init__(root, paths, reading)
        self._masks = FileImages(root, masks, reading)
        self.numbers = numbers

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes of pixels."""
        return self.numbers.classes

    @property
    def fingerprint(self) -> str:
        """As of files, of images and masks."""
        return _both(super().fingerprint, self._masks.fingerprint)

    @property
    def times(self) -> str:
        """As of files, of images and masks."""
        return _both(super().times, self._masks.times)

    @property
    def content(self) -> str:
        """As of files, of images and masks."""
        return _both(super().content, self._masks.content)

    def rows(self, ids_N: Tensor) -> "MaskedImages":
        """Some of them."""
        ids = ids_N.tolist()
        paths, masks = ([each[i] for i in ids] for each in (self._paths, self._masks._paths))
        reading = Reading(self.shape[1:], self.form, self.fit, self.max_pixels)
        return MaskedImages(self._root, paths, masks, reading, self.numbers)

    def mask_name(self, i: int) -> str:
        """The path of its mask."""
        return self._masks.name(i)

    def raw_mask(self, i: int) -> Tensor:
        """The numbers of the mask at full size, (H, W), as they stand in its file. Raises
        BadImage.
        """
        name = self.mask_name(i)
        return numbers(contents(name, self.most_bytes), name, self.max_pixels)

    def mask(self, i: int, opened: OpenedImage | None = None) -> Tensor:
        """The class of each pixel of the canvas, int32 (H, W), by the nearest pixel of the mask.

        Raises BadImage where the mask has not the sides of its image, which may be `opened`
        already, DataError for a number that is no class.
        """
        numbers_HW, opened = self.raw_mask(i), opened or self.open(i)
        sides, wanted = tuple(numbers_HW.shape), (opened.height, opened.width)
        if sides != wanted:
            raise BadImage(
                self.mask_name(i),
                f"a mask of {sides[1]} x {sides[0]} pixels for an image of {wanted[1]} x "
                f"{wanted[0]}: make them equal",
            )
        box = (0, 0, *sides) if self.fit == "squash" else central(*sides, self.shape[1:])
        class_HW = self.numbers.classes_of(nearest(numbers_HW, box, self.shape[1:]))
        self._refuse_unknown(i, class_HW)
        return class_HW

    def _refuse_unknown(self, i: int, class_HW: Tensor) -> None:
        if int(class_HW.max()) < len(self.names):
            return
        number = int(class_HW.max()) + self.numbers.reduce_zero
        raise DataError(
            f"{printable(self.mask_name(i))}: the number {number} in a mask, but there are "
            f"{len(self.names)} classes: set classes or ignore"
        )


class LayeredImages(EncodedImages):
    """Canvases with the masks below them, as further channels of the same type, so that both are
    read, and travel, as one; `unlayered` parts them again.
    """

    def __init__(self, images: MaskedImages) -> None:
        self.images, self.form, self.fit = images, images.form, images.fit
        self.max_pixels = images.max_pixels
        channels, height, width = images.shape
        self.shape = (channels + _layers(self.form.dtype), height, width)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        return self.images.fingerprint

    def name(self, i: int) -> str:
        return self.images.name(i)

    def contents(self, i: int) -> bytes:
        return self.images.contents(i)

    def rows(self, ids_N: Tensor) -> "LayeredImages":
        """Some of them."""
        return LayeredImages(self.images.rows(ids_N))

    def read(self, i: int, out_CHW: Tensor | None = None) -> Tensor:
        """Canvas and mask, (C + 1 or 2, H, W). Raises BadImage where one of them cannot be read."""
        out_CHW = torch.empty(self.shape, dtype=self.form.dtype) if out_CHW is None else out_CHW
        channels = self.images.shape[0]
        opened = self.images.open(i)
        mask_HW = self.images.mask(i, opened)
        opened.canvas(out_CHW[:channels], whole=self.fit == "squash")
        mask_HW[mask_HW == IGNORED] = _IGNORED_16
        if self.form.dtype == torch.uint8:
            out_CHW[channels + 1] = mask_HW >> 8
            mask_HW = mask_HW & 255
        out_CHW[channels] = mask_HW.to(self.form.dtype)
        return out_CHW


def unlayered(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Canvases (B, C, H, W) and masks, int64 (B, H, W), IGNORED where there is no class."""
    layers = _layers(x_BCHW.dtype)
    mask_BHW = x_BCHW[:, -layers].long()
    if layers == 2:
        mask_BHW += x_BCHW[:, -1].long() << 8
    return x_BCHW[:, :-layers], mask_BHW.where(mask_BHW != _IGNORED_16, IGNORED)


def nearest(x_HW: Tensor, box: tuple[int, int, int, int], sides: tuple[int, int]) -> Tensor:
    """Box (top, left, height, width) brought to `sides`: the pixel below each new one's centre."""
    top, left, height, width = box
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for new, old in zip(sides, (height, width), strict=True)
    )
    return x_HW[top + rows[:, None], left + columns]


def _layers(dtype: torch.dtype) -> int:
    """How many channels of that type hold a class."""
    return 2 if dtype == torch.uint8 else 1


def _both(one: str, other: str) -> str:
    return hashlib.sha256(f"{one} {other}".encode()).hexdigest()
