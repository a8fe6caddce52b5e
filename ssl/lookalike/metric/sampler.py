"""P × K batches: P classes, K images of each, a pure function of (seed, epoch, step).

An epoch goes in rounds. Each class comes once a round; what P does not divide sits out in turn, so
that after any round no class has come more than once more than another. A class's images are
shuffled once an epoch and come K by K: none twice before all have come, and all again once they are
used up. So a class of fewer than K gives all it has in every batch, then again from where it
stands. A class of one image has no positive but itself, and where K is 2 or more it is left out;
others (pytorch-metric-learning, torchreid) fill its batch with copies.

Where cameras are to be distinct, a class's cameras come in turn, and the images of each: see
`spread`.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lookalike import rng
from lookalike.data.order import share
from lookalike.errors import DataError, RunError


class _Members(NamedTuple):
    """The M images that take part, by class: ids_M, ascending in each; of each class where they
    begin and how many.

    y_M: their classes, numbered 0 … C-1.
    """

    ids_M: Tensor
    y_M: Tensor
    start_C: Tensor
    count_C: Tensor


@dataclass(frozen=True, eq=False)
class PKOrder:
    """Steps of `classes` × `per_class` samples (both global); an epoch is as many steps as fit the
    images.

    labels_N: class of each sample, whole numbers of any size; cameras_N: where given, no two images
    of one class and camera in a batch, as far as `spread` can. Raises DataError when there are
    fewer classes than a batch asks for.
    """

    labels_N: Tensor
    classes: int
    per_class: int
    seed: int
    accumulate: int = 1
    cameras_N: Tensor | None = None

    def __post_init__(self) -> None:
        there = len(self._members.count_C)
        if there < self.classes:
            which = "have two images" if self.left_out else "are trained on"
            raise DataError(
                f"finetune.classes_per_batch: {self.classes} classes a batch, but only {there} "
                f"{which}: lower it"
            )

    @property
    def batch(self) -> int:
        return self.classes * self.per_class

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self._members.ids_M) // self.batch)

    @property
    def left_out(self) -> int:
        """How many classes have a single image and so take no part."""
        return len(torch.unique(self.labels_N)) - len(self._members.count_C)

    @cached_property
    def _members(self) -> _Members:
        _, y_N, count_C = torch.unique(self.labels_N, return_inverse=True, return_counts=True)
        kept_C = count_C >= min(2, self.per_class)
        ids_M = torch.argsort(y_N, stable=True)
        ids_M = ids_M[kept_C[y_N[ids_M]]]
        count_C = count_C[kept_C]
        y_M = torch.arange(len(count_C)).repeat_interleave(count_C)
        return _Members(ids_M, y_M, count_C.cumsum(0) - count_C, count_C)

    def ids(self, epoch: int, step: int) -> Tensor:
        """The samples of the epoch's `step`-th global batch, class after class, int64 (P · K,)."""
        number, batch = divmod(step, len(self._members.count_C) // self.classes)
        chosen_P, turn_P = (rows[batch] for rows in _round(self, epoch, number))
        shuffled_M, k = _shuffled(self, epoch), self.per_class
        start_P, count_P = self._members.start_C[chosen_P], self._members.count_C[chosen_P]
        if self.cameras_N is None:
            places_PK = (turn_P[:, None] * k + torch.arange(k)) % count_P[:, None]
            return shuffled_M[(start_P[:, None] + places_PK).flatten()]
        found = []
        for start, count, turn in zip(
            start_P.tolist(), count_P.tolist(), turn_P.tolist(), strict=True
        ):
            of_class = shuffled_M[start : start + count]
            sizes = torch.unique_consecutive(self.cameras_N[of_class], return_counts=True)[
                1
            ].tolist()
            found.append(of_class[spread(sizes, k, turn)])
        return torch.cat(found)

    def micro_batches(self, first_step: int, last_step: int) -> Iterator[tuple[int, Tensor]]:
        """(epoch, global batch) of the steps [first_step, last_step), counted over all epochs."""
        for step in range(first_step, last_step):
            epoch, within = divmod(step, self.steps_per_epoch)
            yield epoch, self.ids(epoch, within)


@lru_cache(maxsize=2)
def _shuffled(order: PKOrder, epoch: int) -> Tensor:
    """The epoch's ids_M: classes as they are, in each its cameras shuffled, in these their images.
    Sorted once.
    """
    ids_M, y_M = order._members.ids_M, order._members.y_M
    keys = [rng.bits(order.seed, "members", epoch, ids_M)]
    if order.cameras_N is not None:
        camera_M = order.cameras_N[ids_M]
        keys += [camera_M, rng.bits(order.seed, "cameras", epoch, y_M, camera_M)]
    places_M = torch.arange(len(ids_M))
    for key_M in (*keys, y_M):
        places_M = places_M[torch.argsort(key_M[places_M], stable=True)]
    return ids_M[places_M]


@lru_cache(maxsize=2)
def _round(order: PKOrder, epoch: int, number: int) -> tuple[Tensor, Tensor]:
    """The batches of a round: their classes, and how often each has come in the epoch before; both
    (C // P, P).

    The classes stand in a circle, and in each round the next C mod P of them sit out.
    """
    classes, p = len(order._members.count_C), order.classes
    idle = classes % p
    seat_C = torch.arange(classes)
    seats = seat_C[(seat_C - number * idle) % classes >= idle]
    seats = seats[rng.permutation(len(seats), order.seed, "round", epoch, number)].view(-1, p)
    sat_out = (number * idle - seats + classes - 1) // classes
    return rng.permutation(classes, order.seed, "classes", epoch)[seats], number - sat_out


def spread(sizes: Sequence[int], k: int, turn: int) -> list[int]:
    """Which k of a class's images come at its `turn`-th turn, from 0; they lie camera after camera,
    of these sizes.

    No two of one camera where there are k cameras. Where there are fewer, as evenly over the
    cameras as can be without an image twice, and all images equally often where there are fewer
    than k of them. In each camera they come one after another, and what does not come out even goes
    from turn to turn to other cameras.
    """
    whole, rest = divmod(k, sum(sizes))
    level = 0
    while sum(min(size, level + 1) for size in sizes) <= rest:
        level += 1
    more = rest - sum(min(size, level) for size in sizes)
    deeper = [camera for camera, size in enumerate(sizes) if size > level]
    found, start = [], 0
    for camera, size in enumerate(sizes):
        each = whole * size + min(size, level)
        first, last = turn * each, (turn + 1) * each
        if camera in deeper:
            seat = deeper.index(camera)
            first += (turn * more - seat + len(deeper) - 1) // len(deeper)
            last += ((turn + 1) * more - seat + len(deeper) - 1) // len(deeper)
        found += [start + place % size for place in range(first, last)]
        start += size
    return found


class PKSampler(Sampler[list[int]]):
    """P × K batches for a loop of one's own: `DataLoader(images, batch_sampler=PKSampler(labels, 8,
    4))`.

    Gives lists of this rank's part of each global batch, to the end of the epoch, then stands at
    the next one. It is a place, (epoch, step), that counts batches handed out: with loader
    processes these are some more than were trained on. A loop that counts its own steps goes on
    exactly with `set_epoch(epoch, start=steps)`.
    """

    def __init__(
        self,
        labels: Sequence[int] | Tensor,
        classes: int,
        per_class: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        cameras: Sequence[int] | Tensor | None = None,
    ) -> None:
        """`classes` × `per_class` images over all ranks; with `cameras` of a class no two of one
        camera.

        Raises DataError when labels or cameras are no whole numbers or too few, RunError for a rank
        without an image.
        """
        labels_N = _whole("labels", labels)
        cameras_N = None if cameras is None else _whole("cameras", cameras)
        if cameras_N is not None and len(cameras_N) != len(labels_N):
            raise DataError(
                f"cameras: {len(cameras_N)} for {len(labels_N)} labels: give one an image"
            )
        if classes < 1 or per_class < 1:
            raise DataError(
                f"{classes} classes × {per_class} images are no batch: give 1 at least of both"
            )
        if not 0 <= rank < world <= classes * per_class:
            raise RunError(
                f"rank {rank} of {world}, batches of {classes * per_class}: each rank needs an "
                "image"
            )
        self.order = PKOrder(labels_N, classes, per_class, seed, cameras_N=cameras_N)
        self.rank, self.world, self.epoch, self.step = rank, world, 0, 0
        if self.order.left_out:
            warnings.warn(
                f"{self.order.left_out} classes have one image and are left out", stacklevel=2
            )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.order.steps_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch
        for step in range(self.step, len(self)):
            self.step = step + 1
            yield share(self.order.ids(epoch, step), self.rank, self.world).tolist()
        self.epoch, self.step = epoch + 1, 0

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Goes to step `start` of the epoch; without, to its first, or nowhere if it stands in that
        epoch already.

        So a loop that sets each epoch does not undo `load_state_dict`.
        """
        if start is None:
            start = self.step if epoch == self.epoch else 0
        self.load_state_dict({"epoch": epoch, "step": start})

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were handed out."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on after the batches that `state` counts, on any rank. Raises RunError for what is
        no place here.
        """
        epoch, step = state.get("epoch"), state.get("step")
        if (
            type(epoch) is not int
            or type(step) is not int
            or epoch < 0
            or not 0 <= step <= len(self)
        ):
            raise RunError(
                f"epoch {epoch!r}, step {step!r}: no place in epochs of {len(self)} steps: other "
                "data?"
            )
        self.epoch, self.step = epoch, step


def _whole(name: str, values: Sequence[int] | Tensor) -> Tensor:
    found = torch.as_tensor(values).cpu()
    if (
        found.ndim != 1
        or found.is_floating_point()
        or found.is_complex()
        or found.dtype == torch.bool
    ):
        raise DataError(
            f"{name}: {found.dtype} of shape {tuple(found.shape)}: give one whole number an image"
        )
    return found.long()
