"""Images kept as the bytes of image files, decoded when they are read; and some rows of them."""

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from lookalike.data.decode import MAX_BYTES, Opened
from lookalike.data.images.contract import Annotated, Fit, Reading
from lookalike.geometry import PixelFormat, sides

LOOKS = 256
"""Of so many images of a set, evenly spread, the headers are looked at for its depth."""


class EncodedImages(Annotated, ABC):
    """Images kept as the bytes of image files, decoded to canvases of `shape`, by `fit`, when they
    are read.

    `max_pixels`: how many one may have; None for what is safe (see Opened).
    """

    shape: tuple[int, int, int]
    form: PixelFormat = PixelFormat()
    fit: Fit = "crop"
    max_pixels: int | None = None

    @property
    def looks(self) -> int:
        """How many headers of the set may be looked at before anything is read of it."""
        return LOOKS

    def read_by(self, reading: Reading) -> None:
        """Sets shape, form, fit and limit."""
        self.shape, self.form = (reading.form.channels, *sides(reading.size)), reading.form
        self.fit, self.max_pixels = reading.fit, reading.max_pixels

    @property
    def most_bytes(self) -> int:
        """How large an encoded image may be: 200 MB, or what `max_pixels` take as they are, of 8
        bytes a number and four channels at least.
        """
        return max(MAX_BYTES, (self.max_pixels or 0) * 8 * max(4, self.shape[0]))

    @abstractmethod
    def __len__(self) -> int: ...
    @property
    @abstractmethod
    def fingerprint(self) -> str: ...
    @property
    def order(self) -> str:
        """A hash that tells, beside the fingerprint, in which order the images are: that itself,
        unless it is the same for any.
        """
        return self.fingerprint

    @abstractmethod
    def name(self, i: int) -> str:
        """Where the image lies, for people: a path, or a shard and the member in it."""

    @abstractmethod
    def contents(self, i: int) -> bytes:
        """The encoded image as it is kept. Raises BadImage when it cannot be had."""

    def head(self, i: int, size: int) -> bytes:
        """Of these bytes the first `size`, or all. Raises BadImage when they cannot be had."""
        return self.contents(i)[:size]

    def open(self, i: int) -> Opened:
        """The image with its header judged. Raises BadImage."""
        return Opened(self.contents(i), self.name(i), self.form, self.max_pixels)

    def read(self, i: int, out_CHW: Tensor | None = None) -> Tensor:
        """Its canvas (C, H, W) of `form.dtype`, in `out_CHW` if given. Raises BadImage."""
        out_CHW = torch.empty(self.shape, dtype=self.form.dtype) if out_CHW is None else out_CHW
        return self.open(i).canvas(out_CHW, whole=self.fit == "squash")


class Subset(EncodedImages):
    """Some rows of other encoded images, under their own names and annotations."""

    def __init__(self, images: EncodedImages, ids_N: Tensor) -> None:
        self._images = images
        self._ids_N = ids_N
        self.annotations = images.annotations.of(ids_N)
        self.shape, self.form = images.shape, images.form
        self.fit, self.max_pixels = images.fit, images.max_pixels

    def __len__(self) -> int:
        return len(self._ids_N)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the whole set's fingerprint and the row numbers."""
        digest = hashlib.sha256(self._images.fingerprint.encode())
        digest.update(self._ids_N.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def order(self) -> str:
        digest = hashlib.sha256(self._images.order.encode())
        digest.update(self._ids_N.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def whole(self) -> EncodedImages:
        """The images of which these are some."""
        return self._images.whole if isinstance(self._images, Subset) else self._images

    def name(self, i: int) -> str:
        return self._images.name(int(self._ids_N[i]))

    def contents(self, i: int) -> bytes:
        return self._images.contents(int(self._ids_N[i]))

    def head(self, i: int, size: int) -> bytes:
        return self._images.head(int(self._ids_N[i]), size)
