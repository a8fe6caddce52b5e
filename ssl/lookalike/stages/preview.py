"""Some images with the views that a run would train on, as one PNG or one HTML page, and what was
drawn for them.
"""

import html
from pathlib import Path

import torch
from torch import Tensor

from lookalike.data.images import Images
from lookalike.data.order import order_of
from lookalike.data.reader import HostCrops, Reader
from lookalike.errors import RecipeError, printable
from lookalike.folder import refuse_unwritable, write_file
from lookalike.recipe import Recipe
from lookalike.report import page
from lookalike.views.colour import OPERATIONS


def preview(recipe: Recipe, out: str | Path, *, images: int = 8, epoch: int = 0) -> list[str]:
    """Writes the first `images` of an epoch and their views to `out`, .png or .html; returns lines
    of what was drawn.

    Exactly the views of the run: same order, same draws, same cuts, before they are normalised.
    Raises RecipeError without `pretrain`, or for another ending.
    """
    settings, target = recipe.values["pretrain"], Path(out)
    if not settings:
        raise RecipeError(
            f"{recipe.name}: pretrain: not there, so there are no views to show: add the section"
        )
    page.refuse_other(target, "a preview is")
    refuse_unwritable(target.parent)
    seed, size = recipe.values["seed"], recipe.values["backbone"].size
    train, law = recipe.values["data"].build().split("train", size), settings.views.build()
    order = order_of(train, settings.batch, settings.accumulate, seed)
    ids_B = order.ids(epoch, 0)[:images]
    canvas_BCHW = read(Reader(train, seed), epoch, ids_B)[0]
    host_crops = settings.host_crops(law, size)
    pixels = read(Reader(train, seed, host_crops), epoch, ids_B) if host_crops else canvas_BCHW
    channels = canvas_BCHW.shape[1]
    plain = {"mean": [0.0] * channels, "std": [1.0] * channels}
    views = law(pixels, ids_B, seed=seed, epoch=epoch, size=size, **plain)
    every = law.each(ids_B, seed=seed, epoch=epoch, **sides(train, ids_B, host_crops))
    said = [[describe(view, b, channels) for view in every] for b in range(len(ids_B))]
    names = [f"{i} {printable(train.name(i))}" for i in ids_B.tolist()]
    rows = [
        [page.tile(x) for x in (canvas_BCHW[b], *(to_bytes(v[b]) for v in views))]
        for b in range(len(ids_B))
    ]
    title = f"{recipe.name}, epoch {epoch}, views cut on the {settings.crop_on}"
    data = (
        page.grid(rows)
        if target.suffix.lower() == ".png"
        else listing(title, names, rows, said).encode()
    )
    write_file(target, data)
    lines = []
    for name, texts in zip(names, said, strict=True):
        lines += [name, *(f"  view {v}: {text}" for v, text in enumerate(texts))]
    return lines


def read(reader: Reader, epoch: int, ids_B: Tensor) -> list[Tensor]:
    """The parts of these samples, uint8 (B, C, H, W) each."""
    parts = [torch.empty(len(ids_B), *shape, dtype=torch.uint8) for shape in reader.shapes]
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


def describe(drawn: dict[str, Tensor], b: int, channels: int) -> str:
    """What one view was drawn to be, in the order in which it happens."""
    top, left, height, width = drawn["box"][b].tolist()
    words = [f"crop {height}×{width} at {top},{left}"]
    words += ["flip"] if drawn["flip"][b] else []
    if drawn["jitter"][b]:
        coloured = [o for o in drawn["order"][b].tolist() if channels == 3 or o < 2]
        words += [f"{OPERATIONS[o]} {float(drawn['factors'][b, o]):.2f}" for o in coloured]
    words += ["grey"] if drawn["grey"][b] and channels == 3 else []
    words += [f"blur σ {float(drawn['sigma'][b]):.2f}"] if drawn["blur"][b] else []
    words += ["solarize"] if drawn["solarize"][b] else []
    return ", ".join(words)


def to_bytes(view_CHW: Tensor) -> Tensor:
    """Floats in [0, 1] as uint8."""
    return (view_CHW * 255).round().to(torch.uint8)


def listing(title: str, names: list[str], rows: list[list[Tensor]], said: list[list[str]]) -> str:
    """The images, their views and what was drawn for each, as one HTML page."""
    lines = []
    for name, row, texts in zip(names, rows, said, strict=True):
        captions = [html.escape(name), *map(html.escape, texts)]
        cells = (
            f"<td>{page.image(x)}<small>{caption}</small></td>"
            for x, caption in zip(row, captions, strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(
        f"<th>{head}</th>" for head in ("image", *(f"view {v}" for v in range(len(said[0]))))
    )
    return page.document(title, f"<table><tr>{heads}</tr>{''.join(lines)}</table>")
