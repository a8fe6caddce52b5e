"""The picture files below a folder, found without opening one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lookalike.data.decode import shown
from lookalike.errors import DataError

SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".tif", b".tiff", b".gif")


def scan(folder: Path, within: Path) -> list[bytes]:
    """Sorted relative paths ('/'-separated) of the picture files below `folder`; no file is opened.

    Hidden names and links to folders are skipped; a link to a file counts if its target is in `within`.
    Raises DataError when a folder cannot be listed.
    """
    top, home = os.fsencode(folder), os.path.realpath(os.fsencode(within))
    found, waiting = [], [b""]
    while waiting:
        inner = waiting.pop()
        here = top + b"/" + inner
        with refusing(os.fsdecode(here)), os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(inner + entry.name + b"/")
                elif entry.name.lower().endswith(SUFFIXES) and _is_file(entry, home):
                    found.append(inner + entry.name)
    return sorted(found)


@contextmanager
def refusing(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the system's refusal to list or read `place` into a DataError."""
    try:
        yield
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise DataError(f"{shown(place)}: {what}; check that it exists and that you may read it") from error


def _is_file(entry: os.DirEntry[bytes], home: bytes) -> bool:
    if not entry.is_symlink():
        return entry.is_file(follow_symlinks=False)
    target = os.path.realpath(entry.path)
    inside = target.startswith(home.rstrip(os.fsencode(os.sep)) + os.fsencode(os.sep))
    return inside and os.path.isfile(target)  # noqa: PTH113 (Path takes no bytes)
