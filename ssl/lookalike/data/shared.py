"""Memory and processes that loaders need of the machine, whatever became of its /dev/shm.

Forked processes inherit anonymous shared memory, which only the machine's memory bounds. A file
below /dev/shm is bounded by what is mounted there as well, 64 MB in a container of Docker's for all
ranks of the machine together, and the kernel kills (SIGBUS) who touches the first page beyond.
"""

import contextlib
import mmap
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor, multiprocessing

from lookalike.errors import RunError

SHARED = Path("/dev/shm")
# Python's own choice was another from 3.14 on, whose processes inherit nothing.
FORKS = sys.platform == "linux"
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def shared_bytes(size: int) -> Tensor:
    """uint8 (size,) that loader processes started from now on share with this one.

    Raises RunError when the machine has not so much memory.
    """
    if not FORKS:
        _refuse(size, "shared memory", _free(SHARED))
        # Shared from the start: share_memory_() would write all of it once, and hold it twice
        # meanwhile.
        storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
        return torch.empty(0, dtype=torch.uint8).set_(storage)
    _refuse(size, "memory", available())
    try:
        return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    except OSError as error:
        raise RunError(_too_much(size, error.strerror or str(error))) from error


def available() -> int | None:
    """Bytes of memory that may be had here; None where the system does not say."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        said = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(1024 * int(said.partition("MemAvailable:")[2].split()[0]))
    for limit in _LIMITS:  # of a container
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(limit).read_text(encoding="ascii")))
    return min(found, default=None)


def _free(folder: Path) -> int | None:
    """Bytes free in the file system there."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _refuse(size: int, what: str, free: int | None) -> None:
    if free is not None and size > free:
        raise RunError(_too_much(size, f"{free / 1e6:.0f} MB of {what} are free"))


def _too_much(size: int, why: str) -> str:
    return (
        f"data: the loader processes share {size / 1e6:.0f} MB, but {why}: lower the batch or "
        "workers, or set workers to 0"
    )


def no_processes() -> str:
    """Why loader processes cannot be started here, empty where they can: their queues have
    semaphores, which Linux keeps in /dev/shm too.
    """
    try:
        multiprocessing.get_context().Lock()
    except (OSError, ImportError) as error:
        place = f"{SHARED}: " if sys.platform == "linux" else ""
        return f"{place}{getattr(error, 'strerror', None) or error}"
    return ""
