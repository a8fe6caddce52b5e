"""By what an earlier walk over a folder is known to hold: the state of folders and files, and where
links lead.
"""

import os
import stat
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

NOWHERE, FILE, FOLDER, ELSE = range(4)
"""To what a link leads."""


class Marks(NamedTuple):
    """What was found where, as long as it is still so: the folders visited, the links met, and the
    files whose bytes were none of an image; sorted names, and three numbers of each.
    """

    folders: list[bytes]
    links: list[bytes]
    judged: list[bytes]
    folders_F3: list[list[int]]
    links_L3: list[list[int]]
    judged_J3: list[list[int]]

    @property
    def names(self) -> tuple[list[bytes], ...]:
        """Of folders, links and judged files."""
        return self.folders, self.links, self.judged

    @property
    def numbers(self) -> tuple[list[list[int]], ...]:
        """The numbers of each, in the order of the names."""
        return self.folders_F3, self.links_L3, self.judged_J3


def holds(top: bytes, home: bytes | None, marks: Marks) -> bool:
    """Whether a walk now would find the same."""

    def same(now: Callable[[bytes], list[int]], names: list[bytes], then: list[list[int]]) -> bool:
        return all(now(name) == before for name, before in zip(names, then, strict=True))

    try:
        return (
            same(partial(_state_below, top), marks.folders, marks.folders_F3)
            and same(partial(lead_of, top, home), marks.links, marks.links_L3)
            and same(partial(_state_below, top), marks.judged, marks.judged_J3)
        )
    except OSError:
        return False


def marks_of(
    folders: dict[bytes, list[int]], links: dict[bytes, list[int]], judged: dict[bytes, list[int]]
) -> Marks:
    """By sorted names."""
    (f, f_F3), (li, l_L3), (j, j_J3) = map(_columns, (folders, links, judged))
    return Marks(f, li, j, f_F3, l_L3, j_J3)


def _columns(found: dict[bytes, list[int]]) -> tuple[list[bytes], list[list[int]]]:
    names = sorted(found)
    return names, [found[name] for name in names]


def status_of(path: bytes) -> os.stat_result:
    """What the system says of it, or of what links lead to."""
    return os.stat(path)  # noqa: PTH116 (Path takes no bytes)


def state_of(status: os.stat_result) -> list[int]:
    """What is another number once somebody writes there."""
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _state_below(top: bytes, name: bytes) -> list[int]:
    return state_of(status_of(top + b"/" + name))


def lead_of(top: bytes, home: bytes | None, link: bytes) -> list[int]:
    """To what a link leads, the inode of a folder, and whether that lies in `home`."""
    name = top + b"/" + link
    try:
        status = status_of(name)
    except OSError:
        return [NOWHERE, 0, 0]
    inside = home is None or _lies_in(os.path.realpath(name), home)
    if stat.S_ISDIR(status.st_mode):
        return [FOLDER, status.st_ino, int(inside)]
    return [FILE if stat.S_ISREG(status.st_mode) else ELSE, 0, int(inside)]


def _lies_in(place: bytes, home: bytes) -> bool:
    return (place + b"/").startswith(home.rstrip(b"/") + b"/")
