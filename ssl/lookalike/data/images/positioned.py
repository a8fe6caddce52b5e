"""A file that is read by position, which processes and threads may share."""

import os
from collections.abc import Callable


class Positioned:
    """An open file; it closes with its last user. Raises OSError where it cannot be opened."""

    def __init__(self, path: str) -> None:
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._handle).st_size

    def read(self, size: int, offset: int) -> bytes:
        """So many bytes from there, fewer at the end."""
        return os.pread(self._handle, size, offset)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Bound early: at the end of the program the module may be gone first.
        if self._handle >= 0:
            close(self._handle)
