"""A table of features -> a Parquet, NumPy or CSV file, written in blocks of rows: nothing is held
whole, whatever the number of images.

Names are kept as they are. In CSV, as every text is in quotes, line breaks, commas and quotes are
themselves, and bytes that are no UTF-8 stand as they are (read it with errors="surrogateescape").
In Parquet a column with such a name is one of bytes. In NumPy's files they are the lone surrogates
that Python knows such names by.
"""

import importlib.util
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from lookalike.errors import Error, printable

Kind = Literal["float32", "float16"]
ROOM = 1 << 25
"""Bytes of the features that are held at once."""
_LEAST, _MOST = 64, 1 << 16
_FIRST = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip knows: the same bytes whenever made


class Rows(NamedTuple):
    """So many rows. `texts` by the name of their column, each of rows [start, end), None where one
    has none; `features` the same, (end - start, D) of `kind`.
    """

    rows: int
    dim: int
    kind: Kind
    texts: Mapping[str, Callable[[int, int], list[str | None]]]
    features: Callable[[int, int], np.ndarray]

    def spans(self) -> Iterator[tuple[int, int]]:
        """Blocks of rows that fit the room."""
        step = max(_LEAST, min(_MOST, ROOM // (self.dim * np.dtype(self.kind).itemsize)))
        for start in range(0, self.rows, step):
            yield start, min(self.rows, start + step)


def refuse_ending(path: Path) -> None:
    """Raises Error for a file of another ending, and for Parquet where pyarrow is not there."""
    if path.suffix not in _WRITERS:
        endings = ", ".join(_WRITERS)
        raise Error(f"{printable(path)}: the table ends in one of {endings}: name it so")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise Error(
            f"{printable(path)}: needs pyarrow: pip install 'lookalike[parquet]', or write .npz"
        )


def write_rows(file: BinaryIO, ending: str, rows: Rows) -> None:
    """Writes them as the ending says."""
    _WRITERS[ending](file, rows)


def _csv(file: BinaryIO, rows: Rows) -> None:
    """path, label and split where there are such, f0 … of the shortest digits that give the number
    back.
    """
    heads = [*rows.texts, *(f"f{n}" for n in range(rows.dim))]
    file.write((",".join(heads) + "\n").encode())
    for span in rows.spans():
        texts = [[_quoted(text) for text in read(*span)] for read in rows.texts.values()]
        numbers = rows.features(*span).astype(str)
        lines = (
            ",".join((*words, *values)) for *words, values in zip(*texts, numbers, strict=True)
        )
        file.write("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))


def _quoted(text: str | None) -> str:
    return "" if text is None else '"' + text.replace('"', '""') + '"'


def _npz(file: BinaryIO, rows: Rows) -> None:
    """An array a column, `features` (N, D); of a text that is not there the empty one."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as whole:
        for name, read in rows.texts.items():
            widths = (len(text or "") for span in rows.spans() for text in read(*span))
            kind = f"<U{max(1, *widths)}" if rows.rows else "<U1"
            blocks = (np.array([t or "" for t in read(*span)], kind) for span in rows.spans())
            _array(whole, name, np.dtype(kind), (rows.rows,), blocks)
        numbers = (rows.features(*span) for span in rows.spans())
        little = np.dtype(rows.kind).newbyteorder("<")
        _array(whole, "features", little, (rows.rows, rows.dim), numbers)


def _array(
    whole: zipfile.ZipFile,
    name: str,
    kind: "np.dtype[Any]",
    shape: tuple[int, ...],
    blocks: Iterator[np.ndarray],
) -> None:
    """One array of the archive, block by block."""
    head = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    with whole.open(zipfile.ZipInfo(f"{name}.npy", _FIRST), "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_2_0(entry, head)
        for block in blocks:
            entry.write(np.ascontiguousarray(block, kind).tobytes())


def _parquet(file: BinaryIO, rows: Rows) -> None:
    """A row group a block; features are a fixed-size list."""
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {name: pa.string() if _utf8(rows, name) else pa.binary() for name in rows.texts}
    number = pa.float32() if rows.kind == "float32" else pa.float16()
    listed = pa.list_(pa.field("element", number, nullable=False), rows.dim)
    schema = pa.schema([*kinds.items(), pa.field("features", listed, nullable=False)])
    texts = [name for name in rows.texts if name != "path"]
    with parquet.ParquetWriter(file, schema, use_dictionary=texts) as writer:
        for span in rows.spans():
            columns = [
                pa.array([_as(kind, text) for text in rows.texts[name](*span)], kind)
                for name, kind in kinds.items()
            ]
            flat = pa.array(np.ascontiguousarray(rows.features(*span)).reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=listed))
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _as(kind: Any, text: str | None) -> str | bytes | None:
    return os.fsencode(text) if text is not None and str(kind) == "binary" else text


def _utf8(rows: Rows, name: str) -> bool:
    """Whether all texts of a column are valid."""
    try:
        for span in rows.spans():
            "".join(text or "" for text in rows.texts[name](*span)).encode()
    except UnicodeEncodeError:
        return False
    return True


_WRITERS: dict[str, Callable[[BinaryIO, Rows], None]] = {
    ".parquet": _parquet,
    ".npz": _npz,
    ".csv": _csv,
}
