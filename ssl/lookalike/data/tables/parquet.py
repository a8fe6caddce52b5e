"""A Parquet file of unknown worth -> the columns that we know, as text; what it unpacks to is
bounded before it is. Images that lie in it stay there: see rowgroups.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lookalike.data.outside import LONGEST, opened, size_of
from lookalike.data.tables.columns import MOST_COLUMNS, Columns, places_of
from lookalike.data.tables.features import class_names
from lookalike.data.tables.footer import metadata, parquet_errors
from lookalike.data.tables.pages import pages
from lookalike.data.tables.text import MOST, Table
from lookalike.errors import DataError, printable

_BATCH = 16_384
# What a Parquet file may unpack to: paths of consecutive numbers are kept in a hundredth of their
# bytes.
_ROOM, _RATIO = 256 << 20, 400
_POINTERS = 16
_PAGE, _MOST_PAGES = 64 << 20, 200_000


def read_parquet(file: Path, given: Columns) -> Table:
    """The columns that we know, by row, without images. Raises DataError for what is no table, or
    unpacks to far more than it is.
    """
    with opened(file) as data, parquet_errors(file):
        about = metadata(file, data)
        schema = about.schema.to_arrow_schema()
        names, image = roles_of(file, schema, given)
        room = _refuse_bomb(file, about, size_of(data))
        columns = _columns(file, data, about, schema, names, room)
        classes = class_names(schema.metadata, names.get("label", "")) if image else ()
        return Table(columns, range(1, about.num_rows + 1), image, classes)


def image_leaf(name: str, kind: Any) -> str:
    """Where the bytes of images lie in a column: `image.bytes` of Hugging Face's struct, the name
    of a column of bytes; empty for a column of anything else, and of paths as bytes.
    """
    from pyarrow import types

    binary = (types.is_binary, types.is_large_binary, types.is_binary_view)
    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        inner = at >= 0 and any(fits(kind.field(at).type) for fits in binary)
        return f"{name}.bytes" if inner else ""
    words = name.lower()
    named_path = "path" in words or "file" in words
    return name if not named_path and any(fits(kind) for fits in binary) else ""


def roles_of(file: Path, schema: Any, given: Columns) -> tuple[dict[str, str], str]:
    """Names of the columns to read, by role; and where images lie in place of paths, if they do."""
    held = [name for name in schema.names if image_leaf(name, schema.field(name).type)]
    if given.path is None and "path" not in schema.names and len(held) == 1:
        given = replace(given, path=held[0])
    places = places_of(f"{printable(file)}:1", schema.names, given)
    names = {role: schema.names[at] for role, at in places.items()}
    image = image_leaf(names["path"], schema.field(names["path"]).type)
    if image:
        del names["path"]
    return names, image


def _columns(
    file: Path, data: BinaryIO, about: Any, schema: Any, names: dict[str, str], room: int
) -> dict[str, list[str]]:
    """The columns of these names, by role."""
    from pyarrow import parquet

    if not names:
        return {}
    texts = [
        name for role, name in names.items() if _is_text(file, role, name, schema.field(name).type)
    ]
    chunks = _chunks(about, tuple(names.values()))
    largest = _refuse_pages(file, data, chunks, room)
    plain = {chunk.path_in_schema for chunk in chunks if "DELTA_BYTE_ARRAY" in chunk.encodings}
    coded = [name for name in texts if name not in plain]
    rows = max(32, min(_BATCH, _PAGE // largest)) if plain else _BATCH
    table = parquet.ParquetFile(data, metadata=about, read_dictionary=coded, buffer_size=1 << 20)
    batches = table.iter_batches(rows, columns=list(names.values()), use_threads=False)
    return _read_batches(file, batches, names, about.num_rows, room)


def _is_text(file: Path, role: str, name: str, kind: Any) -> bool:
    """Whether the column is text. Raises DataError where it is neither that nor whole numbers nor
    true and false, nor floats that may be whole.
    """
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    if any(fits(inner) for fits in (types.is_string, types.is_large_string, types.is_string_view)):
        return True
    number = types.is_integer(inner) or (types.is_floating(inner) and role not in ("path", "split"))
    if not (number or types.is_boolean(inner)):
        what = f"{printable(name)[:40]} is of type {printable(str(inner))[:40]}"
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
    file: Path, batches: Iterator[Any], names: dict[str, str], rows: int, room: int
) -> dict[str, list[str]]:
    """The columns by role, each distinct string made once a batch. Raises DataError where the text
    outgrows `room`.
    """
    columns: dict[str, list[str]] = {role: [] for role in names}
    pools: dict[str, dict[str, str]] = {role: {} for role in names if role != "path"}
    size, left, found = file.stat().st_size, room, 0
    for batch in batches:
        for role, name in names.items():
            row_N, words, text = _encoded(file, role, name, batch.column(name), found)
            left -= text
            if left < 0:
                raise _bomb(file, size, room)
            values = _values(file, name, words, row_N, found)
            columns[role] += _words(values, pools.get(role))[row_N].tolist()
        found += len(batch)
        if found > rows:
            break
    if found != rows:
        raise ValueError(f"it declares {rows} rows and has {found} or more")
    return columns


def _values(file: Path, name: str, words: Any, row_N: np.ndarray, before: int) -> list[Any]:
    """The distinct values, whole floats as whole numbers. Raises DataError for other floats."""
    from pyarrow import types

    values: list[Any] = words.to_pylist()
    if not types.is_floating(words.type):
        return values
    for place, value in enumerate(values):
        if not float(value).is_integer():
            row = before + 1 + int(np.flatnonzero(row_N == place)[0])
            what = f"{printable(name)[:40]} is {value}, which is no whole number"
            raise DataError(f"{printable(file)}:{row}: {what}: give strings or integers")
    return [int(value) for value in values]


def _encoded(
    file: Path, role: str, name: str, column: Any, before: int
) -> tuple[np.ndarray, Any, int]:
    """Of each row which distinct value it has, those values, and the bytes of text: of all rows, or
    of the values.
    """
    from pyarrow import array as arrow
    from pyarrow import compute, types

    if column.null_count:
        row = before + 1 + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        what = f"{printable(name)[:40]} is empty"
        raise DataError(f"{printable(file)}:{row}: {what}: give a string or an integer")
    coded = column if types.is_dictionary(column.type) else column.dictionary_encode()
    used_K, row_N = np.unique(coded.indices.to_numpy(), return_inverse=True)
    words = (
        coded.dictionary.take(arrow(used_K))
        if len(used_K) < len(coded.dictionary)
        else coded.dictionary
    )
    if words.null_count:
        raise ValueError(f"{name} has an empty entry in its dictionary")
    kinds = (types.is_integer, types.is_boolean, types.is_floating)
    textual = not any(fits(words.type) for fits in kinds)
    size_K = (
        compute.binary_length(words).to_numpy().astype(np.int64)
        if textual
        else np.zeros(len(words), np.int64)
    )
    if int(size_K.max(initial=0)) > LONGEST:
        raise DataError(
            f"{printable(file)}: {name}: a text of more than {LONGEST:,} bytes: leave that row out"
        )
    text = int((size_K[row_N] if role == "path" else size_K).sum())
    return row_N, words, text + _POINTERS * len(row_N)


def words_of(file: Path, name: str, column: Any, before: int) -> list[str]:
    """A column in memory as words, its distinct values made once; `before`: rows above it.

    Raises DataError for a row without a value.
    """
    _is_text(file, "", name, column.type)
    row_N, words, _ = _encoded(file, "", name, column, before)
    values = _values(file, name, words, row_N, before)
    found: list[str] = _words(values, {})[row_N].tolist()
    return found


def _words(values: list[Any], pool: dict[str, str] | None) -> np.ndarray:
    """The values as words, one object for each across batches where there is a pool."""
    found = np.empty(len(values), object)
    words = map(str, values)
    found[:] = list(words) if pool is None else [pool.setdefault(word, word) for word in words]
    return found
