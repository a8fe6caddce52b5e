"""Images that a table lists more than once: in both sets, with two labels, or twice in one; by path
alone.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lookalike.errors import printable

TRAIN, TEST, NEITHER = 0, 1, -1
"""In which set a row is."""

REMEDIES = {
    "set": "scores on images that were trained on are no scores: delete them from one",
    "label": "delete the wrong rows",
    "again": "delete all rows but one",
}


class Repeat(NamedTuple):
    """What was found: how many images, and the first that shows it, in two rows."""

    kind: str
    images: int
    earlier: int
    later: int


def normal(path: bytes) -> bytes:
    """One spelling for all that name the same file below a folder, links apart: `.//a.png` is
    `a.png`.
    """
    if b"//" in path or b"./" in path or path.endswith((b"/", b"/.")):
        return posixpath.normpath(path)
    return path


def grouped(paths: Sequence[bytes]) -> list[list[int]]:
    """The rows of each image that has two or more."""
    names = list(map(normal, paths))
    again = (
        {name for name, count in Counter(names).items() if count > 1}
        if len(set(names)) < len(names)
        else set()
    )
    rows: dict[bytes, list[int]] = {name: [] for name in again}
    if not again:
        return []
    for row, name in enumerate(names):
        if name in again:
            rows[name].append(row)
    return sorted(rows.values())


def found(
    groups: Sequence[Sequence[int]],
    sets_N: np.ndarray,
    labels: Sequence[str] | None,
    duties: Callable[[int], frozenset[str]],
) -> list[Repeat]:
    """The repeats of each kind. Rows in no set count for none; two of the test set may ask and be
    searched once each.

    `duties`: what a row of the test set does, of `query` and `gallery`.
    """
    firsts: dict[str, tuple[int, int]] = {}
    counts: Counter[str] = Counter()
    for rows in groups:
        for kind, pair in _kinds(
            [row for row in rows if sets_N[row] != NEITHER], sets_N, labels, duties
        ).items():
            counts[kind] += 1
            firsts[kind] = min(firsts.get(kind, pair), pair, key=lambda two: two[1])
    return [Repeat(kind, counts[kind], *firsts[kind]) for kind in REMEDIES if kind in firsts]


def _kinds(
    rows: Sequence[int],
    sets_N: np.ndarray,
    labels: Sequence[str] | None,
    duties: Callable[[int], frozenset[str]],
) -> Mapping[str, tuple[int, int]]:
    """What is wrong with the rows of one image, and two rows that show it."""
    kinds: dict[str, tuple[int, int]] = {}
    taken: dict[tuple[int, str], int] = {}
    for row in rows:
        if sets_N[row] != sets_N[rows[0]]:
            kinds.setdefault("set", (rows[0], row))
        if labels is not None and labels[row] != labels[rows[0]]:
            kinds.setdefault("label", (rows[0], row))
        for duty in duties(row) if sets_N[row] == TEST else ("",):
            earlier = taken.setdefault((int(sets_N[row]), duty), row)
            if earlier != row and (labels is None or labels[row] == labels[earlier]):
                kinds.setdefault("again", (earlier, row))
    return kinds


def told(repeat: Repeat, file: str, lines: Sequence[int], path: bytes, sets_N: np.ndarray) -> str:
    """One line: place, image, what is wrong with it, how many more, remedy."""
    earlier, later = lines[repeat.earlier], lines[repeat.later]
    name = printable(path.decode(errors="surrogateescape"))[:80]
    if repeat.kind == "set":
        names = {TRAIN: "train", TEST: "test"}
        here, there = (names[int(sets_N[at])] for at in (repeat.later, repeat.earlier))
        what = f"is in the {here} set, and in the {there} set"
    else:
        what = "has another label" if repeat.kind == "label" else "is listed again"
        what += " than" if repeat.kind == "label" else ", as"
    more = f"{repeat.images:,} such images" if repeat.images > 1 else "the only such image"
    return f"{file}:{later}: {name} {what} on line {earlier} ({more}): {REMEDIES[repeat.kind]}"
