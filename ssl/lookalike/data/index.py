"""The image files below a folder, found without opening one and remembered until a folder changes.

A listing is kept with inode, mtime and ctime (nanoseconds) of every folder visited, and is valid
while none of them differs: adding, removing or renaming a file changes its folder's. A folder that
changed within two seconds of being listed might change once more in the same tick of its file
system's clock (2 s on FAT), so what was found then is not kept. On a remote file system this holds
if its clock is within two seconds of ours.
"""

import hashlib
import itertools
import os
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lookalike.data import cache
from lookalike.errors import DataError, printable

SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".tif", b".tiff", b".gif")

# Fewer names are listed as fast as they are looked up.
WORTH_KEEPING = 10_000
_SETTLED = 2_000_000_000


def scan(folder: Path, within: Path) -> list[bytes]:
    """Sorted relative paths ('/'-separated) of the image files below `folder`; no file is opened.

    Hidden names and links to folders are skipped; a link to a file counts if its target is in
    `within`. Raises DataError when a folder cannot be listed.
    """
    top, home = os.fsencode(folder), os.path.realpath(os.fsencode(within))
    key = b"\0".join((b"folder", os.path.realpath(top), home))
    known = _remembered(key, top, home)
    return _walk(key, top, home) if known is None else known


def _walk(key: bytes, top: bytes, home: bytes) -> list[bytes]:
    found: dict[bytes, list[bytes]] = {}
    states, links, settled = [], [], True
    waiting = [b""]
    while waiting:
        inner = waiting.pop()
        here, names = top + b"/" + inner, []
        with os_errors_as(os.fsdecode(here)):
            # Before the listing: what changes while it is made shows next time.
            states.append(_state(here))
            settled = settled and time.time_ns() - states[-1][2] > _SETTLED
            with os.scandir(here) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(b"."):
                        continue
                    if name.lower().endswith(SUFFIXES):
                        if entry.is_file(follow_symlinks=False):
                            names.append(name)
                            continue
                        if entry.is_symlink():
                            links.append(inner + name)
                            continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(inner + name + b"/")
        names.sort()
        found[inner] = names
    inside = [link for link in links if _leads_inside(top, link, home)]
    folders = sorted(found)
    # Nearly sorted: folder by folder, and "a-b/" before "a/".
    paths = sorted([inner + name for inner in folders for name in found[inner]] + inside)
    if settled and len(paths) + len(found) >= WORTH_KEEPING:
        state_F3 = np.array(
            [state for _, state in sorted(zip(found, states, strict=True))], np.int64
        )
        outside = sorted(set(links).difference(inside))
        lists = (folders, paths, sorted(inside), outside)
        cache.store(key, [state_F3.tobytes(), *map(b"\0".join, lists)])
    return paths


def _remembered(key: bytes, top: bytes, home: bytes) -> list[bytes] | None:
    """The paths kept from an earlier scan, if no folder and no link has changed since."""
    if (parts := cache.load(key)) is None:
        return None
    folders, paths, inside, outside = (part.split(b"\0") if part else [] for part in parts[1:])
    states = np.frombuffer(parts[0], np.int64).reshape(-1, 3).tolist()
    try:
        # The folder itself is the empty name, which no list of names can hold alone.
        fresh = all(
            _state(top + b"/" + inner) == state
            for inner, state in zip(folders or [b""], states, strict=True)
        )
    except OSError:
        return None
    links = all(_leads_inside(top, link, home) for link in inside)
    links = links and not any(_leads_inside(top, link, home) for link in outside)
    return paths if fresh and links else None


def _state(folder: bytes) -> list[int]:
    status = os.stat(folder)  # noqa: PTH116 (Path takes no bytes)
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _leads_inside(top: bytes, link: bytes, home: bytes) -> bool:
    target = os.path.realpath(top + b"/" + link)
    inside = target.startswith(home.rstrip(os.fsencode(os.sep)) + os.fsencode(os.sep))
    return inside and os.path.isfile(target)  # noqa: PTH113 (Path takes no bytes)


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


def unit(name: bytes) -> float:
    """A number in [0, 1) that depends on the name alone: the first 48 bits of its sha256."""
    return int.from_bytes(hashlib.sha256(name).digest()[:6], "big") / (1 << 48)


def units(names: Sequence[bytes], key: str | os.PathLike[str]) -> np.ndarray:
    """`unit` of each name, float64 (N,), remembered under the key: a million take a second to
    hash.
    """
    kept, digest = b"units\0" + os.fsencode(key), b""
    if worth := len(names) >= WORTH_KEEPING:
        digest = hashlib.sha256(b"\0".join(names)).digest()
        known = cache.load(kept)
        if known and known[0] == digest:
            return np.frombuffer(known[1], np.float64)
    words_N8 = np.zeros((len(names), 8), np.uint8)
    hashes = b"".join(hashlib.sha256(name).digest() for name in names)
    words_N8[:, 2:] = np.frombuffer(hashes, np.uint8).reshape(-1, 32)[:, :6]
    found: np.ndarray = words_N8.view(">u8")[:, 0] / float(1 << 48)
    if worth:
        cache.store(kept, [digest, found.tobytes()])
    return found


def top_folders(paths: Sequence[bytes]) -> dict[bytes, range] | bytes:
    """Which of the sorted relative paths lie below each first folder; or a path that lies in
    none.
    """
    found, start = {}, 0
    while start < len(paths):
        name, slash, _ = paths[start].partition(b"/")
        if not slash:
            return paths[start]
        # What begins with "name/" stands together, and "0" comes next after "/".
        end = bisect_left(paths, name + b"0", start)
        found[name], start = range(start, end), end
    return found


def chosen(names: Sequence[bytes], mask_N: np.ndarray) -> list[bytes]:
    """The names where the mask is True."""
    return list(itertools.compress(names, mask_N.tolist()))
