"""SupCon: SimCLR's loss in which all views of all images of one class are positives.

Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362, equation 2
(L_out). The one method here that reads labels.
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
def supcon_loss(za_BD: Tensor, zb_BD: Tensor, labels_B: Tensor, temperature: float) -> Loss:
    """Equation 2, averaged over the 2N views of all ranks.

    za_BD, zb_BD: (B, D) embeddings of any length, row i of both from one image of class labels_B[i]
    (int64), this rank's rows. A row's positives enter through the sum of their embeddings, class by
    class: nothing of size N × N is held. Terms: `alignment`, the mean cosine of an image's two
    views.
    """
    with torch.autocast(za_BD.device.type, enabled=False):
        za_BD, zb_BD = l2_normalize(za_BD), l2_normalize(zb_BD)
        rows_MD, keys_MD, own_M1 = two_views(za_BD, zb_BD)
        lse = log_sum_exp(rows_MD, keys_MD, temperature, own_M1).sum()
        positives = _mean_positive(
            rows_MD, keys_MD, labels_B.repeat(2), comm.cat(labels_B).repeat(2)
        ).sum()
        value = comm.sum(lse - positives / temperature) / len(keys_MD)
        terms = {"alignment": comm.mean((za_BD * zb_BD).sum(dim=1).detach())}
        return Loss(value, terms, (za_BD.detach(), zb_BD.detach()))


def _mean_positive(rows_MD: Tensor, keys_ND: Tensor, labels_M: Tensor, labels_N: Tensor) -> Tensor:
    """(M,): each row's mean product with its positives, all keys of its class but itself.

    A class goes by the place of its first key in the order of the labels: nothing is read of the
    device.
    """
    order_N = labels_N.argsort(stable=True)
    sorted_N = labels_N[order_N].contiguous()
    first_N = torch.searchsorted(sorted_N, sorted_N)
    class_N = torch.empty_like(first_N).scatter_(0, order_N, first_N)
    class_M = torch.searchsorted(sorted_N, labels_M.contiguous())
    sums_ND = torch.zeros_like(keys_ND).index_add(0, class_N, keys_ND)
    count_N = torch.zeros_like(class_N).index_add(0, class_N, torch.ones_like(class_N))
    others_M = count_N[class_M] - 1
    return ((rows_MD * sums_ND[class_M]).sum(dim=1) - rows_MD.square().sum(dim=1)) / others_M


class SupCon(Method):
    """SupCon (arXiv 2004.11362): SimCLR's network, with labels."""

    n_views = 2
    needs_labels = True

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

    def forward(self, views: Sequence[Tensor], labels_B: Tensor) -> Loss:
        """Two views (B, C, H, W) of the same images and their classes -> the loss over the batch of
        all ranks.
        """
        za_BD, zb_BD = (self.projector(self.backbone(view)) for view in views)
        return supcon_loss(za_BD, zb_BD, labels_B, self.temperature)
