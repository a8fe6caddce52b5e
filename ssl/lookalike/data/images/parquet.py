"""Images whose files lie in the rows of Parquet files, read at random, each held against its
checksum.
"""

import hashlib
import itertools
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch

from lookalike.data.decode import MAX_BYTES, BadImage
from lookalike.data.images.contract import NOTHING, Annotations, Reading
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.images.positioned import Positioned
from lookalike.data.order import Windows
from lookalike.data.tables.digests import file_digest, state_of
from lookalike.data.tables.rowgroups import NULL, Located, locate, row_groups
from lookalike.data.tables.spool import Spool
from lookalike.errors import DataError, printable

Shuffle = Literal["auto", "exact", "window"]

_OPEN = 64
_MAGIC = b"lookalike rows 1"
_TAIL = struct.Struct("<16s?QI")


class ParquetImages(EncodedImages):
    """The images of all rows of Parquet files, in their order; `leaf`: the column of bytes.

    `windows`: how to shuffle, None for all. What is compressed is unpacked, a row group at a time
    and when it is first asked for, into `spool`, which the processes of a machine share.
    """

    def __init__(
        self,
        files: Sequence[Path],
        leaf: str,
        reading: Reading,
        annotations: Annotations = NOTHING,
        spool: Spool | None = None,
    ) -> None:
        self._files = [Path(file) for file in files]
        self._states = [state_of(file) for file in self._files]
        self._leaf, self._spool = leaf, spool or Spool(50.0)
        found = [row_groups(file, leaf) for file in self._files]
        self._groups = [(f, group) for f, groups in enumerate(found) for group in groups]
        rows = [group.rows for _, group in self._groups]
        if rows and sum(group.nulls for _, group in self._groups) == sum(rows):
            what = f"no row of {leaf} holds an image, paths of files at best"
            raise DataError(f"{printable(self._files[0])}: {what}: write it with the images in it")
        self._group_N = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
        starts = np.cumsum([0, *rows])[self._group_N] if rows else np.zeros(0, np.int64)
        self._row_N = (np.arange(len(self._group_N)) - starts).astype(np.int32)
        self._first_G = [
            first
            for groups in found
            for first in itertools.accumulate((g.rows for g in groups[:-1]), initial=0)
        ][: len(rows)]
        self.annotations = annotations
        self.read_by(reading)
        self.windows: Windows | None = None
        self._open: OrderedDict[int, tuple[Positioned, Located]] = OrderedDict()

    def keys(self) -> list[bytes]:
        """`file/row` of each image, rows from 0, without the folder of the files."""
        names = [os.fsencode(file.name) for file in self._files]
        return [
            b"%b/%d" % (names[self._groups[group][0]], self._first_G[group] + row)
            for group, row in zip(self._group_N.tolist(), self._row_N.tolist(), strict=True)
        ]

    def keep(self, mask_N: np.ndarray, annotations: Annotations) -> None:
        """Forgets the images where the mask is False; `annotations` are those of the others."""
        self._group_N, self._row_N = self._group_N[mask_N], self._row_N[mask_N]
        self.annotations = annotations

    def shuffle_by(self, how: Shuffle, window: int = 100_000) -> None:
        """Shuffles all images, or those of `window` images of neighbouring row groups; `auto`: all
        unless more has to be unpacked than is kept.
        """
        if how == "window" or (how == "auto" and self.unpacked > self._spool.bytes):
            sizes_G = np.bincount(self._group_N, minlength=len(self._groups)).astype(np.int64)
            self.windows = Windows(torch.from_numpy(sizes_G), window)

    @property
    def unpacked(self) -> int:
        """Bytes that have to be unpacked to read all files."""
        return sum(group.unpacked for _, group in self._groups if not group.plain)

    @property
    def looks(self) -> int:
        """Few: the row group of each has to be unpacked first."""
        return 16

    def __len__(self) -> int:
        return len(self._group_N)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the files' names and contents, and of which rows: each file is read once."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(os.fsencode(file.name) + b"\0" + bytes.fromhex(file_digest(file)))
        for column in (self._group_N, self._row_N):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def name(self, i: int) -> str:
        i = range(len(self))[i]
        f, _ = self._groups[self._group_N[i]]
        return f"{self._files[f]}/{int(self._first_G[self._group_N[i]]) + int(self._row_N[i])}"

    def contents(self, i: int) -> bytes:
        i = range(len(self))[i]
        group, row = int(self._group_N[i]), int(self._row_N[i])
        handle, located = self._handle(group)
        offset, size, crc = (int(column[row]) for column in located[:3])
        if size <= 0:
            raise BadImage(self.name(i), "a row without an image" if size == NULL else "empty")
        if size > MAX_BYTES:
            raise BadImage(self.name(i), f"{size} bytes, more than the {MAX_BYTES} allowed")
        data = handle.read(size, offset)
        if len(data) < size or zlib.crc32(data) != crc:
            raise BadImage(self.name(i), f"damaged: wrong crc32 of {size} bytes at byte {offset}")
        return data

    def _handle(self, group: int) -> tuple[Positioned, Located]:
        """Where the images of the row group are read from; at most 64 are open."""
        handle = self._open.pop(group, None) or self._opened(group)
        self._open[group] = handle
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return handle

    def _opened(self, group: int) -> tuple[Positioned, Located]:
        f, rows = self._groups[group]
        file, state = self._files[f], self._states[f]
        key = f"{os.path.realpath(file)}\0{state}\0{self._leaf}\0{rows.number}"

        def make(out: BinaryIO) -> None:
            if state_of(file) != state:
                raise DataError(f"{printable(file)}: was changed while it was read: start again")
            write_located(out, locate(file, self._leaf, rows, out))

        for _ in range(10):
            kept = self._spool.file(key, 0 if rows.plain else rows.unpacked, make)
            try:
                handle = Positioned(str(kept))
            except FileNotFoundError:  # another process made room in between
                continue
            if located := read_located(handle, rows.rows):
                return (Positioned(str(file)) if located.here else handle), located
            kept.unlink(missing_ok=True)  # torn by a power cut
        raise DataError("data.cache_gb: too small for all processes that read at once: raise it")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def write_located(out: BinaryIO, located: Located) -> None:
    """Puts it behind what was written, with its own length and checksum last."""
    body = b"".join(column.astype("<i8").tobytes() for column in located[:3])
    out.write(body + _TAIL.pack(_MAGIC, located.here, len(body), zlib.crc32(body)))


def read_located(file: Positioned, rows: int) -> Located | None:
    """The inverse; None for a file that is not whole, or of another number of rows."""
    end = file.size - _TAIL.size
    if end < 24 * rows:
        return None
    magic, here, length, crc = _TAIL.unpack(file.read(_TAIL.size, end))
    body = file.read(24 * rows, end - 24 * rows)
    if magic != _MAGIC or length != len(body) or zlib.crc32(body) != crc:
        return None
    offsets_N, sizes_N, crcs_N = np.frombuffer(body, "<i8").reshape(3, -1)
    return Located(offsets_N, sizes_N, crcs_N, here)
