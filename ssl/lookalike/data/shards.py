"""Pictures in tar shards of the WebDataset layout, read at random by offset, here or from a remote store."""

import contextlib
import hashlib
import itertools
import os
import posixpath
import warnings
import zlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from lookalike.data import remote
from lookalike.data.decode import MAX_BYTES, BadPicture
from lookalike.data.index import chosen, refusing, units
from lookalike.data.listing import Shard, expanded, read_listing, tell_overlap
from lookalike.data.order import Windows
from lookalike.data.pictures import Encoded, Fit, Names, Pictures
from lookalike.data.samples import NO_LABEL, Samples, samples_of, unsealed
from lookalike.data.sources import Canvas, Split, canvas_for, checked
from lookalike.errors import DataError, printable
from lookalike.recipe import Size, sides

# Above it random reads over all shards no longer fit a machine's memory of recent pages.
EXACT = 50_000_000
_OPEN = 64


class Shards:
    """Tar shards: a folder that `lookalike pack` wrote, a folder of .tar files, a glob, or braces as in
    s3://bucket/train-{000..146}.tar. `test`: the same for the test set.

    A packed folder keeps classes, labels and splits. Otherwise PATH/train and PATH/test (or val) hold the splits, or
    else a hash of each sample's shard and name does. `auto` labels a set in which every sample has a label.
    `shuffle: window` mixes `window` pictures of neighbouring shards, permuted anew each epoch, in place of all of
    them; `auto` does so for remote shards and above 50 million pictures. Remote shards are kept in at most `cache_gb`.
    `max_pixels`: how many pixels an image may have, whatever memory and time it takes; by default as many as decode
    below 200 MB: 100 million of a JPEG, 25 million of other formats.
    """

    def __init__(
        self,
        path: str,
        canvas: Canvas | None = None,
        channels: Literal[1, 3] = 3,
        test: str | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        labels: Literal["auto", "none"] = "auto",
        shuffle: Literal["auto", "exact", "window"] = "auto",
        window: Annotated[int, Field(ge=1)] = 100_000,
        cache_gb: Annotated[float, Field(gt=0)] = 50.0,
        fit: Fit = "crop",
        max_pixels: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        self.channels: int = channels
        self._max_pixels = max_pixels
        self._path, self._test, self._test_fraction = path, test, test_fraction
        self._canvas, self._fit, self._labels = canvas, fit, labels
        self._shuffle, self._window = shuffle, window
        self._files = remote.Files(cache_gb)

    def split(self, name: Split, size: Size | None = None) -> Pictures:
        wanted, canvas = checked(name), self._canvas or canvas_for(size or 224)
        listed, classes = self._listed(wanted)
        shards = expanded(self._path) if listed is None else listed
        found = [self._samples(shard) for shard in shards]
        _tell_ignored(self._path, found)
        if not classes and self._labels == "auto":
            before = self._listed("train")[0] if wanted == "test" else None
            classes = _numbers([*found, *map(self._samples, before or ())])
        pictures = ShardPictures(shards, found, canvas, self.channels, self._files)
        pictures.fit, pictures.max_pixels = self._fit, self._max_pixels
        if listed is None:
            hashes_N = units(pictures.keys(), f"shards\0{self._path}")
            pictures.keep((hashes_N < self._test_fraction) == (wanted == "test"))
        if not len(pictures):
            what = f"no pictures in the {wanted} set of its {len(shards)} shards"
            raise DataError(f"{remote.redacted(self._path)}: {what}: check the path, or set test or test_fraction")
        return self._finished(pictures, classes)

    def _finished(self, pictures: "ShardPictures", classes: tuple[str, ...]) -> Pictures:
        has_N = pictures.numbers_N != NO_LABEL
        if self._labels == "auto" and has_N.all():
            if int(pictures.numbers_N.max()) >= len(classes):
                raise DataError(f"{remote.redacted(self._path)}: labels beyond its classes: pack again")
            pictures.classes = classes
            pictures.labels = torch.from_numpy(pictures.numbers_N.copy())
        elif self._labels == "auto" and has_N.any():
            first = pictures.name(int(np.argmin(has_N)))
            warnings.warn(
                f"data: {int((~has_N).sum())} samples have no label, first {first}: all go without", stacklevel=3
            )
        far = any(remote.is_remote(shard.place) for shard in pictures.shards)
        if self._shuffle == "window" or (self._shuffle == "auto" and (far or len(pictures) > EXACT)):
            pictures.windows = Windows(torch.from_numpy(pictures.sizes_of_shards()), self._window)
        return pictures

    def _listed(self, wanted: Split) -> tuple[list[Shard] | None, tuple[str, ...]]:
        """The shards of the split and the classes; None where a hash splits."""
        if listing := read_listing(self._path):
            if wanted not in listing:
                raise DataError(f"{remote.redacted(self._path)}: holds no {wanted} set: pack one")
            return listing[wanted]
        if self._test is not None:
            tell_overlap(self._path, expanded(self._path), expanded(self._test))
            return expanded(self._path if wanted == "train" else self._test), ()
        if not remote.is_remote(self._path):
            with refusing(self._path):
                home = Path(os.path.expanduser(self._path))  # noqa: PTH111
                inner = {each: home / each for each in ("train", "test", "val") if (home / each).is_dir()}
            if "train" in inner:
                folder = inner["train"] if wanted == "train" else inner.get("test", inner.get("val"))
                if folder is None:
                    raise DataError(f"{printable(home)}: no test or val folder beside train: add one")
                return expanded(str(folder)), ()
        return None, ()

    def _samples(self, shard: Shard) -> Samples:
        if not remote.is_remote(shard.place):
            return samples_of(shard.place)
        beside = remote.read(f"{shard.place}.idx")
        if beside is not None:
            if found := unsealed(beside, {} if shard.size is None else {"bytes": shard.size}):
                return found
            warnings.warn(
                f"{remote.redacted(shard.place)}.idx: damaged, the shard is fetched: pack it again", stacklevel=2
            )
        return samples_of(self._files.path(*shard), remote.redacted(shard.place))


class ShardPictures(Encoded):
    """Pictures at offsets of shards; each read is held against the crc32 of the index.

    `numbers_N`: the label of each sample in its shard, or NO_LABEL. `windows`: how to shuffle, None for all.
    """

    def __init__(
        self, shards: Sequence[Shard], found: Sequence[Samples], size: Size, channels: int, files: remote.Files
    ) -> None:
        self.shards = list(shards)
        self._files = files
        self._names = Names(list(itertools.chain.from_iterable(samples.names for samples in found)))
        counts = [len(samples.names) for samples in found]
        self._shard_N = np.repeat(np.arange(len(found), dtype=np.int32), counts)
        columns = [np.concatenate([samples[k] for samples in found] or [np.zeros(0, np.int64)]) for k in range(1, 5)]
        self._offsets_N, self._sizes_N, self._crcs_N, self.numbers_N = columns
        self.labels, self.classes, self.shape = None, (), (channels, *sides(size))
        self.windows: Windows | None = None
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def keys(self) -> list[bytes]:
        """`shard/member` of each picture, without the folder of the shards."""
        homes = [os.fsencode(posixpath.basename(shard.place)) + b"/" for shard in self.shards]
        return [homes[s] + name for s, name in zip(self._shard_N.tolist(), self._names, strict=True)]

    def keep(self, mask_N: np.ndarray) -> None:
        """Forgets the pictures where the mask is False."""
        self._names = Names(chosen(list(self._names), mask_N))
        for column in ("_shard_N", "_offsets_N", "_sizes_N", "_crcs_N", "numbers_N"):
            setattr(self, column, getattr(self, column)[mask_N])

    def sizes_of_shards(self) -> np.ndarray:
        """How many pictures each shard holds, int64."""
        return np.bincount(self._shard_N, minlength=len(self.shards)).astype(np.int64)

    def __len__(self) -> int:
        return len(self._names)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of shard names, member names, sizes, crc32 sums and labels: no picture is read."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(os.fsencode(posixpath.basename(shard.place)) + b"\0")
        for column in (self._shard_N, self._sizes_N, self._crcs_N, self.numbers_N):
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update(b"\0".join(self._names))
        return digest.hexdigest()

    def name(self, i: int) -> str:
        i = range(len(self))[i]
        return f"{remote.redacted(self.shards[self._shard_N[i]].place)}/{os.fsdecode(self._names[i])}"

    def contents(self, i: int) -> bytes:
        i = range(len(self))[i]
        offset, size = int(self._offsets_N[i]), int(self._sizes_N[i])
        where = f"at byte {offset} of its shard"
        if size > MAX_BYTES:
            raise BadPicture(self.name(i), f"{size} bytes {where}, more than the {MAX_BYTES} allowed")
        try:
            data = self._handle(int(self._shard_N[i])).read(size, offset)
        except OSError as error:
            raise BadPicture(self.name(i), f"{error.strerror or error} {where}") from None
        if len(data) < size:
            raise BadPicture(self.name(i), f"{len(data)} of {size} bytes {where}: cut short")
        if zlib.crc32(data) != self._crcs_N[i]:
            raise BadPicture(self.name(i), f"damaged: wrong crc32 of {size} bytes {where}")
        return data

    def _handle(self, s: int) -> "_Open":
        """The open shard; at most 64 are. One that another thread still reads from closes when that is done."""
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
    """A file that is read by position, which processes and threads may share; it closes with its last user."""

    def __init__(self, path: str) -> None:
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._handle, size, offset)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)


def _numbers(found: Sequence[Samples]) -> tuple[str, ...]:
    """0 … the highest label, as names."""
    return tuple(map(str, range(1 + max((int(s.labels_N.max(initial=NO_LABEL)) for s in found), default=NO_LABEL))))


def _tell_ignored(place: str, found: Sequence[Samples]) -> None:
    """One line for all that was passed over."""
    counts: Counter[str] = Counter()
    for samples in found:
        counts.update({str(why): int(count) for why, count in samples.ignored.items()})
    if counts:
        listed = ", ".join(f"{count} × {printable(why)}" for why, count in counts.most_common(10))
        warnings.warn(f"{remote.redacted(place)}: passed over, never opened: {listed}", stacklevel=3)
