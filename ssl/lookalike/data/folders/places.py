"""Places that people and their lists name: paths that stay below a folder, and the system's refusal
of one in our words.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lookalike.errors import DataError, printable
from lookalike.folder import at_home


def below(root: str | os.PathLike[str], path: str, place: str) -> bytes:
    """A path that the line `place` of somebody's list gives, relative to `root`.

    Raises DataError for one that leaves it; where links lead is seen when the image is read.
    """
    if not path or path[0] == "/" or "\0" in path or (".." in path and ".." in path.split("/")):
        what = "empty" if not path else "absolute" if path[0] == "/" else "one that leaves root"
        raise DataError(
            f"{place}: the path {printable(path)[:80]!r} is {what}: give it relative to "
            f"{printable(root)}"
        )
    return os.fsencode(path)


@contextmanager
def os_errors_as(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the system's refusal to list or read `place`, or to take such a name, into a
    DataError.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) and "null byte" not in str(error):
            raise
        what = (getattr(error, "strerror", None) or str(error)).lower()
        raise DataError(
            f"{printable(place)}: {what}; check that it exists and that you may read it"
        ) from error


def folder_at(path: str | Path, remedy: str) -> Path:
    """The folder, `~` resolved. Raises DataError with the remedy when there is none."""
    folder = at_home(path, DataError)
    with os_errors_as(folder):
        if folder.is_dir():
            return folder
        what = "a file, not a folder" if folder.exists() else "no such folder"
    raise DataError(f"{printable(folder)}: {what}; {remedy}")
