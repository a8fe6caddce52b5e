"""A linear segmentation of frozen patch features: learned by all ranks in one pass over the images
an epoch, kept after each, and scored by the confusion of pixels.

As DINOv2's linear segmentation (Oquab et al., arXiv 2304.07193, section 7.4): one linear layer from
a patch to classes, its logits brought bilinearly to the pixels, cross-entropy over those that have
a class. Patch features are not stored: an image has hundreds.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike import comm, rng
from lookalike.checkpoint.kept import keep, kept
from lookalike.data.images import LayeredImages
from lookalike.data.images.masked import unlayered
from lookalike.data.loader import in_order, workers_for
from lookalike.errors import DataError
from lookalike.evaluation.features import in_precision, plain_view
from lookalike.geometry import central
from lookalike.log import progress
from lookalike.models import Architecture, Backbone
from lookalike.models.dense import dense, frozen
from lookalike.scoring import segheads
from lookalike.scoring.segheads import Heads, Rule
from lookalike.scoring.segmentation import confusion
from lookalike.views import normalise

PIXELS = 8
"""The baseline sees so many rows and columns of a patch."""
MEASURED = 256
"""Of so many train images, evenly spread, the patches' mean and deviation are taken."""
_PARTS = 4

Patches = Callable[[Tensor], Tensor]
"""Raw canvas (B, C, H, W) -> features of the patches of its view, float32 (B, D, h, w)."""


class Learning(NamedTuple):
    """How the heads learn: see `experiment.Segment`."""

    rates: tuple[float, ...]
    epochs: int
    batch: int
    decay: float
    rule: Rule
    workers: int | None
    seed: int


class Seen(NamedTuple):
    """What a model sees of canvases: the features of a view's patches, and the box (top, left,
    height, width) of the canvas that the view shows.
    """

    patches: Patches
    box: tuple[int, int, int, int]


class Learned(NamedTuple):
    """The heads, and the mean and deviation by which their features were standardised, (D,)
    float32 each; `unread` training images could not be read.
    """

    heads: Heads
    mean_D: Tensor
    std_D: Tensor
    unread: int


def seen_by(backbone: Backbone, canvas: tuple[int, int], blocks: int, precision: str) -> Seen:
    """The features of a backbone's last blocks, on this rank's device."""
    model, architecture = frozen(backbone).to(comm.exact_device()), backbone.architecture
    mean, std = architecture.normalisation()

    @torch.inference_mode()
    def function(canvas_BCHW: Tensor) -> Tensor:
        x_BCHW = plain_view(canvas_BCHW, architecture)
        with in_precision(precision):
            assert isinstance(model, Backbone)
            return dense(model, normalise(x_BCHW, mean, std), blocks).float()

    return Seen(function, _box(architecture, canvas))


def seen_as_pixels(
    architecture: Architecture, canvas: tuple[int, int], grid: tuple[int, int]
) -> Seen:
    """The pixels themselves of each patch of that grid, at most PIXELS × PIXELS of each channel."""
    h, w = grid

    @torch.inference_mode()
    def function(canvas_BCHW: Tensor) -> Tensor:
        x_BCHW = plain_view(canvas_BCHW, architecture)
        side = min(PIXELS, max(1, x_BCHW.shape[2] // h))
        small_BCHW = F.interpolate(x_BCHW, (side * h, side * w), mode="bilinear", antialias=True)
        return F.pixel_unshuffle(small_BCHW, side)

    return Seen(function, _box(architecture, canvas))


def learn(
    seen: Seen,
    images: LayeredImages,
    how: Learning,
    *,
    place: Path | None = None,
    digest: str = "",
    title: str = "segment",
) -> Learned:
    """The heads after so many epochs, on every rank; goes on from what is kept at `place`
    under this `digest`. All ranks call it.
    """
    classes = len(images.images.names)
    learned = _kept(place, digest) or _begun(seen, images, how, classes)
    done = learned.heads.steps // max(1, _steps(len(images), how.batch))
    first = comm.rank() == 0
    with progress(title, how.epochs * len(images), active=first) as tell:
        for epoch in range(done, how.epochs):
            learned = _epoch(seen, images, how, learned, epoch, tell)
            _keep(place, learned, digest)
    comm.barrier(patient=True)
    return learned


def confusions(
    seen: Seen, images: LayeredImages, learned: Learned, which: list[int], how: Learning
) -> tuple[Tensor, int]:
    """int64 (K, C, C) of the heads `which` over all images, which the ranks share; and how many
    images could not be read.
    """
    classes = len(images.images.names)
    found_KCC = torch.zeros(len(which), classes, classes, dtype=torch.int64)
    block, _ = _block(how.batch)
    mine = comm.in_turn(range(-(-len(images) // block)))
    read = 0
    for taken in _blocks(images, torch.arange(len(images)), mine, block, how.workers):
        if taken is None:
            continue
        x_BDhw, class_BHW = _standard(seen, *taken, learned)
        read += len(x_BDhw)
        for x, target in segheads.pieces(x_BDhw, class_BHW, classes):
            for n, k in enumerate(which):
                guess = segheads.predicted(learned.heads, k, x, seen.box[2:])
                found_KCC[n] += confusion(guess, target, classes).cpu()
    counted = torch.cat([found_KCC.flatten(), torch.tensor([read])]).to(comm.exact_device())
    counted = comm.all_sum(counted).cpu()
    return counted[:-1].view_as(found_KCC), len(images) - int(counted[-1])


def segmented(seen: Seen, learned: Learned, k: int, canvas_BCHW: Tensor) -> Tensor:
    """The class of each pixel that the view shows, int64 (B, height, width) of the box."""
    x_BDhw = _standardised(seen.patches(canvas_BCHW.to(comm.exact_device())), learned)
    return segheads.predicted(learned.heads, k, x_BDhw, seen.box[2:])


def held_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from and rows to choose by, int64, each ascending; at least one of each."""
    order_N = rng.permutation(count, seed, "segment held out")
    few = min(max(1, round(share * count)), count - 1)
    return order_N[few:].sort().values, order_N[:few].sort().values


def _box(architecture: Architecture, canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """What the test-time view shows of a canvas."""
    return central(*canvas, architecture.size, architecture.crop)


def _begun(seen: Seen, images: LayeredImages, how: Learning, classes: int) -> Learned:
    """Heads of zeros, and the mean and deviation of the features of some train images.

    Raises DataError where none of them can be read.
    """
    count = min(MEASURED, len(images))
    ids_M = torch.linspace(0, len(images) - 1, count).round().long()
    block, _ = _block(how.batch)
    mine = comm.in_turn(range(-(-count // block)))
    sums: Tensor | None = None
    for taken in _blocks(images, ids_M, mine, block, how.workers):
        if taken is not None:
            x_DN = (
                seen.patches(taken[0].to(comm.exact_device())).transpose(0, 1).flatten(1).double()
            )
            one = x_DN.new_full((1,), x_DN.shape[1])
            each = torch.cat([one, x_DN.sum(1), x_DN.square().sum(1)])
            sums = each if sums is None else sums + each
    widths = comm.all_max(
        torch.tensor(0 if sums is None else len(sums), device=comm.exact_device())
    )
    if not int(widths):
        raise DataError(f"segment.data: none of {count} train images could be read with its mask")
    if sums is None:
        sums = torch.zeros(int(widths), dtype=torch.float64, device=comm.exact_device())
    sums = comm.all_sum(sums)
    mean_D, square_D = (sums[1:] / sums[0]).chunk(2)
    std_D = (square_D - mean_D.square()).clamp(min=0).sqrt()
    std_D = std_D.where(std_D > 1e-6 * mean_D.abs() + 1e-12, 1.0)
    heads = Heads.zeros(len(how.rates), classes, len(mean_D), comm.exact_device())
    return Learned(heads, mean_D.float(), std_D.float(), 0)


def _epoch(
    seen: Seen,
    images: LayeredImages,
    how: Learning,
    learned: Learned,
    epoch: int,
    tell: Callable[[int], None],
) -> Learned:
    """One pass over the images."""
    heads, count = learned.heads, len(images)
    block, parts = _block(how.batch)
    steps, order_N = _steps(count, how.batch), rng.permutation(count, how.seed, "segment", epoch)
    mine = [
        step * parts + part
        for step in range(steps)
        for part in comm.in_turn(range(parts))
        if (step * parts + part) * block < count
    ]
    stream = _blocks(images, order_N, mine, block, how.workers)
    read, due = 0, Counter(b // parts for b in mine)
    for step in range(steps):
        grad_KCE = torch.zeros_like(heads.weight_KCE)
        told = grad_KCE.new_zeros(1)
        for _ in range(due[step]):
            taken = next(stream)
            if taken is None:
                continue
            x_BDhw, class_BHW = _standard(seen, *taken, learned)
            read += len(x_BDhw)
            told += segheads.known_pixels(class_BHW)
            grad_KCE += segheads.gradients(heads, x_BDhw, class_BHW)[0]
        flat = comm.all_sum(torch.cat([grad_KCE.flatten(), told]))
        grad_KCE = flat[:-1].view_as(grad_KCE) / flat[-1].clamp(min=1)
        share = segheads.rate(heads.steps, how.epochs * steps)
        heads.step(grad_KCE, [share * rate for rate in how.rates], how.decay, how.rule)
        tell(epoch * count + min(count, (step + 1) * how.batch))
    unread = count - int(comm.all_sum(torch.tensor(read, device=comm.exact_device())))
    return learned._replace(unread=unread)


def _blocks(
    images: LayeredImages, order_N: Tensor, mine: Sequence[int], block: int, workers: int | None
) -> Iterator[tuple[Tensor, Tensor] | None]:
    """Canvases and masks of those blocks of the order, one after the other; None for a block of
    which no image can be read.
    """
    if not mine:
        return
    own = torch.cat([order_N[b * block : (b + 1) * block] for b in mine])
    some = images.rows(own)
    count = workers_for(some, workers, comm.world_size())
    stream = in_order(some, block, count, pin=comm.exact_device().type == "cuda")
    due = 0
    for ids, x_BCHW in stream:
        while due < ids[0] // block:
            due += 1
            yield None
        due += 1
        yield unlayered(x_BCHW)
    for _ in range(due, len(mine)):
        yield None


def _standard(
    seen: Seen, canvas_BCHW: Tensor, class_BHW: Tensor, learned: Learned
) -> tuple[Tensor, Tensor]:
    """Standardised features of patches and the classes of the pixels that the view shows."""
    device = comm.exact_device()
    top, left, height, width = seen.box
    x_BDhw = _standardised(seen.patches(canvas_BCHW.to(device)), learned)
    return x_BDhw, class_BHW[:, top : top + height, left : left + width].to(device)


def _standardised(x_BDhw: Tensor, learned: Learned) -> Tensor:
    mean, std = (each[None, :, None, None] for each in (learned.mean_D, learned.std_D))
    return (x_BDhw - mean) / std


def _block(batch: int) -> tuple[int, int]:
    """How many images go through the network at once, and how many such parts make a step: of every
    number of ranks the same on a CPU, where that decides the bits; one a rank on a GPU.
    """
    most = comm.world_size() if comm.exact_device().type == "cuda" else _PARTS
    parts = max(p for p in range(1, min(most, batch) + 1) if batch % p == 0)
    return batch // parts, parts


def _steps(count: int, batch: int) -> int:
    return -(-count // batch)


def _keep(path: Path | None, learned: Learned, digest: str) -> None:
    """All that the next epoch begins with."""
    heads = learned.heads
    tensors = {
        "weight": heads.weight_KCE,
        "first": heads.first_KCE,
        "second": heads.second_KCE,
        "mean": learned.mean_D,
        "std": learned.std_D,
    }
    keep(path, tensors, {"digest": digest, "steps": heads.steps, "unread": learned.unread})


def _kept(path: Path | None, digest: str) -> Learned | None:
    """What an earlier run has learned under this digest, on every rank."""
    found = kept(path)
    if found is None or found.about["digest"] != digest:
        return None
    at = {name: tensor.to(comm.exact_device()) for name, tensor in found.tensors.items()}
    heads = Heads(at["weight"], at["first"], at["second"], found.about["steps"])
    return Learned(heads, at["mean"], at["std"], found.about["unread"])
