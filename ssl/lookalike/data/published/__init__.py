"""Data sets in the layouts in which they were published: lists of images -> sets with one numbering
of classes.

Each has the parts `train`, and `test` or else `query` and `gallery`. What differs from the
published counts is said in one line and used all the same. A listed image that is not there is a
bad one when it is read.
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from lookalike.data.folders.index import below, os_errors_as, scan
from lookalike.data.images import Annotations, FileImages, Fit, Images, Pairs, QueryGallery, Reading
from lookalike.data.inventory import Inventory
from lookalike.data.outside import lines, opened
from lookalike.data.reading import Canvas, canvas_for
from lookalike.data.sources import Split, checked, folder_at
from lookalike.data.tables.repeats import normal
from lookalike.errors import DataError, printable
from lookalike.geometry import PixelFormat
from lookalike.recipe import Size

Key = int | str
Protocol = Literal["zero_shot", "closed_set"]
AGAIN = "fix the line, or fetch the file again"


class Layout(NamedTuple):
    """Title, page and counts (`train images`, `train classes`, …) of a data set as it was
    published.

    `fit`: what its protocol does to images of another shape than the model's.
    """

    title: str
    page: str
    counts: Mapping[str, int]
    fit: Fit = "crop"

    @property
    def remedy(self) -> str:
        """What to do where something is missing."""
        return f"give the folder of {self.title} as published ({self.page})"


class Row(NamedTuple):
    """An image: its path below the root, its class (a number or a word), its camera."""

    path: bytes
    key: Key
    camera: int | None


class Pair(NamedTuple):
    """Two paths to be compared, whether both show the same one, and the fold."""

    a: bytes
    b: bytes
    same: bool
    fold: int


class Listing:
    """What a data set lists below `root`: rows by part, the classes' `names`, pairs, and whatever
    else is counted.
    """

    def __init__(self, root: Path, parts: tuple[str, ...]) -> None:
        self.root = root
        self.parts: dict[str, list[Row]] = {part: [] for part in parts}
        self.names: dict[Key, str] = {}
        self.pairs: list[Pair] = []
        self.counts: dict[str, int] = {}
        self._places: dict[bytes, str] = {}

    def add(
        self, part: str, folder: str, path: str, key: Key, place: str, camera: int | None = None
    ) -> bytes:
        """An image `path` below `folder`, as the line `place` has it -> its path below the root.

        Raises DataError for a path that leaves the folder, or that is listed before.
        """
        relative = below(self.root, path, place)
        if folder:
            relative = b"%b/%b" % (os.fsencode(folder), relative)
        name = normal(relative)
        if name in self._places:
            first = self._places[name]
            raise DataError(
                f"{place}: {printable(path)[:80]} is listed before, at {first}: delete one"
            )
        self._places[name] = place
        self.parts[part].append(Row(relative, key, camera))
        return relative

    def images(self, layout: Layout, wanted: Split, reading: Reading) -> Images:
        """The train or the test set: part by part, each by its paths, so that the order of the
        lists is of no matter.

        The classes of both are numbered together, those of `train` first. Raises DataError where a
        part is empty.
        """
        parts = {
            part: rows
            for part, rows in self.parts.items()
            if (part == "train") == (wanted == "train")
        }
        for part, part_rows in parts.items():
            if not part_rows:
                raise DataError(f"{printable(self.root)}: no {part} images in it; {layout.remedy}")
        self._compare(layout, parts)
        seen = {row.key for row in self.parts["train"]}
        others = {row.key for rows in self.parts.values() for row in rows} - seen
        order = [*sorted(seen), *sorted(others)]
        number = {key: label for label, key in enumerate(order)}
        rows = [row for part_rows in parts.values() for row in sorted(part_rows)]
        cameras = [row.camera for row in rows if row.camera is not None]
        known = Annotations(
            torch.tensor([number[row.key] for row in rows]),
            tuple(self.names.get(key, str(key)) for key in order),
            torch.tensor(cameras) if cameras else None,
            self._roles() if "query" in parts else None,
            self._pairs(rows) if wanted == "test" and self.pairs else None,
        )
        return FileImages(
            self.root,
            [row.path for row in rows],
            reading,
            known,
            within=self.root,
        )

    def _compare(self, layout: Layout, parts: Mapping[str, list[Row]]) -> None:
        found = dict(self.counts)
        for part, rows in parts.items():
            found |= {
                f"{part} images": len(rows),
                f"{part} classes": len({row.key for row in rows}),
            }
        differing = [
            f"{found[what]:,} {what} where the published set has {count:,}"
            for what, count in layout.counts.items()
            if found.get(what, count) != count
        ]
        if differing:
            warnings.warn(
                f"{printable(self.root)}: {', '.join(differing)}: scores are not comparable",
                stacklevel=4,
            )

    def _roles(self) -> QueryGallery:
        asks, searched = len(self.parts["query"]), len(self.parts["gallery"])
        query_N = torch.arange(asks + searched) < asks
        return QueryGallery(query_N, ~query_N)

    def _pairs(self, rows: list[Row]) -> Pairs:
        place = {row.path: i for i, row in enumerate(rows)}
        return Pairs(
            torch.tensor([[place[pair.a], place[pair.b]] for pair in self.pairs]),
            torch.tensor([pair.same for pair in self.pairs]),
            torch.tensor([pair.fold for pair in self.pairs]),
        )


class Published(ABC):
    """A source whose folder holds a data set as it was published."""

    channels = 3
    layout: Layout

    def __init__(self, path: str, canvas: Canvas | None = None) -> None:
        self._path, self._canvas = path, canvas
        self.inventory = Inventory()
        self._known: Listing | None = None

    @abstractmethod
    def listing(self, root: Path) -> Listing:
        """What the data set lists. Raises DataError where a list is missing or wrong."""

    def found(self, folder: Path, root: Path) -> Iterator[str]:
        """The paths of all images below a folder of `root`; what else is there is noted."""
        paths, left_out = scan(folder, root)
        for why, names in left_out.items():
            self.inventory.leave_out_all(why, map(os.fsdecode, names))
        return map(os.fsdecode, paths)

    def split(self, name: Split, size: Size | None = None) -> Images:
        wanted = checked(name)
        root = folder_at(self._path, self.layout.remedy)
        self._known = self._known or self.listing(root)
        canvas = self._canvas or canvas_for(size or 224)
        reading = Reading(canvas, PixelFormat(self.channels), self.layout.fit)
        return self._known.images(self.layout, wanted, reading)


class Divided(Published):
    """One that is split by class, or under `protocol: closed_set` with every class in both, whose
    counts are other.
    """

    closed_set: Mapping[str, int]

    def __init__(
        self, path: str, canvas: Canvas | None = None, protocol: Protocol = "zero_shot"
    ) -> None:
        super().__init__(path, canvas)
        self._closed = protocol == "closed_set"
        if self._closed:
            self.layout = self.layout._replace(counts=self.closed_set)


class Line(NamedTuple):
    """A line of a list: its `file:line`, for people, and its words."""

    place: str
    words: list[str]

    def fields(self, columns: str) -> list[str]:
        """The words, one for each of the columns. Raises DataError when there are more or fewer."""
        if len(self.words) != len(columns.split()):
            raise DataError(
                f"{self.place}: {len(self.words)} fields where `{columns}` belongs: {AGAIN}"
            )
        return self.words


def read(file: Path, header: str = "") -> Iterator[Line]:
    """The lines of a UTF-8 file that are not empty, after those of `header`, where # stands for a
    number.

    Raises DataError for another header, and with file:line for what is not UTF-8 or has no end.
    """
    name, wanted = printable(file), header.splitlines()
    with opened(file) as data:
        for number, line in enumerate(lines(data.readline, name), 1):
            place = f"{name}:{number}"
            try:
                words = line.decode("utf-8-sig" if number == 1 else "utf-8").split()
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: not UTF-8 ({error.reason}): {AGAIN}") from error
            if number <= len(wanted):
                if words != wanted[number - 1].split() and not (
                    wanted[number - 1] == "#" and is_number(words)
                ):
                    what = "a number" if wanted[number - 1] == "#" else f"`{wanted[number - 1]}`"
                    raise DataError(f"{place}: the header is not {what}: {AGAIN}")
            elif words:
                yield Line(place, words)


def is_number(words: list[str]) -> bool:
    """Whether this is one word and a number."""
    return len(words) == 1 and words[0].isascii() and words[0].isdigit()


def whole(word: str, what: str, place: str, low: int, high: int) -> int:
    """The word as a number from `low` to `high`. Raises DataError for any other."""
    if is_number([word]) and len(word) < 19 and low <= int(word) <= high:
        return int(word)
    raise DataError(f"{place}: {what} {word[:40]!r} is not a number from {low} to {high}: {AGAIN}")


def file_in(root: Path, layout: Layout, *names: str) -> Path:
    """The first of these files that is there. Raises DataError, naming them, when there is none."""
    with os_errors_as(root):
        for name in names:
            if (root / name).is_file():
                return root / name
    others = "".join(f", nor {name}" for name in names[1:])
    raise DataError(f"{printable(root / names[0])}: no such file{others}; {layout.remedy}")
