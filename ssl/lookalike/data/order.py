"""Which samples train in which step: a pure function of (seed, epoch, position).

The global batch of a step is a slice of the epoch's permutation; micro-batches cut it, ranks cut
those, workers only decode. So none of them changes what is trained, and a restart goes on by
skipping to its step. Three samplers show every image once an epoch, chosen by what the images are
and never by how they are read: up to SORTED images the sorted permutation; beyond it one that is
computed place by place and takes no memory; in windows where the images lie in runs (shards) that
are slow to change. A fourth shows every class equally often.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import torch
from torch import Tensor

from lookalike import rng
from lookalike.data.images import Images
from lookalike.errors import DataError

SORTED = 2**22


class BatchOrder(Protocol):
    """What names the samples of each global micro-batch: Order here, P × K batches in metric/."""

    @property
    def seed(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    def micro_batches(self, first_step: int, last_step: int) -> Iterator[tuple[int, Tensor]]: ...


class Measured(Protocol):
    """What says how many samples a step's micro-batches hold."""

    @property
    def batch(self) -> int: ...
    @property
    def accumulate(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Windows:
    """Images in runs of `sizes_S` (int64), read run after run: the runs are permuted, and in that
    sequence each `window` images among themselves. Both anew each epoch, so that neighbours change.
    """

    sizes_S: Tensor
    window: int

    def at(self, places: Tensor, seed: int, epoch: int) -> Tensor:
        """The samples at these places of the epoch, int64."""
        runs_S, ends_S, first_S = _runs(self, seed, epoch)
        n = int(ends_S[-1])
        inner = places.clone()
        for block in sorted(set((places // self.window).tolist())):
            start = block * self.window
            shuffled = _permutation(min(self.window, n - start), seed, "window", epoch, block)
            here = (places >= start) & (places < start + self.window)
            inner[here] = start + shuffled[places[here] - start]
        slot = torch.searchsorted(ends_S, inner, right=True)
        return first_S[runs_S[slot]] + inner - (ends_S[slot] - self.sizes_S[runs_S[slot]])


@lru_cache(maxsize=2)
def _permutation(n: int, *coordinates: int | str) -> Tensor:
    """Kept for the next steps, which ask for the same one."""
    return rng.permutation(n, *coordinates)


@lru_cache(maxsize=2)
def _runs(windows: Windows, seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """The order of the runs; where each ends in it; the first sample of each run by its own
    number.
    """
    runs_S = rng.permutation(len(windows.sizes_S), seed, "runs", epoch)
    return runs_S, windows.sizes_S[runs_S].cumsum(0), windows.sizes_S.cumsum(0) - windows.sizes_S


@dataclass(frozen=True)
class EpochOrder:
    """Epochs of `n` samples cut into steps of `batch` (global), `accumulate` micro-batches each.

    Every epoch is a fresh permutation without its last, incomplete batch. Raises DataError when
    there are fewer samples than one batch.
    """

    n: int
    batch: int
    accumulate: int
    seed: int
    windows: Windows | None = None

    def __post_init__(self) -> None:
        if self.n < self.batch:
            raise DataError(
                f"data: {self.n} images are fewer than one batch of {self.batch}: lower the batch"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.n // self.batch

    def ids(self, epoch: int, step: int) -> Tensor:
        """The samples of the epoch's `step`-th global batch, int64."""
        start, stop = step * self.batch, (step + 1) * self.batch
        if self.windows:
            return self.windows.at(torch.arange(start, stop), self.seed, epoch)
        if self.n <= SORTED:
            return _permutation(self.n, self.seed, "order", epoch)[start:stop]
        return rng.permutation_at(torch.arange(start, stop), self.n, self.seed, "order", epoch)

    def micro_batches(self, first_step: int, last_step: int) -> Iterator[tuple[int, Tensor]]:
        """(epoch, global micro-batch) from `first_step` to before `last_step`, counted over all
        epochs.
        """
        for step in range(first_step, last_step):
            epoch, within = divmod(step, self.steps_per_epoch)
            yield from (
                (epoch, micro) for micro in self.ids(epoch, within).tensor_split(self.accumulate)
            )


@dataclass(frozen=True, eq=False)
class BalancedOrder:
    """Steps of `batch` (global) samples in which every class comes equally often; an epoch has as
    many as fit the images once.

    labels_N: the class of each sample, whole numbers of any size. The samples of all epochs are one
    sequence of rounds, and each class comes once a round, in an order drawn for it: no class ever
    comes more than once more than another. In round r a class of n images gives the (r mod n)-th of
    its own, which are shuffled anew every n rounds: all come before any comes again, whatever the
    epoch. Raises DataError when there are fewer samples than one batch.
    """

    labels_N: Tensor
    batch: int
    accumulate: int
    seed: int

    def __post_init__(self) -> None:
        EpochOrder(len(self.labels_N), self.batch, self.accumulate, self.seed)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.labels_N) // self.batch

    @cached_property
    def _members(self) -> tuple[Tensor, ...]:
        """The samples of each class, ascending."""
        _, y_N, count_C = torch.unique(self.labels_N, return_inverse=True, return_counts=True)
        return torch.split(torch.argsort(y_N, stable=True), count_C.tolist())

    def ids(self, epoch: int, step: int) -> Tensor:
        """The samples of the epoch's `step`-th global batch, int64."""
        start, classes = (epoch * self.steps_per_epoch + step) * self.batch, len(self._members)
        place_B = torch.arange(start, start + self.batch)
        round_B, first = place_B // classes, start // classes
        round_R = torch.arange(first, int(round_B[-1]) + 1)
        words_RC = rng.bits(self.seed, "classes", round_R[:, None], torch.arange(classes))
        class_B = words_RC.argsort(dim=1, stable=True)[round_B - first, place_B % classes]
        found = [
            _of_class(self, chosen, turn)
            for chosen, turn in zip(class_B.tolist(), round_B.tolist(), strict=True)
        ]
        return torch.tensor(found)

    def micro_batches(self, first_step: int, last_step: int) -> Iterator[tuple[int, Tensor]]:
        """(step, global micro-batch) from `first_step` to before `last_step`, counted over all
        epochs. The step stands in the epoch's place among what views are drawn by: a sample that
        comes again in its epoch is another view.
        """
        for step in range(first_step, last_step):
            epoch, within = divmod(step, self.steps_per_epoch)
            for micro in self.ids(epoch, within).tensor_split(self.accumulate):
                yield step, micro


def _of_class(order: BalancedOrder, chosen: int, turn: int) -> int:
    """The sample that a class gives in a round."""
    number, place = divmod(turn, len(order._members[chosen]))
    return _shuffled(order, chosen, number)[place]


@lru_cache(maxsize=4096)
def _shuffled(order: BalancedOrder, chosen: int, number: int) -> list[int]:
    """The samples of a class as they come the `number`-th time, from 0; a list, of which one is
    taken in no time.
    """
    ids = order._members[chosen]
    words = rng.bits(order.seed, "members", number, ids)
    found: list[int] = ids[words.argsort(stable=True)].tolist()
    return found


def order_of(images: Images, batch: int, accumulate: int, seed: int) -> EpochOrder:
    """The images' order: in windows where they ask for it. Raises DataError when they are fewer
    than one batch.
    """
    return EpochOrder(len(images), batch, accumulate, seed, getattr(images, "windows", None))


def share(ids: Tensor, rank: int, world: int, pieces: int = 1) -> Tensor:
    """This rank's rows of a micro-batch: of each of its `pieces` a contiguous part, so that every
    rank's p-th piece comes from the same samples on any number of ranks.
    """
    return torch.cat([piece.tensor_split(world)[rank] for piece in ids.tensor_split(pieces)])


def shares(order: Measured, micro: int, world: int, pieces: int = 1) -> list[int]:
    """How many rows `share` gives each rank of a step's `micro`-th micro-batch."""
    count = _parts(order.batch, order.accumulate)[micro]
    ranks = [_parts(piece, world) for piece in _parts(count, pieces)]
    return [sum(part) for part in zip(*ranks, strict=True)]


def _parts(count: int, parts: int) -> list[int]:
    """The lengths of what torch's `tensor_split` makes."""
    each, more = divmod(count, parts)
    return [each + (i < more) for i in range(parts)]
