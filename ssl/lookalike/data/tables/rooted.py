"""The paths that a table gives -> paths below its root, all written alike; whether there are such
files is seen before anything is trained.
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lookalike.data.folders.index import below
from lookalike.errors import DataError, printable

LOOKS = 64
"""Of so many rows, evenly spread, the files are looked for."""

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def rooted(file: str, lines: Sequence[int], paths: Sequence[str], root: Path) -> list[bytes]:
    """The paths relative to `root`, '/'-separated; absolute ones must lie below it.

    Paths with backslashes are taken as Windows' where there are such files. Raises DataError with
    file:line for a path that leaves the root.
    """
    paths = _forward(file, lines, paths, root)
    homes = [
        home.rstrip("/") + "/"
        for home in dict.fromkeys((os.fspath(root.absolute()), os.path.realpath(root)))
    ]
    return list(_below(file, lines, paths, root, homes))


def _below(
    file: str, lines: Sequence[int], paths: Sequence[str], root: Path, homes: Sequence[str]
) -> Iterator[bytes]:
    for line, path in zip(lines, paths, strict=True):
        if path[:1] == "/":
            home = next((home for home in homes if path.startswith(home)), None)
            if home is None:
                remedy = f"set root to a folder above it, as root: {_above(paths)}"
                raise DataError(
                    f"{file}:{line}: the path {printable(path)[:80]!r} is outside of "
                    f"{printable(root)}: {remedy}"
                )
            path = path[len(home) :].lstrip("/")
        yield below(root, path, f"{file}:{line}")


def _above(paths: Sequence[str]) -> str:
    """The folder that holds all of the absolute paths looked at."""
    some = [paths[row] for row in spread(len(paths)) if paths[row][:1] == "/"] or ["/"]
    return printable(os.path.commonpath([path.rpartition("/")[0] or "/" for path in some]))[:80]


def _forward(file: str, lines: Sequence[int], paths: Sequence[str], root: Path) -> Sequence[str]:
    """The paths with '/' in place of the backslashes of Windows. Raises DataError for a drive, and
    where there is no such file.
    """
    rows = [row for row, path in enumerate(paths) if "\\" in path or path[1:2] == ":"]
    for row in rows:
        if _DRIVE.match(paths[row]):
            raise _windows(file, lines[row], paths[row], "is of a Windows drive")
    rows = [row for row in rows if "\\" in paths[row]]
    some = [rows[k] for k in spread(len(rows))]
    if not rows or any(_is_there(root, paths[row]) for row in some):
        return paths
    if not any(_is_there(root, paths[row].replace("\\", "/")) for row in some):
        raise _windows(file, lines[rows[0]], paths[rows[0]], "has backslashes, as on Windows")
    return [path.replace("\\", "/") for path in paths]


def _windows(file: str, line: int, path: str, what: str) -> DataError:
    remedy = "write it with / and relative to root"
    return DataError(f"{file}:{line}: the path {printable(path)[:80]!r} {what}: {remedy}")


def _is_there(root: Path, path: str | bytes) -> bool:
    try:
        return (root / os.fsdecode(path)).exists()
    except (OSError, ValueError):
        return False


def look_for(file: str, lines: Sequence[int], paths: Sequence[bytes], root: Path) -> None:
    """Warns where some of the rows looked at have no file. Raises DataError where none has."""
    rows = spread(len(paths))
    lost = [row for row in rows if not _is_there(root, paths[row])]
    if not lost:
        return
    name = printable(os.fsdecode(paths[lost[0]]))[:80]
    place = f"{file}:{lines[lost[0]]}: no file {name!r} in {printable(root)}"
    if len(lost) == len(rows):
        others = f", nor of {len(rows) - 1} other rows that were looked at" if rows[1:] else ""
        raise DataError(f"{place}{others}: give the folder that the paths begin in with root")
    share = f"{len(lost)} of {len(rows)} rows that were looked at have none"
    warnings.warn(f"{place} ({share}): they count as bad images", stacklevel=6)


def spread(n: int) -> list[int]:
    """At most LOOKS of n rows, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, LOOKS)).astype(np.int64)).tolist() if n else []
