"""Search: images embedded once into an index, which is brought up to date when they or the model
change.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookalike import comm
from lookalike.data.decode import BadImage
from lookalike.data.folders.roots import images_below
from lookalike.data.images import FileImages, Images, Reading, file_states, subset
from lookalike.data.inventory import Inventory
from lookalike.data.loader import workers_for
from lookalike.data.passport import passport
from lookalike.data.reading import canvas_for, fit_to, refuse_other
from lookalike.data.sources import Source, folder_at
from lookalike.errors import DataError, Error, RunError, printable
from lookalike.evaluation.features import embedded_in_order, embedder
from lookalike.experiment import load_recipe
from lookalike.folder import recover, refuse_unwritable
from lookalike.log import note, progress
from lookalike.models import Architecture
from lookalike.models.card import weights_digest
from lookalike.models.embedding import open_model
from lookalike.runs import Run
from lookalike.scoring.ivf import train_ivf
from lookalike.search.index import (
    SEEN,
    Model,
    SearchIndex,
    Seen,
    open_index,
    read_seen,
    write_index,
)

BATCH = 256
SAID = 5
"""Of so many bad images the terminal hears; the index names them all."""


class Found(NamedTuple):
    """Images to be embedded, set after set, with a name and a state (see `Seen`) of each; `root` as
    of the index.
    """

    sets: list[Images]
    names: list[str]
    states: list[str]
    root: str


def in_folder(folder: Path, architecture: Architecture) -> Found:
    """Every image file below a folder; its state is its bytes and mtime. Raises DataError where
    there is none.
    """
    root = os.path.abspath(folder_at(folder, "give the folder that holds the images"))  # noqa: PTH100 (as it is named)
    paths, inventory = images_below(Path(root))
    if told := inventory.said():
        note(f"{printable(folder)}: {told}")
    states = [f"{size} {mtime}" for size, mtime in file_states(root, paths)]
    reading = Reading(canvas_for(architecture.size), architecture.form)
    images = FileImages(root, paths, reading)
    return Found([images], [os.fsdecode(path) for path in paths], states, root)


def in_source(source: Source, architecture: Architecture) -> Found:
    """Train and test images of a recipe's `data`, read as the model takes them; their state is
    that of their whole set.
    """
    if source.channels != architecture.channels:
        raise Error(
            f"data: images of {source.channels} channels, the model takes {architecture.channels}"
        )
    fit_to(source, architecture.form)
    sets = [source.split(name, architecture.size) for name in ("train", "test")]
    for images in sets:
        refuse_other(images.form, architecture.form)
    if told := getattr(source, "inventory", Inventory()).said():
        note(f"data: {told}")
    names = [images.name(i) for images in sets for i in range(len(images))]
    return Found(
        sets, names, [state for images in sets for state in [set_state(images)] * len(images)], ""
    )


def set_state(images: Images) -> str:
    """A word that changes when an image of the set does, or which of them are read."""
    marks = [*passport(images).values(), getattr(images, "max_pixels", None)]
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]


def search_index(
    folder: str | Path,
    find: Callable[[Architecture], Found] | None = None,
    model: str | Path | None = None,
    *,
    like: Architecture | None = None,
    approximate: bool = False,
) -> SearchIndex:
    """The index in `folder`; with `find` made, or brought up to date with the images found and with
    the model.

    Only what is new or changed is embedded, all where the model is another. `like`: see
    open_backbone. `approximate`: with cells. Raises what open_index raises, DataError when no image
    can be read, Error when there is no model.
    """
    folder = Path(folder)
    recover(folder)
    if find is not None:
        refuse_unwritable(folder.parent)
    old = open_index(folder) if folder.exists() or find is None else None
    if old is None and model is None:
        raise Error(
            f"{printable(folder)}: no such index yet: --model FOLDER|NAME is missing, which is to "
            "embed the images"
        )
    opened = old.model if old and model is None else open_model(str(model), like)
    digest = old.digest if old and model is None else weights_digest(opened)
    if find is None:
        assert old is not None
        if digest != old.digest:
            raise RunError(
                f"{printable(folder)}: made by another model than {printable(str(model))}: add "
                "--from to embed anew"
            )
        return with_cells(folder, old) if approximate and old.cells is None else old
    return update(folder, old, find(opened.architecture), opened, digest, approximate)


def open_search(
    index: Path, source: str, model: str | None, *, approximate: bool = False
) -> SearchIndex:
    """The index, brought up to date with a folder of images, or with what a recipe's `data:`
    names.
    """
    place = Path(source)
    if not place.exists():
        raise DataError(
            f"--from {source}: no such folder of images, and no such recipe: check the path"
        )
    if place.is_file() and place.suffix not in (".yaml", ".yml"):
        raise DataError(f"--from {source}: neither a folder of images nor a recipe (.yaml)")
    if place.is_dir():
        return search_index(index, partial(in_folder, place), model, approximate=approximate)
    recipe = load_recipe(source)
    find, like = partial(in_source, recipe.data.build()), None
    if model is not None:
        like = Run(recipe).like(model)
    return search_index(index, find, model, like=like, approximate=approximate)


def with_cells(folder: Path, index: SearchIndex) -> SearchIndex:
    """The same index, its cells found and kept."""
    index.cells = train_ivf(index.x_ND, index.distance)
    write_index(folder, index, read_seen(folder, len(index)))
    return index


def update(
    folder: Path,
    old: SearchIndex | None,
    found: Found,
    model: Model,
    digest: str,
    approximate: bool,
) -> SearchIndex:
    """The index of what was found: rows of `old` that still hold, and the other images embedded."""
    (_, height, width), fit = found.sets[0].shape, getattr(found.sets[0], "fit", "crop")
    form: dict[str, Any] = {"canvas": (height, width), "fit": fit}
    usable = old is not None and (old.digest, old.canvas, old.fit) == (digest, (height, width), fit)
    if old and old.root != found.root and Path(old.root or ".").exists():
        # not the folder moved, but another one, in which the same name and time say nothing
        usable = False
    before = read_seen(folder, len(old)) if old and usable else Seen([], {})
    wanted = list(zip(found.names, found.states, strict=True))
    rows = {
        named: row
        for row, named in enumerate(zip(old.names if old else (), before.states, strict=False))
    }
    kept = {i: rows[named] for i, named in enumerate(wanted) if named in rows}
    bad = {
        name: before.bad[name] for name, state in wanted if before.bad.get(name, ("",))[0] == state
    }
    asked = [i for i, (name, _) in enumerate(wanted) if i not in kept and name not in bad]
    if (
        old
        and usable
        and not asked
        and (len(kept), len(bad), found.root) == (len(old), len(before.bad), old.root)
    ):
        note(f"{printable(folder)}: {len(old)} images, as before")
        return with_cells(folder, old) if approximate and old.cells is None else old
    fresh, x_MD = embedded(model, found.sets, asked)
    bad |= {
        found.names[i]: (found.states[i], reason(found.sets, i))
        for i in sorted(set(asked).difference(fresh))
    }
    ids = sorted([*kept, *fresh])
    if not ids:
        first, (_, why) = next(iter(bad.items()))
        raise DataError(f"{printable(first)}: {why}; not one of {len(bad)} images could be read")
    place, x_ND = {i: n for n, i in enumerate(ids)}, torch.empty(len(ids), model.dim)
    x_ND[[place[i] for i in fresh]] = x_MD
    if old and kept:
        x_ND[[place[i] for i in kept]] = old.x_ND[list(kept.values())]
    index = SearchIndex(
        model, x_ND, [found.names[i] for i in ids], root=found.root, digest=digest, **form
    )
    index.cells = train_ivf(x_ND, index.distance) if approximate else None
    write_index(folder, index, Seen([found.states[i] for i in ids], bad))
    if old is None:
        what = "embedded"
    elif not usable:
        what = "embedded anew, for the model or its size is another"
    else:
        what = f"{len(fresh)} embedded, {len(kept)} kept, {len(old) - len(kept)} changed or gone"
    tell(folder, len(ids), what, bad)
    return open_index(folder)


def embedded(model: Model, sets: Sequence[Images], asked: list[int]) -> tuple[list[int], Tensor]:
    """Which of the images asked for could be read, ascending, and their embeddings, float32 (M, D).

    Raises Error where an embedding is NaN or Inf.
    """
    ids, parts, start = [], [torch.empty(0, model.dim)], 0
    function = embedder(model.to(comm.device()), model.architecture)
    with progress("embedding", len(asked)) as tell_done:
        for images in sets:
            here = [i - start for i in asked if start <= i < start + len(images)]
            some = subset(images, here)
            workers = workers_for(some, 0 if len(some) <= BATCH else None)
            for read, x_BD in embedded_in_order(function, some, BATCH, workers):
                if not bool(x_BD.isfinite().all()):
                    row = int((~x_BD.isfinite().all(1)).nonzero()[0])
                    name = printable(some.name(read[row]))
                    raise Error(
                        f"{name}: its embedding is NaN or Inf; check the weights of the model"
                    )
                parts.append(x_BD)
                ids += [start + here[i] for i in read]
                tell_done(len(ids))
            start += len(images)
    return ids, torch.cat(parts)


def reason(sets: Sequence[Images], i: int) -> str:
    """Why the i-th image cannot be read."""
    for images in sets:
        if i < len(images):
            try:
                images.read(i)
            except BadImage as error:
                return error.reason
            return "could not be read a moment ago"
        i -= len(images)
    raise IndexError(i)


def tell(folder: Path, count: int, what: str, bad: dict[str, tuple[str, str]]) -> None:
    """What was done, and which images could not be read."""
    note(f"{printable(folder)}: {count} images, {what}")
    for name, (_, why) in islice(bad.items(), SAID):
        note(f"  cannot be read: {printable(name)}: {why}")
    if len(bad) > SAID:
        note(f"  … and {len(bad) - SAID} more: see {printable(folder / SEEN)}")
