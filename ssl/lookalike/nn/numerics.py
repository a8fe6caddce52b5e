"""Precision and length of rows: what losses and statistics are computed in."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def l2_normalize(x_BD: Tensor) -> Tensor:
    """Rows of length one, in fp32 or better; a row of zeros stays zero, and has a gradient of
    zeros.
    """
    x_BD = at_least_fp32(x_BD)
    # Scaled by the largest entry first: the squares of huge or tiny rows would leave the range of
    # fp32.
    largest_B1 = x_BD.detach().abs().amax(dim=1, keepdim=True)
    nonzero_B1 = largest_B1 > 0
    return F.normalize(x_BD / torch.where(nonzero_B1, largest_B1, 1.0), dim=1) * nonzero_B1


def at_least_fp32(x: Tensor) -> Tensor:
    """In fp32, or fp64 where it came so: what losses and statistics are computed in."""
    return x if x.dtype == torch.float64 else x.float()


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPU, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def exact(function: Callable[P, T]) -> Callable[P, T]:
    """A function of tensors whose products no tensor core may round (tf32), in its backward
    neither; as it was where torch's flag is off.

    The flag is read when a kernel runs, and autograd runs the nodes of a graph from the last to
    the first: one node after all that the function makes switches the flag off, one before it on.
    """

    @functools.wraps(function)
    def exactly(*args: P.args, **kwargs: P.kwargs) -> T:
        flags = torch.backends.cuda.matmul
        if not flags.allow_tf32:
            return function(*args, **kwargs)
        region = _Region()
        flags.allow_tf32 = False
        try:
            args, kwargs = region.bounded(_First, (args, kwargs))
            value: T = region.bounded(_Last, function(*args, **kwargs))
            return value
        finally:
            flags.allow_tf32 = True

    return exactly


class _Region:
    """The flag as a backward found it, from the last node of a function to its first."""

    def __init__(self) -> None:
        self.before: bool | None = None

    def bounded(self, kind: type[torch.autograd.Function], value: Any) -> Any:
        """The same value, its tensors that have a gradient behind one node."""
        found: list[Tensor] = []
        _mapped(value, found.append)
        if not found:
            return value
        passed = iter(kind.apply(self, *found))
        return _mapped(value, lambda _: next(passed))


class _First(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, region: _Region, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.region = region
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.region.before is not None:
            torch.backends.cuda.matmul.allow_tf32 = ctx.region.before
        return None, *grads


class _Last(_First):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.region.before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        return None, *grads


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Tuples, lists and dicts with each tensor that has a gradient changed."""
    if isinstance(value, Tensor):
        return change(value) if value.requires_grad else value
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
