"""From the host to the device, and to the images for which something was drawn."""

from collections.abc import Callable

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it: only what is pinned is copied behind the host's
    back.
    """
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


def on_marked(x: Tensor, on: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """The operation on the marked images only, whose rows it writes; `on` lies on the host."""
    if on.all():
        return operation(x)
    if on.any():
        rows = send(torch.nonzero(on).flatten(), x.device)
        x[rows] = operation(x[rows])
    return x
