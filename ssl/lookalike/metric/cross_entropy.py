"""Classification with smoothed labels behind a BNNeck: the identity loss of re-identification.

Luo, Gu, Liao, Lai & Jiang, "Bag of tricks and a strong baseline for deep person re-identification",
CVPR Workshops 2019, arXiv 1903.07071, sections 3.3 and 3.5; label smoothing: Szegedy et al., CVPR
2016, arXiv 1512.00567, section 7.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor, nn

from lookalike.metric.own_loss import OwnLoss
from lookalike.metric.pair_masks import refuse_unknown
from lookalike.nn.hooks import Deferred
from lookalike.recipe import Fraction

EPS, MOMENTUM = 1e-5, 0.1


class Running(Deferred):
    """Mean and variance of the steps so far, for export alone: the mean of all at first, then an
    exponential one.

    They move in `commit`, so a skipped step leaves no trace.
    """

    mean_D: Tensor
    var_D: Tensor
    steps: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("var_D", torch.ones(dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def put(self, z_ND: Tensor) -> None:
        """Stages mean and variance (unbiased) of the rows of a batch of all ranks, two at least."""
        if self.training:
            self.stage(z_ND.mean(dim=0), z_ND.var(dim=0))

    def write(self, mean_D: Tensor, var_D: Tensor) -> None:
        """Moves mean and variance."""
        self.steps += 1
        share = (1 / self.steps).clamp(min=MOMENTUM).to(self.mean_D)
        self.mean_D.lerp_(mean_D.to(self.mean_D), share)
        self.var_D.lerp_(var_D.to(self.var_D), share)


class Neck(nn.Module):
    """A BatchNorm with a scale and no shift, over the rows of all ranks, which every rank holds."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_D = nn.Parameter(torch.ones(dim))
        self.running = Running(dim)

    def forward(self, z_ND: Tensor) -> Tensor:
        """(N, D) -> (N, D). Raises ValueError for a single row."""
        found = F.batch_norm(z_ND, None, None, self.scale_D, None, training=True, eps=EPS)
        self.running.put(z_ND)
        return found

    def affine(self) -> tuple[Tensor, Tensor]:
        """(W, b) of what it does with its running statistics."""
        slope_D = self.scale_D.detach() / (self.running.var_D + EPS).sqrt()
        return slope_D.diag(), -self.running.mean_D * slope_D


class CrossEntropyLoss(OwnLoss, BaseMetricLossFunction):  # type: ignore[misc]
    """Cross-entropy over the classes trained on, smoothed labels (arXiv 1512.00567), behind a
    BNNeck (1903.07071).

    Owns the classifier W (C, D), without bias, and the neck. The target is 1 - smoothing +
    smoothing / C for the class, smoothing / C for others. Other objectives beside it see the
    embedding before the neck; what is exported is the one after it: the neck is folded into the
    head.
    """

    unnormalised = True

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        smoothing: Fraction = 0.1,
        neck: bool = True,
        reducer: Any = None,
    ) -> None:
        super().__init__(reducer=reducer)
        self.smoothing, self.neck = smoothing, Neck(embedding_size) if neck else None
        self.weight_CD = nn.Parameter(
            torch.empty(num_classes, embedding_size).normal_(std=0.001 if neck else 0.01)
        )

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """What the neck does to an embedding, as (W, b); None without."""
        return self.neck.affine() if self.neck else None

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Any,
    ) -> Any:
        """As the library asks: one value an image. Raises DataError for a label that is no
        class.
        """
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        c_f.indices_tuple_not_supported(indices_tuple)
        known = refuse_unknown(labels, len(self.weight_CD))
        x_ND = self.neck(embeddings) if self.neck else embeddings
        losses_N = F.cross_entropy(
            x_ND @ self.weight_CD.T, labels, label_smoothing=self.smoothing, reduction="none"
        )
        if known is not None:
            losses_N = torch.where(known, losses_N, torch.nan)
        indices_N = torch.arange(len(labels), device=labels.device)
        return {"loss": {"losses": losses_N, "indices": indices_N, "reduction_type": "element"}}
