"""What ranks tell one another: differentiable sum, mean and cat, the identity on one rank; counters
and plain data.

The law that all losses rest on: each rank computes the loss of the WHOLE batch and the engine
averages the parameters' gradients over ranks. The backward of `sum` and of `cat` adds what every
rank's copy of the loss sends back, W times the true gradient, and the engine's mean divides by W:
what remains is the gradient that one process would find on the whole batch, for even and uneven
splits alike. `torch.distributed.nn.functional`, which had such functions, is deprecated.
"""

import builtins
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lookalike.comm.topology import rank, world_size
from lookalike.errors import RunError

# The rows of every rank while `rows_known` is entered, and how often they were needed in it. Not of
# a thread: what runs forward again in backward runs in one of torch's own.
_known: tuple[int, ...] | None = None
_needed = 0
# What was needed before, and found by asking to be as it is known: see `_rows`.
_confirmed: set[tuple[Any, ...]] = set()


def all_sum(flags: Tensor) -> Tensor:
    """The sum of small counters over ranks, without gradient."""
    if world_size() > 1:
        flags = flags.clone()
        dist.all_reduce(flags)
    return flags


def all_rows(x: Tensor) -> Tensor:
    """(D,) of each rank -> (W, D), without gradient."""
    if world_size() == 1:
        return x[None]
    found = x.new_empty(world_size() * len(x))
    _gather(found, x.contiguous())
    return found.view(-1, len(x))


def _gather(whole: Tensor, x: Tensor) -> None:
    """x of each rank, of one shape, into `whole`; torch has changed the function's name."""
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(whole, x)


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
            row = tensor.data.contiguous()  # gloo sends no other layout
            dist.broadcast(row, src=0)
            if row.data_ptr() != tensor.data_ptr():
                tensor.data.copy_(row)


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
    def forward(ctx: Any, x: Tensor, rows: Sequence[int]) -> Tensor:
        ctx.start, ctx.rows = builtins.sum(rows[: rank()]), len(x)
        if min(rows) == max(rows):
            whole = x.new_empty(builtins.sum(rows), *x.shape[1:])
            _gather(whole, x.contiguous())
            return whole
        padded = x.new_zeros(max(rows), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[ctx.start : ctx.start + ctx.rows], None


@contextmanager
def rows_known(rows: Sequence[int]) -> Iterator[None]:
    """While entered, `cat`, `count`, `offset` and `mean` ask nobody: `rows` are the images of every
    rank, and a tensor of k × this rank's rows has k × theirs on the others.

    To be entered by all ranks alike. What is needed for the first time, by its place among the
    calls and its shape, is asked all the same and compared. Raises RunError for a tensor whose rows
    are no multiple of this rank's, or not the same one on all: say `ragged=True` of such. Where a
    rank has no rows it cannot tell k: all then ask as outside.
    """
    global _known, _needed
    before = _known, _needed
    _known, _needed = (None if min(rows, default=0) == 0 else tuple(rows)), 0
    try:
        yield
    finally:
        _known, _needed = before


def forget_rows() -> None:
    """Another group is another world: nothing of this one is confirmed there."""
    _confirmed.clear()


def _rows(x: Tensor, ragged: bool = False) -> list[int]:
    """How many rows each rank holds: known, or asked."""
    global _needed
    if _known is None or ragged:
        return _asked(x)
    _needed += 1
    own = _known[rank()]
    times, over = divmod(len(x), own)
    found = [times * n for n in _known]
    place = (_known, _needed, times, *x.shape[1:])
    if over or (place not in _confirmed and _asked(x) != found):
        raise RunError(
            f"comm: a tensor of {len(x)} rows is not of as many rows for each image, of which the "
            f"ranks hold {list(_known)}: pass ragged=True, and they ask one another"
        )
    _confirmed.add(place)
    return found


def _asked(x: Tensor) -> list[int]:
    """How many rows each rank holds; asked on the host, so that no device is waited for."""
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[rank()] = len(x)
    dist.all_reduce(counts)
    return [int(n) for n in counts.tolist()]


def sum(x: Tensor) -> Tensor:
    """The sum of x over ranks, elementwise, same shape; differentiable."""
    return x if world_size() == 1 else _tensor(_Sum.apply(x))


def cat(x: Tensor, *, ragged: bool = False) -> Tensor:
    """(B, …) of each rank -> (N, …) in rank order; ranks may hold different B; differentiable.

    `ragged`, here and below: B is no multiple of the rank's images, see `rows_known`.
    """
    return x if world_size() == 1 else _tensor(_Cat.apply(x, _rows(x, ragged)))


def mean(x: Tensor, *, ragged: bool = False) -> Tensor:
    """(B, …) -> (…): the mean over the rows of all ranks; differentiable."""
    return sum(x.sum(dim=0)) / count(x, ragged=ragged)


def count(x: Tensor, *, ragged: bool = False) -> int:
    """N, the rows of x over all ranks."""
    return len(x) if world_size() == 1 else builtins.sum(_rows(x, ragged))


def offset(x: Tensor, *, ragged: bool = False) -> int:
    """Where this rank's rows of x begin among the rows of all ranks, as `cat` lays them out."""
    return 0 if world_size() == 1 else builtins.sum(_rows(x, ragged)[: rank()])


def _tensor(found: Any) -> Tensor:
    """autograd.Function.apply is not typed."""
    result: Tensor = found
    return result
