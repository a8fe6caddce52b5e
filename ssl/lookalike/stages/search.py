"""Search: images embedded once into an index, which is brought up to date when they or the model
change.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
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
from lookalike.data.passport import passport
from lookalike.data.reading import canvas_for, fit_to, refuse_other
from lookalike.data.sources import Source, folder_at
from lookalike.errors import DataError, Error, RunError, printable
from lookalike.evaluation.features import Extracting, embedder, gathered
from lookalike.experiment import load_recipe
from lookalike.folder import refuse_unwritable
from lookalike.log import note
from lookalike.models import Architecture
from lookalike.models.card import weights_digest
from lookalike.models.embedding import open_model
from lookalike.runs import Run, join_ranks
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
from lookalike.search.opened import joined, with_cells
from lookalike.search.opened import opened as asked

BATCH = 256
FEW = 1024
"""So many images are embedded anew where a kill came between; of more what was done is kept."""
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
        tell(f"{printable(folder)}: {told}")
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
        tell(f"data: {told}")
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
    the model. All ranks embed, the first writes.

    Only what is new or changed is embedded, all where the model is another. `like`: see
    open_backbone. `approximate`: with cells. Raises what open_index raises, DataError when no image
    can be read, Error when there is no model.
    """
    if find is None:
        return asked(folder, model, approximate=approximate)
    folder = joined(folder)
    refuse_unwritable(folder.parent)
    old = open_index(folder) if folder.exists() else None
    if old is None and model is None:
        raise Error(
            f"{printable(folder)}: no such index yet: --model FOLDER|NAME is missing, which is to "
            "embed the images"
        )
    opened = old.model if old and model is None else open_model(str(model), like)
    digest = old.digest if old and model is None else weights_digest(opened)
    return update(folder, old, find(opened.architecture), opened, digest, approximate)


def open_search(
    index: Path, source: str, model: str | None, *, approximate: bool = False
) -> SearchIndex:
    """The index, brought up to date with a folder of images, or with what a recipe's `data:`
    names.
    """
    join_ranks()
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
    refuse_differing(found)
    kept, asked = sorted_out(found, old.names if old else (), before)
    bad = still_bad(found, before)
    if (
        old
        and usable
        and not asked
        and (len(kept), len(bad), found.root) == (len(old), len(before.bad), old.root)
    ):
        tell(f"{printable(folder)}: {len(old)} images, as before")
        return with_cells(folder, old) if approximate and old.cells is None else old
    beside = folder.with_name(f".features-{folder.name}")
    keep = beside if len(asked) > FEW else None
    fresh, x_MD = embedded(model, found, asked, digest, keep)
    bad |= {
        found.names[i]: (found.states[i], reason(found.sets, i))
        for i in sorted(set(asked).difference(fresh))
    }
    ids = sorted([*kept, *fresh])
    if not ids:
        first, (_, why) = next(iter(bad.items()))
        raise DataError(f"{printable(first)}: {why}; not one of {len(bad)} images could be read")
    x_ND = merged(old, kept, fresh, x_MD) if old and kept else x_MD
    index = SearchIndex(
        model, x_ND, [found.names[i] for i in ids], root=found.root, digest=digest, **form
    )
    index.cells = train_ivf(x_ND, index.distance) if approximate else None
    if comm.rank() == 0:
        write_index(folder, index, Seen([found.states[i] for i in ids], bad))
        shutil.rmtree(beside, ignore_errors=True)
    comm.barrier(patient=True)
    what = "embedded"
    if old and usable:
        what = f"{len(fresh)} embedded, {len(kept)} kept, {len(old) - len(kept)} changed or gone"
    elif old:
        what = "embedded anew, for the model or its size is another"
    tell_bad(folder, len(ids), what, bad)
    return open_index(folder)


def still_bad(found: Found, before: Seen) -> dict[str, tuple[str, str]]:
    """The images that could not be read, and have not changed since."""
    if not before.bad:
        return {}
    return {
        name: before.bad[name]
        for name, state in named(found)
        if before.bad.get(name, ("",))[0] == state
    }


def named(found: Found) -> Iterator[tuple[str, str]]:
    """The images by name and state, one after another."""
    return zip(found.names, found.states, strict=True)


def sorted_out(
    found: Found, names: Sequence[str], before: Seen
) -> tuple[dict[int, int], list[int]]:
    """Which images have a row of an earlier index, and which are to be embedded: not those either
    that could not be read and have not changed since.
    """
    rows = {each: row for row, each in enumerate(zip(names, before.states, strict=False))}
    kept: dict[int, int] = {}
    asked: list[int] = []
    for i, (name, state) in enumerate(named(found)):
        row = rows.get((name, state)) if rows else None
        if row is not None:
            kept[i] = row
        elif before.bad.get(name, ("",))[0] != state:
            asked.append(i)
    return kept, asked


def merged(old: SearchIndex, kept: dict[int, int], fresh: Sequence[int], x_MD: Tensor) -> Tensor:
    """Rows of the old index and new ones, in the order of the images."""
    place = {i: n for n, i in enumerate(sorted([*kept, *fresh]))}
    x_ND = torch.empty(len(place), old.x_ND.shape[1])
    x_ND[[place[i] for i in fresh]] = x_MD
    x_ND[[place[i] for i in kept]] = old.x_ND[list(kept.values())]
    return x_ND


def refuse_differing(found: Found) -> None:
    """Raises RunError, on every rank, unless all found the same images."""
    if comm.world_size() == 1:
        return
    digest = hashlib.sha256()
    for name, state in named(found):
        digest.update(f"{name}\0{state}\n".encode(errors="surrogateescape"))
    counts = comm.gather_objects((len(found.names), digest.hexdigest()))
    if len(set(counts)) > 1:
        raise RunError(
            "ranks found other images than one another "
            f"({', '.join(str(count) for count, _ in counts[:8])}): are they still being copied? "
            "start again"
        )


def embedded(
    model: Model, found: Found, asked: list[int], digest: str, keep: Path | None
) -> tuple[list[int], Tensor]:
    """Which of the images asked for could be read, ascending, and their embeddings, float32 (M, D),
    by all ranks; in `keep` what was done is found again after a kill.

    Raises Error where an embedding is NaN or Inf.
    """
    function = embedder(model.to(comm.device()), model.architecture)
    ids: list[int] = []
    parts: list[Tensor] = []
    start = 0
    for images in found.sets:
        here = [i - start for i in asked if start <= i < start + len(images)]
        if here:
            some = images if len(here) == len(images) else subset(images, here)
            x_MD, read_M = gathered(
                function,
                some,
                digest=digest,
                folder=keep,
                how=Extracting(BATCH),
                title="embedding",
            )
            refuse_numberless(some, x_MD, read_M)
            ids += [start + here[i] for i in read_M.tolist()]
            parts.append(x_MD)
        start += len(images)
    whole = [part for part in parts if len(part)]
    if len(whole) == 1:
        return ids, whole[0]
    return ids, torch.cat(whole) if whole else torch.empty(0, model.dim)


def refuse_numberless(images: Images, x_MD: Tensor, ids_M: Tensor) -> None:
    """Raises Error where an embedding is NaN or Inf."""
    for first in range(0, len(x_MD), BATCH):
        finite_B = x_MD[first : first + BATCH].isfinite().all(1)
        if not bool(finite_B.all()):
            row = first + int((~finite_B).nonzero()[0])
            name = printable(images.name(int(ids_M[row])))
            raise Error(f"{name}: its embedding is NaN or Inf; check the weights of the model")


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


def tell(text: str) -> None:
    """A line, of the first rank."""
    if comm.rank() == 0:
        note(text)


def tell_bad(folder: Path, count: int, what: str, bad: dict[str, tuple[str, str]]) -> None:
    """What was done, and which images could not be read."""
    tell(f"{printable(folder)}: {count} images, {what}")
    for name, (_, why) in islice(bad.items(), SAID):
        tell(f"  cannot be read: {printable(name)}: {why}")
    if len(bad) > SAID:
        tell(f"  … and {len(bad) - SAID} more: see {printable(folder / SEEN)}")
