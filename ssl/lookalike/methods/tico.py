"""TiCo: draws the views of an image together and keeps them off the directions that the past has
filled.

Zhu, Moraes, Karakulak, Sobol, Canziani & LeCun, "TiCo: Transformation Invariance and Covariance
Contrast for Self-Supervised Visual Representation Learning", arXiv 2206.10698, algorithm 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.heads import mlp
from lookalike.nn.hooks import Deferred
from lookalike.nn.loss import Loss
from lookalike.nn.method import Method
from lookalike.nn.numerics import exact, l2_normalize
from lookalike.nn.teacher import Teacher
from lookalike.recipe import Fraction, NonNegative, Widths


@exact
def tico_loss(
    z_BD: Tensor, k_BD: Tensor, past_DD: Tensor, beta: float, rho: float
) -> tuple[Loss, Tensor]:
    """Algorithm 1 over the rows of all ranks, and their covariance, without gradient.

    z_BD: (B, D) embeddings, k_BD: (B, D) the teacher's of the other view, without gradient, of any
    length, this rank's rows. Terms: `alignment`, the mean cosine, and `contrast`, the covariance
    term before its weight `rho`.
    """
    with torch.autocast(z_BD.device.type, enabled=False):
        z_BD, k_BD = l2_normalize(z_BD), l2_normalize(k_BD).detach()
        now_DD = comm.sum(z_BD.T @ z_BD) / comm.count(z_BD)
        mixed_DD = mix(past_DD, now_DD, beta)
        alignment, contrast = comm.mean((z_BD * k_BD).sum(dim=1)), (mixed_DD * now_DD).sum()
        terms = {"alignment": alignment.detach(), "contrast": contrast.detach()}
        return Loss(rho * contrast - alignment, terms, (z_BD.detach(), k_BD)), now_DD.detach()


def mix(past_DD: Tensor, now_DD: Tensor, beta: float) -> Tensor:
    """The running covariance after a batch with the covariance `now_DD`."""
    return beta * past_DD.to(now_DD.dtype) + (1 - beta) * now_DD


class TiCo(Deferred, Method):
    """TiCo (arXiv 2206.10698): a projector, a teacher for the second view, and a running
    covariance.

    The micro-batches of a step all see the past of before the step; then the covariance of each is
    mixed in, one after another, as that many steps would have.
    """

    n_views = 2
    past_DD: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector: Widths = (4096, 256),
        beta: Fraction = 0.9,
        rho: NonNegative = 8.0,
        momentum: Fraction = 0.99,
        final_momentum: Fraction = 1.0,
    ) -> None:
        """`beta`: how much of the past covariance stays; `rho`: the weight of the covariance
        term.
        """
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *projector], bias=True)
        self.teacher = Teacher(backbone, self.projector, momentum=momentum, final=final_momentum)
        self.register_buffer("past_DD", torch.zeros(projector[-1], projector[-1]))
        self.beta, self.rho = beta, rho

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """Two views (B, C, H, W) of the same images -> the loss over the batch of all ranks."""
        z_BD, k_BD = self.projector(self.backbone(views[0])), self.teacher(views[1])
        loss, now_DD = tico_loss(z_BD, k_BD, self.past_DD, self.beta, self.rho)
        self.stage(now_DD)
        return loss

    def write(self, now_DD: Tensor) -> None:
        """The covariance of a good step's batch joins the past."""
        self.past_DD.copy_(mix(self.past_DD, now_DD, self.beta))
