"""One walk over a folder: which files below it are images, what else there is, and the marks by
which the next walk can be spared.

No file is opened whose name says what it is; of others the first bytes are looked at. Links to
files and folders are followed, and every folder is visited once, by its device and inode: its own
name wins over links to it, a link further out over one further in, and of links beside each other
the first in sorted order.
"""

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lookalike.data.decode import HEAD, is_image
from lookalike.data.folders.marks import (
    ELSE,
    FOLDER,
    NOWHERE,
    Marks,
    lead_of,
    marks_of,
    state_of,
    status_of,
)
from lookalike.data.folders.places import os_errors_as
from lookalike.data.folders.suffixes import HIDDEN, LISTED, is_hidden, is_listed, is_other, kind
from lookalike.data.mapped import Spill
from lookalike.data.names import Names
from lookalike.folder import without_waiting

SEEN, BROKEN, OUTSIDE = "folder seen before", "broken link", "link out of the folder"
NO_FILE, LOCKED = "not a file", "cannot be read"
"""By so many bytes a file is judged."""

SETTLED = 2_000_000_000
# Seconds a file takes to open and read: more is a file system far away, where many are asked for
# at once. On a local disk threads only get in each other's way.
_LATE = 1e-3
_FIRST = 256
_MOST_KINDS = 64
_SOME = 1 << 14  # paths that are Python's at a time


class Walked(NamedTuple):
    """Sorted relative paths of images, and of what was left out by the reason; the marks of both,
    and whether all of it changed long enough ago to show the next change.
    """

    paths: Names
    left_out: dict[str, list[bytes]]
    marks: Marks
    settled: bool


def walk(top: bytes, home: bytes | None) -> Walked:
    """Walks the folder `top`; with `home`, a real path, links that leave that are left out.

    Raises DataError when a folder cannot be listed.
    """
    walking = _Walk(top, home)
    walking.go()
    return walking.result()


class _Walk:
    def __init__(self, top: bytes, home: bytes | None) -> None:
        self._top, self._home = top, home
        # The names of each folder in one string, in a file where they are many: where they lie.
        self._images: dict[bytes, slice] = {}
        self._packed, self._end = Spill(), 0
        self._linked: list[bytes] = []
        self._unknown: list[bytes] = []
        self._doors: list[bytes] = []
        self._left_out: defaultdict[str, list[bytes]] = defaultdict(list)
        self._states: dict[bytes, list[int]] = {}
        self._leads: dict[bytes, list[int]] = {}
        self._judged: dict[bytes, list[int]] = {}
        self._seen: set[tuple[int, int]] = set()

    def go(self) -> None:
        """The folder itself, then the folders behind its links, then those behind theirs."""
        for above in _above(self._top):
            self._is_new(above)  # a link to a folder above this one leads in a circle
        starts = [b""]
        while starts:
            for start in starts:
                self._tree(start)
            links, self._doors = sorted(self._doors), []
            starts = [link + b"/" for link in links if self._opens(link)]
        self._judge()

    def result(self) -> Walked:
        paths = Names.packed(self._in_order(self._packed.done()))
        marks = marks_of(self._states, self._leads, self._judged)
        newest = max((state[1] for state in (*marks.folders_F3, *marks.judged_J3)), default=0)
        settled = time.time_ns() - newest > SETTLED
        return Walked(paths, _gathered(self._left_out), marks, settled)

    def _in_order(self, packed: np.ndarray) -> Iterator[list[bytes]]:
        """The sorted paths, some at a time: of a folder what lies in it and the folders below it,
        by the names that they begin with, the folders' with a slash.
        """
        below: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for path in itertools.chain(filter(None, self._images), self._linked):
            folder, slash, name = path.removesuffix(b"/").rpartition(b"/")
            below[folder + slash].append(name + b"/" if path.endswith(b"/") else name)

        def names(folder: bytes) -> list[bytes]:
            text = packed[self._images[folder]].tobytes()
            return text.split(b"\0") if text else []

        waiting = [(b"", iter(sorted([*names(b""), *below[b""]])))]
        while waiting:
            folder, left = waiting[-1]
            found = list[bytes]()
            for entry in left:
                path = folder + entry
                if not entry.endswith(b"/"):
                    found.append(path)
                elif path in below:
                    waiting.append((path, iter(sorted([*names(path), *below[path]]))))
                    break
                else:
                    found += [path + name for name in names(path)]
                    if len(found) > _SOME:
                        yield found
                        found = []
            else:
                waiting.pop()
            yield found

    def _tree(self, start: bytes) -> None:
        """A folder with all of its own folders below it."""
        waiting = [start]
        while waiting:
            inner = waiting.pop()
            here = self._top + b"/" + inner
            with os_errors_as(os.fsdecode(here)):
                # Before the listing: what changes while it is made shows next time.
                status = status_of(here)
                if inner != start and not self._is_new(status):
                    self._leave(SEEN, inner[:-1])
                    continue
                self._states[inner] = state_of(status)
                waiting += self._list(inner, here)

    def _list(self, inner: bytes, here: bytes) -> list[bytes]:
        """Sorts out what lies in a folder; its folders, the first one last."""
        names, folders = list[bytes](), list[bytes]()
        with os.scandir(here) as entries:
            for entry in entries:
                name = entry.name
                if (
                    name.lower().endswith(LISTED)
                    and name[0] != 46  # a dot
                    and entry.is_file(follow_symlinks=False)
                ):
                    names.append(name)
                elif is_hidden(name):
                    self._leave(HIDDEN, inner + name)
                elif entry.is_symlink():
                    self._follow(inner + name)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(inner + name + b"/")
                elif entry.is_file(follow_symlinks=False):
                    self._name(inner + name)
                else:
                    self._leave(NO_FILE, inner + name)
        names.sort()
        text = b"\0".join(names)
        self._packed.write(text)
        self._images[inner] = slice(self._end, self._end + len(text))
        self._end += len(text)
        return sorted(folders, reverse=True)

    def _follow(self, link: bytes) -> None:
        """Sorts out a link by where it leads."""
        lead = self._leads[link] = lead_of(self._top, self._home, link)
        if lead[0] == NOWHERE:
            self._leave(BROKEN, link)
        elif not lead[2]:
            self._leave(OUTSIDE, link)
        elif lead[0] == FOLDER:
            self._doors.append(link)
        elif lead[0] == ELSE:
            self._leave(NO_FILE, link)
        elif is_listed(link):
            self._linked.append(link)
        else:
            self._name(link)

    def _name(self, file: bytes) -> None:
        """Sorts out a file whose name does not make it an image."""
        if is_other(file):
            self._leave(kind(file), file)
        else:
            self._unknown.append(file)

    def _opens(self, link: bytes) -> bool:
        """Whether a link to a folder leads to one that is not visited yet, and not in a circle."""
        name = self._top + b"/" + link
        there, holder = os.path.realpath(name), os.path.realpath(name.rpartition(b"/")[0])
        try:
            status = status_of(there)
        except OSError:
            self._leave(BROKEN, link)
            return False
        circle = (holder + b"/").startswith(there.rstrip(b"/") + b"/")
        if circle or not self._is_new(status):
            self._leave(SEEN, link)
            return False
        return True

    def _is_new(self, status: os.stat_result) -> bool:
        """Whether a folder was not met before; then it was now. One without an inode is always
        new.
        """
        identity = (status.st_dev, status.st_ino)
        if status.st_ino and identity in self._seen:
            return False
        self._seen.add(identity)
        return True

    def _judge(self) -> None:
        """Files whose names say nothing, by their first bytes."""
        names = sorted(self._unknown)
        for name, (found, state) in zip(names, _looked_at(self._top, names), strict=True):
            if found is True:
                self._linked.append(name)
            else:
                self._judged[name] = state
                self._leave(LOCKED if found is None else kind(name), name)

    def _leave(self, why: str, name: bytes) -> None:
        self._left_out[why].append(name)


def _above(top: bytes) -> list[os.stat_result]:
    """The folder and those above it, by their real names."""
    with os_errors_as(os.fsdecode(top)):
        real = Path(os.path.realpath(os.fsdecode(top)))
        return [status_of(os.fsencode(place)) for place in (real, *real.parents)]


def _gathered(left_out: dict[str, list[bytes]]) -> dict[str, list[bytes]]:
    """The same, sorted; of more kinds than anybody reads the rarest together."""
    kinds = sorted(left_out, key=lambda why: (-len(left_out[why]), why))
    found = {why: sorted(left_out[why]) for why in kinds[: _MOST_KINDS - 1]}
    if rest := kinds[_MOST_KINDS - 1 :]:
        found["other"] = sorted(name for why in rest for name in left_out[why])
    return found


def _looked_at(top: bytes, names: Sequence[bytes]) -> list[tuple[bool | None, list[int]]]:
    """Whether each file is an image, None for one that cannot be read, and its state before that.

    Where the first answers come late, as from a remote file system, sixteen threads look.
    """
    began = time.perf_counter()
    found = [_look(top, name) for name in names[:_FIRST]]
    late = time.perf_counter() - began > _LATE * len(found)
    with ThreadPoolExecutor(16 if late else 1) as pool:
        return found + list(pool.map(partial(_look, top), names[_FIRST:]))


def _look(top: bytes, name: bytes) -> tuple[bool | None, list[int]]:
    path = top + b"/" + name
    try:
        with open(path, "rb", buffering=0, opener=without_waiting) as file:
            state = state_of(os.fstat(file.fileno()))
            return is_image(file.read(HEAD)), state
    except OSError:
        pass
    try:
        return None, state_of(status_of(path))
    except OSError:
        return None, [0, 0, 0]
