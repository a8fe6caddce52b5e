"""Who says that a step is skipped: the host, which has read it, or a boolean on the device, which
it has not.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.optim import Optimizer

from lookalike.optim import skippable


def is_late(late: bool | None, device: torch.device) -> bool:
    """Whether the host reads a step's verdict after it has launched the next one: by default on
    CUDA, where it would wait for the device.
    """
    return device.type == "cuda" if late is None else late


def maybe_skipped(optimizer: Optimizer, skip: bool | Tensor) -> AbstractContextManager[None]:
    """While entered, a step moves nothing where a boolean on the device says so."""
    return skippable(optimizer, skip) if torch.is_tensor(skip) else nullcontext()
