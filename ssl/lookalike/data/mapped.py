"""Large arrays in files that nobody else sees: pages of a file are shared by all that map it, and
the system takes them back where memory is short.
"""

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from lookalike.data import cache

SMALL = 1 << 20
"""So many bytes stay in memory."""


class Spill:
    """Takes bytes piece by piece, and gives them as one array: in memory where they are few, or
    where no file can be had, else mapped from a file without a name.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._file: IO[bytes] | None = None
        self._tried = False

    def write(self, piece: cache.Bytes) -> None:
        """Appends the piece."""
        self._held += cache.view_of(piece)
        if len(self._held) > SMALL and not self._tried:
            self._file, self._tried = _nameless(), True
        if self._file and len(self._held) > SMALL:
            self._flush(self._file)

    def done(self) -> np.ndarray:
        """All of it, uint8 (n,), which may be written without anybody seeing it."""
        if self._file:
            self._flush(self._file)
        if not self._file:
            return np.frombuffer(self._held, np.uint8)
        with self._file as file:
            return mapped(file)

    def _flush(self, file: IO[bytes]) -> None:
        """Moves what is held into the file; back into memory with all where the disk is full."""
        start = file.tell()
        try:
            rest = memoryview(self._held)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(start)
            file.seek(0)
            self._held = bytearray(file.read()) + self._held
            file.close()
            self._file = None
        else:
            self._held = bytearray()


def mapped(file: IO[bytes], at: int = 0, size: int | None = None) -> np.ndarray:
    """Bytes of an open file, uint8 (n,), by default all; written to, they are this process's."""
    size = os.fstat(file.fileno()).st_size - at if size is None else size
    if not size:
        return np.empty(0, np.uint8)
    whole = mmap.mmap(file.fileno(), at + size, access=mmap.ACCESS_COPY)
    return np.frombuffer(whole, np.uint8, size, at)


def kept(array: np.ndarray) -> np.ndarray:
    """The same numbers, mapped where they are many."""
    if array.nbytes <= SMALL:
        return array
    spill = Spill()
    for start in range(0, len(array), SMALL):
        spill.write(np.ascontiguousarray(array[start : start + SMALL]).reshape(-1))
    return spill.done().view(array.dtype).reshape(array.shape)


def places() -> Iterator[Path]:
    """Folders for large files of a while: the system's for temporary ones, then our cache."""
    with contextlib.suppress(OSError):
        yield Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        home = cache.home()
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield home


def _nameless() -> IO[bytes] | None:
    """A new file, gone once it is closed and no longer mapped."""
    for place in places():
        with contextlib.suppress(OSError):
            return tempfile.TemporaryFile(dir=place, buffering=0)
    return None
