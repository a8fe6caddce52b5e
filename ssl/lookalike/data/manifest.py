"""Pictures that a table lists: CSV or Parquet with a path and, where known, label, camera, split, query or gallery."""

import csv
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lookalike.data.index import below, chosen, refusing, units
from lookalike.data.pictures import FilePictures, Fit, Pictures, Roles
from lookalike.data.sources import Canvas, Split, canvas_for, checked, folder_at
from lookalike.errors import DataError, printable
from lookalike.recipe import Size

COLUMNS = ("path", "label", "camera", "split", "is_query", "is_gallery")
_SPLITS = ("train", "test", "val")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_MOST = 200_000_000


class Table(NamedTuple):
    """The columns that the file has, N rows; the line of each in a CSV, its number in Parquet."""

    columns: dict[str, list[str]]
    lines: Sequence[int]


class Manifest:
    """A CSV (with a header line, UTF-8) or Parquet file with columns path, and perhaps label, camera, split, is_query,
    is_gallery.

    Paths are relative to `root`, by default the file's folder, and may not leave it. `split` is train, test or val
    (the test set where no row says test); without the column a hash of each path splits. Labels and cameras are any
    words or numbers; their sorted values are the classes, and the numbering of `cameras`. `is_query` and `is_gallery`
    (true, false, 1, 0) say which rows of the test set ask and which are searched; of one alone the other is the
    opposite. Elsewhere they are not read.
    """

    def __init__(
        self,
        path: str,
        root: str | None = None,
        canvas: Canvas | None = None,
        channels: Literal[1, 3] = 3,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        fit: Fit = "crop",
    ) -> None:
        self.channels: int = channels
        self._path, self._root, self._canvas, self._test_fraction = path, root, canvas, test_fraction
        self._fit: Fit = fit

    def split(self, name: Split, size: Size | None = None) -> Pictures:
        wants_test = checked(name) == "test"
        file = Path(os.path.expanduser(self._path))  # noqa: PTH111
        with refusing(file):
            table = (_parquet if file.suffix == ".parquet" else _csv)(file)
        root = folder_at(self._root or file.parent, "give the folder that the paths begin in with `root`")
        paths = list(_paths(file, table, root))
        mask_N = self._mask(file, table, paths, wants_test)
        if not mask_N.any():
            which = f"none of its {len(paths)} rows is in the {name} set"
            raise DataError(f"{printable(file)}: {which}; add rows, or change split or test_fraction")
        labels_N, classes = _numbered(file, table, "label")
        cameras_N, _ = _numbered(file, table, "camera")
        rows = torch.from_numpy(mask_N)
        labels_N, cameras_N = (None if column is None else column[rows] for column in (labels_N, cameras_N))
        paths, canvas = chosen(paths, mask_N), self._canvas or canvas_for(size or 224)
        roles = _roles(file, table, mask_N) if wants_test else None
        more: dict[str, Any] = {"within": root, "roles": roles, "fit": self._fit}
        return FilePictures(root, paths, labels_N, classes, canvas, self.channels, cameras_N, **more)

    def _mask(self, file: Path, table: Table, paths: list[bytes], wants_test: bool) -> np.ndarray:
        splits = table.columns.get("split")
        if splits is None:
            mask_N: np.ndarray = (units(paths, file.resolve()) < self._test_fraction) == wants_test
            return mask_N
        for line, split in zip(table.lines, splits, strict=True):
            if split not in _SPLITS:
                raise DataError(
                    f"{printable(file)}:{line}: split {split[:40]!r} is none of {', '.join(_SPLITS)}: mend it"
                )
        wanted = "train" if not wants_test else "test" if "test" in splits else "val"
        return np.fromiter((split == wanted for split in splits), bool, len(splits))


def _csv(file: Path) -> Table:
    """The columns that we know, by line. Raises DataError with file:line for what is no table."""
    columns: dict[str, list[str]] = {}
    lines: list[int] = []
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        try:
            header = next(rows, [])
            places = [(header.index(name), columns.setdefault(name, [])) for name in _known(file, header)]
            width = len(header)
            for row in rows:
                if len(row) != width:
                    if not row:  # an empty line
                        continue
                    raise csv.Error(f"{len(row)} fields where the header has {width}")
                lines.append(rows.line_num)
                for place, column in places:
                    column.append(row[place])
        except csv.Error as error:
            raise DataError(
                f"{printable(file)}:{rows.line_num}: {error}: mend the line, or quote its fields"
            ) from error
        except UnicodeDecodeError as error:
            where = f"{printable(file)}:{_undecodable(file)}"
            raise DataError(f"{where}: not UTF-8 ({error.reason}): save it as UTF-8") from error
    return Table(columns, lines)


def _undecodable(file: Path) -> int:
    """The first line that is not UTF-8; the reader decodes ahead of its lines."""
    with file.open("rb") as lines:
        return next((n for n, line in enumerate(lines, 1) if "\ufffd" in line.decode(errors="replace")), 0)


def _parquet(file: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"{printable(file)}: pyarrow is missing: pip install 'lookalike[parquet]', or give a .csv"
        ) from error
    try:
        with parquet.ParquetFile(file) as opened:
            rows = opened.metadata.num_rows
            if rows > _MOST:
                raise DataError(f"{printable(file)}: {rows} rows, more than the {_MOST} allowed: cut it")
            known = _known(file, opened.schema_arrow.names)
            table = opened.read(columns=known)
        columns = {name: _words(file, name, table.column(name).to_pylist()) for name in known}
    except (ArrowException, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{printable(file)}: no Parquet file that can be read ({reason}): write it again") from error
    return Table(columns, range(1, rows + 1))


def _words(file: Path, name: str, values: list[Any]) -> list[str]:
    for row, value in enumerate(values, 1):
        if not isinstance(value, str | int):
            what = "empty" if value is None else f"a {type(value).__name__}"
            raise DataError(f"{printable(file)}:{row}: {name} is {what}: give a string or an integer")
    return [str(value) for value in values]


def _known(file: Path, header: Sequence[str]) -> list[str]:
    """Those of the columns that we read. Raises DataError when there is no path, or one of them twice."""
    for name in COLUMNS:
        if header.count(name) > 1:
            raise DataError(f"{printable(file)}:1: two columns {name}: rename one")
    for name in header:
        near = difflib.get_close_matches(name.strip().lower(), COLUMNS, n=1, cutoff=0.75)
        if near and name not in COLUMNS and near[0] not in header:
            raise DataError(
                f"{printable(file)}:1: column {printable(name)[:40]!r}: did you mean {near[0]!r}? rename it"
            )
    if "path" not in header:
        found = ", ".join(printable(name)[:40] for name in header[:8]) or "nothing"
        raise DataError(f"{printable(file)}:1: no column path, the header has {found}: name it so")
    return [name for name in COLUMNS if name in header]


def _paths(file: Path, table: Table, root: Path) -> Iterator[bytes]:
    """The paths below `root`. Raises DataError for one that leaves it."""
    name = printable(file)
    for line, path in zip(table.lines, table.columns["path"], strict=True):
        yield below(root, path, f"{name}:{line}")


def _roles(file: Path, table: Table, mask_N: np.ndarray) -> Roles | None:
    """Which rows of the mask ask and which are searched, or None where no column says so.

    Raises DataError where a column says neither true nor false, or leaves none that asks or none that is searched.
    """
    asks, searched = (_truths(file, table, name, mask_N) for name in ("is_query", "is_gallery"))
    if asks is None and searched is None:
        return None
    query_N = ~searched if asks is None else asks  # type: ignore[operator]
    gallery_N = ~asks if searched is None else searched  # type: ignore[operator]
    for what, name, some in (("a query", "is_query", query_N), ("searched", "is_gallery", gallery_N)):
        if not some.any():
            raise DataError(f"{printable(file)}: no row of the test set is {what}: say so in {name}")
    return Roles(query_N, gallery_N)


def _truths(file: Path, table: Table, name: str, mask_N: np.ndarray) -> Tensor | None:
    """The column's true and false in the rows of the mask, bool."""
    if name not in table.columns:
        return None
    words, found = table.columns[name], []
    for row in np.flatnonzero(mask_N).tolist():
        if (truth := _TRUTHS.get(words[row].lower())) is None:
            what = f"{name} {words[row][:40]!r} is none of true, false, 1, 0"
            raise DataError(f"{printable(file)}:{table.lines[row]}: {what}: mend it")
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
        raise DataError(f"{printable(file)}:{line}: {name} is empty: fill it, or leave the whole column out")
    whole = all(
        len(value) < 19 and value.removeprefix("-").isascii() and value.removeprefix("-").isdigit() for value in values
    )
    names = sorted(values, key=lambda value: (int(value), value)) if whole else sorted(values)
    index = {value: number for number, value in enumerate(names)}
    return torch.from_numpy(np.fromiter(map(index.__getitem__, words), np.int64, len(words))), tuple(names)
