"""Images that lie in memory, in one tensor."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor

from lookalike.data.images.contract import NOTHING, Annotated, Annotations
from lookalike.geometry import Depth, PixelFormat


class DecodedImage:
    """An image that lies in memory already."""

    def __init__(self, image_CHW: Tensor) -> None:
        self._image_CHW = image_CHW
        self.height, self.width = image_CHW.shape[1:]

    def pixels(self, shrink: int = 1) -> Tensor:
        """The image itself (C, H, W), to be read only."""
        return self._image_CHW


class ArrayImages(Annotated):
    """Images held in one tensor, uint8, uint16 or float32 (M, C, H, W); `rows` (int64, N of M)
    chooses among the M images without copying. `annotations` are of the N; `range`: see
    PixelFormat.

    Raises ValueError for other tensors, and for floats outside 0 … 1 that no range explains.
    """

    def __init__(
        self,
        images_MCHW: Tensor,
        annotations: Annotations = NOTHING,
        name: str = "array",
        rows: Tensor | None = None,
        range: tuple[float, float] | None = None,
    ) -> None:
        self.form = form_of(images_MCHW, range)
        if rows is None:
            _refuse_outside(images_MCHW, self.form)
        self._images_MCHW = images_MCHW
        self._name = name
        self._rows_N = torch.arange(len(images_MCHW)) if rows is None else rows
        if (labels_N := annotations.labels) is not None:
            if len(labels_N) != len(self):
                raise ValueError(f"{len(labels_N)} labels for {len(self)} images")
            annotations = annotations._replace(labels=labels_N.long())
        self.annotations = annotations
        _, channels, height, width = images_MCHW.shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self._rows_N)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of shape, labels and image bytes, in the order of the rows."""
        digest = hashlib.sha256(repr((len(self), self.shape)).encode())
        if not self.form.plain:
            digest.update(repr(self.form).encode())
        if self.labels is not None:
            digest.update(b"labels" + self.labels.numpy().tobytes())
        for start in range(0, len(self), 1024):
            digest.update(self._images_MCHW[self._rows_N[start : start + 1024]].numpy().tobytes())
        return digest.hexdigest()

    @property
    def order(self) -> str:
        """The fingerprint tells it."""
        return self.fingerprint

    def name(self, i: int) -> str:
        return f"{self._name}/{int(self._rows_N[i])}"

    def read(self, i: int, out_CHW: Tensor | None = None) -> Tensor:
        image_CHW = self._images_MCHW[self._rows_N[i]]
        return image_CHW.clone() if out_CHW is None else out_CHW.copy_(image_CHW)

    def open(self, i: int) -> DecodedImage:
        return DecodedImage(self._images_MCHW[self._rows_N[i]])

    def read_many(self, ids: Sequence[int] | Tensor, out_BCHW: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in the order of `ids`, in `out_BCHW` if given."""
        rows_B = self._rows_N[torch.as_tensor(ids, dtype=torch.int64)]
        return torch.index_select(self._images_MCHW, 0, rows_B, out=out_BCHW)

    def rows(self, ids_K: Tensor) -> "ArrayImages":
        """Some of them, int64 (K,), which share the pixels."""
        known = self.annotations.of(ids_K)
        rows_K, pixels_MCHW = self._rows_N[ids_K], self._images_MCHW
        return ArrayImages(pixels_MCHW, known, self._name, rows_K, self.form.range)


def form_of(images_MCHW: Tensor, range: tuple[float, float] | None = None) -> PixelFormat:
    """The form of images in memory, by their type. Raises ValueError for one that has none."""
    depth = str(images_MCHW.dtype).removeprefix("torch.")
    if depth not in get_args(Depth) or images_MCHW.ndim != 4:
        kinds = ", ".join(get_args(Depth))
        raise ValueError(
            f"images are {kinds} (N, C, H, W), not {images_MCHW.dtype} {images_MCHW.shape}"
        )
    if range is not None and not range[0] < range[1]:
        raise ValueError(f"range {list(range)} has its larger value first")
    return PixelFormat(images_MCHW.shape[1], depth, range)  # type: ignore[arg-type]


def _refuse_outside(images_MCHW: Tensor, form: PixelFormat) -> None:
    if form.depth != "float32" or form.range is not None or not images_MCHW.numel():
        return
    low, high = (float(end) for end in images_MCHW.aminmax())
    if not 0 <= low <= high <= 1:  # so written, NaN is refused too
        raise ValueError(f"images of values {low:g} … {high:g}, outside 0 … 1: give their range")
