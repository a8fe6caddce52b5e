"""Tar shards of the WebDataset layout as a source: packed or foreign, here or in a remote store."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from lookalike.data import remote
from lookalike.data.images import Annotations, Images
from lookalike.data.images.shards import ShardImages
from lookalike.data.index import os_errors_as, units
from lookalike.data.listing import Shard, expanded, read_listing, tell_overlap
from lookalike.data.order import Windows
from lookalike.data.reading import FileSource
from lookalike.data.samples import NO_LABEL, Samples, samples_of, unsealed
from lookalike.data.sources import Split, checked
from lookalike.errors import DataError, printable
from lookalike.recipe import Size

# Above it random reads over all shards no longer fit a machine's memory of recent pages.
EXACT = 50_000_000


class Shards(FileSource):
    """Tar shards: a folder that `lookalike pack` wrote, a folder of .tar files, a glob, or braces
    as in s3://bucket/train-{000..146}.tar. `test`: the same for the test set.

    A packed folder keeps classes, labels and splits. Otherwise PATH/train and PATH/test (or val)
    hold the splits, or else a hash of each sample's shard and name does. `auto` labels a set in
    which every sample has a label. `shuffle: window` mixes `window` images of neighbouring shards,
    permuted anew each epoch, in place of all of them; `auto` does so for remote shards and above 50
    million images. Remote shards are kept in at most `cache_gb`. `max_pixels`: how many pixels an
    image may have, whatever memory and time it takes; by default as many as decode below 200 MB:
    100 million of a JPEG, 25 million of other formats.
    """

    holds_out = True

    def __init__(
        self,
        path: str,
        test: str | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        labels: Literal["auto", "none"] = "auto",
        shuffle: Literal["auto", "exact", "window"] = "auto",
        window: Annotated[int, Field(ge=1)] = 100_000,
        cache_gb: Annotated[float, Field(gt=0)] = 50.0,
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        self._path, self._test, self._test_fraction = path, test, test_fraction
        self._labels = labels
        self._shuffle, self._window = shuffle, window
        self._files = remote.Files(cache_gb)

    def split(self, name: Split, size: Size | None = None) -> Images:
        wanted = checked(name)
        listed, classes = self._listed(wanted)
        shards = expanded(self._path) if listed is None else listed
        found = [self._samples(shard) for shard in shards]
        _tell_ignored(self._path, found)
        if not classes and self._labels == "auto":
            before = self._listed("train")[0] if wanted == "test" else None
            classes = _numbers([*found, *map(self._samples, before or ())])
        images = ShardImages(shards, found, self.reading(size), self._files)
        if listed is None and name != "all":
            hashes_N = units(images.keys(), f"shards\0{self._path}")
            images.keep((hashes_N < self._test_fraction) == (wanted == "test"))
        if not len(images):
            what = f"no images in the {wanted} set of its {len(shards)} shards"
            raise DataError(
                f"{remote.redacted(self._path)}: {what}: check the path, or set test or "
                "test_fraction"
            )
        return self.settled(self._finished(images, classes), name)

    def _finished(self, images: ShardImages, classes: tuple[str, ...]) -> ShardImages:
        has_N = images.numbers_N != NO_LABEL
        if self._labels == "auto" and has_N.all():
            if int(images.numbers_N.max()) >= len(classes):
                raise DataError(
                    f"{remote.redacted(self._path)}: labels beyond its classes: pack again"
                )
            images.annotations = Annotations(torch.from_numpy(images.numbers_N.copy()), classes)
        elif self._labels == "auto" and has_N.any():
            first = images.name(int(np.argmin(has_N)))
            warnings.warn(
                f"data: {int((~has_N).sum())} samples have no label, first {first}: all go without",
                stacklevel=3,
            )
        far = any(remote.is_remote(shard.place) for shard in images.shards)
        if self._shuffle == "window" or (self._shuffle == "auto" and (far or len(images) > EXACT)):
            images.windows = Windows(torch.from_numpy(images.sizes_of_shards()), self._window)
        return images

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
            with os_errors_as(self._path):
                home = Path(os.path.expanduser(self._path))  # noqa: PTH111
                inner = {
                    each: home / each for each in ("train", "test", "val") if (home / each).is_dir()
                }
            if "train" in inner:
                folder = (
                    inner["train"] if wanted == "train" else inner.get("test", inner.get("val"))
                )
                if folder is None:
                    raise DataError(
                        f"{printable(home)}: no test or val folder beside train: add one"
                    )
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
                f"{remote.redacted(shard.place)}.idx: damaged, the shard is fetched: pack it again",
                stacklevel=2,
            )
        return samples_of(self._files.path(*shard), remote.redacted(shard.place))


def _numbers(found: Sequence[Samples]) -> tuple[str, ...]:
    """0 … the highest label, as names."""
    return tuple(
        map(
            str,
            range(
                1 + max((int(s.labels_N.max(initial=NO_LABEL)) for s in found), default=NO_LABEL)
            ),
        )
    )


def _tell_ignored(place: str, found: Sequence[Samples]) -> None:
    """One line for all that was passed over."""
    counts: Counter[str] = Counter()
    for samples in found:
        counts.update({str(why): int(count) for why, count in samples.ignored.items()})
    if counts:
        listed = ", ".join(f"{count} × {printable(why)}" for why, count in counts.most_common(10))
        warnings.warn(
            f"{remote.redacted(place)}: passed over, never opened: {listed}", stacklevel=3
        )
