"""W-MSE: draws the views of an image together after whitening the batch, which no collapse
survives.

Ermolov, Siarohin, Sangineto & Sebe, "Whitening for Self-Supervised Representation Learning", ICML
2021, arXiv 2007.06346, equations 4 to 7.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike import comm, rng
from lookalike.models import Backbone
from lookalike.nn.heads import mlp
from lookalike.nn.hooks import Scheduled
from lookalike.nn.loss import Loss
from lookalike.nn.method import Method
from lookalike.nn.numerics import at_least_fp32, exact, l2_normalize
from lookalike.optim import Progress
from lookalike.recipe import Count, Fraction, Widths


@exact
def whiten(x_ND: Tensor, shrink: float) -> Tensor:
    """(N, D) -> the same with zero mean and unit covariance, by the Cholesky factor (equations 5
    and 6).

    `shrink`: how much of the covariance is replaced by the identity times its mean variance.
    """
    centred_ND = x_ND - x_ND.mean(dim=0)
    # Divided by its own size first: whitening knows no scale, floating point does.
    size = centred_ND.detach().abs().amax()
    centred_ND = centred_ND / torch.where(size > 0, size, 1.0)
    variance = centred_ND.square().sum() / max(1, len(x_ND) - 1) / x_ND.shape[1]
    covariance_DD = centred_ND.T @ centred_ND / max(1, len(x_ND) - 1)
    identity_DD = torch.eye(x_ND.shape[1], dtype=x_ND.dtype, device=x_ND.device)
    floor = shrink * variance + torch.where(variance > 0, 0.0, 1.0)
    factor_DD, info = torch.linalg.cholesky_ex((1 - shrink) * covariance_DD + floor * identity_DD)
    # What cannot be whitened is NaN: such a step is skipped.
    factor_DD = torch.where(info == 0, factor_DD, torch.nan)
    white_ND: Tensor = torch.linalg.solve_triangular(factor_DD, centred_ND.T, upper=False).T
    return white_ND


@exact
def w_mse_loss(
    za_BD: Tensor, zb_BD: Tensor, orders: Sequence[Tensor], slices: int, shrink: float
) -> Loss:
    """Equation 4: the mean of 2 - 2 cos over whitened pairs, the batch of all ranks cut into
    `slices` in each order.

    za_BD, zb_BD: (B, D), row i of both from one image, this rank's rows; orders: permutations of
    the N rows of all ranks. Every rank whitens them all: D is small, and a slice spans ranks.
    Terms: `alignment`, mean cosine.
    """
    with torch.autocast(za_BD.device.type, enabled=False):
        za_ND, zb_ND = comm.cat(at_least_fp32(za_BD)), comm.cat(at_least_fp32(zb_BD))
        cosines = []
        for order in orders:
            for rows in order.to(za_ND.device).tensor_split(slices):
                wa, wb = (
                    l2_normalize(whiten(za_ND[rows], shrink)),
                    l2_normalize(whiten(zb_ND[rows], shrink)),
                )
                cosines.append((wa * wb).sum(dim=1))
        cosine = torch.cat(cosines).mean()
        return Loss(
            2 - 2 * cosine, {"alignment": cosine.detach()}, (za_BD.detach(), zb_BD.detach())
        )


class WMSE(Scheduled, Method):
    """W-MSE (arXiv 2007.06346): a narrow projector and whitening of random slices of the batch."""

    n_views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Widths = (1024, 64),
        slice_size: Count = 128,
        orders: Count = 1,
        shrink: Fraction = 1e-4,
    ) -> None:
        """`slice_size`: rows whitened together, at least; `orders`: how often the batch is cut anew
        each step.
        """
        super().__init__()
        if slice_size <= projector[-1]:
            raise ValueError(
                f"slice_size {slice_size} cannot whiten {projector[-1]} dimensions: it must be "
                "larger"
            )
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], bias=True)
        self.slice_size, self.orders, self.shrink = slice_size, orders, shrink
        self._seed = self._step = 0

    def on_step(self, progress: Progress) -> None:
        """The order in which the batch is cut is a pure function of the run's seed and the step."""
        self._seed, self._step = progress.seed, progress.step

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks."""
        za_BD, zb_BD = (self.projector(self.backbone(view)) for view in views)
        n = comm.count(za_BD)
        drawn = (self._seed, "w_mse", self._step)
        orders = [rng.permutation(n, *drawn, order) for order in range(self.orders)]
        return w_mse_loss(za_BD, zb_BD, orders, max(1, n // self.slice_size), self.shrink)
