"""Which classes fine-tuning sees and which it never does.

Published sets come divided: where no class is in both, the train images are seen and the test
images are not. Elsewhere the first classes are seen and the last are not, as CUB and Cars196 are
split.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.data.images import Images, subset
from lookalike.data.passport import labels_digest, passport
from lookalike.errors import DataError

HELD_OUT = 0.5


class Split(NamedTuple):
    """Images to train on, their labels int64 (N,), 0 … C-1 without gaps; test images of other
    classes.
    """

    seen: Images
    labels_N: Tensor
    unseen: Images

    @property
    def classes(self) -> int:
        """C, how many are seen."""
        return int(self.labels_N.max()) + 1

    @property
    def passport(self) -> dict[str, str | int]:
        """What an embedding of `seen` is made of, and must not be scored on: images, their labels
        and class names.
        """
        names, numbers = self.seen.classes, torch.unique(_labels(self.seen)).tolist()
        return {
            **passport(self.seen),
            "labels": labels_digest(
                self.labels_N, tuple(names[n] for n in numbers if 0 <= n < len(names))
            ),
        }


def split_classes(train: Images, test: Images, held_out: float | None = None) -> Split:
    """All of train and all of test where they share no class, or for `held_out` 0; else that share
    (0.5) is unseen.

    Labels below 0 name no class: never trained on. Raises DataError where there are no labels, too
    few classes, or a share of classes that are divided already.
    """
    first = _first_unseen(train, test, held_out)
    if first is None:
        seen, labels_N = of_classes(train, range(len(train.classes)))
        _refuse_one_class(labels_N)
        return Split(seen, labels_N, test)
    seen, labels_N = of_classes(train, range(first))
    _refuse_one_class(labels_N)
    return Split(
        seen,
        labels_N,
        of_classes(test, range(first, max(len(train.classes), len(test.classes))))[0],
    )


def _first_unseen(train: Images, test: Images, held_out: float | None) -> int | None:
    """The first class that is not trained on; None where train and test are divided already, or are
    not to be.
    """
    if held_out == 0:
        return None
    ours, theirs = (torch.unique(_labels(images)) for images in (train, test))
    if torch.isin(ours[ours >= 0], theirs).any():
        return first_unseen(len(train.classes), HELD_OUT if held_out is None else held_out)
    if held_out is not None:
        raise DataError(
            f"finetune.held_out: {held_out:g}, but train and test share no class: all of train is "
            "trained on and all "
            "of test is scored: delete it"
        )
    return None


def first_unseen(count: int, held_out: float) -> int:
    """The first of the last classes, the share `held_out` of `count`; at least two on each side.

    Raises DataError when there are too few classes for that.
    """
    first = count - round(count * held_out)
    if first < 2 or count - first < 2:
        raise DataError(
            f"finetune.held_out: {held_out:g} of {count} classes leaves fewer than 2 on one side: "
            "change it"
        )
    return first


def of_classes(images: Images, classes: range) -> tuple[Images, Tensor]:
    """The images of these classes, and their labels (int64) numbered from 0 without gaps, in order.

    Raises DataError where there are no labels, or none of these classes.
    """
    labels_N = _labels(images)
    rows = torch.nonzero((labels_N >= classes.start) & (labels_N < classes.stop)).flatten()
    if not len(rows):
        raise DataError(
            f"data: no image of the classes {classes.start} to {classes.stop - 1} in this split"
        )
    return subset(images, rows), torch.unique(labels_N[rows], return_inverse=True)[1]


def _refuse_one_class(labels_N: Tensor) -> None:
    if not labels_N.any():
        raise DataError(
            "data: only one class to train on: fine-tuning needs two: give images of another, or "
            "change finetune.held_out"
        )


def _labels(images: Images) -> Tensor:
    if images.labels is None:
        raise DataError(
            "data: fine-tuning and its scores need labels: use class folders, or leave finetune out"
        )
    return images.labels
