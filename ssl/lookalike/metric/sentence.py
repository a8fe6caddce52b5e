"""Sentence-BERT's three objectives, on embeddings of any length: classification, regression,
triplet.

Reimers & Gurevych, "Sentence-BERT: sentence embeddings using siamese BERT-networks", EMNLP 2019,
arXiv 1908.10084, section 3: softmax(W [u; v; |u - v|]), (cos(u, v) - y)², [‖a - p‖ - ‖a - n‖ + ε]₊.
Two images are alike or not.
"""

from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn

from lookalike.metric.own_loss import OwnLoss
from lookalike.metric.pair_masks import Masks, hinges, listed, masks, number, reducer_of
from lookalike.nn.numerics import l2_normalize


def alike(u_BD: Tensor, v_RD: Tensor, weight_2E: Tensor) -> Tensor:
    """(B, R): by how much the logit of `same` is above that of `different`, the two rows of W [u;
    v; |u - v|].

    Never B × R × D: where a weight is positive, w |u - v| is |w u - w v|, so that part is two
    city-block distances.
    """
    of_u_D, of_v_D, of_gap_D = (weight_2E[1] - weight_2E[0]).chunk(3)
    up_D, down_D = of_gap_D.relu(), (-of_gap_D).relu()
    gap_BR = torch.cdist(u_BD * up_D, v_RD * up_D, p=1.0) - torch.cdist(
        u_BD * down_D, v_RD * down_D, p=1.0
    )
    return (u_BD @ of_u_D)[:, None] + v_RD @ of_v_D + gap_BR


def _pairs(
    positive_losses: Tensor, negative_losses: Tensor, chosen: Masks, reducer: Any
) -> dict[str, dict[str, Any]]:
    """Losses (B, R) as the library's two kinds of pairs, each reduced by itself."""
    return {
        f"{kind}_loss": listed(losses, mask, f"{kind}_pair", reducer_of(reducer, f"{kind}_loss"))
        for kind, losses, mask in (
            ("pos", positive_losses, chosen.positive_BR),
            ("neg", negative_losses, chosen.negative_BR),
        )
    }


class SentenceClassificationLoss(OwnLoss, BaseMetricLossFunction):  # type: ignore[misc]
    """Sentence-BERT's classification (arXiv 1908.10084): softmax(W [u; v; |u - v|]), the same class
    or another.

    Owns W, (2, 3D). The mean over pairs of one class plus the mean over pairs of two, in both
    orders.
    """

    unnormalised = True

    def __init__(self, embedding_size: int, *, reducer: Any = None) -> None:
        super().__init__(reducer=reducer)
        self.weight_2E = nn.Parameter(nn.Linear(3 * embedding_size, 2).weight.detach())

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Any,
    ) -> Any:
        """As the library asks: cross-entropies of pairs."""
        x_BR = alike(embeddings, ref_emb, self.weight_2E)
        zero = torch.zeros_like(x_BR)
        return _pairs(
            torch.logaddexp(-x_BR, zero),
            torch.logaddexp(x_BR, zero),
            masks(indices_tuple, labels, ref_labels),
            self.reducer,
        )

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]


class SentenceRegressionLoss(BaseMetricLossFunction):  # type: ignore[misc]
    """Sentence-BERT's regression (arXiv 1908.10084): (cos(u, v) - y)², y is `same` for one class,
    else `different`.

    The mean over pairs of one class plus the mean over pairs of two.
    """

    def __init__(self, *, same: float = 1.0, different: float = 0.0, reducer: Any = None) -> None:
        super().__init__(reducer=reducer)
        self.same, self.different = same, different

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Any,
    ) -> Any:
        """As the library asks: squared errors of pairs."""
        cosine_BR = l2_normalize(embeddings) @ l2_normalize(ref_emb).T
        chosen = masks(indices_tuple, labels, ref_labels)
        return _pairs(
            (cosine_BR - self.same).square(),
            (cosine_BR - self.different).square(),
            chosen,
            self.reducer,
        )

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]


class SentenceTripletLoss(OwnLoss, BaseMetricLossFunction):  # type: ignore[misc]
    """Sentence-BERT's triplet (arXiv 1908.10084): [‖a - p‖ - ‖a - n‖ + margin]₊, Euclidean, of any
    length.

    The mean over all triplets of the batch, which are never listed, or over a miner's.
    """

    unnormalised = True

    def __init__(self, *, margin: float = 1.0) -> None:
        super().__init__(distance=LpDistance(normalize_embeddings=False))
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
        return {"loss": number(hinges(indices_tuple, labels, ref_labels, d_BR, self.margin).mean())}
