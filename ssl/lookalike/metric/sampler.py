"""P × K batches: P classes, K pictures of each, a pure function of (seed, step).

A class with fewer than K pictures gives all of them, then again from its first drawn one, until K are full.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lookalike import draw
from lookalike.errors import DataError


@dataclass(frozen=True)
class PKOrder:
    """Steps of `classes` × `per_class` samples (both global); an epoch is as many steps as fit the pictures.

    labels_N: int64 class of each sample. Raises DataError when there are fewer classes than a batch asks for.
    """

    labels_N: Tensor
    classes: int
    per_class: int
    seed: int
    accumulate: int = 1

    def __post_init__(self) -> None:
        there = len(torch.unique(self.labels_N))
        if there < self.classes:
            raise DataError(
                f"finetune.classes_per_batch: {self.classes} classes a batch, but only {there} are trained on: lower it"
            )

    @property
    def batch(self) -> int:
        return self.classes * self.per_class

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.labels_N) // self.batch)

    def micro_batches(self, first_step: int, last_step: int) -> Iterator[tuple[int, Tensor]]:
        """(epoch, global batch) of the steps [first_step, last_step), class after class."""
        members = [torch.nonzero(self.labels_N == c).flatten() for c in torch.unique(self.labels_N)]
        for step in range(first_step, last_step):
            chosen = draw.permutation(len(members), self.seed, "classes", step)[: self.classes].tolist()
            yield step // self.steps_per_epoch, torch.cat([self._take(members[c], c, step) for c in chosen])

    def _take(self, members: Tensor, c: int, step: int) -> Tensor:
        shuffled = members[draw.permutation(len(members), self.seed, "members", step, c)]
        return shuffled[torch.arange(self.per_class) % len(members)]
