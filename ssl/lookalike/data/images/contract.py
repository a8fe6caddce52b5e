"""What the rest of the house may ask of images: of one, of a set, and what a set says beside its
labels.
"""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from lookalike.geometry import PixelFormat
from lookalike.recipe import Size

Fit = Literal["crop", "squash"]
"""How an image becomes a canvas: its central box of that shape, or all of it, out of shape."""


class Reading(NamedTuple):
    """How image files become canvases of `size` in `form`; `max_pixels`: see `Opened`."""

    size: Size
    form: PixelFormat
    fit: Fit = "crop"
    max_pixels: int | None = None


class OpenedImage(Protocol):
    """One image at full size: upright `height` and `width`, pixels on demand."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    def pixels(self, shrink: int = 1) -> Tensor:
        """Raw (C, H, W); some at 1/`shrink` (2, 4, 8) of the sides, which is cheaper. Raises
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


class Annotations(NamedTuple):
    """What a set of N images says beside its pixels; None: nothing.

    `labels`: int64 (N,) into `classes`, which is empty where there are none; `cameras`: int64 (N,);
    `roles`: queries and gallery. Re-identification asks for cameras and roles, verification for
    `pairs`. `groups`: int64 (N,), images that belong together, as frames of a clip, and that no
    split may part. `several`: where an image has any number of labels, bool (N, C) over `classes`;
    then there are no `labels`.
    """

    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    cameras: Tensor | None = None
    roles: QueryGallery | None = None
    pairs: Pairs | None = None
    groups: Tensor | None = None
    several: Tensor | None = None

    def of(self, ids_K: Tensor) -> "Annotations":
        """Those of these rows, int64; the classes stay as they are."""
        return Annotations(
            None if self.labels is None else self.labels[ids_K],
            self.classes,
            None if self.cameras is None else self.cameras[ids_K],
            None if self.roles is None else self.roles.of(ids_K),
            None if self.pairs is None else self.pairs.of(ids_K),
            None if self.groups is None else self.groups[ids_K],
            None if self.several is None else self.several[ids_K],
        )


NOTHING = Annotations()
"""Of images of which nothing is known."""


class Annotated:
    """Has `annotations`, each of which can be read by its own name."""

    annotations: Annotations = NOTHING

    @property
    def labels(self) -> Tensor | None:
        return self.annotations.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.annotations.classes

    @property
    def cameras(self) -> Tensor | None:
        return self.annotations.cameras

    @property
    def roles(self) -> QueryGallery | None:
        return self.annotations.roles

    @property
    def pairs(self) -> Pairs | None:
        return self.annotations.pairs

    @property
    def groups(self) -> Tensor | None:
        return self.annotations.groups

    @property
    def several(self) -> Tensor | None:
        return self.annotations.several


class Images(Protocol):
    """N images of one `shape` (C, H, W) and `form`, read by number; all can be pickled for loader
    workers.

    `labels`, `classes`, `cameras`, `roles`, `pairs`, `groups`, `several`: those of `annotations`.
    `fingerprint` is a sha256 in hex that changes when the images do.
    """

    annotations: Annotations

    @property
    def labels(self) -> Tensor | None: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def cameras(self) -> Tensor | None: ...
    @property
    def roles(self) -> QueryGallery | None: ...
    @property
    def pairs(self) -> Pairs | None: ...
    @property
    def groups(self) -> Tensor | None: ...
    @property
    def several(self) -> Tensor | None: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def form(self) -> PixelFormat: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def name(self, i: int) -> str:
        """The file's path, or `digits/17`."""

    def read(self, i: int, out_CHW: Tensor | None = None) -> Tensor:
        """Image (C, H, W) of `form.dtype`, in `out_CHW` if given. Raises BadImage when its file
        gives none.
        """

    def open(self, i: int) -> OpenedImage:
        """The image at full size, its sides known. Raises BadImage when its header is none."""
