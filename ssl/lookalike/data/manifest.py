"""Pictures that a table lists: CSV or Parquet with a path and, where known, label, camera, split, query or gallery."""

import csv
import difflib
import io
import os
import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, TextIO

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lookalike.data import repeats
from lookalike.data.index import below, chosen, units
from lookalike.data.outside import LONGEST, opened, size_of
from lookalike.data.pages import pages
from lookalike.data.pictures import FilePictures, Fit, Pictures, Roles
from lookalike.data.sources import Canvas, Split, canvas_for, checked, folder_at
from lookalike.errors import DataError, printable
from lookalike.recipe import Size

COLUMNS = ("path", "label", "camera", "split", "is_query", "is_gallery")
_SPLITS = ("train", "test", "val")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_MOST = 200_000_000
_MOST_COLUMNS = 10_000
_BATCH = 16_384
_FOOTER = 16 << 20
# What a Parquet file may unpack to: paths of consecutive numbers are kept in a hundredth of their bytes.
_ROOM, _RATIO = 256 << 20, 400
_POINTERS = 16
_PAGE, _MOST_PAGES = 64 << 20, 200_000


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
    opposite. Elsewhere they are not read. An image listed in both sets, with two labels, or twice in one set, is
    said; with `strict` it is refused.
    """

    def __init__(
        self,
        path: str,
        root: str | None = None,
        canvas: Canvas | None = None,
        channels: Literal[1, 3] = 3,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        fit: Fit = "crop",
        strict: bool = False,
        max_pixels: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        self.channels: int = channels
        self._path, self._root, self._canvas, self._test_fraction = path, root, canvas, test_fraction
        self._fit: Fit = fit
        self._strict, self._max_pixels, self._looked = strict, max_pixels, False

    def split(self, name: Split, size: Size | None = None) -> Pictures:
        wants_test = checked(name) == "test"
        file = Path(os.path.expanduser(self._path))  # noqa: PTH111
        table = (_parquet if file.suffix == ".parquet" else _csv)(file)
        root = folder_at(self._root or file.parent, "give the folder that the paths begin in with `root`")
        paths = list(_paths(file, table, root))
        sets_N = self._sets(file, table, paths)
        mask_N = sets_N == (repeats.TEST if wants_test else repeats.TRAIN)
        if not mask_N.any():
            which = f"none of its {len(paths)} rows is in the {name} set"
            raise DataError(f"{printable(file)}: {which}; add rows, or change split or test_fraction")
        labels_N, classes = _numbered(file, table, "label")
        cameras_N, _ = _numbered(file, table, "camera")
        rows = torch.from_numpy(mask_N)
        labels_N, cameras_N = (None if column is None else column[rows] for column in (labels_N, cameras_N))
        roles = _roles(file, table, mask_N) if wants_test else None
        self._look_for_repeats(file, table, paths, sets_N)
        paths, canvas = chosen(paths, mask_N), self._canvas or canvas_for(size or 224)
        more: dict[str, Any] = {"within": root, "roles": roles, "fit": self._fit}
        if self._max_pixels is not None:
            more["max_pixels"] = self._max_pixels
        return FilePictures(root, paths, labels_N, classes, canvas, self.channels, cameras_N, **more)

    def _sets(self, file: Path, table: Table, paths: list[bytes]) -> np.ndarray:
        """In which set each row is, int8 (N,)."""
        splits = table.columns.get("split")
        if splits is None:
            is_test_N: np.ndarray = units(paths, file.resolve()) < self._test_fraction
            return is_test_N.astype(np.int8)
        for line, split in zip(table.lines, splits, strict=True):
            if split not in _SPLITS:
                raise DataError(
                    f"{printable(file)}:{line}: split {split[:40]!r} is none of {', '.join(_SPLITS)}: mend it"
                )
        sets = {"train": repeats.TRAIN, "test" if "test" in splits else "val": repeats.TEST}
        return np.fromiter((sets.get(split, repeats.NEITHER) for split in splits), np.int8, len(splits))

    def _look_for_repeats(self, file: Path, table: Table, paths: list[bytes], sets_N: np.ndarray) -> None:
        """Once for both sets. Warns, a line a kind, of images that are listed twice; if strict, raises DataError."""
        if self._looked:
            return
        groups = repeats.grouped(paths)
        found = repeats.found(groups, sets_N, table.columns.get("label"), partial(_duties, table)) if groups else []
        lines = [repeats.told(one, printable(file), table.lines, paths[one.later], sets_N) for one in found]
        if lines and self._strict:
            raise DataError("\n".join(lines))
        for line in lines:
            warnings.warn(line, stacklevel=4)
        self._looked = True


class _Rows:
    """The lines of a CSV; `room` is what the row may still have: quoted, it may span many lines."""

    def __init__(self, text: TextIO, place: str) -> None:
        self._text, self._place, self.room, self.number = text, place, LONGEST, 0

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> str:
        self.number += 1
        line = self._text.readline(self.room + 1)
        self.room -= len(line)
        if self.room < 0:
            what = f"a row of more than {LONGEST:,} characters"
            raise DataError(f"{self._place}:{self.number}: {what}: mend its quotes, or leave that column out")
        if not line:
            raise StopIteration
        return line


def _csv(file: Path) -> Table:
    """The columns that we know, by line. Raises DataError with file:line for what is no table."""
    columns: dict[str, list[str]] = {}
    lines = array("q")
    with opened(file) as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as text:
        source = _Rows(text, printable(file))
        rows = csv.reader(source, strict=True)
        try:
            header = next(rows, [])
            places = [(header.index(name), columns.setdefault(name, [])) for name in _known(file, header)]
            width = len(header)
            for row in rows:
                source.room = LONGEST
                if len(row) != width:
                    if not row:  # an empty line
                        continue
                    raise csv.Error(f"{len(row)} fields where the header has {width}")
                lines.append(rows.line_num)
                for place, column in places:
                    column.append(row[place])
                if len(lines) > _MOST:
                    raise DataError(f"{printable(file)}: more than the {_MOST:,} rows allowed: cut it")
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
    with opened(file) as data:
        read = enumerate(iter(partial(data.readline, 4 * LONGEST), b""), 1)
        return next((n for n, line in read if "\ufffd" in line.decode(errors="replace")), 0)


def _parquet(file: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"{printable(file)}: pyarrow is missing: pip install 'lookalike[parquet]', or give a .csv"
        ) from error
    try:
        with opened(file) as data, _arrows():
            _refuse_long_footer(file, data)
            about = parquet.read_metadata(data)
            schema = about.schema.to_arrow_schema()
            known = _known(file, schema.names)
            texts = [name for name in known if _is_text(file, name, schema.field(name).type)]
            room = _refuse_bomb(file, about, size_of(data))
            chunks = _chunks(about, known)
            largest = _refuse_pages(file, data, chunks, room)
            plain = {chunk.path_in_schema for chunk in chunks if "DELTA_BYTE_ARRAY" in chunk.encodings}
            coded = [name for name in texts if name not in plain]
            rows = max(32, min(_BATCH, _PAGE // largest)) if plain else _BATCH
            table = parquet.ParquetFile(data, metadata=about, read_dictionary=coded, buffer_size=1 << 20)
            batches = table.iter_batches(rows, columns=known, use_threads=False)
            return _read_batches(file, batches, known, about.num_rows, room)
    except (ArrowException, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{printable(file)}: no Parquet file that can be read ({reason}): write it again") from error


@contextmanager
def _arrows() -> Iterator[None]:
    """Tells what pyarrow finds wrong, which it says as an OSError too, from what the system does."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(str(error)) from error


def _refuse_long_footer(file: Path, data: BinaryIO) -> None:
    """Raises DataError where the footer, which is read whole, claims to be very long."""
    data.seek(max(0, size_of(data) - 8))
    length = int.from_bytes(data.read(4), "little")
    data.seek(0)
    if _FOOTER < length < size_of(data):
        what = f"a footer of {length:,} bytes, more than the {_FOOTER:,} allowed"
        raise DataError(f"{printable(file)}: {what}: write it with fewer columns and larger row groups")


def _is_text(file: Path, name: str, kind: Any) -> bool:
    """Whether the column is text. Raises DataError where it is neither that nor whole numbers nor true and false."""
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    if any(fits(inner) for fits in (types.is_string, types.is_large_string, types.is_string_view)):
        return True
    if not (types.is_integer(inner) or types.is_boolean(inner)):
        what = f"{name} is of type {printable(str(inner))[:40]}"
        raise DataError(f"{printable(file)}: {what}: give strings or integers")
    return False


def _refuse_bomb(file: Path, about: Any, size: int) -> int:
    """How many bytes of text may come out of a file of this size. Raises DataError where the rows alone are more."""
    room = max(_ROOM, _RATIO * size)
    if about.num_rows > _MOST:
        raise DataError(f"{printable(file)}: {about.num_rows} rows, more than the {_MOST} allowed: cut it")
    if about.num_rows * _POINTERS > room:
        raise _bomb(file, size, room)
    return room


def _chunks(about: Any, known: Sequence[str]) -> list[Any]:
    """What the footer says of the columns that are read, group by group of rows."""
    if about.num_columns > _MOST_COLUMNS:
        raise ValueError(f"more than the {_MOST_COLUMNS} columns allowed")
    leaves = [k for k in range(about.num_columns) if about.schema.column(k).path in known]
    groups = map(about.row_group, range(about.num_row_groups))
    return [group.column(k) for group in groups for k in leaves]


def _refuse_pages(file: Path, data: BinaryIO, chunks: Sequence[Any], room: int) -> int:
    """Bytes of the largest page, unpacked. Raises DataError where one, or all of them, are too large."""
    total = count = largest = 0
    for chunk in chunks:
        places = (chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
        for page in pages(data, min(places), min(places) + chunk.total_compressed_size):
            total, count, largest = total + page.unpacked, count + 1, max(largest, page.unpacked)
            if largest > _PAGE or count > _MOST_PAGES:
                what = f"more than {_MOST_PAGES:,} pages, or one of more than {_PAGE:,} bytes"
                raise DataError(f"{printable(file)}: {what}: write it with other row groups, or as .csv")
            if total > room:
                raise _bomb(file, size_of(data), room)
    return max(largest, 1)


def _bomb(file: Path, size: int, room: int) -> DataError:
    what = f"its {size:,} bytes unpack to more than the {room:,} of text allowed"
    return DataError(f"{printable(file)}: {what}: if that is meant, write it as .csv")


def _read_batches(file: Path, batches: Iterator[Any], known: Sequence[str], rows: int, room: int) -> Table:
    """The columns, each distinct string made once a batch. Raises DataError where the text outgrows `room`."""
    columns: dict[str, list[str]] = {name: [] for name in known}
    pools: dict[str, dict[str, str]] = {name: {} for name in known if name != "path"}
    size, left, found = file.stat().st_size, room, 0
    for batch in batches:
        for name in known:
            row_N, words, text = _encoded(file, name, batch.column(name), found)
            left -= text
            if left < 0:
                raise _bomb(file, size, room)
            columns[name] += _words(words.to_pylist(), pools.get(name))[row_N].tolist()
        found += len(batch)
        if found > rows:
            break
    if found != rows:
        raise ValueError(f"it declares {rows} rows and has {found} or more")
    return Table(columns, range(1, rows + 1))


def _encoded(file: Path, name: str, column: Any, before: int) -> tuple[np.ndarray, Any, int]:
    """Of each row which distinct value it has, those values, and the bytes of text: of all rows, or of the values."""
    from pyarrow import array as arrow
    from pyarrow import compute, types

    if column.null_count:
        row = before + 1 + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{printable(file)}:{row}: {name} is empty: give a string or an integer")
    coded = column if types.is_dictionary(column.type) else column.dictionary_encode()
    used_K, row_N = np.unique(coded.indices.to_numpy(), return_inverse=True)
    words = coded.dictionary.take(arrow(used_K)) if len(used_K) < len(coded.dictionary) else coded.dictionary
    if words.null_count:
        raise ValueError(f"{name} has an empty entry in its dictionary")
    textual = not (types.is_integer(words.type) or types.is_boolean(words.type))
    size_K = compute.binary_length(words).to_numpy().astype(np.int64) if textual else np.zeros(len(words), np.int64)
    if int(size_K.max(initial=0)) > LONGEST:
        raise DataError(f"{printable(file)}: {name}: a text of more than {LONGEST:,} bytes: leave that row out")
    text = int((size_K[row_N] if name == "path" else size_K).sum())
    return row_N, words, text + _POINTERS * len(row_N)


def _words(values: list[Any], pool: dict[str, str] | None) -> np.ndarray:
    """The values as words, one object for each across batches where there is a pool."""
    found = np.empty(len(values), object)
    words = map(str, values)
    found[:] = list(words) if pool is None else [pool.setdefault(word, word) for word in words]
    return found


def _known(file: Path, header: Sequence[str]) -> list[str]:
    """Those of the columns that we read. Raises DataError when there is no path, or one of them twice."""
    if len(header) > _MOST_COLUMNS:
        raise DataError(f"{printable(file)}:1: more than the {_MOST_COLUMNS:,} columns allowed: leave some out")
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


def _duties(table: Table, row: int) -> frozenset[str]:
    """What a row of the test set does, of `query` and `gallery`; without columns that say so, both."""
    asks, searched = (
        None if words is None else _TRUTHS.get(words[row].lower())
        for words in map(table.columns.get, ("is_query", "is_gallery"))
    )
    if asks is None and searched is None:
        return frozenset(("query", "gallery"))
    asks, searched = (not searched if asks is None else asks), (not asks if searched is None else searched)
    return frozenset(name for name, does in (("query", asks), ("gallery", searched)) if does)


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
