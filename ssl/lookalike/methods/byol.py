"""BYOL: predicts a slow teacher's embedding of the other view; no negatives.

Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, arXiv 2006.07733, equation 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.heads import mlp, mlp_back
from lookalike.nn.loss import Loss, both_ways
from lookalike.nn.method import Method
from lookalike.nn.numerics import exact, l2_normalize
from lookalike.nn.teacher import Teacher
from lookalike.recipe import Fraction, Widths


@exact
def byol_loss(q_BD: Tensor, k_BD: Tensor) -> Loss:
    """Equation 2, 2 - 2 cos(q, k), averaged over the rows of all ranks.

    q_BD: (B, D) predictions, k_BD: (B, D) the teacher's embeddings without gradient, of any length,
    row i of both from one image, this rank's rows. Terms: `alignment`, the mean cosine.
    """
    with torch.autocast(q_BD.device.type, enabled=False):
        q_BD, k_BD = l2_normalize(q_BD), l2_normalize(k_BD).detach()
        cosine = comm.mean((q_BD * k_BD).sum(dim=1))
        return Loss(2 - 2 * cosine, {"alignment": cosine.detach()}, (q_BD.detach(), k_BD))


class BYOL(Method):
    """BYOL (arXiv 2006.07733): projector, predictor and a teacher, both views in both roles."""

    n_views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Widths = (4096, 256),
        predictor: Widths = (4096, 256),
        momentum: Fraction = 0.996,
        final_momentum: Fraction = 1.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], bias=True)
        self.predictor = mlp_back(projector, predictor, bias=True)
        self.teacher = Teacher(backbone, self.projector, momentum=momentum, final=final_momentum)

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks, both
        ways.
        """
        za_BD, zb_BD = (self.projector(self.backbone(view)) for view in views)
        ka_BD, kb_BD = (self.teacher(view) for view in views)
        ab, ba = byol_loss(self.predictor(za_BD), kb_BD), byol_loss(self.predictor(zb_BD), ka_BD)
        return both_ways(ab, ba, (za_BD.detach(), zb_BD.detach()))
