"""Row groups of Parquet files with images in them -> where the bytes of each image lie.

A row group is all that a Parquet file lets one read: compressed, or as entries of a dictionary.
Where the images lie in it as they are, their places are enough. Else they are unpacked once.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lookalike.data.outside import opened
from lookalike.data.tables.footer import metadata, parquet_errors
from lookalike.data.tables.pages import pages
from lookalike.errors import DataError, printable

NULL = -1
"""Size of an image that a row does not have."""
# Of one page, which is unpacked in memory, and of a row group, which is not.
_PAGE, _GROUP, _MOST_PAGES = 1 << 30, 8 << 30, 200_000
_ROOM, _RATIO = 256 << 20, 100
_HEAD = 64


class RowGroup(NamedTuple):
    """Images of one row group: how many, where their column's chunk lies and what it unpacks to.
    `plain`: not compressed.
    """

    number: int
    rows: int
    start: int
    packed: int
    unpacked: int
    plain: bool
    nulls: int


class Located(NamedTuple):
    """N images of a row group: bytes from the start of a file, int64; crc32 of each.

    `here`: in the Parquet file itself, and not where they were unpacked to.
    """

    offsets_N: np.ndarray
    sizes_N: np.ndarray
    crcs_N: np.ndarray
    here: bool


def row_groups(file: Path, leaf: str) -> list[RowGroup]:
    """The row groups of a file, of one of its columns. Raises DataError."""
    with opened(file) as data, parquet_errors(file):
        about = metadata(file, data)
        leaves = [k for k in range(about.num_columns) if about.schema.column(k).path == leaf]
        if len(leaves) != 1:
            raise ValueError(f"no column {leaf}")
        groups = map(about.row_group, range(about.num_row_groups))
        return [_row_group(file, k, group, leaves[0]) for k, group in enumerate(groups)]


def _row_group(file: Path, number: int, group: Any, leaf: int) -> RowGroup:
    chunk = group.column(leaf)
    starts = (chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
    packed, unpacked = chunk.total_compressed_size, chunk.total_uncompressed_size
    if min(packed, unpacked, *starts, group.num_rows) < 0:
        raise ValueError("a negative size in its footer")
    known = chunk.is_stats_set and chunk.statistics.has_null_count
    nulls = chunk.statistics.null_count if known else 0
    plain = chunk.compression == "UNCOMPRESSED"
    return RowGroup(number, group.num_rows, min(starts), packed, unpacked, plain, nulls)


def locate(file: Path, leaf: str, group: RowGroup, out: BinaryIO) -> Located:
    """Where each image of the row group lies: in the file, or in `out`, to which all are written
    in their order.

    Memory: the chunk as it lies there, its largest page and some images. Raises DataError.
    """
    with opened(file) as data, parquet_errors(file):
        _refuse_bomb(file, data, group)
        if group.plain and (found := _in_place(file, leaf, group, data)):
            return found
        return _copied(file, leaf, group, data, out)


def _refuse_bomb(file: Path, data: BinaryIO, group: RowGroup) -> None:
    """Raises DataError where the pages claim to unpack to far too much; nothing is unpacked."""
    total = 0
    for count, page in enumerate(pages(data, group.start, group.start + group.packed)):
        total += page.unpacked
        if page.unpacked > _PAGE or total > _GROUP or count >= _MOST_PAGES:
            what = f"row group {group.number} unpacks to more than {_GROUP >> 30} GiB, or a page "
            what += f"of it to more than {_PAGE >> 30} GiB"
            raise DataError(f"{printable(file)}: {what}: write it with smaller row groups")
        if total > max(_ROOM, _RATIO * group.packed):
            what = f"row group {group.number} unpacks to more than {_RATIO} times its bytes"
            raise DataError(f"{printable(file)}: {what}: no images do, write it again")


def _values(file: Path, leaf: str, group: RowGroup, data: BinaryIO) -> Iterator[bytes | None]:
    """The bytes of each image in turn; None for a row without one."""
    from pyarrow import parquet, types

    data.seek(0)
    reader = parquet.ParquetFile(data, metadata=metadata(file, data), buffer_size=1 << 20)
    found = total = 0
    # One by one: a dictionary, or what a text shares with the last, makes much of few bytes.
    for batch in reader.iter_batches(
        1, row_groups=[group.number], columns=[leaf], use_threads=False
    ):
        column = batch.column(0)
        for name in leaf.split(".")[1:] if types.is_struct(column.type) else ():
            column = column.flatten()[column.type.get_field_index(name)]
        value = column[0].as_py()
        found, total = found + 1, total + len(value or b"")
        if total > _GROUP:
            raise ValueError(f"the images of a row group are more than {_GROUP >> 30} GiB")
        yield value
    if found != group.rows:
        raise ValueError(f"a row group declares {group.rows} rows and has {found}")


def _in_place(file: Path, leaf: str, group: RowGroup, data: BinaryIO) -> Located | None:
    """Where the images lie in the file, each behind its length, as Parquet's plain encoding has it;
    None where one is not found.
    """
    chunk = os.pread(data.fileno(), group.packed, group.start)
    found, at = [], 0
    for value in _values(file, leaf, group, data):
        if value is None:
            found.append((0, NULL, 0))
            continue
        mark = struct.pack("<I", len(value)) + value[:_HEAD]
        at = chunk.find(mark, at) + 4
        if at < 4 or memoryview(chunk)[at : at + len(value)] != value:
            return None
        found.append((group.start + at, len(value), zlib.crc32(value)))
        at += len(value)
    return _located(found, here=True)


def _copied(file: Path, leaf: str, group: RowGroup, data: BinaryIO, out: BinaryIO) -> Located:
    """Writes each image to `out`, equal ones once."""
    found, at = [], 0
    seen: dict[bytes, tuple[int, int, int]] = {}
    for value in _values(file, leaf, group, data):
        if value is None:
            found.append((0, NULL, 0))
            continue
        digest = hashlib.sha256(value).digest()
        if digest not in seen:
            out.write(value)
            seen[digest] = at, len(value), zlib.crc32(value)
            at += len(value)
        found.append(seen[digest])
    return _located(found, here=False)


def _located(found: list[tuple[int, int, int]], here: bool) -> Located:
    offsets_N, sizes_N, crcs_N = np.array(found, np.int64).reshape(-1, 3).T
    return Located(offsets_N, sizes_N, crcs_N, here)
