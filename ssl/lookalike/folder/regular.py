"""Bytes of regular files, of at most so many: no pipe is waited for, no device is read for ever.
Paths as people write them.
"""

import os
import stat
from pathlib import Path

from lookalike.errors import Error, RunError, printable
from lookalike.folder.shared import patiently


def at_home(path: str | os.PathLike[str], kind: type[Error] = RunError) -> Path:
    """The path with `~` and `~name` as home folders, as a shell has them; `~name` of no user is a
    name.

    Raises `kind` for `~` where there is no home folder, as in a container: else a folder of that
    name would be meant, or made.
    """
    found = os.path.expanduser(path)  # noqa: PTH111 (Path.expanduser raises for an unknown ~name)
    tilde = os.fspath(path).split("/")[0] == "~"
    if tilde and (os.environ.get("HOME") == "" or not os.path.isabs(found)):  # noqa: PTH117
        raise kind(
            f"{printable(path)}: there is no home folder (HOME): write the whole path in place of ~"
        )
    return Path(found)


def read_regular(path: str | os.PathLike[str], most: int, remedy: str = "") -> bytes:
    """The bytes of a regular file, itself or through links, of at most `most` bytes; a named pipe
    is not waited for.

    Raises OSError where it cannot be read, ValueError where it is a folder, a pipe or a device, or
    larger (with the `remedy`, if there is one).
    """
    return patiently(lambda: _read(path, most, remedy))


def _read(path: str | os.PathLike[str], most: int, remedy: str) -> bytes:
    with open(path, "rb", opener=without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > most:
            raise ValueError(f"{status.st_size} bytes, more than the {most} allowed{remedy}")
        return file.read(status.st_size)


def without_waiting(path: str, flags: int) -> int:
    """An opener for `open`: a named pipe without a writer would be waited for for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
