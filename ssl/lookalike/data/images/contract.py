"""What the rest of the house may ask of images: of one, of a set, and what a set says beside its
labels.
"""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Fit = Literal["crop", "squash"]
"""How an image becomes a canvas: its central box of that shape, or all of it, out of shape."""


class OpenedImage(Protocol):
    """One image at full size: upright `height` and `width`, pixels on demand."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    def pixels(self, shrink: int = 1) -> Tensor:
        """uint8 (C, H, W); some at 1/`shrink` (2, 4, 8) of the sides, which is cheaper. Raises
        BadImage.
        """


class QueryGallery(NamedTuple):
    """Which images of a set ask and which are searched, bool (N,) each; one may do both, or
    neither.
    """

    query_N: Tensor
    gallery_N: Tensor

    def of(self, ids_K: Tensor) -> "QueryGallery":
        """Those of these rows."""
        return QueryGallery(self.query_N[ids_K], self.gallery_N[ids_K])


class Pairs(NamedTuple):
    """Images to be compared: rows_P2 int64 (P, 2), whether both show the same one, bool (P,), fold,
    int64 (P,).
    """

    rows_P2: Tensor
    same_P: Tensor
    folds_P: Tensor

    def of(self, ids_K: Tensor) -> "Pairs | None":
        """The pairs of which both are among these rows, numbered by them; None where there is
        none.
        """
        place = {row: k for k, row in enumerate(ids_K.tolist())}
        kept = [p for p, (a, b) in enumerate(self.rows_P2.tolist()) if a in place and b in place]
        if not kept:
            return None
        rows = [[place[a], place[b]] for a, b in self.rows_P2[kept].tolist()]
        return Pairs(torch.tensor(rows), self.same_P[kept], self.folds_P[kept])


class Images(Protocol):
    """N images uint8 of one `shape` (C, H, W), read by number; all can be pickled for loader
    workers.

    `labels` is int64 (N,) into `classes`, or None; `classes` is empty where there are no labels.
    `fingerprint` is a sha256 in hex that changes when the images do.
    """

    # Where a data set has more to say: the camera of each image, int64 (N,); which ask and which
    # are searched; which are compared. Re-identification asks for the first two, verification for
    # the third.
    cameras: Tensor | None
    roles: QueryGallery | None
    pairs: Pairs | None

    @property
    def labels(self) -> Tensor | None: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def name(self, i: int) -> str:
        """The file's path, or `digits/17`."""

    def read(self, i: int, out_CHW: Tensor | None = None) -> Tensor:
        """Image uint8 (C, H, W), in `out_CHW` if given. Raises BadImage when its file gives
        none.
        """

    def open(self, i: int) -> OpenedImage:
        """The image at full size, its sides known. Raises BadImage when its header is none."""
