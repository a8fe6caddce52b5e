"""What a source gave and what it left out: in one line for people, and whole for the run folder."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from lookalike.data.images import Images
from lookalike.data.inventory import Inventory
from lookalike.data.remote import redacted
from lookalike.errors import printable

FILE = "data.json"
MOST_CLASSES = 100_000
"""Of so many classes the file says how many images each has."""


class Account(NamedTuple):
    """A source by its key in the recipe, its sets by their splits, what they left out, and whether
    no stage asks for its test set.
    """

    key: str
    sets: Mapping[str, Images]
    inventory: Inventory
    idle: bool = False

    def lines(self, file: object = None) -> list[str]:
        """One line, and one for each remark; `file`: where the whole list lies."""
        parts = [self._found(), *self._lacking()]
        if left_out := self.inventory.said():
            parts.append(left_out if file is None else f"{left_out}: see {printable(str(file))}")
        told = ["; ".join(parts), *self.inventory.remarks]
        return [redacted(f"{self.key}: {text}") for text in told]

    def plain(self) -> dict[str, Any]:
        """JSON data of all of it, up to `MOST_CLASSES` and `inventory.MOST_NAMES`."""
        names = self.inventory.names()
        return {
            "sets": {split: _plain(images) for split, images in self.sets.items()},
            "left_out": {
                redacted(why): {"number": number, "names": list(map(redacted, names[why]))}
                for why, number, _ in self.inventory
            },
            "remarks": list(map(redacted, self.inventory.remarks)),
        }

    def _found(self) -> str:
        """`11 images in 3 classes (train 8, test 3)`."""
        total = sum(map(len, self.sets.values()))
        labelled = [images for images in self.sets.values() if images.labels is not None]
        classes = {name for images in labelled for name in counts(images)}
        of = f" in {_number(len(classes), 'class')}" if labelled else " without labels"
        each = (
            f"{split} {len(images):,}"
            + (" without labels" if labelled and images.labels is None else "")
            + (" for no stage" if self.idle and split == "test" else "")
            for split, images in self.sets.items()
        )
        return f"{_number(total, 'image')}{of} ({', '.join(each)})"

    def _lacking(self) -> Iterator[str]:
        """Classes of one set that the other has not."""
        if not {"train", "test"} <= self.sets.keys():
            return
        train, test = (counts(self.sets[split]) for split in ("train", "test"))
        if train and test and not train.keys() & test.keys():
            yield "train and test share no class"
        elif train and test:
            yield from _beyond("test", test, "train", train)
            yield from _beyond("train", train, "test", test)


def counts(images: Images) -> dict[str, int]:
    """How many images each class has, by name, of those that have some."""
    if images.labels is None:
        return {}
    numbers, many = torch.unique(images.labels, return_counts=True)
    names = images.classes
    return {
        names[label] if 0 <= label < len(names) else str(label): count
        for label, count in zip(numbers.tolist(), many.tolist(), strict=True)
        if label >= 0
    }


def _beyond(
    one: str, has: Mapping[str, int], other: str, lacks: Mapping[str, int]
) -> Iterator[str]:
    more = [name for name in has if name not in lacks]
    if more:
        verb = "is" if len(more) == 1 else "are"
        yield (
            f"{_number(len(more), 'class')} of {one} {verb} not in {other} "
            f"({printable(more[0])[:60]})"
        )


def _plain(images: Images) -> dict[str, Any]:
    each = counts(images)
    known = {redacted(name): each[name] for name in list(each)[:MOST_CLASSES]}
    return {"images": len(images), "classes": len(each), "images_of": known}


def _number(count: int, word: str) -> str:
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{count:,} {word if count == 1 else plural}"
