"""The words by which people name the parts of a data set -> train, val and test."""

from collections.abc import Collection, Sequence

import numpy as np

from lookalike.data.inventory import Inventory
from lookalike.data.tables import repeats
from lookalike.errors import DataError, printable

WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
UNLABELLED = frozenset({"unlabeled", "unlabelled", "unsupervised"})
"""Parts that are in neither set."""


def part_of(word: str) -> str | None:
    """`train`, `val` or `test`, whatever its case; `unlabeled` for a part without labels; None for
    any other word.
    """
    word = word.strip().lower()
    return "unlabeled" if word in UNLABELLED else WORDS.get(word)


def sets_of(
    file: str, lines: Sequence[int], words: Sequence[str], inventory: Inventory
) -> np.ndarray:
    """In which set each row is, int8 (N,): `val` is the test set where no row says test.

    Rows in neither are noted in the inventory. Raises DataError for a word that is no split.
    """
    parts = {word: part_of(word) for word in set(words)}
    if None in parts.values():
        row = next(row for row, word in enumerate(words) if parts[word] is None)
        what = f"split {words[row][:40]!r} is none of train, test, val"
        raise DataError(f"{file}:{lines[row]}: {what}: fix it")
    sets = {"train": repeats.TRAIN, tested(parts.values()): repeats.TEST}
    of = {word: sets.get(part or "", repeats.NEITHER) for word, part in parts.items()}
    sets_N = np.fromiter(map(of.__getitem__, words), np.int8, len(words))
    for row in np.flatnonzero(sets_N == repeats.NEITHER).tolist():
        inventory.leave_out(f"split {printable(words[row])[:40]}", f"{file}:{lines[row]}")
    return sets_N


def has_labels(words: Sequence[str]) -> np.ndarray:
    """Which rows are of a part whose rows have labels, bool (N,)."""
    of = {word: part_of(word) != "unlabeled" for word in set(words)}
    return np.fromiter(map(of.__getitem__, words), bool, len(words))


def tested(parts: Collection[str | None]) -> str:
    """Which of the parts is the test set: `val` where there is no `test`."""
    return "test" if "test" in parts else "val"
