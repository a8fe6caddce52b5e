"""Whole shards from a remote store (fsspec) into a bounded folder of the user's cache.

Credentials come from the environment as each store's own tools take them, never from a recipe, and
no message holds what a URL may hide.
"""

import hashlib
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lookalike.data import cache
from lookalike.errors import DataError, printable
from lookalike.folder import atomic_write

T = TypeVar("T")

STORES = frozenset({"s3", "gs", "gcs", "az", "abfs", "http", "https", "hf"})
PAUSES = (1.0, 4.0, 16.0)
_CHUNK = 8 << 20


def is_remote(place: str) -> bool:
    """Whether the place is a URL."""
    return "://" in place


def redacted(text: str) -> str:
    """The text fit for one line of output, without user names, passwords, queries and fragments of
    URLs.
    """
    text = printable(text)
    return re.sub(
        r"(://[^\s'\"?#]*)[?#][^\s'\"]*", r"\1?…", re.sub(r"://[^\s/'\"]*@", "://…@", text)
    )


def store_of(url: str) -> tuple[Any, str]:
    """The fsspec file system and the path in it. Raises DataError for another kind of store, or one
    not installed.
    """
    # Late: it is only needed here, and a store's own package only by those who use it.
    from fsspec.core import url_to_fs

    kind = url.split("://", 1)[0]
    if kind not in STORES or "::" in url:
        raise DataError(f"{redacted(url)}: unknown store, use one of {', '.join(sorted(STORES))}")
    if "@" in url.split("://", 1)[1].split("/", 1)[0]:
        raise DataError(
            f"{redacted(url)}: a recipe is no place for credentials: give them by the environment"
        )
    try:
        found: tuple[Any, str] = url_to_fs(url)
    except ImportError as error:
        raise DataError(
            f"{redacted(url)}: its package is missing: pip install 'lookalike[remote]'"
        ) from error
    return found


def with_retries(
    place: str, work: Callable[[], T], sleep: Callable[[float], None] | None = None
) -> T:
    """What `work` returns; a failure is tried again after 1, 4 and 16 seconds.

    Raises DataError naming the place after the fourth, at once where nothing is there or may be
    read.
    """
    for pause in (*PAUSES, None):
        try:
            return work()
        except (FileNotFoundError, PermissionError) as error:
            reason = (
                "no such object" if isinstance(error, FileNotFoundError) else "permission denied"
            )
            raise DataError(
                f"{redacted(place)}: {reason}: check the path and the credentials"
            ) from None
        except Exception as error:  # every store fails in its own words
            reason = redacted(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        if pause is not None:
            (sleep or time.sleep)(pause)
    raise DataError(f"{redacted(place)}: failed {len(PAUSES) + 1} times, last with {reason}")


def read(url: str, limit: int = 1 << 28) -> bytes | None:
    """A small object whole, None where there is none."""
    fs, path = store_of(url)

    def work() -> bytes | None:
        try:
            data: bytes = fs.cat_file(path, start=0, end=limit + 1)
        except FileNotFoundError:
            return None
        return data

    found = with_retries(url, work)
    if found and len(found) > limit:
        raise DataError(
            f"{redacted(url)}: more than the {limit} bytes allowed: pack in larger shards"
        )
    return found


def part(url: str, start: int, size: int) -> bytes:
    """Some bytes of an object, by a request for no others."""
    fs, path = store_of(url)

    def work() -> bytes:
        data: bytes = fs.cat_file(path, start=start, end=start + size)
        return data

    found = with_retries(url, work)
    return found[start : start + size] if len(found) > size else found  # of a server without parts


class Files:
    """Shards as local files, fetched when first asked for; the least recently used go when
    `cache_gb` is full.

    Safe among several processes: a shard appears by rename, one process fetches it, the others
    wait.
    """

    def __init__(self, cache_gb: float) -> None:
        self._bytes = int(cache_gb * 1e9)

    def path(self, url: str, size: int | None = None, crc: int | None = None) -> str:
        """The local file of the shard. Raises DataError when it cannot be had or is not what was
        packed.
        """
        fs, remote = store_of(url)
        if size is None:
            size, version = self._state(url, fs, remote)
        else:
            version = str(crc)
        target = (
            self._folder() / hashlib.sha256(f"{url}\0{size}\0{version}".encode()).hexdigest()[:40]
        )
        if not _used(target, size):
            with cache.locked(f"fetch\0{target}"):
                if not _used(target, size):
                    with_retries(url, lambda: self._fetch(fs, remote, target, size, crc))
        return str(target)

    def _state(self, url: str, fs: Any, remote: str) -> tuple[int, str]:
        def work() -> tuple[int, str]:
            about = fs.info(remote)
            return int(about["size"]), str(
                about.get("ETag") or about.get("mtime") or about.get("LastModified")
            )

        return with_retries(url, work)

    def _folder(self) -> Path:
        folder = cache.home() / "shards"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _fetch(self, fs: Any, remote: str, target: Path, size: int, crc: int | None) -> None:
        self._make_room(size)
        found = 0
        with atomic_write(target, flush=False) as file:
            for chunk in _chunks(fs, remote):
                file.write(chunk)
                found = zlib.crc32(chunk, found)
                if file.tell() > size:
                    break
            if (got := file.tell()) != size:
                raise OSError(f"{got} bytes came instead of {size}")
            if crc is not None and found != crc:
                raise OSError("another crc32 than was packed")

    def _make_room(self, size: int) -> None:
        """Removes the shards longest unused, and what a killed process left, until `size` more
        bytes fit.
        """
        if size > self._bytes:
            raise DataError(
                f"data.cache_gb: {self._bytes / 1e9:g} is less than one shard of {size / 1e9:g} "
                "GB: raise it"
            )
        cache.make_room(self._folder(), size, self._bytes, "make room")


def _used(path: Path, size: int) -> bool:
    """Whether the shard is here; if so it counts as used now."""
    try:
        os.utime(path)
        return path.stat().st_size == size
    except OSError:
        return False


def _chunks(fs: Any, remote: str) -> Iterator[bytes]:
    with fs.open(remote, "rb", block_size=_CHUNK) as file:
        while chunk := file.read(_CHUNK):
            yield chunk
