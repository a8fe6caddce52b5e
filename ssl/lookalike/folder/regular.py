"""Bytes of regular files, of at most so many: no pipe is waited for, no device is read for ever."""

import os
import stat


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """The bytes of a regular file, itself or through links, of at most `most` bytes; a named pipe
    is not waited for.

    Raises OSError where it cannot be read, ValueError where it is a folder, a pipe or a device, or
    larger.
    """
    with open(path, "rb", opener=without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > most:
            raise ValueError(f"{status.st_size} bytes, more than the {most} allowed")
        return file.read(status.st_size)


def without_waiting(path: str, flags: int) -> int:
    """An opener for `open`: a named pipe without a writer would be waited for for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
