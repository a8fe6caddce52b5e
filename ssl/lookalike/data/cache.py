"""What took time to find out, kept in the user's cache folder: checked when read, and never
needed.
"""

import contextlib
import errno
import functools
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import lock_descriptor
from platformdirs import user_cache_path

from lookalike.folder import atomic_write, read_regular, sweep

_MAGIC = b"lookalike sealed 1\n"
_HEAD = len(_MAGIC) + 32
_LARGEST = 2**33


def home() -> Path:
    """$XDG_CACHE_HOME/lookalike, else where the system keeps caches; it need not exist.

    Raises OSError for a user without a home, as one of a container may be.
    """
    try:
        return user_cache_path("lookalike", appauthor=False)
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, str(error)) from error


def seal(parts: Sequence[bytes]) -> bytes:
    """The parts as one file: a magic line, the sha256 of the rest, lengths, parts."""
    body = b"".join((struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts)), *parts))
    return b"".join((_MAGIC, hashlib.sha256(body).digest(), body))


def unseal(data: bytes) -> list[bytes]:
    """The parts of a sealed file. Raises ValueError when it is another file, cut short or
    changed.
    """
    body = memoryview(data)[_HEAD:]
    if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != data[len(_MAGIC) : _HEAD]:
        raise ValueError("not a whole sealed file")
    try:
        (count,) = struct.unpack_from("<I", body)
        sizes = struct.unpack_from(f"<{count}Q", body, 4)
    except struct.error as error:
        raise ValueError("not a sealed file") from error
    at, parts = 4 + 8 * count, []
    for size in sizes:
        parts.append(bytes(body[at : at + size]))
        at += size
    if at != len(body):
        raise ValueError("its parts have other lengths")
    return parts


def load(key: str | bytes) -> list[bytes] | None:
    """What was kept under the key; None when there is nothing, or nothing whole."""
    try:
        return unseal(read_regular(_path(key), _LARGEST))
    except (OSError, ValueError):
        return None


def store(key: str | bytes, parts: Sequence[bytes]) -> None:
    """Keeps the parts under the key. A folder that cannot be written is no error.

    Nothing is flushed to the disk: what a power cut leaves torn has another checksum and is found
    out anew.
    """
    with contextlib.suppress(OSError):
        home().mkdir(mode=0o700, parents=True, exist_ok=True)
        _tidy(home())
        with atomic_write(_path(key), flush=False) as file:
            file.write(seal(parts))


@functools.cache
def _tidy(folder: Path) -> None:
    """Once a process: what others left half-done when they were killed."""
    sweep(folder)


@contextlib.contextmanager
def locked(key: str | bytes) -> Iterator[None]:
    """Among the processes of this user only one at a time; where no lock can be had, all go on."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            home().mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(f"{_path(key)}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            stack.callback(os.close, handle)  # which unlocks
            lock_descriptor(handle)
        yield


def _path(key: str | bytes) -> Path:
    return home() / hashlib.sha256(os.fsencode(key)).hexdigest()[:40]
