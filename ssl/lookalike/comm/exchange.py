"""What ranks tell one another: differentiable sum, mean and cat, the identity on one rank; counters
and plain data.

The law that all losses rest on: each rank computes the loss of the WHOLE batch and the engine
averages the parameters' gradients over ranks. The backward of `sum` and of `cat` adds what every
rank's copy of the loss sends back, W times the true gradient, and the engine's mean divides by W:
what remains is the gradient that one process would find on the whole batch, for even and uneven
splits alike. `torch.distributed.nn.functional`, which had such functions, is deprecated.
"""

import builtins
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lookalike.comm.topology import rank, world_size


def all_sum(flags: Tensor) -> Tensor:
    """The sum of small counters over ranks, without gradient."""
    if world_size() > 1:
        flags = flags.clone()
        dist.all_reduce(flags)
    return flags


def all_max(x: Tensor) -> Tensor:
    """The largest of x over ranks, elementwise, without gradient."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def broadcast_object(value: Any) -> Any:
    """What rank 0 says, on every rank: one decision for all (plain Python data)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """What each rank says, in rank order, on every rank (plain Python data)."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


@torch.no_grad()
def broadcast_module(module: torch.nn.Module) -> None:
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
