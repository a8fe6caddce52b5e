"""Images in tar shards, read at random by offset, each held against its checksum."""

import contextlib
import hashlib
import itertools
import os
import posixpath
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lookalike.data import remote
from lookalike.data.decode import MORE, BadImage
from lookalike.data.images.contract import Reading
from lookalike.data.images.encoded import LOOKS, EncodedImages
from lookalike.data.names import Names
from lookalike.data.order import Windows
from lookalike.data.webdataset.listing import Shard
from lookalike.data.webdataset.samples import Samples
from lookalike.errors import DataError

_OPEN = 64


class ShardImages(EncodedImages):
    """Images at offsets of shards; each read is held against the crc32 of the index.

    `numbers_N`: the label of each sample in its shard, or NO_LABEL. `windows`: how to shuffle, None
    for all.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        found: Sequence[Samples],
        reading: Reading,
        files: remote.Files,
    ) -> None:
        self.shards = list(shards)
        self._files = files
        self._names = Names(itertools.chain.from_iterable(samples.names for samples in found))
        counts = [len(samples.names) for samples in found]
        self._shard_N = np.repeat(np.arange(len(found), dtype=np.int32), counts)
        columns = [
            np.concatenate([samples[k] for samples in found] or [np.zeros(0, np.int64)])
            for k in range(1, 5)
        ]
        self._offsets_N, self._sizes_N, self._crcs_N, self.numbers_N = columns
        self.read_by(reading)
        self.windows: Windows | None = None
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def keys(self) -> list[bytes]:
        """`shard/member` of each image, without the folder of the shards."""
        homes = [os.fsencode(posixpath.basename(shard.place)) + b"/" for shard in self.shards]
        return [
            homes[s] + name for s, name in zip(self._shard_N.tolist(), self._names, strict=True)
        ]

    def keep(self, mask_N: np.ndarray) -> None:
        """Forgets the images where the mask is False."""
        self._names = self._names.where(mask_N)
        for column in ("_shard_N", "_offsets_N", "_sizes_N", "_crcs_N", "numbers_N"):
            setattr(self, column, getattr(self, column)[mask_N])

    def sizes_of_shards(self) -> np.ndarray:
        """How many images each shard holds, int64."""
        return np.bincount(self._shard_N, minlength=len(self.shards)).astype(np.int64)

    def __len__(self) -> int:
        return len(self._names)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of shard names, member names, sizes, crc32 sums and labels: no image is read."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(os.fsencode(posixpath.basename(shard.place)) + b"\0")
        for column in (self._shard_N, self._sizes_N, self._crcs_N, self.numbers_N):
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update(b"\0".join(self._names))
        return digest.hexdigest()

    def name(self, i: int) -> str:
        i = range(len(self))[i]
        return (
            f"{remote.redacted(self.shards[self._shard_N[i]].place)}/{os.fsdecode(self._names[i])}"
        )

    @property
    def looks(self) -> int:
        """Few where each is a request to a server."""
        return 16 if any(remote.is_remote(shard.place) for shard in self.shards) else LOOKS

    def head(self, i: int, size: int) -> bytes:
        """Of a remote shard only these bytes are fetched."""
        i = range(len(self))[i]
        shard, offset = self.shards[self._shard_N[i]], int(self._offsets_N[i])
        size = min(size, int(self._sizes_N[i]))
        if remote.is_remote(shard.place):
            return remote.part(shard.place, offset, size)
        try:
            return self._handle(int(self._shard_N[i])).read(size, offset)
        except OSError as error:
            raise BadImage(self.name(i), error.strerror or str(error)) from None

    def contents(self, i: int) -> bytes:
        i = range(len(self))[i]
        offset, size = int(self._offsets_N[i]), int(self._sizes_N[i])
        where = f"at byte {offset} of its shard"
        if size > self.most_bytes:
            what = f"{size} bytes {where}, more than the {self.most_bytes} allowed{MORE}"
            raise BadImage(self.name(i), what)
        try:
            data = self._handle(int(self._shard_N[i])).read(size, offset)
        except OSError as error:
            raise BadImage(self.name(i), f"{error.strerror or error} {where}") from None
        if len(data) < size:
            raise BadImage(self.name(i), f"{len(data)} of {size} bytes {where}: cut short")
        if zlib.crc32(data) != self._crcs_N[i]:
            raise BadImage(self.name(i), f"damaged: wrong crc32 of {size} bytes {where}")
        return data

    def _handle(self, s: int) -> "_Open":
        """The open shard; at most 64 are. One that another thread still reads from closes when that
        is done.
        """
        handle = self._open.pop(s, None) or self._opened(self.shards[s])
        self._open[s] = handle
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return handle

    def _opened(self, shard: Shard) -> "_Open":
        if not remote.is_remote(shard.place):
            return _Open(shard.place)
        for _ in range(10):
            with contextlib.suppress(FileNotFoundError):  # another process made room in between
                return _Open(self._files.path(*shard))
        raise DataError("data.cache_gb: too small for all processes that read at once: raise it")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


class _Open:
    """A file that is read by position, which processes and threads may share; it closes with its
    last user.
    """

    def __init__(self, path: str) -> None:
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._handle, size, offset)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
