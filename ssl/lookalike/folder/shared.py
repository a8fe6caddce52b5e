"""File systems that several machines share: what one wrote shows on another a little later, an open
file may go stale, a repeated request finds its work done.

NFS keeps what it knows of a folder for up to a minute, also that a name is not there; opening the
folder asks the server again (close-to-open, nfs(5)). A request whose answer was lost is sent again.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lookalike.errors import RunError, printable

T = TypeVar("T")

# NFS forgets what it knew of a folder after so many seconds at most (acdirmax), unless told
# otherwise.
_PATIENCE = 60.0
_WAITS = (0.0, 0.05, 0.2)
_LONGEST_WAIT = 1.0
# How a file system says that it has no such operation, which is no failure of it.
_UNKNOWN = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


def patiently(work: Callable[[], T]) -> T:
    """What `work` gives; called anew where a file that it opened was replaced on the server
    meanwhile (ESTALE).
    """
    for wait in _WAITS:
        try:
            return work()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        time.sleep(wait)
    return work()


def look_again(folder: Path) -> None:
    """Asks the server what is in the folder now; nothing where it is not there."""
    with contextlib.suppress(OSError):
        os.close(os.open(folder, os.O_RDONLY))


def await_visible(path: Path, seconds: float = _PATIENCE) -> None:
    """Waits until what another machine has just written here is there for this one too.

    Raises RunError where it is not within `seconds`: then the place is not shared.
    """
    end, wait = time.monotonic() + seconds, 0.02
    while not path.exists():
        for above in reversed(path.parents[:3]):
            look_again(above)
        if path.exists():
            return
        if time.monotonic() > end:
            raise RunError(
                f"{printable(path)}: written by rank 0, but not to be seen from here after "
                f"{seconds:g} s: --out must be a folder that all machines share"
            )
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


def sync(handle: int) -> None:
    """fsync; nothing where the file system knows none for such a file, as some do for folders.

    Raises OSError where what was written has not reached the disk.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise


def sync_folder(folder: Path) -> None:
    """The names in a folder to the disk, as `sync`."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in (*_UNKNOWN, errno.EACCES, errno.EPERM, errno.EISDIR):
            return  # a folder that may be written to, but not be listed
        raise
    try:
        sync(handle)
    finally:
        os.close(handle)


def move(source: Path, target: Path, *, replace: bool = False) -> None:
    """Renames. A request that was sent twice, since its first answer was lost, is done all the
    same.
    """
    inode = source.lstat().st_ino
    try:
        (source.replace if replace else source.rename)(target)
    except FileNotFoundError:
        look_again(target.parent)
        with contextlib.suppress(OSError):
            if not os.path.lexists(source) and target.lstat().st_ino == inode:
                return
        raise
