"""Multi-class N-pair loss: an anchor and its positive against the positives of all other classes.

Sohn, "Improved deep metric learning with multi-class N-pair loss objective", NIPS 2016, equations 7
and 8.
"""

from typing import Any

import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.regularizers import LpRegularizer
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from lookalike.metric.own_loss import OwnLoss
from lookalike.metric.pair_masks import dissimilarity
from lookalike.recipe import NonNegative


def pairs(labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(anchor, positive, round), each (M,): a class's images two by two in the order of the batch,
    one pair a round.

    An image that is left over takes no part.
    """
    order_B = torch.argsort(labels_B, stable=True)
    _, count_C = torch.unique_consecutive(labels_B[order_B], return_counts=True)
    start_B = (count_C.cumsum(0) - count_C).repeat_interleave(count_C)
    rank_B = torch.arange(len(labels_B), device=labels_B.device) - start_B
    first = torch.nonzero(
        (rank_B % 2 == 0) & (rank_B + 1 < count_C.repeat_interleave(count_C))
    ).flatten()
    return order_B[first], order_B[first + 1], rank_B[first] // 2


def n_pair(s_MM: Tensor, round_M: Tensor) -> Tensor:
    """(M,): log(1 + Σ_{j≠i} exp(f_i · f_j⁺ - f_i · f_i⁺)), j over the pairs of i's round.

    s_MM: similarities of each pair's anchor (rows) to each pair's positive.
    """
    logits_MM = s_MM.masked_fill(round_M[:, None] != round_M[None], -torch.inf)
    return logits_MM.logsumexp(dim=1) - s_MM.diagonal()


class MultiClassNPairLoss(OwnLoss, BaseMetricLossFunction):  # type: ignore[misc]
    """Multi-class N-pair loss (Sohn 2016) on un-normalised embeddings, with `l2` times their mean
    squared length.

    The first image of a class in the batch is the anchor, the second its positive; further ones
    make further rounds, each an N-pair batch of its own. So the order of the classes does not
    matter, and on any number of ranks the pairs are those of the whole batch. A miner's tuple gives
    the first of its pairs of each class.
    """

    unnormalised = True

    def __init__(
        self, *, l2: NonNegative = 0.002, distance: Any = None, reducer: Any = None
    ) -> None:
        super().__init__(
            distance=distance,
            reducer=reducer,
            embedding_regularizer=LpRegularizer(p=2, power=2) if l2 else None,
            embedding_reg_weight=l2,
        )

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Any,
    ) -> Any:
        """As the library asks: one value an anchor."""
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        if indices_tuple is None:
            a_M, p_M, round_M = pairs(labels)
        else:
            a_M, p_M = lmu.convert_to_pos_pairs_with_unique_labels(indices_tuple, labels)
            round_M = torch.zeros_like(a_M)
        if not len(a_M):
            return self.zero_losses()
        s_MM = -dissimilarity(self.distance, embeddings[a_M], embeddings[p_M])
        return {
            "loss": {"losses": n_pair(s_MM, round_M), "indices": a_M, "reduction_type": "element"}
        }

    def get_default_distance(self) -> Any:
        """f_a · f_b."""
        return DotProductSimilarity(normalize_embeddings=False)
