"""Embed: images -> a table of features, a row an image, by all ranks."""

import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from lookalike import comm
from lookalike.data.decode import BadImage
from lookalike.data.folders.roots import images_below
from lookalike.data.images import Annotations, FileImages, Images, Reading
from lookalike.data.inventory import Inventory
from lookalike.data.reading import canvas_for, fit_to, refuse_other
from lookalike.data.sources import Folder, Source
from lookalike.data.tables.written import Kind, Rows, refuse_ending, write_rows
from lookalike.errors import DataError, Error, RunError, printable
from lookalike.evaluation.features import Extracting, Features, embedder, extracted
from lookalike.experiment import Experiment, load_recipe
from lookalike.folder import at_home, atomic_write, refuse_unwritable
from lookalike.log import note, say
from lookalike.models import Architecture
from lookalike.models.card import weights_digest
from lookalike.models.embedding import open_model
from lookalike.runs import Run, join_ranks

SAID = 5
"""Of so many images that cannot be read the terminal hears."""
_PRECISIONS = ("fp32", "bf16", "fp16")


class Part(NamedTuple):
    """A set of images, what it is called (None where there is only one), and its features."""

    split: str | None
    images: Images
    features: Features


def embed(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    batch: int = 256,
    workers: int | None = None,
    precision: str = "fp32",
    store: str = "float32",
) -> Path:
    """Features of the images of a folder, or of a recipe's `data`, in a .parquet, .npz or .csv:
    `path`, `label` where it is known, `split` where there are two, `features`.

    Every rank calls it, and the first writes. A killed one goes on: what was extracted lies in a
    hidden folder beside the file, which appears whole. Raises RunError where the file is there
    already.
    """
    target = _refused(Path(at_home(out)), precision, store)
    join_ranks()
    kind: Kind = "float16" if store == "float16" else "float32"
    place = _place(source)
    if place.is_dir() and overrides:
        raise Error(f"{printable(overrides[0])}: a folder has no keys: give a recipe, or delete it")
    recipe = None if place.is_dir() else load_recipe(place, overrides)
    opened = open_model(str(model), Run(recipe).like(model) if recipe else None)
    sets = list(_sets(place, recipe, opened.architecture))
    how = Extracting(batch, workers, precision, store)
    keep = target.with_name(f".{target.name}.features")
    function = embedder(opened.to(comm.device()), opened.architecture)
    digest, parts = weights_digest(opened), list[Part]()
    for split, images in sets:
        title = "embed" if split is None else f"embed, {split}"
        known: dict[str, Any] = {"digest": digest, "folder": keep, "how": how, "title": title}
        parts.append(Part(split, images, extracted(function, images, labelled=False, **known)))
    if comm.rank() == 0:
        _write(target, parts, opened.dim, kind)
        shutil.rmtree(keep, ignore_errors=True)
        _tell(target, parts, opened.dim)
    comm.barrier(patient=True)
    return target


def _refused(target: Path, precision: str, store: str) -> Path:
    """The file, if it can be written. Raises Error before anything is done."""
    refuse_ending(target)
    for name, value, known in (
        ("precision", precision, _PRECISIONS),
        ("dtype", store, get_args(Kind)),
    ):
        if value not in known:
            raise Error(f"--{name} {printable(value)}: one of {', '.join(known)}")
    if target.exists():
        raise RunError(f"{printable(target)}: is there already: delete it, or name another --out")
    refuse_unwritable(target.parent)
    return target


def _place(source: str | Path) -> Path:
    """The folder or the recipe. Raises DataError for what is neither."""
    place = Path(at_home(source))
    if place.is_dir() or (place.is_file() and place.suffix in (".yaml", ".yml")):
        return place
    what = "neither a folder of images nor a recipe (.yaml)" if place.exists() else "no such folder"
    raise DataError(f"{printable(place)}: {what}: check the path")


def _sets(
    place: Path, recipe: Experiment | None, architecture: Architecture
) -> Iterator[tuple[str | None, Images]]:
    """Train and test images as the model takes them; of a folder that does not name such sets all
    that there are, as one.
    """
    source, channels = _source(place, recipe, architecture), architecture.channels
    if source.channels != channels:
        raise Error(f"data: images of {source.channels} channels, the model takes {channels}")
    fit_to(source, architecture.form)
    found: dict[str | None, Images] = {"train": source.split("train", architecture.size)}
    inventory = getattr(source, "inventory", Inventory())
    try:
        found["test"] = source.split("test", architecture.size)
    except DataError as error:
        if recipe is None:
            images, inventory = _all_below(place, found["train"], architecture)
            found = {None: images}
        elif comm.rank() == 0:
            note(f"no test set: {error}")
    for images in found.values():
        refuse_other(images.form, architecture.form)
    if comm.rank() == 0:
        for line in filter(None, [inventory.said(), *inventory.remarks]):
            note(f"data: {line}")
    yield from found.items()


def _all_below(
    place: Path, labelled: Images, architecture: Architecture
) -> tuple[Images, Inventory]:
    """Every image of a folder, those beside the class folders too, which have no label."""
    paths, inventory = images_below(place)
    names = {labelled.name(i): i for i in range(len(labelled))}
    reading = Reading(canvas_for(architecture.size), architecture.form)
    every = FileImages(place, paths, reading)
    if len(paths) > len(labelled) and labelled.labels is not None:
        place_N = torch.tensor([names.get(every.name(i), -1) for i in range(len(every))])
        labels_N = labelled.labels[place_N.clamp_min(0)].where(place_N >= 0, -1)
        every.annotations = Annotations(labels_N, labelled.classes)
    return (every, inventory) if len(paths) > len(labelled) else (labelled, inventory)


def _source(place: Path, recipe: Experiment | None, architecture: Architecture) -> Source:
    """Where the images come from; what lies elsewhere is fetched."""
    if recipe is None:
        return Folder(str(place), test_fraction=0.0, channels=architecture.channels)
    source: Source = recipe.data.build()
    if fetch := getattr(source, "fetch", None):
        fetch()
    return source


def _write(target: Path, parts: list[Part], dim: int, kind: Kind) -> None:
    """The table, whole or not at all. Raises RunError where it cannot be written."""
    ends = list(accumulate(len(part.features.ids_N) for part in parts))
    texts = {"path": _column(parts, ends, _paths)}
    if any(part.images.labels is not None for part in parts):
        texts["label"] = _column(parts, ends, _labels)
    if parts[0].split is not None:
        texts["split"] = _column(parts, ends, lambda part, ids: [part.split] * len(ids))

    def features(start: int, end: int) -> np.ndarray:
        return np.concatenate([_features(*each, kind) for each in _cut(parts, ends, start, end)])

    rows = Rows(ends[-1], dim, kind, texts, features)
    try:
        with atomic_write(target) as file:
            write_rows(file, target.suffix, rows)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"{printable(target)}: cannot be written: {reason}") from error


Column = Callable[[int, int], list[str | None]]


def _column(
    parts: list[Part], ends: list[int], texts: Callable[[Part, Tensor], list[str | None]]
) -> Column:
    """What `texts` gives for rows of the table."""

    def read(start: int, end: int) -> list[str | None]:
        cut = _cut(parts, ends, start, end)
        return [text for part, a, b in cut for text in texts(part, part.features.ids_N[a:b])]

    return read


def _cut(
    parts: list[Part], ends: list[int], start: int, end: int
) -> Iterator[tuple[Part, int, int]]:
    """The rows [start, end) of the table as rows of its parts."""
    while start < end:
        n = bisect_right(ends, start)
        before = ends[n - 1] if n else 0
        stop = min(end, ends[n])
        yield parts[n], start - before, stop - before
        start = stop


def _paths(part: Part, ids_B: Tensor) -> list[str | None]:
    return [part.images.name(i) for i in ids_B.tolist()]


def _labels(part: Part, ids_B: Tensor) -> list[str | None]:
    """The names of their classes; None for an image without."""
    labels_N, classes = part.images.labels, part.images.classes
    if labels_N is None:
        return [None] * len(ids_B)
    return [
        None if n < 0 else classes[n] if n < len(classes) else str(n)
        for n in labels_N[ids_B].tolist()
    ]


def _features(part: Part, start: int, end: int, kind: Kind) -> np.ndarray:
    """Of some rows. Raises Error where one is NaN or Inf."""
    x_BD = part.features.x_ND[start:end].to(getattr(torch, kind))
    if not bool(x_BD.isfinite().all()):
        row = start + int((~x_BD.isfinite().all(1)).nonzero()[0])
        name = printable(part.images.name(int(part.features.ids_N[row])))
        remedy = ", or take --dtype float32" if kind == "float16" else ""
        raise Error(f"{name}: its features are NaN or Inf: check the weights of the model{remedy}")
    return np.asarray(x_BD.numpy())


def _tell(target: Path, parts: list[Part], dim: int) -> None:
    """What was written, and which images could not be read."""
    count = sum(len(part.features.ids_N) for part in parts)
    bad = sum(part.features.dropped for part in parts)
    what = f"; {bad:,} cannot be read" if bad else ""
    say(f"{printable(target)}: {count:,} images, {dim} features each{what}")
    for name, why in _bad(parts):
        note(f"  cannot be read: {printable(name)}: {why}")
    if bad > SAID:
        note(f"  … and {bad - SAID:,} more")


def _bad(parts: list[Part]) -> Iterator[tuple[str, str]]:
    """Names and reasons of the first images that cannot be read."""
    left: Any = SAID
    for part in parts:
        there = torch.zeros(len(part.images), dtype=torch.bool)
        there[part.features.ids_N] = True
        for i in (~there).nonzero().flatten()[:left].tolist():
            left -= 1
            try:
                part.images.read(i)
                yield part.images.name(i), "could not be read a moment ago"
            except BadImage as error:
                yield part.images.name(i), error.reason
