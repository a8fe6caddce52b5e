"""One process at a time in a folder: a lock that the system takes back when the process ends.

filelock's lock of a descriptor, not its `FileLock`: that one writes a lock file of its own kind
where the file system has no locks, which a kill leaves behind.
"""

import contextlib
import errno
import os
import tempfile
import warnings
from pathlib import Path

from filelock import lock_descriptor

from lookalike.errors import RunError

_LOCK = ".lock"
_LOCKS: dict[Path, int] = {}


def lock(folder: Path) -> None:
    """Keeps `folder` for this process until it ends. Raises RunError while another process holds
    it.

    Where the file system has no locks, as some Lustre and NFS mounts, a warning says so and the
    work goes on.
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
        free = try_lock(file, folder)
    except OSError as error:
        os.close(file)
        warnings.warn(
            f"{folder}: no lock can be had here ({error.strerror}): start no second run in it, "
            "which nothing would notice",
            stacklevel=3,
        )
        return
    if not free:
        os.close(file)
        raise RunError(f"{folder}: another run writes here: wait for it, or choose another --out")
    _LOCKS[folder.resolve()] = file


def try_lock(file: int, folder: Path) -> bool:
    """Locks an open file of this folder; False while another process holds it.

    Raises OSError where the file system has no locks. Some say so as others say that a lock is held
    (EACCES): a new file, which nobody else knows, tells which it is.
    """
    if lock_descriptor(file, blocking=False):
        return True
    if not has_locks(folder):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    return False


def has_locks(folder: Path) -> bool:
    """Whether files of this folder can be locked; also where none can be made, which is told
    elsewhere.
    """
    try:
        with tempfile.TemporaryFile(prefix=".tmp-", dir=folder) as new:
            return _can_lock(new.fileno())
    except OSError:
        return True


def _can_lock(file: int) -> bool:
    try:
        return lock_descriptor(file, blocking=False)
    except OSError:
        return False


def wait_for_lock(file: int, folder: Path) -> None:
    """The same, once who holds it has let go."""
    if not try_lock(file, folder):
        lock_descriptor(file)


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
