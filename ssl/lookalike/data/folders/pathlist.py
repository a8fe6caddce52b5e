"""A file that lists images, a path a line, perhaps with a class after a tab."""

import os
from collections.abc import Iterator
from pathlib import Path

from lookalike.data.folders.labelling import Part, worded
from lookalike.data.outside import lines, opened
from lookalike.errors import DataError, printable

SUFFIXES = (".txt", ".lst", ".list")
_MOST = 100_000_000
_TRIED = 100


def read_list(file: Path, labelled: bool) -> list[Part]:
    """The images of a list: those whose paths are relative to its folder, then those of absolute
    paths, each in the order of their lines; with their classes, if these are wanted.

    Empty lines and those that begin with # say nothing. Either all lines have a class, or none has.
    Raises DataError with the line for what cannot be so, and where nothing is where the first lines
    say.
    """
    found: dict[Path, tuple[list[bytes], list[bytes]]] = {}
    given, place = None, printable(file)
    for number, path, word in _rows(file):
        if given not in (None, bool(word)):
            what = "a class after a tab, unlike" if word else "no class after a tab, as"
            raise DataError(f"{place}:{number}: {what} the lines before: give all one, or none")
        given = bool(word)
        root = Path("/") if path.startswith(b"/") else file.parent
        paths, words = found.setdefault(root, ([], []))
        paths.append(path.lstrip(b"/") if path.startswith(b"/") else path)
        words.append(word)
    if not found:
        raise DataError(f"{place}: lists no image: write a path a line")
    order = sorted(found, key=lambda root: root == Path("/"))
    parts = [Part(root, found[root][0]) for root in order]
    _refuse_absent(place, parts)
    if not (given and labelled):
        return parts
    return [worded(part, found[part.root][1]) for part in parts]


def _rows(file: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """Line, path and class of each image."""
    place = printable(file)
    with opened(file) as data:
        for number, line in enumerate(lines(data.readline, place), 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            path, _, word = text.rstrip(b"\r\n").partition(b"\t")
            if b"\0" in path or b"\0" in word or b"\t" in word:
                raise DataError(f"{place}:{number}: not `path` nor `path<tab>class`: fix the line")
            if number > _MOST:
                raise DataError(f"{place}: more than {_MOST:,} lines: pack the images in shards")
            if path.strip() and not path.startswith(b"#"):
                yield number, path, word.strip()


def _refuse_absent(place: str, parts: list[Part]) -> None:
    """Raises DataError where none of the first images is there: a list for other folders, or one
    with other things in its lines.
    """
    first = [os.fsencode(part.root) + b"/" + path for part in parts for path in part.paths[:_TRIED]]
    if any(os.path.exists(path) for path in first):  # noqa: PTH110 (Path takes no bytes)
        return
    name = printable(os.fsdecode(first[0]))
    hint = "use / in place of \\" if b"\\" in first[0] else "paths begin in the folder of the list"
    raise DataError(
        f"{place}: none of its first {len(first)} images is there ({name}): {hint}, and a class "
        "stands after a tab"
    )
