"""Tar shards of the WebDataset layout as a source: packed or foreign, here or in a remote store."""

import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from lookalike.data import remote
from lookalike.data.folders.index import units
from lookalike.data.images import Annotations, Images
from lookalike.data.images.shards import ShardImages
from lookalike.data.order import Windows
from lookalike.data.reading import FileSource
from lookalike.data.sources import Split, checked
from lookalike.data.webdataset.doubt import DOTS, SEEMS, SEVERAL_IMAGES
from lookalike.data.webdataset.keys import FOLDER, Keys, keys_of
from lookalike.data.webdataset.listing import (
    Shard,
    expanded,
    read_listing,
    split_folders,
    tell_overlap,
)
from lookalike.data.webdataset.members import SEVERAL_LABELS
from lookalike.data.webdataset.numbering import by_folder, numbered
from lookalike.data.webdataset.samples import NO_LABEL, Samples, plain, samples_of, unsealed
from lookalike.errors import DataError
from lookalike.folder import at_home
from lookalike.recipe import SINCE_0_2, Size

# Above it random reads over all shards no longer fit a machine's memory of recent pages.
EXACT = 50_000_000


class Shards(FileSource):
    """Tar shards: a folder that `lookalike pack` wrote, a folder of .tar files (and folders of
    them), a glob, or braces as in s3://bucket/train-{000..146}.tar. `test`: the same for the test
    set.

    A packed folder keeps classes, labels and splits. Otherwise PATH/train and PATH/test (or val),
    also called training, testing, valid and validation, in any case, hold the splits, or else a
    hash of each sample's shard and name does. `auto` labels a set in which every sample has a
    label. `image_key`: what ends the name of the member that is the image, after the sample's name
    and a dot, as in jpg or input.png; several by preference, as in jpg;png; by default what is an
    image, where a sample has one. `label_key`: the same for the label, as in target.cls; a path
    into the sample's JSON, as in json:label or json:annotations.category; or folder, the name of
    the folder in which the member lies in its shard; by default cls, or else json:label. Labels are
    whole numbers, or text whose sorted values are the classes. `shuffle: window` mixes `window`
    images of neighbouring shards, permuted anew each epoch, in place of all of them; `auto` does so
    for remote shards and above 50 million images. Remote shards are kept in at most `cache_gb`.
    `max_pixels`: how many pixels an image may have, whatever memory and time it takes; by default
    as many as decode below 200 MB: 100 million of a JPEG, 25 million of other formats.
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
        image_key: Annotated[str | None, SINCE_0_2] = None,
        label_key: Annotated[str | None, SINCE_0_2] = None,
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        self._path, self._test, self._test_fraction = path, test, test_fraction
        self._labels = labels
        self._shuffle, self._window = shuffle, window
        self._files = remote.Files(cache_gb)
        self._keys = keys_of(image_key, label_key)
        self._by_folder = label_key == FOLDER

    def split(self, name: Split, size: Size | None = None) -> Images:
        wanted = checked(name)
        listed, classes = self._listed(wanted)
        shards = expanded(self._path, self.inventory.leave_out) if listed is None else listed
        found = self._found(shards)
        self._note(shards, found)
        if self._labels == "auto" and not (classes and plain(self._keys) and not self._by_folder):
            before = self._listed("train")[0] if wanted == "test" else None
            found, classes = numbered(found, self._found(before or ()), self._place)
        images = ShardImages(shards, found, self.reading(size), self._files)
        if listed is None and name != "all":
            hashes_N = units(images.keys(), f"shards\0{self._path}")
            images.keep((hashes_N < self._test_fraction) == (wanted == "test"))
        if not len(images):
            what = f"no images in the {wanted} set of its {len(shards)} shards"
            raise DataError(f"{self._place}: {what}: check the path, or set test or test_fraction")
        return self.settled(self._finished(images, classes), name)

    @property
    def _place(self) -> str:
        return remote.redacted(self._path)

    def _finished(self, images: ShardImages, classes: tuple[str, ...]) -> ShardImages:
        has_N = images.numbers_N != NO_LABEL
        if self._labels == "auto" and has_N.all():
            if int(images.numbers_N.max()) >= len(classes):
                raise DataError(f"{self._place}: labels beyond its classes: pack again")
            images.annotations = Annotations(torch.from_numpy(images.numbers_N.copy()), classes)
        elif self._labels == "auto" and has_N.any():
            first, number = images.name(int(np.argmin(has_N))), int((~has_N).sum())
            self.inventory.leave_out("no label", first, number)
            what = f"{number} samples have no label, first {first}: all go without"
            warnings.warn(f"data: {what}", stacklevel=3)
        far = any(remote.is_remote(shard.place) for shard in images.shards)
        if self._shuffle == "window" or (self._shuffle == "auto" and (far or len(images) > EXACT)):
            images.windows = Windows(torch.from_numpy(images.sizes_of_shards()), self._window)
        return images

    def _listed(self, wanted: Split) -> tuple[list[Shard] | None, tuple[str, ...]]:
        """The shards of the split and the classes; None where a hash splits."""
        if listing := read_listing(self._path):
            if wanted not in listing:
                raise DataError(f"{self._place}: holds no {wanted} set: pack one")
            return listing[wanted]
        leave_out = self.inventory.leave_out
        if self._test is not None:
            tell_overlap(self._path, expanded(self._path), expanded(self._test))
            return expanded(self._path if wanted == "train" else self._test, leave_out), ()
        if not remote.is_remote(self._path):
            home = str(at_home(self._path, DataError))
            if inner := split_folders(home, leave_out):
                folder = inner.get(wanted, inner.get("val") if wanted == "test" else None)
                if folder is None:
                    raise DataError(f"{self._place}: no test or val folder beside train: add one")
                return expanded(folder, leave_out), ()
        return None, ()

    def _found(self, shards: Sequence[Shard]) -> list[Samples]:
        """The samples of the shards; where those of one have dots in their names, all may."""
        found = [self._samples(shard, self._keys) for shard in shards]
        dots = self._dots(found)
        if dots:
            keys = self._keys._replace(dots=dots)
            again = [self._samples(shard, keys) for shard in shards]
            self._dots(again)  # which refuses what still is in doubt
            # A shard that is of another make, and clear as it is, stays so.
            found = [max(pair, key=_worth) for pair in zip(found, again, strict=True)]
        self._hold_keys(found)
        if dots and not self._keys.image:
            last = "the last dot" if dots == 1 else "the last dot but one"
            what = f"names of samples have dots of their own: they end at {last}"
            warnings.warn(f"{self._place}: {what}; image_key says otherwise", stacklevel=3)
        return [*map(by_folder, found)] if self._by_folder else found

    def _dots(self, found: Sequence[Samples]) -> int:
        """At which dot the samples' names end, 0 for the first. Raises DataError where a sample has
        several images.
        """
        doubts = {samples.doubt: samples.examples for samples in reversed(found)}
        for dots in (1, 2):
            if DOTS[dots] in doubts:
                return dots
        if suffixes := doubts.get(SEVERAL_IMAGES):
            named = next(iter(suffixes.values()), "")
            raise DataError(
                f"{self._place}: samples have several images, as {named}: say which is meant with "
                f"data.image_key={named.split(' ')[0]}, or what ends every name, as in "
                "data.image_key=png, where each image is a sample"
            )
        return int(SEEMS in doubts or bool(self._misses(found)))

    def _misses(self, found: Sequence[Samples]) -> str:
        """The key of the recipe that finds nothing in the shards, if one does."""
        if not any(samples.names for samples in found):
            return "image_key" if found and self._keys.image else ""
        labelled = any((samples.labels_N != NO_LABEL).any() for samples in found)
        return "label_key" if self._keys.label and not labelled else ""

    def _hold_keys(self, found: Sequence[Samples]) -> None:
        """Warns of samples with several labels. Raises DataError for a key that finds nothing."""
        if key := self._misses(found):
            seen = sorted({why for samples in found for why in samples.ignored})
            raise DataError(
                f"{self._place}: data.{key}: no sample has such a member; other members are "
                f"{', '.join(seen)[:200] or 'none'}"
            )
        several = [samples for samples in found if SEVERAL_LABELS in samples.ignored]
        if several and self._labels == "auto" and not self._by_folder:
            number = sum(samples.ignored[SEVERAL_LABELS] for samples in several)
            first = several[0].examples[SEVERAL_LABELS]
            what = f"{number} samples have several labels, first {first}: none is taken"
            warnings.warn(f"{self._place}: {what}: choose with data.label_key", stacklevel=4)

    def _note(self, shards: Sequence[Shard], found: Sequence[Samples]) -> None:
        """Tells the inventory of members that were passed over."""
        for shard, samples in zip(shards, found, strict=True):
            for why, number in samples.ignored.items():
                inside = samples.examples.get(why, "")
                name = f"{remote.redacted(shard.place)}/{inside}".rstrip("/")
                self.inventory.leave_out(why, name, number)

    def _samples(self, shard: Shard, keys: Keys) -> Samples:
        if not remote.is_remote(shard.place):
            return samples_of(shard.place, keys=keys)
        beside = remote.read(f"{shard.place}.idx") if plain(keys) else None
        if beside is not None:
            if found := unsealed(beside, {} if shard.size is None else {"bytes": shard.size}):
                return found
            warnings.warn(
                f"{remote.redacted(shard.place)}.idx: damaged, the shard is fetched: pack it again",
                stacklevel=2,
            )
        return samples_of(self._files.path(*shard), remote.redacted(shard.place), keys)


def _worth(samples: Samples) -> tuple[bool, int, int]:
    """How much is understood of a shard."""
    return not samples.doubt, len(samples.names), int((samples.labels_N != NO_LABEL).sum())
