"""BatchNorm and standardisation over the batch of all ranks (SyncBatchNorm, on CPU too)."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

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
        here = torch.full((), x.numel() // max(_kept(x, dims), 1), dtype=x.dtype, device=x.device)
        n = comm.all_sum(here)
        mean = comm.all_sum(x.sum(dim=dims, keepdim=True)) / n
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


def _kept(x: Tensor, dims: Sequence[int]) -> int:
    kept = 1
    for d, size in enumerate(x.shape):
        kept *= 1 if d in dims else size
    return kept


def standardize(x_BD: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance of every dimension over the batch of all ranks, as an affine-free
    BatchNorm.
    """
    return standardized(x_BD, [0], eps)[0]


class GlobalBatchNorm(nn.Module):
    """BatchNorm whose statistics are those of the whole batch over all ranks, on CPU too.

    torch.nn.SyncBatchNorm refuses CPU tensors. Takes over the parameters, buffers and, for timm's
    fused layers, the `drop` and `act` of the module that it replaces, under the same names: a
    checkpoint does not show which of the two wrote it.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked)
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …) -> the same shape."""
        use_batch = self.training or self.running_mean is None
        y = self._batch(x) if use_batch else self._running(x)
        activated: Tensor = self.act(self.drop(y))
        return activated

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
def freeze_running_stats(module: nn.Module) -> Iterator[None]:
    """While entered, no BatchNorm below moves its running statistics.

    For backward: what runs forward again there (micro-batches, activation checkpoints) was counted
    before. It moves tensors that are thrown away; without any, it would keep other tensors than the
    first time, which torch refuses.
    """
    norms = _norms(module)
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


def _norms(module: nn.Module) -> list[Any]:
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
        for norm in _norms(module)
        for name in _RUNNING
        if (tensor := getattr(norm, name)) is not None
    ]


Form = Literal["torch", "sync", "global"]


def batchnorm_form(norm: nn.Module, *, device: str, ranks: int, even: bool) -> Form:
    """What a BatchNorm becomes: itself on one rank, else torch.nn.SyncBatchNorm where that works,
    else ours.

    torch's refuses CPU tensors and knows nothing of the `drop` and `act` of timm's fused layers;
    that it gives the same with another number of images on every rank (`even` false) has not been
    run here, so it is not relied on.
    """
    if ranks == 1:
        return "torch"
    plain = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return "sync" if device == "cuda" and plain and even else "global"


def global_batchnorm(module: nn.Module, *, even: bool = False) -> nn.Module:
    """Replaces every BatchNorm below `module` by one over all ranks; nothing changes on one rank.

    `even`: every rank always holds as many images as every other, which lets torch's own do it on
    GPUs.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        form = batchnorm_form(module, device=comm.device().type, ranks=comm.world_size(), even=even)
        if form == "sync":
            synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
            return synchronised
        return GlobalBatchNorm(module) if form == "global" else module
    for name, child in module.named_children():
        setattr(module, name, global_batchnorm(child, even=even))
    return module
