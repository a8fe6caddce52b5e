"""Images and labels in idx files, the layout of MNIST."""

import gzip
import math
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Annotated, BinaryIO

import torch
from pydantic import Field
from torch import Tensor

from lookalike.data.folders.index import os_errors_as
from lookalike.data.images import Annotations, ArrayImages, Images
from lookalike.data.inventory import Inventory
from lookalike.data.outside import opened
from lookalike.data.sources import Split, checked, folder_at
from lookalike.errors import DataError, printable
from lookalike.recipe import Size

FASHION = (
    "for Fashion-MNIST: apt-get install dataset-fashion-mnist, "
    "path /usr/share/datasets/fashion-mnist"
)
CHUNK = 1 << 20


class Idx:
    """A folder in the layout of MNIST: `train-images-idx3-ubyte.gz`,
    `t10k-labels-idx1-ubyte.gz`, …
    """

    channels = 1

    def __init__(self, path: str, max_bytes: Annotated[int, Field(gt=0)] = 2_000_000_000) -> None:
        self._path = path
        self._max_bytes, self._told = max_bytes, False
        self.inventory = Inventory()

    def split(self, name: Split, size: Size | None = None) -> Images:
        folder = folder_at(self._path, FASHION)
        prefix = {"train": "train", "test": "t10k"}[checked(name)]
        images = _find_idx(folder, f"{prefix}-images", 3)
        if images is None:
            raise DataError(
                f"{printable(folder)}: no {prefix}-images-idx3-ubyte or .gz in it; {FASHION}"
            )
        self._tell_one_file(folder)
        images_NHW = read_idx(images, 3, self._max_bytes)
        labels = {each: self._labels(folder, each) for each in ("train", "t10k")}
        labels_N = labels[prefix]
        if labels_N is not None and len(labels_N) != len(images_NHW):
            counts = f"{len(labels_N)} labels for the {len(images_NHW)} images of {images.name}"
            raise DataError(f"{printable(folder)}: {counts}; fetch both files again")
        highest = max(
            (int(known.max()) for known in labels.values() if known is not None), default=-1
        )
        classes = () if labels_N is None else tuple(str(label) for label in range(highest + 1))
        return ArrayImages(
            images_NHW.unsqueeze(1), Annotations(labels_N, classes), f"{folder.name}/{name}"
        )

    def _tell_one_file(self, folder: Path) -> None:
        """Warns, once, where a link makes one file both sets."""
        both = [_find_idx(folder, f"{prefix}-images", 3) for prefix in ("train", "t10k")]
        if not self._told and all(both) and os.path.samefile(*both):  # type: ignore[arg-type]  # noqa: PTH121
            what = "train-images and t10k-images are one file"
            warnings.warn(
                f"{printable(folder)}: {what}: scores on images that were trained on are none",
                stacklevel=4,
            )
            self._told = True

    def _labels(self, folder: Path, prefix: str) -> Tensor | None:
        labels = _find_idx(folder, f"{prefix}-labels", 1)
        return None if labels is None else read_idx(labels, 1, self._max_bytes).long()


def read_idx(path: Path, ndim: int, max_bytes: int) -> Tensor:
    """The uint8 tensor of an idx file, gzipped if so named; unpacking stops a byte past the
    declared size.

    Raises DataError when it is no such file, too short, too long, or declares more than
    `max_bytes`.
    """
    with opened(path) as data:
        try:
            with gzip.GzipFile(fileobj=data) if path.suffix == ".gz" else data as file:
                return _parse_idx(file, ndim, max_bytes)  # type: ignore[arg-type]
        except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{printable(path)}: {error}; fetch the file again") from error


def _parse_idx(file: BinaryIO, ndim: int, max_bytes: int) -> Tensor:
    header = file.read(4)
    if header != bytes((0, 0, 8, ndim)):
        raise ValueError(f"not an idx file of {ndim}-dimensional bytes: it begins with {header!r}")
    sizes = file.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise ValueError("cut short in its header")
    dims = struct.unpack(f">{ndim}I", sizes)
    declared = math.prod(dims)
    if not 0 < declared <= max_bytes:
        raise ValueError(
            f"it declares {dims}, {declared} bytes; 1 to {max_bytes} (max_bytes) are allowed"
        )
    body = bytearray()
    while len(body) <= declared and (chunk := file.read(min(CHUNK, declared + 1 - len(body)))):
        body += chunk
    if len(body) != declared:
        what = "cut short: fewer bytes" if len(body) < declared else "more bytes"
        raise ValueError(f"{what} than the {declared} that it declares")
    return torch.frombuffer(body, dtype=torch.uint8).reshape(dims)


def _find_idx(folder: Path, stem: str, ndim: int) -> Path | None:
    names = [f"{stem}{dot}idx{ndim}-ubyte{suffix}" for dot in "-." for suffix in (".gz", "")]
    with os_errors_as(folder):
        return next((folder / name for name in names if (folder / name).exists()), None)
