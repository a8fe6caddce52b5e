"""One process at a time in a folder: a lock that the system takes back when the process ends."""

import contextlib
import errno
import os
import warnings
from pathlib import Path

from lookalike.errors import RunError

try:
    import fcntl
except ImportError:  # Windows has no flock: two runs in one folder go unnoticed there
    fcntl = None  # type: ignore[assignment]
_LOCK = ".lock"
# How flock says that another process holds the file; all else says that there are no locks to be
# had.
_BUSY = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
_LOCKS: dict[Path, int] = {}


def lock(folder: Path) -> None:
    """Keeps `folder` for this process until it ends. Raises RunError while another process holds
    it.

    Where the file system has no locks, as some Lustre mounts, a warning says so and the work goes
    on.
    """
    if fcntl is None or held(folder):
        return
    try:
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror}): choose another --out"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in _BUSY:
            raise RunError(
                f"{folder}: another run writes here: wait for it, or choose another --out"
            ) from error
        warnings.warn(
            f"{folder}: no lock can be had here ({error.strerror}): start no second run in it",
            stacklevel=3,
        )
        return
    _LOCKS[folder.resolve()] = file


def held(folder: Path) -> bool:
    """Whether this process holds the lock file that is there now: a folder may have been deleted
    under a run.
    """
    file = _LOCKS.get(folder.resolve())
    if file is None:
        return False
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(file), (folder / _LOCK).stat()):
            return True
    os.close(_LOCKS.pop(folder.resolve()))
    return False


def unlock(folder: Path) -> None:
    """Gives the lock back, if this process holds it."""
    file = _LOCKS.pop(folder.resolve(), None)
    if file is not None:
        os.close(file)
