"""Numbers that are asked for now and read later, so that the host does not wait for them."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lookalike.comm.topology import world_size

Read = Callable[[], list[int]]


def read_later(x: Tensor) -> Read:
    """Whole numbers on the device, copied to the host without waiting; they are read, and waited
    for, by a call of what is returned.
    """
    if not x.is_cuda:
        held = x.to("cpu", copy=True)
        return lambda: [int(n) for n in held.tolist()]
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def read() -> list[int]:
        event.synchronize()
        return [int(n) for n in host.tolist()]

    return read


def sum_later(counts: Sequence[int]) -> Read:
    """The sum of each of the host's counts over ranks: begun now, waited for when it is read."""
    held = torch.tensor(counts, dtype=torch.int64)
    work = dist.all_reduce(held, async_op=True) if world_size() > 1 else None

    def read() -> list[int]:
        if work is not None:
            work.wait()
        return [int(n) for n in held.tolist()]

    return read
