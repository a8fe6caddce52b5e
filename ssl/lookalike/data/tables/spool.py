"""What had to be unpacked to be read at random, in a bounded folder of the user's cache: made by
one process, used by all.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lookalike.data import cache
from lookalike.errors import DataError, printable
from lookalike.folder import atomic_write

_STRIPES = 64


class Spool:
    """Files of at most `cache_gb` together; those longest unused go first."""

    def __init__(self, cache_gb: float) -> None:
        self.bytes = int(cache_gb * 1e9)

    def file(self, key: str, size: int, make: Callable[[BinaryIO], None]) -> Path:
        """The file of this key, written by `make` if it is not there: about `size` bytes.

        Raises DataError where there is no room for it.
        """
        name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:40]
        target = folder() / name
        if not _used(target):
            # Of few names, since a lock leaves its file behind.
            with cache.locked(f"rows\0{int(name[:8], 16) % _STRIPES}"):
                if not _used(target):
                    self._make(target, size, make)
        return target

    def _make(self, target: Path, size: int, make: Callable[[BinaryIO], None]) -> None:
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(target.parent, size)
            with atomic_write(target, flush=False) as file:
                make(file)
        except OSError as error:
            if error.filename is None and error.errno is None:
                raise
            what = f"{printable(target.parent)}: {(error.strerror or str(error)).lower()}"
            remedy = "set XDG_CACHE_HOME to a folder with room, or data.cache_gb lower"
            raise DataError(f"{what}; images of row groups are unpacked there: {remedy}") from error

    def _make_room(self, home: Path, size: int) -> None:
        """Removes the files longest unused, and what a killed process left, until `size` more
        bytes fit.
        """
        if size > self.bytes:
            raise DataError(
                f"data.cache_gb: {self.bytes / 1e9:g} is less than one row group of "
                f"{size / 1e9:.2g} GB: raise it"
            )
        cache.make_room(home, size, self.bytes, "make room for rows")


def folder() -> Path:
    """Where the files lie. Raises DataError for a user without a home."""
    try:
        return cache.home() / "rows"
    except OSError as error:
        raise DataError(f"data: no cache folder ({error.strerror}): set XDG_CACHE_HOME") from error


def _used(path: Path) -> bool:
    """Whether the file is here; if so it counts as used now."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True
