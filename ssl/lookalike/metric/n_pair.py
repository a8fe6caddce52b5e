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

from lookalike.metric import sizes
from lookalike.metric.own_loss import OwnLoss
from lookalike.metric.pair_masks import dissimilarity, listed, reducer_of
from lookalike.recipe import NonNegative


def pairs(labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(anchor, positive, round), each (M,): a class's images two by two in the order of the batch,
    one pair a round.

    An image that is left over takes no part. Where the host would wait for their number, M is all
    that there may be, and what is too many has round -1.
    """
    order_B = torch.argsort(labels_B, stable=True)
    sorted_B, place_B = labels_B[order_B], torch.arange(len(labels_B), device=labels_B.device)
    new_B = sorted_B.diff(prepend=sorted_B[:1]) != 0
    rank_B = place_B - (place_B * new_B).cummax(dim=0).values
    first_B = (rank_B % 2 == 0) & (sorted_B == sorted_B.roll(-1)) & (place_B < len(labels_B) - 1)
    most = sizes.at_most(first_B.sum(), len(labels_B) // 2)
    first_M = torch.argsort(~first_B, stable=True)[:most]
    round_M = torch.where(first_B[first_M], rank_B[first_M] // 2, -1)
    return order_B[first_M], order_B.roll(-1)[first_M], round_M


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
        losses_M = n_pair(s_MM, round_M)
        reducer = reducer_of(self.reducer, "loss")
        return {"loss": listed(losses_M, round_M >= 0, "element", reducer, (a_M,))}

    def get_default_distance(self) -> Any:
        """f_a · f_b."""
        return DotProductSimilarity(normalize_embeddings=False)
