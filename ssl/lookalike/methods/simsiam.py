"""SimSiam: predicts the other view's embedding, through which no gradient flows; no negatives, no
teacher.

Chen & He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv 2011.10566,
equations 1 to 4.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.heads import mlp
from lookalike.nn.loss import Loss, both_ways
from lookalike.nn.method import Method
from lookalike.nn.numerics import exact, l2_normalize
from lookalike.optim import ParameterHints
from lookalike.recipe import Width, Widths


@exact
def simsiam_loss(p_BD: Tensor, z_BD: Tensor) -> Loss:
    """Half of equation 4: the negative cosine of prediction and embedding, averaged over the rows
    of all ranks.

    p_BD: (B, D) predictions from one view, z_BD: (B, D) embeddings of the other, detached here; of
    any length, this rank's rows. Terms: `alignment`, the mean cosine.
    """
    with torch.autocast(p_BD.device.type, enabled=False):
        p_BD, z_BD = l2_normalize(p_BD), l2_normalize(z_BD).detach()
        cosine = comm.mean((p_BD * z_BD).sum(dim=1))
        return Loss(-cosine / 2, {"alignment": cosine.detach()}, (p_BD.detach(), z_BD))


class SimSiam(ParameterHints, Method):
    """SimSiam (arXiv 2011.10566): a projector and a narrow predictor, whose learning rate stays
    constant.
    """

    n_views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Widths = (2048, 2048, 2048),
        predictor: Width = 512,
    ) -> None:
        """`projector`: widths, with BatchNorm also at the end; `predictor`: the width of its
        middle.
        """
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], last_norm="plain")
        self.predictor = mlp([projector[-1], predictor, projector[-1]], bias=True)

    def constant_lr(self) -> set[str]:
        """Parameters that the schedule leaves alone (section 4.2 of the paper)."""
        return {f"predictor.{name}" for name, _ in self.predictor.named_parameters()}

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks, both
        ways.
        """
        za_BD, zb_BD = (self.projector(self.backbone(view)) for view in views)
        ab, ba = (
            simsiam_loss(self.predictor(za_BD), zb_BD),
            simsiam_loss(self.predictor(zb_BD), za_BD),
        )
        return both_ways(ab, ba, (za_BD.detach(), zb_BD.detach()))
