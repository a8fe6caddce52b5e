"""The footer of a Parquet file, of unknown worth; and what pyarrow finds wrong, in our words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lookalike.data.outside import size_of
from lookalike.errors import DataError, printable

_FOOTER = 16 << 20


def metadata(file: Path, data: BinaryIO) -> Any:
    """The footer, pyarrow's FileMetaData. Raises DataError where it is very long."""
    from pyarrow import parquet

    _refuse_long_footer(file, data)
    return parquet.read_metadata(data)


@contextmanager
def parquet_errors(file: Path, kind: str = "Parquet") -> Iterator[None]:
    """Turns what pyarrow says of a file, and that it is missing, into a DataError."""
    try:
        from pyarrow import ArrowException
    except ImportError as error:
        raise DataError(
            f"{printable(file)}: pyarrow is missing: pip install 'lookalike[parquet]'"
            + (", or give a .csv" if kind == "Parquet" else "")
        ) from error
    try:
        with _arrows():
            yield
    except (ArrowException, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{printable(file)}: no {kind} file that can be read ({reason}): write it again"
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
