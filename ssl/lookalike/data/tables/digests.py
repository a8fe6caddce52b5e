"""sha256 of large files, remembered in the user's cache until a file changes."""

import hashlib
import json
import os
import time
from pathlib import Path

from lookalike.data import cache
from lookalike.data.outside import opened

_CHUNK = 1 << 20
_SETTLED = 2_000_000_000

State = tuple[int, int, int, int]


def state_of(file: Path) -> State:
    """Bytes, inode, mtime and ctime (nanoseconds): another one where somebody wrote to the file."""
    with opened(file) as data:
        status = os.fstat(data.fileno())
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def file_digest(file: Path) -> str:
    """Hex sha256 of the file, which one process of a machine reads once."""
    state = state_of(file)
    known = json.dumps(state).encode()
    key = f"digest\0{os.path.realpath(file)}"
    with cache.locked(f"digest\0{hash_name(key)[:2]}"):
        kept = cache.load(key)
        if kept and len(kept) == 2 and kept[0] == known and len(kept[1]) == 64:
            return kept[1].decode("ascii", "replace")
        found = _read(file)
        if time.time_ns() - state[3] > _SETTLED:
            cache.store(key, [known, found.encode()])
    return found


def hash_name(text: str) -> str:
    """A short name that depends on the text alone."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:40]


def _read(file: Path) -> str:
    digest = hashlib.sha256()
    with opened(file) as data:
        while chunk := data.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
