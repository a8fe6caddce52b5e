"""SwAV: predicts from each view the cluster to which an even assignment of the batch puts another
view.

Caron, Misra, Mairal, Goyal, Bojanowski & Joulin, "Unsupervised Learning of Visual Features by
Contrasting Cluster Assignments", NeurIPS 2020, arXiv 2006.09882, equations 1 to 5.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.heads import Prototypes, mlp
from lookalike.nn.hooks import Scheduled
from lookalike.nn.loss import Loss
from lookalike.nn.method import Method
from lookalike.nn.multicrop import each_size
from lookalike.nn.numerics import at_least_fp32, exact, l2_normalize
from lookalike.optim import Progress
from lookalike.recipe import Count, NonNegative, Positive, Widths


@torch.no_grad()
def sinkhorn(scores_BK: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The assignment of the rows of all ranks to K prototypes, every prototype equally often
    (section 3.1).

    scores_BK: this rank's rows; returns (B, K), rows summing to one.
    """
    highest = comm.all_max(scores_BK.amax()) if len(scores_BK) else scores_BK.new_zeros(())
    q_BK = ((scores_BK - highest) / epsilon).exp()
    for _ in range(iterations):
        q_BK = q_BK / comm.sum(q_BK.sum(dim=0)).clamp(min=torch.finfo(q_BK.dtype).tiny)
        q_BK = q_BK / q_BK.sum(dim=1, keepdim=True).clamp(min=torch.finfo(q_BK.dtype).tiny)
    return q_BK


@exact
def swav_loss(
    scores: Sequence[Tensor], temperature: float, epsilon: float, iterations: int
) -> Loss:
    """Equation 1 for every pair of a large view (the first two) with another view, averaged over
    pairs and rows.

    scores: (B, K) of each view, cosines of its embeddings with the prototypes, this rank's rows.
    Terms: `entropy` of the mean assignment, in nats (log K when all prototypes are used alike).
    """
    value = scores[0].new_zeros(())
    logs = [F.log_softmax(s_BK / temperature, dim=1) for s_BK in scores]
    predicted_K = comm.mean((logs[0].detach().exp() + logs[1].detach().exp()) / 2)
    for large in (0, 1):
        code_BK = sinkhorn(scores[large].detach(), epsilon, iterations)
        for other, log_BK in enumerate(logs):
            if other != large:
                value = value - comm.mean((code_BK * log_BK).sum(dim=1))
    entropy = -(predicted_K * predicted_K.clamp(min=1e-30).log()).sum()
    return Loss(value / (2 * (len(scores) - 1)), {"entropy": entropy})


class SwAV(Scheduled, Method):
    """SwAV (arXiv 2006.09882): a projector and prototypes; two large views and any number of small
    ones.
    """

    n_views = 2
    more_views = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Widths = (2048, 128),
        prototypes: Count = 3000,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        iterations: Count = 3,
        frozen_epochs: NonNegative = 1.0,
    ) -> None:
        """`epsilon`, `iterations`: of Sinkhorn's algorithm; `frozen_epochs`: how long the
        prototypes stay put.
        """
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], bias=True)
        self.prototypes = Prototypes(projector[-1], prototypes)
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.frozen_epochs = frozen_epochs

    def on_step(self, progress: Progress) -> None:
        """Holds the prototypes in the first epochs."""
        self.prototypes.frozen = progress.epoch < self.frozen_epochs

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """V views (B, C, H, W), the first two large, of the same images -> the loss over the batch
        of all ranks.
        """
        h_VBD = each_size(self.backbone, views)
        z_VBD = self.projector(torch.cat(h_VBD)).chunk(len(views))
        with torch.autocast(views[0].device.type, enabled=False):
            scores = [self.prototypes(l2_normalize(at_least_fp32(z_BD))) for z_BD in z_VBD]
            loss = swav_loss(scores, self.temperature, self.epsilon, self.iterations)
        return loss._replace(embeddings=(z_VBD[0].detach(), z_VBD[1].detach()))
