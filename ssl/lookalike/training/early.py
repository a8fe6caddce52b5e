"""What would end a training after it has begun, or spoil it, and can be told before its first step:
a batch that has no statistics, a disk that is nearly full.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from lookalike.data import nvjpeg
from lookalike.errors import RecipeError
from lookalike.experiment import Training
from lookalike.folder import nearest

# Numbers of state that an optimizer keeps for each that it trains.
_MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1, "lars": 1}


def refuse_decode(name: str, section: str, settings: Training) -> None:
    """Raises RecipeError where JPEGs are to be decoded on a device that cannot."""
    if settings.decode == "device" and (why := nvjpeg.unusable()):
        raise RecipeError(f"{name}: {section}.decode: device, but {why}: decode: host")


def refuse_lone_image(
    place: str, tried: nn.Module, channels: int, sizes: Iterable[tuple[int, int]]
) -> None:
    """Raises RecipeError where a module cannot be trained on one image of these sizes at a time: a
    BatchNorm whose channels have come down to one number each has nothing to normalise.

    `tried`: a copy, in the mode in which it is trained; its statistics change.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for height, width in sorted(set(sizes)):
                tried(torch.zeros(1, channels, height, width))
    except ValueError as error:
        reason = " ".join(str(error).split())[:120]
        raise RecipeError(f"{place}: one image at a time: {reason}: raise it") from error


def little_room(folder: Path, section: str, module: nn.Module, settings: Training) -> str:
    """What is to be said where the disk seems too small for the checkpoints that will stay and the
    next one, which is written before the oldest goes; empty elsewhere.
    """
    needed = (settings.keep + 1) * checkpoint_bytes(module, settings.optimizer.name)
    try:
        free = shutil.disk_usage(nearest(folder)).free
    except OSError:
        return ""
    if free >= needed:
        return ""
    return (
        f"{folder}: {free / 1e9:.1f} GB free, {settings.keep + 1} checkpoints take about "
        f"{needed / 1e9:.1f}: make room, or lower {section}.keep"
    )


def checkpoint_bytes(module: nn.Module, optimizer: str) -> int:
    """About how large a checkpoint is: every number of the module, and of those that are trained
    the optimizer's.
    """
    state: int = sum(tensor.nbytes for tensor in module.state_dict().values())
    trained: int = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    return state + _MOMENTS.get(optimizer, 2) * trained
