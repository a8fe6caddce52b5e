"""The rows of one part of a data set: images in files of one kind, and their labels."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from lookalike.data.images.arrow import ArrowImages
from lookalike.data.images.contract import Reading
from lookalike.data.images.parquet import ParquetImages
from lookalike.data.tables.arrow import Places, read_arrow
from lookalike.data.tables.columns import Columns
from lookalike.data.tables.parquet import read_parquet
from lookalike.data.tables.spool import Spool
from lookalike.data.tables.text import Table
from lookalike.errors import DataError, printable


class Lines(Sequence[str]):
    """`file:row` of each row of many files, rows from 1, made when they are asked for."""

    def __init__(self, files: Sequence[Path], rows: Sequence[int]) -> None:
        self._names = [printable(file.name) for file in files]
        self._ends = list(accumulate(rows))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: Any) -> Any:
        i = range(len(self))[i]
        f = bisect_right(self._ends, i)
        return f"{self._names[f]}:{i + 1 - (self._ends[f - 1] if f else 0)}"


class Chain(Sequence[str]):
    """The lines of several parts, one behind another."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts, self._ends = parts, list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: Any) -> Any:
        i = range(len(self))[i]
        part = bisect_right(self._ends, i)
        return self._parts[part][i - (self._ends[part - 1] if part else 0)]


@dataclass(frozen=True)
class PartRows:
    """Rows of `files`, whose images lie in the column `image`; `words`: their labels, None where
    there are none; numbers of `classes` where the files name these.
    """

    files: list[Path]
    image: str
    words: list[str] | None
    classes: tuple[str, ...]
    lines: Sequence[str]
    places: list[Places] | None

    def images(
        self, reading: Reading, spool: Spool, within: Sequence[Path]
    ) -> ParquetImages | ArrowImages:
        """All of them, without annotations."""
        if self.places is None:
            return ParquetImages(self.files, self.image, reading, spool=spool)
        return ArrowImages(self.files, self.places, reading, within)


def read_part(files: list[Path], given: Columns) -> PartRows:
    """Reads the labels of all files. Raises DataError where they are not alike."""
    tables: list[Table] = []
    places: list[Places] = []
    for file in files:
        if file.suffix == ".arrow":
            table, place = read_arrow(file, given)
            places.append(place)
        else:
            table = read_parquet(file, given)
        tables.append(table)
        _refuse_unlike(file, table, tables[0])
    first = tables[0]
    labels = [table.columns["label"] for table in tables] if "label" in first.columns else None
    return PartRows(
        files,
        first.image,
        None if labels is None else [word for words in labels for word in words],
        first.classes,
        Lines(files, [len(table.lines) for table in tables]),
        places or None,
    )


def _refuse_unlike(file: Path, table: Table, first: Table) -> None:
    if not table.image:
        remedy = "name one with image, or read a table of paths with the source manifest"
        raise DataError(f"{printable(file)}: no column of images: {remedy}")
    if (table.image, table.columns.keys(), table.classes) != (
        first.image,
        first.columns.keys(),
        first.classes,
    ):
        what = "other columns or classes than the files before it"
        raise DataError(f"{printable(file)}: {what}: write them alike, or name one file alone")
