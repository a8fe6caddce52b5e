"""Images with masks, a class for each pixel: pairs of files in two folders, as ADE20K, Pascal VOC
and most people keep them.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from lookalike.data.decode import BadImage
from lookalike.data.folders.index import units
from lookalike.data.folders.pairs import Keys, Pairs, Place, pairs_of, places_in
from lookalike.data.folders.places import os_errors_as
from lookalike.data.glimpse import spread
from lookalike.data.images.masked import IGNORED, MOST_CLASSES, MaskedImages, Numbers
from lookalike.data.reading import FileSource, Split
from lookalike.data.sources import checked
from lookalike.errors import DataError, printable
from lookalike.folder import at_home
from lookalike.recipe import Size

Classes = str | Annotated[int, Field(ge=2, le=MOST_CLASSES)] | tuple[str, ...]
LOOKED_AT = 1024
"""Of so many masks, evenly spread, the numbers are looked at where no classes are named."""
_MOST_BYTES = 1 << 24


class Masks(FileSource):
    """A folder with images and the masks of their pixels' classes: `images/` and `masks/` or
    `annotations/`, of the same names but for the suffix, with train/ and val/ in or above them, or
    divided by a hash of each path; ADE20K and Pascal VOC as published.

    A mask is a PNG, grey of up to 16 bits or with a palette, whose indices count and not its
    colours. `ignore`: the number of pixels that belong to no class, null for none; `reduce_zero`: 0
    is none either, and 1 the first class, as in ADE20K. `classes`: their names, a file with one a
    line, in PATH or elsewhere, or how many there are; by default as many as up to 1,024 train masks
    show. `images`, `masks`, `train`, `test`: other names of these folders; `test_fraction`: the
    share that the hash keeps for testing where there are none; `image_ending`: what follows the
    common part in the name of an image, `_leftImg8bit` in Cityscapes; `mask_ending`: the same of a
    mask, `_gtFine_labelTrainIds`.
    """

    names_test = True

    def __init__(
        self,
        path: str,
        images: str | None = None,
        masks: str | None = None,
        train: str = "train",
        test: str = "test",
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        classes: Classes | None = None,
        ignore: Annotated[int, Field(ge=0, le=65535)] | None = 255,
        reduce_zero: bool = False,
        image_ending: str = "",
        mask_ending: str = "",
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        self._root = at_home(path, DataError)
        self._keys = Keys(images, masks, train, test, image_ending, mask_ending)
        self._fraction, self._classes = test_fraction, classes
        self._ignore, self._reduce_zero = ignore, reduce_zero

    def split(self, name: Split, size: Size | None = None) -> MaskedImages:
        pairs = self._pairs(checked(name), whole=name == "all")
        images = self._images(pairs, size, self._meaning)
        self.settled(images, name)
        return images

    def _images(self, pairs: Pairs, size: Size | None, numbers: Numbers) -> MaskedImages:
        return MaskedImages(self._root, *pairs, self.reading(size), numbers)

    @cached_property
    def _places(self) -> dict[str, Place]:
        return places_in(self._root, self._keys, self.inventory)

    def _pairs(self, name: str, *, whole: bool = False) -> Pairs:
        """The pairs of a set. Raises DataError for one without."""
        divides = "all" in self._places
        if not divides and name not in self._places:
            raise DataError(
                f"{printable(self._root)}: no test set: add test/ or val/ to images and masks, or "
                "name it with `test`"
            )
        place = self._places["all" if divides else name]
        pairs = pairs_of(self._root, place, self._keys, self.inventory)
        if divides and not whole:
            pairs = self._divided(pairs, name == "test")
        if not pairs.images:
            said = self.inventory.said() or "nothing is there"
            raise DataError(
                f"{printable(place.images)}: no image with a mask in the {name} set ({said})"
            )
        return pairs

    def _divided(self, pairs: Pairs, wants_test: bool) -> Pairs:
        if self._fraction == 0:
            return Pairs([], []) if wants_test else pairs
        share_N = units(pairs.images, self._root.resolve())
        mask_N = (share_N < self._fraction) == wants_test
        kept = np.flatnonzero(mask_N).tolist()
        return Pairs([pairs.images[i] for i in kept], [pairs.masks[i] for i in kept])

    @cached_property
    def _meaning(self) -> Numbers:
        """What the numbers mean. Raises DataError for names that are none."""
        bare = Numbers((), self._ignore, self._reduce_zero)
        first = int(self._reduce_zero)
        if isinstance(self._classes, int):
            return bare._replace(classes=numbered(self._classes, first))
        if self._classes is not None:
            given = self._classes
            names = given if isinstance(given, tuple) else self._names(given)
            if twice := next((name for n, name in enumerate(names) if name in names[:n]), None):
                raise DataError(
                    f"{printable(self._root)}: two classes are called {printable(twice)}: give "
                    "each a name of its own"
                )
            return bare._replace(classes=names)
        masks = self._images(self._pairs("train"), None, bare)
        return bare._replace(classes=numbered(1 + largest(masks), first))

    def _names(self, given: str) -> tuple[str, ...]:
        """The lines of a file."""
        inner = self._root / given
        file = inner if inner.is_file() else Path(at_home(given, DataError))
        with os_errors_as(file):
            if file.stat().st_size > _MOST_BYTES:
                raise DataError(f"{printable(file)}: larger than a list of names: check the path")
            lines = file.read_text(errors="surrogateescape").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
        if not 2 <= len(names) <= MOST_CLASSES:
            raise DataError(f"{printable(file)}: {len(names)} names of classes: give two or more")
        return names


def numbered(count: int, first: int) -> tuple[str, ...]:
    """Names of classes that have none: their numbers in the masks."""
    return tuple(str(number) for number in range(first, first + count))


def largest(images: MaskedImages) -> int:
    """The largest class in up to LOOKED_AT masks, evenly spread. Raises DataError where none can be
    read, or none says a class.
    """
    found, first = IGNORED, ""
    for i in spread(len(images), LOOKED_AT):
        try:
            class_HW = images.numbers.classes_of(images.raw_mask(i))
        except BadImage as error:
            first = first or f", first {error}"
            continue
        found = max(found, int(class_HW.max()))
    if found == IGNORED:
        raise DataError(
            f"{printable(images.mask_name(0))}: no mask that was looked at names a class of a "
            f"pixel{first}: check ignore and reduce_zero"
        )
    return found


def classes_in(images: MaskedImages, most: int = 2, masks: int = 256) -> set[int]:
    """The classes that some masks show, evenly spread ones, until there are `most`. Raises
    DataError for a number that is no class.
    """
    seen: set[int] = set()
    for i in spread(len(images), masks):
        try:
            seen |= set(torch.unique(images.mask(i)).tolist()) - {IGNORED}
        except BadImage:
            continue
        if len(seen) >= most:
            break
    return seen
