"""Images that a table lists: CSV or Parquet with a path and, where known, label, camera, split,
query or gallery.
"""

import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lookalike.data import repeats
from lookalike.data.images import Annotations, FileImages, Images, QueryGallery
from lookalike.data.index import below, chosen, units
from lookalike.data.parquet import read_parquet
from lookalike.data.reading import FileSource
from lookalike.data.sources import Split, checked, folder_at
from lookalike.data.tables import Table, read_csv
from lookalike.errors import DataError, printable
from lookalike.recipe import Size

_SPLITS = ("train", "test", "val")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class Manifest(FileSource):
    """A CSV (with a header line, UTF-8) or Parquet file with columns path, and perhaps label,
    camera, split, is_query, is_gallery.

    Paths are relative to `root`, by default the file's folder, and may not leave it. `split` is
    train, test or val (the test set where no row says test); without the column a hash of each path
    splits. Labels and cameras are any words or numbers; their sorted values are the classes, and
    the numbering of `cameras`. `is_query` and `is_gallery` (true, false, 1, 0) say which rows of
    the test set ask and which are searched; of one alone the other is the opposite. Elsewhere they
    are not read. An image listed in both sets, with two labels, or twice in one set, is said; with
    `strict` it is refused.
    """

    holds_out = names_test = True

    def __init__(
        self,
        path: str,
        root: str | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        strict: bool = False,
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        self._path, self._root, self._test_fraction = path, root, test_fraction
        self._strict, self._looked = strict, False

    def split(self, name: Split, size: Size | None = None) -> Images:
        wants_test = checked(name) == "test"
        file = Path(os.path.expanduser(self._path))  # noqa: PTH111
        table = (read_parquet if file.suffix == ".parquet" else read_csv)(file)
        root = folder_at(
            self._root or file.parent, "give the folder that the paths begin in with `root`"
        )
        paths = list(_paths(file, table, root))
        sets_N = self._sets(file, table, paths, 0.0 if name == "all" else self._test_fraction)
        mask_N = sets_N == (repeats.TEST if wants_test else repeats.TRAIN)
        if not mask_N.any():
            which = f"none of its {len(paths)} rows is in the {name} set"
            raise DataError(
                f"{printable(file)}: {which}; add rows, or change split or test_fraction"
            )
        labels_N, classes = _numbered(file, table, "label")
        cameras_N, _ = _numbered(file, table, "camera")
        known = Annotations(labels_N, classes, cameras_N).of(torch.from_numpy(mask_N.nonzero()[0]))
        if wants_test:
            known = known._replace(roles=_roles(file, table, mask_N))
        self._look_for_repeats(file, table, paths, sets_N)
        paths = chosen(paths, mask_N)
        return self.settled(FileImages(root, paths, self.reading(size), known, within=root), name)

    def _sets(
        self, file: Path, table: Table, paths: list[bytes], test_fraction: float
    ) -> np.ndarray:
        """In which set each row is, int8 (N,); a hash holds out `test_fraction`."""
        splits = table.columns.get("split")
        if splits is None:
            is_test_N: np.ndarray = units(paths, file.resolve()) < test_fraction
            return is_test_N.astype(np.int8)
        for line, split in zip(table.lines, splits, strict=True):
            if split not in _SPLITS:
                raise DataError(
                    f"{printable(file)}:{line}: split {split[:40]!r} is none of "
                    f"{', '.join(_SPLITS)}: fix it"
                )
        sets = {"train": repeats.TRAIN, "test" if "test" in splits else "val": repeats.TEST}
        return np.fromiter(
            (sets.get(split, repeats.NEITHER) for split in splits), np.int8, len(splits)
        )

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


def _paths(file: Path, table: Table, root: Path) -> Iterator[bytes]:
    """The paths below `root`. Raises DataError for one that leaves it."""
    name = printable(file)
    for line, path in zip(table.lines, table.columns["path"], strict=True):
        yield below(root, path, f"{name}:{line}")


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


def _numbered(file: Path, table: Table, name: str) -> tuple[Tensor | None, tuple[str, ...]]:
    """The column as numbers of its sorted values, int64 (N,); whole numbers are sorted as such."""
    words = table.columns.get(name)
    if words is None:
        return None, ()
    values = set(words)
    if "" in values:
        line = table.lines[words.index("")]
        raise DataError(
            f"{printable(file)}:{line}: {name} is empty: fill it, or leave the whole column out"
        )
    whole = all(
        len(value) < 19 and value.removeprefix("-").isascii() and value.removeprefix("-").isdigit()
        for value in values
    )
    names = sorted(values, key=lambda value: (int(value), value)) if whole else sorted(values)
    index = {value: number for number, value in enumerate(names)}
    return torch.from_numpy(
        np.fromiter(map(index.__getitem__, words), np.int64, len(words))
    ), tuple(names)
