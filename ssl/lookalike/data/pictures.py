"""Numbered pictures, labelled or not: in memory, in files, or some rows of other pictures."""

import hashlib
import itertools
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lookalike.data.decode import BadPicture, Opened, contents
from lookalike.folder import without_waiting
from lookalike.recipe import Size, sides

# Seconds an answer about a file: a local disk takes a few microseconds, a server far away a millisecond. On a local
# disk threads only get in each other's way.
_LATE = 300e-6
_BLOCK = 4096


Fit = Literal["crop", "squash"]
"""How a picture becomes a canvas: its central box of that shape, or all of it, out of shape."""


class Picture(Protocol):
    """One picture at full size: upright `height` and `width`, pixels on demand."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    def pixels(self, shrink: int = 1) -> Tensor:
        """uint8 (C, H, W); some at 1/`shrink` (2, 4, 8) of the sides, which is cheaper. Raises BadPicture."""


class Roles(NamedTuple):
    """Which pictures of a set ask and which are searched, bool (N,) each; one may do both, or neither."""

    query_N: Tensor
    gallery_N: Tensor

    def of(self, ids_K: Tensor) -> "Roles":
        """Those of these rows."""
        return Roles(self.query_N[ids_K], self.gallery_N[ids_K])


class Pairs(NamedTuple):
    """Pictures to be compared: rows_P2 int64 (P, 2), whether both show the same one, bool (P,), fold, int64 (P,)."""

    rows_P2: Tensor
    same_P: Tensor
    folds_P: Tensor

    def of(self, ids_K: Tensor) -> "Pairs | None":
        """The pairs of which both are among these rows, numbered by them; None where there is none."""
        place = {row: k for k, row in enumerate(ids_K.tolist())}
        kept = [p for p, (a, b) in enumerate(self.rows_P2.tolist()) if a in place and b in place]
        if not kept:
            return None
        rows = [[place[a], place[b]] for a, b in self.rows_P2[kept].tolist()]
        return Pairs(torch.tensor(rows), self.same_P[kept], self.folds_P[kept])


class Pictures(Protocol):
    """N pictures uint8 of one `shape` (C, H, W), read by number; all can be pickled for loader workers.

    `labels` is int64 (N,) into `classes`, or None; `classes` is empty where there are no labels.
    `fingerprint` is a sha256 in hex that changes when the pictures do.
    """

    # Where a data set has more to say: the camera of each picture, int64 (N,); which ask and which are searched;
    # which are compared. Re-identification asks for the first two, verification for the third.
    cameras: Tensor | None
    roles: Roles | None
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


class ArrayPictures:
    """Pictures held in one tensor; `rows` (int64, N of M) chooses among the M images without copying."""

    cameras: Tensor | None = None
    roles: Roles | None = None
    pairs: Pairs | None = None

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
        found = ArrayPictures(self._images_MCHW, self._labels_M, self.classes, self._name, rows_K)
        found.cameras = None if self.cameras is None else self.cameras[ids_K]
        found.roles = None if self.roles is None else self.roles.of(ids_K)
        found.pairs = None if self.pairs is None else self.pairs.of(ids_K)
        return found


class Encoded(ABC):
    """Pictures kept as the bytes of picture files, decoded to canvases of `shape`, by `fit`, when they are read.

    `max_pixels`: how many one may have; None for what is safe (see Opened).
    """

    labels: Tensor | None
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    fit: Fit = "crop"
    max_pixels: int | None = None
    cameras: Tensor | None = None
    roles: Roles | None = None
    pairs: Pairs | None = None

    @abstractmethod
    def __len__(self) -> int: ...
    @property
    @abstractmethod
    def fingerprint(self) -> str: ...
    @abstractmethod
    def name(self, i: int) -> str:
        """Where the picture lies, for people: a path, or a shard and the member in it."""

    @abstractmethod
    def contents(self, i: int) -> bytes:
        """The encoded picture as it is kept. Raises BadPicture when it cannot be had."""

    def open(self, i: int) -> Opened:
        """The picture with its header judged. Raises BadPicture."""
        return Opened(self.contents(i), self.name(i), self.shape[0], self.max_pixels)

    def read(self, i: int, out_CHW: Tensor | None = None) -> Tensor:
        """Its canvas, uint8 (C, H, W), in `out_CHW` if given. Raises BadPicture."""
        out_CHW = torch.empty(self.shape, dtype=torch.uint8) if out_CHW is None else out_CHW
        return self.open(i).canvas(out_CHW, whole=self.fit == "squash")


class Names(Sequence[bytes]):
    """Many byte strings as one buffer and one array of offsets, so that forked workers share them."""

    def __init__(self, names: Sequence[bytes]) -> None:
        self._joined = b"".join(names)
        self._offsets = np.zeros(len(names) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), out=self._offsets[1:])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[bytes]:
        ends = self._offsets.tolist()
        return (self._joined[start:end] for start, end in itertools.pairwise(ends))

    def __getitem__(self, i: Any) -> Any:
        i = range(len(self))[i]
        return self._joined[self._offsets[i] : self._offsets[i + 1]]


class FilePictures(Encoded):
    """Pictures in files under `root`; with `within`, a file that links lead out of that folder is a bad one."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        paths: Iterable[bytes | str],
        labels: Tensor | None,
        classes: tuple[str, ...],
        size: Size,
        channels: int,
        cameras: Tensor | None = None,
        within: str | os.PathLike[str] | None = None,
        *,
        roles: Roles | None = None,
        pairs: Pairs | None = None,
        fit: Fit = "crop",
        max_pixels: int | None = None,
    ) -> None:
        self._root = os.fspath(root)
        self._within = os.path.realpath(within) if within else None
        self._paths = Names([os.fsencode(path) for path in paths])
        self.labels = labels
        self.classes = classes
        self.shape, self.fit, self.max_pixels = (channels, *sides(size)), fit, max_pixels
        self.cameras, self.roles, self.pairs = cameras, roles, pairs

    def __len__(self) -> int:
        return len(self._paths)

    @cached_property
    def _digests(self) -> tuple[str, str]:
        paths = sorted(self._paths)
        states = file_states(self._root, paths)
        lines = (b"%b\0%d\n" % (path, size) for path, (size, _) in zip(paths, states, strict=True))
        times = np.fromiter((mtime for _, mtime in states), np.int64, len(states))
        return hashlib.sha256(b"".join(lines)).hexdigest(), hashlib.sha256(times.tobytes()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """sha256 of the sorted relative paths and file sizes: no times, so a copy elsewhere has the same."""
        return self._digests[0]

    @property
    def times(self) -> str:
        """sha256 of the files' mtimes (nanoseconds), in the order of paths: the same only where nobody wrote to one."""
        return self._digests[1]

    def glimpse(self, i: int, blocks: int) -> bytes:
        """Some of the file's bytes: so many blocks of 4 KiB, evenly spread from end to end; none where it cannot be."""
        try:
            with open(self.name(i), "rb", opener=without_waiting) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return b""
                if status.st_size <= blocks * _BLOCK:
                    return file.read(status.st_size)
                last = status.st_size - _BLOCK
                return b"".join(os.pread(file.fileno(), _BLOCK, last * k // (blocks - 1)) for k in range(blocks))
        except OSError:
            return b""

    def name(self, i: int) -> str:
        return f"{self._root}/{os.fsdecode(self._paths[i])}"

    def contents(self, i: int) -> bytes:
        name = self.name(i)
        if self._within and os.path.commonpath((os.path.realpath(name), self._within)) != self._within:
            raise BadPicture(name, f"a link out of {self._within}")
        return contents(name)


class Rows(Encoded):
    """Some rows of other encoded pictures, under their own names and labels."""

    def __init__(self, pictures: Encoded, ids_N: Tensor) -> None:
        self._pictures = pictures
        self._ids_N = ids_N
        self.labels = None if pictures.labels is None else pictures.labels[ids_N]
        self.cameras = None if pictures.cameras is None else pictures.cameras[ids_N]
        self.roles = None if pictures.roles is None else pictures.roles.of(ids_N)
        self.pairs = None if pictures.pairs is None else pictures.pairs.of(ids_N)
        self.classes = pictures.classes
        self.shape, self.fit, self.max_pixels = pictures.shape, pictures.fit, pictures.max_pixels

    def __len__(self) -> int:
        return len(self._ids_N)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the whole set's fingerprint and the row numbers."""
        digest = hashlib.sha256(self._pictures.fingerprint.encode())
        digest.update(self._ids_N.numpy().tobytes())
        return digest.hexdigest()

    @property
    def whole(self) -> Encoded:
        """The images of which these are some."""
        return self._pictures.whole if isinstance(self._pictures, Rows) else self._pictures

    def name(self, i: int) -> str:
        return self._pictures.name(int(self._ids_N[i]))

    def contents(self, i: int) -> bytes:
        return self._pictures.contents(int(self._ids_N[i]))


def subset(pictures: Pictures, ids: Sequence[int] | Tensor) -> Pictures:
    """The rows `ids`, in that order, labels and classes as they are; a subset of an array is an array."""
    ids_N = torch.as_tensor(ids, dtype=torch.int64)
    if isinstance(pictures, Encoded):
        return Rows(pictures, ids_N)
    if isinstance(pictures, ArrayPictures):
        return pictures.rows(ids_N)
    raise TypeError(f"{type(pictures).__name__} is neither ArrayPictures nor Encoded")


def file_states(root: str, paths: Sequence[bytes]) -> list[tuple[int, int]]:
    """Bytes and mtime (nanoseconds) of each file below `root`, -1 where there is none. Every file is asked: an image
    replaced in place leaves no trace in its folder. Where the first answers come late, as from a remote file system,
    sixteen threads ask.
    """
    if not paths:
        return []
    parts = [paths[start : start + 4096] for start in range(0, len(paths), 4096)]
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
    handle = os.open(root, flags) if os.stat in os.supports_dir_fd else None

    def ask(part: Sequence[bytes]) -> list[tuple[int, int]]:
        return [_file_state(path, root, handle) for path in part]

    try:
        began = time.perf_counter()
        first = ask(parts[0])
        late = time.perf_counter() - began > _LATE * len(first)
        with ThreadPoolExecutor(16 if late else 1) as pool:
            return list(itertools.chain(first, *pool.map(ask, parts[1:])))
    finally:
        if handle is not None:
            os.close(handle)


def _file_state(path: bytes, root: str, handle: int | None) -> tuple[int, int]:
    try:
        # A short path from an open folder: half the time of a long one.
        status = os.stat(path if handle is not None else os.fsencode(root) + b"/" + path, dir_fd=handle)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
