"""Labels as a classifier's loss takes them, and what each class weighs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.data.images import Images
from lookalike.data.passport import labels_digest
from lookalike.errors import DataError


@dataclass(frozen=True)
class Targets:
    """Which images of a set are learned from or scored, `rows_K` int64, and what they show:
    `labels_K` int64 (K,), or with several labels an image `several_KC` bool (K, C), and then
    `labels_K` is 0 throughout.
    """

    rows_K: Tensor
    labels_K: Tensor
    several_KC: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows_K)

    def of(self, ids_M: Tensor) -> "Targets":
        """Some of them, by their place among these."""
        several = None if self.several_KC is None else self.several_KC[ids_M]
        return Targets(self.rows_K[ids_M], self.labels_K[ids_M], several)

    @property
    def values(self) -> Tensor:
        """What the loss takes: int64 (K,), or (K, C) of 0 and 1."""
        return self.labels_K if self.several_KC is None else self.several_KC

    def digest(self, classes: tuple[str, ...]) -> str:
        """sha256 of them and of the classes' names."""
        values = self.labels_K if self.several_KC is None else self.several_KC.long()
        return labels_digest(values.contiguous(), classes)


def class_names(images: Images) -> tuple[str, ...]:
    """The names of the classes; the numbers where they have none."""
    if images.classes:
        return images.classes
    count = 0 if images.labels is None or not len(images) else int(images.labels.max()) + 1
    return tuple(map(str, range(count)))


def targets_of(images: Images, classes: int, *, multi_label: bool) -> Targets:
    """The images that show any of the first `classes`, and which; those of no class, or of one
    that is not among these, are left out. Raises DataError where labels are not of that kind.
    """
    several_NC = images.several
    if multi_label:
        if several_NC is None:
            raise DataError(
                "classify.multi_label: true, but of these images none has several labels: give a "
                "table whose label column holds them, and data.separator, or set it to false"
            )
        rows_K, several_KC = torch.arange(len(images)), several_NC[:, :classes]
        return Targets(rows_K, torch.zeros(len(rows_K), dtype=torch.int64), several_KC)
    if images.labels is None:
        several = several_NC is not None
        raise DataError(
            "data: images of several labels each, which classify learns with multi_label: true"
            if several
            else "data: no labels, which classify needs: use class folders, or remove it"
        )
    rows_K = torch.nonzero((images.labels >= 0) & (images.labels < classes)).flatten()
    return Targets(rows_K, images.labels[rows_K])


def one_hot(targets: Tensor, classes: int) -> Tensor:
    """Classes (B,) or shares (B, C) -> shares of each class, float32 (B, C)."""
    return F.one_hot(targets, classes).float() if targets.dim() == 1 else targets.float()


def class_weights(kind: str | Sequence[float], targets: Targets, classes: int) -> Tensor | None:
    """What each class weighs in the loss, float32 (C,), or None for all alike.

    `balanced`: N / (C n) for a class of n images, so that the classes weigh alike and an image on
    average 1 (scikit-learn's rule; C counts the classes that have any); of several labels
    N / n - 1, which makes the positives of a class weigh as much as its negatives. A class without
    images has 1. Raises DataError for a list that is not one number a class.
    """
    if kind == "none":
        return None
    if not isinstance(kind, str):
        if len(kind) != classes:
            raise DataError(
                f"classify.class_weights: {len(kind)} numbers for {classes} classes: give one each"
            )
        return torch.tensor(kind, dtype=torch.float32)
    if targets.several_KC is None:
        count_C = torch.bincount(targets.labels_K, minlength=classes).double()
        weight_C = len(targets) / (int((count_C > 0).sum()) * count_C)
    else:
        count_C = targets.several_KC.sum(dim=0).double()
        weight_C = (len(targets) - count_C).clamp(min=1) / count_C
    return torch.where(count_C > 0, weight_C, 1.0).float()
