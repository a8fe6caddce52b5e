"""Images in files, and the state of many files at once."""

import hashlib
import itertools
import os
import stat
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

import numpy as np

from lookalike.data.decode import BadImage, contents
from lookalike.data.images.contract import NOTHING, Annotations, Reading
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.names import Names, blocks
from lookalike.folder import without_waiting

# Seconds an answer about a file: a local disk takes a few microseconds, a server far away a
# millisecond. On a local disk threads only get in each other's way.
_LATE = 300e-6
_BLOCK = 4096
_READS = 4096
_ASKED = 1 << 16  # files whose states are held at a time
_MOST_BLOCKS = 16

FILES = 1024
"""Of so many files of a set, evenly spread, some bytes are read for its `content`."""


class FileImages(EncodedImages):
    """Images in files under `root`; with `within`, a file that links lead out of that folder is a
    bad one.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        paths: Iterable[bytes | str],
        reading: Reading,
        annotations: Annotations = NOTHING,
        *,
        within: str | os.PathLike[str] | None = None,
    ) -> None:
        self._root = os.fspath(root)
        self._within = os.path.realpath(within) if within else None
        self._paths = paths if isinstance(paths, Names) else Names(map(os.fsencode, paths))
        self.annotations = annotations
        self.read_by(reading)

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def digests(self) -> tuple[str, str]:
        """`fingerprint` and `times`. Every file is asked, once for all images of these names."""
        known = self._paths.known
        if self.order not in known:
            known[self.order] = self._asked()
        return known[self.order]

    def _asked(self) -> tuple[str, str]:
        """The digests, block by block of the sorted paths."""
        lines, times = hashlib.sha256(), hashlib.sha256()
        for paths in blocks(self._paths.ordered(), _ASKED):
            states = self._states(paths)
            rows = zip(paths, states, strict=True)
            lines.update(b"".join([b"%b\0%d\n" % (path, size) for path, (size, _) in rows]))
            mtimes = np.fromiter((mtime for _, mtime in states), np.int64, len(states))
            times.update(mtimes.tobytes())
        return lines.hexdigest(), times.hexdigest()

    @property
    def mark(self) -> str:
        """The same where the same folders are read from one file system, though by another machine:
        then every file need not be asked again. Empty where nobody can tell.
        """
        return f"{self.order} {self._paths.mark}" if self._paths.mark else ""

    def believe(self, digests: tuple[str, str]) -> None:
        """Takes the `digests` that another rank found for files of this `mark`."""
        self._paths.known[self.order] = digests

    @property
    def fingerprint(self) -> str:
        """sha256 of the sorted relative paths and file sizes: no times, so a copy elsewhere has the
        same.
        """
        return self.digests[0]

    @cached_property
    def order(self) -> str:
        """sha256 of the folder and of the paths in their order."""
        return hashlib.sha256(os.fsencode(f"{self._root}\0{self._paths.digest}")).hexdigest()

    @property
    def times(self) -> str:
        """sha256 of the files' mtimes (nanoseconds), in the order of paths: the same only where
        nobody wrote to one.
        """
        return self.digests[1]

    @cached_property
    def content(self) -> str:
        """sha256 over some bytes of at most `FILES` files, evenly spread over the set."""
        ids = np.unique(
            np.linspace(0, len(self) - 1, min(len(self), FILES)).astype(np.int64)
        ).tolist()
        look = partial(self._glimpse, blocks=min(_MOST_BLOCKS, max(2, _READS // len(ids))))
        digest = hashlib.sha256()
        with ThreadPoolExecutor(16) as pool:
            for glimpse in pool.map(look, ids):
                digest.update(hashlib.sha256(glimpse).digest())
        return digest.hexdigest()

    def _glimpse(self, i: int, blocks: int) -> bytes:
        """Some of the file's bytes: so many blocks of 4 KiB, evenly spread from end to end; none
        where it cannot be.
        """
        try:
            with open(self.name(i), "rb", opener=without_waiting) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return b""
                if status.st_size <= blocks * _BLOCK:
                    return file.read(status.st_size)
                last = status.st_size - _BLOCK
                return b"".join(
                    os.pread(file.fileno(), _BLOCK, last * k // (blocks - 1)) for k in range(blocks)
                )
        except OSError:
            return b""

    def name(self, i: int) -> str:
        return f"{self._root}/{os.fsdecode(self._paths[i])}"

    def contents(self, i: int) -> bytes:
        return contents(self._inside(i), self.most_bytes)

    def head(self, i: int, size: int) -> bytes:
        name = self._inside(i)
        try:
            with open(name, "rb", opener=without_waiting) as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return file.read(size)
        except OSError as error:
            raise BadImage(name, error.strerror or str(error)) from None
        raise BadImage(name, "not a regular file")

    def _inside(self, i: int) -> str:
        """The image's path. Raises BadImage where it is a link out of the folder."""
        name, wall = self.name(i), self._wall(i)
        if wall and os.path.commonpath((os.path.realpath(name), wall)) != wall:
            raise BadImage(name, f"a link out of {wall}")
        return name

    def _states(self, paths: Sequence[bytes]) -> list[tuple[int, int]]:
        """Bytes and mtime of the files of these paths."""
        return file_states(self._root, paths)

    def _wall(self, i: int) -> str | None:
        """The folder that no link may lead out of."""
        return self._within


def file_states(root: str, paths: Sequence[bytes]) -> list[tuple[int, int]]:
    """Bytes and mtime (nanoseconds) of each file below `root`, -1 where there is none. Every file
    is asked: an image replaced in place leaves no trace in its folder. Where the first answers come
    late, as from a remote file system, sixteen threads ask.
    """
    if not paths:
        return []
    parts = [paths[start : start + 4096] for start in range(0, len(paths), 4096)]
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
    handle = os.open(root, flags) if os.stat in os.supports_dir_fd else None

    def ask(part: Sequence[bytes]) -> list[tuple[int, int]]:
        return [_file_state(path, root, handle) for path in part]

    try:
        began = time.perf_counter()
        first = ask(parts[0])
        late = time.perf_counter() - began > _LATE * len(first)
        with ThreadPoolExecutor(16 if late else 1) as pool:
            return list(itertools.chain(first, *pool.map(ask, parts[1:])))
    finally:
        if handle is not None:
            os.close(handle)


def _file_state(path: bytes, root: str, handle: int | None) -> tuple[int, int]:
    try:
        # A short path from an open folder: half the time of a long one.
        status = os.stat(
            path if handle is not None else os.fsencode(root) + b"/" + path, dir_fd=handle
        )
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
