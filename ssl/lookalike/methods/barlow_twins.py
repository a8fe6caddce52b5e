"""Barlow Twins: makes the cross-correlation of two views' embeddings the identity.

Zbontar, Jing, Misra, LeCun & Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
Reduction", ICML 2021, arXiv 2103.03230, equation 1.

With standardised z of shape (N, D), C = zaᵀzb / N; Σ C_ij² comes from `cross_energy`, which never
holds more than it must.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.batchnorm import standardize
from lookalike.nn.correlation import cross_energy, identity_gaps
from lookalike.nn.heads import mlp
from lookalike.nn.loss import Loss
from lookalike.nn.method import Method
from lookalike.nn.numerics import at_least_fp32, exact
from lookalike.recipe import NonNegative, Positive, Width


@exact
def barlow_twins_loss(ha_BD: Tensor, hb_BD: Tensor, off_diagonal: float) -> Loss:
    """Equation 1 on the embeddings of two views, always in fp32 or better.

    ha_BD, hb_BD: (B, D), row i of both from one image, this rank's rows. The batch statistics and
    the correlation are those of all ranks' rows. Terms: `on_diagonal` = Σ (1 - C_ii)²,
    `off_diagonal` = Σ C_ij², i ≠ j, before its weight.
    """
    with torch.autocast(ha_BD.device.type, enabled=False):
        za_BD, zb_BD = (standardize(at_least_fp32(h)) for h in (ha_BD, hb_BD))
        n = comm.count(za_BD)
        diagonal_D = comm.sum((za_BD * zb_BD).sum(dim=0)) / n
        on, off = identity_gaps(diagonal_D, cross_energy(za_BD, zb_BD) / n**2)
        terms = {"on_diagonal": on, "off_diagonal": off}
        return Loss(on + off_diagonal * off, terms, (ha_BD.detach(), hb_BD.detach()))


class BarlowTwins(Method):
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
        """`projector`: widths; `off_diagonal`: the paper's λ; `scale` multiplies the loss (official
        code: 0.024).
        """
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector])
        self.off_diagonal, self.scale = off_diagonal, scale

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks."""
        za_BD, zb_BD = (self.projector(self.backbone(view)) for view in views)
        loss = barlow_twins_loss(za_BD, zb_BD, self.off_diagonal)
        return loss._replace(value=self.scale * loss.value)
