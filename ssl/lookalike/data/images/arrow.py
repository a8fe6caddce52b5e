"""Images whose files lie in the rows of Arrow files, or beside them, read at random by offset."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.data.decode import MAX_BYTES, BadImage, contents
from lookalike.data.images.contract import NOTHING, Annotations, Reading
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.images.positioned import Positioned
from lookalike.data.tables.arrow import Places
from lookalike.data.tables.digests import file_digest
from lookalike.data.tables.rowgroups import NULL

_OPEN = 64


class ArrowImages(EncodedImages):
    """The images of all rows of Arrow files, in their order. Files that rows name are read where
    they lie below one of the folders `within`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        places: Sequence[Places],
        reading: Reading,
        within: Sequence[Path] = (),
        annotations: Annotations = NOTHING,
    ) -> None:
        self._files = [Path(file) for file in files]
        self._within = [os.path.realpath(folder) for folder in within]
        counts = [len(part.sizes_N) for part in places]
        self._file_N = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        self._row_N = np.concatenate([np.arange(count) for count in [0, *counts]])
        self._offsets_N, self._sizes_N = (
            np.concatenate([np.zeros(0, np.int64), *(part[k] for part in places)]) for k in range(2)
        )
        paths = [path for part in places for path in part.paths]
        self._paths = {row: path for row, path in enumerate(paths) if path}
        self.annotations = annotations
        self.read_by(reading)
        self._open: OrderedDict[int, Positioned] = OrderedDict()

    def keys(self) -> list[bytes]:
        """`file/row` of each image, rows from 0, without the folder of the files."""
        names = [os.fsencode(file.name) for file in self._files]
        rows = zip(self._file_N.tolist(), self._row_N.tolist(), strict=True)
        return [b"%b/%d" % (names[f], row) for f, row in rows]

    def keep(self, mask_N: np.ndarray, annotations: Annotations) -> None:
        """Forgets the images where the mask is False; `annotations` are those of the others."""
        kept = np.flatnonzero(mask_N).tolist()
        named = ((new, self._paths.get(old)) for new, old in enumerate(kept))
        self._paths = {new: path for new, path in named if path}
        for column in ("_file_N", "_row_N", "_offsets_N", "_sizes_N"):
            setattr(self, column, getattr(self, column)[mask_N])
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self._file_N)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the files' names and contents, of which rows, and of the sizes of the files
        that rows name: each Arrow file is read once.
        """
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(os.fsencode(file.name) + b"\0" + bytes.fromhex(file_digest(file)))
        for column in (self._file_N, self._row_N):
            digest.update(np.ascontiguousarray(column).astype("<i8").tobytes())
        for i in self._paths:
            digest.update(b"%d\0%d\n" % (i, self._size_beside(i)))
        return digest.hexdigest()

    def _size_beside(self, i: int) -> int:
        try:
            return Path(self._paths[i]).stat().st_size
        except (OSError, ValueError):
            return NULL

    def name(self, i: int) -> str:
        i = range(len(self))[i]
        return self._paths.get(i) or f"{self._files[self._file_N[i]]}/{self._row_N[i]}"

    def contents(self, i: int) -> bytes:
        i = range(len(self))[i]
        offset, size = int(self._offsets_N[i]), int(self._sizes_N[i])
        if size == NULL and i in self._paths:
            return self._beside(self._paths[i])
        if size <= 0:
            raise BadImage(self.name(i), "a row without an image" if size == NULL else "empty")
        if size > MAX_BYTES:
            raise BadImage(self.name(i), f"{size} bytes, more than the {MAX_BYTES} allowed")
        try:
            data = self._handle(int(self._file_N[i])).read(size, offset)
        except OSError as error:
            raise BadImage(self.name(i), str(error.strerror or error)) from None
        if len(data) < size:
            raise BadImage(self.name(i), f"{len(data)} of {size} bytes: cut short")
        return data

    def _beside(self, path: str) -> bytes:
        """The file that a row names, if it may be read."""
        real = os.path.realpath(path)
        if not os.path.isabs(path) or not any(  # noqa: PTH117
            os.path.commonpath((real, folder)) == folder for folder in self._within
        ):
            raise BadImage(path, "a file outside of the data set and Hugging Face's cache")
        return contents(path)

    def _handle(self, f: int) -> Positioned:
        handle = self._open.pop(f, None) or Positioned(str(self._files[f]))
        self._open[f] = handle
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}
