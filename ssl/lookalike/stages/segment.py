"""Segmentation: a linear classifier of a frozen backbone's patches, scored by mIoU, beside two
baselines; and what it sees, to be looked at.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookalike import comm, rng
from lookalike.checkpoint import read_or_set_aside
from lookalike.data.decode import BadImage
from lookalike.data.images import LayeredImages, MaskedImages
from lookalike.data.images.masked import unlayered
from lookalike.data.masks import classes_in
from lookalike.data.passport import passport
from lookalike.errors import DataError, RecipeError, printable
from lookalike.evaluation.segmentation import (
    Learned,
    Learning,
    Seen,
    confusions,
    held_out,
    learn,
    seen_as_pixels,
    seen_by,
    segmented,
)
from lookalike.experiment import Experiment, Segment
from lookalike.folder import write_file
from lookalike.log import note, say
from lookalike.models import Architecture, Backbone, open_backbone
from lookalike.models.card import weights_digest
from lookalike.models.dense import dense_shape, patches
from lookalike.report import segments, tables, tiles
from lookalike.runs import Run
from lookalike.scoring.patches import groups
from lookalike.scoring.segmentation import overlap

FILE, PAGE = "segment.json", "segment.html"
PIXELS = "pixels/"
ROWS = {"": "this backbone", "untrained/": "untrained backbone", PIXELS: "pixels of patches"}
_GROUPED = 256


@dataclass(frozen=True)
class Job:
    """What is segmented: `sets` are train and test images, each with its mask."""

    run: Run
    settings: Segment
    sets: tuple[LayeredImages, LayeredImages]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes of pixels."""
        return self.sets[0].images.names

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the images as they are read."""
        return self.sets[0].images.shape[1:]


def segment(
    backbone: Backbone | str | Path,
    recipe: Experiment,
    out: str | Path | None = None,
    *,
    name: str | None = None,
) -> dict[str, Any]:
    """mIoU in [0, 1] of a linear classifier of patches, of a backbone, a backbone folder or a timm
    name, on the images and masks of `segment.data`.

    Keys: `miou`, `pixel_accuracy`, `iou` by class, with `pixels/` and `untrained/` before them for
    the baselines. With `out` they go to `out/segment.json`, those of another model than the run's
    own under its `name`, and `out/segment.html` shows test images.
    """
    recipe.section(Segment)
    run = Run(recipe, out)
    run.visit()
    opened = open_backbone(backbone, run.like(backbone))
    planned = job(run, opened.architecture)
    run.tell()
    run.look(*planned.sets)
    return do(planned, opened, name)


def job(run: Run, architecture: Architecture) -> Job:
    """Decides what is segmented, and refuses what cannot be: images without masks, masks that show
    one class or none, a backbone without patches.
    """
    run.read_as(architecture)
    settings = run.experiment.section(Segment)
    train, test = (run.images(n, architecture.size, of=settings.data) for n in ("train", "test"))
    if not (isinstance(train, MaskedImages) and isinstance(test, MaskedImages)):
        raise RecipeError(
            f"{run.name}: segment.data: {settings.data.name} has no masks: take masks"
        )
    if train.shape[0] != architecture.channels:
        raise RecipeError(
            f"{run.name}: segment.data: {train.shape[0]} channels, but the backbone takes "
            f"{architecture.channels}: make them equal"
        )
    if len(train) < 2 and len(settings.lrs) > 1:
        raise DataError("segment.data: one train image, none to choose a rate by: give one of lrs")
    _refuse_alike(train)
    patches(architecture, settings.blocks)
    return Job(run, settings, (LayeredImages(train), LayeredImages(test)))


def _refuse_alike(train: MaskedImages) -> None:
    """Raises DataError where a classifier would have nothing to learn."""
    seen = classes_in(train)
    if len(seen) < 2:
        only = f"only the class {train.names[min(seen)]}" if seen else "no class"
        raise DataError(
            f"segment.data: the train masks show {only}: check ignore, reduce_zero and classes"
        )


def do(job: Job, backbone: Backbone, name: str | None = None) -> dict[str, Any]:
    """The scores of the backbone and of the baselines, said and kept as they come; every rank calls
    it.
    """
    folder, first = job.run.folder, comm.rank() == 0
    scores: dict[str, Any] = {"protocol": protocol(job)}
    for prefix, digest, seen in _models(job, backbone):
        found, learned, k = score(job, seen, digest, ROWS[prefix])
        scores |= {prefix + key: value for key, value in found.items()}
        if first:
            text = line(scores, prefix, name or ROWS[""])
            say(text if prefix else f"{head()}\n{text}")
            if folder:
                remember(folder / FILE, scores, name)
        if first and folder and not prefix and job.settings.examples:
            _draw(job, seen, learned, k, scores, folder / PAGE, name)
        comm.barrier(patient=True)
    job.run.leave_recipe()
    return scores


def score(job: Job, seen: Seen, digest: str, title: str) -> tuple[dict[str, Any], Learned, int]:
    """Scores on the test set of the head that is best on held-out images; all heads, and which it
    is.
    """
    settings, (train, test), how = job.settings, job.sets, learning(job)
    chosen_by, unread = None, 0
    if len(how.rates) > 1:
        kept, out = held_out(len(train), settings.held_out, how.seed)
        train, chosen_by = train.rows(kept), train.rows(out)
    key = _key(job, train, digest)
    place = job.run.folder / "segment" / f"{key[:16]}.safetensors" if job.run.folder else None
    learned = learn(seen, train, how, place=place, digest=key, title=f"segment, {title}")
    best, tried = 0, {}
    if chosen_by is not None:
        every = list(range(len(how.rates)))
        found_KCC, unread = confusions(seen, chosen_by, learned, every, how)
        tried = {rate: overlap(found_KCC[k]).miou for k, rate in enumerate(how.rates)}
        best = max(every, key=lambda k: tried[how.rates[k]])
    (found_CC,), more = confusions(seen, test, learned, [best], how)
    result = overlap(found_CC)
    return (
        {
            "miou": result.miou,
            "pixel_accuracy": result.accuracy,
            "iou": {
                n: (None if u != u else u)
                for n, u in zip(job.names, result.iou_C.tolist(), strict=True)
            },
            "lr": how.rates[best],
            "held_out": {f"{rate:g}": value for rate, value in tried.items()},
            "dropped": learned.unread + unread + more,
        },
        learned,
        best,
    )


def learning(job: Job) -> Learning:
    """How the heads learn, in the words of `evaluation.segmentation`."""
    s = job.settings
    fixed = (s.epochs, s.batch, s.weight_decay, s.optimizer, s.workers)
    return Learning(tuple(dict.fromkeys(s.lrs)), *fixed, job.run.seed)


def protocol(job: Job) -> str:
    """What the numbers are numbers of, in words."""
    s, (train, test), (rows, columns) = job.settings, job.sets, job.canvas
    rates = ", ".join(f"{rate:g}" for rate in s.lrs)
    chosen = (
        f"the rate of {rates} with the best mIoU on {100 * s.held_out:g} % of the train images, "
        "held out"
        if len(s.lrs) > 1
        else f"rate {rates}"
    )
    epochs = "1 epoch" if s.epochs == 1 else f"{s.epochs} epochs"
    blocks = "last block" if s.blocks == 1 else f"last {s.blocks} blocks"
    return (
        f"linear layer on standardised patch features of the {blocks}, frozen; logits bilinear to "
        f"the pixels of a {rows} x {columns} canvas; cross-entropy without ignored pixels; "
        f"{s.optimizer}, weight decay {s.weight_decay:g}, {epochs} of {len(train)} images, less "
        f"those held out, in batches of {s.batch}, no augmentation; {chosen}; last epoch, scored "
        f"once on {len(test)} test images; mIoU of one confusion matrix, over classes that occur"
    )


def _models(job: Job, backbone: Backbone) -> Iterator[tuple[str, str, Seen]]:
    """Prefix, what stands for the weights, and what the model sees; one at a time on the device."""
    s = job.settings
    _, h, w = dense_shape(backbone, s.blocks)
    yield "", weights_digest(backbone), seen_by(backbone, job.canvas, s.blocks, s.precision)
    if "untrained" in s.kinds:
        torch.manual_seed(rng.seed(job.run.seed, "weights"))
        if fresh := backbone.fresh():
            seen = seen_by(fresh, job.canvas, s.blocks, s.precision)
            yield "untrained/", weights_digest(fresh), seen
    if "pixels" in s.kinds:
        yield PIXELS, f"pixels {h} {w}", seen_as_pixels(backbone.architecture, job.canvas, (h, w))


def _key(job: Job, train: LayeredImages, digest: str) -> str:
    """What learned heads depend on."""
    images, how = train.images, learning(job)._replace(workers=None)
    marks = [digest, job.settings.blocks, job.settings.precision, how, images.numbers]
    marks += [passport(images), images.shape, images.form, images.fit, images.max_pixels]
    return hashlib.sha256(json.dumps(marks, default=str).encode()).hexdigest()


def remember(path: Path, scores: dict[str, Any], name: str | None) -> None:
    """Writes the scores of the run's own backbone, or of another one, `name`, under `others` beside
    them.
    """
    held = read_or_set_aside(path, dict, note) or {}
    others = held.pop("others", {})
    if name is not None:
        scores, others = held, {**others, name: scores}
    known = {**scores, **({"others": others} if others else {})}
    write_file(path, json.dumps(known, indent=2, ensure_ascii=False).encode(errors="replace"))


def head() -> str:
    """What stands above the lines."""
    return f"{'segmentation':<20}{'mIoU':>10}{'pixels':>10}"


def line(scores: dict[str, Any], prefix: str, name: str) -> str:
    """The scores of the backbone itself, `name`, or of a baseline."""
    miou, right = scores[f"{prefix}miou"], scores[f"{prefix}pixel_accuracy"]
    said = ROWS[prefix] if prefix else printable(name)
    said = said if len(said) < 20 else f"…{said[-18:]}"
    return f"{said:<20}{100 * miou:>8.2f} %{100 * right:>8.2f} %"


def table(scores: dict[str, Any], name: str = ROWS[""]) -> str:
    """The scores as lines for a person."""
    found = [line(scores, prefix, name) for prefix in ROWS if f"{prefix}miou" in scores]
    return "\n".join([head(), *found])


def _draw(
    job: Job,
    seen: Seen,
    learned: Learned,
    k: int,
    scores: dict[str, Any],
    target: Path,
    name: str | None,
) -> None:
    """Writes the page of some test images."""
    test = job.sets[1]
    ids = spread(len(test), job.settings.examples)
    shown = _read(test, ids)
    canvases = torch.stack([x for _, x, _ in shown]) if shown else torch.empty(0)
    others = _read(job.sets[0], spread(len(job.sets[0]), _GROUPED - len(ids))) if shown else []
    if not shown:
        return
    known = [canvases, *(x[None] for _, x, _ in others)]
    maps_BDhw = torch.cat([seen.patches(x.to(comm.exact_device())).cpu() for x in known])
    group_Bhw = groups(maps_BDhw, job.settings.clusters, job.run.seed)
    guess_BHW = segmented(seen, learned, k, canvases).cpu()
    top, left, height, width = seen.box
    box = (slice(top, top + height), slice(left, left + width))
    form = test.images.form
    examples = [
        segments.Example(
            test.name(i), tiles.visible(x, form)[:, *box], group_Bhw[n], guess_BHW[n], mask[box]
        )
        for n, (i, x, mask) in enumerate(shown)
    ]
    cells = [f"{100 * scores[key]:.2f} %" for key in ("miou", "pixel_accuracy")]
    content = tables.Table(["", "mIoU", "pixels"], [[name or ROWS[""], *cells]])
    title = f"{Path(job.run.name).stem}: segmentation" + (f" of {name}" if name else "")
    iou = list(scores["iou"].values())
    write_file(
        target, segments.document(title, scores["protocol"], content, job.names, iou, examples)
    )


def spread(count: int, most: int) -> list[int]:
    """At most so many numbers below `count`, evenly spread."""
    return sorted({count * n // most for n in range(most)}) if most < count else list(range(count))


def _read(images: LayeredImages, ids: list[int]) -> list[tuple[int, Tensor, Tensor]]:
    """Number, canvas and mask of those that can be read."""
    found = []
    for i in ids:
        try:
            canvas_1CHW, mask_1HW = unlayered(images.read(i)[None])
        except BadImage:
            continue
        found.append((i, canvas_1CHW[0], mask_1HW[0]))
    return found
