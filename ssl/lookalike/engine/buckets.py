"""Gradients averaged over ranks while backward still runs, in buckets, as DistributedDataParallel
does (Li et al., VLDB 2020, arXiv 2006.15704), for stage 0.

Parameters in reverse order, as backward comes to them, fill buckets; a bucket is sent when all its
gradients are there and all buckets before it are sent, so that every rank sends in one order. A
step has one reduction for each bucket, in its last backward.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookalike import comm

Communicate = Literal["fp32", "bf16"]
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The first bucket is small, so that something is under way early.
_FIRST_MB = 1.0


class Bucket:
    """Gradients that cross together: one row of memory, of which every parameter's is a view."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.flat = parameters[0].new_zeros(sum(p.numel() for p in parameters))
        parts = torch.split(self.flat, [p.numel() for p in parameters])
        self.views = [_as(part, p) for part, p in zip(parts, parameters, strict=True)]
        self.waiting: set[int] = set()
        self.sent: Tensor | None = None
        self.work: Any = None

    @torch.no_grad()
    def take(self, place: int) -> None:
        """The gradient that a parameter was given lies in the row from here on."""
        parameter, view = self.parameters[place], self.views[place]
        if parameter.grad is not view:
            view.copy_(parameter.grad) if parameter.grad is not None else view.zero_()
            parameter.grad = view

    @torch.no_grad()
    def send(self, group: Any, dtype: torch.dtype) -> None:
        """Starts the sum over ranks; nobody waits."""
        self.sent = self.flat.to(dtype) if self.flat.dtype == torch.float32 else self.flat
        self.work = dist.all_reduce(self.sent, group=group, async_op=True)

    @torch.no_grad()
    def receive(self) -> None:
        """The mean over ranks; a GPU's host does not wait for it."""
        self.work.wait()
        assert self.sent is not None
        if self.sent is not self.flat:
            self.flat.copy_(self.sent)
        self.flat.mul_(1.0 / comm.world_size())
        self.sent = self.work = None


def _as(part: Tensor, parameter: nn.Parameter) -> Tensor:
    """A view laid out as the parameter, which optimizers like best, if that leaves no holes."""
    if torch.ops.aten.is_non_overlapping_and_dense(parameter):
        return part.as_strided(parameter.size(), parameter.stride())
    return part.view_as(parameter)


class Buckets:
    """All parameters of a module that are trained; `mb` is a bucket's size in MiB of fp32.

    A parameter without a gradient in a step has one of zeros, as with DeepSpeed: other ranks may
    have found one.
    """

    def __init__(self, module: nn.Module, mb: float, communicate: Communicate = "fp32") -> None:
        trained = [p for p in module.parameters() if p.requires_grad and p.numel()]
        self._group, self._dtype = comm.gradient_group(), _TYPES[communicate]
        self._buckets = [Bucket(cut) for cut in cut_up(trained, mb)]
        self._next, self._last = 0, False
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._hook(bucket, place))  # type: ignore[no-untyped-call]
            for bucket in self._buckets
            for place, parameter in enumerate(bucket.parameters)
        ]

    def begin(self, last: bool) -> None:
        """Before a backward; `last`: it completes the step's gradient."""
        self._next, self._last = 0, last
        for bucket in self._buckets:
            bucket.waiting = set(range(len(bucket.parameters)))

    def end(self) -> None:
        """After a backward; after the step's last one every gradient is the mean over ranks."""
        if not self._last:
            return
        for bucket in self._buckets:
            for place in bucket.waiting:
                bucket.take(place)
            bucket.waiting = set()
        self._send()
        for bucket in self._buckets:
            bucket.receive()
        self._last = False

    def close(self) -> None:
        """Takes the hooks away, and the rows' memory."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._buckets = [], []

    def _hook(self, bucket: Bucket, place: int) -> Any:
        def take(_: Tensor) -> None:
            bucket.take(place)
            bucket.waiting.discard(place)
            self._send()

        return take

    def _send(self) -> None:
        """Sends, in order, what is complete."""
        while self._last and self._next < len(self._buckets):
            bucket = self._buckets[self._next]
            if bucket.waiting:
                return
            bucket.send(self._group, self._dtype)
            self._next += 1


def cut_up(parameters: Iterable[nn.Parameter], mb: float) -> list[list[nn.Parameter]]:
    """The parameters from the last to the first, in buckets of one type and device of about `mb`
    MiB, the first of them of one.
    """
    found: list[list[nn.Parameter]] = []
    room = 0.0
    for parameter in reversed(list(parameters)):
        alike = found and (found[-1][0].dtype, found[-1][0].device) == (
            parameter.dtype,
            parameter.device,
        )
        if not alike or room <= 0:
            room = 2**20 * (mb if found else min(mb, _FIRST_MB))
            found.append([])
        found[-1].append(parameter)
        room -= parameter.numel() * parameter.element_size()
    return found
