"""Barlow Twins: makes the cross-correlation of two views' embeddings the identity.

Zbontar, Jing, Misra, LeCun & Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
ICML 2021, arXiv 2103.03230, equation 1.

Neither form below holds more than it must. With standardised z of shape (N, D), C = zaᵀzb / N and
‖zaᵀzb‖²_F = Σ (za zaᵀ) ∘ (zb zbᵀ): for N well below D two N × N Gram matrices replace the D × D one, exactly.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lookalike import comm
from lookalike.backbones import Backbone
from lookalike.blocks import Loss, mlp, standardize
from lookalike.recipe import NonNegative, Positive, Width


class _CrossEnergy(torch.autograd.Function):
    """‖zaᵀzb‖²_F over all ranks by Gram matrices, each rank forming the rows of its own samples only."""

    @staticmethod
    def forward(ctx: Any, za_BD: Tensor, zb_BD: Tensor) -> Tensor:
        za_ND, zb_ND = comm.cat(za_BD), comm.cat(zb_BD)
        ga_BN, gb_BN = za_BD @ za_ND.T, zb_BD @ zb_ND.T
        ctx.save_for_backward(za_ND, zb_ND, ga_BN, gb_BN)
        return comm.sum((ga_BN * gb_BN).sum())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        # Every rank holds the same loss, so the others' copies send back the same gradient: W times one.
        za_ND, zb_ND, ga_BN, gb_BN = ctx.saved_tensors
        scale = 2.0 * comm.world_size() * grad
        return scale * (gb_BN @ za_ND), scale * (ga_BN @ zb_ND)


def cross_energy(za_BD: Tensor, zb_BD: Tensor) -> Tensor:
    """‖zaᵀzb‖²_F over the rows of all ranks, in the form that costs less: 2 N² D (Gram) or N D² products."""
    if 2 * comm.count(za_BD) <= za_BD.shape[1]:
        energy: Tensor = _CrossEnergy.apply(za_BD, zb_BD)
        return energy
    return comm.sum(za_BD.T @ zb_BD).square().sum()


def barlow_twins_loss(ha_BD: Tensor, hb_BD: Tensor, off_diagonal: float) -> Loss:
    """Equation 1 on the embeddings of two views, always in fp32 or better.

    ha_BD, hb_BD: (B, D), row i of both from one picture, this rank's rows. The batch statistics and the
    correlation are those of all ranks' rows. Terms: `on_diagonal` = Σ (1 - C_ii)², `off_diagonal` = Σ C_ij²,
    i ≠ j, before its weight.
    """
    with torch.autocast(ha_BD.device.type, enabled=False):
        za_BD, zb_BD = (standardize(h if h.dtype == torch.float64 else h.float()) for h in (ha_BD, hb_BD))
        n = comm.count(za_BD)
        diagonal_D = comm.sum((za_BD * zb_BD).sum(dim=0)) / n
        on = (1 - diagonal_D).square().sum()
        off = cross_energy(za_BD, zb_BD) / n**2 - diagonal_D.square().sum()
        return Loss(on + off_diagonal * off, {"on_diagonal": on, "off_diagonal": off})


class BarlowTwins(nn.Module):
    """Barlow Twins (arXiv 2103.03230): a projector on the backbone and equation 1 on two views."""

    n_views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Sequence[Width] = (8192, 8192, 8192),
        off_diagonal: NonNegative = 0.0051,
        scale: Positive = 1.0,
    ) -> None:
        """`projector`: widths; `off_diagonal`: the paper's λ; `scale` multiplies the loss (official code: 0.024)."""
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector])
        self.off_diagonal, self.scale = off_diagonal, scale

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same pictures -> the loss over the batch of all ranks."""
        za_BD, zb_BD = (self.projector(self.backbone(view)) for view in views)
        loss = barlow_twins_loss(za_BD, zb_BD, self.off_diagonal)
        return Loss(self.scale * loss.value, loss.terms)
