"""One folder, or one list of files, that a recipe names: the images that it has for training and
for testing, with their classes.
"""

import os
from collections.abc import Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from lookalike.data.folders.answers import answers_for, read_answers
from lookalike.data.folders.index import SUFFIXES, scan
from lookalike.data.folders.labelling import Part, Rule, by_folders, by_list
from lookalike.data.folders.layouts import BESIDE, Sets, sets_in
from lookalike.data.folders.pathlist import SUFFIXES as LISTS
from lookalike.data.folders.pathlist import read_list
from lookalike.data.folders.places import folder_at, os_errors_as
from lookalike.data.inventory import Inventory
from lookalike.errors import DataError, printable
from lookalike.folder import at_home

Links = Literal["follow", "inside"]


class Keys(NamedTuple):
    """What a recipe says of all its roots."""

    train: str
    test: str
    rule: Rule
    links: Links


class Root:
    """A root by its name in the recipe; `shown` stands before the names of what it leaves out.

    Raises DataError where there is none.
    """

    def __init__(self, given: str, shown: str, keys: Keys, inventory: Inventory) -> None:
        self._keys, self._shown, self.inventory = keys, shown, inventory
        self.place = at_home(given, DataError)
        with os_errors_as(self.place):
            self.is_list = self.place.is_file() and self.place.suffix.lower() in LISTS
        if not self.is_list:
            folder_at(given, "give the folder that holds the images, or a .txt that lists them")

    @cached_property
    def sets(self) -> Sets:
        """The folders of its sets."""
        if self.is_list:
            return Sets(self.place.parent, None, [], [])
        return sets_in(self.place, self._keys.train, self._keys.test)

    @property
    def is_divided(self) -> bool:
        """Whether it names its sets; else a hash of each path has to divide `trains`."""
        return self.sets.train is not None

    @cached_property
    def trains(self) -> list[Part]:
        """The images of the train set, or all that there are."""
        if self.is_list:
            return read_list(self.place, self._keys.rule.labels != "none")
        train, beside = self.sets.train, self.sets.beside
        if train is not None:
            folder_at(train, "name the folder of the train set with `train`, or leave the key out")
        for why, name in beside:
            self.inventory.leave_out(why, self._shown + name)
        part = self._scanned(self.sets.root if train is None else train, self.inventory)
        return [by_folders(part, self._keys.rule, self.inventory)]

    def test(self, known: Set[bytes]) -> Part | None:
        """The test set that it names, with classes where `known`, those to train on, are some; None
        where there is no folder for it.

        Of two, as of test and val, the first whose images have classes.
        """
        tests = [place for place in self.sets.tests if place.exists()]
        if not tests:
            return None
        chosen = tests[0]
        if known and len(tests) > 1 and self._keys.rule.labels != "none":
            look = Rule("auto", self._keys.rule.class_folder)
            chosen = next(
                (t for t in tests if self._graded(t, known, look, Inventory()).words), chosen
            )
        for other in tests:
            if other != chosen:
                self.inventory.leave_out(BESIDE, self._shown + os.path.relpath(other, self.place))
        part = self._graded(chosen, known, self._keys.rule, self.inventory)
        if known and not part.words and self._keys.rule.labels != "none":
            self.inventory.remark(
                f"{printable(chosen)}: no labels, for its images do not lie in class folders: sort "
                "them into a folder a class"
            )
        return part

    def wall(self, part: Part) -> Path:
        """What no link of the part may lead out of."""
        return part.root if self.is_list else self.place

    def _graded(self, folder: Path, known: Set[bytes], rule: Rule, inventory: Inventory) -> Part:
        """A test set with the classes that its folders, or a list beside it, say."""
        part = self._scanned(folder, inventory)
        if not known or rule.labels == "none":
            return part
        if answers := answers_for(folder):
            names = {path.rpartition(b"/")[2] for path in part.paths}
            if words := read_answers(answers, names):
                return by_list(part, words, inventory)
        return by_folders(part, rule, inventory, known)

    def _scanned(self, folder: Path, inventory: Inventory) -> Part:
        """All images below a folder; what else is there goes into the inventory."""
        within = self.place if self._keys.links == "inside" else None
        paths, left_out = scan(folder, within)
        inner = os.path.relpath(folder, self.place)
        shown = self._shown + ("" if inner == "." else f"{inner}/")
        for why, names in left_out.items():
            inventory.leave_out_all(why, (shown + os.fsdecode(name) for name in names))
        return Part(folder, paths, shown)


def images_below(folder: Path) -> tuple[Sequence[bytes], Inventory]:
    """The paths of all images below a folder, and what else is there. Raises DataError where there
    is none.
    """
    inventory = Inventory()
    paths, left_out = scan(folder)
    for why, names in left_out.items():
        inventory.leave_out_all(why, map(os.fsdecode, names))
    refuse_empty(Part(folder, paths), inventory)
    return paths, inventory


def refuse_empty(part: Part, inventory: Inventory) -> None:
    """Raises DataError for a set without images."""
    if not part.paths:
        said = inventory.said() or "nothing is there"
        raise DataError(
            f"{printable(part.root)}: no images in it or below ({said}); looked for "
            f"{b' '.join(SUFFIXES).decode()}, and at the first bytes of others"
        )


def refuse_twice(roots: Sequence[Root]) -> None:
    """Raises DataError where a root is another one, or lies in it: its images would count twice."""
    folders = [(os.path.realpath(root.place), root) for root in roots]
    for n, (one, root) in enumerate(folders):
        for other, before in (each for m, each in enumerate(folders) if m != n):
            inside = not root.is_list and one.startswith(f"{other.rstrip('/')}/")
            if one == other or inside:
                what = "the same as" if one == other else "within"
                raise DataError(
                    f"{printable(root.place)}: {what} {printable(before.place)}, which is named "
                    "too: name one of them"
                )
