"""Pictures through a frozen model: features and labels, extracted once and kept in the run folder."""

import hashlib
import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lookalike import comm
from lookalike.backbones import Architecture
from lookalike.data.loader import in_order
from lookalike.data.pictures import Pictures
from lookalike.errors import Error
from lookalike.folder import write_file
from lookalike.views import normalise, resize_crop, scale

Embed = Callable[[Tensor], Tensor]


class Features(NamedTuple):
    """`x_ND` float32, `labels_N` int64 on the CPU; `dropped` pictures could not be read: `ids_N` are the others."""

    x_ND: Tensor
    labels_N: Tensor
    dropped: int
    ids_N: Tensor


def embed(model: nn.Module, architecture: Architecture) -> Embed:
    """uint8 canvas (B, C, H, W) -> features (B, D): the test-time view, normalised, through `model` in eval mode."""
    mean, std = architecture.normalisation()
    model.eval()

    def function(canvas_BCHW: Tensor) -> Tensor:
        x_BCHW = resize_crop(scale(canvas_BCHW), architecture.size, architecture.crop)
        h_BD: Tensor = model(normalise(x_BCHW, mean, std))
        return h_BD

    return function


def pixels(canvas_BCHW: Tensor) -> Tensor:
    """The raw picture as a feature: (B, C·H·W) in 0 … 1, the mirror that every backbone has to beat."""
    return scale(canvas_BCHW).flatten(1)


@torch.inference_mode()
def embedded_in_order(
    function: Embed, pictures: Pictures, batch: int, workers: int
) -> Generator[tuple[list[int], Tensor], None, None]:
    """(ids, float32 features (B, D) on the CPU) of all pictures in order; those that cannot be read are left out."""
    device = comm.device()
    for ids, canvas_BCHW in in_order(pictures, batch, workers, pin=device.type == "cuda"):
        yield ids, function(canvas_BCHW.to(device)).float().cpu()


def extract(
    function: Embed, pictures: Pictures, *, batch: int = 256, workers: int = 0, labelled: bool = True
) -> Features:
    """Every readable picture's features, in order.

    Raises Error where the pictures have no labels; they are -1 where none are asked for (`labelled`).
    """
    if labelled and pictures.labels is None:
        raise Error(
            "data: these pictures have no labels to score with: use class folders, or leave probe and evaluate out"
        )
    rows, kept = [], []
    for ids, x_BD in embedded_in_order(function, pictures, batch, workers):
        rows.append(x_BD)
        kept += ids
    if not rows:
        raise Error("data: not one picture of this split could be read")
    ids_N = torch.tensor(kept)
    labels_N = torch.full_like(ids_N, -1) if pictures.labels is None else pictures.labels[ids_N]
    return Features(torch.cat(rows), labels_N, len(pictures) - len(kept), ids_N)


def identity(pictures: Pictures) -> tuple[str, ...]:
    """What features depend on: pictures, shape and fit, and the order and labels that no fingerprint need tell."""
    digest = hashlib.sha256()
    for i in range(len(pictures)):
        digest.update(os.fsencode(pictures.name(i)) + b"\0")
    if pictures.labels is not None:
        digest.update(pictures.labels.numpy().tobytes())
    return pictures.fingerprint, str(pictures.shape), getattr(pictures, "fit", ""), digest.hexdigest()


def cached(folder: Path | None, key: tuple[str, ...], make: Callable[[], Features]) -> Features:
    """The features under `key` (a model's digest, and `identity`) from `folder`, made and kept there if new."""
    if folder is None:
        return make()
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.safetensors"
    if path.exists():
        try:
            tensors = load_file(path)
            kept = Features(tensors["x_ND"], tensors["labels_N"], int(tensors["dropped"]), tensors["ids_N"])
            if (
                len(kept.x_ND) == len(kept.labels_N) == len(kept.ids_N)
                and kept.labels_N.dtype == kept.ids_N.dtype == torch.int64
                and kept.x_ND.isfinite().all()
            ):
                return kept
        except Exception:  # a cache that cannot be read is made again, whatever is wrong with it
            path.unlink()
    found = make()
    tensors = {
        "x_ND": found.x_ND.contiguous(),
        "labels_N": found.labels_N,
        "dropped": torch.tensor(found.dropped),
        "ids_N": found.ids_N,
    }
    write_file(path, save(tensors))
    return found
