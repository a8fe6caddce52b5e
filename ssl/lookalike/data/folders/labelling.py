"""Some images of one root, and the class of each: by the folder that it lies in, or by a list."""

import os
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lookalike.data.folders.index import chosen, top_folders
from lookalike.data.inventory import Inventory
from lookalike.data.mapped import kept
from lookalike.errors import DataError, printable

Labels = Literal["auto", "folders", "none"]
ClassFolder = Literal["first", "last", "path"]

NO_LABEL, LOOSE = "no label", "in no class folder"
# A folder of one of these names, alone in a test set, holds images and is no class.
_NO_CLASS = {b"images", b"image", b"imgs", b"img", b"jpegimages"}
_FEW = 10


class Part(NamedTuple):
    """N images in files below `root`, and the class of each, int64 (N,) into the sorted `words`;
    None where nothing is known of it. `shown`: what people read before their paths.
    """

    root: Path
    paths: Sequence[bytes]
    shown: str = ""
    words: tuple[bytes, ...] = ()
    numbers_N: np.ndarray | None = None

    def of(self, mask_N: np.ndarray) -> "Part":
        """Those where the mask is True; the words stay."""
        numbers_N = None if self.numbers_N is None else kept(self.numbers_N[mask_N])
        return self._replace(paths=chosen(self.paths, mask_N), numbers_N=numbers_N)


class Rule(NamedTuple):
    """How class folders are understood: the keys `labels` and `class_folder` of a recipe."""

    labels: Labels
    class_folder: ClassFolder


def by_folders(
    part: Part, rule: Rule, inventory: Inventory, known: Set[bytes] = frozenset()
) -> Part:
    """The part with the classes of its folders, sorted by name, if it has any.

    `known`: the classes of the train set, where this is a test set. Images beside the class folders
    are left out where they are few, up to a hundredth of the others, or ten and a tenth; where they
    are many, the folders are no classes, which is remarked. Raises DataError for any where the rule
    wants every image in a class folder.
    """
    if rule.labels == "none":
        return part
    loose = _loose(part.paths)
    rest = len(part.paths) - len(loose)
    if loose and rule.labels == "folders":
        place = printable(part.root / os.fsdecode(part.paths[loose[0]]))
        raise DataError(f"{place}: in no class folder; move it into one, or set labels to none")
    inner = _without(part, loose)
    classes = _classes(inner, rule, known)
    if not classes.words:
        return part
    if len(loose) > max(rest // 100, min(_FEW, rest // 10)):
        first = printable(os.fsdecode(part.paths[loose[0]]))
        inventory.remark(
            f"{printable(part.root)}: no labels, for {len(loose):,} of {len(part.paths):,} images "
            f"lie in no class folder ({first}): move them, or set labels to none"
        )
        return part
    inventory.leave_out_all(LOOSE, (_name(part, row) for row in loose))
    return classes


def by_list(part: Part, words: dict[bytes, bytes], inventory: Inventory) -> Part:
    """The part with the class that a list gives for each file name; images that it does not name
    are left out.
    """
    given = [words.get(path.rpartition(b"/")[2]) for path in part.paths]
    inventory.leave_out_all(NO_LABEL, (_name(part, n) for n, w in enumerate(given) if w is None))
    inner = part.of(np.array([word is not None for word in given], bool))
    return worded(inner, [word for word in given if word is not None])


def worded(part: Part, words: Iterable[bytes]) -> Part:
    """The part with the class of each image by its word."""
    met: dict[bytes, int] = {}
    first_N = np.fromiter((met.setdefault(w, len(met)) for w in words), np.int64, len(part.paths))
    names = tuple(sorted(met))
    number_C = np.empty(len(names), np.int64)
    number_C[[met[name] for name in names]] = np.arange(len(names))
    return part._replace(words=names, numbers_N=kept(number_C[first_N]))


def _classes(part: Part, rule: Rule, known: Set[bytes]) -> Part:
    """The part, every image of which lies in a folder, with its classes; without, where the rule
    says that these are none.
    """
    folders = top_folders(part.paths)
    assert isinstance(folders, dict)
    if not folders:
        return part
    if rule.labels == "auto":
        (first, *more) = folders
        alone = not more and (not known or first.lower() in _NO_CLASS - known)
        if alone:
            return part
    if rule.class_folder == "first":
        numbers_N = np.empty(len(part.paths), np.int64)
        words = sorted(folders)
        for number, word in enumerate(words):
            rows = folders[word]
            numbers_N[rows.start : rows.stop] = number
        return part._replace(words=tuple(words), numbers_N=kept(numbers_N))
    inner: Iterator[bytes] = (path.rpartition(b"/")[0] for path in part.paths)
    if rule.class_folder == "last":
        inner = (path.rpartition(b"/")[2] for path in inner)
    return worded(part, inner)


def _loose(paths: Sequence[bytes]) -> list[int]:
    """The rows of images in no folder; to look for them takes longer than to see that there are
    none.
    """
    if isinstance(top_folders(paths), dict):
        return []
    return [row for row, path in enumerate(paths) if b"/" not in path]


def _without(part: Part, rows: list[int]) -> Part:
    """The part without these sorted rows."""
    if not rows:
        return part
    mask_N = np.ones(len(part.paths), bool)
    mask_N[rows] = False
    return part.of(mask_N)


def _name(part: Part, row: int) -> str:
    return part.shown + os.fsdecode(part.paths[row])
