"""Which classes fine-tuning sees and which it never does: the first and the last ones, as CUB and Cars196 are split."""

import torch
from torch import Tensor

from lookalike.data.pictures import Pictures, subset
from lookalike.errors import DataError


def split_classes(count: int, held_out: float) -> tuple[range, range]:
    """(seen, unseen) of `count` classes, the share `held_out` unseen; at least two on each side.

    Raises DataError when there are too few classes for that.
    """
    first_unseen = count - round(count * held_out)
    if first_unseen < 2 or count - first_unseen < 2:
        raise DataError(
            f"finetune.held_out: {held_out:g} of {count} classes leaves fewer than 2 on one side: change it"
        )
    return range(first_unseen), range(first_unseen, count)


def of_classes(pictures: Pictures, classes: range) -> tuple[Pictures, Tensor]:
    """The pictures of these classes, and their labels (int64) counted from the first of them.

    Raises DataError where there are no labels, or none of these classes.
    """
    if pictures.labels is None:
        raise DataError("data: fine-tuning and its scores need labels: use class folders, or leave finetune out")
    rows = torch.nonzero((pictures.labels >= classes.start) & (pictures.labels < classes.stop)).flatten()
    if not len(rows):
        raise DataError(f"data: no picture of the classes {classes.start} to {classes.stop - 1} in this split")
    return subset(pictures, rows), pictures.labels[rows] - classes.start
