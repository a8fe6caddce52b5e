"""A Parquet file of unknown worth -> the columns that we know, as text; what it unpacks to is
bounded before it is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lookalike.data.outside import LONGEST, opened, size_of
from lookalike.data.pages import pages
from lookalike.data.tables import MOST, MOST_COLUMNS, Table, known_of
from lookalike.errors import DataError, printable

_BATCH = 16_384
_FOOTER = 16 << 20
# What a Parquet file may unpack to: paths of consecutive numbers are kept in a hundredth of their
# bytes.
_ROOM, _RATIO = 256 << 20, 400
_POINTERS = 16
_PAGE, _MOST_PAGES = 64 << 20, 200_000


def read_parquet(file: Path) -> Table:
    """The columns that we know, by row. Raises DataError for what is no table, or unpacks to far
    more than it is.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"{printable(file)}: pyarrow is missing: pip install 'lookalike[parquet]', or give a "
            ".csv"
        ) from error
    try:
        with opened(file) as data, _arrows():
            _refuse_long_footer(file, data)
            about = parquet.read_metadata(data)
            schema = about.schema.to_arrow_schema()
            known = known_of(file, schema.names)
            texts = [name for name in known if _is_text(file, name, schema.field(name).type)]
            room = _refuse_bomb(file, about, size_of(data))
            chunks = _chunks(about, known)
            largest = _refuse_pages(file, data, chunks, room)
            plain = {
                chunk.path_in_schema for chunk in chunks if "DELTA_BYTE_ARRAY" in chunk.encodings
            }
            coded = [name for name in texts if name not in plain]
            rows = max(32, min(_BATCH, _PAGE // largest)) if plain else _BATCH
            table = parquet.ParquetFile(
                data, metadata=about, read_dictionary=coded, buffer_size=1 << 20
            )
            batches = table.iter_batches(rows, columns=known, use_threads=False)
            return _read_batches(file, batches, known, about.num_rows, room)
    except (ArrowException, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{printable(file)}: no Parquet file that can be read ({reason}): write it again"
        ) from error


@contextmanager
def _arrows() -> Iterator[None]:
    """Tells what pyarrow finds wrong, which it says as an OSError too, from what the system
    does.
    """
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
        raise DataError(
            f"{printable(file)}: {what}: write it with fewer columns and larger row groups"
        )


def _is_text(file: Path, name: str, kind: Any) -> bool:
    """Whether the column is text. Raises DataError where it is neither that nor whole numbers nor
    true and false.
    """
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    if any(fits(inner) for fits in (types.is_string, types.is_large_string, types.is_string_view)):
        return True
    if not (types.is_integer(inner) or types.is_boolean(inner)):
        what = f"{name} is of type {printable(str(inner))[:40]}"
        raise DataError(f"{printable(file)}: {what}: give strings or integers")
    return False


def _refuse_bomb(file: Path, about: Any, size: int) -> int:
    """How many bytes of text may come out of a file of this size. Raises DataError where the rows
    alone are more.
    """
    room = max(_ROOM, _RATIO * size)
    if about.num_rows > MOST:
        raise DataError(
            f"{printable(file)}: {about.num_rows} rows, more than the {MOST} allowed: cut it"
        )
    if about.num_rows * _POINTERS > room:
        raise _bomb(file, size, room)
    return room


def _chunks(about: Any, known: Sequence[str]) -> list[Any]:
    """What the footer says of the columns that are read, group by group of rows."""
    if about.num_columns > MOST_COLUMNS:
        raise ValueError(f"more than the {MOST_COLUMNS} columns allowed")
    leaves = [k for k in range(about.num_columns) if about.schema.column(k).path in known]
    groups = map(about.row_group, range(about.num_row_groups))
    return [group.column(k) for group in groups for k in leaves]


def _refuse_pages(file: Path, data: BinaryIO, chunks: Sequence[Any], room: int) -> int:
    """Bytes of the largest page, unpacked. Raises DataError where one, or all of them, are too
    large.
    """
    total = count = largest = 0
    for chunk in chunks:
        places = (chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
        for page in pages(data, min(places), min(places) + chunk.total_compressed_size):
            total, count, largest = total + page.unpacked, count + 1, max(largest, page.unpacked)
            if largest > _PAGE or count > _MOST_PAGES:
                what = f"more than {_MOST_PAGES:,} pages, or one of more than {_PAGE:,} bytes"
                raise DataError(
                    f"{printable(file)}: {what}: write it with other row groups, or as .csv"
                )
            if total > room:
                raise _bomb(file, size_of(data), room)
    return max(largest, 1)


def _bomb(file: Path, size: int, room: int) -> DataError:
    what = f"its {size:,} bytes unpack to more than the {room:,} of text allowed"
    return DataError(f"{printable(file)}: {what}: if that is meant, write it as .csv")


def _read_batches(
    file: Path, batches: Iterator[Any], known: Sequence[str], rows: int, room: int
) -> Table:
    """The columns, each distinct string made once a batch. Raises DataError where the text outgrows
    `room`.
    """
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
    """Of each row which distinct value it has, those values, and the bytes of text: of all rows, or
    of the values.
    """
    from pyarrow import array as arrow
    from pyarrow import compute, types

    if column.null_count:
        row = before + 1 + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{printable(file)}:{row}: {name} is empty: give a string or an integer")
    coded = column if types.is_dictionary(column.type) else column.dictionary_encode()
    used_K, row_N = np.unique(coded.indices.to_numpy(), return_inverse=True)
    words = (
        coded.dictionary.take(arrow(used_K))
        if len(used_K) < len(coded.dictionary)
        else coded.dictionary
    )
    if words.null_count:
        raise ValueError(f"{name} has an empty entry in its dictionary")
    textual = not (types.is_integer(words.type) or types.is_boolean(words.type))
    size_K = (
        compute.binary_length(words).to_numpy().astype(np.int64)
        if textual
        else np.zeros(len(words), np.int64)
    )
    if int(size_K.max(initial=0)) > LONGEST:
        raise DataError(
            f"{printable(file)}: {name}: a text of more than {LONGEST:,} bytes: leave that row out"
        )
    text = int((size_K[row_N] if name == "path" else size_K).sum())
    return row_N, words, text + _POINTERS * len(row_N)


def _words(values: list[Any], pool: dict[str, str] | None) -> np.ndarray:
    """The values as words, one object for each across batches where there is a pool."""
    found = np.empty(len(values), object)
    words = map(str, values)
    found[:] = list(words) if pool is None else [pool.setdefault(word, word) for word in words]
    return found
