"""Which samples train in which step: a pure function of (seed, epoch, position).

The global batch of a step is a slice of the epoch's permutation; micro-batches cut it, ranks cut those, workers
only decode. So none of them changes what is trained, and a restart goes on by skipping to its step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lookalike import draw
from lookalike.errors import DataError


class Plan(Protocol):
    """What names the samples of each global micro-batch: Order here, P × K batches in metric/."""

    @property
    def seed(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    def micro_batches(self, first_step: int, last_step: int) -> Iterator[tuple[int, Tensor]]: ...


@dataclass(frozen=True)
class Order:
    """Epochs of `n` samples cut into steps of `batch` (global), `accumulate` micro-batches each.

    Every epoch is a fresh permutation without its last, incomplete batch. Raises DataError when there are
    fewer samples than one batch.
    """

    n: int
    batch: int
    accumulate: int
    seed: int

    def __post_init__(self) -> None:
        if self.n < self.batch:
            raise DataError(f"data: {self.n} pictures are fewer than one batch of {self.batch}: lower the batch")

    @property
    def steps_per_epoch(self) -> int:
        return self.n // self.batch

    def ids(self, epoch: int, step: int) -> Tensor:
        """The samples of the epoch's `step`-th global batch, int64."""
        return draw.permutation(self.n, self.seed, "order", epoch)[step * self.batch : (step + 1) * self.batch]

    def micro_batches(self, first_step: int, last_step: int) -> Iterator[tuple[int, Tensor]]:
        """(epoch, global micro-batch) from `first_step` to before `last_step`, counted over all epochs."""
        epoch, permuted = -1, torch.empty(0, dtype=torch.int64)
        for step in range(first_step, last_step):
            now, within = divmod(step, self.steps_per_epoch)
            if now != epoch:
                epoch, permuted = now, draw.permutation(self.n, self.seed, "order", now)
            ids = permuted[within * self.batch : (within + 1) * self.batch]
            yield from ((epoch, micro) for micro in ids.tensor_split(self.accumulate))


def share(ids: Tensor, rank: int, world: int, pieces: int = 1) -> Tensor:
    """This rank's rows of a micro-batch: of each of its `pieces` a contiguous part, so that every rank's p-th
    piece comes from the same samples on any number of ranks.
    """
    return torch.cat([piece.tensor_split(world)[rank] for piece in ids.tensor_split(pieces)])
