"""Barlow Twins with labels: two images of one class take the place of two views of one image.

Zbontar, Jing, Misra, LeCun & Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
Reduction", ICML 2021, arXiv 2103.03230, equation 1.
"""

from typing import Any

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor

from lookalike.metric.own_loss import OwnLoss
from lookalike.metric.pair_masks import masks
from lookalike.nn.correlation import identity_gaps
from lookalike.recipe import NonNegative

EPS = 1e-5


def correlation(z_BD: Tensor, ref_RD: Tensor, pair_BR: Tensor) -> Tensor:
    """(D, D): the correlations of the left rows' dimensions with the right rows' over all pairs
    that the mask names; 0 where it names none.

    As if the pairs were listed and both sides standardised: each row counts as often
    as it stands in one. O(B R D + B D²).
    """
    weight_BR = pair_BR.to(z_BD)
    n = weight_BR.sum().clamp(min=1)
    left_BD = _standardize(z_BD, weight_BR.sum(dim=1) / n)
    right_RD = _standardize(ref_RD, weight_BR.sum(dim=0) / n)
    return left_BD.T @ (weight_BR @ right_RD) / n


def _standardize(x_BD: Tensor, share_B: Tensor) -> Tensor:
    """Zero mean and unit variance where row i counts share_B[i], which add up to 1."""
    x_BD = x_BD - share_B @ x_BD
    return x_BD * (share_B @ x_BD.square() + EPS).rsqrt()


class BarlowTwinsLoss(OwnLoss, BaseMetricLossFunction):  # type: ignore[misc]
    """Barlow Twins (arXiv 2103.03230) on images of one class: alike within it, and dimensions that
    say other things.

    Equation 1 over all ordered pairs of different images of a class, each counted once, so the
    order of the batch does not matter; or over a miner's positive pairs. It knows no negatives, and
    serves best as one part of a WeightedSum. `off_diagonal`: the paper's λ.
    """

    unnormalised = True

    def __init__(self, *, off_diagonal: NonNegative = 0.0051) -> None:
        super().__init__()
        self.off_diagonal = off_diagonal

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Any,
    ) -> Any:
        """As the library asks: one number."""
        pair_BR = masks(indices_tuple, labels, ref_labels).positive_BR
        c_DD = correlation(embeddings, ref_emb, pair_BR)
        on, off = identity_gaps(c_DD.diagonal(), c_DD.square().sum())
        value = torch.where(pair_BR.any(), on + self.off_diagonal * off, 0.0)
        return {"loss": {"losses": value, "indices": None, "reduction_type": "already_reduced"}}
