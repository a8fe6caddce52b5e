"""Labeled Faces in the Wild: are two faces of the same person? (Huang et al., UMass Amherst TR
07-49, 2007).
"""

import os
from collections.abc import Iterator
from pathlib import Path

from lookalike.data.published import (
    AGAIN,
    Layout,
    Line,
    Listing,
    Pair,
    Published,
    file_in,
    is_number,
    read,
    whole,
)
from lookalike.data.reading import Canvas
from lookalike.errors import DataError, printable
from lookalike.folder import at_home

PERSONS = "give the folder that holds the persons' folders, as Aaron_Eckhart/Aaron_Eckhart_0001.jpg"


class LFW(Published):
    """`Name/Name_0001.jpg` (`lfw`, `lfw_funneled`, `lfw-deepfunneled`) and `pairs.txt` in the
    folder, beside it, or where `pairs` says.

    Test: the images that are compared, with the pairs, in folds by the order of the file. Train:
    all images of persons who are in no pair; what else there is of the others is in neither set.
    """

    layout = Layout(
        "Labeled Faces in the Wild",
        "vis-www.cs.umass.edu/lfw",
        {"images": 13233, "classes": 5749, "pairs": 6000, "test images": 7701},
    )

    def __init__(
        self,
        path: str,
        canvas: Canvas | None = None,
        pairs: str | None = None,
    ) -> None:
        super().__init__(path, canvas)
        self._pairs = pairs

    def listing(self, root: Path) -> Listing:
        listing = Listing(root, ("train", "test"))
        if self._pairs is None:
            file = file_in(root, self.layout, "pairs.txt", "../pairs.txt")
        else:
            file = at_home(self._pairs, DataError)
        persons: set[str] = set()
        compared: dict[str, bytes] = {}
        for line, names, numbers, fold in _pairs(file):
            sides = []
            for name, word in zip((names[0], names[-1]), numbers, strict=True):
                path = f"{name}/{name}_{whole(word, 'image', line.place, 1, 9999):04d}.jpg"
                if path not in compared:
                    compared[path] = listing.add("test", "", path, name, line.place)
                sides.append(compared[path])
            persons.update(names)
            listing.pairs.append(Pair(sides[0], sides[1], len(names) == 1, fold))
        self._train(listing, persons, set(compared.values()))
        return listing

    def _train(self, listing: Listing, compared: set[str], pairs: set[bytes]) -> None:
        paths = list(self.found(listing.root, listing.root))
        persons = set()
        for path in paths:
            name, *rest = path.split("/")
            if len(rest) != 1:
                raise DataError(
                    f"{printable(listing.root / path)}: lies in no person's folder: {PERSONS}"
                )
            persons.add(name)
            if name not in compared:
                listing.add("train", "", path, name, printable(listing.root))
            elif os.fsencode(path) not in pairs:
                self.inventory.leave_out("of a person who is in a pair", path)
        listing.counts |= {
            "images": len(paths),
            "classes": len(persons),
            "pairs": len(listing.pairs),
        }


def _pairs(file: Path) -> Iterator[tuple[Line, list[str], list[str], int]]:
    """Line, names (one or two), image numbers (two) and fold of each pair.

    The first line is `folds  n`, or `n` where there is one fold; a fold is n pairs of one person
    each (`name i j`), then n of two (`name i other j`). Raises DataError for what is not so.
    """
    lines = read(file)
    head = next(lines, Line(f"{printable(file)}:1", []))
    if not 1 <= len(head.words) <= 2 or not all(is_number([word]) for word in head.words):
        raise DataError(f"{head.place}: the header is not `folds pairs`, as in `10 300`: {AGAIN}")
    folds, each = (
        whole(word, "the header's", head.place, 1, 10**6) for word in (["1", *head.words])[-2:]
    )
    place, row = head.place, -1
    for row, line in enumerate(lines):
        place, (fold, within) = line.place, divmod(row, 2 * each)
        if fold >= folds:
            raise DataError(f"{place}: a pair beyond the {2 * each * folds} of the header: {AGAIN}")
        if within < each:
            name, a, b = line.fields("name i j")
            yield line, [name], [a, b], fold
        else:
            name, a, other, b = line.fields("name i other j")
            yield line, [name, other], [a, b], fold
    if row + 1 < 2 * each * folds:
        raise DataError(
            f"{place}: ends after {row + 1} of the {2 * each * folds} pairs of the header: {AGAIN}"
        )
