"""Files that others made and a user points at: regular files only, never waited for, no line
without end.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import AnyStr, BinaryIO

from lookalike.data.folders.index import os_errors_as
from lookalike.errors import DataError, printable
from lookalike.folder import without_waiting

LONGEST = 1 << 20
"""Bytes, or characters of a CSV's row, that a line may have."""


@contextmanager
def opened(file: str | os.PathLike[str], place: str = "", buffer: int = -1) -> Iterator[BinaryIO]:
    """The regular file, itself or through links, open to be read. Raises DataError, naming `place`,
    for any other.
    """
    place = place or printable(file)
    with os_errors_as(place), open(file, "rb", buffer, opener=without_waiting) as data:
        if not stat.S_ISREG(os.fstat(data.fileno()).st_mode):
            raise DataError(f"{place}: a pipe or a device, not a file: write a file and name that")
        yield data


def size_of(data: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(data.fileno()).st_size


def lines(readline: Callable[[int], AnyStr], place: str) -> Iterator[AnyStr]:
    """The lines of a file with their ends. Raises DataError with place:line for one above
    `LONGEST`.
    """
    number = 0
    while line := readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise DataError(
                f"{place}:{number}: a line of more than {LONGEST:,} characters: no list of images "
                "has one"
            )
        yield line
