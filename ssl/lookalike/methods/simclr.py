"""SimCLR: tells an image's other view from all other views of the batch.

Chen, Kornblith, Norouzi & Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, arXiv 2002.05709, equation 1 (NT-Xent).
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
from lookalike.recipe import Positive, Width


@exact
def simclr_loss(za_BD: Tensor, zb_BD: Tensor, temperature: float) -> Loss:
    """Equation 1, averaged over the 2N views of all ranks; each row is told from the 2N - 1 others.

    za_BD, zb_BD: (B, D) embeddings of any length, row i of both from one image, this rank's rows.
    Terms: `alignment`, the mean cosine of the pairs.
    """
    with torch.autocast(za_BD.device.type, enabled=False):
        za_BD, zb_BD = l2_normalize(za_BD), l2_normalize(zb_BD)
        rows_MD, keys_MD, own_M1 = two_views(za_BD, zb_BD)
        n = len(keys_MD) // 2
        lse = log_sum_exp(rows_MD, keys_MD, temperature, own_M1).sum()
        cosine = (za_BD * zb_BD).sum()
        value = comm.sum(lse - 2 * cosine / temperature) / (2 * n)
        return Loss(
            value, {"alignment": comm.sum(cosine.detach()) / n}, (za_BD.detach(), zb_BD.detach())
        )


class SimCLR(Method):
    """SimCLR (arXiv 2002.05709): a projector on the backbone and NT-Xent on two views."""

    n_views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Sequence[Width] = (2048, 128),
        temperature: Positive = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], last_norm="affine")
        self.temperature = temperature

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks."""
        za_BD, zb_BD = (self.projector(self.backbone(view)) for view in views)
        return simclr_loss(za_BD, zb_BD, self.temperature)
