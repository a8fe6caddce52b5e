"""Everything that crosses ranks: differentiable sum, mean and cat, the identity on one rank.

The law that all losses rest on: each rank computes the loss of the WHOLE batch and the engine averages the
parameters' gradients over ranks. The backward of `sum` and of `cat` adds what every rank's copy of the loss
sends back, W times the true gradient, and the engine's mean divides by W: what remains is the gradient that
one process would find on the whole batch, for even and uneven splits alike.
`torch.distributed.nn.functional`, which had such functions, is deprecated.
"""

import builtins
import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lookalike.errors import RunError

_TIMEOUT = datetime.timedelta(minutes=30)


def started() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process among all, from 0; before `start` as the launcher says."""
    return dist.get_rank() if started() else _number("RANK", 0)


def world_size() -> int:
    """How many processes train together; before `start` as the launcher says."""
    return dist.get_world_size() if started() else max(1, _number("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process among those of its machine: the index of its GPU."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise RunError(f"environment: {name}={text!r} is no number: unset it, or start ranks with torchrun")
    return int(text)


def device() -> torch.device:
    """Where this rank computes: its own GPU, else the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def start(*, alone: bool = False) -> None:
    """Joins the process group that the launcher's environment names; `alone` makes one of a single process.

    Raises RunError when the environment is incomplete or the group does not come together in 30 minutes.
    """
    if not started() and rank() >= world_size():
        raise RunError(f"environment: RANK={rank()} of WORLD_SIZE={world_size()}: unset both, or start with torchrun")
    if started() or (world_size() == 1 and not alone):
        return
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if missing and world_size() > 1:
        raise RunError(f"environment: {', '.join(missing)} not set: start ranks with torchrun or launch/local.sh")
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        if missing:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=_TIMEOUT)
        else:
            dist.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"process group: {str(error).splitlines()[0]}: is every rank up and reachable?") from error


def stop() -> None:
    """Leaves the process group, if there is one."""
    if started():
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()


def together(flags: Tensor) -> Tensor:
    """The sum of small counters over ranks, without gradient."""
    if world_size() > 1:
        flags = flags.clone()
        dist.all_reduce(flags)
    return flags


def highest(x: Tensor) -> Tensor:
    """The largest of x over ranks, elementwise, without gradient."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def from_first(value: Any) -> Any:
    """What rank 0 says, on every rank: one decision for all (plain Python data)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@torch.no_grad()
def spread(module: torch.nn.Module) -> None:
    """Copies rank 0's parameters and buffers to all ranks (DeepSpeed never sends buffers)."""
    if world_size() > 1:
        for tensor in module.state_dict(keep_vars=True).values():
            dist.broadcast(tensor.data, src=0)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _Cat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = _rows(x)
        ctx.start, ctx.rows = builtins.sum(rows[: rank()]), len(x)
        padded = x.new_zeros(max(rows), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[ctx.start : ctx.start + ctx.rows]


def _rows(x: Tensor) -> list[int]:
    """How many rows each rank holds; asked on the host, so that no device is waited for."""
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[rank()] = len(x)
    dist.all_reduce(counts)
    return [int(n) for n in counts.tolist()]


def sum(x: Tensor) -> Tensor:
    """The sum of x over ranks, elementwise, same shape; differentiable."""
    return _apply(_Sum, x)


def cat(x: Tensor) -> Tensor:
    """(B, …) of each rank -> (N, …) in rank order; ranks may hold different B; differentiable."""
    return _apply(_Cat, x)


def mean(x: Tensor) -> Tensor:
    """(B, …) -> (…): the mean over the rows of all ranks; differentiable."""
    return sum(x.sum(dim=0)) / count(x)


def count(x: Tensor) -> int:
    """N, the rows of x over all ranks."""
    return len(x) if world_size() == 1 else builtins.sum(_rows(x))


def offset(x: Tensor) -> int:
    """Where this rank's rows of x begin among the rows of all ranks, as `cat` lays them out."""
    return 0 if world_size() == 1 else builtins.sum(_rows(x)[: rank()])


def _apply(function: Any, x: Tensor) -> Tensor:
    if world_size() == 1:
        return x
    result: Tensor = function.apply(x)
    return result
