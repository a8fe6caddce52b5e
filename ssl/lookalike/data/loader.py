"""How the samples of each step reach it: worker processes decode into shared memory, in the order
of the plan.
"""

import contextlib
import itertools
import os
import re
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils import signal_handling

from lookalike import comm
from lookalike.data import nvjpeg
from lookalike.data.decode import BadImage
from lookalike.data.images import ArrayImages, Images
from lookalike.data.order import BatchOrder, share
from lookalike.data.reader import Bad, HostCrops, Reader
from lookalike.data.shared import FORKS, no_processes
from lookalike.data.slots import Slots
from lookalike.errors import DataError, RunError

_AHEAD = 2


class Batch(NamedTuple):
    """One rank's part of a micro-batch: host ids_B, its images, what was bad.

    `pixels`: canvases (B, C, H, W) of the images' form, or where the host crops a list with one
    (B, C, S, S) for each view. They lie in a slot that a worker writes again: valid until the next
    but one batch is asked for. Copy what must last.
    """

    epoch: int
    ids_B: Tensor
    pixels: Tensor | list[Tensor]
    bad: list[Bad]


class Canvases(NamedTuple):
    """Images `ids` as canvases (B, C, H, W) of their form, each at its place; those that cannot be
    read, at the places `bad`, are zeros. Valid as long as a `Batch`.
    """

    ids: Sequence[int]
    bad: list[int]
    pixels: Any


class Key(NamedTuple):
    """What one batch is read from."""

    epoch: int
    ids: list[int]


# Fills the parts of one batch, (B, C, H, W) each, and says what the batch is to be told beside
# them.
Fill = Callable[[Key, list[Tensor]], Any]


class Parts(NamedTuple):
    """Shapes (C, H, W) of one sample's parts, and their type."""

    shapes: Sequence[tuple[int, int, int]]
    dtype: torch.dtype


def batches(
    images: Images,
    order: BatchOrder,
    *,
    first_step: int,
    last_step: int,
    rank: int,
    world: int,
    workers: int,
    pin: bool,
    pieces: int = 1,
    host_crops: HostCrops | None = None,
    decode: tuple[torch.device, nvjpeg.Decode] | None = None,
) -> Generator[Batch, None, None]:
    """This rank's micro-batches of the steps [first_step, last_step), read by `workers` processes
    (0: in this one); with `decode` they only read, and canvases are made on that device by what
    decodes there.

    Canvases, or with `cuts` one crop a view. Raises RunError when a worker process dies, DataError
    when too many images in a row cannot be read.
    """
    reader = Reader(images, order.seed, host_crops)
    micro_batches = order.micro_batches(first_step, last_step)
    keys = (
        Key(epoch, share(micro, rank, world, pieces).tolist()) for epoch, micro in micro_batches
    )
    one = Parts(reader.shapes, reader.dtype)
    if decode and host_crops is None:
        finish = nvjpeg.Finisher(reader, *decode)
        yield from _finished(finish, _stream(partial(_read, reader), one, keys, workers, False))
        return
    with contextlib.closing(_stream(partial(_fill, reader), one, keys, workers, pin)) as stream:
        for key, parts, bad in stream:
            pixels = parts[0] if host_crops is None else parts
            yield Batch(key.epoch, torch.tensor(key.ids, dtype=torch.int64), pixels, bad)


def _finished(
    finish: nvjpeg.Finisher, stream: Generator[tuple[Key, list[Tensor], Any], None, None]
) -> Generator[Batch, None, None]:
    """The batches of a stream whose JPEGs are not decoded yet."""

    def work(item: tuple[Key, list[Tensor], nvjpeg.Read]) -> Batch:
        key, parts, found = item
        canvas_BCHW, bad = finish(key.epoch, key.ids, parts[0], found)
        return Batch(key.epoch, torch.tensor(key.ids, dtype=torch.int64), canvas_BCHW, bad)

    with (
        contextlib.closing(stream),
        contextlib.closing(nvjpeg.one_ahead(stream, work)) as made,
    ):
        yield from made


def in_order(
    images: Images, batch: int, workers: int = 0, pin: bool = False
) -> Generator[tuple[list[int], Tensor], None, None]:
    """(ids, canvas_BCHW) of all images in order; those that cannot be read are left out.

    A canvas is valid until the next but one is asked for.
    """
    starts = range(0, len(images), batch)
    keys = (Key(0, list(range(start, min(start + batch, len(images))))) for start in starts)
    canvas = Parts([images.shape], images.form.dtype)
    with contextlib.closing(
        _stream(partial(_fill_readable, images), canvas, keys, workers, pin)
    ) as stream:
        yield from ((ids, parts[0][: len(ids)]) for _, parts, ids in stream if ids)


def in_place(
    images: Images, parts: Iterable[list[int]], workers: int = 0, pin: bool = False
) -> Generator[Canvases, None, None]:
    """The images of each part, a list of ids, of which the first is a longest one."""
    keys = (Key(0, ids) for ids in parts)
    canvas = Parts([images.shape], images.form.dtype)
    with contextlib.closing(
        _stream(partial(_fill_in_place, images), canvas, keys, workers, pin)
    ) as stream:
        yield from (Canvases(key.ids, bad, filled[0]) for key, filled, bad in stream)


def _fill_in_place(images: Images, key: Key, parts: list[Tensor]) -> list[int]:
    """Fills a batch, with zeros for what cannot be read; returns the places of those."""
    if isinstance(images, ArrayImages):
        images.read_many(key.ids, parts[0])
        return []
    bad: list[int] = []
    for place, i in enumerate(key.ids):
        try:
            images.read(i, parts[0][place])
        except BadImage:
            parts[0][place].zero_()
            bad.append(place)
    return bad


def _fill(reader: Reader, key: Key, parts: list[Tensor]) -> list[Bad]:
    """Fills a batch with a reader; returns what was bad."""
    return reader.fill(key.epoch, key.ids, parts)


def _read(reader: Reader, key: Key, parts: list[Tensor]) -> nvjpeg.Read:
    """Fills a batch but for the JPEGs that a device is to decode."""
    return nvjpeg.read(reader, key.epoch, key.ids, parts)


def _fill_readable(images: Images, key: Key, parts: list[Tensor]) -> list[int]:
    """Fills a batch with the images that can be read, without gaps; returns their ids."""
    if isinstance(images, ArrayImages):
        images.read_many(key.ids, parts[0])
        return key.ids
    found: list[int] = []
    for i in key.ids:
        with contextlib.suppress(BadImage):
            images.read(i, parts[0][len(found)])
            found.append(i)
    return found


def _stream(
    fill: Fill, one: Parts, keys: Iterator[Key], workers: int, pin: bool
) -> Generator[tuple[Key, list[Tensor], Any], None, None]:
    """(key, its filled parts, what `fill` returned) for each key, in order."""
    if not workers:
        for key in keys:
            # Fresh memory each time; pinned memory torch keeps and gives out again.
            parts = [
                torch.empty(len(key.ids), *shape, dtype=one.dtype, pin_memory=pin)
                for shape in one.shapes
            ]
            yield key, parts, fill(key, parts)
        return
    first = next(keys, None)
    if first is None:
        return
    # Under way are `workers` × _AHEAD batches; one is the consumer's, and the one before it.
    slots = Slots(workers * _AHEAD + 2, len(first.ids), *one)
    sent = _Sent(itertools.chain([first], keys), slots.count)
    loader = one_by_one(
        _Worker(fill, slots), sampler=sent, num_workers=workers, prefetch_factor=_AHEAD
    )
    try:
        if pin:
            slots.pin()
        for answer in loader:
            if isinstance(answer, DataError):
                raise answer
            slot, key = sent.waiting.popleft()
            yield key, slots.parts(slot, len(key.ids)), answer
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(_obituary(str(error), loader, sent)) from error
    finally:
        slots.close()


class _Sent(Sampler[tuple[int, Key]]):
    """Gives each key the next slot; `waiting` are those sent to workers and not yet come back, in
    order.
    """

    def __init__(self, keys: Iterable[Key], slots: int) -> None:
        self.keys, self.slots, self.count = keys, slots, 0
        self.waiting: deque[tuple[int, Key]] = deque()

    def __iter__(self) -> Iterator[tuple[int, Key]]:
        for key in self.keys:
            self.waiting.append((self.count % self.slots, key))
            self.count += 1
            yield self.waiting[-1]


class _Worker(torch.utils.data.Dataset[Any]):
    """Fills the slot that a key names, in a worker process; only what `fill` says travels back."""

    def __init__(self, fill: Fill, slots: Slots) -> None:
        self.fill, self.slots = fill, slots

    def __getitem__(self, item: tuple[int, Key]) -> Any:
        slot, key = item
        try:
            return self.fill(key, self.slots.parts(slot, len(key.ids)))
        except (
            DataError
        ) as error:  # torch would wrap one that a worker raises into its whole traceback
            return error


def _obituary(text: str, loader: Any, sent: _Sent) -> str:
    """Which worker died, and what it had not handed over: keys go to the workers in turn."""
    pids = [process.pid for process in loader._workers]
    dead = next((pids.index(int(n)) for n in re.findall(r"\d+", text) if int(n) in pids), None)
    first = sent.count - len(sent.waiting)
    its = [
        key.ids
        for n, (_, key) in enumerate(sent.waiting, first)
        if dead is None or n % len(pids) == dead
    ]
    who = "" if dead is None else f" {dead} of {len(pids)}, process {pids[dead]},"
    ids = " or ".join(", ".join(map(str, one[:8])) + ", …" for one in its[:_AHEAD])
    return (
        f"data: a loader process died ({text.splitlines()[0].split(' exited')[0]}): worker{who} "
        "while reading samples "
        f"{ids}: out of memory? set workers lower"
    )


def one_by_one(dataset: torch.utils.data.Dataset[Any], **how: Any) -> Iterator[Any]:
    """A DataLoader's items, not batched. Who calls chose the number of workers: torch's own advice
    stays out.

    A generator of its own keeps torch from drawing the workers' seeds from the one that dropout
    draws from.
    """
    if how.get("num_workers") and (why := no_processes()):
        if comm.rank() == 0:
            warnings.warn(
                f"data: no loader processes can be started ({why}): this process reads the images "
                "itself: mount a /dev/shm",
                stacklevel=2,
            )
        how |= {"num_workers": 0, "prefetch_factor": None}
    if how.get("num_workers") and FORKS:
        how["multiprocessing_context"] = "fork"
    with warnings.catch_warnings(), _own_children():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        return iter(DataLoader(dataset, batch_size=None, generator=torch.Generator(), **how))


@contextlib.contextmanager
def _own_children() -> Iterator[None]:
    """Takes back torch's handler of dead children, which raises wherever the training stands at
    that moment; also one that an earlier loader of the same process has left.

    Without it the loader itself notices, within seconds, when its next batch is asked for.
    """
    here = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if here else None
    yield
    if here:
        of_torch = getattr(before, "__module__", None) == signal_handling.__name__
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if of_torch else before)


def workers_for(images: Images, asked: int | None, world: int = 1) -> int:
    """As many as asked; else none for images in memory, or the machine's cores shared among its
    ranks, at most 16.
    """
    if asked is not None:
        return asked
    if isinstance(images, ArrayImages):
        return 0
    return max(1, min(16, cores() // max(1, world)))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
