"""FaceNet's triplet loss with its own semi-hard mining: one margin for both.

Schroff, Kalenichenko & Philbin, "FaceNet: a unified embedding for face recognition and clustering",
CVPR 2015, arXiv 1503.03832, equations 1 to 4.
"""

from typing import Any

from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor

from lookalike.metric.pair_masks import hinges, number
from lookalike.recipe import Positive


class FaceNetLoss(BaseMetricLossFunction):  # type: ignore[misc]
    """FaceNet's triplet loss (Schroff 2015, arXiv 1503.03832): [d²(a,p) - d²(a,n) + margin]₊ on the
    unit sphere.

    The mean over all semi-hard triplets of the batch, d²(a,p) < d²(a,n) < d²(a,p) + margin, which
    are never listed; 0 where there are none. A miner's triplets take their place: the mean over
    those above 0.
    """

    def __init__(self, *, margin: Positive = 0.2) -> None:
        super().__init__(distance=LpDistance(power=2))
        self.margin = margin

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Any,
    ) -> Any:
        """As the library asks: one number."""
        d_BR = self.distance(embeddings, ref_emb)
        found = hinges(indices_tuple, labels, ref_labels, d_BR, self.margin, semihard=True)
        return {"loss": number(found.mean_of_active())}
