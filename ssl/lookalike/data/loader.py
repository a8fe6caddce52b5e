"""How the samples of each step reach it: worker processes read and decode, in the order that the plan names."""

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lookalike import draw
from lookalike.data.decode import BadPicture
from lookalike.data.order import Plan, share
from lookalike.data.pictures import ArrayPictures, Pictures
from lookalike.errors import DataError, RunError

_ATTEMPTS = 100


class Bad(NamedTuple):
    """A picture that could not be read, and the sample that took its place."""

    sample: int
    path: str
    reason: str
    replacement: int


class Batch(NamedTuple):
    """One rank's part of a micro-batch: host ids_B, uint8 canvas_BCHW, labels_B or None, what was bad."""

    epoch: int
    ids_B: Tensor
    canvas_BCHW: Tensor
    bad: list[Bad]


class _Reader(torch.utils.data.Dataset[Batch | DataError]):
    """Reads one micro-batch an item, so that a worker hands over one tensor."""

    def __init__(self, pictures: Pictures, seed: int) -> None:
        self.pictures, self.seed = pictures, seed

    def __getitem__(self, key: tuple[int, list[int]]) -> Batch | DataError:
        epoch, ids = key
        try:
            canvas, bad = read_many(self.pictures, ids, self.seed)
        except DataError as error:  # torch would wrap one that a worker raises into its whole traceback
            return error
        return Batch(epoch, torch.tensor(ids, dtype=torch.int64), canvas, bad)


def read_many(pictures: Pictures, ids: Sequence[int], seed: int) -> tuple[Tensor, list[Bad]]:
    """uint8 (B, C, H, W); a picture that cannot be read is replaced by another that (seed, sample) chooses."""
    if isinstance(pictures, ArrayPictures):
        return pictures.read_many(ids), []
    rows, bad = [], []
    for i in ids:
        row, record = _read(pictures, i, seed)
        rows.append(row)
        bad += record
    return torch.stack(rows), bad


def _read(pictures: Pictures, i: int, seed: int) -> tuple[Tensor, list[Bad]]:
    """Follows a chain of replacements, each drawn from (seed, sample, attempt), until one can be read."""
    problems: list[BadPicture] = []
    for attempt in range(_ATTEMPTS):
        chosen = i if attempt == 0 else draw.seed(seed, "replace", i, attempt) % len(pictures)
        try:
            picture = pictures.read(chosen)
        except BadPicture as error:
            problems.append(error)
            continue
        first = problems[:1]
        return picture, [Bad(i, str(p.path), p.reason, chosen) for p in first]
    raise DataError(
        f"{problems[0].path}: {problems[0].reason}; nor could {_ATTEMPTS - 1} others be read: is the folder sound?"
    )


class _Keys(Sampler[tuple[int, list[int]]]):
    """The (epoch, ids of this rank) of every micro-batch, in order."""

    def __init__(self, order: Plan, first_step: int, last_step: int, rank: int, world: int, pieces: int) -> None:
        self.order, self.first, self.last = order, first_step, last_step
        self.part = (rank, world, pieces)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for epoch, micro in self.order.micro_batches(self.first, self.last):
            yield epoch, share(micro, *self.part).tolist()

    def __len__(self) -> int:
        return (self.last - self.first) * self.order.accumulate


def batches(
    pictures: Pictures,
    order: Plan,
    *,
    first_step: int,
    last_step: int,
    rank: int,
    world: int,
    workers: int,
    pin: bool,
    pieces: int = 1,
) -> Iterator[Batch]:
    """This rank's micro-batches of the steps [first_step, last_step), read by `workers` processes (0: in this one).

    Raises RunError when a worker process dies.
    """
    keys = _Keys(order, first_step, last_step, rank, world, pieces)
    awaited = iter(keys)
    loader = _loader(
        _Reader(pictures, order.seed),
        sampler=keys,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
    )
    try:
        for item in loader:
            if isinstance(item, DataError):
                raise item
            next(awaited)
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        _, ids = next(awaited, (0, []))
        raise RunError(
            f"data: a loader process died ({str(error).splitlines()[0].split(' exited')[0]}) while reading samples "
            f"{', '.join(map(str, ids[:8]))}, …: out of memory? set workers lower"
        ) from error


def _loader(dataset: torch.utils.data.Dataset[Any], **how: Any) -> Iterator[Any]:
    """One item a batch. The user or workers_for chose the number of workers: torch's own advice stays out.

    A generator of its own keeps torch from drawing the workers' seeds from the one that dropout draws from.
    """
    with warnings.catch_warnings(), _own_children():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        return iter(DataLoader(dataset, batch_size=None, generator=torch.Generator(), **how))


@contextlib.contextmanager
def _own_children() -> Iterator[None]:
    """Takes back torch's handler of dead children, which raises wherever the training stands at that moment.

    Without it the loader itself notices, within seconds, when its next batch is asked for.
    """
    here = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if here else None
    yield
    if here:
        signal.signal(signal.SIGCHLD, before)


def workers_for(pictures: Pictures, asked: int | None, world: int = 1) -> int:
    """As many as asked; else none for pictures in memory, or the machine's cores shared among its ranks, at most 16."""
    if asked is not None:
        return asked
    if isinstance(pictures, ArrayPictures):
        return 0
    return max(1, min(16, _cores() // max(1, world)))


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _InOrder(torch.utils.data.Dataset[tuple[list[int], Tensor | None]]):
    """The readable ones of each run of `batch` pictures."""

    def __init__(self, pictures: Pictures, batch: int) -> None:
        self.pictures, self.batch = pictures, batch

    def __len__(self) -> int:
        return -(-len(self.pictures) // self.batch)

    def __getitem__(self, b: int) -> tuple[list[int], Tensor | None]:
        ids = range(b * self.batch, min((b + 1) * self.batch, len(self.pictures)))
        if isinstance(self.pictures, ArrayPictures):
            return list(ids), self.pictures.read_many(ids)
        rows = {}
        for i in ids:
            with contextlib.suppress(BadPicture):
                rows[i] = self.pictures.read(i)
        return list(rows), torch.stack(list(rows.values())) if rows else None


def in_order(pictures: Pictures, batch: int, workers: int = 0) -> Iterator[tuple[list[int], Tensor]]:
    """(ids, uint8 canvas_BCHW) of all pictures in order; those that cannot be read are left out."""
    loader = _loader(_InOrder(pictures, batch), num_workers=workers)
    yield from ((ids, canvas) for ids, canvas in loader if ids)
