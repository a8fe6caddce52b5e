"""Arrow files as `datasets` saves them, of unknown worth -> the columns that we know, as text, and
where the bytes of each image lie. Nothing is unpacked: such files are not compressed.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lookalike.data.outside import opened
from lookalike.data.tables.columns import Columns
from lookalike.data.tables.features import class_names
from lookalike.data.tables.footer import parquet_errors
from lookalike.data.tables.parquet import roles_of, words_of
from lookalike.data.tables.rowgroups import NULL
from lookalike.data.tables.text import MOST, Table
from lookalike.errors import DataError, printable

_MAGIC = b"ARROW1"
_RECORD_BATCH_COMPRESSION = 3


class Places(NamedTuple):
    """Where the N images of a file lie in it, int64; size NULL for a row without one, whose file
    `paths` may name.
    """

    offsets_N: np.ndarray
    sizes_N: np.ndarray
    paths: list[str]


def read_arrow(file: Path, given: Columns) -> tuple[Table, Places]:
    """The columns that we know, by row, and the places of the images. Raises DataError."""
    import pyarrow as pa

    with opened(file), parquet_errors(file, "Arrow"):
        whole = pa.memory_map(str(file)).read_buffer()
        _refuse_compressed(whole)
        reader = pa.ipc.open_stream(whole)
        names, image = roles_of(file, reader.schema, given)
        if not image:
            remedy = "save it with the images in it, or list their paths in a manifest"
            raise DataError(f"{printable(file)}: no column of images: {remedy}")
        columns: dict[str, list[str]] = {role: [] for role in names}
        places, rows = [], 0
        for batch in reader:
            batch.validate()
            for role, name in names.items():
                columns[role] += words_of(file, name, batch.column(name), rows)
            places.append(_places(batch, image, whole))
            rows += len(batch)
            if rows > MOST:
                raise DataError(f"{printable(file)}: more than the {MOST:,} rows allowed: cut it")
        classes = class_names(reader.schema.metadata, names.get("label", ""))
        return Table(columns, range(1, rows + 1), image, classes), _joined(places)


def _refuse_compressed(whole: Any) -> None:
    """Raises ValueError where a message's body is compressed: how far it unpacks nobody bounds, and
    the images have no place in the file.
    """
    from pyarrow import ipc

    if whole[:6].to_pybytes() == _MAGIC:
        raise ValueError("Arrow's file format, not the stream that datasets saves")
    for message in ipc.MessageReader.open_stream(whole):
        if message.type in ("record batch", "dictionary") and _compression(
            message.metadata.to_pybytes(), message.type == "dictionary"
        ):
            raise ValueError("compressed")


def _compression(data: bytes, dictionary: bool) -> bool:
    """Whether a message says how its body is compressed.

    Apache Arrow, format/Message.fbs: Message has `header` as its field 2, DictionaryBatch `data` as
    1, RecordBatch `compression` as 3; FlatBuffers puts a table's fields behind its vtable. Raises
    ValueError for what is no such message.
    """
    try:
        header = _field(data, _to(data, 0), 2)
        batch = _field(data, header, 1) if dictionary and header else header
        return bool(batch and _field(data, batch, _RECORD_BATCH_COMPRESSION))
    except struct.error as error:
        raise ValueError("a message that is none") from error


def _to(data: bytes, at: int) -> int:
    """Where the offset that stands at `at` leads."""
    return at + int(struct.unpack_from("<I", data, at)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Where the table's field that is a table lies, 0 where it has none."""
    vtable = table - int(struct.unpack_from("<i", data, table)[0])
    if vtable < 0:
        raise ValueError("a message that is none")
    slot = 4 + 2 * number
    if slot >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = int(struct.unpack_from("<H", data, vtable + slot)[0])
    return _to(data, table + offset) if offset else 0


def _joined(places: Sequence[Places]) -> Places:
    nothing = np.zeros(0, np.int64)
    return Places(
        np.concatenate([nothing, *(part.offsets_N for part in places)]),
        np.concatenate([nothing, *(part.sizes_N for part in places)]),
        [path for part in places for path in part.paths],
    )


def _places(batch: Any, leaf: str, whole: Any) -> Places:
    """The places of a batch's images. Raises ValueError where they are not in the file as they
    are.
    """
    from pyarrow import types

    name, _, inner = leaf.rpartition(".")
    column = batch.column(name or inner)
    missing_N = column.is_null().to_numpy(zero_copy_only=False)
    held = column
    if name:
        held = column.field(column.type.get_field_index(inner))
        missing_N = missing_N | held.is_null().to_numpy(zero_copy_only=False)
    if types.is_binary_view(held.type):
        raise ValueError("images as binary views")
    wide = types.is_large_binary(held.type)
    _, ends, data = held.buffers()
    if not len(batch) or ends is None or data is None or not data.size:
        nowhere_N = np.where(missing_N, NULL, 0).astype(np.int64)
        return Places(nowhere_N, nowhere_N, _paths(column))
    ends_N = np.frombuffer(ends, "<i8" if wide else "<i4").astype(np.int64)
    ends_N = ends_N[held.offset : held.offset + len(held) + 1]
    start, sizes_N = data.address - whole.address, np.diff(ends_N)
    inside = len(ends_N) == len(held) + 1 and 0 <= start <= whole.size - data.size
    if not inside or ends_N[0] < 0 or (sizes_N < 0).any() or ends_N[-1] > data.size:
        raise ValueError("compressed, or offsets of images that do not fit")
    sizes_N[missing_N] = NULL
    return Places(start + ends_N[:-1], sizes_N, _paths(column) if missing_N.any() else _none(batch))


def _none(batch: Any) -> list[str]:
    return [""] * len(batch)


def _paths(column: Any) -> list[str]:
    """The files that the rows name, empty where they name none."""
    from pyarrow import types

    at = column.type.get_field_index("path") if types.is_struct(column.type) else -1
    if at < 0 or not types.is_string(column.type.field(at).type):
        return [""] * len(column)
    return [path or "" for path in column.field(at).to_pylist()]
