"""Which folders below a root are its train and its test set, however they are spelt."""

import os
from pathlib import Path
from typing import NamedTuple

from lookalike.data.folders.places import os_errors_as
from lookalike.data.folders.suffixes import HIDDEN, is_hidden, is_listed, kind
from lookalike.data.tables.split_words import WORDS

TRAIN, TEST, VAL = (
    tuple(word for word, part in WORDS.items() if part == name) for name in ("train", "test", "val")
)
BESIDE = "beside the sets"

# Where the images of ImageNet lie in what Kaggle gives.
_INNER = "ILSVRC/Data/CLS-LOC"


class Sets(NamedTuple):
    """The folder of the train set, None where one set has to be divided; those that may be the test
    set, the likeliest first; and what else lies in `root`, with the reason why it is left out.
    """

    root: Path
    train: Path | None
    tests: list[Path]
    beside: list[tuple[str, str]]


def sets_in(root: Path, train: str, test: str) -> Sets:
    """The sets of a root: by the names that a recipe gives, or by those that are usual.

    `train` is one as it is; another spelling of it counts where there is nothing else, or a test
    set too: a class of that name would have others beside it.
    """
    folders, files = _entries(root)
    tests = [root / test] if test != "test" else _called(root, folders, *TEST)[:1]
    if test == "test":
        tests += _called(root, folders, *VAL)[:1]
    found = [root / train] if train != "train" else _called(root, folders, *TRAIN)
    if train == "train" and (root / "train") not in found and not tests and len(folders) > 1:
        found = []
    if not found:
        with os_errors_as(root):
            inner = (root / _INNER / "train").is_dir()
        return sets_in(root / _INNER, train, test) if inner else Sets(root, None, [], [])
    taken = {os.path.relpath(place, root).split("/")[0] for place in (found[0], *tests)}
    others = [name for name in folders if os.fsdecode(name) not in taken]
    beside = [(HIDDEN if is_hidden(name) else BESIDE, name) for name in others]
    beside += [(_why(name), name) for name in files]
    return Sets(root, found[0], tests, [(why, os.fsdecode(name)) for why, name in beside])


def _entries(root: Path) -> tuple[list[bytes], list[bytes]]:
    """Folders, itself or through links, and all else in a folder, sorted."""
    with os_errors_as(root), os.scandir(os.fsencode(root)) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries)
    return [name for name, inner in found if inner], [name for name, inner in found if not inner]


def _called(root: Path, folders: list[bytes], *words: str) -> list[Path]:
    """The folders of these names, in any case: word by word, as it is spelt here first."""
    found = []
    for word in words:
        alike = [name for name in map(os.fsdecode, folders) if name.lower() == word]
        found += [root / name for name in sorted(alike, key=lambda name: (name != word, name))]
    return found


def _why(name: bytes) -> str:
    if is_hidden(name):
        return HIDDEN
    return BESIDE if is_listed(name) else kind(name)
