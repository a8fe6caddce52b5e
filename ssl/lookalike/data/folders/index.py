"""The image files below a folder, remembered until a folder changes; and what the names in such a
list are good for.

A listing is kept with inode, mtime and ctime (nanoseconds) of every folder visited, with where
every link led, and with the state of every file whose bytes were looked at and were no image's: it
is valid while none of them differs. Adding, removing or renaming a file changes its folder's. What
changed within two seconds of being seen might change once more in the same tick of its file
system's clock (2 s on FAT), so it is not kept. On a remote file system this holds if its clock is
within two seconds of ours.
"""

import hashlib
import itertools
import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lookalike.data import cache
from lookalike.data.folders import suffixes
from lookalike.data.folders.marks import Marks, holds
from lookalike.data.folders.places import below, os_errors_as
from lookalike.data.folders.walk import Walked, walk
from lookalike.data.names import Names, blocks

__all__ = [
    "SUFFIXES",
    "WORTH_KEEPING",
    "Scan",
    "below",
    "chosen",
    "os_errors_as",
    "scan",
    "top_folders",
    "unit",
    "units",
]

SUFFIXES = suffixes.SUFFIXES

# Fewer names are listed as fast as they are looked up.
WORTH_KEEPING = 10_000
# What a kept listing holds, and by which rules it was made: another number is another key.
_FORMAT = b"folder 3"
_NUMBERS = 3


class Scan(NamedTuple):
    """What lies below a folder: relative paths ('/'-separated) of images, sorted, and of everything
    else by the reason why it is left out.
    """

    paths: Names
    left_out: dict[str, list[bytes]]


def scan(folder: Path, within: Path | None = None) -> Scan:
    """The images below `folder`, by their suffix or else by their first bytes, and what else is
    there. Links are followed, every folder is visited once (see walk); those that leave `within`,
    where it is given, are left out.

    Raises DataError when a folder cannot be listed.
    """
    top, home = os.fsencode(folder), None
    if within is not None:
        home = os.path.realpath(os.fsencode(within))
    rules = b" ".join(suffixes.LISTED)
    key = b"\0".join((_FORMAT, rules, os.path.realpath(top), home or b""))
    if (parts := cache.mapped(key)) and (kept := _parsed(parts)) and holds(top, home, kept.marks):
        return _marked(kept)
    found = walk(top, home)
    size = len(found.paths) + len(found.marks.folders) + sum(map(len, found.left_out.values()))
    if found.settled and size >= WORTH_KEEPING:
        cache.store(key, _parts(found))
    return _marked(found)


def _marked(found: Walked) -> Scan:
    """The paths know what the file system said of all folders, links and files looked at; those of
    a folder that has just changed may be others at once.
    """
    digest = hashlib.sha256()
    for names, rows in zip(found.marks.names, found.marks.numbers, strict=True):
        digest.update(b"\0".join(names) + b"\0" + np.array(rows, "<i8").tobytes())
    found.paths.mark = digest.hexdigest() if found.settled else ""
    return Scan(found.paths, found.left_out)


def _parts(found: Walked) -> list[cache.Bytes]:
    """What was found as the parts of a sealed file."""
    numbers = [np.array(rows, "<i8").tobytes() for rows in found.marks.numbers]
    reasons = [why.encode() for why in found.left_out]
    lists = [*found.marks.names, reasons, *found.left_out.values()]
    return [*found.paths.parts, *numbers, *(b"\0".join(names) for names in lists)]


def _parsed(parts: list[np.ndarray]) -> Walked | None:
    """The inverse; None for parts that no `_parts` has made."""
    numbers, texts = parts[2 : 2 + _NUMBERS], parts[2 + _NUMBERS :]
    lists = [part.tobytes().split(b"\0") for part in texts]
    try:
        paths = Names.of(parts[0], parts[1])
        rows = [part.view("<i8").reshape(-1, 3).tolist() for part in numbers]
        # The folder itself is the empty name; no other list holds one.
        folders, links, judged, reasons, *others = (
            names if n == 0 or names != [b""] else [] for n, names in enumerate(lists)
        )
        left_out = {why.decode(): names for why, names in zip(reasons, others, strict=True)}
    except (IndexError, ValueError):
        return None
    return Walked(paths, left_out, Marks(folders, links, judged, *rows), True)


def unit(name: bytes) -> float:
    """A number in [0, 1) that depends on the name alone: the first 48 bits of its sha256."""
    return int.from_bytes(hashlib.sha256(name).digest()[:6], "big") / (1 << 48)


def units(names: Sequence[bytes], key: str | os.PathLike[str]) -> np.ndarray:
    """`unit` of each name, float64 (N,), remembered under the key: a million take a second to
    hash.
    """
    kept, digest = b"units\0" + os.fsencode(key), b""
    if worth := len(names) >= WORTH_KEEPING:
        packed = names if isinstance(names, Names) else Names(names)
        digest = packed.digest.encode()
        known = cache.mapped(kept)
        if known and known[0].tobytes() == digest:
            return known[1].view(np.float64)
    found, start = np.empty(len(names)), 0
    for block in blocks(names):
        hashes = b"".join([hashlib.sha256(name).digest() for name in block])
        words_B8 = np.zeros((len(block), 8), np.uint8)
        words_B8[:, 2:] = np.frombuffer(hashes, np.uint8).reshape(-1, 32)[:, :6]
        found[start : start + len(block)] = words_B8.view(">u8")[:, 0] / float(1 << 48)
        start += len(block)
    if worth:
        cache.store(kept, [digest, found])
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


def chosen(names: Sequence[bytes], mask_N: np.ndarray) -> Sequence[bytes]:
    """The names where the mask is True."""
    if isinstance(names, Names):
        return names.where(mask_N)
    return list(itertools.compress(names, mask_N.tolist()))
