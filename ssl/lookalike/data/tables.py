"""A table that a user wrote -> the columns that we know, as text: CSV here, Parquet in
parquet.py.
"""

import csv
import difflib
import io
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

from lookalike.data.outside import LONGEST, opened
from lookalike.errors import DataError, printable

COLUMNS = ("path", "label", "camera", "split", "is_query", "is_gallery")
MOST = 200_000_000
MOST_COLUMNS = 10_000


class Table(NamedTuple):
    """The columns that the file has, N rows; the line of each in a CSV, its number in Parquet."""

    columns: dict[str, list[str]]
    lines: Sequence[int]


def read_csv(file: Path) -> Table:
    """The columns that we know, by line. Raises DataError with file:line for what is no table."""
    columns: dict[str, list[str]] = {}
    lines = array("q")
    with opened(file) as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as text:
        source = _Rows(text, printable(file))
        rows = csv.reader(source, strict=True)
        try:
            header = next(rows, [])
            places = [
                (header.index(name), columns.setdefault(name, []))
                for name in known_of(file, header)
            ]
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
                if len(lines) > MOST:
                    raise DataError(
                        f"{printable(file)}: more than the {MOST:,} rows allowed: cut it"
                    )
        except csv.Error as error:
            raise DataError(
                f"{printable(file)}:{rows.line_num}: {error}: fix the line, or quote its fields"
            ) from error
        except UnicodeDecodeError as error:
            where = f"{printable(file)}:{_undecodable(file)}"
            raise DataError(f"{where}: not UTF-8 ({error.reason}): save it as UTF-8") from error
    return Table(columns, lines)


def known_of(file: Path, header: Sequence[str]) -> list[str]:
    """Those of the columns that we read. Raises DataError when there is no path, or one of them
    twice.
    """
    if len(header) > MOST_COLUMNS:
        raise DataError(
            f"{printable(file)}:1: more than the {MOST_COLUMNS:,} columns allowed: leave some out"
        )
    for name in COLUMNS:
        if header.count(name) > 1:
            raise DataError(f"{printable(file)}:1: two columns {name}: rename one")
    for name in header:
        near = difflib.get_close_matches(name.strip().lower(), COLUMNS, n=1, cutoff=0.75)
        if near and name not in COLUMNS and near[0] not in header:
            raise DataError(
                f"{printable(file)}:1: column {printable(name)[:40]!r}: did you mean {near[0]!r}? "
                "rename it"
            )
    if "path" not in header:
        found = ", ".join(printable(name)[:40] for name in header[:8]) or "nothing"
        raise DataError(f"{printable(file)}:1: no column path, the header has {found}: name it so")
    return [name for name in COLUMNS if name in header]


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
            raise DataError(
                f"{self._place}:{self.number}: {what}: fix its quotes, or leave that column out"
            )
        if not line:
            raise StopIteration
        return line


def _undecodable(file: Path) -> int:
    """The first line that is not UTF-8; the reader decodes ahead of its lines."""
    with opened(file) as data:
        read = enumerate(iter(partial(data.readline, 4 * LONGEST), b""), 1)
        return next((n for n, line in read if "\ufffd" in line.decode(errors="replace")), 0)
