"""DCL and DCLW: the contrastive loss without the positive pair in its denominator.

Yeh, Hong, Hsu, Liu, Chen & LeCun, "Decoupled Contrastive Learning", ECCV 2022, arXiv 2110.06848,
equations 6 and 7: small batches learn as large ones do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.contrast import log_sum_exp, two_views
from lookalike.nn.heads import mlp
from lookalike.nn.loss import Loss
from lookalike.nn.method import Method
from lookalike.nn.numerics import exact, l2_normalize
from lookalike.recipe import NonNegative, Positive, Width


@exact
def dcl_loss(za_BD: Tensor, zb_BD: Tensor, temperature: float, sigma: float = 0.0) -> Loss:
    """Equation 6, averaged over the 2N views of all ranks; with `sigma` > 0 equation 7 (DCLW).

    za_BD, zb_BD: (B, D) embeddings of any length, row i of both from one image, this rank's rows.
    Each row's denominator leaves out both itself and its positive. DCLW weighs the positives by 2 -
    exp(s / σ) over its mean; the weights carry no gradient, as in the authors' code. Terms:
    `alignment`, the pairs' mean cosine.
    """
    with torch.autocast(za_BD.device.type, enabled=False):
        za_BD, zb_BD = l2_normalize(za_BD), l2_normalize(zb_BD)
        rows_MD, keys_MD, own_M1 = two_views(za_BD, zb_BD)
        n = len(keys_MD) // 2
        pair_M2 = torch.cat([own_M1, (own_M1 + n) % (2 * n)], dim=1)
        lse = log_sum_exp(rows_MD, keys_MD, temperature, pair_M2).sum()
        cosine_B = (za_BD * zb_BD).sum(dim=1)
        weighted = (
            (_weights(cosine_B.detach(), sigma) * cosine_B).sum() if sigma > 0 else cosine_B.sum()
        )
        value = comm.sum(lse - 2 * weighted / temperature) / (2 * n)
        terms = {"alignment": comm.mean(cosine_B.detach())}
        return Loss(value, terms, (za_BD.detach(), zb_BD.detach()))


def _weights(cosine_B: Tensor, sigma: float) -> Tensor:
    """2 - exp(s / σ) / mean exp(s / σ), the mean over all ranks."""
    raised_B = ((cosine_B - 1) / sigma).exp()
    return 2 - raised_B / comm.mean(raised_B)


class DCL(Method):
    """DCL and DCLW (arXiv 2110.06848): SimCLR's network under the decoupled loss."""

    n_views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Sequence[Width] = (2048, 128),
        temperature: Positive = 0.1,
        sigma: NonNegative = 0.0,
    ) -> None:
        """`sigma`: 0 is DCL; the paper's DCLW has .5."""
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], last_norm="affine")
        self.temperature, self.sigma = temperature, sigma

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks."""
        za_BD, zb_BD = (self.projector(self.backbone(view)) for view in views)
        return dcl_loss(za_BD, zb_BD, self.temperature, self.sigma)
