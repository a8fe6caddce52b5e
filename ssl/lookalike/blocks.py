"""Parts that several methods share: Loss, mlp, standardize, and batch statistics that span all ranks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike import comm


class Loss(NamedTuple):
    """What a method returns: the scalar to descend, equal on all ranks, and its parts for the log."""

    value: Tensor
    terms: Mapping[str, Tensor]


def mlp(widths: Sequence[int], *, last_norm: bool = False) -> nn.Sequential:
    """Linear (no bias), BatchNorm, ReLU for each step of `widths`; the last step is linear alone.

    The projector of Barlow Twins, VICReg and SimCLR; `last_norm` ends with a BatchNorm.
    """
    layers: list[nn.Module] = []
    for wide, (d_in, d_out) in enumerate(zip(widths, widths[1:], strict=False), start=2):
        layers.append(nn.Linear(d_in, d_out, bias=False))
        if wide < len(widths):
            layers += [nn.BatchNorm1d(d_out), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(d_out))
    return nn.Sequential(*layers)


def moments(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance (kept dimensions) and count over `dims` and all ranks; differentiable.

    The variance is the mean square of the centred values: E[x²] - E[x]² would cancel in fp32.
    """
    here = torch.full((), x.numel() // max(_kept(x, dims), 1), dtype=x.dtype, device=x.device)
    n = comm.together(here)
    mean = comm.sum(x.sum(dim=dims, keepdim=True)) / n
    var = comm.sum((x - mean).square().sum(dim=dims, keepdim=True)) / n
    return mean, var, n


def _kept(x: Tensor, dims: Sequence[int]) -> int:
    kept = 1
    for d, size in enumerate(x.shape):
        kept *= 1 if d in dims else size
    return kept


def standardize(x_BD: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance of every dimension over the batch of all ranks, as an affine-free BatchNorm."""
    mean_1D, var_1D, _ = moments(x_BD, [0])
    return (x_BD - mean_1D) * (var_1D + eps).rsqrt()


class GlobalBatchNorm(nn.Module):
    """BatchNorm whose statistics are those of the whole batch over all ranks, on CPU too.

    torch.nn.SyncBatchNorm refuses CPU tensors. Takes over the parameters, buffers and, for timm's fused
    layers, the `drop` and `act` of the module that it replaces, under the same names: a checkpoint does not
    show which of the two wrote it.
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
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _batch(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.dim()) if d != 1]
        with torch.autocast(x.device.type, enabled=False):
            x32 = x.double() if x.dtype == torch.float64 else x.float()
            mean, var, n = moments(x32, dims)
            if self.training:
                self._follow(mean.detach().flatten(), var.detach().flatten(), n)
            shape = mean.shape
            scale = (var + self.eps).rsqrt()
            scale = scale if self.weight is None else scale * self.weight.view(shape)
            y = (x32 - mean) * scale
            y = y if self.bias is None else y + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, var_C: Tensor, n: Tensor) -> None:
        """Moves the running statistics as torch does: the unbiased variance, momentum None = cumulative."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked.item()
        unbiased_C = var_C * (n / (n - 1).clamp(min=1))
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), rate)


def global_batchnorm(module: nn.Module) -> nn.Module:
    """Replaces every BatchNorm below `module` by its global form; nothing changes on one rank."""
    if comm.world_size() == 1:
        return module
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return GlobalBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, global_batchnorm(child))
    return module
