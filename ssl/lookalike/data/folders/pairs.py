"""Folders of images and of masks, however they are named: which are a set's, and which image has
which mask.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lookalike.data.folders.index import scan
from lookalike.data.folders.layouts import BESIDE, TEST, TRAIN, VAL
from lookalike.data.folders.places import folder_at, os_errors_as
from lookalike.data.inventory import Inventory
from lookalike.errors import DataError, printable

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit")
MASKS = ("masks", "mask", "annotations", "annotation", "segmentationclass", "gtfine", "labels")
NO_MASK, NO_IMAGE = "no mask", "no image of the mask"
TWICE, UNLISTED = "another of the same name", "in no list of a set"
_LISTS = "ImageSets/Segmentation"


class Keys(NamedTuple):
    """What a recipe names: folders of images and masks, sets, and what of a name ends it."""

    images: str | None = None
    masks: str | None = None
    train: str = "train"
    test: str = "test"
    image_ending: str = ""
    mask_ending: str = ""


class Pairs(NamedTuple):
    """N images and their masks, paths below one root, sorted by image."""

    images: list[bytes]
    masks: list[bytes]


class Place(NamedTuple):
    """Where the images and the masks of a set lie, and the list that names its own, if one does."""

    images: Path
    masks: Path
    listed: Path | None = None


def places_in(root: Path, keys: Keys, inventory: Inventory) -> dict[str, Place]:
    """The `train` and `test` sets below a root; `all` where it has to be divided.

    `images/` and `masks/` lie in the sets, or the sets in them, or a list names each set's, as
    Pascal VOC's. Raises DataError where there are no such folders.
    """
    folder_at(root, "give the folder that holds images/ and masks/")
    both = _both(root, keys)
    if both is not None:
        found = _listed(root, both) or _inner(both, keys) or {"all": Place(*both)}
        _beside(root, [both[0].name, both[1].name, _LISTS.split("/")[0]], inventory)
        return found
    outer = {name: _both(place, keys) for name, place in _sets(root, keys)}
    found = {name: Place(*pair) for name, pair in outer.items() if pair is not None}
    if "train" not in found:
        raise DataError(
            f"{printable(root)}: no folders of images and masks: looked for images/ and masks/ or "
            "annotations/, in train/ and val/ or with these in them: name them with `images` and "
            "`masks`"
        )
    _beside(root, [place.images.parent.name for place in found.values()], inventory)
    return found


def pairs_of(root: Path, place: Place, keys: Keys, inventory: Inventory) -> Pairs:
    """The images of a set that have a mask; all else that lies there goes into the inventory."""
    images = _stems(root, place.images, keys.image_ending, inventory)
    masks = _stems(root, place.masks, keys.mask_ending, inventory)
    if place.listed is not None:
        names = _names(place.listed)
        there = images.keys() & masks.keys()
        missing = [name for name in names if name not in there]
        inventory.leave_out_all(f"listed in {place.listed.name}", map(os.fsdecode, missing))
        wanted = set(names)
        images = {stem: path for stem, path in images.items() if stem in wanted}
        masks = {stem: path for stem, path in masks.items() if stem in wanted}
    lone = (path for stem, path in images.items() if stem not in masks)
    inventory.leave_out_all(NO_MASK, map(os.fsdecode, lone))
    lone = (path for stem, path in masks.items() if stem not in images)
    inventory.leave_out_all(NO_IMAGE, map(os.fsdecode, lone))
    stems = sorted((path, stem) for stem, path in images.items() if stem in masks)
    return Pairs([path for path, _ in stems], [masks[stem] for _, stem in stems])


def _both(root: Path, keys: Keys) -> tuple[Path, Path] | None:
    """The folders of images and of masks in a folder."""
    found = []
    for given, words in ((keys.images, IMAGES), (keys.masks, MASKS)):
        if given is not None:
            there = [root / given] if (root / given).is_dir() else []
        else:
            there = _called(root, words)
        if not there:
            return None
        found.append(there[0])
    if found[0].name.lower() == "jpegimages" and keys.masks is None:
        # Beside Pascal VOC's SegmentationClass lie the boxes, in Annotations.
        found[1:] = _called(root, ("segmentationclass",)) or found[1:]
    return found[0], found[1]


def _listed(root: Path, both: tuple[Path, Path]) -> dict[str, Place] | None:
    """The sets that lists in ImageSets/Segmentation name."""
    lists = root / _LISTS
    train, val = lists / "train.txt", lists / "val.txt"
    if not train.is_file():
        return None
    found = {"train": Place(*both, train)}
    return found | ({"test": Place(*both, val)} if val.is_file() else {})


def _inner(both: tuple[Path, Path], keys: Keys) -> dict[str, Place] | None:
    """The sets as folders within images and within masks."""
    found: dict[str, Place] = {}
    masks = {place.name.lower(): place for place in _folders(both[1])}
    for name, place in _sets(both[0], keys):
        if place.name.lower() in masks and name not in found:
            found[name] = Place(place, masks[place.name.lower()])
    return found if "train" in found else None


def _sets(root: Path, keys: Keys) -> Iterator[tuple[str, Path]]:
    """Folders that may be the train set or the test set, the likeliest first."""
    for name, given, words in (("train", keys.train, TRAIN), ("test", keys.test, (*TEST, *VAL))):
        wanted = words if given == name else (given.lower(),)
        yield from ((name, place) for place in _called(root, wanted))


def _called(root: Path, words: Sequence[str]) -> list[Path]:
    """The folders of these names, in any case, word by word."""
    folders = _folders(root)
    return [place for word in words for place in folders if place.name.lower() == word]


def _folders(root: Path) -> list[Path]:
    with os_errors_as(root):
        return sorted(place for place in root.iterdir() if place.is_dir())


def _beside(root: Path, taken: Sequence[str], inventory: Inventory) -> None:
    """Notes what else lies in the root."""
    with os_errors_as(root):
        others = sorted(place.name for place in root.iterdir() if place.name not in taken)
    inventory.leave_out_all(BESIDE, others)


def _stems(root: Path, folder: Path, ending: str, inventory: Inventory) -> dict[bytes, bytes]:
    """The images below a folder: the path without suffix and ending -> the path below the root."""
    paths, left_out = scan(folder)
    before = os.fsencode(os.path.relpath(folder, root)) + b"/"
    for why, names in left_out.items():
        inventory.leave_out_all(why, (os.fsdecode(before + name) for name in names))
    found: dict[bytes, bytes] = {}
    for path in paths:
        stem = path.rpartition(b".")[0] if b"." in path.rpartition(b"/")[2] else path
        if not stem.endswith(os.fsencode(ending)):
            inventory.leave_out(f"not {ending}", os.fsdecode(before + path))
            continue
        stem = stem[: len(stem) - len(os.fsencode(ending))]
        if stem in found:
            inventory.leave_out(TWICE, os.fsdecode(before + path))
            continue
        found[stem] = before + path
    return found


def _names(file: Path) -> list[bytes]:
    """The names that a list gives, one a line."""
    with os_errors_as(file):
        lines = file.read_bytes().splitlines()
    return list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
