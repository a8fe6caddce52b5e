"""Numbered pictures, labelled or not: in memory, in files, or some rows of other pictures."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lookalike.data.decode import Opened, contents, shown
from lookalike.errors import DataError

SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".tif", b".tiff", b".gif")


class Picture(Protocol):
    """One picture at full size: upright `height` and `width`, pixels on demand."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    def pixels(self, shrink: int = 1) -> Tensor:
        """uint8 (C, H, W); some at 1/`shrink` (2, 4, 8) of the sides, which is cheaper. Raises BadPicture."""


class Pictures(Protocol):
    """N pictures uint8 of one `shape` (C, H, W), read by number; all can be pickled for loader workers.

    `labels` is int64 (N,) into `classes`, or None; `classes` is empty where there are no labels.
    `fingerprint` is a sha256 in hex that changes when the pictures do.
    """

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
        """Picture uint8 (C, H, W), in `out_CHW` if given. Raises BadPicture when its file gives none."""

    def open(self, i: int) -> Picture:
        """The picture at full size, its sides known. Raises BadPicture when its header is none."""


class Held:
    """A picture that lies in memory already."""

    def __init__(self, picture_CHW: Tensor) -> None:
        self._picture_CHW = picture_CHW
        self.height, self.width = picture_CHW.shape[1:]

    def pixels(self, shrink: int = 1) -> Tensor:
        """The picture itself, uint8 (C, H, W), to be read only."""
        return self._picture_CHW


class Encoded:
    """Pictures that are bytes of files: what a set of them shares. `shape` is that of a canvas, (C, S, S)."""

    shape: tuple[int, int, int]

    def name(self, i: int) -> str:
        """Where the picture lies, fit for a message."""
        raise NotImplementedError

    def contents(self, i: int) -> bytes:
        """The encoded picture. Raises BadPicture, with the place, when it cannot be had."""
        raise NotImplementedError

    def open(self, i: int) -> Opened:
        """The picture with its header judged. Raises BadPicture."""
        return Opened(self.contents(i), self.name(i), self.shape[0])

    def read(self, i: int, out_CHW: Tensor | None = None) -> Tensor:
        """Its canvas: the central square, resized, uint8 (C, S, S), in `out_CHW` if given. Raises BadPicture."""
        return self.open(i).canvas(torch.empty(self.shape, dtype=torch.uint8) if out_CHW is None else out_CHW)


class ArrayPictures:
    """Pictures held in one tensor; `rows` (int64, N of M) chooses among the M images without copying."""

    def __init__(
        self,
        images_MCHW: Tensor,
        labels_M: Tensor | None = None,
        classes: tuple[str, ...] = (),
        name: str = "array",
        rows: Tensor | None = None,
    ) -> None:
        if images_MCHW.dtype != torch.uint8 or images_MCHW.ndim != 4:
            raise ValueError(f"images are uint8 (N, C, H, W), not {images_MCHW.dtype} {images_MCHW.shape}")
        if labels_M is not None and len(labels_M) != len(images_MCHW):
            raise ValueError(f"{len(labels_M)} labels for {len(images_MCHW)} images")
        self._images_MCHW = images_MCHW
        self._labels_M = labels_M
        self._name = name
        self._rows_N = torch.arange(len(images_MCHW)) if rows is None else rows
        self.labels = None if labels_M is None else labels_M.long()[self._rows_N]
        self.classes = classes
        _, channels, height, width = images_MCHW.shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self._rows_N)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of shape, labels and picture bytes, in the order of the rows."""
        digest = hashlib.sha256(repr((len(self), self.shape)).encode())
        if self.labels is not None:
            digest.update(b"labels" + self.labels.numpy().tobytes())
        for start in range(0, len(self), 1024):
            digest.update(self._images_MCHW[self._rows_N[start : start + 1024]].numpy().tobytes())
        return digest.hexdigest()

    def name(self, i: int) -> str:
        return f"{self._name}/{int(self._rows_N[i])}"

    def read(self, i: int, out_CHW: Tensor | None = None) -> Tensor:
        picture_CHW = self._images_MCHW[self._rows_N[i]]
        return picture_CHW.clone() if out_CHW is None else out_CHW.copy_(picture_CHW)

    def open(self, i: int) -> Held:
        return Held(self._images_MCHW[self._rows_N[i]])

    def read_many(self, ids: Sequence[int] | Tensor, out_BCHW: Tensor | None = None) -> Tensor:
        """Pictures uint8 (B, C, H, W) in the order of `ids`, in `out_BCHW` if given."""
        rows_B = self._rows_N[torch.as_tensor(ids, dtype=torch.int64)]
        return torch.index_select(self._images_MCHW, 0, rows_B, out=out_BCHW)

    def rows(self, ids_K: Tensor) -> "ArrayPictures":
        rows_K = self._rows_N[ids_K]
        return ArrayPictures(self._images_MCHW, self._labels_M, self.classes, self._name, rows_K)


class FilePictures(Encoded):
    """Pictures in files under `root`, decoded to canvases (channels, size, size) when they are read.

    A million paths are one buffer and one array of offsets, so that forked workers share them.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        paths: Iterable[bytes | str],
        labels: Tensor | None,
        classes: tuple[str, ...],
        size: int,
        channels: int,
    ) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._root = os.fspath(root)
        self._joined = b"".join(encoded)
        self._offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.labels = labels
        self.classes = classes
        self.shape = (channels, size, size)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the sorted relative paths and file sizes: no times, so a copy elsewhere has the same."""
        digest = hashlib.sha256()
        for path, i in sorted((self._path(i), i) for i in range(len(self))):
            digest.update(b"%b\0%d\n" % (path, _file_size(self.name(i))))
        return digest.hexdigest()

    def name(self, i: int) -> str:
        return f"{self._root}/{os.fsdecode(self._path(i))}"

    def contents(self, i: int) -> bytes:
        return contents(self.name(i))

    def _path(self, i: int) -> bytes:
        i = range(len(self))[i]
        return self._joined[self._offsets[i] : self._offsets[i + 1]]


class Rows:
    """Some rows of other pictures, under their own names and labels."""

    def __init__(self, pictures: Pictures, ids_N: Tensor) -> None:
        self._pictures = pictures
        self._ids_N = ids_N
        self.labels = None if pictures.labels is None else pictures.labels[ids_N]
        self.classes = pictures.classes
        self.shape = pictures.shape

    def __len__(self) -> int:
        return len(self._ids_N)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the whole set's fingerprint and the row numbers."""
        digest = hashlib.sha256(self._pictures.fingerprint.encode())
        digest.update(self._ids_N.numpy().tobytes())
        return digest.hexdigest()

    def name(self, i: int) -> str:
        return self._pictures.name(int(self._ids_N[i]))

    def read(self, i: int, out_CHW: Tensor | None = None) -> Tensor:
        return self._pictures.read(int(self._ids_N[i]), out_CHW)

    def open(self, i: int) -> Picture:
        return self._pictures.open(int(self._ids_N[i]))


def subset(pictures: Pictures, ids: Sequence[int] | Tensor) -> Pictures:
    """The rows `ids`, in that order, labels and classes as they are; a subset of an array is an array."""
    ids_N = torch.as_tensor(ids, dtype=torch.int64)
    return pictures.rows(ids_N) if isinstance(pictures, ArrayPictures) else Rows(pictures, ids_N)


def scan(folder: Path, within: Path) -> list[bytes]:
    """Sorted relative paths ('/'-separated) of the picture files below `folder`; no file is opened.

    Hidden names and links to folders are skipped; a link to a file counts if its target is in `within`.
    Raises DataError when a folder cannot be listed.
    """
    top, home = os.fsencode(folder), os.path.realpath(os.fsencode(within))
    found, waiting = [], [b""]
    while waiting:
        inner = waiting.pop()
        here = top + b"/" + inner
        with refusing(os.fsdecode(here)), os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(inner + entry.name + b"/")
                elif entry.name.lower().endswith(SUFFIXES) and _is_file(entry, home):
                    found.append(inner + entry.name)
    return sorted(found)


@contextmanager
def refusing(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the system's refusal to list or read `place` into a DataError."""
    try:
        yield
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise DataError(f"{shown(place)}: {what}; check that it exists and that you may read it") from error


def _is_file(entry: os.DirEntry[bytes], home: bytes) -> bool:
    if not entry.is_symlink():
        return entry.is_file(follow_symlinks=False)
    target = os.path.realpath(entry.path)
    inside = target.startswith(home.rstrip(os.fsencode(os.sep)) + os.fsencode(os.sep))
    return inside and os.path.isfile(target)  # noqa: PTH113 (Path takes no bytes)


def _file_size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1
