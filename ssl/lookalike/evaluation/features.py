"""Images through a frozen model: features and labels, extracted once by all ranks, and kept in the
run folder.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lookalike import comm
from lookalike.data.images import Images
from lookalike.data.loader import in_place, workers_for
from lookalike.data.passport import passport
from lookalike.data.prefetch import prefetch
from lookalike.errors import Error
from lookalike.evaluation.blocks import BLOCK, Form
from lookalike.evaluation.store import Made, Stored, stored
from lookalike.geometry import BYTES, PixelFormat
from lookalike.log import progress
from lookalike.models import Architecture
from lookalike.views import normalise, resize_crop, scale

Embed = Callable[[Tensor], Tensor]

STEP = 128
"""So many images of a block go through a model at once on a CPU, whatever `batch` says: a product
of another shape has other bits.
"""

FEW = 256
"""For so many images no loader process is started unless it is asked for."""

PIXELS = 32
"""The baseline of raw pixels sees so many rows and columns of an image."""


class Features(NamedTuple):
    """`x_ND` float32 or float16, mapped from disk where it is kept, `labels_N` int64 on the CPU;
    `dropped` images could not be read: `ids_N` are the others, ascending.
    """

    x_ND: Tensor
    labels_N: Tensor
    dropped: int
    ids_N: Tensor


def embedder(model: nn.Module, architecture: Architecture) -> Embed:
    """Raw canvas (B, C, H, W) -> features (B, D): the test-time view, normalised, through `model`
    in eval mode.
    """
    mean, std = architecture.normalisation()
    model.eval()

    def function(canvas_BCHW: Tensor) -> Tensor:
        with in_full(canvas_BCHW):
            x_BCHW = normalise(plain_view(canvas_BCHW, architecture), mean, std)
        h_BD: Tensor = model(x_BCHW)
        return h_BD

    return function


def plain_view(canvas_BCHW: Tensor, architecture: Architecture) -> Tensor:
    """What a model sees of raw canvases when it is tested, (B, C, H, W), not normalised."""
    return resize_crop(scale(canvas_BCHW, architecture.form), architecture.size, architecture.crop)


def in_precision(precision: str) -> torch.autocast:
    """Products in bf16 or fp16 on this rank's device; `fp32`: as the numbers are."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(comm.device().type, half or torch.bfloat16, enabled=half is not None)


def in_full(x: Tensor) -> torch.autocast:
    """float32 in the midst of what computes in half precision: a view is a product too."""
    return torch.autocast(x.device.type, enabled=False)


def pixels(canvas_BCHW: Tensor, form: PixelFormat = BYTES) -> Tensor:
    """The raw image as a feature, (B, C·H·W) in 0 … 1: the baseline that every backbone has to
    beat.

    A canvas whose longer side is above `PIXELS` is brought down to that, antialiased: at 224 pixels
    a classifier would have 196,608 dimensions to fit.
    """
    x_BCHW = scale(canvas_BCHW, form)
    share = PIXELS / max(x_BCHW.shape[2:])
    if share < 1:
        height, width = (max(1, round(side * share)) for side in x_BCHW.shape[2:])
        with in_full(canvas_BCHW):
            x_BCHW = resize_crop(x_BCHW, (height, width)).clamp(0, 1)
    return x_BCHW.flatten(1)


class Extracting(NamedTuple):
    """How images go through a frozen model: see `experiment.Extraction`."""

    batch: int = 256
    workers: int | None = None
    precision: str = "fp32"
    store: str = "float32"


def extract(
    function: Embed, images: Images, *, batch: int = 256, workers: int = 0, labelled: bool = True
) -> Features:
    """Every readable image's features, in order, in this process alone and in memory.

    Raises Error where the images have no labels; they are -1 where none are asked for (`labelled`).
    """
    _refuse_unlabelled(images, labelled=labelled)
    made = list(
        _made(function, images, Extracting(batch, workers), range(-(-len(images) // BLOCK)))
    )
    bad = torch.tensor([i for block in made for i in block.bad], dtype=torch.int64)
    ids_N = torch.arange(len(images))
    ids_N = ids_N[~torch.isin(ids_N, bad)]
    x_ND = torch.cat([block.x_KD for block in made]) if made else torch.empty(0, 0)
    return _features(images, x_ND, ids_N)


def embedded_in_order(
    function: Embed, images: Images, batch: int, workers: int
) -> Generator[tuple[list[int], Tensor], None, None]:
    """(ids, float32 features (B, D) on the CPU) of all images in order, in this process alone;
    those that cannot be read are left out.
    """
    how = Extracting(batch, workers)
    numbers = range(Form(len(images), how.store).blocks)
    for ids, unread, x_BD in _rows(function, images, how, torch.float32, numbers):
        good = [k for k in range(len(ids)) if k not in unread]
        yield [ids[k] for k in good], x_BD[good]


def extracted(
    function: Embed,
    images: Images,
    *,
    digest: str,
    folder: Path | None,
    how: Extracting = Extracting(),  # noqa: B008 (immutable)
    labelled: bool = True,
    title: str = "features",
) -> Features:
    """Every readable image's features, kept in `folder` under the model's `digest`; by all ranks,
    which call it together, share the images and get the same. `title`: what the progress bar says.

    On CPUs of one kind, with as many threads each, the bits are the same for any number of ranks,
    workers and `batch`. On a GPU a batch of another size rounds otherwise: in the order of 1e-5 of
    the largest value in fp32 (without TF32), 1e-2 in bf16, 2e-3 in fp16. What a kill leaves
    half-done goes on. Raises Error where images lack labels that are asked for, where none can be
    read, and where float16 cannot hold a feature.
    """
    _refuse_unlabelled(images, labelled=labelled)
    found = gathered(function, images, digest=digest, folder=folder, how=how, title=title)
    return _features(images, *found)


def gathered(
    function: Embed,
    images: Images,
    *,
    digest: str,
    folder: Path | None,
    how: Extracting,
    title: str,
) -> Stored:
    """The same without labels, and also where not one image can be read."""
    if folder is not None:
        key = (digest, how.precision, how.store, *cache_key(images)) if comm.rank() == 0 else ()
        comm.barrier(patient=True)  # millions of files are asked for their times
        key = comm.broadcast_object(key)
        folder = folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    form = Form(len(images), how.store)
    make = partial(_shown, partial(_made, function, images, how), len(images), title)
    return stored(folder, form, make, title)


def _refuse_unlabelled(images: Images, *, labelled: bool) -> None:
    if labelled and images.labels is None:
        raise Error(
            "data: these images have no labels to score with: use class folders, or leave probe "
            "and evaluate out"
        )


def _features(images: Images, x_ND: Tensor, ids_N: Tensor) -> Features:
    """With their labels. Raises Error where there is none."""
    if not len(ids_N):
        raise Error("data: not one image of this split could be read")
    dropped = len(images) - len(ids_N)
    if images.labels is None:
        labels_N = torch.full_like(ids_N, -1)
    else:
        labels_N = images.labels[ids_N] if dropped else images.labels
    return Features(x_ND, labels_N, dropped, ids_N)


def _shown(
    make: Callable[[Sequence[int]], Iterable[Made]], images: int, title: str, numbers: Sequence[int]
) -> Iterator[Made]:
    """The blocks as they are made, under a bar on the first rank, which takes the others to be as
    far as itself.
    """
    sizes = [len(Form(images, "float32").images_of(n)) for n in numbers]
    share, done = sum(sizes), 0
    active = comm.rank() == 0 and share > 0
    total = min(images, share * comm.world_size())
    with progress(title, total, active=active) as tell:
        for size, made in zip(sizes, make(numbers), strict=True):
            yield made
            done += size
            tell(total * done // share)


def _made(
    function: Embed, images: Images, how: Extracting, numbers: Sequence[int]
) -> Generator[Made, None, None]:
    """The blocks of these numbers, one after another."""
    dtype = getattr(torch, how.store)
    rows: list[Tensor] = []
    bad: list[int] = []
    for ids, unread, x_BD in _rows(function, images, how, dtype, numbers):
        for number, places in _by_block(ids):
            good = [k for k in places if k not in unread]
            rows.append(x_BD if len(good) == len(x_BD) else x_BD[good])
            bad += [ids[k] for k in places if k in unread]
            if ids[places[-1]] + 1 == min(len(images), (number + 1) * BLOCK):
                yield Made(number, tuple(bad), _within(torch.cat(rows)))
                rows, bad = [], []


def _by_block(ids: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Which places of a batch belong to which block."""
    for number, group in itertools.groupby(range(len(ids)), lambda k: ids[k] // BLOCK):
        yield number, list(group)


def _within(x_KD: Tensor) -> Tensor:
    """The same. Raises Error for what float16 cannot hold."""
    if x_KD.dtype == torch.float16 and bool(x_KD.isinf().any()):
        raise Error("store: float16 holds no feature beyond 65,504, and there is one: float32")
    return x_KD


@torch.inference_mode()
def _rows(
    function: Embed, images: Images, how: Extracting, dtype: torch.dtype, numbers: Sequence[int]
) -> Generator[tuple[Sequence[int], set[int], Tensor], None, None]:
    """(ids, places that could not be read, features (B, D) on the host) of all images of these
    blocks; the features at such a place mean nothing.
    """
    device, form = comm.device(), Form(len(images), how.store)
    ids = itertools.chain.from_iterable(map(form.images_of, numbers))
    step = STEP if device.type == "cpu" else how.batch
    parts = iter(lambda: list(itertools.islice(ids, step)), [])
    few = how.workers is None and len(numbers) * BLOCK <= FEW
    workers = 0 if few else workers_for(images, how.workers, comm.world_size())
    source = prefetch(in_place(images, parts, workers, device.type == "cuda"), device)
    run = partial(_run, function, dtype=dtype, precision=how.precision)
    with contextlib.closing(source):
        outputs = (((part.ids, set(part.bad)), run(part.pixels)) for part in source)
        for (read, bad), x_BD in _late(outputs):
            yield read, bad, x_BD


def _run(function: Embed, canvas_BCHW: Tensor, dtype: torch.dtype, precision: str) -> Tensor:
    """Features (B, D) of the canvases, in the type that is kept."""
    with in_precision(precision):
        h_BD = function(canvas_BCHW)
    x_BD = h_BD.flatten(1).to(dtype)
    shared = x_BD.untyped_storage().data_ptr() == canvas_BCHW.untyped_storage().data_ptr()
    return x_BD.clone() if shared else x_BD  # canvases are written again


def _late(outputs: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Tensor]]:
    """Each on the host, from a GPU copied while the next one is computed."""
    waiting: list[tuple[Any, Tensor, Callable[[], None]]] = []
    for about, x_BD in outputs:
        waiting.append((about, *_copy(x_BD)))
        if len(waiting) > 1 or x_BD.device.type == "cpu":
            yield _arrived(waiting)
    while waiting:
        yield _arrived(waiting)


def _arrived(waiting: list[tuple[Any, Tensor, Callable[[], None]]]) -> tuple[Any, Tensor]:
    about, host_BD, wait = waiting.pop(0)
    wait()
    return about, host_BD


def _copy(x_BD: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """Where it goes on the host, and how its end is waited for."""
    if x_BD.device.type == "cpu":
        return x_BD, lambda: None
    host_BD = torch.empty(x_BD.shape, dtype=x_BD.dtype, pin_memory=True)
    host_BD.copy_(x_BD, non_blocking=True)
    return host_BD, torch.cuda.current_stream(x_BD.device).record_event().synchronize


def cache_key(images: Images) -> tuple[str, ...]:
    """What features depend on: images by their `passport`, shape, form, fit, and order and labels,
    which it need not tell.
    """
    digest = hashlib.sha256()
    order = getattr(images, "order", None)
    for mark in [order] if order else map(images.name, range(len(images))):
        digest.update(os.fsencode(mark) + b"\0")
    if images.labels is not None:
        digest.update(images.labels.numpy().data)
    marks = passport(images)
    known = (str(marks[name]) for name in ("data", "content", "times") if name in marks)
    how = f"{getattr(images, 'fit', '')} {getattr(images, 'max_pixels', None)}"
    usual = PixelFormat(images.form.channels)
    form = () if images.form == usual else (repr(images.form),)
    return *known, str(images.shape), how, *form, digest.hexdigest()
