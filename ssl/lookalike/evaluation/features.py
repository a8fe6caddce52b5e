"""Images through a frozen model: features and labels, extracted once and kept in the run folder."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lookalike import comm
from lookalike.data.images import Images
from lookalike.data.loader import in_order
from lookalike.data.passport import passport
from lookalike.errors import Error, RunError
from lookalike.folder import write_file
from lookalike.geometry import BYTES, PixelFormat
from lookalike.log import note
from lookalike.models import Architecture
from lookalike.views import normalise, resize_crop, scale

Embed = Callable[[Tensor], Tensor]

PIXELS = 32
"""The baseline of raw pixels sees so many rows and columns of an image."""

SUM = "sha256"
"""Where a file of features says what its tensors' bytes hash to."""


class Features(NamedTuple):
    """`x_ND` float32, `labels_N` int64 on the CPU; `dropped` images could not be read: `ids_N` are
    the others.
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
    form = architecture.form
    model.eval()

    def function(canvas_BCHW: Tensor) -> Tensor:
        x_BCHW = resize_crop(scale(canvas_BCHW, form), architecture.size, architecture.crop)
        h_BD: Tensor = model(normalise(x_BCHW, mean, std))
        return h_BD

    return function


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
        x_BCHW = resize_crop(x_BCHW, (height, width)).clamp(0, 1)
    return x_BCHW.flatten(1)


@torch.inference_mode()
def embedded_in_order(
    function: Embed, images: Images, batch: int, workers: int
) -> Generator[tuple[list[int], Tensor], None, None]:
    """(ids, float32 features (B, D) on the CPU) of all images in order; those that cannot be read
    are left out.
    """
    device = comm.device()
    for ids, canvas_BCHW in in_order(images, batch, workers, pin=device.type == "cuda"):
        yield ids, function(canvas_BCHW.to(device)).float().cpu()


def extract(
    function: Embed, images: Images, *, batch: int = 256, workers: int = 0, labelled: bool = True
) -> Features:
    """Every readable image's features, in order.

    Raises Error where the images have no labels; they are -1 where none are asked for (`labelled`).
    """
    if labelled and images.labels is None:
        raise Error(
            "data: these images have no labels to score with: use class folders, or leave probe "
            "and evaluate out"
        )
    rows, kept = [], []
    for ids, x_BD in embedded_in_order(function, images, batch, workers):
        rows.append(x_BD)
        kept += ids
    if not rows:
        raise Error("data: not one image of this split could be read")
    ids_N = torch.tensor(kept)
    labels_N = torch.full_like(ids_N, -1) if images.labels is None else images.labels[ids_N]
    return Features(torch.cat(rows), labels_N, len(images) - len(kept), ids_N)


def cache_key(images: Images) -> tuple[str, ...]:
    """What features depend on: images by their `passport`, shape, form, fit, and order and labels,
    which it need not tell.
    """
    digest = hashlib.sha256()
    for i in range(len(images)):
        digest.update(os.fsencode(images.name(i)) + b"\0")
    if images.labels is not None:
        digest.update(images.labels.numpy().tobytes())
    marks = passport(images)
    known = (str(marks[name]) for name in ("data", "content", "times") if name in marks)
    how = f"{getattr(images, 'fit', '')} {getattr(images, 'max_pixels', None)}"
    usual = PixelFormat(images.form.channels)
    form = () if images.form == usual else (repr(images.form),)
    return *known, str(images.shape), how, *form, digest.hexdigest()


def cached(folder: Path | None, key: tuple[str, ...], make: Callable[[], Features]) -> Features:
    """The features under `key` (a model's digest, and `identity`) from `folder`, made and kept
    there if new.

    Kept ones are believed only with the sha256 that they were written with; others are made again,
    and that is said. Where they cannot be kept, as on a full disk, that is said, and nothing is
    lost.
    """
    if folder is None:
        return make()
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.safetensors"
    if path.exists():
        try:
            return _kept(path)
        except Exception as error:  # whatever is wrong with it
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            note(f"{path}: kept features are damaged ({reason}): made again")
    found = make()
    tensors = {
        "x_ND": found.x_ND.contiguous(),
        "labels_N": found.labels_N,
        "dropped": torch.tensor(found.dropped),
        "ids_N": found.ids_N,
    }
    try:
        write_file(path, save(tensors, {SUM: _sum(tensors)}))
    except RunError as error:
        warnings.warn(f"{error}: these features are not kept", stacklevel=2)
    return found


def _kept(path: Path) -> Features:
    """Features as they were written. Raises whatever is wrong with the file, ValueError where its
    bytes changed.
    """
    with safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get(SUM)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    if told != _sum(tensors):
        raise ValueError(
            "written without a checksum"
            if told is None
            else "its content changed since it was written"
        )
    return Features(tensors["x_ND"], tensors["labels_N"], int(tensors["dropped"]), tensors["ids_N"])


def _sum(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
