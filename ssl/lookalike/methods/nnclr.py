"""NNCLR: the positive of a view is the nearest earlier embedding of its twin, not the twin itself.

Dwibedi, Aytar, Tompson, Sermanet & Zisserman, "With a Little Help from My Friends", ICCV 2021,
arXiv 2104.14548, equation 3 and algorithm 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.contrast import log_sum_exp, nearest
from lookalike.nn.heads import mlp, mlp_back
from lookalike.nn.loss import Loss, both_ways
from lookalike.nn.method import Method
from lookalike.nn.numerics import exact, l2_normalize
from lookalike.nn.queue import Queue
from lookalike.recipe import Count, Positive, Widths


@exact
def nnclr_loss(z_BD: Tensor, p_BD: Tensor, queue_QD: Tensor, temperature: float) -> Loss:
    """Equation 3, averaged over the rows of all ranks: each row's neighbour told from the batch's
    predictions.

    z_BD: (B, D) embeddings of one view, used only to find neighbours; p_BD: (B, D) predictions of
    the other, of any length, this rank's rows; queue_QD: unit rows, alike on all ranks. Terms:
    `alignment`, the mean cosine of neighbour and prediction.
    """
    with torch.autocast(z_BD.device.type, enabled=False):
        z_BD, p_BD = l2_normalize(z_BD).detach(), l2_normalize(p_BD)
        queue_QD = queue_QD.to(z_BD.dtype)
        neighbour_BD = queue_QD[nearest(z_BD, queue_QD)]
        cosine_B = (neighbour_BD * p_BD).sum(dim=1)
        lse_B = log_sum_exp(neighbour_BD, comm.cat(p_BD), temperature)
        terms = {"alignment": comm.mean(cosine_B.detach())}
        return Loss(comm.mean(lse_B - cosine_B / temperature), terms, (z_BD, p_BD.detach()))


class NNCLR(Method):
    """NNCLR (arXiv 2104.14548): projector, predictor and a queue of earlier embeddings, both views
    in both roles.
    """

    n_views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Widths = (2048, 2048, 256),
        predictor: Widths = (4096, 256),
        temperature: Positive = 0.1,
        queue: Count = 98304,
    ) -> None:
        """`queue`: how many earlier embeddings (the paper's support set)."""
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], last_norm="affine")
        self.predictor = mlp_back(projector, predictor, bias=True)
        self.queue = Queue(queue, projector[-1])
        self.temperature = temperature

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks, both
        ways.
        """
        za_BD, zb_BD = (self.projector(self.backbone(view)) for view in views)
        ab = nnclr_loss(za_BD, self.predictor(zb_BD), self.queue.rows_QD, self.temperature)
        ba = nnclr_loss(zb_BD, self.predictor(za_BD), self.queue.rows_QD, self.temperature)
        self.queue.put(l2_normalize(za_BD))
        loss = both_ways(ab, ba, (za_BD.detach(), zb_BD.detach()))
        return loss._replace(value=loss.value / 2)
