"""From the host to the device, and to the images for which something was drawn."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

_ALIGNED = 16


def send(x: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it: only what is pinned is copied behind the back of the
    host of a CUDA GPU.
    """
    return x if device.type == "cpu" else send_all([x], device)[0]


def send_all(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host, of any shapes and types, to the device in one copy; what they become
    there are parts of one piece of memory.

    For CUDA the host's piece is pinned and the copy waits for nothing: torch's own cache of pinned
    memory gives such a piece away again only after the copy out of it has ended.
    """
    starts, end = [], 0
    for x in tensors:
        starts.append(end)
        end += -(-x.numel() * x.element_size() // _ALIGNED) * _ALIGNED
    pinned = device.type == "cuda" and torch.cuda.is_available()
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
    for x, there in zip(tensors, _parts(packed, tensors, starts), strict=True):
        there.copy_(x)
    return _parts(packed.to(device, non_blocking=pinned), tensors, starts)


def _parts(packed: Tensor, like: Sequence[Tensor], starts: Sequence[int]) -> list[Tensor]:
    return [
        packed[start : start + x.numel() * x.element_size()].view(x.dtype).view(x.shape)
        for start, x in zip(starts, like, strict=True)
    ]


def constant(
    values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(n,) numbers that lie on the device already, but for the first time; not to be written to."""
    # While somebody pretends (FakeTensorMode), what is kept must be neither made nor given away.
    make = _constant.__wrapped__ if detect_fake_mode() else _constant
    return make(tuple(values), device, dtype)


@lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype, device=device)


def on_marked(x: Tensor, on: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """The operation on the marked images only, whose rows it writes; `on` lies on the host."""
    if on.all():
        return operation(x)
    if on.any():
        rows = send(torch.nonzero(on).flatten(), x.device)
        x[rows] = operation(x[rows])
    return x
