"""What took time to find out, kept in the user's cache folder: checked when read, and never
needed.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import mmap
import os
import stat
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from lookalike.errors import printable
from lookalike.folder import (
    atomic_write,
    nearest,
    read_regular,
    sweep,
    wait_for_lock,
    without_waiting,
)

Bytes = bytes | bytearray | memoryview | np.ndarray
"""What a file is written from."""

_ABANDONED = 86_400.0  # seconds after which nobody writes on at a file that was begun

_MAGIC = b"lookalike sealed 1\n"
_HEAD = len(_MAGIC) + 32
_LARGEST = 2**33


def home() -> Path:
    """$XDG_CACHE_HOME/lookalike, else where the system keeps caches; it need not exist. Where that
    cannot be, as in a container, a folder of this user alone in the temporary folder.

    Raises OSError where there is none either. That it is not at home is said, once.
    """
    place, _ = where()
    if place is None:
        raise FileNotFoundError(errno.ENOENT, "no place for a cache")
    return place


def where() -> tuple[Path | None, str]:
    """The cache folder, None where none can be had; and why it is not at home, empty if it is."""
    asked = (os.environ.get(name) for name in ("XDG_CACHE_HOME", "HOME"))
    return _place(tempfile.gettempdir, os.geteuid() if hasattr(os, "geteuid") else 0, *asked)


@functools.cache
def _place(temporary: Callable[[], str], user: int, *asked: str | None) -> tuple[Path | None, str]:
    """`asked` is what the answer was for: it may be another after a change of the environment."""
    try:
        return _at_home(), ""
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "there is no home folder (HOME)"
    place, what = None, "no cache is kept, and what was found out is found out anew each time"
    with contextlib.suppress(OSError):
        place = _in_temporary(Path(temporary()), user)
        what = f"the cache is kept in {place}"
    if os.environ.get("RANK", "0") == "0":
        warnings.warn(f"{why}: {what}: set XDG_CACHE_HOME to a folder of yours", stacklevel=4)
    return place, why


def _at_home() -> Path:
    """Raises OSError, or RuntimeError as platformdirs, where nothing can be kept there."""
    place = user_cache_path("lookalike", appauthor=False)
    asked = os.environ.get("XDG_CACHE_HOME", "")
    base = asked if os.path.isabs(asked) else os.path.expanduser("~")  # noqa: PTH111, PTH117
    if not place.is_absolute() or not os.path.isabs(base):  # noqa: PTH117
        raise FileNotFoundError(errno.ENOENT, "there is no home folder (HOME)")
    if base != asked and not os.path.isdir(base):  # noqa: PTH112
        raise FileNotFoundError(errno.ENOENT, f"there is no home folder {printable(base)} (HOME)")
    there = nearest(place)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{printable(place)} cannot be written")
    return place


def _in_temporary(folder: Path, user: int) -> Path:
    """A folder that nobody else can have prepared, or look into. Raises OSError."""
    if folder == Path.cwd():  # where Python looks last of all
        raise FileNotFoundError(errno.ENOENT, "there is no temporary folder")
    place = folder / f"lookalike-{user}"
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    status = place.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == user
    if not ours or status.st_mode & 0o077:
        raise PermissionError(errno.EPERM, f"{printable(place)} is not this user's alone")
    return place


def seal(parts: Sequence[bytes]) -> bytes:
    """The parts as one file: a magic line, the sha256 of the rest, lengths, parts."""
    return b"".join(_pieces(parts))


def view_of(piece: Bytes) -> memoryview:
    """Its bytes, where they lie; of an array that is in one piece."""
    return piece.view(np.uint8).data if isinstance(piece, np.ndarray) else memoryview(piece)


def _pieces(parts: Sequence[Bytes]) -> list[bytes | memoryview]:
    """What such a file holds, piece by piece."""
    views = [view_of(part) for part in parts]
    sizes = struct.pack(f"<I{len(views)}Q", len(views), *map(len, views))
    digest = hashlib.sha256(sizes)
    for view in views:
        digest.update(view)
    return [_MAGIC, digest.digest(), sizes, *views]


def unseal(data: bytes) -> list[bytes]:
    """The parts of a sealed file. Raises ValueError when it is another file, cut short or
    changed.
    """
    whole = memoryview(data)
    return [bytes(whole[span]) for span in _spans(whole)]


def _spans(whole: memoryview) -> list[slice]:
    """Where the parts of a sealed file lie. Raises ValueError as `unseal`."""
    body, head = whole[_HEAD:], bytes(whole[:_HEAD])
    if head[: len(_MAGIC)] != _MAGIC or hashlib.sha256(body).digest() != head[len(_MAGIC) :]:
        raise ValueError("not a whole sealed file")
    try:
        (count,) = struct.unpack_from("<I", body)
        sizes = struct.unpack_from(f"<{count}Q", body, 4)
    except struct.error as error:
        raise ValueError("not a sealed file") from error
    ends = list(itertools.accumulate(sizes, initial=_HEAD + 4 + 8 * count))
    if ends[-1] != len(whole):
        raise ValueError("its parts have other lengths")
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def load(key: str | bytes) -> list[bytes] | None:
    """What was kept under the key; None when there is nothing, or nothing whole."""
    try:
        return unseal(read_regular(_path(key), _LARGEST))
    except (OSError, ValueError):
        return None


def mapped(key: str | bytes) -> list[np.ndarray] | None:
    """The same, uint8 (n,) each, mapped: for what is large and read by many processes."""
    try:
        with open(_path(key), "rb", opener=without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or not _HEAD < status.st_size <= _LARGEST:
                return None
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        spans = _spans(memoryview(whole))
    except (OSError, ValueError):
        return None
    bytes_N = np.frombuffer(whole, np.uint8)
    return [bytes_N[span] for span in spans]


def store(key: str | bytes, parts: Sequence[Bytes]) -> None:
    """Keeps the parts under the key. A folder that cannot be written is no error.

    Nothing is flushed to the disk: what a power cut leaves torn has another checksum and is found
    out anew.
    """
    with contextlib.suppress(OSError):
        home().mkdir(mode=0o700, parents=True, exist_ok=True)
        _tidy(home())
        with atomic_write(_path(key), flush=False) as file:
            file.writelines(_pieces(parts))


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
            wait_for_lock(handle, home())
        yield


def _path(key: str | bytes) -> Path:
    return home() / hashlib.sha256(os.fsencode(key)).hexdigest()[:40]


def make_room(folder: Path, size: int, most: int, key: str) -> None:
    """Removes the files of a folder that were longest unused, and what a killed process left, until
    `size` more bytes fit below `most`; one process at a time, by a lock of that key.
    """
    with locked(key):
        kept = []
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                kept.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(held for _, held, _ in kept)
        for stamp, held, path in sorted(kept):
            writing = path.name.startswith(".tmp-") and time.time() - stamp < _ABANDONED
            if total + size > most and not writing:
                path.unlink(missing_ok=True)  # who reads it still has it open
                total -= held
