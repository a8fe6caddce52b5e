"""Classifiers trained on views of the train images through a frozen network: every batch goes
through it once, whatever the number of classifiers.

What is chosen, as a rate, is chosen by classifiers that never see the held-out part of train; for
each of them another one learns from all of train beside it, on the same batches, and that one of
the chosen is scored on test, once, after the last epoch. Published figures mostly come from the
best epoch and rate on the test set itself.
"""

import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from lookalike import comm
from lookalike.checkpoint.kept import forget, keep, kept
from lookalike.data.images import Images
from lookalike.data.loader import Batch, batches, workers_for
from lookalike.data.order import BatchOrder, order_of
from lookalike.data.passport import passport
from lookalike.data.prefetch import prefetch
from lookalike.data.reader import HostCrops
from lookalike.errors import DataError
from lookalike.evaluation.features import in_precision, plain_view
from lookalike.evaluation.protocols.contract import Numbers, Subject
from lookalike.geometry import sides
from lookalike.log import progress
from lookalike.models import Architecture
from lookalike.models.card import weights_digest
from lookalike.models.taps import Tap, untapped
from lookalike.recipe import Count, Fraction, NonNegative, Positive, Share
from lookalike.scoring.knn import dense
from lookalike.scoring.linear import split
from lookalike.views import Symmetric, make, normalise

Rates = Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class OnViews:
    """Training on random resized crops and flips; no learning rate is scaled by the batch.

    `epochs`: over train, each without its last, incomplete batch; `batch`: images of a step, over
    all ranks; `warmup_epochs`: until a rate has risen to its full height; `drops`: after which
    epochs a rate falls to a tenth, by default it falls by a half cosine to 0 step by step; `crop`:
    the shares of an image that a view shows; `flip`: how often it is mirrored; `interpolation`: how
    it is resized; `crop_on`: where it is cut, on the `device` from a canvas decoded once, or on the
    `host` from the full-size image.
    """

    epochs: Count = 100
    batch: Count = 256
    warmup_epochs: NonNegative = 0.0
    drops: tuple[Count, ...] = ()
    crop: tuple[Share, Share] = (0.08, 1.0)
    flip: Fraction = 0.5
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_on: Literal["device", "host"] = "device"

    def __post_init__(self) -> None:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} is longer than epochs {self.epochs}: lower "
                "it"
            )
        if self.crop[0] > self.crop[1]:
            raise ValueError(f"crop {list(self.crop)} has its larger value first")

    @property
    def views(self) -> Symmetric:
        """The policy of the views: a crop and a flip."""
        return Symmetric(
            views=1,
            crop=self.crop,
            interpolation=self.interpolation,
            flip=self.flip,
            jitter=0.0,
            grey=0.0,
            blur=0.0,
        )

    def factor(self, step: int, per_epoch: int) -> float:
        """What every rate is multiplied by at `step`, from 0."""
        warm, steps = self.warmup_epochs * per_epoch, self.epochs * per_epoch
        if step < warm:
            return (step + 1) / warm
        if self.drops:
            return 0.1 ** sum(step >= epoch * per_epoch for epoch in self.drops)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))

    def told(self, numbers: Numbers, rates: tuple[float, ...], several: bool) -> dict[str, Any]:
        """What stands beside the scores."""
        falls = (
            f"a tenth after epochs {', '.join(map(str, self.drops))}" if self.drops else "cosine"
        )
        chosen = f"{numbers.held_out:g} of each class of train" if several else "nothing is chosen"
        return {
            "epochs": self.epochs,
            "batch": self.batch,
            "views": f"random resized crop of {self.crop[0]:g} to {self.crop[1]:g}, flip "
            f"{self.flip:g}",
            "learning rates": list(rates),
            "schedule": falls + (f", warm-up {self.warmup_epochs:g}" if self.warmup_epochs else ""),
            "chosen on": chosen,
            "scored": "last epoch, test once",
        }

    def refuse_batch(self, name: str, train: Images) -> None:
        """Raises DataError where train is less than one batch."""
        if len(train) < self.batch:
            raise DataError(
                f"probe.protocols: {name}: {len(train)} train images are fewer than one batch of "
                f"{self.batch}: lower its batch, and lr by as much"
            )


class Learner(Protocol):
    """Some classifiers, in pairs: of the first half none sees what is held out, and the k-th of the
    second half has learnt with the k-th rate too. Where there is nothing to choose, one alone.
    """

    several: bool

    def look(self, x_BCHW: Tensor) -> Any:
        """What it takes of this rank's views, (B, C, H, W); B may be 0."""

    def step(self, looked: Any, labels_B: Tensor, fits_B: Tensor, factor: float) -> None:
        """Learns from them, together with the other ranks; `fits_B`: which are not held out."""

    def hits(self, looked: Any, labels_B: Tensor, only: int | None) -> Tensor:
        """(K, 2), or (1, 2) of `only` one: how many of all ranks' rows a classifier has right at
        first, and among five; int64.
        """

    def state(self) -> dict[str, Tensor]:
        """All that learning changes, of all ranks, the same on each."""

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """The reverse, after so many steps."""


class Outcome(NamedTuple):
    """`learner` after its last epoch, and where it is `kept`; `best`: the number of the chosen
    classifier; `held_out`: its share of hits there, None where nothing was chosen; `scores`: on
    test.
    """

    learner: Any
    kept: "Kept"
    best: int
    held_out: float | None
    scores: dict[str, float]


class Listed(NamedTuple):
    """A BatchOrder: these samples one after the other, once."""

    ids_N: Tensor
    batch: int
    seed: int = 0
    accumulate: int = 1

    def micro_batches(self, first_step: int, last_step: int) -> Iterator[tuple[int, Tensor]]:
        """Batches number `first_step` to before `last_step`."""
        parts = torch.split(self.ids_N, self.batch)[first_step:last_step]
        yield from ((0, part) for part in parts)

    @property
    def steps(self) -> int:
        return -(-len(self.ids_N) // self.batch)


def learn(
    subject: Subject, keys: OnViews, name: str, make_learner: Callable[[int], Learner]
) -> Outcome:
    """Trains what `make_learner` makes for a number of classes, chooses, scores; collective.

    Goes on after the last epoch that was kept in the subject's folder.
    """
    train, test = subject.images
    assert train.labels is not None
    assert test.labels is not None
    numbers = subject.numbers
    classes, near_N, true_M = dense(train.labels, test.labels)
    learner = make_learner(classes)
    held_rows = torch.empty(0, dtype=torch.int64)
    fits_N = torch.ones(len(near_N), dtype=torch.bool)
    if learner.several:
        held_rows = split(near_N, numbers.held_out, numbers.seed)[1]
        fits_N[held_rows] = False
    kept = Kept(subject, keys, name)
    _train(subject, keys, learner, near_N, fits_N, name, kept)
    best, held_out = 0, None
    if learner.several:
        rates_K = _shares_right(subject, learner, train, held_rows, near_N)[:, 0]
        half = len(rates_K) // 2
        best = int(rates_K[:half].argmax())  # the first of those that tie
        held_out, best = float(rates_K[best]), best + half
    rows = torch.arange(len(test))
    found_2 = _shares_right(subject, learner, test, rows, true_M, only=best)[0]
    scores = {
        f"top{k}": float(found)
        for k, found in zip((1, 5), found_2, strict=True)
        if k == 1 or classes > 5
    }
    return Outcome(learner, kept, best, held_out, scores)


def _train(
    subject: Subject,
    keys: OnViews,
    learner: Learner,
    near_N: Tensor,
    fits_N: Tensor,
    name: str,
    kept: "Kept",
) -> None:
    train, numbers = subject.images[0], subject.numbers
    order = order_of(train, min(keys.batch, len(train)), 1, numbers.seed)
    per_epoch = order.steps_per_epoch
    done = kept.load(learner, per_epoch) * per_epoch
    view = _Views(subject.model, keys, numbers.seed)
    device, last = comm.device(), keys.epochs * per_epoch
    with (
        progress(f"probe: {name}", last - done, active=comm.rank() == 0) as tell,
        closing(_batches(train, order, done, last, numbers, view.host_crops)) as found,
    ):
        for step, batch in enumerate(found, done):
            shown_B = shown(batch)
            looked = _looked(learner, view(batch), numbers.precision)
            learner.step(
                looked,
                near_N[shown_B].to(device),
                fits_N[shown_B].to(device),
                keys.factor(step, per_epoch),
            )
            tell(step + 1 - done)
            if (step + 1) % per_epoch == 0:
                kept.save(learner, (step + 1) // per_epoch)


def _batches(
    images: Images,
    order: BatchOrder,
    first_step: int,
    last_step: int,
    numbers: Numbers,
    host_crops: HostCrops | None = None,
) -> Generator[Batch, None, None]:
    world, device = comm.world_size(), comm.device()
    found = batches(
        images,
        order,
        first_step=first_step,
        last_step=last_step,
        rank=comm.rank(),
        world=world,
        workers=workers_for(images, numbers.workers, world),
        pin=device.type == "cuda",
        host_crops=host_crops,
    )
    return prefetch(found, device)


def shown(batch: Batch) -> Tensor:
    """The images that the batch really shows, (B,): what could not be read is replaced by others,
    whose labels count.
    """
    shown_B = batch.ids_B.clone()
    for bad in batch.bad:
        shown_B[batch.ids_B == bad.sample] = bad.replacement
    return shown_B


class _Views:
    """A batch -> its training views (B, C, H, W), normalised, on the device."""

    def __init__(self, model: Any, keys: OnViews, seed: int) -> None:
        self.architecture: Architecture = model.architecture
        self.policy, self.seed = keys.views, seed
        crops = HostCrops(self.policy, self.architecture.size)
        self.host_crops = crops if keys.crop_on == "host" else None

    def __call__(self, batch: Batch) -> Tensor:
        mean, std = self.architecture.normalisation()
        if not len(batch.ids_B):  # more ranks than images
            height, width = sides(self.architecture.size)
            shape = (0, self.architecture.channels, height, width)
            return torch.empty(shape, device=comm.device())
        (x_BCHW,) = make(
            self.policy,
            batch.pixels,
            batch.ids_B,
            batch.epoch,
            size=self.architecture.size,
            mean=mean,
            std=std,
            seed=self.seed,
            device=comm.device(),
            form=self.architecture.form,
        )
        return x_BCHW


@torch.no_grad()
def _looked(learner: Learner, x_BCHW: Tensor, precision: str) -> Any:
    with in_precision(precision):
        return learner.look(x_BCHW)


def _shares_right(
    subject: Subject,
    learner: Learner,
    images: Images,
    rows: Tensor,
    labels_N: Tensor,
    only: int | None = None,
) -> Tensor:
    """(K, 2), float64: the share of these images, in the test-time view, that each classifier, or
    `only` one of them (1, 2), has right at first, and among five. What cannot be read is left out.
    """
    model: Any = subject.model
    architecture, numbers = model.architecture, subject.numbers
    order = Listed(rows, max(1, numbers.batch) * comm.world_size())
    hits_K2, count = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with closing(_batches(images, order, 0, order.steps, numbers)) as found:
        for batch in found:
            there_B = shown(batch) == batch.ids_B
            canvas_BCHW = batch.pixels.to(comm.device())  # type: ignore[union-attr]
            x_BCHW = normalise(
                plain_view(canvas_BCHW, architecture), *architecture.normalisation()
            )[there_B.to(canvas_BCHW.device)]
            looked = _looked(learner, x_BCHW, numbers.precision)
            labels_B = labels_N[batch.ids_B[there_B]].to(canvas_BCHW.device)
            hits_K2 = hits_K2 + learner.hits(looked, labels_B, only).cpu()
            count = count + len(labels_B)
    return hits_K2.double() / comm.all_sum(count.to(comm.device())).cpu().clamp_min(1)


def shares(fits_N: Tensor, several: bool, each: int, fitting: int, rows: int) -> Tensor:
    """(K, N): what a row weighs in each classifier's loss; in those of the first half nothing where
    it is held out. `fitting` and `rows`: how many there are over all ranks.
    """
    of_all_N = torch.full(fits_N.shape, 1 / max(1, rows), device=fits_N.device)
    of_some_N = fits_N.float() / max(1, fitting)
    kinds = [of_some_N, of_all_N] if several else [of_all_N]
    return torch.cat([kind_N.expand(each, -1) for kind_N in kinds])


class Kept:
    """The classifiers after the last epoch, in the subject's folder, under a name that stands for
    all that they depend on; gone once training has ended.
    """

    def __init__(self, subject: Subject, keys: OnViews, name: str) -> None:
        self.path: Path | None = None
        if subject.folder is not None:
            self.path = subject.folder / f"probe-{name}-{_key(subject, keys)}.safetensors"

    def load(self, learner: Learner, per_epoch: int) -> int:
        """How many epochs are done, which `learner` then knows; on every rank."""
        found = kept(self.path)
        if found is None:
            return 0
        epochs = int(found.about["epochs"])
        learner.load(found.tensors, epochs * per_epoch)
        return epochs

    def save(self, learner: Learner, epochs: int) -> None:
        """What all ranks know together."""
        keep(self.path, learner.state(), {"epochs": epochs})

    def remove(self) -> None:
        """Nothing of it is needed any more."""
        forget(self.path)


def _key(subject: Subject, keys: OnViews) -> str:
    """A word for the model and its tap, the images, and the protocol."""
    train = subject.images[0]
    assert train.labels is not None
    digest = hashlib.sha256(train.labels.numpy().tobytes())
    backbone, tap = untapped(subject.model) if subject.model is not None else (None, Tap())
    numbers = subject.numbers
    known = [
        weights_digest(backbone),
        tap,
        type(keys).__name__,
        asdict(keys),
        passport(train),
        train.shape,
        numbers.held_out,
        numbers.seed,
        numbers.precision,
    ]
    digest.update(json.dumps(known, default=str, sort_keys=True).encode())
    return digest.hexdigest()[:16]
