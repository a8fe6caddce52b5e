"""Whether labels allow the scores that are asked for, before there is a feature to score."""

import torch
from torch import Tensor

from lookalike.errors import DataError


def refuse_probe(train_N: Tensor, test_M: Tensor, where: str = "data") -> None:
    """Raises DataError where a linear probe and kNN could say nothing of these labels: of the train
    images, which choose the L2 on some that are held out of each class, and of the test images.
    `where`: their key in the recipe.
    """
    refuse_neighbours(train_N, test_M, "probe", "remove it", where)
    if int(torch.unique(train_N, return_counts=True)[1].max()) < 2:
        raise DataError(
            f"{where}: each of the {len(train_N)} classes has one train image, and the probe "
            "chooses its L2 on images held out of a class: give some class two train images, or "
            "remove probe"
        )


def refuse_neighbours(
    train_N: Tensor, test_M: Tensor, key: str, remedy: str, where: str = "data"
) -> None:
    """Raises DataError where not even neighbours can tell: too few classes, nothing to score, or no
    test image whose class is there to be found. `key` asks for it, `remedy` does without.
    """
    if not len(test_M):
        raise DataError(
            f"{where}: the test set is empty, which {key} scores: add images, or {remedy}"
        )
    if len(torch.unique(train_N)) < 2:
        raise DataError(
            f"{where}: all {len(train_N)} train images are of one class, and {key} tells classes "
            f"apart: give two or more, or {remedy}"
        )
    if not bool(torch.isin(test_M, train_N).any()):
        raise DataError(
            f"{where}: no test image is of a class that the train images have, so {key} could only "
            f"score 0: give both sets the same classes, or {remedy}"
        )
