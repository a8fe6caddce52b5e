"""MoCo v3: no queue; a predictor's queries are told apart against the teacher's keys of the same
batch.

Chen, Xie & He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021,
arXiv 2104.02057, equation 1 and algorithm 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.contrast import log_sum_exp
from lookalike.nn.heads import mlp, mlp_back
from lookalike.nn.loss import Loss, both_ways
from lookalike.nn.method import Method
from lookalike.nn.numerics import exact, l2_normalize
from lookalike.nn.teacher import Teacher
from lookalike.recipe import Fraction, Positive, Widths


@exact
def moco_v3_loss(q_BD: Tensor, k_BD: Tensor, temperature: float) -> Loss:
    """2 T times equation 1, averaged over the rows of all ranks: each query against the keys of the
    whole batch.

    q_BD: (B, D) queries, k_BD: (B, D) keys without gradient, of any length, row i of both from one
    image, this rank's rows. Terms: `alignment`, the mean cosine of query and key.
    """
    with torch.autocast(q_BD.device.type, enabled=False):
        q_BD, k_BD = l2_normalize(q_BD), l2_normalize(k_BD).detach()
        cosine_B = (q_BD * k_BD).sum(dim=1)
        lse_B = log_sum_exp(q_BD, comm.cat(k_BD), temperature)
        value = 2 * temperature * comm.mean(lse_B - cosine_B / temperature)
        return Loss(value, {"alignment": comm.mean(cosine_B.detach())}, (q_BD.detach(), k_BD))


class MoCoV3(Method):
    """MoCo v3 (arXiv 2104.02057): projector, predictor and a teacher, both views in both roles."""

    n_views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Widths = (4096, 256),
        predictor: Widths = (4096, 256),
        temperature: Positive = 1.0,
        momentum: Fraction = 0.99,
        final_momentum: Fraction = 1.0,
    ) -> None:
        """`temperature`: 1 for ResNets, .2 for ViTs in the paper; the heads end with BatchNorm
        without scale.
        """
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], last_norm="plain")
        self.predictor = mlp_back(projector, predictor, last_norm="plain")
        self.teacher = Teacher(backbone, self.projector, momentum=momentum, final=final_momentum)
        self.temperature = temperature

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks, both
        ways.
        """
        qa_BD, qb_BD = (self.predictor(self.projector(self.backbone(view))) for view in views)
        ka_BD, kb_BD = (self.teacher(view) for view in views)
        ab = moco_v3_loss(qa_BD, kb_BD, self.temperature)
        ba = moco_v3_loss(qb_BD, ka_BD, self.temperature)
        return both_ways(ab, ba, (ab.embeddings[0], ba.embeddings[0]))
