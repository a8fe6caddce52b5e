"""A table that a user wrote -> the columns that we know, as text: CSV here, Parquet in
parquet.py.

The header line says what separates the fields: whichever of comma, semicolon, tab and bar leaves a
column of paths in it.
"""

import csv
import io
import re
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

import numpy as np

from lookalike.data.outside import LONGEST, opened
from lookalike.data.tables.columns import Columns, has_path, places_of
from lookalike.errors import DataError, printable

MOST = 200_000_000
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# Excel's own line above the header.
_EXCEL = re.compile(r"sep=([,;\t|])[\r\n]*", re.IGNORECASE)


class Table(NamedTuple):
    """The columns that the file has, N rows, by role; the line of each in a CSV, its number in
    Parquet.

    Without a column `path` each row of a Parquet file holds the image, in its column `image`; the
    labels are then numbers of `classes`, where the file says what these are.
    """

    columns: dict[str, list[str]]
    lines: Sequence[int]
    image: str = ""
    classes: tuple[str, ...] = ()

    def where(self, mask_N: np.ndarray) -> "Table":
        """The rows where the mask is True."""
        kept = {role: list(compress(words, mask_N)) for role, words in self.columns.items()}
        return self._replace(columns=kept, lines=list(compress(self.lines, mask_N)))


def read_csv(file: Path, given: Columns) -> Table:
    """The columns that we know, by line. Raises DataError with file:line for what is no table."""
    name = printable(file)
    with opened(file) as data, io.TextIOWrapper(data, _encoding(data), newline="") as text:
        source = _Rows(text, name)
        try:
            return _read(source, name, given)
        except csv.Error as error:
            raise DataError(
                f"{name}:{source.number}: {error}: fix the line, or quote its fields"
            ) from error
        except UnicodeError as error:
            if text.encoding == "utf-16":
                raise DataError(f"{name}: no whole UTF-16: save it as UTF-8") from error
            reason = getattr(error, "reason", "?")
            where = f"{name}:{_undecodable(file)}"
            raise DataError(f"{where}: not UTF-8 ({reason}): save it as UTF-8") from error


def _encoding(data: BinaryIO) -> str:
    """UTF-8, or UTF-16 where its mark says so, as in what Excel calls Unicode text."""
    mark = data.read(2)
    data.seek(0)
    return "utf-16" if mark in _UTF_16 else "utf-8-sig"


def _read(source: "_Rows", name: str, given: Columns) -> Table:
    separator = _separator(source, name, given)
    rows = csv.reader(source, delimiter=separator, strict=True)
    header = next(rows, [])
    places = places_of(f"{name}:{source.number or 1}", header, given)
    # Spaces behind the separators of the header stand behind those of the rows too.
    spaced = any(header[at] != header[at].strip() for at in places.values())
    columns: dict[str, list[str]] = {role: [] for role in places}
    ends = [(at, columns[role].append) for role, at in places.items()]
    lines = array("q")
    for row in rows:
        source.room = LONGEST
        if len(row) != len(header):
            if not row:  # an empty line
                continue
            raise csv.Error(f"{len(row)} fields where the header has {len(header)}")
        lines.append(source.number)
        for at, append in ends:
            append(row[at])
        if len(lines) > MOST:
            raise DataError(f"{name}: more than the {MOST:,} rows allowed: cut it")
    if spaced:
        columns = {role: [word.strip() for word in column] for role, column in columns.items()}
    return Table(columns, lines)


def _separator(source: "_Rows", name: str, given: Columns) -> str:
    """What separates the fields of the header. Raises DataError where two of the candidates give
    different paths.
    """
    if said := _EXCEL.fullmatch(source.ahead()):
        next(source)
        return said[1]
    line = source.ahead()
    headers = {separator: _fields(line, separator) for separator in SEPARATORS}
    found = [separator for separator in SEPARATORS if has_path(headers[separator], given)]
    if not found:
        return ","
    if len({headers[separator] for separator in found}) > 1:
        one, other = (SEPARATORS[separator] for separator in found[:2])
        what = f"its fields may be separated by {one} or {other}"
        raise DataError(f"{name}:1: {what}: write it with commas, quoting what holds one")
    return found[0]


def _fields(line: str, separator: str) -> tuple[str, ...]:
    try:
        return tuple(next(csv.reader([line], delimiter=separator, strict=True), []))
    except csv.Error:
        return ()


class _Rows:
    """The lines of a CSV; `room` is what the row may still have: quoted, it may span many lines.
    `number` is that of the last.
    """

    def __init__(self, text: TextIO, place: str) -> None:
        self._text, self._place, self.room, self.number = text, place, LONGEST, 0
        self._waiting: str | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def ahead(self) -> str:
        """The next line, which stays the next; empty at the end."""
        if self._waiting is None:
            self._waiting = self._text.readline(self.room + 1)
            self.room -= len(self._waiting)
            if self.room < 0:
                raise self._too_long()
        return self._waiting

    def __next__(self) -> str:
        line, self._waiting = self._waiting, None
        if line is None:
            line = self._text.readline(self.room + 1)
            self.room -= len(line)
            if self.room < 0:
                raise self._too_long()
        if not line:
            raise StopIteration
        self.number += 1
        return line

    def _too_long(self) -> DataError:
        what = f"a row of more than {LONGEST:,} characters"
        return DataError(
            f"{self._place}:{self.number + 1}: {what}: fix its quotes, or leave that column out"
        )


def _undecodable(file: Path) -> int:
    """The first line that is not UTF-8; the reader decodes ahead of its lines."""
    with opened(file) as data:
        read = enumerate(iter(partial(data.readline, 4 * LONGEST), b""), 1)
        return next((n for n, line in read if "\ufffd" in line.decode(errors="replace")), 0)
