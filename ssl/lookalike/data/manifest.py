"""Images that a table lists: CSV or Parquet with a path, or in Parquet the image itself, and where
known label, camera, split, query or gallery.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lookalike.data.folders.index import chosen, units
from lookalike.data.images import Annotations, FileImages, Images, QueryGallery
from lookalike.data.images.parquet import ParquetImages
from lookalike.data.reading import FileSource
from lookalike.data.sources import Split, checked, folder_at
from lookalike.data.tables import repeats
from lookalike.data.tables.classes import numbered, of_known, several
from lookalike.data.tables.columns import Columns
from lookalike.data.tables.parquet import read_parquet
from lookalike.data.tables.rooted import look_for, rooted
from lookalike.data.tables.split_words import has_labels, sets_of
from lookalike.data.tables.text import Table, read_csv
from lookalike.errors import DataError, printable
from lookalike.folder import at_home
from lookalike.recipe import SINCE_0_2, Size

_TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class Manifest(FileSource):
    """A table with a header line (CSV; or with semicolons, tabs or bars; UTF-8 or UTF-16) or
    Parquet, with columns path, and perhaps label, camera, split, is_query, is_gallery.

    Paths are relative to `root`, by default the file's folder, or absolute, and may not leave it.
    A Parquet file may hold the images themselves, as Hugging Face's do. Columns are known by these
    names, and path as file_name, filename, image, image_path, file, filepath or file_path, label as
    class or target; `columns`: the names of those that are called otherwise. `split` is train, test
    or val, or such a word as training or validation (val is the test set where no row says test);
    without the column a hash of each path splits. Labels and cameras are any words or numbers;
    their sorted values are the classes, and the numbering of `cameras`. `is_query` and `is_gallery`
    (true, false, 1, 0) say which rows of the test set ask and which are searched; of one alone the
    other is the opposite. Elsewhere they are not read. `separator`: what stands between the labels
    of an image where it may have several, as in `cat|dog`. An image listed in both sets, with two
    labels, or twice in one set, is said; with `strict` it is refused.
    """

    holds_out = names_test = True

    def __init__(
        self,
        path: str,
        root: str | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        strict: bool = False,
        columns: Annotated[Columns | None, SINCE_0_2] = None,
        separator: Annotated[str | None, Field(min_length=1), SINCE_0_2] = None,
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        self._path, self._root, self._test_fraction = path, root, test_fraction
        self._strict, self._looked = strict, False
        self._columns, self._separator = columns or Columns(), separator

    def split(self, name: Split, size: Size | None = None) -> Images:
        wants_test, share = checked(name) == "test", self._share(name)
        file = at_home(self._path, DataError)
        read = read_parquet if file.suffix.lower() == ".parquet" else read_csv
        table = read(file, self._columns)
        if table.image:
            return self._embedded(file, table, name, size)
        root = folder_at(
            self._root or file.parent, "give the folder that the paths begin in with `root`"
        )
        paths = rooted(printable(file), table.lines, table.columns["path"], root)
        sets_N = self._sets(file, table, paths, share)
        mask_N = self._mask(file, sets_N, wants_test)
        known = self._known(file, table, mask_N, wants_test)
        if not self._looked:
            look_for(printable(file), table.lines, paths, root)
        self._look_for_repeats(file, table, paths, sets_N)
        images = FileImages(root, chosen(paths, mask_N), self.reading(size), known, within=root)
        return self.settled(images, name)

    def _embedded(self, file: Path, table: Table, name: Split, size: Size | None) -> Images:
        """The images that lie in the rows of a Parquet file."""
        wants_test, share = checked(name) == "test", self._share(name)
        images = ParquetImages([file], table.image, self.reading(size))
        mask_N = self._mask(file, self._sets(file, table, images.keys(), share), wants_test)
        images.keep(mask_N, self._known(file, table, mask_N, wants_test))
        images.shuffle_by("auto")
        return self.settled(images, name)

    def _known(self, file: Path, table: Table, mask_N: np.ndarray, wants_test: bool) -> Annotations:
        """What the table says of the rows of the mask."""
        words = table.columns.get("label")
        if self._separator is None or words is None:
            return _known(file, table, mask_N, wants_test)
        alone = {role: column for role, column in table.columns.items() if role != "label"}
        bare = table._replace(columns=alone, classes=())
        several_NC, classes = several(words, self._separator)
        rest = _known(file, bare, mask_N, wants_test)
        return rest._replace(classes=classes, several=several_NC[torch.from_numpy(mask_N)])

    def _mask(self, file: Path, sets_N: np.ndarray, wants_test: bool) -> np.ndarray:
        """Which rows are in the set. Raises DataError where none is."""
        mask_N: np.ndarray = sets_N == (repeats.TEST if wants_test else repeats.TRAIN)
        if not mask_N.any():
            name = "test" if wants_test else "train"
            which = f"none of its {len(mask_N)} rows is in the {name} set"
            raise DataError(
                f"{printable(file)}: {which}; add rows, or change split or test_fraction"
            )
        return mask_N

    def _share(self, name: Split) -> float:
        """How much of the rows a hash holds out."""
        return 0.0 if name == "all" else self._test_fraction

    def _sets(
        self, file: Path, table: Table, paths: Sequence[bytes], test_fraction: float
    ) -> np.ndarray:
        """In which set each row is, int8 (N,); a hash holds out `test_fraction`."""
        splits = table.columns.get("split")
        if splits is None:
            is_test_N: np.ndarray = units(paths, file.resolve()) < test_fraction
            return is_test_N.astype(np.int8)
        return sets_of(printable(file), table.lines, splits, self.inventory)

    def _look_for_repeats(
        self, file: Path, table: Table, paths: list[bytes], sets_N: np.ndarray
    ) -> None:
        """Once for both sets. Warns, a line a kind, of images that are listed twice; if strict,
        raises DataError.
        """
        if self._looked:
            return
        groups = repeats.grouped(paths)
        found = (
            repeats.found(groups, sets_N, table.columns.get("label"), partial(_duties, table))
            if groups
            else []
        )
        lines = [
            repeats.told(one, printable(file), table.lines, paths[one.later], sets_N)
            for one in found
        ]
        if lines and self._strict:
            raise DataError("\n".join(lines))
        for line in lines:
            warnings.warn(line, stacklevel=4)
        self._looked = True


def _known(file: Path, table: Table, mask_N: np.ndarray, wants_test: bool) -> Annotations:
    """What the table says of the rows of the mask."""
    rows_K = torch.from_numpy(mask_N.nonzero()[0])
    if table.classes:
        some = table.where(mask_N)
        words = some.columns["label"]
        labels_K, classes = of_known(printable(file), some.lines, words, table.classes)
    else:
        labels_N, classes = _numbered(file, table, "label")
        labels_K = None if labels_N is None else labels_N[rows_K]
    cameras_N, _ = _numbered(file, table, "camera")
    cameras_K = None if cameras_N is None else cameras_N[rows_K]
    roles = _roles(file, table, mask_N) if wants_test else None
    return Annotations(labels_K, classes, cameras_K, roles)


def _numbered(file: Path, table: Table, name: str) -> tuple[Tensor | None, tuple[str, ...]]:
    """The column as numbers, int64 (N,), of its sorted values; -1 in parts without labels."""
    words = table.columns.get(name)
    if words is None:
        return None, ()
    splits = table.columns.get("split")
    mask_N = np.ones(len(words), bool) if splits is None else has_labels(splits)
    some = table if mask_N.all() else table.where(mask_N)
    found_K, names = numbered(printable(file), some.lines, some.columns[name], name)
    labels_N = torch.full((len(words),), -1)
    labels_N[torch.from_numpy(mask_N)] = found_K
    return labels_N, names


def _roles(file: Path, table: Table, mask_N: np.ndarray) -> QueryGallery | None:
    """Which rows of the mask ask and which are searched, or None where no column says so.

    Raises DataError where a column says neither true nor false, or leaves none that asks or none
    that is searched.
    """
    asks, searched = (_truths(file, table, name, mask_N) for name in ("is_query", "is_gallery"))
    if asks is None and searched is None:
        return None
    query_N = ~searched if asks is None else asks  # type: ignore[operator]
    gallery_N = ~asks if searched is None else searched  # type: ignore[operator]
    for what, name, some in (
        ("a query", "is_query", query_N),
        ("searched", "is_gallery", gallery_N),
    ):
        if not some.any():
            raise DataError(
                f"{printable(file)}: no row of the test set is {what}: say so in {name}"
            )
    return QueryGallery(query_N, gallery_N)


def _duties(table: Table, row: int) -> frozenset[str]:
    """What a row of the test set does, of `query` and `gallery`; without columns that say so,
    both.
    """
    asks, searched = (
        None if words is None else _TRUTHS.get(words[row].lower())
        for words in map(table.columns.get, ("is_query", "is_gallery"))
    )
    if asks is None and searched is None:
        return frozenset(("query", "gallery"))
    asks, searched = (
        (not searched if asks is None else asks),
        (not asks if searched is None else searched),
    )
    return frozenset(name for name, does in (("query", asks), ("gallery", searched)) if does)


def _truths(file: Path, table: Table, name: str, mask_N: np.ndarray) -> Tensor | None:
    """The column's true and false in the rows of the mask, bool."""
    if name not in table.columns:
        return None
    words, found = table.columns[name], []
    for row in np.flatnonzero(mask_N).tolist():
        if (truth := _TRUTHS.get(words[row].lower())) is None:
            what = f"{name} {words[row][:40]!r} is none of true, false, 1, 0"
            raise DataError(f"{printable(file)}:{table.lines[row]}: {what}: fix it")
        found.append(truth)
    return torch.tensor(found)
