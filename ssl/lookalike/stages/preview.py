"""Some images with the views that a run would train on, as one PNG or one HTML page, and what was
drawn for them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookalike import views
from lookalike.data.images import Images
from lookalike.data.reader import HostCrops, Reader
from lookalike.errors import printable
from lookalike.experiment import Experiment, Training
from lookalike.folder import refuse_unwritable, write_file
from lookalike.recipe import Size
from lookalike.report import page, tiles
from lookalike.views import fused, randaugment
from lookalike.views.colour import OPERATIONS


class Shown(NamedTuple):
    """What is looked at: the section of a training, its images, its views, their size, and the
    mean that normalises them.
    """

    settings: Training
    images: Images
    views: Any
    size: Size
    mean: Sequence[float]


def refuse(out: Path) -> None:
    """Raises RecipeError for a file of another ending, RunError where it cannot be written."""
    page.refuse_other(out, "a preview is")
    refuse_unwritable(out.parent)


def preview(shown: Shown, recipe: Experiment, ids_B: Tensor, epoch: int, target: Path) -> list[str]:
    """Writes the images `ids_B` and their views in an epoch to `target`, .png or .html; returns
    lines of what was drawn.

    Exactly the views of the run: same draws, same crops, before they are normalised.
    """
    settings, train, policy, size, mean = shown
    seed = recipe.seed
    canvas_BCHW = read(Reader(train, seed), epoch, ids_B)[0]
    host_crops = settings.host_crops(policy, size)
    pixels = read(Reader(train, seed, host_crops), epoch, ids_B) if host_crops else canvas_BCHW
    channels = canvas_BCHW.shape[1]
    plain = {"mean": [0.0] * channels, "std": [1.0] * channels, "fill": mean}
    taken = views.taken(pixels, train.form)
    made = policy(taken, ids_B, seed=seed, epoch=epoch, size=size, **plain)
    every = policy.each(ids_B, seed=seed, epoch=epoch, **sides(train, ids_B, host_crops))
    each = list(zip(every, policy.sizes(size), strict=True))
    said = [[describe(view, b, channels, its) for view, its in each] for b in range(len(ids_B))]
    names = [f"{i} {printable(train.name(i))}" for i in ids_B.tolist()]
    rows = [
        [tiles.enlarged(tiles.visible(canvas_BCHW[b], train.form))]
        + [tiles.enlarged(tiles.shown(view[b])) for view in made]
        for b in range(len(ids_B))
    ]
    title = f"{recipe.name}, epoch {epoch}, views cut on the {settings.crop_on}"
    if target.suffix.lower() == ".png":
        write_file(target, tiles.grid(rows))
    else:
        samples = zip(names, rows, said, strict=True)
        write_file(target, page.render("preview.html", title=title, samples=samples))
    lines = []
    for name, texts in zip(names, said, strict=True):
        lines += [name, *(f"  view {v}: {text}" for v, text in enumerate(texts))]
    return lines


def read(reader: Reader, epoch: int, ids_B: Tensor) -> list[Tensor]:
    """The parts of these samples, (B, C, H, W) each."""
    parts = [torch.empty(len(ids_B), *shape, dtype=reader.dtype) for shape in reader.shapes]
    reader.fill(epoch, ids_B.tolist(), parts)
    return parts


def sides(train: Images, ids_B: Tensor, host_crops: HostCrops | None) -> dict[str, Tensor]:
    """Height and width of what the views are cut from: each image itself on the host, else the
    canvas.
    """
    if host_crops is None:
        heights, widths = ([side] * len(ids_B) for side in train.shape[1:])
    else:
        opened = [train.open(i) for i in ids_B.tolist()]
        heights, widths = [p.height for p in opened], [p.width for p in opened]
    return {"heights_B": torch.tensor(heights), "widths_B": torch.tensor(widths)}


def describe(
    drawn: dict[str, Tensor], b: int, channels: int, size: tuple[int, int] | None = None
) -> str:
    """What one view was drawn to be, in the order in which it happens; `size`: of the view."""
    top, left, height, width = drawn["box"][b].tolist()
    words = [f"crop {height}×{width} at {top},{left}"]
    words += ["flip"] if drawn["flip"][b] else []
    if "shift" in drawn:
        words.append("moved by {:+d},{:+d}".format(*(-drawn["shift"][b]).tolist()))
    words += _augmented(drawn, b) if "operations" in drawn else []
    if drawn["jitter"][b]:
        coloured = [o for o in drawn["order"][b].tolist() if channels == 3 or o < 2]
        words += [f"{OPERATIONS[o]} {float(drawn['factors'][b, o]):.2f}" for o in coloured]
    words += ["grey"] if drawn["grey"][b] and channels == 3 else []
    words += [f"blur σ {float(drawn['sigma'][b]):.2f}"] if drawn["blur"][b] else []
    words += ["solarize"] if drawn["solarize"][b] else []
    if "drop" in drawn and drawn["drop"][b] and channels > 1:
        words.append(f"no channel {int(fused.channel_of(drawn['channel'][b], channels))}")
    if "erase" in drawn and drawn["erase"][b] and size is not None:
        box, fits = fused.erased_boxes({name: value[b] for name, value in drawn.items()}, size)
        words += ["erased {2}×{3} at {0},{1}".format(*box.tolist())] if fits else []
    return ", ".join(words)


def _augmented(drawn: dict[str, Tensor], b: int) -> list[str]:
    """RandAugment's operations, with their magnitude where they have one."""
    numbers = zip(drawn["operations"][b].tolist(), drawn["strengths"][b].tolist(), strict=True)
    words = []
    for number, strength in numbers:
        name, magnitude = randaugment.OPERATIONS[number], randaugment.LEVELS * strength
        if name in randaugment.SIGNED:
            words.append(f"{name} {magnitude:+g}")
        elif name in ("posterize", "solarize"):
            words.append(f"{name} {abs(magnitude):g}")
        else:
            words.append(name)
    return words
