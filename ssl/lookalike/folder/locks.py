"""One process at a time in a folder: a lock that the system takes back when the process ends.

filelock's lock of a descriptor, not its `FileLock`: that one writes a lock file of its own kind
where the file system has no locks, which a kill leaves behind.
"""

import contextlib
import os
import warnings
from pathlib import Path

from filelock import lock_descriptor

from lookalike.errors import RunError

_LOCK = ".lock"
_LOCKS: dict[Path, int] = {}


def lock(folder: Path) -> None:
    """Keeps `folder` for this process until it ends. Raises RunError while another process holds
    it.

    Where the file system has no locks, as some Lustre mounts, a warning says so and the work goes
    on.
    """
    if held(folder):
        return
    try:
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror}): choose another --out"
        ) from error
    try:
        free = lock_descriptor(file, blocking=False)
    except OSError as error:
        os.close(file)
        warnings.warn(
            f"{folder}: no lock can be had here ({error.strerror}): start no second run in it",
            stacklevel=3,
        )
        return
    if not free:
        os.close(file)
        raise RunError(f"{folder}: another run writes here: wait for it, or choose another --out")
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
