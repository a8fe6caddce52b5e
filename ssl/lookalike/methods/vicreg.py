"""VICReg: keeps every dimension's variance up and its covariances down, without negatives.

Bardes, Ponce & LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning", ICLR 2022, arXiv 2105.04906, equations 1 to 6; the variance term halved as in the
authors' code.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.correlation import gram_energy
from lookalike.nn.heads import mlp
from lookalike.nn.loss import Loss
from lookalike.nn.method import Method
from lookalike.nn.numerics import at_least_fp32, exact
from lookalike.recipe import NonNegative, Positive, Width


@exact
def vicreg_loss(
    za_BD: Tensor,
    zb_BD: Tensor,
    invariance: float,
    variance: float,
    covariance: float,
    eps: float = 1e-4,
) -> Loss:
    """Equation 6 over the rows of all ranks, always in fp32 or better.

    za_BD, zb_BD: (B, D), row i of both from one image, this rank's rows. Terms: `invariance`,
    `variance` and `covariance` before their weights.
    """
    with torch.autocast(za_BD.device.type, enabled=False):
        za_BD, zb_BD = at_least_fp32(za_BD), at_least_fp32(zb_BD)
        n, d = comm.count(za_BD), za_BD.shape[1]
        invariant = comm.sum((za_BD - zb_BD).square().sum()) / (n * d)
        varying, covarying = za_BD.new_zeros(()), za_BD.new_zeros(())
        for z_BD in (za_BD, zb_BD):
            centred_BD = z_BD - comm.mean(z_BD)
            variance_D = comm.sum(centred_BD.square().sum(dim=0)) / max(1, n - 1)
            varying = varying + F.relu(1 - (variance_D + eps).sqrt()).mean() / 2
            scaled_BD = centred_BD / max(1, n - 1) ** 0.5
            covarying = covarying + (gram_energy(scaled_BD) - variance_D.square().sum()) / d
        value = invariance * invariant + variance * varying + covariance * covarying
        terms = {"invariance": invariant, "variance": varying, "covariance": covarying}
        return Loss(value, terms, (za_BD.detach(), zb_BD.detach()))


class VICReg(Method):
    """VICReg (arXiv 2105.04906): a projector on the backbone and equation 6 on two views."""

    n_views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Sequence[Width] = (8192, 8192, 8192),
        invariance: NonNegative = 25.0,
        variance: NonNegative = 25.0,
        covariance: NonNegative = 1.0,
        scale: Positive = 1.0,
    ) -> None:
        """`projector`: widths; the weights λ, μ, ν of the paper; `scale` multiplies the loss."""
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], bias=False)
        self.weights, self.scale = (invariance, variance, covariance), scale

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks."""
        za_BD, zb_BD = (self.projector(self.backbone(view)) for view in views)
        loss = vicreg_loss(za_BD, zb_BD, *self.weights)
        return loss._replace(value=self.scale * loss.value)
