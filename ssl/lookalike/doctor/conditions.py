"""What is unusual about a machine and stops no run: each a line that says what becomes of it."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from lookalike import comm
from lookalike.data import cache
from lookalike.data.shared import SHARED, no_processes
from lookalike.errors import printable
from lookalike.folder import has_locks, nearest
from lookalike.views import native

# Less is too little for NCCL between the GPUs of a machine that cannot reach one another directly.
_LEAST_SHARED = 2**28


def conditions(out: Path) -> list[str]:
    """A line each, for a run in `out` by this user on this machine."""
    return [
        *_memory(),
        *_places(nearest(out)),
        *_output(),
        *_views(),
        *filter(None, [comm.unusable()]),
    ]


def _places(out: Path) -> Iterator[str]:
    place, why = cache.where()
    if place is None:
        yield f"{why}: no cache is kept: set XDG_CACHE_HOME to a folder of yours"
    elif why:
        yield f"{why}: the cache is kept in {place}: set XDG_CACHE_HOME to a folder of yours"
    if not has_locks(out):
        yield f"{printable(out)}: no locks in this file system: start no second run in one folder"


def _memory() -> Iterator[str]:
    if why := no_processes():
        yield f"no loader processes ({why}): each rank reads its images itself: mount a /dev/shm"
    elif torch.cuda.device_count() > 1 and SHARED.is_dir():
        total = shutil.disk_usage(SHARED).total
        if total < _LEAST_SHARED:
            yield (
                f"{SHARED} has {total / 2**20:.0f} MiB, which NCCL may find too little between "
                "GPUs: enlarge it (docker run --shm-size 1g)"
            )


def _views() -> Iterator[str]:
    if not torch.cuda.is_available() and not native.available():
        why = native.found().why
        yield f"views by torch's form, a quarter to a third as fast as by the kernel: {why}"


def _output() -> Iterator[str]:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if encoding.lower().replace("-", "") != "utf8":
        yield f"stdout is {encoding}: other characters are escaped: set PYTHONUTF8=1"
