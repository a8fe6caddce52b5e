"""All files below a folder, whatever they are, links followed and each folder visited once."""

import os
import stat
from collections.abc import Callable

from lookalike.data.folders.index import os_errors_as
from lookalike.errors import printable

LeaveOut = Callable[[str, str], None]
"""Takes why something was left out, and its name."""


def files_below(top: str, leave_out: LeaveOut) -> list[bytes]:
    """Sorted relative paths ('/'-separated) of the regular files below `top`, through links too.

    Left out are hidden names, links to nothing, what is neither file nor folder, and a folder that
    was visited under another name: a folder's own place goes before links to it. Raises DataError
    for a folder that cannot be listed.
    """
    home, found = os.fsencode(top), []
    folders, links = [b""], list[bytes]()
    seen: set[tuple[int, int]] = set()
    while folders or links:
        inner = folders.pop() if folders else links.pop(0)
        with os_errors_as(printable(os.fsdecode(home + b"/" + inner))):
            status = os.stat(home + b"/" + inner)  # noqa: PTH116 (names of any bytes)
            if (status.st_dev, status.st_ino) in seen:
                leave_out("link to a folder that is here", os.fsdecode(home + b"/" + inner[:-1]))
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(home + b"/" + inner) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    kind = _kind(entry)
                    if kind == "folder":
                        folders.append(inner + entry.name + b"/")
                    elif kind == "link":
                        links.append(inner + entry.name + b"/")
                    elif kind == "file":
                        found.append(inner + entry.name)
                    else:
                        leave_out(kind, os.fsdecode(home + b"/" + inner + entry.name))
    return sorted(found)


def _kind(entry: "os.DirEntry[bytes]") -> str:
    """file, folder, link (to a folder), or why it is none of these."""
    if entry.name.startswith(b"."):
        return "hidden"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "link to nothing" if entry.is_symlink() else "not to be read"
    if stat.S_ISDIR(mode):
        return "link"
    return "file" if stat.S_ISREG(mode) else "pipe or device"
