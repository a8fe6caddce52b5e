"""Where images come from: a name and a few values in a recipe -> a train and a test set of
`Images`.

A source's constructor is the schema of its recipe section. It touches no file; `split` does.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lookalike.data.digits import digits
from lookalike.data.folders.index import unit, units
from lookalike.data.folders.labelling import ClassFolder, Labels, Part, Rule
from lookalike.data.folders.places import folder_at
from lookalike.data.folders.roots import Keys, Links, Root, refuse_empty, refuse_twice
from lookalike.data.images import NOTHING, Annotations, ArrayImages, FileImages, Images, subset
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.images.roots import ManyRoots
from lookalike.data.inventory import Inventory
from lookalike.data.mapped import kept
from lookalike.data.reading import FileSource, Split
from lookalike.errors import DataError, printable
from lookalike.recipe import SINCE_0_2, Size

__all__ = ["Digits", "Folder", "Source", "Split", "checked", "folder_at", "stratified"]

Paths = str | Annotated[tuple[str, ...], Field(min_length=1)]


class Source(Protocol):
    """Images with `channels` channels in two splits."""

    @property
    def channels(self) -> int: ...
    @property
    def inventory(self) -> Inventory:
        """What the splits that were made so far left out."""

    def split(self, name: Split, size: Size | None = None) -> Images:
        """The train or the test set, for views of `size`. Raises DataError when there is none.

        `all`: the train set with what would only be held out of it, for one who needs no test set;
        asked for where the source says `holds_out`, as one that may divide one set by a hash does.
        """


class Digits:
    """Scikit-learn's 1,797 handwritten digits, grey, 8 x 8: no download, for trying things out."""

    channels = 1

    def __init__(self, test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2) -> None:
        self._test_fraction = test_fraction
        self.inventory = Inventory()

    def split(self, name: Split, size: Size | None = None) -> Images:
        values_NHW, target_N = digits()
        images_NHW = torch.from_numpy(np.rint(values_NHW * (255 / 16)).astype(np.uint8))
        labels_N = torch.from_numpy(target_N)
        classes = tuple(str(digit) for digit in range(10))
        known = Annotations(labels_N, classes)
        everything = ArrayImages(images_NHW.unsqueeze(1), known, "digits")
        is_test_N = stratified(labels_N, self._test_fraction)
        return subset(everything, torch.nonzero(is_test_N == (checked(name) == "test")).flatten())


class Folder(FileSource):
    """A folder of image files: PATH/train and PATH/test, or one set split by a hash of each
    relative path.

    The hash keeps every image in its split when others are added; it does not balance the classes.
    Of images without labels nothing is held out where no stage asks for a test set. The sets may be
    called training, testing, val, valid or validation too, in any case; without PATH/test, or where
    only PATH/val has class folders, that is the test set. `path` may also be a list of folders,
    whose images are one set and whose classes are one where they have one name; or a .txt of a path
    a line, relative to its folder or absolute, perhaps with a tab and a class behind it.

    Files are images by their suffix, or else by their content. Subfolders with images are the
    classes, in sorted order of the train set; classes that only the test set has come after them.
    `labels`: `auto` takes at least two subfolders with images as classes, and leaves out images
    beside them where those are few; `folders` refuses these; `class_folder`: which of an image's
    folders is its class, the first, the last, or the whole path; `links`: those to files and
    folders are followed, each folder once, or only where they stay inside PATH.
    """

    holds_out = names_test = True

    def __init__(
        self,
        path: Paths,
        train: str = "train",
        test: str = "test",
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        labels: Labels = "auto",
        class_folder: Annotated[ClassFolder, SINCE_0_2] = "first",
        links: Annotated[Links, SINCE_0_2] = "follow",
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        self._given = [path] if isinstance(path, str) else list(path)
        self._keys = Keys(train, test, Rule(labels, class_folder), links)
        self._test_fraction, self._below = test_fraction, list[Root]()
        self._sides: dict[tuple[str, str, float, bool], Part] = {}

    def split(self, name: Split, size: Size | None = None) -> Images:
        wants_test, share = checked(name) == "test", 0.0 if name == "all" else self._test_fraction
        roots = self._roots()
        trains = [(root, part) for root in roots for part in root.trains]
        classes = self._united([part for _, part in trains], ())
        parts = [
            (root, part if root.is_divided else self._divided(part, root.place, share, wants_test))
            for root, part in trains
            if not (wants_test and root.is_divided)
        ]
        if wants_test:
            parts += self._tests(roots, classes)
            classes = self._united([part for _, part in parts], classes) if classes else ()
        if not any(part.paths for _, part in parts):
            count = sum(len(part.paths) for _, part in trains)
            which = f"none of its {count} images is in the {checked(name)} set"
            raise DataError(f"{self._place()}: {which}; add images, or change test_fraction")
        return self.settled(self._images(parts, classes, self.reading(size)), name)

    def _divided(self, part: Part, place: Path, share: float, wants_test: bool) -> Part:
        """One side of a part, made once: what is found out of its files is known for every size."""
        key = str(place), str(part.root), share, wants_test
        if key not in self._sides:
            self._sides[key] = divided(part, place, share, wants_test)
        return self._sides[key]

    def _roots(self) -> list[Root]:
        """The folders and lists, found once. Raises DataError for one without images."""
        if not self._below:
            many = len(self._given) > 1
            shown = [f"{given.rstrip('/')}/" if many else "" for given in self._given]
            given = zip(self._given, shown, strict=True)
            roots = [Root(path, before, self._keys, self.inventory) for path, before in given]
            refuse_twice(roots)
            for part in (part for root in roots for part in root.trains):
                refuse_empty(part, self.inventory)
            self._below = roots
        return self._below

    def _tests(self, roots: list[Root], classes: tuple[bytes, ...]) -> Iterator[tuple[Root, Part]]:
        """The test sets that the roots name. Raises DataError where none has images."""
        named = [root for root in roots if root.is_divided]
        found = [(root, root.test(set(classes))) for root in named]
        for root, part in found:
            if part is not None:
                refuse_empty(part, self.inventory)
                yield root, part
        if named and len(named) == len(roots) and all(part is None for _, part in found):
            where = named[0].sets.root / self._keys.test
            folder_at(where, "add it, or name the folder that holds the test set with `test`")

    def _united(self, parts: list[Part], known: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """The classes of all parts: those known, then others in sorted order; none where a part has
        none, which is remarked where another has some.
        """
        words = {word for part in parts for word in part.words}
        bare = [part for part in parts if part.numbers_N is None and part.paths]
        if words and bare:
            self.inventory.remark(
                f"{printable(bare[0].root)}: no labels, so all go without: sort its images into "
                "class folders, or leave it out"
            )
        return () if bare else (*known, *sorted(words - set(known)))

    def _images(
        self, parts: list[tuple[Root, Part]], classes: tuple[bytes, ...], reading: Any
    ) -> EncodedImages:
        """The images of the parts, one after the other."""
        known = NOTHING
        if classes:
            index = {word: label for label, word in enumerate(classes)}
            labels = [_labels(part, index) for _, part in parts]
            labels_N = labels[0] if len(labels) == 1 else np.concatenate(labels)
            names = tuple(os.fsdecode(word) for word in classes)
            known = Annotations(torch.from_numpy(kept(labels_N)), names)
        walls = [root.wall(part) for root, part in parts] if self._keys.links == "inside" else None
        if len(parts) == 1:
            wall, (_, part) = walls[0] if walls else None, parts[0]
            return FileImages(part.root, part.paths, reading, known, within=wall)
        return ManyRoots(
            [(part.root, part.paths) for _, part in parts], reading, known, within=walls
        )

    def _place(self) -> str:
        first = printable(self._roots()[0].place)
        more = len(self._given) - 1
        return f"{first} and {more} more" if more else first


def stratified(labels_N: Tensor, test_fraction: float) -> Tensor:
    """Which rows are for testing, bool (N,): a fixed hash's share of each class, never all or
    none.
    """
    is_test_N = torch.zeros(len(labels_N), dtype=torch.bool)
    for label in set(labels_N.tolist()):
        rows = torch.nonzero(labels_N == label).flatten().tolist()
        rows.sort(key=lambda row: unit(b"stratified/%d" % row))
        is_test_N[rows[: min(max(1, round(test_fraction * len(rows))), len(rows) - 1)]] = True
    return is_test_N


def checked(name: Split) -> Literal["train", "test"]:
    """The name of a split, `train` for `all`. Raises ValueError for any other."""
    if name not in ("train", "test", "all"):
        raise ValueError(f"a split is train or test, not {name!r}")
    return "test" if name == "test" else "train"


def divided(part: Part, place: Path, share: float, wants_test: bool) -> Part:
    """The images whose hash is below `share`, or the others."""
    if share == 0:
        return part.of(np.zeros(len(part.paths), bool)) if wants_test else part
    mask_N = (units(part.paths, place.resolve()) < share) == wants_test
    return part.of(mask_N)


def _labels(part: Part, index: dict[bytes, int]) -> np.ndarray:
    """The class of each image by its number in the whole set, int64 (N,)."""
    numbers = np.array([index[word] for word in part.words], np.int64)
    return numbers[part.numbers_N] if len(part.words) else np.empty(0, np.int64)
