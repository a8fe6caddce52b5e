"""MoCo v2: tells a view's key, made by a slow teacher, from a long queue of earlier keys.

He, Fan, Wu, Xie & Girshick, "Momentum Contrast", CVPR 2020, arXiv 1911.05722, equation 1; Chen,
Fan, Girshick & He, "Improved Baselines with Momentum Contrastive Learning", arXiv 2003.04297. The
papers shuffle keys among GPUs because their BatchNorm sees one GPU's samples only; here it sees the
batch of all ranks, so there is nothing to shuffle.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.contrast import log_sum_exp
from lookalike.nn.heads import mlp
from lookalike.nn.loss import Loss
from lookalike.nn.method import Method
from lookalike.nn.numerics import exact, l2_normalize
from lookalike.nn.queue import Queue
from lookalike.nn.teacher import Teacher
from lookalike.recipe import Count, Fraction, Positive, Widths


@exact
def moco_v2_loss(q_BD: Tensor, k_BD: Tensor, queue_QD: Tensor, temperature: float) -> Loss:
    """Equation 1, averaged over the rows of all ranks: each query against its key and the whole
    queue.

    q_BD: (B, D) queries of any length, k_BD: their keys, unit rows; queue_QD: unit rows, alike on
    all ranks; keys and queue carry no gradient. Terms: `alignment`, the mean cosine of query and
    key.
    """
    with torch.autocast(q_BD.device.type, enabled=False):
        q_BD, k_BD = l2_normalize(q_BD), l2_normalize(k_BD).detach()
        cosine_B = (q_BD * k_BD).sum(dim=1)
        positive_B = cosine_B / temperature
        lse_B = torch.logaddexp(positive_B, log_sum_exp(q_BD, queue_QD.to(q_BD.dtype), temperature))
        terms = {"alignment": comm.mean(cosine_B.detach())}
        return Loss(comm.mean(lse_B - positive_B), terms, (q_BD.detach(), k_BD))


class MoCoV2(Method):
    """MoCo v2 (arXiv 2003.04297): queries from the first view, keys from the second; a teacher and
    a queue.
    """

    n_views = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Widths = (2048, 128),
        temperature: Positive = 0.2,
        queue: Count = 65536,
        momentum: Fraction = 0.999,
    ) -> None:
        """`queue`: how many earlier keys; `momentum`: the teacher's, constant."""
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], bias=True)
        self.teacher = Teacher(backbone, self.projector, momentum=momentum, final=momentum)
        self.queue = Queue(queue, projector[-1])
        self.temperature = temperature

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks."""
        query, key = views
        k_BD = self.teacher(key)
        loss = moco_v2_loss(
            self.projector(self.backbone(query)), k_BD, self.queue.rows_QD, self.temperature
        )
        self.queue.put(l2_normalize(k_BD))
        return loss
