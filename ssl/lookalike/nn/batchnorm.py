"""BatchNorm and standardisation over the batch of all ranks (SyncBatchNorm, on CPU too)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike import comm
from lookalike.nn.numerics import at_least_fp32

_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


class _Standardize(torch.autograd.Function):
    """(x - mean) / √(variance + eps) over `dims` and all ranks; keeps its output alone, and one
    number a channel.

    The variance is the mean square of the centred values: E[x²] - E[x]² would cancel in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dims: list[int], eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        here = x.sum(dim=dims, keepdim=True)
        rows = here.new_full((1,), x.numel() // max(here.numel(), 1))
        # The count crosses with the sums: no row need be asked for, and none can be taken wrongly.
        sums = comm.all_sum(torch.cat([here.flatten(), rows]))
        n = sums[-1].clone()
        mean = sums[:-1].view_as(here) / n
        z = x - mean
        var = comm.all_sum(torch.linalg.vector_norm(z, dim=dims, keepdim=True).square()) / n
        scale = (var + eps).rsqrt()
        z.mul_(scale)
        ctx.save_for_backward(z, scale, n)
        ctx.dims = dims
        ctx.mark_non_differentiable(mean, var, n)
        return z, mean, var, n

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        z, scale, n = ctx.saved_tensors
        sums = torch.stack(
            [grad.sum(dim=ctx.dims, keepdim=True), (grad * z).sum(dim=ctx.dims, keepdim=True)]
        )
        plain, along = comm.all_sum(sums) / n
        return (grad - plain).addcmul_(z, along, value=-1).mul_(scale), None, None


def standardized(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x with zero mean and unit variance over `dims` and all ranks; its mean, biased variance,
    count (no gradient).
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _Standardize.apply(x, dims, eps)
    return found


def standardize(x_BD: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance of every dimension over the batch of all ranks, as an affine-free
    BatchNorm.
    """
    return standardized(x_BD, [0], eps)[0]


class _Fused(torch.autograd.Function):
    """BatchNorm over all ranks by the CUDA kernels of torch.nn.SyncBatchNorm: one gather forward,
    one sum backward, x read twice each way.

    Other than torch's own it never waits for the device: that filters out ranks without rows, a
    read by the host in every layer. No rank may be without rows here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = _dense(x)
        mean_C, scale_C = torch.batch_norm_stats(x, eps)
        rows = mean_C.new_full((1,), x.numel() // x.shape[1])
        all_WC = comm.all_rows(torch.cat([mean_C, scale_C, rows]))
        (means_WC, scales_WC), rows_W = all_WC[:, :-1].chunk(2, dim=1), all_WC[:, -1]
        mean_C, scale_C = torch.batch_norm_gather_stats_with_counts(
            x,
            means_WC.contiguous(),
            scales_WC.contiguous(),
            *running,
            momentum,
            eps,
            rows_W.contiguous(),
        )
        ctx.save_for_backward(x, weight, mean_C, scale_C, rows_W.to(torch.int32))
        found: Tensor = torch.batch_norm_elemt(x, weight, bias, mean_C, scale_C, eps)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean_C, scale_C, rows_W = ctx.saved_tensors
        grad, needed = _dense(grad), ctx.needs_input_grad[:3]
        plain_C, along_C, weight_C, bias_C = torch.batch_norm_backward_reduce(
            grad, x, mean_C, scale_C, weight, *needed
        )
        found = None
        if needed[0]:
            plain_C, along_C = comm.all_sum(torch.cat([plain_C, along_C])).chunk(2)
            found = torch.batch_norm_backward_elemt(
                grad, x, mean_C, scale_C, weight, plain_C, along_C, rows_W
            )
        return found, weight_C, bias_C, None, None, None


def _dense(x: Tensor) -> Tensor:
    """As the kernels take it: channels last stays so."""
    for form in (torch.channels_last, torch.channels_last_3d):
        if x.dim() == (4 if form == torch.channels_last else 5) and x.is_contiguous(
            memory_format=form
        ):
            return x
    return x.contiguous()


class GlobalBatchNorm(nn.Module):
    """BatchNorm whose statistics are those of the whole batch over all ranks, on CPU too.

    torch.nn.SyncBatchNorm refuses CPU tensors, and waits for a GPU in every layer. Takes over the
    parameters, buffers and, for timm's fused layers, the `drop` and `act` of the module that it
    replaces, under the same names: a checkpoint does not show which of the two wrote it. `full`:
    no rank is ever without images, which GPUs' fused kernels ask for.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, *, full: bool = False) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked)
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())
        self.full = full
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …) -> the same shape."""
        if not (self.training or self.running_mean is None):
            y = self._running(x)
        else:
            y = self._fused(x) if self._has_kernels(x) else self._batch(x)
        activated: Tensor = self.act(self.drop(y))
        return activated

    def _has_kernels(self, x: Tensor) -> bool:
        return x.device.type == "cuda" and self.full and self.momentum is not None

    def _fused(self, x: Tensor) -> Tensor:
        running: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            running = (self.running_mean, self.running_var)
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = _Fused.apply(x, self.weight, self.bias, running, self.momentum, self.eps)
        return y

    def _running(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def _batch(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.dim()) if d != 1]
        with torch.autocast(x.device.type, enabled=False):
            y, mean, var, n = standardized(at_least_fp32(x), dims, self.eps)
            if self.training:
                self._follow(mean.flatten(), var.flatten(), n)
            shape = mean.shape
            y = y if self.weight is None else y * self.weight.view(shape)
            y = y if self.bias is None else y + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, var_C: Tensor, n: Tensor) -> None:
        """Moves the running statistics as torch does: the unbiased variance, momentum None =
        cumulative.
        """
        if (
            self.running_mean is None
            or self.running_var is None
            or self.num_batches_tracked is None
        ):
            return
        self.num_batches_tracked.add_(1)
        rate = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked.item()
        unbiased_C = var_C * (n / (n - 1).clamp(min=1))
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), rate)


@contextlib.contextmanager
def freeze_running_stats(module: nn.Module, norms: list[Any] | None = None) -> Iterator[None]:
    """While entered, no BatchNorm below moves its running statistics.

    For backward: what runs forward again there (micro-batches, activation checkpoints) was counted
    before. It moves tensors that are thrown away; without any, it would keep other tensors than the
    first time, which torch refuses. `norms`: `norms_below(module)`, where it is known.
    """
    norms = norms_below(module) if norms is None else norms
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name in _RUNNING:
            found = buffers.get(name)
            if found is not None:
                norm._buffers[name] = (
                    torch.zeros_like(found) if found.dim() == 0 else torch.empty_like(found)
                )
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


def norms_below(module: nn.Module) -> list[Any]:
    """Every BatchNorm of a module."""
    return [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm | GlobalBatchNorm)
    ]


def running_stats(module: nn.Module) -> list[Tensor]:
    """The running statistics of every BatchNorm below, as they are: a forward in training moves
    them.
    """
    return [
        tensor
        for norm in norms_below(module)
        for name in _RUNNING
        if (tensor := getattr(norm, name)) is not None
    ]


def global_batchnorm(module: nn.Module, *, full: bool = False) -> nn.Module:
    """Replaces every BatchNorm below `module` by one over all ranks; nothing changes on one rank.

    `full`: every rank always holds images, which lets the kernels of GPUs do it.
    """
    if comm.world_size() == 1:
        return module
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return GlobalBatchNorm(module, full=full)
    for name, child in module.named_children():
        setattr(module, name, global_batchnorm(child, full=full))
    return module
