"""Where images come from: a name and a few values in a recipe -> a train and a test set of
`Images`.

A source's constructor is the schema of its recipe section. It touches no file; `split` does.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lookalike.data.images import (
    NOTHING,
    Annotations,
    ArrayImages,
    FileImages,
    Images,
    Reading,
    subset,
)
from lookalike.data.index import SUFFIXES, chosen, os_errors_as, scan, top_folders, unit, units
from lookalike.data.inventory import Inventory
from lookalike.data.reading import FileSource
from lookalike.errors import DataError, printable
from lookalike.recipe import Size

Split = Literal["train", "test"]


class Source(Protocol):
    """Images with `channels` channels in two splits."""

    @property
    def channels(self) -> int: ...
    @property
    def inventory(self) -> Inventory:
        """What the splits that were made so far left out."""

    def split(self, name: Split, size: Size | None = None) -> Images:
        """The train or the test set, for views of `size`. Raises DataError when there is none."""


class Digits:
    """Scikit-learn's 1,797 handwritten digits, grey, 8 x 8: no download, for trying things out."""

    channels = 1

    def __init__(self, test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2) -> None:
        self._test_fraction = test_fraction
        self.inventory = Inventory()

    def split(self, name: Split, size: Size | None = None) -> Images:
        # Late, because the import takes a second and nothing else in this room needs it.
        from sklearn.datasets import load_digits

        digits = load_digits()
        images_NHW = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))
        labels_N = torch.from_numpy(digits.target.astype(np.int64))
        classes = tuple(str(digit) for digit in range(10))
        known = Annotations(labels_N, classes)
        everything = ArrayImages(images_NHW.unsqueeze(1), known, "digits")
        is_test_N = stratified(labels_N, self._test_fraction)
        return subset(everything, torch.nonzero(is_test_N == (checked(name) == "test")).flatten())


class Folder(FileSource):
    """A folder of image files: PATH/train and PATH/test, or one set split by a hash of each
    relative path.

    The hash keeps every image in its split when others are added; it does not balance the classes.
    Without PATH/test, PATH/val is the test set. Subfolders with images are the classes, in sorted
    order of the train set; classes that only the test set has come after them. `auto` labels a set
    that has no image directly in its folder and at least two subfolders with images.
    """

    def __init__(
        self,
        path: str,
        train: str = "train",
        test: str = "test",
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        labels: Literal["auto", "folders", "none"] = "auto",
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        self._path = path
        self._train = train
        self._test = test
        self._test_fraction = test_fraction
        self._labels = labels
        self._scanned: dict[Path, list[bytes]] = {}

    def split(self, name: Split, size: Size | None = None) -> Images:
        return self.settled(self._split(name, size), name)

    def _split(self, name: Split, size: Size | None) -> FileImages:
        root = folder_at(self._path, "give the folder that holds the images")
        reading = self.reading(size)
        wants_test = checked(name) == "test"
        with os_errors_as(root):
            has_train = (root / self._train).is_dir()
        if not has_train:
            return self._hashed(root, wants_test, reading)
        train = self._scan(root / self._train, root)
        classes = self._classes(root / self._train, train)
        if not wants_test:
            return self._images(root / self._train, train, classes, reading)
        folder = self._test_folder(root)
        test = self._scan(folder, root)
        found = self._classes(folder, test, classes) if classes else ()
        return self._images(folder, test, found, reading)

    def _hashed(self, root: Path, wants_test: bool, reading: Reading) -> FileImages:
        paths = self._scan(root, root)
        mask_N = (units(paths, root.resolve()) < self._test_fraction) == wants_test
        if not mask_N.any():
            which = (
                f"none of its {len(paths)} images is in the {'test' if wants_test else 'train'} set"
            )
            raise DataError(f"{printable(root)}: {which}; add images, or change test_fraction")
        return self._images(root, paths, self._classes(root, paths), reading, mask_N)

    def _test_folder(self, root: Path) -> Path:
        folder = root / self._test
        if self._test == "test" and not folder.exists() and (root / "val").is_dir():
            return root / "val"
        return folder_at(
            folder, "add the folder, or name the one that holds the test set with `test`"
        )

    def _scan(self, folder: Path, root: Path) -> list[bytes]:
        if folder not in self._scanned:
            self._scanned[folder] = scan(folder, root)
        if not self._scanned[folder]:
            suffixes = b" ".join(SUFFIXES).decode()
            raise DataError(f"{printable(folder)}: no images in it or below; looked for {suffixes}")
        return self._scanned[folder]

    def _classes(
        self, folder: Path, paths: list[bytes], known: tuple[bytes, ...] = ()
    ) -> tuple[bytes, ...]:
        if self._labels == "none":
            return ()
        names = top_folders(paths)
        if isinstance(names, dict):
            labelled = known or len(names) >= 2 or self._labels == "folders"
            return (*known, *sorted(names.keys() - set(known))) if labelled else ()
        if self._labels == "folders":
            place = printable(folder / os.fsdecode(names))
            raise DataError(f"{place}: in no class folder; move it into one, or set labels to none")
        return ()

    def _images(
        self,
        folder: Path,
        paths: list[bytes],
        classes: tuple[bytes, ...],
        reading: Reading,
        mask_N: np.ndarray | None = None,
    ) -> FileImages:
        labels_N = np.empty(len(paths), np.int64)
        index = {name: label for label, name in enumerate(classes)}
        below = top_folders(paths) if classes else {}
        named = below.items() if isinstance(below, dict) else []
        for name, rows in named:
            labels_N[rows.start : rows.stop] = index[name]
        if mask_N is not None:
            paths, labels_N = chosen(paths, mask_N), labels_N[mask_N]
        names = tuple(os.fsdecode(name) for name in classes)
        known = Annotations(torch.from_numpy(labels_N), names) if classes else NOTHING
        return FileImages(folder, paths, reading, known)


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


def folder_at(path: str | Path, remedy: str) -> Path:
    """The folder, `~` resolved. Raises DataError with the remedy when there is none."""
    folder = Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises for an unknown ~name)
    with os_errors_as(folder):
        if folder.is_dir():
            return folder
        what = "a file, not a folder" if folder.exists() else "no such folder"
    raise DataError(f"{printable(folder)}: {what}; {remedy}")


def checked(name: Split) -> Split:
    """The name of a split. Raises ValueError for any other."""
    if name not in ("train", "test"):
        raise ValueError(f"a split is train or test, not {name!r}")
    return name
